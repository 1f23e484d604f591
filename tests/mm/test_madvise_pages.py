# SPDX-License-Identifier: GPL-2.0-or-later
"""What MADV_FREE gives up, MADV_COLD makes cold and MADV_PAGEOUT reclaims."""

from __future__ import annotations

import errno
from collections import deque

import pytest

from mthp.mm.folio import lru_add_drain
from mthp.mm.huge_memory_split import split_folio
from mthp.mm.madvise import MADV_COLD, MADV_FREE, MADV_PAGEOUT, do_madvise
from mthp.mm.mm_types import Vma
from mthp.mm.mmu import load, store
from mthp.mm.page_flags import (
    PG_ACTIVE,
    PG_DIRTY,
    PG_LOCKED,
    PG_LRU,
    PG_REFERENCED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_UNEVICTABLE,
)
from mthp.mm.pgtable_types import (
    DIRTY,
    SWP_EXCLUSIVE,
    YOUNG,
    Leaf,
    leaf_kind,
    pmd_trans_huge,
    pte_pfn,
    pte_present,
)
from mthp.mm.reports import Discarding
from mthp.mm.swap_clusters import SwapClusters
from mthp.mm.vm_flags import VM_DEFAULT, VM_LOCKED
from mthp.mm.vmscan import shrink_folio
from mthp.words.units import Geometry
from tests.small_worlds import TINY, World, hole, huge, large, no_table, small, swap, zero


def rest(world: World) -> None:
    """What waits in batches comes to rest."""
    lru_add_drain(world.mem, world.kernel.this_cpu)


GIVEN_UP = ("clean", "dirty", "active", "large", "in the swap cache")
KEPT = (
    "shared and dirty",
    "its slot named by another",
    "locked and dirty",
    "zero",
    "hole",
)


@pytest.mark.parametrize("what", [*GIVEN_UP, *KEPT, "swapped", "off the LRU", "unevictable"])
@pytest.mark.parametrize("vma_lock_free", [True, False])
def test_what_madv_free_gives_up(what: str, vma_lock_free: bool) -> None:
    pieces = {"large": large(1), "zero": zero(1), "swapped": swap(1), "hole": hole(1)}
    flags = {
        "clean": 0, "dirty": PG_DIRTY, "active": PG_ACTIVE | PG_REFERENCED,
        "shared and dirty": PG_DIRTY, "in the swap cache": PG_SWAPCACHE,
        "its slot named by another": PG_SWAPCACHE,
        "locked and dirty": PG_DIRTY | PG_LOCKED, "unevictable": PG_UNEVICTABLE,
    }  # fmt: skip
    piece = pieces.get(what) or small(
        1, elsewhere=what.startswith("shared"), flags_without=PG_DIRTY, flags=flags.get(what, 0)
    )
    world = World(geometry=TINY, cpus=2)
    vma = world.vma(piece, small(1))
    if flags.get(what) == PG_SWAPCACHE:
        world.kernel.swap.add_to_cache(77, world.folio(vma, 0), 1)
        world.mem.refcount.raw[world.folio(vma, 0)] += 1
        if what != "in the swap cache":
            world.kernel.swap.add_user(77)
    if what == "off the LRU":
        world.off_lru(vma, 0)
    load(world.mm, world.address(vma, 1))
    vma.vm_lock.value = 0 if vma_lock_free else -1
    facts: list[object] = []
    world.kernel.report = facts.append
    old = list(world.table(vma).ptes.raw)
    do_madvise(world.mm, vma.vm_start, vma.vm_start + 0x1000, MADV_FREE)
    by = world.kernel.machine.current.name
    assert facts == [Discarding(world.mm, vma.vm_start, vma.vm_start + 0x1000, by)]
    rest(world)
    new = list(world.table(vma).ptes.raw)
    assert new[1:] == old[1:]
    kept = 0 if what == "swapped" else old[0] & ~(YOUNG | DIRTY)
    assert new[0] == (old[0] if what in KEPT else kept)
    if what in GIVEN_UP:
        folio = world.folio(vma, 0)
        gone = PG_DIRTY | PG_ACTIVE | PG_SWAPBACKED | PG_LOCKED
        assert world.mem.flags.raw[folio] & (gone | PG_LRU) == PG_LRU
        assert world.mem.folio_test_lazyfree(folio)
    elif world.table(vma).ptes.raw[0] >> 16:
        assert not world.mem.folio_test_lazyfree(world.folio(vma, 0))
    assert world.kernel.machine.current.held == []
    assert vma.vm_lock.value == (0 if vma_lock_free else -1)


def test_small_folios_wait_in_a_batch_until_they_may_be_dropped() -> None:
    """With a reference of its own; the flags of one are as before until then."""
    world = World(geometry=Geometry(12, 6))
    vma = world.vma(small(32), large(2), hole(28))
    do_madvise(world.mm, vma.vm_start, world.address(vma, 32), MADV_FREE)
    marked = [world.mem.folio_test_lazyfree(world.folio(vma, page)) for page in range(32)]
    assert marked == [True] * 31 + [False]
    assert world.mem.refcount.raw[world.folio(vma, 31)] == 2
    do_madvise(world.mm, world.address(vma, 32), world.address(vma, 36), MADV_FREE)
    assert world.mem.folio_test_lazyfree(world.folio(vma, 31)), "MADV_FREE drains before it begins"
    assert world.mem.folio_test_lazyfree(world.folio(vma, 32))
    assert world.kernel.vmstat.events["pglazyfree"] == 36
    assert world.mem.refcount.raw[world.folio(vma, 31)] == 1


def test_madv_free_leaves_what_has_no_table() -> None:
    world = World(geometry=TINY)
    vma = world.vma(no_table(16))
    before = world.census()
    do_madvise(world.mm, vma.vm_start, vma.vm_start + 0x2000, MADV_FREE)
    do_madvise(world.mm, 0x1000, 0x2000, MADV_FREE)
    assert world.census().entries == before.entries
    assert world.check(before.outside) == []


ADVICE = (MADV_FREE, MADV_COLD, MADV_PAGEOUT)


def advise(world: World, vma: Vma, first: int, count: int, advice: int) -> int:
    start = world.address(vma, first)
    return do_madvise(world.mm, start, start + (count << TINY.page_shift), advice)


def swapped_world() -> World:
    world = World(geometry=TINY)
    world.kernel.swap.clusters = SwapClusters(1 << 12, TINY.pmd_order)
    return world


def is_swapped(world: World, vma: Vma, page: int) -> bool:
    entry = world.table(vma).ptes.raw[page]
    return entry != 0 and not pte_present(entry) and leaf_kind(entry) is Leaf.SWAP


@pytest.mark.parametrize("advice", ADVICE)
def test_advice_on_a_part_of_a_large_folio_splits_it(advice: int) -> None:
    world = swapped_world()
    vma = world.vma(large(2), large(3), hole(4))
    before = world.census()
    assert advise(world, vma, 2, 4, advice) == 0
    mthp = world.kernel.vmstat.mthp
    assert (mthp[2, "split"], mthp[3, "split"]) == (1, 1)
    assert (mthp[2, "nr_anon"], mthp[3, "nr_anon"]) == (-1, -1)
    out = [is_swapped(world, vma, page) for page in range(12)]
    assert out == [advice == MADV_PAGEOUT and 2 <= page < 6 for page in range(12)]
    if advice == MADV_FREE:
        rest(world)
        lazy = [world.mem.folio_test_lazyfree(world.folio(vma, page)) for page in range(12)]
        assert lazy == [2 <= page < 6 for page in range(12)]
    else:
        assert world.check(before.outside) == []
    young = [bool(world.table(vma).ptes.raw[page] & YOUNG) for page in (0, 3, 7)]
    assert young[::2] == [True, True] and young[1] is False


@pytest.mark.parametrize("advice", ADVICE)
@pytest.mark.parametrize("pieces", [(large(3), large(2)), (huge(4),)], ids=["PTEs", "PMD"])
def test_advice_on_whole_folios_leaves_them_whole(advice: int, pieces: tuple[object, ...]) -> None:
    world = swapped_world()
    vma = world.vma(*pieces, pages=16)  # type: ignore[arg-type]
    is_huge = pmd_trans_huge(world.pmd(vma))
    folio, order = world.folio(vma, 0), 4 if is_huge else 3
    assert advise(world, vma, 0, 16 if is_huge else 12, advice) == 0
    mthp, events = world.kernel.vmstat.mthp, world.kernel.vmstat.events
    assert mthp[order, "split"] == 0
    if advice == MADV_PAGEOUT:
        assert is_swapped(world, vma, 0) and mthp[order, "swpout"] == 1
        assert mthp[order, "nr_anon"] == -1 and mthp[order, "split_deferred"] == 0
        assert events["thp_swpout"] == events["thp_split_pmd"] == is_huge
        first = pte_pfn(world.table(vma).ptes.raw[0])
        slots = [pte_pfn(world.table(vma).ptes.raw[page]) for page in range(1 << order)]
        assert first % (1 << order) == 0 and slots == list(range(first, first + (1 << order)))
    else:
        assert world.folio(vma, 0) == folio and world.mem.order.raw[folio] == order
        assert pmd_trans_huge(world.pmd(vma)) is is_huge
        assert world.mem.folio_test_lazyfree(folio) is (advice == MADV_FREE)
        entry = world.pmd(vma) if is_huge else world.table(vma).ptes.raw[1]
        assert not entry & YOUNG and bool(entry & DIRTY) is (advice != MADV_FREE)


@pytest.mark.parametrize("advice", ADVICE)
def test_advice_on_a_part_of_a_huge_page_splits_it_and_finds_its_zeroes(advice: int) -> None:
    world = swapped_world()
    vma = world.vma(huge(4))
    for page in range(8):
        world.mem.content.raw[world.folio(vma, 0) + page] = 0
    assert advise(world, vma, 15, 1, advice) == 0
    assert world.kernel.vmstat.events["thp_split_page"] == 1
    assert world.kernel.vmstat.mthp[4, "split_deferred"] == 0
    assert [pte_pfn(world.table(vma).ptes.raw[page]) for page in range(8)] == [0] * 8
    assert is_swapped(world, vma, 15) is (advice == MADV_PAGEOUT)
    assert world.mm.counters["MM_ANONPAGES"] == (7 if advice == MADV_PAGEOUT else 8)


@pytest.mark.parametrize("advice", ADVICE)
@pytest.mark.parametrize("piece", [small(4), large(2), huge(4)], ids=["small", "large", "huge"])
@pytest.mark.parametrize("count", [2, 16])
def test_what_another_process_maps_is_left_alone(advice: int, piece: object, count: int) -> None:
    """But small pages are given up that are clean: reclaim sees whether all have done so."""
    world = swapped_world()
    vma = world.vma(piece, pages=16)  # type: ignore[arg-type]
    world.fork(vma)
    before = world.census()
    assert advise(world, vma, 0, count, advice) == 0
    assert world.census().entries == before.entries and world.check(before.outside) == []
    assert world.kernel.vmstat.mthp == {}


def test_advice_is_refused_where_memory_is_locked_and_told_of_gaps() -> None:
    world = swapped_world()
    vma = world.vma(small(2), pages=16, flags=VM_DEFAULT | VM_LOCKED)
    for advice in ADVICE:
        assert advise(world, vma, 0, 16, advice) == -errno.EINVAL
    other = world.vma(small(1), at=0x50000000, pages=16)
    assert advise(world, other, 0, 32, MADV_FREE) == -errno.ENOMEM
    rest(world)
    assert world.mem.folio_test_lazyfree(world.folio(other, 0))


def test_swapped_pages_come_back_with_their_contents() -> None:
    world = swapped_world()
    vma = world.vma(small(3), large(2), hole(9))
    before = world.census()
    assert advise(world, vma, 0, 16, MADV_PAGEOUT) == 0
    assert world.mm.counters["MM_SWAPENTS"] == 7 and world.mm.counters["MM_ANONPAGES"] == 0
    assert all(entry & SWP_EXCLUSIVE for entry in world.table(vma).ptes.raw[:7])
    for page in range(7):
        load(world.mm, world.address(vma, page))
    assert world.census().contents == before.contents and world.check(before.outside) == []
    assert world.mm.counters["MM_SWAPENTS"] == 0
    clusters = world.kernel.swap.clusters
    assert clusters is not None and sum(clusters.count) == 1, "all slots but the header are free"


def test_zeroes_are_not_written_to_the_device() -> None:
    world = swapped_world()
    vma = world.vma(large(2), large(2), hole(8))
    for page in range(4):
        world.mem.content.raw[world.folio(vma, 0) + page] = 0
    assert advise(world, vma, 0, 8, MADV_PAGEOUT) == 0
    assert world.kernel.vmstat.mthp[2, "swpout"] == 1 and world.kernel.vmstat.events["pswpout"] == 4
    assert load(world.mm, vma.vm_start) == 0


def test_a_partly_mapped_folio_is_split_before_it_is_swapped() -> None:
    world = swapped_world()
    vma = world.vma(large(3), hole(8))
    folio = world.folio(vma, 0)
    start = world.address(vma, 6)
    do_madvise(world.mm, start, start + 0x2000, 4)
    shrink_folio(world.kernel, folio)
    assert [is_swapped(world, vma, page) for page in range(8)] == [True] * 6 + [False] * 2
    mthp = world.kernel.vmstat.mthp
    assert mthp[3, "split"] == 1 and mthp[3, "nr_anon_partially_mapped"] == 0
    assert mthp[3, "swpout_fallback"] == 0 and world.kernel.vmstat.events["pswpout"] == 6
    first = pte_pfn(world.table(vma).ptes.raw[0])
    order = [pte_pfn(world.table(vma).ptes.raw[page]) - first for page in range(6)]
    assert order == [0, 7, 6, 5, 4, 3], (
        "the head first, then from the end on, the unmapped ones too"
    )


def test_a_folio_without_slots_in_a_row_is_split_and_swapped_page_by_page() -> None:
    world = World(geometry=TINY)
    clusters = world.kernel.swap.clusters = SwapClusters(512, TINY.pmd_order)
    vma = world.vma(huge(4))
    while clusters.alloc(0) is not None:
        pass
    for slot in range(1, 64, 2):
        clusters.put(slot)
    assert advise(world, vma, 0, 16, MADV_PAGEOUT) == 0
    assert all(is_swapped(world, vma, page) for page in range(16))
    mthp, events = world.kernel.vmstat.mthp, world.kernel.vmstat.events
    assert mthp[4, "swpout_fallback"] == events["thp_swpout_fallback"] == mthp[4, "split"] == 1
    assert mthp[4, "swpout"] == 0


def test_where_there_is_no_swap_nothing_is_reclaimed_but_what_was_given_up() -> None:
    world = World(geometry=TINY)
    vma = world.vma(large(3), small(4), hole(4))
    assert advise(world, vma, 8, 4, MADV_FREE) == 0
    assert store(world.mm, world.address(vma, 9), 3)
    assert advise(world, vma, 8, 4, MADV_PAGEOUT) == 0
    entries = world.table(vma).ptes.raw
    assert [entries[page] != 0 for page in range(8, 12)] == [False, True, False, False]
    assert world.kernel.vmstat.events["pglazyfreed"] == 3
    assert world.mem.test(world.folio(vma, 9), PG_SWAPBACKED)
    assert advise(world, vma, 0, 8, MADV_PAGEOUT) == 0
    assert world.kernel.vmstat.mthp[3, "split"] == 1, "the kernel splits what has no slots in a row"


def test_a_large_folio_that_was_given_up_is_dropped_unless_a_page_was_stored_to() -> None:
    world = World(geometry=TINY)
    vma = world.vma(large(2), large(2), hole(8))
    assert advise(world, vma, 0, 8, MADV_FREE) == 0
    assert store(world.mm, world.address(vma, 5), 3)
    assert advise(world, vma, 0, 8, MADV_PAGEOUT) == 0
    assert world.table(vma).ptes.raw[:4].tolist() == [0] * 4
    assert world.mem.test(world.folio(vma, 4), PG_SWAPBACKED)
    marks = [world.table(vma).ptes.raw[page] & (YOUNG | DIRTY) for page in range(4, 8)]
    assert marks == [YOUNG | DIRTY] * 4, "the batch comes back as one"
    assert world.kernel.vmstat.mthp[2, "split_deferred"] == 0


def test_pages_of_a_split_go_to_the_list_of_what_is_reclaimed() -> None:
    world = World(geometry=TINY)
    vma = world.vma(large(2), hole(12))
    folio = world.folio(vma, 0)
    world.off_lru(vma, 0)
    world.mem.folio_get(folio)
    assert world.mem.folio_trylock(folio)
    isolated = deque([folio])
    assert split_folio(world.kernel, folio, folio, isolated)
    assert list(isolated) == [folio, folio + 1, folio + 2, folio + 3]
    assert [world.mem.flags.raw[each] & PG_LRU for each in isolated] == [0] * 4
    assert [world.mem.refcount.raw[each] for each in isolated] == [2] * 4
