# SPDX-License-Identifier: GPL-2.0-or-later
"""madvise(): what MADV_DONTNEED empties."""

from __future__ import annotations

import pytest

from mthp.mm.madvise import MADV_DONTNEED, MADV_FREE, LockMode, do_madvise
from mthp.mm.mm_types import TableState
from mthp.mm.mmu import store
from mthp.mm.pgtable_types import (
    pte_none,
    pte_pfn,
)
from mthp.mm.reports import Zapped, Zapping
from mthp.mm.vm_flags import VM_DEFAULT, VM_LOCKED
from mthp.races.world import RaceWorld
from tests.small_worlds import (
    TINY,
    World,
    small,
)
from tests.stages import entry, played


def test_a_zap_empties_and_gives_the_table_back() -> None:
    stage = played("zap")
    assert all(map(pte_none, stage.table.ptes.raw))
    assert stage.table.state is TableState.DEFERRED
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 0


@pytest.mark.parametrize("rival", ["zap-vma", "zap-page-vma"])
def test_a_zap_under_the_vma_lock_empties(rival: str) -> None:
    stage = played(rival)
    assert pte_none(entry(stage, 0))
    assert stage.vma.vm_lock.value == 0


def test_a_store_through_an_old_translation_would_be_lost() -> None:
    world = World(geometry=TINY, cpus=2)
    vma = world.vma(small(3))
    for page in range(3):
        assert store(world.mm, world.address(vma, page), 5)
    do_madvise(world.mm, world.address(vma, 0), world.address(vma, 2), MADV_FREE)
    left = [entry.vpn - (vma.vm_start >> 12) for entry in world.kernel.cpus[0].tlb.value]
    assert left == [2]


@pytest.mark.parametrize("lock_mode", [LockMode.MMAP_READ, LockMode.VMA_READ])
@pytest.mark.parametrize("vma_lock_free", [True, False])
def test_dontneed_empties_a_range_that_is_mapped(lock_mode: LockMode, vma_lock_free: bool) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(16), at=0x50000000)
    vma.vm_lock.value = 0 if vma_lock_free else -1
    facts: list[object] = []
    world.kernel.report = facts.append
    do_madvise(world.mm, 0x40000000, 0x40001000, MADV_DONTNEED, lock_mode)
    assert not [fact for fact in facts if isinstance(fact, Zapped) and fact.start >= 0x50000000]
    do_madvise(world.mm, vma.vm_start + 0x1000, vma.vm_start + 0x3000, MADV_DONTNEED, lock_mode)
    assert [pte_none(pte) for pte in world.table(vma).ptes.raw[:4]] == [False, True, True, False]
    by = world.kernel.machine.current.name
    assert facts[-1] == Zapped(world.mm, vma.vm_start + 0x1000, vma.vm_start + 0x3000, by)
    assert vma.vm_lock.value == (0 if vma_lock_free else -1)
    assert world.kernel.machine.current.held == []


def test_a_range_that_reaches_into_another_mapping_empties_both() -> None:
    world = World(geometry=TINY)
    first = world.vma(small(8), pages=8)
    second = world.vma(small(8), at=first.vm_end, pages=8)
    do_madvise(world.mm, first.vm_start + 0x6000, first.vm_end + 0x4000, MADV_DONTNEED)
    assert [pte_none(pte) for pte in world.table(second).ptes.raw] == [
        6 <= i < 12 for i in range(16)
    ]


def test_a_mapping_that_begins_where_the_range_ends_is_left_alone() -> None:
    """It is locked: were it asked, the advice would fail."""
    world = World(geometry=TINY)
    first = world.vma(small(8), pages=8)
    world.vma(small(8), at=first.vm_end, pages=8, flags=VM_DEFAULT | VM_LOCKED)
    facts: list[object] = []
    world.kernel.report = facts.append
    do_madvise(world.mm, first.vm_start, first.vm_end, MADV_DONTNEED)
    mm, start, end = world.mm, first.vm_start, first.vm_end
    by = world.kernel.machine.current.name
    assert facts == [Zapping(mm, start, end), Zapped(mm, start, end, by)]


@pytest.mark.parametrize("rival", ["zap", "zap-vma", "lazyfree"])
def test_a_locked_mapping_keeps_its_pages(rival: str) -> None:
    stage = RaceWorld.parse("pmd+locked", "7.3", (rival,))()
    stage.machine.current = stage.tasks[1][0]
    stage.tasks[1][1]()
    assert pte_pfn(entry(stage, 0)) == stage.pages[0]
    assert not stage.watch.ghost.observations.zapped


@pytest.mark.parametrize("rival", ["zap", "zap-vma"])
def test_every_mapping_of_the_range_is_emptied(rival: str) -> None:
    stage = RaceWorld.parse("window+two-vmas", "7.3", (rival,))()
    stage.machine.current = stage.tasks[1][0]
    stage.tasks[1][1]()
    assert not any(stage.table.ptes.raw)
