# SPDX-License-Identifier: GPL-2.0-or-later
"""The LRU and its batches, and folios of locked VMAs."""

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
    PG_LOCKED,
    PG_LRU,
    PG_MLOCKED,
    PG_UNEVICTABLE,
)
from mthp.mm.vm_flags import VM_DEFAULT, VM_LOCKED
from mthp.words.units import Folio
from tests.small_worlds import TINY, World, small


@pytest.fixture
def world() -> World:
    return World(geometry=TINY)


def alloc(world: World, order: int = 0) -> Folio:
    folio = world.mem.folio_alloc(order)
    assert folio is not None
    return folio


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


def test_locked_folios_stay_locked(world: World) -> None:
    vma = world.vma(small(1))
    world.lock(vma, 0)
    assert world.mem.test(world.folio(vma, 0), PG_LOCKED)
