# SPDX-License-Identifier: GPL-2.0-or-later
"""KSM: equal pages become one, read-only."""

from __future__ import annotations

import pytest

from mthp.mm.folio import lru_add_drain
from mthp.mm.ksm import (
    ksm_do_scan,
    replace_page,
    try_to_merge_one_page,
    try_to_merge_with_ksm_page,
    write_protect_page,
)
from mthp.mm.mm_types import Vma
from mthp.mm.mmu import load
from mthp.mm.page_flags import PAGE_ANON_EXCLUSIVE, PG_ANON, PG_DIRTY, PG_UPTODATE
from mthp.mm.pgtable_types import (
    DIRTY,
    PMD_NONE,
    WRITE,
    ZERO_PFN,
    pte_pfn,
    pte_present,
    pte_write,
)
from mthp.mm.vm_flags import VM_DEFAULT, VM_MERGEABLE
from mthp.races.stage import Size
from mthp.races.world import RaceWorld
from mthp.words.units import Folio, Pfn
from tests.small_worlds import (
    TINY,
    Piece,
    World,
    large,
    small,
    swap,
)
from tests.stages import after_a_collapse, entry, played


def test_ksm_maps_the_page_of_another_process_read_only() -> None:
    stage = played("ksm")
    assert pte_pfn(entry(stage, 0)) == stage.elsewhere
    assert not pte_write(entry(stage, 0))
    assert stage.kernel.mem.mapcount.raw[stage.elsewhere] == 2
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 0


def test_ksm_leaves_a_page_of_other_contents() -> None:
    stage = RaceWorld(Size.WINDOW, "7.3", ("ksm",))()
    stage.kernel.mem.content.raw[stage.pages[0]] = 7
    stage.machine.current = stage.tasks[1][0]
    stage.tasks[1][1]()
    assert pte_pfn(entry(stage, 0)) == stage.pages[0]


def test_ksm_maps_the_zero_page_for_zeroes() -> None:
    assert pte_present(entry(played("ksm-zero"), 0))
    assert pte_pfn(entry(played("ksm-zero"), 0)) == 0


def test_ksm_merges_a_page_of_what_was_huge() -> None:
    stage = after_a_collapse("ksm")
    assert pte_pfn(entry(stage, 0)) == stage.elsewhere


def mergeable(*pieces: Piece) -> tuple[World, Vma]:
    world = World(geometry=TINY)
    return world, world.vma(*pieces, flags=VM_DEFAULT | VM_MERGEABLE)


def merge(world: World, vma: Vma, page: int, kpage: int) -> bool:
    """Look at a page of a mapping; whether kpage is mapped there then."""
    ksm_do_scan(world.mm, world.address(vma, page), Folio(Pfn(kpage)))
    assert world.kernel.machine.current.held == []
    return pte_pfn(world.table(vma, world.address(vma, page)).ptes.raw[page]) == kpage


def test_an_equal_page_becomes_the_other_one_and_is_freed() -> None:
    world, vma = mergeable(small(3))
    one, two = world.folio(vma, 0), world.folio(vma, 1)
    world.mem.content.raw[two] = world.mem.content.raw[one]
    world.mem.page_flags.raw[one] &= ~PAGE_ANON_EXCLUSIVE
    world.table(vma).ptes.raw[0] &= ~WRITE
    before = world.census()
    assert merge(world, vma, 1, one)
    assert world.table(vma).ptes.raw[1] & (WRITE | DIRTY) == 0
    assert (world.mem.refcount.raw[one], world.mem.refcount.raw[two]) == (2, 0)
    assert world.census().contents == before.contents
    assert world.check(before.outside) == []


@pytest.mark.parametrize("why", ["contents", "pinned", "used", "not mergeable", "unmapped"])
def test_what_is_not_merged(why: str) -> None:
    world, vma = mergeable(small(3))
    one, two = world.folio(vma, 0), world.folio(vma, 1)
    world.mem.page_flags.raw[one] &= ~PAGE_ANON_EXCLUSIVE
    world.table(vma).ptes.raw[0] &= ~WRITE
    if why != "contents":
        world.mem.content.raw[two] = world.mem.content.raw[one]
    if why in ("pinned", "used"):
        world.pin(vma, 1, 1024 if why == "pinned" else 1)
    if why == "not mergeable":
        vma.vm_flags = VM_DEFAULT
    page = 8 if why == "unmapped" else 1
    before = world.census()
    assert not merge(world, vma, page, one)
    now = world.census()
    assert now.contents == before.contents
    assert world.check(before.outside) == []
    if why in ("pinned", "used", "not mergeable"):
        assert now.entries == before.entries
        assert world.mem.page_flags.raw[two] & PAGE_ANON_EXCLUSIVE


def test_zeroes_become_the_zero_page() -> None:
    world, vma = mergeable(small(3))
    world.mem.content.raw[world.folio(vma, 1)] = 0
    before = world.census()
    assert not merge(world, vma, 0, 0)
    assert merge(world, vma, 1, 0)
    assert world.mm.counters["MM_ANONPAGES"] == 2
    assert world.check(before.outside) == []


def test_a_page_is_not_merged_with_itself() -> None:
    world, vma = mergeable(small(1))
    one = world.folio(vma, 0)
    before = world.census()
    ksm_do_scan(world.mm, vma.vm_start, one)
    assert world.census().entries == before.entries
    assert world.check(before.outside) == []


def test_a_page_in_the_swap_cache_is_merged_too() -> None:
    world, vma = mergeable(small(1), swap(1))
    world.cache_swapped(vma, 1)
    assert load(world.mm, world.address(vma, 1)) == world.kernel.swap.contents[1]
    two = world.folio(vma, 1)
    world.mem.content.raw[two] = 0
    before = world.census()
    assert merge(world, vma, 1, 0)
    assert world.mem.refcount.raw[two] == 0 or world.kernel.swap.cache == {}
    assert world.check(before.outside) == []


@pytest.mark.parametrize("same_place", [False, True])
def test_a_cached_page_of_another_place_is_copied_when_it_is_swapped_in(same_place: bool) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(2), swap(1))
    cached = world.cache_swapped(vma, 2)
    mem = world.mem
    mem.flags.raw[cached] |= PG_ANON
    mem.anon_vma.raw[cached] = vma.anon_vma.number if vma.anon_vma else 0
    mem.index.raw[cached] = (world.address(vma, 2) >> 12) + (0 if same_place else 1)
    mem.refcount.raw[cached] = 1
    content = mem.content.raw[cached]
    assert load(world.mm, world.address(vma, 2)) == content
    mapped = world.folio(vma, 2)
    assert (mapped == cached) is same_place
    assert world.kernel.vmstat.events["ksm_swpin_copy"] == (not same_place)
    if not same_place:
        wanted = PG_DIRTY | PG_UPTODATE
        assert mem.flags.raw[mapped] & wanted == wanted
        assert (mem.order.raw[mapped], mem.mapcount.raw[cached]) == (0, 0)
        assert list(world.kernel.swap.cache.values()) == [cached]
        assert mem.refcount.raw[cached] == 1  # the swap cache's
    assert world.kernel.machine.current.held == []
    assert mem.refcount.raw[mapped] - len(world.kernel.this_cpu.lru_add.value) == 1


def test_it_is_said_whether_a_page_was_merged() -> None:
    world, vma = mergeable(small(2), large(1))
    for page, merged in ((0, False), (1, True)):
        folio = world.folio(vma, page)
        world.mem.content.raw[folio] = 0 if merged else 5
        world.mem.folio_get(folio)
        assert (
            try_to_merge_one_page(vma, world.address(vma, page), folio, Folio(ZERO_PFN)) is merged
        )
    folio = world.folio(vma, 2)
    world.mem.content.raw[folio + 1] = 0
    world.mem.folio_get(folio)
    address = world.address(vma, 3)
    # The large folio is split first, and that puts the zero page there.
    assert not try_to_merge_with_ksm_page(world.mm, address, Pfn(folio + 1), Folio(ZERO_PFN))
    assert pte_pfn(world.table(vma).ptes.raw[3]) == ZERO_PFN
    assert not try_to_merge_with_ksm_page(world.mm, 0x1000, Pfn(folio + 1), Folio(ZERO_PFN))


@pytest.mark.parametrize("why", ["pinned", "no table"])
def test_what_cannot_be_merged_after_all_is_said_not_to_be(why: str) -> None:
    world, vma = mergeable(large(2, refs=why == "pinned"))
    page = world.folio(vma, 0)
    world.mem.content.raw[page] = 0
    if why == "pinned":  # a folio in use is not split
        world.mem.folio_get(page)
        assert not try_to_merge_one_page(vma, vma.vm_start, page, Folio(ZERO_PFN))
    else:  # it was collapsed or moved away since the page was write-protected
        pteval = world.table(vma).ptes.raw[0]
        world.set_pmd(vma, PMD_NONE)
        assert not replace_page(vma, vma.vm_start, page, Folio(ZERO_PFN), pteval)
    assert world.mem.folio_mapcount(page) == 4


def test_a_merged_page_gives_its_swap_slot_up() -> None:
    world, vma = mergeable(swap(1, shared=True))
    device = world.kernel.swap
    device.contents[1] = 0
    device.synchronous = False
    assert load(world.mm, vma.vm_start) == 0
    cached = world.folio(vma, 0)
    assert device.cache == {1: cached}
    lru_add_drain(world.mem, world.kernel.this_cpu)
    assert merge(world, vma, 0, 0)
    assert device.cache == {} and world.mem.refcount.raw[cached] == 0


@pytest.mark.parametrize("dirty", [True, False])
def test_a_store_that_only_the_entry_knows_of_is_remembered(dirty: bool) -> None:
    world, vma = mergeable(small(1, without=0 if dirty else DIRTY, flags_without=PG_DIRTY))
    folio = world.folio(vma, 0)
    world.mem.folio_get(folio)
    entry = write_protect_page(vma, vma.vm_start, folio)
    assert entry is not None and not entry & (WRITE | DIRTY)
    assert world.mem.test(folio, PG_DIRTY) is dirty
