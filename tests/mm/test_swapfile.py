# SPDX-License-Identifier: GPL-2.0-or-later
"""Swap slots: who uses them, and what becomes of them."""

from __future__ import annotations

import pytest

from mthp.mm.page_flags import PAGE_ANON_EXCLUSIVE, PG_DIRTY, PG_LOCKED, PG_SWAPCACHE, PG_WRITEBACK
from mthp.mm.pgtable_types import (
    SOFT_DIRTY,
    UFFD_WP,
    WRITE,
    Leaf,
    leaf_kind,
    leaf_pte,
    pte_pfn,
    pte_present,
    pte_write,
)
from mthp.mm.swapfile import folio_free_swap, free_swap_cache, unuse_mm
from mthp.races.stage import SWAP_SLOT
from tests.small_worlds import (
    TINY,
    World,
    hole,
    leaf,
    small,
    swap,
    zero,
)
from tests.stages import entry, played


def test_swapoff_brings_the_page_back_read_only() -> None:
    stage = played("swapoff")
    assert pte_present(entry(stage, 1)) and not pte_write(entry(stage, 1))
    assert not stage.kernel.swap.users and not stage.kernel.swap.cache


def test_a_slot_is_used_again_with_other_contents() -> None:
    stage = played("slot-reuse")
    assert leaf_kind(entry(stage, 1)) is Leaf.SWAP
    assert pte_pfn(entry(stage, 1)) == SWAP_SLOT + 1
    assert stage.kernel.swap.contents[SWAP_SLOT + 1] == 201


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_a_page_comes_back_read_only_with_its_marks(shared: bool, cached: bool) -> None:
    world = World(geometry=TINY)
    vma = world.vma(swap(1), swap(1, uffd=True, shared=shared), small(1))
    if cached:
        world.cache_swapped(vma, 1)
    content = world.kernel.swap.contents[3]
    world.mm.counters["MM_SWAPENTS"] = 2
    unuse_mm(world.mm, world.address(vma, 1))
    pte = world.table(vma).ptes.raw[1]
    assert pte_present(pte) and pte & (WRITE | SOFT_DIRTY | UFFD_WP) == SOFT_DIRTY | UFFD_WP
    folio = world.folio(vma, 1)
    assert world.mem.content.raw[folio] == content
    assert bool(world.mem.page_flags.raw[folio] & PAGE_ANON_EXCLUSIVE) is not shared
    assert world.kernel.swap.users == {1: 1} and world.kernel.swap.cache == {}
    assert (world.mm.counters["MM_SWAPENTS"], world.mm.counters["MM_ANONPAGES"]) == (1, 2)
    assert not world.mem.test(folio, PG_LOCKED | PG_SWAPCACHE) and world.mem.test(folio, PG_DIRTY)
    assert world.kernel.machine.current.held == []


def test_a_page_that_another_place_brought_back_is_mapped_there_too() -> None:
    world = World(geometry=TINY)
    vma = world.vma(swap(1))
    child = world.fork(vma)
    unuse_mm(world.mm, vma.vm_start)
    assert world.mem.test(world.folio(vma, 0), PG_SWAPCACHE)
    unuse_mm(child.vm_mm, vma.vm_start)
    folio = world.folio(vma, 0)
    assert world.folio(child, 0) == folio
    assert world.mem.mapcount.raw[folio] == 2
    assert world.kernel.swap.users == {} and world.kernel.swap.cache == {}
    assert world.check(world.census().outside) == []


@pytest.mark.parametrize("page", [0, 1, 2, 3, 20, 4096])
def test_only_swapped_pages_come_back(page: int) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(1), hole(1), zero(1), leaf(Leaf.MIGRATION))
    before = world.census()
    unuse_mm(world.mm, world.address(vma, page))
    unuse_mm(world.mm, 0x1000)
    assert world.census().entries == before.entries
    assert world.check(before.outside) == []


@pytest.mark.parametrize("kind", [Leaf.MIGRATION, Leaf.GUARD, Leaf.HWPOISON])
def test_an_entry_of_another_kind_names_no_slot(kind: Leaf) -> None:
    """Whatever number it holds: here that of a slot in use."""
    world = World(geometry=TINY)
    vma = world.vma(swap(1), hole(1))
    table = world.table(vma)
    table.ptes.raw[1] = leaf_pte(kind, pte_pfn(table.ptes.raw[0]))
    before = list(table.ptes.raw)
    unuse_mm(world.mm, world.address(vma, 1))
    assert list(table.ptes.raw) == before
    assert world.kernel.swap.users == {1: 1} and world.kernel.swap.cache == {}


@pytest.mark.parametrize("why", ["cannot be read", "no memory"])
def test_a_page_that_cannot_be_read_stays_out(why: str) -> None:
    world = World(geometry=TINY, free={} if why == "no memory" else None)
    vma = world.vma(swap(1))
    if why == "cannot be read":
        world.kernel.swap.failing.add(1)
    before = world.census()
    unuse_mm(world.mm, vma.vm_start)
    assert world.census().entries == before.entries
    assert world.kernel.swap.users == {1: 1}
    assert world.kernel.machine.current.held == []


@pytest.mark.parametrize("why", ["free", "named", "written", "not cached"])
def test_a_slot_is_given_up_once_nobody_names_it(why: str) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(1), swap(1))
    cached = world.cache_swapped(vma, 1)
    mem = world.mem
    if why != "named":
        world.kernel.swap.put_users(1, 1)
    if why == "written":
        mem.flags.raw[cached] |= PG_WRITEBACK
    if why == "not cached":
        cached = world.folio(vma, 0)
    mem.flags.raw[cached] &= ~PG_DIRTY
    mem.folio_get(cached)
    refs = mem.refcount.raw[cached]
    folio_free_swap(world.kernel, cached)
    given_up = why == "free"
    assert mem.test(cached, PG_DIRTY) is given_up
    assert mem.refcount.raw[cached] == refs - given_up
    assert (world.kernel.swap.cache == {}) is given_up


@pytest.mark.parametrize("why", ["free", "mapped", "locked", "not cached"])
def test_the_last_one_to_unmap_gives_the_slot_up(why: str) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(1), swap(1))
    cached = world.cache_swapped(vma, 1)
    world.kernel.swap.put_users(1, 1)
    mem = world.mem
    mem.folio_get(cached)
    if why == "mapped":
        mem.mapcount.raw[cached] = 1
    elif why == "locked":
        mem.flags.raw[cached] |= PG_LOCKED
    free_swap_cache(world.kernel, world.folio(vma, 0) if why == "not cached" else cached)
    assert (world.kernel.swap.cache == {}) is (why == "free")
    assert mem.test(cached, PG_LOCKED) is (why == "locked")
