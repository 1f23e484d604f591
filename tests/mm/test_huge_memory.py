# SPDX-License-Identifier: GPL-2.0-or-later
"""Huge pages: faulted in, shared, and mapped by PTEs again."""

from __future__ import annotations

import pytest

from mthp.machine.step import Access
from mthp.mm.huge_memory import (
    copy_huge_pmd,
    do_huge_pmd_anonymous_page,
    do_huge_pmd_wp_page,
    pmd_migration_entry_wait,
    remove_migration_pmd,
    set_pmd_migration_entry,
    split_huge_pmd,
)
from mthp.mm.mm_types import PmdPtr, Vma
from mthp.mm.mmu import load, store
from mthp.mm.page_flags import PAGE_ANON_EXCLUSIVE, PG_LOCKED, PG_SWAPCACHE, PG_UPTODATE
from mthp.mm.pgtable import pmd_lock, pmd_ptr
from mthp.mm.pgtable_types import (
    DIRTY,
    PMD_NONE,
    SOFT_DIRTY,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
    leaf_kind,
    leaf_pte,
    pmd_is_table,
    pmd_trans_huge,
    pte_pfn,
    pte_write,
)
from mthp.mm.vm_flags import VM_READ
from mthp.races.stage import START
from tests.small_worlds import (
    TINY,
    World,
    huge,
    small,
)
from tests.stages import after_a_collapse, at, entry, played, pmd


def test_a_fault_puts_a_huge_page_where_the_table_was() -> None:
    stage = played("huge-fault")
    assert pmd_trans_huge(pmd(stage))
    head = pte_pfn(pmd(stage))
    nr = stage.kernel.geometry.ptrs_per_pte
    assert list(stage.kernel.mem.content.raw[head : head + nr]) == [200, *[0] * (nr - 1)]


@pytest.mark.parametrize("rival", ["zap-second", "uffd-wp", "zap-page", "shrink"])
def test_part_of_a_huge_page_splits_its_pmd(rival: str) -> None:
    stage = after_a_collapse(rival)
    assert pmd_is_table(pmd(stage))
    kept = 1 if rival == "zap-page" else 0
    page = pte_pfn(at(stage, stage.address(kept)))
    assert stage.kernel.mem.order.raw[stage.kernel.mem.head.raw[page]] == 1


def test_fork_shares_a_huge_page() -> None:
    stage = after_a_collapse("fork")
    folio = pte_pfn(pmd(stage))
    assert stage.kernel.mem.entire_mapcount.raw[folio] == 2
    assert not pte_write(pmd(stage))
    assert store(stage.mm, START, 7)
    assert pmd_is_table(pmd(stage))
    assert pte_pfn(entry(stage, 0)) != folio


def slot(world: World, vma: Vma) -> PmdPtr:
    found = pmd_ptr(vma.vm_mm, vma.vm_start)
    assert found is not None
    return found


@pytest.mark.parametrize("bits", [0, UFFD_WP])
@pytest.mark.parametrize("without", [0, WRITE, DIRTY | SOFT_DIRTY])
@pytest.mark.parametrize("shared", [False, True])
def test_split_ptes_are_what_the_pmd_was(shared: bool, without: int, bits: int) -> None:
    world = World(geometry=TINY, cpus=2)
    vma = world.vma(huge(4, without=without, plus=bits))
    child = world.fork(vma) if shared else None
    load(world.mm, vma.vm_start)
    before = world.census()
    old, folio = world.pmd(vma), world.folio(vma, 0)
    split_huge_pmd(vma, slot(world, vma), vma.vm_start + 0x5000)
    kept = WRITE | YOUNG | DIRTY | SOFT_DIRTY | UFFD_WP
    for i, pte in enumerate(world.table(vma).ptes.raw):
        assert (pte_pfn(pte), pte & kept) == (folio + i, old & kept)
        assert bool(world.mem.page_flags.raw[folio + i] & PAGE_ANON_EXCLUSIVE) is not shared
    assert slot(world, vma).page.deposited.get(slot(world, vma).slot, []) == []
    assert world.census().contents == before.contents
    assert world.check(before.outside) == []
    split_huge_pmd(vma, slot(world, vma), vma.vm_start)  # it is none any more
    assert world.check(before.outside) == []
    assert child is None or pmd_trans_huge(world.pmd(child))


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("split", [True, False])
def test_a_huge_page_on_its_way_comes_back_as_it_was(split: bool, exclusive: bool) -> None:
    world = World(geometry=TINY, cpus=2)
    vma = world.vma(huge(4, plus=UFFD_WP))
    load(world.mm, vma.vm_start)
    folio, old = world.folio(vma, 0), world.pmd(vma)
    if not exclusive:
        world.mem.page_flags.raw[folio] &= ~PAGE_ANON_EXCLUSIVE
    before = world.census()
    world.mem.refcount.raw[folio] += 1
    with pmd_lock(slot(world, vma)):
        set_pmd_migration_entry(vma, vma.vm_start, slot(world, vma))
    entry = world.pmd(vma)
    assert (leaf_kind(entry), pte_pfn(entry)) == (Leaf.MIGRATION, folio)
    assert world.mem.mapcount.raw[folio] == world.mem.large_mapcount.raw[folio] == 0
    assert world.kernel.cpus[0].tlb.value == ()
    if split:
        split_huge_pmd(vma, slot(world, vma), vma.vm_start)
        ptes = world.table(vma).ptes.raw
        assert [(leaf_kind(pte), pte_pfn(pte)) for pte in ptes] == [
            (Leaf.MIGRATION, folio + i) for i in range(16)
        ]
        return
    with pmd_lock(slot(world, vma)):
        remove_migration_pmd(vma, slot(world, vma), entry, folio)
    world.mem.refcount.raw[folio] -= 1
    assert world.pmd(vma) == old
    assert bool(world.mem.page_flags.raw[folio] & PAGE_ANON_EXCLUSIVE) is exclusive
    assert world.check(before.outside) == []


@pytest.mark.parametrize(
    "why", ["exclusive", "last user", "shared", "cached", "swapped elsewhere", "locked", "changed"]
)
def test_a_store_to_a_huge_page_that_may_not_be_written(why: str) -> None:
    world = World(geometry=TINY)
    vma = world.vma(huge(4, without=WRITE))
    folio = world.folio(vma, 0)
    mem = world.mem
    if why != "exclusive":
        mem.page_flags.raw[folio] &= ~PAGE_ANON_EXCLUSIVE
    if why == "shared":
        mem.refcount.raw[folio] += 1
    elif why == "locked":
        mem.flags.raw[folio] |= PG_LOCKED
    elif why in ("cached", "swapped elsewhere"):
        mem.flags.raw[folio] |= PG_SWAPCACHE
        mem.refcount.raw[folio] += 16
        world.kernel.swap.add_to_cache(512, folio, 16)
        world.kernel.swap.users |= {520: 1} if why != "cached" else {}
    orig = world.pmd(vma)
    if why == "changed":
        world.set_pmd(vma, orig ^ UFFD_WP)
    waited = []

    def hook(access: Access, word: object, index: int, bits: int) -> None:
        if access is Access.WAIT:
            waited.append(world.kernel.machine.current.held[:])
            mem.flags.raw[folio] &= ~PG_LOCKED

    world.kernel.machine.on_step = hook
    done = do_huge_pmd_wp_page(vma, vma.vm_start, slot(world, vma), orig)
    world.kernel.machine.on_step = None
    assert waited == ([[]] if why == "locked" else [])
    reused = why in ("exclusive", "last user", "cached", "locked")
    assert mem.test(folio, PG_SWAPCACHE) is (why == "swapped elsewhere")
    assert done is (reused or why == "changed")
    assert pmd_trans_huge(world.pmd(vma)) is done
    if reused:
        flags = WRITE | YOUNG | DIRTY | SOFT_DIRTY
        assert world.pmd(vma) == orig | flags
        assert mem.page_flags.raw[folio] & PAGE_ANON_EXCLUSIVE
    assert not mem.flags.raw[folio] & PG_LOCKED
    assert world.kernel.machine.current.held == []


def test_a_mapping_that_may_not_be_written_stays_so() -> None:
    world = World(geometry=TINY)
    vma = world.vma(huge(4, without=WRITE), flags=VM_READ)
    assert do_huge_pmd_wp_page(vma, vma.vm_start, slot(world, vma), world.pmd(vma))
    assert not world.pmd(vma) & WRITE


@pytest.mark.parametrize("raced", [False, True])
def test_a_huge_fault_puts_a_page_of_zeroes_unless_another_was_faster(raced: bool) -> None:
    world = World(geometry=TINY)
    vma = world.vma()
    at = pmd_ptr(world.mm, vma.vm_start, create=True)
    assert at is not None
    before = world.census()
    if raced:
        world.before_lock(at.page.ptl, 1, lambda: world.fill(vma, 0, small(1)))
    do_huge_pmd_anonymous_page(vma, vma.vm_start + 0x5000, at, write=True)
    world.kernel.machine.on_step = None
    assert pmd_trans_huge(world.pmd(vma)) is not raced
    assert world.mm.counters["MM_ANONPAGES"] == (1 if raced else 16)
    assert world.check(before.outside) == []
    if not raced:
        folio = world.folio(vma, 0)
        assert world.mem.test(folio, PG_UPTODATE)
        assert set(world.mem.content.raw[folio : folio + 16]) == {0}
        assert world.mem.page_flags.raw[folio] & PAGE_ANON_EXCLUSIVE


def test_a_fork_shares_it_and_says_so() -> None:
    world = World(geometry=TINY)
    vma = world.vma(huge(4))
    folio, old = world.folio(vma, 0), world.pmd(vma)
    child = world.process()
    copy = child.mmap(vma.vm_start, vma.vm_end)
    child.link_anon_vma(copy, vma.anon_vma)
    target = pmd_ptr(child, vma.vm_start, create=True)
    assert target is not None
    before = world.census()
    assert copy_huge_pmd(copy, vma, target, slot(world, vma), vma.vm_start)
    assert world.pmd(vma) == old & ~WRITE
    assert world.pmd(copy) == old & ~(WRITE | YOUNG)
    assert world.mem.entire_mapcount.raw[folio] == 2
    assert world.mem.mm_mapcounts[folio] == {world.mm.number: 1, child.number: 1}
    assert not world.mem.page_flags.raw[folio] & PAGE_ANON_EXCLUSIVE
    assert child.counters["MM_ANONPAGES"] == 16
    assert world.check(before.outside) == []
    tables = len(world.kernel.tables)
    world.set_pmd(vma, PMD_NONE)
    assert not copy_huge_pmd(copy, vma, target, slot(world, vma), vma.vm_start)
    assert len(world.kernel.tables) == tables
    assert world.kernel.machine.current.held == []


def test_waiting_for_a_migration_is_waiting_for_its_folio() -> None:
    world = World(geometry=TINY)
    vma = world.vma(huge(4))
    folio = world.folio(vma, 0)
    waited: list[int] = []
    world.kernel.machine.on_step = lambda access, word, index, bits: (
        waited.append(index) if access.name == "WAIT" else None
    )
    pmd_migration_entry_wait(world.kernel, slot(world, vma))
    assert waited == []
    world.set_pmd(vma, leaf_pte(Leaf.MIGRATION, folio))
    pmd_migration_entry_wait(world.kernel, slot(world, vma))
    assert waited == [folio]
