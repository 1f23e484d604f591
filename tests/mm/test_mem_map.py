# SPDX-License-Identifier: GPL-2.0-or-later
"""Folios: references, the LRU batch, mlock, mapping counts, the reverse map."""

from __future__ import annotations

import pytest

from mthp.mm.folio import (
    FOLIO_BATCH_SIZE,
    folio_add_lru,
    folio_add_lru_vma,
    folio_isolate_lru,
    folio_putback_lru,
    lru_add_drain,
    lru_add_drain_all,
    munlock_vma_folio,
)
from mthp.mm.page_flags import (
    ENTIRELY_MAPPED,
    PG_LOCKED,
    PG_LRU,
    PG_MAPPED_SHARED,
    PG_MLOCKED,
    PG_PARTIALLY_MAPPED,
    PG_UNEVICTABLE,
)
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
from mthp.mm.rmap import folio_remove_rmap_pmd, folio_remove_rmap_ptes, rmap_walk
from mthp.mm.vm_flags import VM_DEFAULT, VM_LOCKED
from mthp.words.results import KernelBug
from tests.small_worlds import TINY, World, huge, large, small


@pytest.fixture
def world() -> World:
    return World(geometry=TINY)


def alloc(world: World, order: int = 0) -> int:
    folio = world.mem.folio_alloc(order)
    assert folio is not None
    return folio


# References


def test_the_last_reference_frees(world: World) -> None:
    folio = alloc(world, 2)
    world.mem.folio_get(folio)
    world.mem.folio_put(folio)
    assert world.mem.folio_ref_count(folio) == 1
    world.mem.folio_put(folio)
    assert world.mem.allocator.nodes[0].free_frames() == 4


def test_bugs_with_references(world: World) -> None:
    folio = alloc(world)
    with pytest.raises(KernelBug, match="reference count -1"):
        world.mem.folio_put(folio, 2)
    folio = alloc(world)
    world.mem.folio_put(folio)
    with pytest.raises(KernelBug, match="referenced after it was freed"):
        world.mem.folio_get(folio)
    folio = alloc(world)
    assert world.mem.folio_trylock(folio)
    assert not world.mem.folio_trylock(folio)
    with pytest.raises(KernelBug, match="freed while locked"):
        world.mem.folio_put(folio)
    world.mem.refcount.raw[folio] = 1
    world.mem.folio_unlock(folio)
    with pytest.raises(KernelBug, match="was not locked"):
        world.mem.folio_unlock(folio)
    vma = world.vma(small(1))
    with pytest.raises(KernelBug, match="freed while mapped"):
        world.mem.folio_put(world.folio(vma, 0))


def test_expected_references(world: World) -> None:
    vma = world.vma(small(1), large(2, 3), large(3, elsewhere=1), small(1))
    mem = world.mem
    expected = [mem.folio_expected_ref_count(world.folio(vma, page)) for page in (0, 1, 4)]
    assert expected == [1, 3, 16]
    assert [mem.folio_maybe_mapped_shared(world.folio(vma, page)) for page in (0, 1, 4)] == [
        False, False, True,
    ]  # fmt: skip


# The LRU batch


def test_a_batch_holds_a_reference_until_it_is_full(world: World) -> None:
    mem, cpu = world.mem, world.kernel.this_cpu
    folios = [alloc(world) for _ in range(FOLIO_BATCH_SIZE)]
    for n, folio in enumerate(folios[:-1], 1):
        folio_add_lru(mem, cpu, folio)
        assert len(cpu.lru_add.value) == n
        assert mem.refcount.raw[folio] == 2
        assert not mem.test(folio, PG_LRU)
    folio_add_lru(mem, cpu, folios[-1])
    assert cpu.lru_add.value == ()
    assert all(mem.refcount.raw[folio] == 1 and mem.test(folio, PG_LRU) for folio in folios)


def test_a_large_folio_flushes_it(world: World) -> None:
    mem, cpu = world.mem, world.kernel.this_cpu
    one, two = alloc(world), alloc(world, 2)
    folio_add_lru(mem, cpu, one)
    folio_add_lru(mem, cpu, two)
    assert cpu.lru_add.value == ()
    assert mem.test(one, PG_LRU) and mem.test(two, PG_LRU)


def test_in_a_locked_vma_a_folio_takes_the_mlock_batch(world: World) -> None:
    mem, cpu = world.mem, world.kernel.this_cpu
    vma = world.vma(flags=VM_DEFAULT | VM_LOCKED)
    queued, one, two = alloc(world), alloc(world), alloc(world, 2)
    folio_add_lru(mem, cpu, queued)
    folio_add_lru_vma(mem, cpu, one, vma)
    assert len(cpu.mlock.value) == 1
    folio_add_lru_vma(mem, cpu, two, vma)
    assert cpu.mlock.value == ()
    assert cpu.lru_add.value == (queued,)
    for folio in (one, two):
        assert mem.flags.raw[folio] & (PG_LRU | PG_MLOCKED | PG_UNEVICTABLE) == (
            PG_LRU | PG_MLOCKED | PG_UNEVICTABLE
        )
    munlock_vma_folio(mem, cpu, one, vma)
    lru_add_drain(mem, cpu)
    assert mem.flags.raw[one] & (PG_LRU | PG_MLOCKED | PG_UNEVICTABLE) == PG_LRU
    assert mem.refcount.raw[one] == 1


def test_what_only_the_batch_still_holds_is_freed(world: World) -> None:
    mem, cpu = world.mem, world.kernel.this_cpu
    folio = alloc(world)
    folio_add_lru(mem, cpu, folio)
    mem.folio_put(folio)
    assert mem.refcount.raw[folio] == 1
    lru_add_drain(mem, cpu)
    assert mem.refcount.raw[folio] == 0
    assert folio in mem.allocator.nodes[0].pcp[0]


def test_isolating_takes_a_reference_and_only_once(world: World) -> None:
    mem, cpu = world.mem, world.kernel.this_cpu
    vma = world.vma(small(1))
    folio = world.folio(vma, 0)
    assert folio_isolate_lru(mem, folio)
    assert not folio_isolate_lru(mem, folio)
    assert mem.refcount.raw[folio] == 2
    folio_putback_lru(mem, cpu, folio)
    assert mem.refcount.raw[folio] == 2  # the batch's now
    lru_add_drain_all(mem, world.kernel.cpus)
    assert mem.refcount.raw[folio] == 1


# Mapping counts


def test_a_large_folio_loses_pages_one_by_one(world: World) -> None:
    mem, cpu = world.mem, world.kernel.this_cpu
    vma = world.vma(large(3))
    folio = world.folio(vma, 0)
    folio_remove_rmap_ptes(mem, cpu, folio, folio + 2, 3, vma)
    assert mem.folio_mapcount(folio) == 5
    assert mem.nr_pages_mapped.raw[folio] == 5
    assert mem.test(folio, PG_PARTIALLY_MAPPED)
    assert world.kernel.vmstat.mthp[3, "nr_anon_partially_mapped"] == 1
    assert "thp_deferred_split_page" not in world.kernel.vmstat.events
    folio_remove_rmap_ptes(mem, cpu, folio, folio, 2, vma)
    folio_remove_rmap_ptes(mem, cpu, folio, folio + 5, 3, vma)
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
    folio_remove_rmap_ptes(mem, cpu, folio, folio + 3, 1, vma)
    assert not mem.folio_maybe_mapped_shared(folio)
    assert mem.mm_mapcounts[folio] == {child.vm_mm.number: 4}
    # Every page is still mapped, by the child: not partially mapped.
    assert not mem.test(folio, PG_PARTIALLY_MAPPED)


def test_the_reverse_map_finds_every_place(world: World) -> None:
    vma = world.vma(large(2), small(1))
    child = world.fork(vma)
    folio = world.folio(vma, 0)
    places = list(rmap_walk(world.mem, folio, world.kernel.anon_vmas))
    assert places == [(each, vma.vm_start + i * 4096) for each in (vma, child) for i in range(4)]
    world.kernel.mms[1].unlink_vma(child)
    assert len(list(rmap_walk(world.mem, folio, world.kernel.anon_vmas))) == 4


# Page tables


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


# Address spaces


def test_vmas_do_not_overlap_and_are_found(world: World) -> None:
    mm = world.mm
    low, high = mm.mmap(0x10000, 0x20000), mm.mmap(0x30000, 0x40000)
    for start, end in (
        (0x1F000, 0x21000),
        (0x2F000, 0x31000),
        (0x10000, 0x10000),
        (0x50001, 0x51000),
    ):
        with pytest.raises(ValueError, match=r"overlaps|page-aligned"):
            mm.mmap(start, end)
    assert mm.find_vma(0) is low
    assert mm.find_vma(0x1FFFF) is low
    assert mm.find_vma(0x20000) is high
    assert mm.find_vma(0x40000) is None
    assert list(mm.for_each_vma(0)) == [low, high]
    mm.unlink_vma(low)
    assert list(mm.for_each_vma(0)) == [high]


def test_vma_write_locks_end_with_mmap_lock(world: World) -> None:
    from mthp.mm.mmap_lock import vma_start_write

    vma = world.vma(small(1))
    with pytest.raises(KernelBug, match="must be held"):
        vma_start_write(vma)
    with world.mm.mmap_write_lock():
        vma_start_write(vma)
        assert vma.vm_lock.value == -1
    assert vma.vm_lock.value == 0


def test_locked_folios_stay_locked(world: World) -> None:
    vma = world.vma(small(1))
    world.lock(vma, 0)
    assert world.mem.test(world.folio(vma, 0), PG_LOCKED)
