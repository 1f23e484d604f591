# SPDX-License-Identifier: GPL-2.0-or-later
"""A large folio becomes small ones where it is."""

from __future__ import annotations

import pytest

from mthp.mm.huge_memory_split import deferred_split_scan, split_huge_pages_pid, thp_underused
from mthp.mm.list_lru import Sublist
from mthp.mm.madvise import MADV_DONTNEED, do_madvise
from mthp.mm.mm_types import MM_ANONPAGES, Vma
from mthp.mm.mmu import load, store
from mthp.mm.page_flags import PAGE_HWPOISON, PG_DIRTY, PG_PARTIALLY_MAPPED
from mthp.mm.pgtable_types import SOFT_DIRTY, YOUNG, pmd_is_table, pte_pfn, zero_pte
from mthp.mm.shrinker import drop_slab
from mthp.mm.vm_flags import VM_DEFAULT, VM_LOCKED
from mthp.words.results import KernelBug
from mthp.words.units import Folio
from tests.small_worlds import TINY, World, hole, huge, large, small
from tests.stages import after_a_collapse, at, entry, played, pmd

ROOT = Sublist(0, 0)


def queue(world: World, folio: Folio) -> None:
    world.mem.deferred_split.add(folio, ROOT)


def stats(world: World, *names: str) -> dict[str, int]:
    """Counters by the names that the recorded programs give them."""
    vmstat = world.kernel.vmstat
    values = {f"{order}.{name}": n for (order, name), n in vmstat.mthp.items()}
    values.update((f"v.{name}", n) for name, n in vmstat.events.items())
    return {name: n for name, n in values.items() if n and (not names or name in names)}


def zap(world: World, vma: Vma, first: int, count: int) -> None:
    start = world.address(vma, first)
    do_madvise(world.mm, start, start + (count << TINY.page_shift), MADV_DONTNEED)


def held_and_released(world: World) -> None:
    assert world.kernel.machine.current.held == []
    assert world.kernel.pte_maps == 0


def test_a_large_folio_is_split_where_it_is() -> None:
    stage = played("split-large")
    first = stage.pages[0]
    assert [pte_pfn(entry(stage, i)) for i in range(2)] == [first, first + 1]
    assert list(stage.kernel.mem.order.raw[first : first + 2]) == [0, 0]
    assert list(stage.kernel.mem.refcount.raw[first : first + 2]) == [1, 1]
    assert list(stage.kernel.mem.mapcount.raw[first : first + 2]) == [1, 1]


@pytest.mark.parametrize("rival", ["split", "ksm", "uffd-move"])
def test_a_huge_page_is_split_into_pages(rival: str) -> None:
    stage = after_a_collapse(rival)
    assert pmd_is_table(pmd(stage))
    page = pte_pfn(at(stage, stage.address(1)))
    assert stage.kernel.mem.order.raw[page] == 0


def test_a_folio_that_was_freed_is_not_split() -> None:
    world = World(geometry=TINY)
    folio = world.folio(world.vma(large(2)), 0)
    world.mem.refcount.raw[folio] = 0
    queue(world, folio)
    flags = world.mem.flags.raw[folio]
    assert deferred_split_scan(world.kernel, ROOT, 1) is None
    assert (world.mem.refcount.raw[folio], world.mem.flags.raw[folio]) == (0, flags)
    assert world.mem.deferred_split.count(ROOT) == 1


@pytest.mark.parametrize("lock", ["mmap_lock", "anon_vma"])
def test_a_split_waits_for_mmap_lock_and_anon_vma(lock: str) -> None:
    world = World(geometry=TINY)
    vma = world.vma(large(2))
    assert vma.anon_vma is not None
    sem = world.mm.mmap_lock if lock == "mmap_lock" else vma.anon_vma.rwsem
    world.held_by_another(sem.write)
    with pytest.raises(KernelBug, match="waits for"):
        split_huge_pages_pid(world.mm, vma.vm_start)
    assert world.orders(vma)[0] == 2


def test_a_partly_unmapped_folio_waits_for_the_shrinker_and_is_split_by_it() -> None:
    world = World(geometry=TINY)
    vma = world.vma(large(3), hole(8))
    world.mem.content.raw[world.folio(vma, 0) + 3] = 0
    zap(world, vma, 6, 2)
    assert stats(world) == {"3.split_deferred": 1, "3.nr_anon_partially_mapped": 1}
    assert world.mem.deferred_split.count(ROOT) == 1 and world.orders(vma)[0] == 3
    before = world.census()
    drop_slab(world.kernel)
    assert stats(world) == {"3.split_deferred": 1, "3.nr_anon": -1, "3.split": 1}
    assert world.orders(vma)[:8] == [0, 0, 0, -1, 0, 0, -1, -1]
    assert world.table(vma).ptes.raw[3] == zero_pte(YOUNG | SOFT_DIRTY)
    assert world.mm.counters[MM_ANONPAGES] == 5
    assert world.mem.deferred_split.count(ROOT) == 0
    assert world.census().contents == before.contents and world.check(before.outside) == []
    assert store(world.mm, world.address(vma, 3), 5) and load(world.mm, world.address(vma, 3)) == 5
    held_and_released(world)


def test_splitting_a_whole_folio_by_its_ptes_counts_it_as_deferred_on_the_way() -> None:
    """rmap sees it lose one page after the other; a huge PMD is taken away at once."""
    world = World(geometry=TINY)
    vma = world.vma(large(3), hole(8), huge(4))
    world.mem.flags.raw[world.folio(vma, 16)] &= ~PG_DIRTY
    for page in (0, 16):
        split_huge_pages_pid(world.mm, world.address(vma, page))
    assert stats(world) == {
        "3.split_deferred": 1,
        "3.nr_anon": -1,
        "3.split": 1,
        "4.nr_anon": -1,
        "4.split": 1,
        "v.thp_split_page": 1,
        "v.thp_split_pmd": 1,
    }
    assert world.mem.test(world.folio(vma, 20), PG_DIRTY)
    held_and_released(world)


@pytest.mark.parametrize("zeroes, limit, is_underused", [
    (9, 8, True), (8, 8, False), (16, 15, False), (1, 0, True), (0, 0, False),
])  # fmt: skip
def test_underused_are_folios_with_more_zeroes_than_the_limit(
    zeroes: int, limit: int, is_underused: bool
) -> None:
    world = World(geometry=TINY, max_ptes_none=limit)
    vma = world.vma(huge(4))
    folio = world.folio(vma, 0)
    for page in range(zeroes):
        world.mem.content.raw[folio + page] = 0
    assert thp_underused(world.kernel, folio) is is_underused
    queue(world, folio)
    before = world.census()
    drop_slab(world.kernel)
    assert (world.orders(vma)[0] != 4) is is_underused
    assert world.mem.deferred_split.count(ROOT) == 0
    assert stats(world, "v.thp_underused_split_page") == (
        {"v.thp_underused_split_page": 1} if is_underused else {}
    )
    assert world.mm.counters[MM_ANONPAGES] == 16 - (zeroes if is_underused else 0)
    assert world.check(before.outside) == []
    world.mem.page_flags.raw[folio + 15] |= PAGE_HWPOISON
    assert is_underused or not thp_underused(world.kernel, folio)


@pytest.mark.parametrize("shrink_underused", [False, True])
def test_a_collapsed_huge_page_is_queued_whole_and_its_zeroes_come_back(
    shrink_underused: bool,
) -> None:
    world = World(geometry=TINY, max_ptes_none=15, shrink_underused=shrink_underused)
    vma = world.vma(small(2), hole(14))
    world.scan()
    assert world.orders(vma) == [4]
    assert not world.mem.test(world.folio(vma, 0), PG_PARTIALLY_MAPPED)
    assert world.mem.deferred_split.count(ROOT) == int(shrink_underused)
    world.kernel.settings = world.kernel.settings.replace(max_ptes_none=13)
    drop_slab(world.kernel)
    assert world.mm.counters[MM_ANONPAGES] == (2 if shrink_underused else 16)
    if shrink_underused:
        assert world.orders(vma)[:3] == [0, 0, -1]
        world.kernel.settings = world.kernel.settings.replace(max_ptes_none=12)
        world.scan()
        assert world.orders(vma)[0] == 0, "the zero pages count as none"


def test_zeroes_of_mlocked_memory_stay() -> None:
    world = World(geometry=TINY, max_ptes_none=0)
    vma = world.vma(huge(4), flags=VM_DEFAULT | VM_LOCKED)
    folio = world.folio(vma, 0)
    world.mem.content.raw[folio + 1] = 0
    queue(world, folio)
    drop_slab(world.kernel)
    assert world.orders(vma)[0] == 4 and world.mem.deferred_split.count(ROOT) == 0
    split_huge_pages_pid(world.mm, vma.vm_start)
    assert world.orders(vma)[:3] == [0, 0, 0] and world.mm.counters[MM_ANONPAGES] == 16


@pytest.mark.parametrize("why", ["pinned", "locked"])
def test_what_cannot_be_split_is_tried_again_if_it_is_partly_mapped(why: str) -> None:
    world = World(geometry=TINY)
    vma = world.vma(large(3), hole(8))
    zap(world, vma, 7, 1)
    undo = world.pin if why == "pinned" else world.lock
    undo(vma, 0)
    drop_slab(world.kernel)
    tried = stats(world, "3.split_failed").get("3.split_failed", 0)
    assert (tried > 0) is (why == "pinned") and world.mem.deferred_split.count(ROOT) == 1
    assert stats(world, "3.nr_anon_partially_mapped") == {"3.nr_anon_partially_mapped": 1}
    held_and_released(world)


def test_the_last_unmap_takes_it_off_the_queue() -> None:
    world = World(geometry=TINY)
    vma = world.vma(large(3), hole(8), huge(4))
    zap(world, vma, 7, 1)
    queue(world, world.folio(vma, 16))
    zap(world, vma, 0, 7)
    zap(world, vma, 16, 16)
    assert world.mem.deferred_split.count(ROOT) == 0
    assert stats(world, "3.nr_anon_partially_mapped", "3.split", "4.split") == {}
