# SPDX-License-Identifier: GPL-2.0-or-later
"""Choose windows and orders within one table. Kernel: mm/khugepaged.c, mthp_collapse()."""

from __future__ import annotations

from typing import Final

from mthp.khugepaged.collapse import collapse_huge_page
from mthp.khugepaged.control import CollapseControl
from mthp.khugepaged.limits import collapse_max_ptes_none
from mthp.mm.mm_types import Kernel, Mm
from mthp.words.events import OrderWalk
from mthp.words.results import ScanResult

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


def least_occupied(kernel: Kernel, cc: CollapseControl, order: int) -> int | None:
    """PTEs a window of this order must hold; None if it is refused in any case."""
    max_ptes_none = collapse_max_ptes_none(kernel, cc, None, order)
    return None if max_ptes_none is None else (1 << order) - max_ptes_none


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
    least: dict[int, int | None] = {}
    kernel.trace(OrderWalk(mm.number, address, cc.present_ptes, unmapped, enabled_orders))
    last_result = ScanResult.FAIL
    collapsed = alloc_failed = False
    pmd_order, end = geometry.pmd_order, geometry.ptrs_per_pte
    offset, order = 0, pmd_order
    while offset < end:
        nr_ptes = 1 << order
        go_on_behind = False
        if enabled_orders >> order & 1:
            if order not in least:  # asked, and warned, only once the walk gets to this order
                least[order] = least_occupied(kernel, cc, order)
            wanted = least[order]
            occupied = (cc.present_ptes >> offset & ((1 << nr_ptes) - 1)).bit_count()
            if order == pmd_order:
                occupied += unmapped
            if wanted is not None and occupied >= wanted:
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
        lower_orders = enabled_orders & (nr_ptes - 1)
        if not go_on_behind and order > geometry.min_order and lower_orders:
            # The next enabled one; the kernel goes down one by one, and attempts the same windows.
            order = lower_orders.bit_length() - 1
            continue
        offset += nr_ptes
        order = max_order_from_offset(offset, pmd_order)
    if collapsed:
        return ScanResult.SUCCEED
    return ScanResult.ALLOC_HUGE_PAGE_FAIL if alloc_failed else last_result
