# SPDX-License-Identifier: GPL-2.0-or-later
"""Each law fires on a world corrupted in the way it forbids, and on nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mthp.laws.at_rest import Rest, law_13_ended_mms_are_not_listed
from mthp.laws.broken import Kind
from mthp.laws.watch import check_aborted, check_collapse, check_quiescent
from mthp.machine.cpu import TlbEntry
from mthp.machine.hold import Hold
from mthp.mm.mm_types import MM_ANONPAGES, Vma
from mthp.mm.mmu import load
from mthp.mm.page_flags import PAGE_ANON_EXCLUSIVE, PG_ISOLATED, PG_LOCKED, PG_LRU, PG_REFERENCED
from mthp.mm.pgtable_types import (
    DIRTY,
    PMD_NONE,
    SOFT_DIRTY,
    UFFD_WP,
    WRITE,
    YOUNG,
    mk_pte,
)
from mthp.mm.vm_flags import VM_READ
from mthp.words.results import ScanResult
from mthp.worlds.build import mapped_frame
from tests.small_worlds import TINY, World, huge, large, shared, small, swap, zero

Corrupt = Callable[[World, Vma], object]


def made() -> tuple[World, Vma]:
    world = World(geometry=TINY)
    vma = world.vma(small(4), large(2), shared(2), zero(2), swap(4), huge(4))
    return world, vma


def raw(row: str, page: int, amount: int) -> Corrupt:
    """Change one word of the mem_map, of the folio at a page of the VMA."""

    def corrupt(world: World, vma: Vma) -> None:
        getattr(world.mem, row).raw[world.folio(vma, page)] += amount

    return corrupt


def freeze_mapped(world: World, vma: Vma) -> None:
    assert world.mem.folio_ref_freeze(world.folio(vma, 0), 1)


def free_mapped(world: World, vma: Vma) -> None:
    freeze_mapped(world, vma)
    world.mem.flags.raw[world.folio(vma, 0)] = 0


def keep_translation(world: World, vma: Vma) -> None:
    vpn = vma.vm_start >> 12
    world.kernel.cpus[0].tlb.value = (TlbEntry(world.mm.number, vpn, 0, mk_pte(77, YOUNG)),)


def keep_right(world: World, vma: Vma) -> None:
    """A CPU may still store through a translation whose PTE does not let it any more."""
    ptes = world.table(vma).ptes
    vpn = vma.vm_start >> 12
    ptes.raw[0] &= ~WRITE
    world.kernel.cpus[0].tlb.value = (TlbEntry(world.mm.number, vpn, 0, ptes.raw[0] | WRITE),)


def lose_table(world: World, vma: Vma) -> None:
    world.set_pmd(vma, PMD_NONE)


def link_twice(world: World, vma: Vma) -> None:
    world.mm.mmap(0x80000000, 0x80010000)
    pmd = world.pmd(vma)
    page = next(iter(world.mm.pmd_pages.values()))
    page.pmds.raw[15] = pmd


def fill_deposited(world: World, vma: Vma) -> None:
    page = next(iter(world.mm.pmd_pages.values()))
    (number,) = next(iter(page.deposited.values()))
    world.kernel.tables[number].ptes.raw[3] = mk_pte(0, YOUNG)


def warn(world: World, vma: Vma) -> None:
    world.kernel.warn_once("collapse_huge_page", "a PMD was overwritten")


def write_shared(world: World, vma: Vma) -> None:
    """A second writable mapping of an exclusive page, counted properly."""
    page = world.folio(vma, 0)
    world.table(vma).ptes.raw[10] = mk_pte(page, world.table(vma).ptes.raw[0] & 0xFFFF)
    world.mem.mapcount.raw[page] += 1
    world.mem.refcount.raw[page] += 1
    assert world.mem.page_flags.raw[page] & PAGE_ANON_EXCLUSIVE


def write_shared_huge(world: World, vma: Vma) -> None:
    """A huge page that a child of fork() maps too is taken for this process's alone."""
    world.fork(vma)
    world.mem.page_flags.raw[world.folio(vma, 16)] |= PAGE_ANON_EXCLUSIVE


def lose_deposit(world: World, vma: Vma) -> None:
    next(iter(world.mm.pmd_pages.values())).deposited.clear()


def leave_deposit(world: World, vma: Vma) -> None:
    page = next(iter(world.mm.pmd_pages.values()))
    page.deposited[15] = [world.kernel.new_table().number]


def hold_mmap_lock(world: World, vma: Vma) -> Hold:
    return world.mm.mmap_read_lock()


def map_and_forget(world: World, vma: Vma) -> None:
    world.kernel.machine.current.maps.append(world.table(vma).number)


def leave_locked(world: World, vma: Vma) -> None:
    world.lock(vma, 0)


def leave_vma_locked(world: World, vma: Vma) -> None:
    vma.vm_lock.value = -1


def leave_isolated(world: World, vma: Vma) -> None:
    world.mem.flags.raw[world.folio(vma, 0)] |= PG_ISOLATED


def lose_from_lru(world: World, vma: Vma) -> None:
    world.mem.flags.raw[world.folio(vma, 0)] &= ~PG_LRU


def register_twice(world: World, vma: Vma) -> None:
    world.khugepaged.mm_slots.append(world.mm)


def forget_cursor(world: World, vma: Vma) -> None:
    world.khugepaged.mm_slot = world.mm
    world.khugepaged.mm_slots.clear()


def miscount_sharers(world: World, vma: Vma) -> None:
    world.mem.mm_mapcounts[world.folio(vma, 4)] = {world.mm.number: 3}


AT_REST: list[tuple[int, Corrupt, str]] = [
    (1, free_mapped, "is free and mapped"),
    (2, keep_translation, "translates page"),
    (2, keep_right, "keeps a right to page"),
    (4, raw("mapcount", 0, 1), "mapcount 2, mappings 1"),
    (4, raw("mapcount", 8, -1), "mapcount 1, mappings 2"),
    (4, raw("entire_mapcount", 16, 1), "entire_mapcount 2, should be 1"),
    (4, raw("large_mapcount", 4, 1), "large_mapcount 5, should be 4"),
    (4, raw("nr_pages_mapped", 4, 1), "nr_pages_mapped 5, should be 4"),
    (4, miscount_sharers, "mappings by process 3, should be 4"),
    (5, freeze_mapped, "is left frozen"),
    (5, raw("refcount", 0, 1), "refcount 2, explained 1"),
    (5, raw("refcount", 4, -1), "refcount 3, explained 4"),
    (5, leave_isolated, "is left isolated"),
    (5, lose_from_lru, "neither on the LRU nor in a batch"),
    (6, lose_table, "linked 0 times and deposited 0 times"),
    (6, link_twice, "linked 2 times and deposited 0 times"),
    (6, fill_deposited, "is deposited and not empty"),
    (6, lose_deposit, "0 tables wait under the PMD, and should be 1"),
    (6, leave_deposit, "1 tables wait under the PMD, and should be 0"),
    (7, write_shared_huge, "mapped 2 times"),
    (7, warn, "a PMD was overwritten"),
    (7, write_shared, "mapped 2 times"),
    (9, hold_mmap_lock, "still holds mm1000.mmap_lock(read)"),
    (9, map_and_forget, "1 page tables are still mapped"),
    (9, leave_locked, "is left locked"),
    (9, leave_vma_locked, "the VMA lock is -1"),
    (13, register_twice, "is 2 times in the list"),
    (13, forget_cursor, "the cursor stands at Mm(1000)"),
]


@pytest.mark.parametrize(("law", "corrupt", "text"), AT_REST)
def test_a_corrupted_world_breaks_the_law(law: int, corrupt: Corrupt, text: str) -> None:
    world, vma = made()
    outside = world.census().outside
    assert world.check(outside) == []
    corrupt(world, vma)
    broken = check_quiescent(world.kernel, world.khugepaged, outside)
    said = [each for each in broken if each.law == law and text in each.text]
    assert len(said) == 1, broken
    assert isinstance(said[0].object.kind, Kind) and isinstance(said[0].object.name, int | str)


def test_an_mm_that_ended_is_not_listed_behind_the_cursor() -> None:
    world, _ = made()
    rest = Rest(world.census(), world.khugepaged, world.census().outside, [])
    world.mm.mm_users.value = 0
    assert [each.law for each in law_13_ended_mms_are_not_listed(rest)] == [13]
    world.khugepaged.mm_slot = world.mm
    assert not [*law_13_ended_mms_are_not_listed(rest)]


def test_without_knowing_the_outside_its_holds_look_like_leaks() -> None:
    world, vma = made()
    world.pin(vma, 0)
    broken = check_quiescent(world.kernel, world.khugepaged)
    assert {each.law for each in broken} == {4, 5}


def overwrite_contents(world: World, vma: Vma) -> None:
    world.mem.content.raw[world.folio(vma, 1)] = 12345


def overwrite_swapped(world: World, vma: Vma) -> None:
    world.kernel.swap.contents[1] = 12345


def lose_marks(world: World, vma: Vma) -> None:
    world.table(vma).ptes.raw[0] &= ~(UFFD_WP | SOFT_DIRTY)


def miscount(world: World, vma: Vma) -> None:
    world.mm.counters[MM_ANONPAGES] += 1


def miscount_gauge(world: World, vma: Vma) -> None:
    world.kernel.vmstat.count_mthp_stat(2, "nr_anon", 1)


def miscount_charge(world: World, vma: Vma) -> None:
    world.kernel.memcgs[0].charge(1)


@pytest.mark.parametrize(
    ("law", "corrupt"),
    [
        (3, overwrite_contents),
        (3, overwrite_swapped),
        (5, miscount),
        (5, miscount_gauge),
        (5, miscount_charge),
        (8, lose_marks),
    ],
)
def test_a_change_that_no_collapse_may_make_is_found(law: int, corrupt: Corrupt) -> None:
    world, vma = made()
    world.kernel.new_memcg("group")
    world.table(vma).ptes.raw[0] |= UFFD_WP
    before = world.census()
    assert check_collapse(before, world.kernel) == []
    corrupt(world, vma)
    broken = check_collapse(before, world.kernel)
    assert {each.law for each in broken} == {law}, broken


@pytest.mark.parametrize("change", ["entry", "flags", "gone"])
def test_an_abort_changes_nothing(change: str) -> None:
    world, vma = made()
    before = world.census()
    if change == "entry":
        world.table(vma).ptes.raw[0] &= ~DIRTY
    elif change == "flags":
        world.mem.flags.raw[world.folio(vma, 0)] |= PG_REFERENCED
    else:
        world.zap(vma, 0, 1)
    broken = check_aborted(before, world.kernel)
    assert 11 in {each.law for each in broken}, broken


def test_an_abort_may_have_mapped_what_was_in_the_swap_cache() -> None:
    world, vma = made()
    page = next(i for i in range(16) if mapped_frame(world.mm, world.address(vma, i)) is None)
    cached = world.cache_swapped(vma, page)
    before = world.census()
    assert load(world.mm, world.address(vma, page)) is not None
    assert world.folio(vma, page) == cached
    assert world.mem.flags.raw[cached] != before.flags[cached]
    assert check_aborted(before, world.kernel) == []


@pytest.mark.parametrize(
    ("bit", "kind", "name"),
    [
        (UFFD_WP, Kind.WRITE_PROTECTED, "its write protection"),
        (SOFT_DIRTY, Kind.SOFT_DIRTY_MARK, "its soft-dirty mark"),
    ],
)
def test_a_lost_mark_is_told_by_its_kind(bit: int, kind: Kind, name: str) -> None:
    world, vma = made()
    ptes = world.table(vma).ptes
    ptes.raw[0] |= bit
    before = world.census()
    ptes.raw[0] &= ~bit
    (broken,) = check_collapse(before, world.kernel)
    assert broken.object.kind is kind and broken.text.endswith(f": lost {name}")


def test_below_pmd_order_a_read_only_vma_loses_its_soft_dirty_marks() -> None:
    """What 7.3 does, as its source says: map_anon_folio_pte_nopf() marks the new entries dirty, and
    so soft-dirty, only where the VMA is writable; map_anon_folio_pmd_nopf() always does."""
    for order, broken_laws in ((2, {8}), (4, set())):
        world = World(geometry=TINY, orders={2, 4})
        vma = world.vma(small(16), flags=VM_READ)
        before = world.census()
        assert world.collapse(vma, order) is ScanResult.SUCCEED
        broken = check_collapse(before, world.kernel)
        assert {each.law for each in broken} == broken_laws


def test_a_folio_lock_of_others_is_not_ours() -> None:
    world, vma = made()
    world.mem.flags.raw[world.folio(vma, 0)] |= PG_LOCKED
    assert world.check(world.census().outside) == []
