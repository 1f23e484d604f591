# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables: slots, their locks, and tables that are mapped."""

from __future__ import annotations

import pytest

from mthp.mm.pgtable import (
    PteMap,
    pgtable_trans_huge_deposit,
    pgtable_trans_huge_withdraw,
    pmd_lock,
    pmd_populate,
    pmd_ptr,
    pte_offset_map,
)
from mthp.mm.pgtable_types import PMD_NONE, pmd_is_table, pmd_pgtable
from mthp.words.results import KernelBug
from tests.small_worlds import TINY, World, small


@pytest.fixture
def world() -> World:
    return World(geometry=TINY)


def test_pmd_slots_are_pointers(world: World) -> None:
    vma = world.vma(small(16), small(16))
    first, second = pmd_ptr(world.mm, vma.vm_start), pmd_ptr(world.mm, vma.vm_start + 0x10000)
    assert first is not None and second is not None
    assert first == pmd_ptr(world.mm, vma.vm_start + 0xFFFF)
    assert first != second
    assert first.page is second.page
    assert pmd_ptr(world.mm, 0x7F0000000000) is None


def test_changing_a_pmd_wants_its_lock(world: World) -> None:
    vma = world.vma(small(16))
    pmd = pmd_ptr(world.mm, vma.vm_start)
    assert pmd is not None
    number = pmd_pgtable(world.pmd(vma))
    for change in (
        lambda: pmd_populate(pmd, number),
        lambda: pgtable_trans_huge_deposit(pmd, number),
        lambda: pgtable_trans_huge_withdraw(pmd),
    ):
        with pytest.raises(KernelBug, match="must be held"):
            change()
    with pmd_lock(pmd):
        pgtable_trans_huge_deposit(pmd, number)
        assert pgtable_trans_huge_withdraw(pmd) == number
        pmd_populate(pmd, number)
    assert pmd_is_table(world.pmd(vma))
    assert pmd.page.deposited == {}


def test_mapped_tables_are_counted(world: World) -> None:
    vma = world.vma(small(16))
    with PteMap(world.kernel, world.table(vma), 2) as pte:
        assert world.kernel.pte_maps == 1
        assert pte.get(1) == world.table(vma).ptes.raw[3]
        pte.unmap()
        with pytest.raises(KernelBug, match="unmapped twice"):
            pte.unmap()
    assert world.kernel.pte_maps == 0
    assert pte_offset_map(world.kernel, PMD_NONE, vma.vm_start) is None
