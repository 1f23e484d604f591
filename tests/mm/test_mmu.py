# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads and stores of user space, through the TLB."""

from __future__ import annotations

import pytest

from mthp.mm.mmu import load, store
from mthp.mm.page_vma_mapped import Lookup, page_vma_mapped_walk
from mthp.mm.pagewalk import folio_walk
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import DIRTY, YOUNG, is_huge_zero_pmd
from mthp.races.stage import START
from mthp.words.units import Pfn
from tests.small_worlds import TINY, World, small
from tests.stages import after_a_collapse, played, pmd


def test_a_store_reaches_memory() -> None:
    stage = played("store")
    assert stage.kernel.mem.content.raw[stage.pages[0]] == 200
    assert stage.kernel.cpus[1].tlb.value


@pytest.mark.parametrize(("write", "set_by_it"), [(False, YOUNG), (True, YOUNG | DIRTY)])
def test_an_access_leaves_its_mark_in_a_huge_pmd(write: bool, set_by_it: int) -> None:
    stage = after_a_collapse("referenced")
    there = pmd_ptr(stage.mm, START)
    assert there is not None
    there.page.pmds.raw[there.slot] &= ~(YOUNG | DIRTY)
    if write:
        assert store(stage.mm, START, 7)
    else:
        assert load(stage.mm, START) is not None
    assert pmd(stage) & (YOUNG | DIRTY) == set_by_it


def test_every_page_of_the_huge_zero_page_is_the_zero_page() -> None:
    """No frame that follows the zero page's is read, walked to, or found mapped there."""
    world = World(geometry=TINY)
    vma = world.vma(small(4), pages=32)
    before = world.census()
    world.kernel.fault_orders = ~0
    at = world.address(vma, 16)
    for page in (0, 1, 3, 1, 3):
        assert load(world.mm, at + page * 0x1000) == 0
    slot = pmd_ptr(world.mm, at)
    assert slot is not None and is_huge_zero_pmd(slot.page.pmds.raw[slot.slot])
    for page in range(4):
        assert folio_walk(vma, at + page * 0x1000) is None
        frame = Pfn(world.folio(vma, 0) + page)
        assert page_vma_mapped_walk(world.mm, at + page * 0x1000, frame, Lookup.SYNC) is None
    assert world.kernel.machine.current.held == []
    assert world.check(before.outside) == []
    assert store(world.mm, at + 0x1000, 7)
    assert [load(world.mm, at + page * 0x1000) for page in range(3)] == [0, 7, 0]
