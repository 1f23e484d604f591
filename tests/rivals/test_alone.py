# SPDX-License-Identifier: GPL-2.0-or-later
"""Each rival alone, straight through: it does its work, and leaves a sound world."""

from __future__ import annotations

import pytest

from mthp.mm.pagetable import TableState
from mthp.mm.pte import UFFD_WP, Leaf, leaf_kind, pte_none, pte_pfn, pte_present, pte_write
from mthp.races.cast import LAWFUL
from mthp.races.stage import START, Size, Stage
from mthp.races.world import World
from mthp.rivals.gup import PIN


def played(rival: str, size: Size = Size.WINDOW) -> Stage:
    """The stage after the rival's task ran, and nobody else's."""
    stage = World(size, "7.3", (rival,))()
    task, body = stage.tasks[1]
    stage.machine.current = task
    body()
    return stage


@pytest.mark.parametrize("size", list(Size))
@pytest.mark.parametrize("rival", LAWFUL)
def test_a_sound_world_is_left(rival: str, size: Size) -> None:
    stage = played(rival, size)
    stage.watch.at_rest([task for task, _ in stage.tasks])
    assert stage.broken == []


def entry(stage: Stage, index: int) -> int:
    return stage.table.ptes.raw[index]


def test_a_store_reaches_memory() -> None:
    stage = played("store")
    assert stage.kernel.mem.content.raw[stage.pages[0]] == 200
    assert stage.kernel.cpus[1].tlb.value


def test_a_fault_fills_a_hole() -> None:
    stage = played("fault")
    page = pte_pfn(entry(stage, 1))
    assert pte_present(entry(stage, 1)) and pte_write(entry(stage, 1))
    assert stage.kernel.mem.content.raw[page] == 201


def test_a_read_fault_maps_the_zero_page() -> None:
    assert pte_pfn(entry(played("zero-fault"), 1)) == 0
    assert pte_present(entry(played("zero-fault"), 1))


def test_a_pin_is_held_and_written_through() -> None:
    stage = played("gup")
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 1 + PIN
    assert stage.kernel.mem.content.raw[stage.pages[0]] == 300
    assert not stage.kernel.cpus[1].irqs_off.value


def test_a_zap_empties_and_gives_the_table_back() -> None:
    stage = played("zap")
    assert all(map(pte_none, stage.table.ptes.raw))
    assert stage.table.state is TableState.DEFERRED
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 0


def test_migration_moves_contents() -> None:
    stage = played("migrate")
    page = pte_pfn(entry(stage, 0))
    assert page != stage.pages[0]
    assert stage.kernel.mem.content.raw[page] == 100


def test_swap_out_leaves_an_entry() -> None:
    stage = played("swap-out")
    assert leaf_kind(entry(stage, 0)) is Leaf.SWAP
    assert stage.kernel.swap.contents[pte_pfn(entry(stage, 0))] == 100


def test_swap_in_brings_the_page_back() -> None:
    stage = played("swap-in")
    assert pte_present(entry(stage, 1))
    assert stage.kernel.mem.content.raw[pte_pfn(entry(stage, 1))] == 201


def test_remap_leaves_a_fresh_mapping() -> None:
    stage = played("remap")
    assert stage.vma not in stage.mm.vmas
    assert [vma.vm_start for vma in stage.mm.vmas] == [START]


def test_fork_shares_read_only() -> None:
    stage = played("fork")
    assert stage.kernel.mem.mapcount.raw[stage.pages[0]] == 2
    assert not pte_write(entry(stage, 0))


def test_write_protection_is_set() -> None:
    stage = played("uffd-wp")
    assert entry(stage, 0) & UFFD_WP
    assert not pte_write(entry(stage, 0))


def test_a_guest_writes_through_its_mapping() -> None:
    assert played("guest").kernel.mem.content.raw[1] == 400
