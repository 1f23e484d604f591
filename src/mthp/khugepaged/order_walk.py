# SPDX-License-Identifier: GPL-2.0-or-later
"""Windows and orders are chosen within one table. Kernel: mm/khugepaged.c, mthp_collapse()."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from operator import index
from typing import Final

from mthp.khugepaged.collapse import collapse_huge_page
from mthp.khugepaged.control import CollapseControl
from mthp.khugepaged.limits import collapse_max_ptes_none
from mthp.mm.mm_types import Kernel, Mm
from mthp.words.events import OrderPolicy, OrderWalk
from mthp.words.results import ScanResult
from mthp.words.units import Address, Geometry, Order

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


Walk = Generator[tuple[int, Order], ScanResult | None, None]
"""Windows to be attempted, in their order: the first PTE, counted from the table's start, and the order.
Sent the result of each before it is asked for the next.
"""
PassedOver = Callable[[int, Order, int | None], None]
"""Called with a window that is not attempted, and the empty PTEs it might have had at most; None where
no number would do."""


def windows(
    kernel: Kernel, cc: CollapseControl, seen: OrderWalk, passed_over: PassedOver | None = None
) -> Walk:
    """Yield windows of enabled orders that hold enough pages, the largest first from each place.

    Kernel: mm/khugepaged.c, mthp_collapse().
    """
    present_ptes, enabled_orders = seen.present_ptes, seen.enabled_orders
    min_order, pmd_order = kernel.geometry.min_order, kernel.geometry.pmd_order
    limits: dict[int, int | None] = {}
    offset, order, end = 0, pmd_order, kernel.geometry.ptrs_per_pte
    while offset < end:
        nr_ptes = 1 << order
        result = None
        if enabled_orders >> order & 1:
            if order not in limits:  # asked, and warned, only once the walk gets to this order
                limits[order] = collapse_max_ptes_none(kernel, cc, None, order)
            limit = limits[order]
            occupied = (present_ptes >> offset & ((1 << nr_ptes) - 1)).bit_count()
            if order == pmd_order:
                occupied += seen.unmapped
            if limit is not None and nr_ptes - occupied <= limit:
                result = yield offset, order
            elif passed_over is not None:
                passed_over(offset, order, limit)
        lower_orders = enabled_orders & (nr_ptes - 1)
        if lower_orders and order > min_order and result not in NEXT_OFFSET:
            # The next enabled one; the kernel goes down one by one, and attempts the same windows.
            order = lower_orders.bit_length() - 1
            continue
        offset += nr_ptes
        order = max_order_from_offset(offset, pmd_order)


def windows_of_policy(policy: OrderPolicy, seen: OrderWalk, geometry: Geometry) -> Walk:
    """Yield the windows that a policy of the user's own chooses; all of them are attempted.

    ValueError: no windows at all, or one that is not aligned to its size, not within the table, or
    below the smallest or above the largest order a folio can have; or windows without end.
    """
    chosen = policy(seen)
    if not isinstance(chosen, Iterable):
        raise ValueError(
            f"the order policy gave {repr(chosen)[:60]}, not pairs of a PTE and an order"
        )
    most = 8 * geometry.ptrs_per_pte
    results = chosen if isinstance(chosen, Generator) else None
    iterator = iter(chosen)
    window = next(iterator, None)
    while window is not None:
        try:
            offset, order = map(index, window)
        except (TypeError, ValueError):
            what = repr(window)[:60]
            raise ValueError(f"the order policy chose {what}, not a PTE and an order") from None
        most -= 1
        if most < 0:
            raise ValueError("the order policy goes on choosing windows of one table without end")
        if not geometry.min_order <= order <= geometry.pmd_order:
            raise ValueError(f"the order policy chose order {order}, which no folio here has")
        if offset % (1 << order) or not 0 <= offset < geometry.ptrs_per_pte:
            raise ValueError(f"the order policy chose PTE {offset} for a window of order {order}")
        result = yield offset, order
        try:
            window = results.send(result) if results is not None else next(iterator, None)
        except StopIteration:
            return


def mthp_collapse(
    mm: Mm,
    address: Address,
    referenced: int,
    unmapped: int,
    cc: CollapseControl,
    enabled_orders: int,
) -> ScanResult:
    """Walk the table from its start, largest order first, and attempt what holds enough pages.

    No locks held. enabled_orders: bitmap. Returns SUCCEED if anything collapsed, else
    ALLOC_HUGE_PAGE_FAIL if any allocation failed, else the last refusal (FAIL at first).
    Kernel: mm/khugepaged.c, mthp_collapse().
    """
    kernel = mm.kernel
    seen = OrderWalk(mm.number, address, cc.present_ptes, unmapped, enabled_orders)
    kernel.trace(seen)
    walk = (
        windows(kernel, cc, seen)
        if kernel.order_policy is None
        else windows_of_policy(kernel.order_policy, seen, kernel.geometry)
    )

    def collapse(offset: int, order: Order) -> ScanResult:
        start = address + (offset << kernel.geometry.page_shift)
        return collapse_huge_page(mm, start, referenced, unmapped, cc, order)

    return attempted(walk, collapse)


def attempted(walk: Walk, collapse: Callable[[int, Order], ScanResult]) -> ScanResult:
    """Attempt a walk's windows (first PTE, order), until one is refused in a way that ends it; the result
    of all, as of mthp_collapse().
    """
    last_result = ScanResult.FAIL
    collapsed = alloc_failed = False
    result: ScanResult | None = None
    while True:
        try:
            offset, order = walk.send(result)
        except StopIteration:
            break
        result = collapse(offset, order)
        collapsed |= result is ScanResult.SUCCEED
        alloc_failed |= result is ScanResult.ALLOC_HUGE_PAGE_FAIL
        if result not in NEXT_OFFSET:
            last_result = result
            if result not in LOWER_ORDER:
                break
    if collapsed:
        return ScanResult.SUCCEED
    return ScanResult.ALLOC_HUGE_PAGE_FAIL if alloc_failed else last_result
