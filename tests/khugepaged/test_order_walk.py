# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp_collapse(): which windows are attempted, at which order, and what a refusal leads to."""

from __future__ import annotations

from collections import Counter

import pytest

from mthp.khugepaged.order_walk import (
    LOWER_ORDER,
    NEXT_OFFSET,
    max_order_from_offset,
    windows_of_policy,
)
from mthp.mm.vm_flags import VM_DEFAULT, VM_LOCKED
from mthp.words.events import Attempt, OrderWalk
from mthp.words.results import FILE_ONLY, ScanResult
from tests.small_worlds import (
    TINY,
    World,
    attempts,
    hole,
    large,
    old,
    scans,
    shared,
    small,
    swap,
    windows,
    zero,
)

R = ScanResult


@pytest.mark.parametrize(
    ("offset", "order"),
    [(0, 9), (1, 0), (2, 1), (4, 2), (6, 1), (16, 4), (48, 4), (256, 8), (384, 7), (511, 0)],
)
def test_max_order_from_offset(offset: int, order: int) -> None:
    assert max_order_from_offset(offset, 9) == order


def test_max_order_is_the_pmd_order_at_most() -> None:
    assert max_order_from_offset(1 << 12, 9) == 9
    assert max_order_from_offset(0, 4) == 4


def test_results_are_sorted_as_the_kernel_sorts_them() -> None:
    stop = set(ScanResult) - FILE_ONLY - NEXT_OFFSET - LOWER_ORDER
    assert stop == {
        R.FAIL, R.NO_PTE_TABLE, R.PMD_MAPPED, R.SCAN_ABORT, R.PAGE_LRU, R.PAGE_ANON, R.ANY_PROCESS,
        R.VMA_NULL, R.VMA_CHECK, R.ADDRESS_RANGE, R.CGROUP_CHARGE_FAIL, R.COPY_MC,
    }  # fmt: skip


# The worked cases


def test_case_a_one_window_of_32() -> None:
    """Order 4, none 511, PTEs 0-15 present: one attempt succeeds, 31 windows hold no bit."""
    world = World(orders={4}, max_ptes_none=511)
    vma = world.vma(small(16), hole(496))
    before = world.census()
    events = world.scan()
    assert windows(events, vma) == [(0, 4)]
    assert attempts(events) == [(4, R.SUCCEED)]
    assert world.orders(vma) == [4] + [-1] * 496
    assert world.khugepaged.pages_collapsed == 1
    world.assert_sound(before)


@pytest.mark.parametrize(
    ("page", "collapsed"),
    [
        (0, 496),  # nothing was put back: only its own window fails
        (5, 496),
        (15, 496),
        (16, 480),  # 16 put back: all of window 0 still in the batch
        (31, 496),  # 31 fill the batch exactly, and flush it: window 1 is its own
        (40, 480),  # 40 mod 31 = 9
        (61, 464),  # 30: windows 0 and 1
        (62, 496),
        (100, 480),  # 7
        (200, 480),  # 14
        (511, 480),  # 15
    ],
)
def test_case_b_a_pin_after_the_scan(page: int, collapsed: int) -> None:
    """Orders 9 and 4, none 0, page p pinned after the scan: order 9 isolates p folios and puts
    them back, highest first, through the batch of 31; the lowest p mod 31 keep its reference."""
    world = World(orders={4, 9}, max_ptes_none=0)
    vma = world.vma(small(512))

    def pin() -> None:
        world.pin(vma, page)

    world.before_lock(world.mm.mmap_lock, 2, pin)  # the scan's trylock is the first
    before = world.census()
    events = world.scan()
    world.kernel.machine.on_step = None
    done = attempts(events)
    assert done[0] == (9, R.PAGE_COUNT)
    assert Counter(done[1:]) == {
        (4, R.SUCCEED): collapsed // 16,
        (4, R.PAGE_COUNT): 32 - collapsed // 16,
    }
    stale = {0} if page % 31 else set()
    stale |= {1} if page % 31 > 16 else set()
    kept = world.orders(vma)
    failed = {page // 16} | stale if page >= 16 else {0}
    assert kept.count(0) == 16 * len(failed)
    assert 512 - kept.count(0) == collapsed
    assert world.khugepaged.pages_collapsed == 1
    (broken,) = world.check(before.outside)
    assert broken.law == 5
    assert broken.text == f"folio {world.folio(vma, page)}: refcount 2, explained 1"


def test_case_b_a_pin_during_the_scan_stops_the_table() -> None:
    world = World(orders={4, 9}, max_ptes_none=0)
    vma = world.vma(small(512))
    world.pin(vma, 300)
    events = world.scan()
    assert windows(events, vma) == []
    assert scans(events) == [R.PAGE_COUNT]
    assert world.khugepaged.pages_collapsed == 0


def test_case_c_collapsed_windows_are_attempted_again_on_every_scan() -> None:
    """Orders 9 and 4, none 0, PTEs 0-255 are order-4 folios, the rest empty: 16 attempts, each
    allocates, takes the locks, flushes and is refused; the scan says failed."""
    world = World(orders={4, 9}, max_ptes_none=0)
    world.vma(*[large(4)] * 16, hole(256))
    before = world.census()
    for n in (1, 2):
        events = world.scan()
        assert attempts(events) == [(4, R.PTE_MAPPED_HUGEPAGE)] * 16
        assert scans(events) == [R.FAIL]
        assert world.kernel.vmstat.mthp[4, "collapse_alloc"] == 16 * n
        world.assert_sound(before, aborted=True)
    assert world.khugepaged.pages_collapsed == 0


def test_case_d_one_swapped_page_with_the_pmd_order() -> None:
    """511 present and one swapped are 512: the PMD attempt swaps it in."""
    world = World(orders={4, 9}, max_ptes_none=0)
    vma = world.vma(small(3), swap(), small(508))
    before = world.census()
    assert attempts(world.scan()) == [(9, R.SUCCEED)]
    assert world.orders(vma) == [9]
    world.assert_sound(before)


def test_case_d_one_swapped_page_below_pmd_order() -> None:
    """Order 4, none 511: window 0 allocates, then meets the swap entry; 31 others succeed."""
    world = World(orders={4}, max_ptes_none=511)
    vma = world.vma(small(3), swap(), small(508))
    before = world.census()
    events = world.scan()
    assert attempts(events) == [(4, R.EXCEED_SWAP_PTE)] + [(4, R.SUCCEED)] * 31
    assert world.kernel.vmstat.mthp[4, "collapse_exceed_swap_pte"] == 1
    assert world.kernel.vmstat.mthp[4, "collapse_alloc"] == 32
    assert world.orders(vma) == [0] * 3 + [-1] + [0] * 12 + [4] * 31
    world.assert_sound(before)


def test_case_d_one_swapped_page_and_no_budget() -> None:
    """Order 4, none 0: window 0 is never attempted."""
    world = World(orders={4}, max_ptes_none=0)
    vma = world.vma(small(3), swap(), small(508))
    events = world.scan()
    assert windows(events, vma) == [(page, 4) for page in range(16, 512, 16)]


# The walk


def test_the_walk_descends_and_restarts_at_the_largest_aligned_order() -> None:
    world = World(geometry=TINY, orders={2, 3, 4}, max_ptes_none=0)
    vma = world.vma(small(12), hole(4))
    events = world.scan()
    assert windows(events, vma) == [(0, 3), (8, 2)]
    assert world.orders(vma) == [3, 2, -1, -1, -1, -1]


def test_a_zero_page_counts_as_empty_and_becomes_memory() -> None:
    world = World(geometry=TINY, orders={2}, max_ptes_none=15)
    vma = world.vma(small(1), zero(3), zero(4), hole(8))
    before = world.census()
    assert windows(world.scan(), vma) == [(0, 2)]
    world.assert_sound(before)


def test_all_but_one_may_be_empty_below_pmd_order() -> None:
    world = World(geometry=TINY, orders={3}, max_ptes_none=15)
    vma = world.vma(hole(7), small(1), hole(8))
    assert windows(world.scan(), vma) == [(0, 3)]
    assert world.orders(vma) == [3] + [-1] * 8


@pytest.mark.parametrize("none", [1, 7, 14])
def test_a_limit_between_the_ends_warns_once_and_acts_as_zero(none: int) -> None:
    world = World(geometry=TINY, orders={2}, max_ptes_none=none)
    vma = world.vma(small(4), small(3), hole(9))
    assert windows(world.scan(), vma) == [(0, 2)]
    assert list(world.kernel.warnings) == ["collapse_max_ptes_none"]


def test_an_order_the_walk_never_gets_to_does_not_warn() -> None:
    """mm/khugepaged.c, mthp_collapse(): collapse_max_ptes_none() is asked window by window."""
    world = World(geometry=TINY, orders={2, 4}, max_ptes_none=7)
    vma = world.vma(small(16))
    assert windows(world.scan(), vma) == [(0, 4)]
    assert not world.kernel.warnings


def test_lazily_growing_windows_with_the_maximum() -> None:
    """With none at its maximum only the highest enabled order can win a window that has a page."""
    world = World(geometry=TINY, orders={2, 3}, max_ptes_none=15)
    vma = world.vma(small(4), hole(12))
    assert windows(world.scan(), vma) == [(0, 3)]


@pytest.mark.parametrize(
    ("pieces", "tried"),
    [
        ((shared(1), small(7), small(8)), [(0, 4), (0, 3), (0, 2), (4, 2), (8, 3)]),
        ((old(4), small(12)), [(0, 4)]),
    ],
)
def test_a_refusal_that_smaller_windows_may_escape(
    pieces: tuple[object, ...], tried: list[tuple[int, int]]
) -> None:
    world = World(geometry=TINY, orders={2, 3, 4}, max_ptes_none=0, max_ptes_shared=15)
    vma = world.vma(*pieces)  # type: ignore[arg-type]
    world.before_lock(
        world.mm.mmap_lock, 2, lambda: world.settings(max_ptes_shared=0)
    )  # refuse at PMD order as well
    assert windows(world.scan(), vma) == tried


def test_old_windows_are_refused_one_by_one() -> None:
    world = World(geometry=TINY, orders={2}, max_ptes_none=0)
    vma = world.vma(old(4), small(4), old(4), small(4))
    events = world.scan()
    assert [status for _, status in attempts(events)] == [
        R.LACK_REFERENCED_PAGE, R.SUCCEED, R.LACK_REFERENCED_PAGE, R.SUCCEED,
    ]  # fmt: skip
    assert scans(events) == [R.SUCCEED]
    assert world.orders(vma) == [0] * 4 + [2] + [0] * 4 + [2]


def test_one_larger_folio_skips_the_window() -> None:
    """Even if the rest is small pages; the refusal is not the table's result."""
    world = World(geometry=TINY, orders={2, 3}, max_ptes_none=0)
    vma = world.vma(small(4), large(3, 4), small(8))
    events = world.scan()
    assert attempts(events) == [(3, R.PTE_MAPPED_HUGEPAGE), (3, R.SUCCEED)]
    assert windows(events, vma) == [(0, 3), (8, 3)]


def test_an_order_is_not_tried_below_the_smallest() -> None:
    """Order 2 is the floor; the walk moves on from there."""
    world = World(geometry=TINY, orders={2}, max_ptes_none=0)
    vma = world.vma(small(3), hole(1), small(4), hole(8))
    assert windows(world.scan(), vma) == [(4, 2)]


def test_a_failed_allocation_outranks_the_last_refusal() -> None:
    world = World(geometry=TINY, orders={2, 4}, max_ptes_none=0, defrag=False, free={2: 4})
    world.vma(old(8), small(8))
    events = world.scan()
    assert attempts(events)[0] == (4, R.ALLOC_HUGE_PAGE_FAIL)
    assert [s for _, s in attempts(events)[1:]] == [
        R.LACK_REFERENCED_PAGE, R.LACK_REFERENCED_PAGE, R.SUCCEED, R.SUCCEED,
    ]  # fmt: skip
    assert scans(events) == [R.SUCCEED]
    # Without any success the failed allocation is the table's result, not what came last.
    world = World(geometry=TINY, orders={2, 4}, max_ptes_none=0, defrag=False, free={2: 4})
    vma = world.vma(old(15), small())
    world.before_lock(world.mm.mmap_lock, 2, lambda: world.lock(vma, 15))
    events = world.scan()
    assert attempts(events)[0] == (4, R.ALLOC_HUGE_PAGE_FAIL)
    assert attempts(events)[4] == (2, R.PAGE_LOCK)
    assert scans(events) == [R.ALLOC_HUGE_PAGE_FAIL]


def test_a_charge_failure_stops_the_table() -> None:
    world = World(geometry=TINY, orders={2, 4}, max_ptes_none=0)
    world.mm.memcg = world.kernel.new_memcg("full", limit=8, usage=1)
    vma = world.vma(small(16))
    events = world.scan()
    assert attempts(events) == [(4, R.CGROUP_CHARGE_FAIL)]
    assert world.kernel.vmstat.mthp[4, "collapse_alloc"] == 1
    assert world.orders(vma) == [0] * 16


@pytest.mark.parametrize("flags", [VM_DEFAULT, VM_DEFAULT | VM_LOCKED])
def test_a_large_folio_on_the_lru_flushes_the_batch_but_not_where_locked(flags: int) -> None:
    """11 small folios are put back. Window 3 succeeds in between, and its folio flushes the batch;
    in a locked VMA it goes through the mlock batch, and the others stay where they are."""
    world = World(geometry=TINY, orders={2, 4}, max_ptes_none=0)
    vma = world.vma(small(16), flags=flags)
    world.before_lock(world.mm.mmap_lock, 2, lambda: world.pin(vma, 11))
    done = [status for order, status in attempts(world.scan()) if order == 2]
    assert done == [R.PAGE_COUNT] * 3 + [R.SUCCEED]
    batch = set(world.kernel.this_cpu.lru_add.value)
    assert (world.folio(vma, 0) in batch) is bool(flags & VM_LOCKED)


def test_each_attempt_starts_without_mmap_lock() -> None:
    world = World(geometry=TINY, orders={2, 3, 4}, max_ptes_none=15)
    world.vma(small(16))
    held: list[bool] = []
    trace = world.kernel.trace

    def watch(event: object) -> None:
        if isinstance(event, Attempt):
            held.append(world.mm.mmap_lock.held_mode() is not None)
        trace(event)  # type: ignore[arg-type]

    world.kernel.trace = watch
    world.scan()
    assert held == [False]


@pytest.mark.parametrize(
    ("offset", "order", "complaint"),
    [
        (0, 1, "order 1"),
        (0, 5, "order 5"),
        (2, 2, "PTE 2"),
        (16, 2, "PTE 16"),
        (-4, 2, "PTE -4"),
        (12, 2, ""),
        (0, 4, ""),
    ],
)
def test_a_policy_may_choose_windows_of_the_table_alone(
    offset: int, order: int, complaint: str
) -> None:
    seen = OrderWalk(1000, 0x40000000, 0, 0, 0)
    walk = windows_of_policy(lambda seen: [(offset, order)], seen, TINY)
    if complaint:
        with pytest.raises(ValueError, match=complaint):
            next(walk)
    else:
        assert next(walk) == (offset, order)
