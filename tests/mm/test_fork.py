# SPDX-License-Identifier: GPL-2.0-or-later
"""fork() and exit: page tables copied, and taken away."""

from __future__ import annotations

import pytest

from mthp.mm.fork import dup_mmap, dup_mmap_failing, exit_mm, register_if_complete
from mthp.mm.madvise import MADV_DONTNEED, do_madvise
from mthp.mm.mm_types import MMF_VM_HUGEPAGE, Mm, TableState
from mthp.mm.mmap import vm_munmap
from mthp.mm.mmu import load, store
from mthp.mm.pgtable_types import (
    PMD_NONE,
    SWP_EXCLUSIVE,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
    leaf_kind,
    leaf_pte,
    pte_pfn,
    pte_write,
)
from mthp.mm.reports import Gone, Halfway, Zapped, Zapping
from mthp.mm.vm_flags import VM_DEFAULT, VM_HUGEPAGE, VM_LOCKED, VM_UFFD_WP
from mthp.races.world import RaceWorld
from tests.small_worlds import (
    TINY,
    Piece,
    World,
    hole,
    huge,
    large,
    leaf,
    small,
    swap,
    zero,
)
from tests.stages import entry, played


def test_fork_shares_read_only() -> None:
    stage = played("fork")
    assert stage.kernel.mem.mapcount.raw[stage.pages[0]] == 2
    assert not pte_write(entry(stage, 0))


def test_an_mm_that_ends_has_nothing_left() -> None:
    stage = played("exit")
    assert not stage.mm.vmas and not stage.mm.mm_users.value
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 0


def forked(world: World) -> Mm:
    child = world.kernel.new_mm(2000)
    dup_mmap(child, world.mm, world.khugepaged.khugepaged_enter)
    assert world.kernel.machine.current.held == []
    return child


def test_a_child_has_the_same_mappings_and_contents_and_a_store_is_its_own() -> None:
    world = World(geometry=TINY, cpus=2)
    vma = world.vma(small(3), hole(2), large(2), zero(1), hole(6), huge(4), pages=64,
                    flags=VM_DEFAULT | VM_HUGEPAGE)  # fmt: skip
    bare = world.vma(at=0x50000000, anon_vma=False)
    for page in (0, 16):
        assert store(world.mm, world.address(vma, page), 70 + page)
    before = world.census()
    child = forked(world)
    now = world.census()
    copies = {copy.vm_start: copy for copy in child.vmas}
    copy = copies[vma.vm_start]
    assert (copy.vm_end, copy.vm_flags, copy.vm_pgoff) == (vma.vm_end, vma.vm_flags, vma.vm_pgoff)
    assert vma.anon_vma is not None and copy.anon_vma is not None
    assert copy.anon_vma.parent is vma.anon_vma and copy in vma.anon_vma.vmas
    assert copies[bare.vm_start].anon_vma is None
    for (_, address), content in before.contents.items():
        assert now.contents.get((world.mm.number, address), 0) == content
        assert now.contents.get((child.number, address), 0) == content
        for mm in (world.mm, child):
            assert not now.entries.get((mm.number, address), 0) & 2  # may not be written
    assert child.flags.value & MMF_VM_HUGEPAGE and child in world.khugepaged.mm_slots
    assert world.check(before.outside) == []
    for page in (0, 6, 20):
        old = load(world.mm, world.address(vma, page))
        assert store(child, world.address(vma, page), 99)
        assert load(world.mm, world.address(vma, page)) == old
    assert world.check(before.outside) == []
    assert vma.vm_lock.value == copy.vm_lock.value == 0


def test_an_exit_gives_back_everything_in_its_order() -> None:
    world = World(geometry=TINY, cpus=2)
    vma = world.vma(small(3), swap(1), large(2), hole(8), huge(4), pages=64)
    other = world.vma(small(1), at=0x50000000)
    child = forked(world)
    assert load(child, vma.vm_start) is not None
    before = world.census()
    facts: list[object] = []
    world.kernel.report = facts.append
    exit_mm(child, world.khugepaged.khugepaged_exit)
    by = world.kernel.machine.current.name
    ranges = [(each.vm_start, each.vm_end) for each in (vma, other)]
    assert facts == [
        *(Zapping(child, *each) for each in ranges),
        *(Zapped(child, *each, by) for each in ranges),
        Gone(child),
    ]
    assert child.vmas == [] and child.mm_users.value == 0
    assert child not in world.khugepaged.mm_slots
    assert {cpu.tlb.value for cpu in world.kernel.cpus} == {()}
    now = world.census()
    assert {w: e for w, e in now.contents.items() if w[0] == world.mm.number} == {
        w: e for w, e in before.contents.items() if w[0] == world.mm.number
    }
    assert world.check(before.outside) == []


@pytest.mark.parametrize("pages", [8, 16])
def test_an_exit_gives_back_tables_of_which_it_had_a_part(pages: int) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(2), pages=pages)
    table = world.table(vma)
    exit_mm(world.mm, world.khugepaged.khugepaged_exit)
    assert world.pmd(vma) == PMD_NONE
    assert table.state is TableState.DEFERRED


def test_a_copy_that_fails_is_never_registered() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(1))
    child = world.kernel.new_mm(2000)
    facts: list[object] = []
    world.kernel.report = facts.append
    dup_mmap_failing(child, world.mm, world.khugepaged.khugepaged_enter)
    assert facts == [Halfway(child, True)]
    assert [each.vm_start for each in child.vmas] == [vma.vm_start]
    assert child not in world.khugepaged.mm_slots and child.mm_users.value == 0
    assert world.kernel.machine.current.held == []
    register_if_complete(world.kernel.new_mm(3), world.khugepaged.khugepaged_enter, complete=True)
    assert [mm.number for mm in world.khugepaged.mm_slots] == [1000, 3]


def test_a_table_of_two_mappings_is_copied_once() -> None:
    stage = RaceWorld.parse("window+two-vmas", "7.3", ("fork",))()
    stage.machine.current = stage.tasks[1][0]
    stage.tasks[1][1]()
    for page in stage.pages.values():
        assert stage.kernel.mem.mapcount.raw[page] == 2
    assert stage.children["fork"].counters["MM_ANONPAGES"] == 2


def test_secondary_mmus_are_told_of_a_fork() -> None:
    """A guest would go on to store to what the child now shares."""
    stage = RaceWorld.parse("pmd", "7.3", ("guest", "fork"))()
    assert stage.guest is not None and stage.guest.sptes
    stage.machine.current = stage.tasks[2][0]
    stage.tasks[2][1]()
    assert not stage.guest.sptes and not stage.guest.invalidating


def test_locks_are_not_inherited() -> None:
    world = World(geometry=TINY)
    world.vma(small(2), flags=VM_DEFAULT | VM_LOCKED)
    assert [vma.vm_flags for vma in forked(world).vmas] == [VM_DEFAULT]


@pytest.mark.parametrize("piece", [large(2), huge(4)])
def test_a_large_folio_is_known_to_be_shared(piece: Piece) -> None:
    world = World(geometry=TINY)
    vma = world.vma(piece)
    folio = world.folio(vma, 0)
    assert not world.mem.folio_maybe_mapped_shared(folio)
    child = forked(world)
    assert world.mem.folio_maybe_mapped_shared(folio)
    vm_munmap(child, vma.vm_start, vma.vm_end)
    assert not world.mem.folio_maybe_mapped_shared(folio)


def test_a_child_has_what_is_swapped_out_or_on_its_way_and_marks_of_its_own() -> None:
    """A slot is named twice from then on, and neither process has the page to itself any more."""
    world = World(geometry=TINY)
    flags = VM_DEFAULT | VM_UFFD_WP
    vma = world.vma(swap(2, uffd=True), leaf(Leaf.GUARD), leaf(Leaf.UFFD_WP_MARKER), small(1),
                    flags=flags)  # fmt: skip
    page = world.folio(vma, 4)
    moving = leaf_pte(Leaf.MIGRATION, page, WRITE | YOUNG | SWP_EXCLUSIVE)
    world.table(vma).ptes.raw[4] = moving
    slots = [pte_pfn(world.table(vma).ptes.raw[i]) for i in range(2)]
    child = forked(world)
    (copy,) = child.vmas
    theirs = world.table(copy).ptes.raw
    assert copy.vm_flags == VM_DEFAULT
    assert [world.kernel.swap.users[slot] for slot in slots] == [2, 2]
    assert child.counters["MM_SWAPENTS"] == 2 and child.counters["MM_ANONPAGES"] == 1
    assert not any(pte & SWP_EXCLUSIVE for pte in world.table(vma).ptes.raw[:5])
    assert [leaf_kind(pte) for pte in theirs[:5]] == [
        Leaf.SWAP, Leaf.SWAP, Leaf.GUARD, Leaf.NONE, Leaf.MIGRATION,
    ]  # fmt: skip
    assert not any(pte & UFFD_WP for pte in theirs[:5]) and theirs[4] == moving & ~(
        WRITE | SWP_EXCLUSIVE
    )


def test_a_child_that_lets_go_leaves_the_parent_its_whole_folios() -> None:
    """What the child gives back was never partly unmapped, for the parent still maps it."""
    world = World(geometry=TINY)
    vma = world.vma(large(3), large(2), hole(4), huge(4))
    child = forked(world)
    for page in (0, 9, 20):
        start = world.address(vma, page)
        do_madvise(child, start, start + (2 << TINY.page_shift), MADV_DONTNEED)
    assert world.kernel.vmstat.mthp == {}
    assert set(world.kernel.vmstat.events) <= {"thp_split_pmd"}
    exit_mm(child, world.khugepaged.khugepaged_exit)
    for page, nr in ((0, 8), (8, 4), (16, 1)):
        folio = world.folio(vma, page)
        assert world.mem.large_mapcount.raw[folio] == world.mem.refcount.raw[folio] == nr
        assert not world.mem.folio_maybe_mapped_shared(folio)
    assert world.kernel.vmstat.mthp == {} and world.mem.deferred_split.lists == {}


def test_the_parent_unmaps_what_the_child_does_not_map_any_more() -> None:
    world = World(geometry=TINY)
    vma = world.vma(large(3), hole(8))
    child = forked(world)
    for mm, first in ((child, 0), (world.mm, 4)):
        start = world.address(vma, first)
        do_madvise(mm, start, start + (4 << TINY.page_shift), MADV_DONTNEED)
    assert world.kernel.vmstat.mthp == {}, "each page is still mapped by one of the two"
    do_madvise(world.mm, vma.vm_start, world.address(vma, 1), MADV_DONTNEED)
    assert world.kernel.vmstat.mthp == {
        (3, "split_deferred"): 1,
        (3, "nr_anon_partially_mapped"): 1,
    }
    exit_mm(child, world.khugepaged.khugepaged_exit)
    assert world.kernel.vmstat.mthp[3, "nr_anon_partially_mapped"] == 1
    exit_mm(world.mm, world.khugepaged.khugepaged_exit)
    assert world.kernel.vmstat.mthp[3, "nr_anon_partially_mapped"] == 0
    assert world.kernel.vmstat.mthp[3, "nr_anon"] == -1
