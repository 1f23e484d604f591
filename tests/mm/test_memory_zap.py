# SPDX-License-Identifier: GPL-2.0-or-later
"""Ranges that are emptied, and the tables that go with them."""

from __future__ import annotations

import pytest

from mthp.machine.step import Access
from mthp.mm.folio import lru_add_drain
from mthp.mm.madvise import MADV_DONTNEED, do_madvise
from mthp.mm.memory_zap import DONTNEED, zap_vma_range
from mthp.mm.mm_types import TableState
from mthp.mm.mmap import vm_munmap
from mthp.mm.mmu import load
from mthp.mm.mmu_gather import tlb_gather_mmu
from mthp.mm.pgtable import pmd_lock, pmd_ptr
from mthp.mm.pgtable_types import (
    DIRTY,
    SOFT_DIRTY,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
    leaf_kind,
    mk_pte,
    pmd_none,
    pmd_trans_huge,
    pte_none,
)
from mthp.races.stage import START
from mthp.races.world import RaceWorld
from tests.small_worlds import (
    TINY,
    World,
    hole,
    huge,
    large,
    leaf,
    small,
    swap,
    zero,
)


@pytest.mark.parametrize("page", [0, 3, 12])
def test_what_is_zapped_gives_back_its_counts(page: int) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(3), swap(3), zero(2), large(3), leaf(Leaf.MIGRATION, 0))
    slots = dict(world.kernel.swap.users)
    world.mm.counters["MM_SWAPENTS"] = 3
    before = world.census()
    do_madvise(world.mm, world.address(vma, page), world.address(vma, page + 4), MADV_DONTNEED)
    table = world.table(vma).ptes.raw
    assert [pte_none(pte) for pte in table] == [page <= i < page + 4 for i in range(16)]
    swapped = len([i for i in range(page, page + 4) if 3 <= i < 6])
    assert world.mm.counters["MM_SWAPENTS"] == 3 - swapped
    assert len(world.kernel.swap.users) == len(slots) - swapped
    now = world.census()
    assert world.mm.counters["MM_ANONPAGES"] == now.counted[world.mm.number, "MM_ANONPAGES"]
    assert world.check(before.outside) == []


def test_a_table_that_is_emptied_whole_is_taken_away() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(32))
    first, second = world.table(vma), world.table(vma, vma.vm_start + 0x10000)
    do_madvise(world.mm, vma.vm_start, vma.vm_start + 0x10000, MADV_DONTNEED)
    do_madvise(world.mm, vma.vm_start + 0x10000, vma.vm_end - 0x1000, MADV_DONTNEED)
    assert world.pmd(vma) == 0 and first.state is not TableState.LIVE
    assert world.table(vma, vma.vm_start + 0x10000) is second
    assert world.check(world.census().outside) == []


@pytest.mark.parametrize("whole", [True, False])
def test_a_huge_page_is_zapped_whole_or_split_for_a_part(whole: bool) -> None:
    world = World(geometry=TINY, cpus=2)
    vma = world.vma(huge(4))
    assert load(world.mm, vma.vm_start) is not None
    before = world.census()
    do_madvise(
        world.mm, vma.vm_start, vma.vm_end if whole else vma.vm_start + 0x4000, MADV_DONTNEED
    )
    assert world.mm.counters["MM_ANONPAGES"] == (0 if whole else 12)
    assert bool(world.pmd(vma)) is not whole
    assert world.check(before.outside) == []


def test_a_zap_that_finds_no_table_any_more_looks_again() -> None:
    """A collapse has put a huge page there between the two looks."""
    world = World(geometry=TINY)
    vma = world.vma(small(4))
    table = world.table(vma)

    def collapsed() -> None:
        world.collapse(vma)
        assert pmd_trans_huge(world.pmd(vma))

    world.before_lock(table.ptl, 1, collapsed)
    tlb = tlb_gather_mmu(world.mm, vma.vm_start, vma.vm_end)
    zap_vma_range(tlb, vma, vma.vm_start, vma.vm_end, DONTNEED)
    assert len(tlb.folios) == 1 and pmd_none(world.pmd(vma))


@pytest.mark.parametrize("filled", [False, True])
def test_an_emptied_table_is_reclaimed_once_its_slot_is_not_locked_any_more(filled: bool) -> None:
    """Unless it has been filled again by then."""
    stage = RaceWorld.parse("pmd", "7.3", ("zap",))()
    slot = pmd_ptr(stage.mm, START)
    assert slot is not None
    stage.machine.current = holder = stage.tasks[0][0]
    pmd_lock(slot)
    stage.machine.current = stage.tasks[1][0]
    is_zapped = False

    def hook(access: Access, word: object, index: int, bits: int) -> None:
        nonlocal is_zapped
        if not is_zapped and word is stage.table.ptl and access is Access.RELEASE:
            is_zapped = True
            slot.page.ptl.word.value = 0
            holder.held.clear()
            if filled:
                stage.table.ptes.raw[1] = mk_pte(stage.pages[0], YOUNG)

    stage.machine.on_step = hook
    stage.tasks[1][1]()
    assert is_zapped
    assert stage.table.state is (TableState.LIVE if filled else TableState.DEFERRED)


@pytest.mark.parametrize(("first", "count", "deferred"), [
    (0, 8, 0), (0, 16, 0), (1, 7, 1), (0, 4, 1), (8, 8, 0),
])  # fmt: skip
def test_a_folio_that_goes_as_one_batch_never_is_partly_mapped(
    first: int, count: int, deferred: int
) -> None:
    world = World(geometry=TINY)
    vma = world.vma(large(3), large(3))
    start = world.address(vma, first)
    do_madvise(world.mm, start, start + (count << TINY.page_shift), MADV_DONTNEED)
    assert world.kernel.vmstat.mthp[3, "split_deferred"] == deferred
    assert world.kernel.vmstat.mthp[3, "nr_anon_partially_mapped"] == deferred
    assert world.mm.counters["MM_ANONPAGES"] == 16 - count


def test_a_batch_ends_where_userfaultfd_has_marked_a_page() -> None:
    """What CPUs set, and the right to store, make no difference."""
    world = World(geometry=TINY)
    vma = world.vma(large(3), large(3))
    ptes = world.table(vma).ptes.raw
    ptes[2] &= ~(YOUNG | DIRTY | WRITE | SOFT_DIRTY)
    ptes[10] |= UFFD_WP
    do_madvise(world.mm, vma.vm_start, vma.vm_end, MADV_DONTNEED)
    assert world.kernel.vmstat.mthp[3, "split_deferred"] == 1
    assert world.kernel.vmstat.mthp[3, "nr_anon_partially_mapped"] == 0


@pytest.mark.parametrize("unmapped", [False, True])
def test_guard_markers_go_with_their_mapping_alone(unmapped: bool) -> None:
    world = World(geometry=TINY)
    vma = world.vma(leaf(Leaf.GUARD), small(3), hole(12))
    table = world.table(vma)
    if unmapped:
        vm_munmap(world.mm, vma.vm_start, vma.vm_end)
    else:
        do_madvise(world.mm, vma.vm_start, vma.vm_end, MADV_DONTNEED)
        assert leaf_kind(table.ptes.raw[0]) is Leaf.GUARD and table.ptes.raw[1] == 0
    assert (table.state is TableState.LIVE) is not unmapped


def test_a_page_that_is_being_kept_for_its_swap_slot_goes_with_the_slot() -> None:
    world = World(geometry=TINY)
    vma = world.vma(swap(2))
    cached = world.cache_swapped(vma, 0)
    lru_add_drain(world.mem, world.kernel.this_cpu)
    do_madvise(world.mm, vma.vm_start, vma.vm_end, MADV_DONTNEED)
    assert world.mem.refcount.raw[cached] == 0
    assert world.kernel.swap.cache == world.kernel.swap.users == {}
