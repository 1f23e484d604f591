# SPDX-License-Identifier: GPL-2.0-or-later
"""Mapping counts, and the reverse map."""

from __future__ import annotations

import pytest

from mthp.mm.fork import dup_mmap, exit_mm
from mthp.mm.mm_types import Vma
from mthp.mm.page_flags import (
    ENTIRELY_MAPPED,
    PAGE_ANON_EXCLUSIVE,
    PG_MAPPED_SHARED,
    PG_MLOCKED,
    PG_PARTIALLY_MAPPED,
)
from mthp.mm.rmap import (
    folio_add_new_anon_rmap,
    folio_add_return_large_mapcount,
    folio_remove_rmap_pmd,
    folio_remove_rmap_ptes,
    folio_sub_return_large_mapcount,
    rmap_walk,
    vma_is_fork_child,
)
from mthp.mm.vm_flags import VM_DEFAULT, VM_LOCKED
from mthp.words.units import Folio, Pfn
from tests.small_worlds import TINY, World, huge, large, small


@pytest.fixture
def world() -> World:
    return World(geometry=TINY)


def test_a_large_folio_loses_pages_one_by_one(world: World) -> None:
    mem, cpu = world.mem, world.kernel.this_cpu
    vma = world.vma(large(3))
    folio = world.folio(vma, 0)
    folio_remove_rmap_ptes(mem, cpu, folio, Pfn(folio + 2), 3, vma)
    assert mem.folio_mapcount(folio) == 5
    assert mem.nr_pages_mapped.raw[folio] == 5
    assert mem.test(folio, PG_PARTIALLY_MAPPED)
    assert world.kernel.vmstat.mthp[3, "nr_anon_partially_mapped"] == 1
    assert "thp_deferred_split_page" not in world.kernel.vmstat.events
    folio_remove_rmap_ptes(mem, cpu, folio, folio, 2, vma)
    folio_remove_rmap_ptes(mem, cpu, folio, Pfn(folio + 5), 3, vma)
    assert mem.folio_mapcount(folio) == 0
    mem.folio_put(folio, 8)
    assert world.kernel.vmstat.mthp[3, "nr_anon_partially_mapped"] == 0


def test_a_pmd_mapping_counts_the_whole_folio(world: World) -> None:
    mem, cpu = world.mem, world.kernel.this_cpu
    vma = world.vma(huge(4))
    folio = world.folio(vma, 0)
    assert mem.nr_pages_mapped.raw[folio] == ENTIRELY_MAPPED
    world.split_pmd(vma)
    assert mem.folio_mapcount(folio) == 16
    world.zap(vma, 0, 1)
    assert world.kernel.vmstat.events["thp_deferred_split_page"] == 1
    mem.entire_mapcount.raw[folio] = 1
    mem.large_mapcount.raw[folio] += 1
    mem.nr_pages_mapped.raw[folio] += ENTIRELY_MAPPED
    mem.flags.raw[folio] &= ~PG_PARTIALLY_MAPPED
    folio_remove_rmap_pmd(mem, cpu, folio, vma)
    assert mem.nr_pages_mapped.raw[folio] == 15
    assert mem.test(folio, PG_PARTIALLY_MAPPED)


def test_shared_until_one_process_is_left(world: World) -> None:
    mem, cpu = world.mem, world.kernel.this_cpu
    vma = world.vma(large(2))
    folio = world.folio(vma, 0)
    child = world.fork(vma)
    assert mem.folio_maybe_mapped_shared(folio)
    folio_remove_rmap_ptes(mem, cpu, folio, folio, 3, vma)
    assert mem.test(folio, PG_MAPPED_SHARED)
    folio_remove_rmap_ptes(mem, cpu, folio, Pfn(folio + 3), 1, vma)
    assert not mem.folio_maybe_mapped_shared(folio)
    assert mem.mm_mapcounts[folio] == {child.vm_mm.number: 4}
    # Every page is still mapped, by the child: not partially mapped.
    assert not mem.test(folio, PG_PARTIALLY_MAPPED)


def lose(world: World, vma: Vma, folio: Folio, page: int = 0, count: int = 4) -> None:
    cpu = world.kernel.this_cpu
    folio_remove_rmap_ptes(world.mem, cpu, folio, Pfn(folio + page), count, vma)


def test_a_folio_knows_two_processes_and_the_third_never_has_it_alone(world: World) -> None:
    mem, vma = world.mem, world.vma(large(2))
    folio = world.folio(vma, 0)
    child, other = world.fork(vma), world.fork(vma)
    assert mem.mm_mapcounts[folio] == {vma.vm_mm.number: 4, child.vm_mm.number: 4}
    lose(world, child, folio)
    assert mem.folio_maybe_mapped_shared(folio)
    lose(world, vma, folio)
    assert mem.mm_mapcounts[folio] == {}
    assert mem.folio_maybe_mapped_shared(folio), "the third is not known, and counts as another"
    lose(world, other, folio, 1, 3)
    assert not mem.folio_maybe_mapped_shared(folio), "a single mapping is nobody else's"
    lose(world, other, folio, 0, 1)
    assert not mem.test(folio, PG_MAPPED_SHARED)


def test_a_place_that_gets_free_goes_to_whoever_maps_the_folio_next(world: World) -> None:
    mem, vma = world.mem, world.vma(large(2))
    folio = world.folio(vma, 0)
    child, other = world.fork(vma), world.fork(vma)
    lose(world, vma, folio)
    folio_add_return_large_mapcount(mem, folio, 4, other)
    assert mem.mm_mapcounts[folio] == {child.vm_mm.number: 4, other.vm_mm.number: 4}
    folio_sub_return_large_mapcount(mem, folio, 5, other)
    assert other.vm_mm.number not in mem.mm_mapcounts[folio], "of its 8 mappings 4 were counted"
    folio_sub_return_large_mapcount(mem, folio, 3, other)
    assert not mem.test(folio, PG_MAPPED_SHARED), "the child has all that are left"


def test_the_reverse_map_finds_every_place(world: World) -> None:
    vma = world.vma(large(2), small(1))
    child = world.fork(vma)
    folio = world.folio(vma, 0)
    places = list(rmap_walk(world.mem, folio, world.kernel.anon_vmas))
    assert places == [(each, vma.vm_start + i * 4096) for each in (vma, child) for i in range(4)]
    world.kernel.mms[1].unlink_vma(child)
    assert len(list(rmap_walk(world.mem, folio, world.kernel.anon_vmas))) == 4


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize(("order", "pmd_mapped"), [(0, False), (2, False), (4, False), (4, True)])
def test_a_new_folio_is_exclusive_page_by_page_or_by_its_pmd(
    world: World, order: int, pmd_mapped: bool, exclusive: bool
) -> None:
    mem, vma = world.mem, world.vma(pages=16)
    folio = mem.folio_alloc(order)
    assert folio is not None
    how = {"exclusive": exclusive, "pmd_mapped": pmd_mapped}
    folio_add_new_anon_rmap(mem, folio, vma, vma.vm_start, **how)
    marked = [bool(flags & PAGE_ANON_EXCLUSIVE) for flags in mem.page_flags.raw[folio:][:16]]
    wanted = exclusive * (1 if pmd_mapped else 1 << order)
    assert marked == [i < wanted for i in range(len(marked))]


def test_a_huge_page_that_a_locked_mapping_loses_is_mlocked_no_more(world: World) -> None:
    vma = world.vma(huge(4), flags=VM_DEFAULT | VM_LOCKED)
    folio = world.folio(vma, 0)
    assert world.mem.test(folio, PG_MLOCKED)
    folio_remove_rmap_pmd(world.mem, world.kernel.this_cpu, folio, vma)
    assert not world.mem.test(folio, PG_MLOCKED)


def test_a_copys_own_pages_belong_to_an_anon_vma_of_its_own_or_to_one_that_is_left() -> None:
    """Kernel: mm/rmap.c, anon_vma_fork(), maybe_reuse_anon_vma()."""
    world = World(geometry=TINY)
    vma = world.vma(small(1))
    first, second = (world.kernel.new_mm(number) for number in (2000, 2001))
    dup_mmap(first, world.mm, lambda _: None)
    (child,) = first.vmas
    assert child.anon_vma is not vma.anon_vma and vma_is_fork_child(child)
    assert vma.anon_vma is not None and vma.anon_vma.num_children == 2
    exit_mm(world.mm, world.khugepaged.khugepaged_exit)
    assert not vma.anon_vma.num_active_vmas and vma.anon_vma.vmas == [child]
    dup_mmap(second, first, lambda _: None)
    (grandchild,) = second.vmas
    assert grandchild.anon_vma not in (vma.anon_vma, child.anon_vma)
    assert grandchild.anon_vma is not None and grandchild.anon_vma.rwsem is vma.anon_vma.rwsem
