# SPDX-License-Identifier: GPL-2.0-or-later
"""Mappings that come, go and shrink."""

from __future__ import annotations

import pytest

from mthp.machine.step import Access
from mthp.mm.mm_types import TableState
from mthp.mm.mmap import do_mmap, vm_munmap
from mthp.mm.mmu import load, store
from mthp.mm.pgtable_types import (
    pmd_is_table,
    pte_none,
    pte_pfn,
)
from mthp.mm.reports import Zapped, Zapping
from mthp.mm.vm_flags import VM_DEFAULT, VM_HUGEPAGE, VM_NORESERVE, VM_SOFTDIRTY
from mthp.races.stage import FILE, START
from mthp.races.world import RaceWorld
from tests.small_worlds import (
    TINY,
    Piece,
    World,
    huge,
    large,
    small,
    swap,
)
from tests.stages import entry, played


def test_remap_leaves_a_fresh_mapping() -> None:
    stage = played("remap")
    assert stage.vma not in stage.mm.vmas
    assert [vma.vm_start for vma in stage.mm.vmas] == [START]
    assert load(stage.mm, START) == 220


def test_a_mapping_shrinks() -> None:
    stage = played("shrink")
    assert [vma.vm_end for vma in stage.mm.vmas] == [stage.address(1)]
    assert pte_pfn(entry(stage, 0)) == stage.pages[0]
    assert pte_none(entry(stage, 2))


@pytest.mark.parametrize("anon_vma", [True, False])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_mapping_goes_with_its_pages_and_its_table(fresh: bool, anon_vma: bool) -> None:
    world = World(geometry=TINY, cpus=2)
    mm = world.mm
    vma = world.vma(*([small(4), large(2), swap(2)] if anon_vma else []), anon_vma=anon_vma)
    other = world.vma(small(2), at=0x50000000)
    if anon_vma:
        assert load(mm, vma.vm_start) is not None
    before = world.census()
    facts: list[object] = []
    world.kernel.report = facts.append
    if fresh:
        do_mmap(mm, vma.vm_start, vma.vm_end, VM_DEFAULT)
    else:
        vm_munmap(mm, vma.vm_start, vma.vm_end)
    by = world.kernel.machine.current.name
    assert facts == [
        Zapping(mm, vma.vm_start, vma.vm_end),
        Zapped(mm, vma.vm_start, vma.vm_end, by),
    ]
    assert vma not in mm.vmas and other in mm.vmas
    assert len(mm.vmas) == 1 + fresh
    if fresh:
        assert mm.vmas[0].anon_vma is None
        assert mm.vmas[0].vm_flags == VM_DEFAULT | VM_SOFTDIRTY
    assert load(mm, vma.vm_start) == (0 if fresh else None)
    assert mm.counters["MM_ANONPAGES"] == 2
    assert world.check(before.outside) == []


@pytest.mark.parametrize("start", [0x3FFF0000, 0x60000000])
def test_where_nothing_is_mapped_nothing_goes(start: int) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(4))
    before = world.census()
    facts: list[object] = []
    world.kernel.report = facts.append
    assert vm_munmap(world.mm, start, start + 0x10000) == 0
    assert facts == [] and world.mm.vmas == [vma]
    assert world.census().entries == before.entries
    assert world.check(before.outside) == []


@pytest.mark.parametrize("piece", [small(16), large(4), huge(4)], ids=lambda each: each.kind.name)
@pytest.mark.parametrize("page", [1, 15])
def test_a_tail_is_cut_off(piece: Piece, page: int) -> None:
    world = World(geometry=TINY, cpus=2)
    vma = world.vma(piece, flags=VM_DEFAULT | VM_HUGEPAGE)
    assert store(world.mm, world.address(vma, 15), 5)
    before = world.census()
    start, end = world.address(vma, page), vma.vm_end
    facts: list[object] = []
    world.kernel.report = facts.append
    vm_munmap(world.mm, start, end)
    by = world.kernel.machine.current.name
    assert facts == [Zapping(world.mm, start, end), Zapped(world.mm, start, end, by)]
    (left,) = world.mm.vmas
    assert (left.vm_start, left.vm_end, left.vm_lock.value) == (0x40000000, start, 0)
    assert vma.detached and vma.freed, "the part that stays is a new one"
    assert world.mm.counters["MM_ANONPAGES"] == page
    for i in range(16):
        where = world.mm.number, 0x40000000 + 0x1000 * i
        assert world.census().contents.get(where, 0) == (before.contents[where] if i < page else 0)
    assert world.check(before.outside) == []


@pytest.mark.parametrize("first", [True, False])
def test_a_table_stays_while_another_mapping_has_a_part_of_it(first: bool) -> None:
    stage = RaceWorld.parse("window+two-vmas", "7.3", ())()
    vma, other = stage.mm.vmas if first else reversed(stage.mm.vmas)
    vm_munmap(stage.mm, vma.vm_start, vma.vm_end)
    states = [stage.table.state]
    vm_munmap(stage.mm, other.vm_start, other.vm_end)
    assert [*states, stage.table.state] == [TableState.LIVE, TableState.DEFERRED]


@pytest.mark.parametrize(
    ("mapped", "gone", "left"),
    [
        ([(0, 48)], (0, 48), []),
        ([(0, 48)], (8, 40), [0, 2]),
        ([(0, 48)], (16, 32), [0, 2]),
        ([(0, 48)], (15, 33), [0, 2]),
        ([(0, 8), (8, 16)], (0, 16), []),
        ([(0, 8), (8, 16)], (0, 8), [0]),
        ([(0, 8), (8, 16)], (8, 16), [0]),
        ([(0, 4), (12, 20)], (0, 32), []),
        ([(4, 20), (60, 80), (84, 90)], (0, 84), [5]),
        ([(4, 20), (60, 80), (84, 90)], (16, 90), [0]),
    ],
)
def test_tables_go_of_which_nobody_has_a_part(
    mapped: list[tuple[int, int]], gone: tuple[int, int], left: list[int]
) -> None:
    """Pages that are mapped, those that are unmapped, and the tables that stay; 16 pages have a table, and
    16 tables a page of PMDs.
    """
    world = World(geometry=TINY)
    for n, (first, last) in enumerate(mapped):  # of no like kind, so that they stay apart
        flags = VM_DEFAULT | (VM_NORESERVE if n % 2 else 0)
        do_mmap(world.mm, START + first * 0x1000, START + last * 0x1000, flags)
        for page in range(first, last):
            assert store(world.mm, START + page * 0x1000, page)
    assert len(world.mm.vmas) == len(mapped)
    vm_munmap(world.mm, *(START + page * 0x1000 for page in gone))
    live = [each for each in world.kernel.tables.values() if each.state is TableState.LIVE]
    assert len(live) == len(left)
    pages = world.mm.pmd_pages
    slots = {
        at + (number << 4)
        for number in pages
        for at, pmd in enumerate(pages[number].pmds.raw)
        if pmd
    }
    assert slots == {(START >> 16) + table for table in left}
    assert bool(pages) is bool(left), "nor does the page of PMDs stay"
    assert world.mm.pmd_numbers == sorted(pages)
    assert world.check(world.census().outside) == []


def test_a_mapping_takes_the_place_of_what_was_unmapped() -> None:
    stage = played("remap-tail")
    vma, behind = stage.mm.vmas
    assert vma.vm_end == behind.vm_start == stage.address(1)
    assert vma.anon_vma is not behind.anon_vma
    assert load(stage.mm, stage.address(1)) == 220


def test_a_file_mapping_reads_its_file() -> None:
    stage = played("remap-file")
    assert load(stage.mm, START) == 210
    assert load(stage.mm, stage.address(1)) == stage.kernel.files[FILE]


def test_a_mapping_of_several_tables_goes_as_a_whole() -> None:
    stage = RaceWorld.parse("pmd+madvise", "7.3", ("shrink-last",))()
    tables = list(stage.kernel.tables.values())
    vm_munmap(stage.mm, stage.start, stage.stop)
    assert [table.state for table in tables] == [TableState.DEFERRED] * 2
    assert not any(stage.kernel.mem.refcount.raw[page] for page in stage.pages.values())


def test_a_huge_page_is_split_before_its_mapping_shrinks() -> None:
    world = World(geometry=TINY)
    vma = world.vma(huge(4))
    assert vma.anon_vma is not None
    rwsem, seen = vma.anon_vma.rwsem, []

    def hook(access: Access, word: object, index: int, bits: int) -> None:
        if word is rwsem and access is Access.RELEASE:
            seen.append((pmd_is_table(world.pmd(vma)), vma.vm_end - vma.vm_start))

    world.kernel.machine.on_step = hook
    vm_munmap(world.mm, vma.vm_start + 0x8000, vma.vm_end)
    assert seen[:2] == [(False, 0x10000), (True, 0x8000)], "anon_vma_clone(), and then the split"
