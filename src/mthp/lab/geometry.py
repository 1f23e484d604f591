# SPDX-License-Identifier: GPL-2.0-or-later
"""The geometry of every guest: x86-64 with base pages of 4 KiB and PMD ranges of 2 MiB."""

from __future__ import annotations

from mthp.words.units import Geometry

GEOMETRY = Geometry()
PAGE_SIZE = GEOMETRY.page_size
PMD_PAGES = GEOMETRY.ptrs_per_pte
PMD_ORDER = GEOMETRY.pmd_order
ORDERS = tuple(sorted(GEOMETRY.anon_orders))
"""The orders of anonymous folios that have a switch of their own, ascending."""
SMALL_ORDERS = ORDERS[:-1]
"""Those below PMD order. A fault of PMD order registers a process with khugepaged, and children that
are forked afterwards would be scanned too: what is shared by fork is therefore of these orders."""


def round_up_to_table(page: int) -> int:
    """The first page at or after `page` that begins a table of PMD_PAGES pages."""
    return -(-page // PMD_PAGES) * PMD_PAGES
