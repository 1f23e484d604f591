# SPDX-License-Identifier: GPL-2.0-or-later
"""Migration: contents and mappings go to another folio."""

from __future__ import annotations

import pytest

from mthp.mm.folio import mlock_vma_folio
from mthp.mm.migrate import migrate_folio, move_page
from mthp.mm.mm_types import Vma
from mthp.mm.mmu import store
from mthp.mm.page_flags import PAGE_ANON_EXCLUSIVE, PG_MLOCKED, PG_UNEVICTABLE
from mthp.mm.pgtable_types import (
    pmd_trans_huge,
    pte_pfn,
)
from mthp.mm.vm_flags import VM_DEFAULT, VM_LOCKED
from mthp.races.world import RaceWorld
from mthp.words.units import Folio
from mthp.worlds.build import mapped_frame
from tests.small_worlds import (
    TINY,
    Piece,
    World,
    hole,
    huge,
    large,
    small,
    swap,
    zero,
)
from tests.stages import after_a_collapse, entry, played, pmd


def test_migration_moves_contents() -> None:
    stage = played("migrate")
    page = pte_pfn(entry(stage, 0))
    assert page != stage.pages[0]
    assert stage.kernel.mem.content.raw[page] == 100


@pytest.mark.parametrize("rival", ["move-pages", "migrate-large"])
def test_move_pages_moves_contents(rival: str) -> None:
    stage = played(rival)
    page = pte_pfn(entry(stage, 0))
    assert page != stage.pages[0]
    assert stage.kernel.mem.content.raw[page] == 100
    assert stage.kernel.mem.order.raw[page] == (rival == "migrate-large")


def test_a_huge_page_migrates_with_its_pmd() -> None:
    stage = after_a_collapse("move-pages")
    assert pmd_trans_huge(pmd(stage))
    assert stage.kernel.mem.content.raw[pte_pfn(pmd(stage))] == 100


def exclusive(world: World, vma: Vma) -> list[bool]:
    """Whether each page of a mapping is marked as its alone."""
    frames = [mapped_frame(world.mm, world.address(vma, page)) for page in range(16)]
    return [bool(world.mem.page_flags.raw[each or 0] & PAGE_ANON_EXCLUSIVE) for each in frames]


def drained(world: World) -> None:
    world.khugepaged.mm_slots.clear()
    world.khugepaged.khugepaged_do_scan()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("pieces", [[small(16)], [large(3), large(2), small(4)], [huge(4)]])
def test_every_page_moves_with_its_contents_and_its_entries(
    pieces: list[Piece], shared: bool
) -> None:
    world = World(geometry=TINY)
    vma = world.vma(*pieces)
    if shared:
        world.fork(vma)
    before, alone = world.census(), exclusive(world, vma)
    for page in (0, 8, 13):
        if (old := world.folio(vma, page)) and world.mem.refcount.raw[old]:
            move_page(world.mm, world.address(vma, page))
            assert world.folio(vma, page) != old
            assert world.mem.refcount.raw[old] == 0
    assert exclusive(world, vma) == alone
    drained(world)
    now = world.census()
    assert now.contents == before.contents
    assert {w: e & 0x3FF for w, e in now.entries.items()} == {
        w: e & 0x3FF for w, e in before.entries.items()
    }
    assert world.check(before.outside) == []


@pytest.mark.parametrize("why", ["pinned", "locked", "off the LRU", "no memory"])
@pytest.mark.parametrize("piece", [small(16), large(4), huge(4)], ids=lambda each: each.kind.name)
def test_a_page_that_cannot_move_stays_as_it_was(piece: Piece, why: str) -> None:
    world = World(geometry=TINY, free={} if why == "no memory" else None)
    vma = world.vma(piece)
    if why == "pinned":
        world.pin(vma, 0)
    elif why == "locked":
        world.lock(vma, 0)
    elif why == "off the LRU":
        world.off_lru(vma, 0)
    before = world.census()
    move_page(world.mm, vma.vm_start)
    drained(world)
    assert world.census().entries == before.entries
    assert world.check(before.outside) == []


def test_compaction_leaves_what_was_freed() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(2))
    folio = world.folio(vma, 0)
    world.zap(vma, 0, 1)
    frames = world.mem.nr_frames
    migrate_folio(world.kernel, folio)
    assert (world.mem.refcount.raw[folio], world.mem.nr_frames) == (0, frames)


@pytest.mark.parametrize("page", [1, 2, 3, 40, 4096])
def test_nothing_moves_where_nothing_is_mapped(page: int) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(1), hole(1), zero(1), swap(1))
    before = world.census()
    move_page(world.mm, world.address(vma, page))
    move_page(world.mm, 0x1000)
    assert world.census().entries == before.entries
    assert world.check(before.outside) == []


def test_a_store_through_an_old_translation_is_impossible() -> None:
    world = World(geometry=TINY, cpus=2)
    vma = world.vma(small(4))
    assert store(world.mm, vma.vm_start, 5)
    before = world.census()
    migrate_folio(world.kernel, world.folio(vma, 0))
    drained(world)
    assert world.check(before.outside) == []


@pytest.mark.parametrize("piece", [large(4), huge(4)], ids=["PTEs", "PMD"])
def test_a_folio_that_moved_is_shared_by_as_many_processes(piece: Piece) -> None:
    world = World(geometry=TINY)
    vma = world.vma(piece)
    child = world.fork(vma)
    old = world.folio(vma, 0)
    counts = dict(world.mem.mm_mapcounts[old])
    move_page(world.mm, vma.vm_start)
    new = world.folio(vma, 0)
    assert new != old and world.folio(child, 0) == new
    assert world.mem.mm_mapcounts[new] == counts
    assert world.mem.folio_maybe_mapped_shared(new)


def test_the_architecture_is_told_of_each_entry_that_is_back() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(2))
    child = world.fork(vma)
    told: list[tuple[Vma, int, int]] = []
    world.kernel.update_mmu_cache = lambda *of: told.append(of)
    move_page(world.mm, world.address(vma, 1))
    assert told == [(each, world.address(vma, 1), 1) for each in (vma, child)]


def test_a_page_of_a_locked_mapping_leaves_no_batch_behind() -> None:
    """Old and new folio are mlocked and munlocked at once, so that nothing refers to the old one."""
    stage = RaceWorld.parse("window+locked", "7.3", ("migrate",))()
    stage.machine.current = stage.tasks[1][0]
    stage.tasks[1][1]()
    old, new = stage.pages[0], Folio(pte_pfn(stage.table.ptes.raw[0]))
    assert new != old and not stage.kernel.mem.refcount.raw[old]
    assert stage.kernel.this_cpu.mlock.value == stage.kernel.this_cpu.lru_add.value == ()
    assert (
        stage.kernel.mem.flags.raw[new] & (PG_MLOCKED | PG_UNEVICTABLE)
        == PG_MLOCKED | PG_UNEVICTABLE
    )


def test_a_page_of_another_mapping_leaves_the_batches_as_they_are() -> None:
    world = World(geometry=TINY)
    locked = world.vma(small(1), flags=VM_DEFAULT | VM_LOCKED)
    vma = world.vma(small(1), at=0x50000000)
    cpu, waiting = world.kernel.this_cpu, world.folio(locked, 0)
    mlock_vma_folio(world.mem, cpu, waiting, locked)
    batch = cpu.mlock.value
    assert [each for each, _ in batch] == [waiting]
    old = world.folio(vma, 0)
    migrate_folio(world.kernel, old)
    assert world.folio(vma, 0) != old
    assert cpu.mlock.value == batch


def test_a_poisoned_page_stays_where_it_is() -> None:
    stage = played("poisoned")
    assert pte_pfn(stage.table.ptes.raw[0]) == stage.pages[0]


def test_the_charge_moves_along() -> None:
    world = World(geometry=TINY)
    memcg = world.kernel.new_memcg("a", usage=4)
    vma = world.vma(small(4))
    folio = world.folio(vma, 0)
    world.mem.memcg.raw[folio] = memcg.number
    migrate_folio(world.kernel, folio)
    assert world.mem.memcg.raw[world.folio(vma, 0)] == memcg.number
    assert memcg.charged == 4


def test_a_huge_page_of_a_locked_mapping_is_mlocked_where_it_comes_to() -> None:
    stage = after_a_collapse("move-pages", name="pmd+locked")
    assert stage.kernel.mem.test(Folio(pte_pfn(pmd(stage))), PG_MLOCKED)
