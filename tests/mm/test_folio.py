# SPDX-License-Identifier: GPL-2.0-or-later
"""The LRU and its batches, and folios of locked VMAs."""

from __future__ import annotations

import pytest

from mthp.mm.folio import (
    FOLIO_BATCH_SIZE,
    folio_add_lru,
    folio_add_lru_vma,
    folio_clear_isolated,
    folio_isolate_lru,
    folio_mark_isolated,
    folio_putback_lru,
    lru_add_drain,
    lru_add_drain_all,
    mlock_vma_folio,
    munlock_vma_folio,
)
from mthp.mm.page_flags import (
    PG_ACTIVE,
    PG_ISOLATED,
    PG_LOCKED,
    PG_LRU,
    PG_MLOCKED,
    PG_UNEVICTABLE,
)
from mthp.mm.vm_flags import VM_DEFAULT, VM_DONTEXPAND, VM_IO, VM_LOCKED, VM_MIXEDMAP, VM_PFNMAP
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


SPECIAL = [0, VM_IO, VM_DONTEXPAND, VM_PFNMAP, VM_MIXEDMAP]


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("locked", [0, VM_LOCKED])
def test_a_special_mapping_locks_nothing(world: World, locked: int, special: int) -> None:
    """VM_SPECIAL beside VM_LOCKED: no folio is mlocked. Kernel: mm/internal.h, mlock_vma_folio()."""
    mem, cpu = world.mem, world.kernel.this_cpu
    vma = world.vma(flags=VM_DEFAULT | locked | special)
    new, mapped = alloc(world), alloc(world)
    folio_add_lru_vma(mem, cpu, new, vma)
    mlock_vma_folio(mem, cpu, mapped, vma)
    mlocks = locked != 0 and special == 0
    assert [bool(mem.flags.raw[folio] & PG_MLOCKED) for folio in (new, mapped)] == [mlocks] * 2
    assert [folio for folio, _ in cpu.mlock.value] == ([new, mapped] if mlocks else [])
    assert cpu.lru_add.value == (() if mlocks else (new,))
    assert mem.refcount.raw[mapped] == 1 + mlocks


@pytest.mark.parametrize("on_lru", [True, False])
@pytest.mark.parametrize("flags", [0, PG_ACTIVE, PG_UNEVICTABLE, PG_UNEVICTABLE | PG_ACTIVE])
@pytest.mark.parametrize("still", [True, False])
def test_what_the_batch_makes_of_a_folio_that_was_locked(
    world: World, still: bool, flags: int, on_lru: bool
) -> None:
    """Kernel: mm/mlock.c, __mlock_folio(): nothing, unless it is on the LRU when the batch is moved."""
    mem, cpu = world.mem, world.kernel.this_cpu
    vma = world.vma(flags=VM_DEFAULT | VM_LOCKED)
    folio = alloc(world)
    mlock_vma_folio(mem, cpu, folio, vma)
    mem.flags.raw[folio] |= flags | (PG_LRU if on_lru else 0)
    if not still:
        mem.flags.raw[folio] &= ~PG_MLOCKED
    before = mem.flags.raw[folio]
    lru_add_drain(mem, cpu)
    expected = before
    if on_lru and still:
        newly = not flags & PG_UNEVICTABLE
        expected = (before | PG_UNEVICTABLE) & ~(PG_ACTIVE if newly else 0)
    elif on_lru:
        expected = before & ~PG_UNEVICTABLE
    assert mem.flags.raw[folio] == expected
    assert mem.refcount.raw[folio] == 1


@pytest.mark.parametrize("on_lru", [True, False])
def test_what_the_batch_makes_of_a_folio_that_was_unlocked(world: World, on_lru: bool) -> None:
    mem, cpu = world.mem, world.kernel.this_cpu
    vma = world.vma(flags=VM_DEFAULT | VM_LOCKED)
    folio = alloc(world)
    lru = PG_LRU if on_lru else 0
    mem.flags.raw[folio] |= PG_MLOCKED | PG_UNEVICTABLE | lru
    munlock_vma_folio(mem, cpu, folio, vma)
    lru_add_drain(mem, cpu)
    assert mem.flags.raw[folio] == (lru if on_lru else PG_UNEVICTABLE)
    munlock_vma_folio(mem, cpu, folio, world.vma(at=0x50000000))
    assert cpu.mlock.value == ()


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("mlocked", [False, True])
def test_flags_of_folios_that_reach_the_lru(world: World, mlocked: bool, watched: bool) -> None:
    mem, cpu = world.mem, world.kernel.this_cpu
    alive, dead = alloc(world), alloc(world)
    for folio in (alive, dead):
        mem.flags.raw[folio] |= PG_ACTIVE | PG_UNEVICTABLE | (PG_MLOCKED if mlocked else 0)
        folio_add_lru(mem, cpu, folio)
    mem.folio_put(dead)
    if watched:
        world.kernel.machine.on_step = lambda access, word, index, bits: None
    lru_add_drain(mem, cpu)
    wanted = PG_LRU | (PG_MLOCKED | PG_UNEVICTABLE if mlocked else PG_ACTIVE)
    assert mem.flags.raw[alive] == wanted
    assert (mem.refcount.raw[alive], mem.refcount.raw[dead], mem.flags.raw[dead]) == (1, 0, 0)


def test_isolated_folios_are_marked(world: World) -> None:
    folio = alloc(world)
    folio_mark_isolated(world.mem, folio)
    assert world.mem.flags.raw[folio] == PG_ISOLATED
    folio_clear_isolated(world.mem, folio)
    assert world.mem.flags.raw[folio] == 0
