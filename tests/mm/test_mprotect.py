# SPDX-License-Identifier: GPL-2.0-or-later
"""Rights taken away: mprotect() and NUMA hints."""

from __future__ import annotations

import pytest

from mthp.mm.mmu import load, store
from mthp.mm.mprotect import Right, change_protection, do_mprotect, task_numa_work
from mthp.mm.pgtable_types import (
    DIRTY,
    NO_ACCESS,
    SOFT_DIRTY,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
    leaf_pte,
    pmd_trans_huge,
    pte_present,
    pte_protnone,
    pte_write,
)
from mthp.mm.vm_flags import VM_READ, VM_WRITE
from mthp.races.stage import START, Size
from mthp.races.world import RaceWorld
from mthp.words.profiles import PMD_ONLY, V7_3, Profile
from tests.small_worlds import TINY, World, hole, huge, large, leaf, small, swap, zero
from tests.stages import entry, played


def test_a_numa_hint_is_hit_once() -> None:
    stage = RaceWorld(Size.WINDOW, "7.3", ("numa-hint",))()
    task_numa_work(stage.mm, START, stage.end)
    assert pte_protnone(entry(stage, 0)) and pte_protnone(entry(stage, 2))
    stage = played("numa-hint")
    assert not pte_protnone(entry(stage, 0)) and pte_write(entry(stage, 0))
    assert stage.kernel.mem.content.raw[stage.pages[0]] == 200


def test_mprotect_lets_nobody_store() -> None:
    stage = played("mprotect")
    assert not pte_write(entry(stage, 0))
    assert not store(stage.mm, START, 200)


@pytest.mark.parametrize(
    ("right", "takes", "gives"),
    [(Right.NUMA, WRITE, NO_ACCESS), (Right.UFFD_WP, WRITE, UFFD_WP), (Right.STORES, WRITE, 0)],
)
def test_the_right_is_taken_of_what_is_mapped_or_swapped_in_the_range(
    right: Right, takes: int, gives: int
) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(4), swap(2), zero(2), hole(1), large(2), small(3))
    before = list(world.table(vma).ptes.raw)
    start, end = world.address(vma, 2), world.address(vma, 11)
    assert change_protection(vma, start, end, right)
    for i, (old, new) in enumerate(zip(before, world.table(vma).ptes.raw, strict=True)):
        spared = right is Right.NUMA and old >> 16 == 0
        if not pte_present(old):
            spared, takes_here, gives_here = right is not Right.UFFD_WP or not old, 0, UFFD_WP
        else:
            takes_here, gives_here = takes, gives
        changed = 2 <= i < 11 and not spared
        assert new == (old & ~takes_here | gives_here if changed else old), i


@pytest.mark.parametrize("right", Right)
@pytest.mark.parametrize("huge_page", [False, True])
def test_a_page_that_migrates_comes_back_without_the_right(right: Right, huge_page: bool) -> None:
    world = World(geometry=TINY)
    vma = world.vma(huge(4) if huge_page else small(1))
    folio = world.folio(vma, 0)
    old = leaf_pte(Leaf.MIGRATION, folio, WRITE | SOFT_DIRTY)
    if huge_page:
        world.set_pmd(vma, old)
    else:
        world.table(vma).ptes.raw[0] = old
    end = vma.vm_start + (0x10000 if huge_page else 0x1000)
    assert change_protection(vma, vma.vm_start, end, right)
    now = world.pmd(vma) if huge_page else world.table(vma).ptes.raw[0]
    assert now == old & ~WRITE | (UFFD_WP if right is Right.UFFD_WP else 0)


def test_markers_are_left_as_they_are() -> None:
    world = World(geometry=TINY)
    vma = world.vma(leaf(Leaf.GUARD), leaf(Leaf.HWPOISON))
    before = list(world.table(vma).ptes.raw)
    assert not change_protection(vma, vma.vm_start, vma.vm_start + 0x2000, Right.UFFD_WP)
    assert list(world.table(vma).ptes.raw) == before


def test_nothing_is_changed_where_nothing_is_present() -> None:
    world = World(geometry=TINY)
    vma = world.vma(swap(2), hole(2), zero(2), pages=64)
    for page in (0, 2, 32, 48):
        start = world.address(vma, page)
        assert not change_protection(vma, start, start + 0x2000, Right.STORES)
    assert not change_protection(vma, world.address(vma, 4), world.address(vma, 6), Right.NUMA)


def test_a_hint_is_not_given_twice_nor_to_a_huge_page() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(16), huge(4))
    for start in (0, 16):
        first, last = world.address(vma, start), world.address(vma, start + 16)
        change_protection(vma, first, last, Right.NUMA)
    assert world.table(vma).ptes.raw[0] & NO_ACCESS
    assert not world.pmd(vma, world.address(vma, 16)) & NO_ACCESS
    assert not change_protection(vma, vma.vm_start, vma.vm_start + 0x10000, Right.NUMA)


@pytest.mark.parametrize("right", [Right.UFFD_WP, Right.STORES])
def test_a_huge_page_is_protected_whole_and_split_for_a_part(right: Right) -> None:
    whole = World(geometry=TINY)
    vma = whole.vma(huge(4))
    assert store(whole.mm, vma.vm_start, 1)
    before = whole.census()
    assert change_protection(vma, vma.vm_start, vma.vm_end, right)
    assert pmd_trans_huge(whole.pmd(vma)) and not pte_write(whole.pmd(vma))
    assert bool(whole.pmd(vma) & UFFD_WP) is (right is Right.UFFD_WP)
    assert whole.check(before.outside) == []
    part = World(geometry=TINY)
    vma = part.vma(huge(4))
    before = part.census()
    assert change_protection(vma, vma.vm_start, vma.vm_start + 0x1000, right)
    assert [pte_write(pte) for pte in part.table(vma).ptes.raw] == [False] + [True] * 15
    assert part.check(before.outside) == []


def test_mprotect_of_what_is_not_mapped_does_nothing() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(4), at=0x50000000)
    do_mprotect(world.mm, 0x40000000, 0x40001000, VM_READ)
    do_mprotect(world.mm, 0x60000000, 0x60001000, VM_READ)
    assert vma.vm_flags & VM_WRITE
    do_mprotect(world.mm, vma.vm_start, vma.vm_end, VM_READ)
    assert not vma.vm_flags & VM_WRITE
    assert vma.vm_lock.value == 0
    assert load(world.mm, vma.vm_start) is not None
    assert not store(world.mm, vma.vm_start, 1)


def test_hints_are_not_given_where_mmap_lock_is_contended() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(4), at=0x50000000)
    hold = world.held_by_another(world.mm.mmap_write_lock)
    task_numa_work(world.mm, vma.vm_start, vma.vm_end)
    assert not world.table(vma).ptes.raw[0] & NO_ACCESS
    hold.lock.word.value = 0  # type: ignore[attr-defined]
    task_numa_work(world.mm, 0x40000000, 0x40001000)
    task_numa_work(world.mm, vma.vm_start, vma.vm_end)
    assert world.table(vma).ptes.raw[3] & NO_ACCESS
    assert world.mm.mmap_lock.word.value == 0


def test_pages_of_one_folio_are_young_and_dirty_together_afterwards() -> None:
    """Those that may be stored to are not taken together with those that may not, nor are small ones."""
    world = World(geometry=TINY)
    vma = world.vma(large(3), small(2))
    ptes = world.table(vma).ptes.raw
    for page in range(10):
        ptes[page] &= ~(YOUNG | DIRTY | SOFT_DIRTY)
    ptes[2] |= YOUNG
    ptes[3] |= DIRTY | SOFT_DIRTY
    ptes[9] |= YOUNG | DIRTY
    for page in (4, 5, 6, 7):
        ptes[page] &= ~WRITE
    ptes[6] |= YOUNG
    assert change_protection(vma, world.address(vma, 1), vma.vm_end, Right.STORES)
    shown = [(bool(pte & YOUNG), bool(pte & DIRTY), bool(pte & WRITE)) for pte in ptes[:10]]
    assert shown[0] == (False, False, True)
    assert shown[1:3] == [(True, False, False)] * 2
    assert shown[3] == (False, True, False)
    assert shown[4:8] == [(True, False, False)] * 4
    assert shown[8:] == [(False, False, False), (True, True, False)]


@pytest.mark.parametrize(("profile", "kept"), [(V7_3, True), (PMD_ONLY, False)])
def test_a_huge_page_that_was_stored_to(profile: Profile, kept: bool) -> None:
    """Older kernels forget it when they take the right to store, but not when they give it back."""
    world = World(geometry=TINY, profile=profile)
    vma = world.vma(huge(4))
    assert store(world.mm, vma.vm_start, 1)
    assert change_protection(vma, vma.vm_start, vma.vm_end, Right.STORES)
    assert bool(world.pmd(vma) & DIRTY) is kept
    world.set_pmd(vma, world.pmd(vma) | DIRTY)
    assert change_protection(vma, vma.vm_start, vma.vm_end, Right.GIVEN)
    assert world.pmd(vma) & (DIRTY | WRITE) == DIRTY | WRITE
