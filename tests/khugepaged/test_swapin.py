# SPDX-License-Identifier: GPL-2.0-or-later
"""Swapping in, as a collapse does it."""

from mthp.khugepaged.control import Caller
from mthp.mm.mm_types import MM_ANONPAGES, Vma
from mthp.mm.page_flags import PG_DIRTY, PG_LRU, PG_SWAPCACHE
from mthp.mm.pgtable_types import WRITE, Leaf, leaf_pte, pte_pfn
from mthp.words.events import Swapin
from mthp.words.results import ScanResult
from tests.small_worlds import TINY, World, large, leaf, small, swap, swapins


def test_a_swapped_page_comes_back_writable_and_its_slot_is_given_up() -> None:
    world = World(geometry=TINY, orders={2, 4}, max_ptes_none=0)
    vma = world.vma(small(15), swap())
    world.off_lru(vma, 0)
    before = world.census()
    assert world.collapse(vma, unmapped=1) is ScanResult.DEL_PAGE_LRU
    pte = world.table(vma).ptes.raw[15]
    folio = pte_pfn(pte)
    assert pte & WRITE
    flags = world.mem.flags.raw[folio]
    assert flags & (PG_DIRTY | PG_LRU | PG_SWAPCACHE) == PG_DIRTY | PG_LRU
    assert world.kernel.swap.cache == {}
    world.assert_sound(before, aborted=True)


def test_a_slot_that_a_child_still_names_stays_in_the_swap_cache() -> None:
    """Kernel: mm/swapfile.c, folio_free_swap() gives up only slots that nobody names."""
    world = World(geometry=TINY, max_ptes_shared=15)
    vma = world.vma(small(15), swap())
    child = world.fork(vma)
    before = world.census()
    world.off_lru(vma, 0)
    outside = world.census().outside
    assert world.collapse(vma, unmapped=1) is ScanResult.DEL_PAGE_LRU
    folio = world.folio(vma, 15)
    assert world.mem.flags.raw[folio] & PG_SWAPCACHE
    assert list(world.kernel.swap.cache.values()) == [folio]
    assert world.check(outside) == []
    world.mem.flags.raw[world.folio(vma, 0)] |= PG_LRU
    # The child's fault finds the same folio, and now nobody names the slot.
    assert world.collapse(child, unmapped=1, caller=Caller.MADVISE) is ScanResult.SUCCEED
    assert world.kernel.swap.cache == {}
    assert world.kernel.swap.users == {}
    world.assert_sound(before)


def test_a_slot_outlives_the_collapse_of_one_of_two_processes() -> None:
    world = World(geometry=TINY, max_ptes_shared=15)
    vma = world.vma(small(15), swap())
    child = world.fork(vma)
    before = world.census()
    assert world.collapse(vma, unmapped=1) is ScanResult.SUCCEED
    assert world.orders(vma) == [4]
    assert world.collapse(child, unmapped=1) is ScanResult.SUCCEED
    world.assert_sound(before)


def test_a_retry_lets_go_of_mmap_lock_and_says_page_lock() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(14), swap(2))
    world.cache_swapped(vma, 15, locked=True)
    before = world.census()
    assert world.collapse(vma, unmapped=2) is ScanResult.PAGE_LOCK
    assert swapins(world.kernel.events) == [ScanResult.PAGE_LOCK]
    assert world.kernel.events[1].swapped_in == 1  # type: ignore[union-attr]
    world.assert_sound(before, aborted=True)


def test_a_slot_that_cannot_be_read_is_a_failure_and_stays_swapped() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(14), swap(2))
    world.kernel.swap.failing.add(3)
    before = world.census()
    assert world.collapse(vma, unmapped=2) is ScanResult.FAIL
    assert world.mm.counters[MM_ANONPAGES] == 15
    assert world.check(before.outside) == []


def test_markers_are_failures_and_migration_is_waited_for() -> None:
    for kind, result in (
        (Leaf.GUARD, ScanResult.FAIL),
        (Leaf.HWPOISON, ScanResult.FAIL),
        (Leaf.MIGRATION, ScanResult.PTE_NON_PRESENT),
    ):
        world = World(geometry=TINY)
        vma = world.vma(small(15), leaf(kind))
        before = world.census()
        assert world.collapse(vma, unmapped=1) is result
        world.assert_sound(before, aborted=True)


def test_no_memory_for_a_swapped_page_is_a_failure() -> None:
    world = World(geometry=TINY, free={4: 1})
    vma = world.vma(small(15), swap())
    before = world.census()
    assert world.collapse(vma, unmapped=1) is ScanResult.FAIL
    world.assert_sound(before, aborted=True)


def test_no_charge_for_a_swapped_page_is_a_failure() -> None:
    world = World(geometry=TINY)
    memcg = world.kernel.new_memcg("full", limit=16)
    vma = world.vma(small(15), swap(), mm=world.process(memcg))
    before = world.census()
    assert world.collapse(vma, unmapped=1) is ScanResult.FAIL
    assert memcg.usage.value == 0
    world.assert_sound(before, aborted=True)


def test_a_large_folio_leaves_the_swap_cache_with_a_reference_per_page() -> None:
    """Kernel: mm/swap_state.c, swap_cache_del_folio() drops folio_nr_pages() references."""
    world = World(geometry=TINY)
    vma = world.vma(large(3), small(8))
    folio = world.folio(vma, 0)
    world.mem.flags.raw[folio] |= PG_SWAPCACHE
    world.mem.refcount.raw[folio] += 8
    world.kernel.swap.add_to_cache(1, folio, 8)
    before = world.census()
    assert world.collapse(vma) is ScanResult.SUCCEED
    assert world.kernel.swap.cache == {}
    assert world.mem.refcount.raw[folio] == 0
    world.assert_sound(before)


def side_by_side(world: World, vma: Vma, first: int, count: int, offset: int) -> None:
    """`count` swapped pages from `first` on get slots one after the other."""
    ptes = world.table(vma).ptes.raw
    for i in range(count):
        world.kernel.swap.users.pop(pte_pfn(ptes[first + i]))
        world.kernel.swap.hold(offset + i)
        ptes[first + i] = leaf_pte(Leaf.SWAP, offset + i, ptes[first + i] & 0x3FF)


def test_entries_side_by_side_come_back_in_one_folio() -> None:
    """Kernel: mm/memory.c, thp_swapin_suitable_orders()."""
    for offset, faults in ((64, 1), (65, 4)):
        world = World(geometry=TINY, orders={2, 4}, max_ptes_none=0)
        vma = world.vma(small(12), swap(4))
        side_by_side(world, vma, 12, 4, offset)
        before = world.census()
        assert world.collapse(vma, unmapped=4) is ScanResult.SUCCEED
        assert [e.swapped_in for e in world.kernel.events if isinstance(e, Swapin)] == [faults]
        assert world.kernel.swap.users == {}
        world.assert_sound(before)
