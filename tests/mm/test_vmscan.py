# SPDX-License-Identifier: GPL-2.0-or-later
"""Reclaim: what is swapped out, dropped, or made old."""

from __future__ import annotations

import pytest

from mthp.machine.step import Access
from mthp.mm.mm_types import Vma
from mthp.mm.mmu import load, store
from mthp.mm.page_flags import (
    PG_DIRTY,
    PG_LOCKED,
    PG_LRU,
    PG_MLOCKED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_UNEVICTABLE,
    PG_WRITEBACK,
)
from mthp.mm.pgtable_types import (
    SWP_EXCLUSIVE,
    YOUNG,
    Leaf,
    leaf_kind,
    pte_none,
    pte_pfn,
)
from mthp.mm.vm_flags import VM_DEFAULT, VM_LOCKED
from mthp.mm.vmscan import (
    folio_alloc_swap,
    folio_end_writeback,
    shrink_active_list,
    shrink_folio,
)
from mthp.races.stage import START
from mthp.races.world import RaceWorld
from mthp.words.units import Folio
from tests.small_worlds import (
    TINY,
    Piece,
    World,
    lazyfree,
    small,
    swap,
)
from tests.stages import entry, played


def test_swap_out_leaves_an_entry() -> None:
    stage = played("swap-out")
    assert leaf_kind(entry(stage, 0)) is Leaf.SWAP
    assert stage.kernel.swap.contents[pte_pfn(entry(stage, 0))] == 100


def test_aging_clears_young() -> None:
    assert not entry(played("referenced"), 0) & YOUNG


def test_a_page_that_was_given_up_is_dropped() -> None:
    stage = played("lazyfree")
    assert pte_none(entry(stage, 0))
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 0


def swapped_world(*pieces: Piece) -> tuple[World, Vma, Folio]:
    world = World(geometry=TINY)
    vma = world.vma(*pieces)
    return world, vma, world.folio(vma, 0)


@pytest.mark.parametrize("shared", [False, True])
def test_a_page_is_swapped_out_from_every_place_that_maps_it(shared: bool) -> None:
    world, vma, folio = swapped_world(small(2))
    child = world.fork(vma) if shared else None
    content = world.mem.content.raw[folio]
    before = world.census()
    shrink_folio(world.kernel, folio, 7)
    entry = world.table(vma).ptes.raw[0]
    assert (leaf_kind(entry), pte_pfn(entry)) == (Leaf.SWAP, 7)
    assert bool(entry & SWP_EXCLUSIVE) is not shared
    assert world.kernel.swap.users == {7: 1 + shared}
    assert world.kernel.swap.contents[7] == content
    assert world.kernel.swap.cache == {} and world.mem.refcount.raw[folio] == 0
    if child is not None:
        assert load(child.vm_mm, child.vm_start) == content
    assert load(world.mm, vma.vm_start) == content
    assert world.census().contents == before.contents
    assert world.check(before.outside) == []


@pytest.mark.parametrize(
    "why", ["pinned", "locked", "off the LRU", "slot taken", "slot cached", "freed"]
)
def test_what_cannot_be_swapped_out_stays(why: str) -> None:
    world, vma, folio = swapped_world(small(2))
    swap_device = world.kernel.swap
    if why == "pinned":
        world.pin(vma, 0)
    elif why == "locked":
        world.lock(vma, 0)
    elif why == "off the LRU":
        world.off_lru(vma, 0)
    elif why == "slot taken":
        swap_device.hold(7)
    elif why == "slot cached":
        swap_device.add_to_cache(7, world.folio(vma, 1), 1)
    elif why == "freed":
        world.zap(vma, 0, 1)
    before = world.census()
    shrink_folio(world.kernel, folio, 7)
    now = world.census()
    assert now.contents == before.contents
    if why == "freed":
        assert world.mem.refcount.raw[folio] == 0
    elif why == "pinned":  # it is unmapped, and waits in the swap cache
        assert swap_device.cache == {7: folio}
        assert world.mem.test(folio, PG_SWAPCACHE)
    else:
        assert now.entries == before.entries
        assert not world.mem.test(folio, PG_SWAPCACHE)
    assert world.kernel.machine.current.held == []
    assert now.flags.get(folio, 0) & PG_LOCKED == before.flags.get(folio, 0) & PG_LOCKED


def test_a_slot_is_taken_once() -> None:
    world, vma, folio = swapped_world(small(2))
    other = world.folio(vma, 1)
    assert folio_alloc_swap(world.kernel, folio, 7)
    assert world.mem.refcount.raw[folio] == 2 and world.mem.test(folio, PG_SWAPCACHE)
    assert not folio_alloc_swap(world.kernel, other, 7)
    assert world.mem.refcount.raw[other] == 1 and not world.mem.test(other, PG_SWAPCACHE)


def test_a_write_that_ends_has_written_what_stands_there_then() -> None:
    world, vma, folio = swapped_world(small(1))
    folio_alloc_swap(world.kernel, folio, 7)
    world.mem.flags.raw[folio] |= PG_WRITEBACK
    assert store(world.mm, vma.vm_start, 77)
    folio_end_writeback(world.kernel, folio, 7)
    assert world.kernel.swap.contents[7] == 77
    assert not world.mem.test(folio, PG_WRITEBACK)
    assert world.mem.refcount.raw[folio] == 2


@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_written_and_unmapped_is_freed(mapped: bool) -> None:
    world, vma, folio = swapped_world(small(1), swap(1))
    cached = world.cache_swapped(vma, 1)
    entry = world.kernel.swap.entry_of[cached]
    world.mem.content.raw[cached] = 55
    world.mem.flags.raw[cached] |= PG_DIRTY
    if mapped:
        cached = folio
    shrink_folio(world.kernel, cached)
    assert (world.mem.refcount.raw[cached] == 0) is not mapped
    if not mapped:
        assert world.kernel.swap.contents[entry] == 55
        assert world.kernel.swap.cache == {}


@pytest.mark.parametrize("why", ["clean", "stored to", "flagged dirty", "pinned", "not given up"])
def test_what_was_given_up_is_dropped_unless_it_is_used(why: str) -> None:
    world, vma, folio = swapped_world(small(1) if why == "not given up" else lazyfree(1))
    if why == "stored to":
        assert store(world.mm, vma.vm_start, 9)
    elif why == "flagged dirty":
        world.mem.flags.raw[folio] |= PG_DIRTY
    elif why == "pinned":
        world.pin(vma, 0)
    before = world.census()
    shrink_folio(world.kernel, folio)
    now = world.census()
    if why == "clean":
        assert pte_none(world.table(vma).ptes.raw[0])
        assert world.mem.refcount.raw[folio] == 0
        assert world.mm.counters["MM_ANONPAGES"] == 0
    else:
        assert now.entries == before.entries
        kept = why in ("stored to", "flagged dirty", "not given up")
        assert world.mem.test(folio, PG_SWAPBACKED) is kept
    assert world.check(before.outside) == []


def test_aging_looks_at_every_place_and_puts_the_page_back() -> None:
    world, vma, folio = swapped_world(small(2))
    child = world.fork(vma)
    before = world.census()
    shrink_active_list(world.kernel, folio)
    for each in (vma, child):
        assert not world.table(each).ptes.raw[0] & YOUNG
        assert world.table(each).ptes.raw[1] & YOUNG
    world.khugepaged.mm_slots.clear()
    world.khugepaged.khugepaged_do_scan()
    assert world.mem.test(folio, PG_LRU)
    assert world.check(before.outside) == []
    for why in (world.off_lru, world.lock):
        why(vma, 1)
    shrink_active_list(world.kernel, world.folio(vma, 1))
    assert world.table(vma).ptes.raw[1] & YOUNG


def test_a_freed_folio_is_left_alone() -> None:
    world, vma, folio = swapped_world(small(1))
    world.zap(vma, 0, 1)
    for act in (shrink_active_list, shrink_folio):
        act(world.kernel, folio)
    assert world.mem.refcount.raw[folio] == 0
    assert world.kernel.this_cpu.lru_add.value == ()


@pytest.mark.parametrize("rival", ["swap-out", "referenced"])
@pytest.mark.parametrize("missed", [False, True])
def test_reclaim_takes_nothing_from_a_locked_mapping(rival: str, missed: bool) -> None:
    """Even where the folio's own mark got missed, which is set then."""
    stage = RaceWorld.parse("window+locked", "7.3", (rival,))()
    mem, page = stage.kernel.mem, stage.pages[0]
    if missed:
        mem.flags.raw[page] &= ~PG_MLOCKED
    stage.machine.current = stage.tasks[1][0]
    stage.tasks[1][1]()
    assert pte_pfn(entry(stage, 0)) == page
    assert mem.test(page, PG_MLOCKED)


@pytest.mark.parametrize("missed", [False, True])
def test_nor_is_a_page_dropped_there_that_was_given_up_before(missed: bool) -> None:
    world = World(geometry=TINY)
    vma = world.vma(lazyfree(1), flags=VM_DEFAULT | VM_LOCKED)
    folio = world.folio(vma, 0)
    if missed:
        world.mem.flags.raw[folio] &= ~(PG_MLOCKED | PG_UNEVICTABLE)
    shrink_folio(world.kernel, folio)
    assert world.folio(vma, 0) == folio and world.mem.test(folio, PG_MLOCKED)


def test_what_was_written_again_while_it_was_written_out_stays() -> None:
    """By a device with a plain reference, which is put by the time references are counted."""
    stage = RaceWorld.parse("pmd", "7.3", ("swap-out",))()
    mem, page = stage.kernel.mem, stage.pages[0]

    def hook(access: Access, word: object, index: int, bits: int) -> None:
        if word is mem.refcount and index == page and page in device.cache.values():
            mem.flags.raw[page] |= PG_DIRTY
            mem.content.raw[page] = 300

    device = stage.kernel.swap
    stage.machine.current = stage.tasks[1][0]
    stage.machine.on_step = hook
    stage.tasks[1][1]()
    stage.machine.on_step = None
    assert load(stage.mm, START) == 300
