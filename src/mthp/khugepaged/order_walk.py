# SPDX-License-Identifier: GPL-2.0-or-later
"""Choose windows and orders within one table. Kernel: mm/khugepaged.c, mthp_collapse()."""

from __future__ import annotations

from typing import Final

from mthp.khugepaged.collapse import collapse_huge_page
from mthp.khugepaged.control import CollapseControl
from mthp.khugepaged.limits import collapse_max_ptes_none
from mthp.mm.mm_struct import Mm
from mthp.results import ScanResult
from mthp.units import MTHP_MIN_ORDER

NEXT_OFFSET: Final = frozenset({ScanResult.SUCCEED, ScanResult.PTE_MAPPED_HUGEPAGE})
"""After these the walk goes on behind the window."""

LOWER_ORDER: Final = frozenset(
    {
        ScanResult.ALLOC_HUGE_PAGE_FAIL,
        ScanResult.LACK_REFERENCED_PAGE,
        ScanResult.EXCEED_NONE_PTE,
        ScanResult.EXCEED_SWAP_PTE,
        ScanResult.EXCEED_SHARED_PTE,
        ScanResult.PAGE_LOCK,
        ScanResult.PAGE_COUNT,
        ScanResult.PAGE_NULL,
        ScanResult.DEL_PAGE_LRU,
        ScanResult.PTE_NON_PRESENT,
        ScanResult.PTE_UFFD,
        ScanResult.PAGE_LAZYFREE,
    }
)
"""After these a smaller window at the same place may still do. Any other result ends the table."""


def max_order_from_offset(offset: int, pmd_order: int) -> int:
    """The largest order naturally aligned at offset. Kernel: max_order_from_offset()."""
    return min((offset & -offset).bit_length() - 1, pmd_order) if offset else pmd_order


def mthp_collapse(
    mm: Mm, address: int, referenced: int, unmapped: int, cc: CollapseControl, enabled_orders: int
) -> ScanResult:
    """Walk the table from its start, largest order first, and attempt what holds enough pages.

    No locks held. enabled_orders: bitmap. Returns SUCCEED if anything collapsed, else
    ALLOC_HUGE_PAGE_FAIL if any allocation failed, else the last refusal (FAIL at first).
    Kernel: mm/khugepaged.c, mthp_collapse().
    """
    kernel = mm.kernel
    geometry = kernel.geometry
    limits = {
        order: collapse_max_ptes_none(kernel, cc, None, order)
        for order in range(geometry.pmd_order + 1)
        if enabled_orders >> order & 1
    }
    last_result = ScanResult.FAIL
    collapsed = alloc_failed = False
    offset, order = 0, geometry.pmd_order
    while offset < geometry.ptrs_per_pte:
        nr_ptes = 1 << order
        go_on_behind = False
        max_ptes_none = limits.get(order)
        if max_ptes_none is not None:
            occupied = (cc.present_ptes >> offset & ((1 << nr_ptes) - 1)).bit_count()
            if order == geometry.pmd_order:
                occupied += unmapped
            if occupied >= nr_ptes - max_ptes_none:
                window = address + (offset << geometry.page_shift)
                result = collapse_huge_page(mm, window, referenced, unmapped, cc, order)
                collapsed |= result is ScanResult.SUCCEED
                alloc_failed |= result is ScanResult.ALLOC_HUGE_PAGE_FAIL
                if result in NEXT_OFFSET:
                    go_on_behind = True
                else:
                    last_result = result
                    if result not in LOWER_ORDER:
                        break
        if not go_on_behind and order > MTHP_MIN_ORDER and enabled_orders & ((1 << order) - 1):
            # The next enabled order; the kernel goes down one by one, and passes the same windows.
            order = max((enabled_orders & ((1 << order) - 1)).bit_length() - 1, MTHP_MIN_ORDER)
            continue
        offset += nr_ptes
        order = max_order_from_offset(offset, geometry.pmd_order)
    if collapsed:
        return ScanResult.SUCCEED
    return ScanResult.ALLOC_HUGE_PAGE_FAIL if alloc_failed else last_result
