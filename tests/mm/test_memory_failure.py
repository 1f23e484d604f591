# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that failed is unmapped and kept."""

from __future__ import annotations

import pytest

from mthp.mm.folio import folio_add_lru
from mthp.mm.memory_failure import memory_failure
from mthp.mm.mmu import load
from mthp.mm.page_flags import PAGE_ANON_EXCLUSIVE, PAGE_HWPOISON, PG_ACTIVE, PG_LOCKED, PG_LRU
from mthp.mm.pgtable_types import (
    PTE_NONE,
    Leaf,
    leaf_kind,
    pte_pfn,
)
from mthp.mm.reports import Poisoned
from mthp.words.units import Pfn
from tests.small_worlds import (
    TINY,
    World,
    large,
    small,
    swap,
)
from tests.stages import entry, played


def test_failed_memory_is_unmapped_and_kept() -> None:
    stage = played("hwpoison")
    assert leaf_kind(entry(stage, 0)) is Leaf.HWPOISON
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 1
    assert stage.kernel.mem.mapcount.raw[stage.pages[0]] == 0


def failed(world: World, page: Pfn) -> list[object]:
    """What is reported when a page's memory fails."""
    facts: list[object] = []
    world.kernel.report = facts.append
    memory_failure(world.kernel, page)
    world.kernel.report = lambda _: None
    assert world.mem.page_flags.raw[page] & PAGE_HWPOISON
    assert world.kernel.machine.current.held == []
    return facts


def test_a_page_is_taken_from_every_process_that_maps_it() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(2))
    child = world.fork(vma)
    folio = world.folio(vma, 0)
    world.mem.flags.raw[folio] |= PG_ACTIVE
    assert failed(world, folio) == [Poisoned(folio, True)]
    for each in (vma, child):
        pte = world.table(each).ptes.raw[0]
        assert (leaf_kind(pte), pte_pfn(pte)) == (Leaf.HWPOISON, folio)
        assert each.vm_mm.counters["MM_ANONPAGES"] == 1
    mem = world.mem
    assert (mem.refcount.raw[folio], mem.mapcount.raw[folio]) == (1, 0)
    assert mem.flags.raw[folio] & (PG_LRU | PG_ACTIVE | PG_LOCKED) == 0
    assert not mem.page_flags.raw[folio] & PAGE_ANON_EXCLUSIVE
    assert load(world.mm, vma.vm_start) is None


def test_a_process_that_has_dropped_the_page_is_left_alone() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(2))
    child = world.fork(vma)
    folio = world.folio(vma, 0)
    world.zap(child, 0, 1)
    assert failed(world, folio) == [Poisoned(folio, True)]
    assert world.table(child).ptes.raw[0] == PTE_NONE
    assert child.vm_mm.counters["MM_ANONPAGES"] == 1


def test_a_page_that_waits_in_a_batch_is_taken_too() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(2))
    folio = world.folio(vma, 0)
    world.off_lru(vma, 0)
    folio_add_lru(world.mem, world.kernel.this_cpu, folio)
    assert failed(world, folio) == [Poisoned(folio, True)]
    assert world.mem.refcount.raw[folio] == 1


def test_a_page_somebody_isolated_stays_mapped() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(2))
    folio = world.folio(vma, 0)
    world.off_lru(vma, 0)
    before = world.census()
    assert failed(world, folio) == [Poisoned(folio, False)]
    assert world.census().entries == before.entries


def test_a_page_in_the_swap_cache_stays_there() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(1), swap(1))
    cached = world.cache_swapped(vma, 1)
    assert failed(world, cached) == [Poisoned(cached, False)]
    assert list(world.kernel.swap.cache.values()) == [cached]


@pytest.mark.parametrize("page", [0, 2])
def test_a_page_of_a_large_folio_is_only_marked(page: int) -> None:
    world = World(geometry=TINY)
    vma = world.vma(large(2))
    folio = world.folio(vma, 0)
    before = world.census()
    assert failed(world, Pfn(folio + page)) == [Poisoned(Pfn(folio + page), False)]
    assert world.census().entries == before.entries
    assert world.mem.refcount.raw[folio] == 5
    assert not world.mem.test(folio, PG_LOCKED)


def test_a_free_page_is_only_marked() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(1))
    folio = world.folio(vma, 0)
    world.zap(vma, 0, 1)
    world.mem.flags.raw[folio] |= PG_LRU
    assert failed(world, folio) == []
    assert world.mem.refcount.raw[folio] == 0
    assert world.mem.test(folio, PG_LRU)


@pytest.mark.parametrize(("order", "page"), [(0, 0), (2, 1), (3, 6), (4, 9)])
@pytest.mark.parametrize("drained", [False, True])
def test_a_free_page_is_never_handed_out(order: int, page: int, drained: bool) -> None:
    """It may lie in a block of the free lists or of a per-CPU list; the rest of it stays free."""
    world = World(geometry=TINY, free={4: 1})
    mem, node = world.mem, world.mem.allocator.nodes[0]
    folio = mem.folio_alloc(order)
    assert folio is not None
    mem.folio_put(folio)
    if drained:
        node.drain()
    free = node.free_frames()
    assert failed(world, Pfn(folio + page)) == []
    assert node.free_frames() == free - 1
    taken = [mem.folio_alloc(0) for _ in range(free - 1)]
    assert None not in taken and len(set(taken)) == free - 1
    assert folio + page not in taken and mem.folio_alloc(0) is None
