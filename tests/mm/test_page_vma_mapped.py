# SPDX-License-Identifier: GPL-2.0-or-later
"""page_vma_mapped_walk(): one folio at one address, found with its lock held, or not at all."""

from __future__ import annotations

import pytest

from mthp.mm.page_vma_mapped import (
    HugeMapping,
    Lookup,
    is_wanted,
    is_wanted_pmd,
    map_pte,
    page_vma_mapped_walk,
)
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import (
    PMD_NONE,
    PTE_NONE,
    WRITE,
    Leaf,
    Pmd,
    huge_pmd,
    leaf_pte,
    mk_pte,
    table_pmd,
)
from tests.small_worlds import TINY, World, huge, large, small, swap

EVERY = pytest.mark.parametrize("lookup", list(Lookup))


def assert_nothing_is_held(world: World) -> None:
    assert world.kernel.machine.current.held == []
    assert world.kernel.pte_maps == 0


@EVERY
def test_a_page_is_found_where_it_is_mapped_and_locked(lookup: Lookup) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(2), large(2), small(10))
    for page in (0, 1, 3):
        pfn = world.table(vma).ptes.raw[page] >> 16
        found = map_pte(world.mm, world.address(vma, page), pfn, lookup)
        assert found is not None
        pte, ptl = found
        assert pte.get(0) >> 16 == pfn
        assert world.kernel.machine.current.held == [ptl]
        assert ptl.lock is world.table(vma).ptl
        ptl.release()
        pte.unmap()
    assert_nothing_is_held(world)


@EVERY
def test_another_page_is_not_and_nothing_stays_locked(lookup: Lookup) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(15), swap(), pages=64)
    other = world.table(vma).ptes.raw[1] >> 16
    for page in (0, 15, 20, 50):
        assert page_vma_mapped_walk(world.mm, world.address(vma, page), other, lookup) is None
        assert_nothing_is_held(world)


@EVERY
@pytest.mark.parametrize("page", [0, 7, 15])
def test_any_page_of_a_huge_one_is_found_by_its_pmd(lookup: Lookup, page: int) -> None:
    world = World(geometry=TINY)
    vma = world.vma(huge(4))
    folio = world.folio(vma, 0)
    found = page_vma_mapped_walk(world.mm, vma.vm_start, folio + page, lookup)
    assert isinstance(found, HugeMapping)
    assert found.pmd == pmd_ptr(world.mm, vma.vm_start)
    assert found.pmdval == world.pmd(vma)
    assert world.kernel.machine.current.held == [found.ptl]
    found.ptl.release()
    assert page_vma_mapped_walk(world.mm, vma.vm_start, folio + 16, lookup) is None
    assert_nothing_is_held(world)


def test_a_huge_page_that_is_split_on_the_way_is_found_by_its_pte() -> None:
    world = World(geometry=TINY)
    vma = world.vma(huge(4))
    folio = world.folio(vma, 0)
    pmd = pmd_ptr(world.mm, vma.vm_start)
    assert pmd is not None
    world.before_lock(pmd.page.ptl, 1, lambda: world.split_pmd(vma))
    found = page_vma_mapped_walk(world.mm, vma.vm_start, folio)
    assert found is not None and not isinstance(found, HugeMapping)
    assert found[0].get(0) >> 16 == folio
    found[1].release()
    found[0].unmap()
    assert_nothing_is_held(world)


def test_a_table_that_is_replaced_on_the_way_is_looked_at_anew() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(16))
    folio = world.folio(vma, 0)
    table = world.table(vma)
    copy = world.kernel.new_table()
    copy.ptes.raw[:] = table.ptes.raw[:]
    world.before_lock(table.ptl, 1, lambda: world.set_pmd(vma, table_pmd(copy.number)))
    found = page_vma_mapped_walk(world.mm, vma.vm_start, folio)
    assert found is not None and not isinstance(found, HugeMapping)
    assert found[1].lock is copy.ptl
    found[1].release()
    found[0].unmap()
    assert_nothing_is_held(world)


def test_who_looks_in_sync_waits_for_whoever_emptied_the_pmd_of_a_huge_page() -> None:
    world = World(geometry=TINY)
    vma = world.vma(huge(4))
    world.vma(small(16), at=0x50000000)
    folio = world.folio(vma, 0)
    world.set_pmd(vma, PMD_NONE)
    pmd = pmd_ptr(world.mm, vma.vm_start)
    assert pmd is not None
    taken: list[int] = []
    for lookup in Lookup:
        world.before_lock(pmd.page.ptl, 1, lambda: taken.append(1))
        assert page_vma_mapped_walk(world.mm, vma.vm_start, folio, lookup) is None
        assert len(taken) == (lookup is Lookup.SYNC)
    assert_nothing_is_held(world)


def test_a_migration_entry_is_wanted_by_the_negative_page() -> None:
    entry = leaf_pte(Leaf.MIGRATION, 40)
    assert is_wanted(entry, -40) and not is_wanted(entry, 40) and not is_wanted(entry, -41)
    assert is_wanted(mk_pte(40, WRITE), 40) and not is_wanted(mk_pte(40, WRITE), -40)
    assert not is_wanted(leaf_pte(Leaf.SWAP, 40), -40)
    assert not is_wanted(PTE_NONE, 0)
    mm = World(geometry=TINY).mm
    huge_one, moving = huge_pmd(32, WRITE), Pmd(leaf_pte(Leaf.MIGRATION, 32))
    for page in (31, 32, 47, 48):
        inside = page in (32, 47)
        assert is_wanted_pmd(mm, huge_one, page) is inside
        assert is_wanted_pmd(mm, moving, -page) is inside
        assert not is_wanted_pmd(mm, huge_one, -page)
        assert not is_wanted_pmd(mm, moving, page)
