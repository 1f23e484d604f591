# SPDX-License-Identifier: GPL-2.0-or-later
"""Mappings that come, go and shrink."""

from __future__ import annotations

import pytest

from mthp.machine.step import Access
from mthp.mm.mm_types import TableState
from mthp.mm.mmu import load, store
from mthp.mm.pgtable_types import (
    pmd_is_table,
    pte_none,
    pte_pfn,
)
from mthp.mm.reports import Zapped, Zapping
from mthp.mm.vm_flags import VM_DEFAULT, VM_HUGEPAGE
from mthp.mm.vma import munmap, munmap_and_mmap, munmap_tail
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


def test_a_mapping_shrinks() -> None:
    stage = played("shrink")
    assert [vma.vm_end for vma in stage.mm.vmas] == [stage.address(1)]
    assert pte_pfn(entry(stage, 0)) == stage.pages[0]
    assert pte_none(entry(stage, 2))


@pytest.mark.parametrize("anon_vma", [True, False])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_mapping_goes_with_its_pages_and_its_table(fresh: bool, anon_vma: bool) -> None:
    world = World(geometry=TINY, cpus=2)
    vma = world.vma(*([small(4), large(2), swap(2)] if anon_vma else []), anon_vma=anon_vma)
    other = world.vma(small(2), at=0x50000000)
    if anon_vma:
        assert load(world.mm, vma.vm_start) is not None
    before = world.census()
    facts: list[object] = []
    world.kernel.report = facts.append
    if fresh:
        munmap_and_mmap(world.mm, vma.vm_start)
    else:
        munmap(world.mm, vma.vm_start, vma.vm_end)
    by = world.kernel.machine.current.name
    assert facts == [
        Zapping(world.mm, vma.vm_start, vma.vm_end),
        Zapped(world.mm, vma.vm_start, vma.vm_end, by),
    ]
    assert vma not in world.mm.vmas and other in world.mm.vmas
    assert len(world.mm.vmas) == 1 + fresh
    if fresh:
        assert world.mm.vmas[0].anon_vma not in (None, vma.anon_vma)
        assert world.mm.vmas[0].vm_flags == vma.vm_flags
    assert load(world.mm, vma.vm_start) == (0 if fresh else None)
    assert world.mm.counters["MM_ANONPAGES"] == 2
    assert world.check(before.outside) == []


@pytest.mark.parametrize("start", [0x40001000, 0x3FFF0000, 0x60000000])
def test_only_a_mapping_that_begins_there_goes(start: int) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(4))
    before = world.census()
    assert munmap(world.mm, start, start + 0x10000) is None
    munmap_and_mmap(world.mm, start)
    assert world.mm.vmas == [vma]
    assert world.census().entries == before.entries
    assert world.check(before.outside) == []


def test_what_was_unmapped_is_given() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(4))
    assert munmap(world.mm, vma.vm_start, vma.vm_end) is vma


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
    munmap_tail(world.mm, start)
    by = world.kernel.machine.current.name
    assert facts == [Zapping(world.mm, start, end), Zapped(world.mm, start, end, by)]
    assert vma.vm_end == start and vma.vm_lock.value == 0
    assert world.mm.counters["MM_ANONPAGES"] == page
    for i in range(16):
        where = world.mm.number, world.address(vma, i)
        assert world.census().contents.get(where, 0) == (before.contents[where] if i < page else 0)
    assert world.check(before.outside) == []


@pytest.mark.parametrize("start", [0x40000000, 0x3FFF0000, 0x60000000, 0x50004000])
def test_no_tail_is_cut_off_where_nothing_is_mapped_or_everything_would_go(start: int) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(4))
    bare = world.vma(at=0x50000000, anon_vma=False)
    facts: list[object] = []
    world.kernel.report = facts.append
    munmap_tail(world.mm, start)
    assert facts == []
    assert (vma.vm_end, bare.vm_end) == (0x40010000, 0x50010000)
    assert world.kernel.machine.current.held == []


@pytest.mark.parametrize("first", [True, False])
def test_a_table_stays_while_another_mapping_has_a_part_of_it(first: bool) -> None:
    stage = RaceWorld.parse("window+two-vmas", "7.3", ())()
    vma, other = stage.mm.vmas if first else reversed(stage.mm.vmas)
    munmap(stage.mm, vma.vm_start, vma.vm_end)
    states = [stage.table.state]
    munmap(stage.mm, other.vm_start, other.vm_end)
    assert [*states, stage.table.state] == [TableState.LIVE, TableState.DEFERRED]


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
    munmap(stage.mm, stage.start, stage.stop)
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
    munmap_tail(world.mm, vma.vm_start + 0x8000)
    assert seen[0] == (True, 0x8000)
