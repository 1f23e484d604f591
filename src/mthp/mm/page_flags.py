# SPDX-License-Identifier: GPL-2.0-or-later
"""Bits of a folio and of a page. Kernel: include/linux/page-flags.h."""

from __future__ import annotations

from typing import Final

PG_LOCKED: Final = 1 << 0


PG_LRU: Final = 1 << 1


PG_ACTIVE: Final = 1 << 2


PG_REFERENCED: Final = 1 << 3


PG_DIRTY: Final = 1 << 4


PG_SWAPBACKED: Final = 1 << 5


PG_UNEVICTABLE: Final = 1 << 6


PG_MLOCKED: Final = 1 << 7


PG_UPTODATE: Final = 1 << 8


PG_SWAPCACHE: Final = 1 << 9


PG_ANON: Final = 1 << 10


PG_KSM: Final = 1 << 11


PG_YOUNG: Final = 1 << 12


PG_PARTIALLY_MAPPED: Final = 1 << 13


PG_MAPPED_SHARED: Final = 1 << 14
"""A large folio is mapped by more than one mm, as far as it knows. Kernel: FOLIO_MM_IDS_SHARED_BITNUM."""


PG_ZONE_DEVICE: Final = 1 << 15


PG_ISOLATED: Final = 1 << 16
"""Counted in NR_ISOLATED_ANON."""


PG_WRITEBACK: Final = 1 << 17


ON_LRU: Final = PG_UPTODATE | PG_LRU | PG_ANON | PG_SWAPBACKED
"""What a written anonymous folio has once it has come to rest."""


PAGE_ANON_EXCLUSIVE: Final = 1 << 0


PAGE_HWPOISON: Final = 1 << 1


ENTIRELY_MAPPED: Final = 1 << 23
"""Added to nr_pages_mapped by a PMD mapping. Kernel: mm/internal.h."""
