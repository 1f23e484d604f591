# SPDX-License-Identifier: GPL-2.0-or-later
"""The LRU (mm/swap.c until it was renamed): a flag, isolation, and the per-CPU batches.

A folio in a batch carries one more reference and is not on the LRU. That decides outcomes: a
refused isolation puts its folios back through the batch, and the next attempt meets the reference.
The lists themselves and their order are not modelled.
Kernel: mm/folio.c (struct cpu_fbatches), mm/vmscan.c (folio_isolate_lru), mm/mlock.c,
include/linux/vmstat.h (node_stat_mod_folio).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from mthp.machine.cpu import Cpu
from mthp.mm.mem_map import MemMap
from mthp.mm.mm_types import Vma
from mthp.mm.page_flags import (
    PG_ACTIVE,
    PG_ANON,
    PG_ISOLATED,
    PG_LRU,
    PG_MLOCKED,
    PG_REFERENCED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_UNEVICTABLE,
)
from mthp.mm.vm_flags import VM_LOCKED, VM_SPECIAL
from mthp.words.results import KernelBug, Rule
from mthp.words.units import Folio

FOLIO_BATCH_SIZE: Final = 31
"""Kernel: include/linux/folio_batch.h."""


class Mlock(Enum):
    """What a folio waits for in the mlock batch. Kernel: mm/mlock.c."""

    LOCK = "mlock"
    NEW = "mlock a new folio"
    UNLOCK = "munlock"


def folio_isolate_lru(mem: MemMap, folio: Folio) -> bool:
    """Take a folio off the LRU, with a reference. Kernel: mm/vmscan.c, folio_isolate_lru()."""
    if not mem.clear(folio, PG_LRU):
        return False
    mem.folio_get(folio)
    return True


def folio_putback_lru(mem: MemMap, cpu: Cpu, folio: Folio) -> None:
    """Give an isolated folio back. Kernel: mm/vmscan.c, folio_putback_lru()."""
    folio_add_lru(mem, cpu, folio)
    mem.folio_put(folio)


def folio_add_lru(mem: MemMap, cpu: Cpu, folio: Folio) -> None:
    """Queue a folio for the LRU in this CPU's batch; a full batch or a large folio empties it. In a fault it
    counts as used once.

    Kernel: mm/folio.c, folio_add_lru(), __folio_batch_add_and_move(), lru_gen_inc_refs().
    """
    if mem.machine.current.in_lru_fault and not mem.flags.raw[folio] & PG_UNEVICTABLE:
        mem.flags.raw[folio] |= PG_REFERENCED  # nothing maps it yet, so that nobody asks
    mem.folio_get(folio)
    before = cpu.lru_add.update(lambda batch: (*batch, folio))
    if len(before) + 1 >= FOLIO_BATCH_SIZE or mem.folio_test_large(folio):
        mem.machine.path(folio_batch_move_lru)(mem, cpu)


def folio_add_lru_vma(mem: MemMap, cpu: Cpu, folio: Folio, vma: Vma) -> None:
    """Queue a new folio for the LRU, or for mlock. Kernel: mm/folio.c, folio_add_lru_vma()."""
    if vma.vm_flags & (VM_LOCKED | VM_SPECIAL) == VM_LOCKED:
        mem.set(folio, PG_MLOCKED)
        _mlock_batch_add(mem, cpu, folio, Mlock.NEW)
    else:
        folio_add_lru(mem, cpu, folio)


def folio_batch_move_lru(mem: MemMap, cpu: Cpu) -> None:
    """Move the add batch to the LRU; folios only the batch still holds are freed.

    Kernel: mm/folio.c, folio_batch_move_lru(), lru_add().
    """
    batch = cpu.lru_add.update(lambda _: ())
    dead: list[Folio] = []
    alive: list[Folio] = []
    for folio in batch:
        if mem.refcount.freeze(folio, 1):
            mem.flags.clear_bits(folio, PG_ACTIVE | PG_UNEVICTABLE)
            dead.append(folio)
            continue
        if mem.test(folio, PG_MLOCKED):
            mem.flags.clear_bits(folio, PG_ACTIVE)
            before = mem.flags.set_bits(folio, PG_LRU | PG_UNEVICTABLE)
        else:
            mem.flags.clear_bits(folio, PG_UNEVICTABLE)
            before = mem.flags.set_bits(folio, PG_LRU)
        if before & PG_LRU:
            raise KernelBug(Rule.STATE, f"VM_BUG_ON_FOLIO in lru_add: folio {folio} is on the LRU")
        alive.append(folio)
    for folio in dead:
        mem.free_folio(folio)
    for folio in alive:
        mem.folio_put(folio)


def folio_mark_lazyfree(mem: MemMap, cpu: Cpu, folio: Folio) -> None:
    """Queue a folio in this CPU's batch of those that may be dropped unless they are stored to; a full
    batch or a large folio empties it. Kernel: mm/folio.c, folio_mark_lazyfree().
    """
    wanted = PG_ANON | PG_SWAPBACKED | PG_LRU
    if mem.flags.test_bits(folio, wanted | PG_SWAPCACHE | PG_UNEVICTABLE) != wanted:
        return
    mem.folio_get(folio)
    before = cpu.lru_lazyfree.update(lambda batch: (*batch, folio))
    if len(before) + 1 >= FOLIO_BATCH_SIZE or mem.folio_test_large(folio):
        lru_lazyfree(mem, cpu)


def lru_lazyfree(mem: MemMap, cpu: Cpu) -> None:
    """Let what this CPU's batch has be dropped, if it still may be. Whether it was used is forgotten only
    where lru_gen is off. Kernel: mm/folio.c, lru_lazyfree(), lru_gen_clear_refs().
    """
    batch = cpu.lru_lazyfree.update(lambda _: ())
    for folio in batch:
        if mem.clear(folio, PG_LRU):
            kinds = PG_ANON | PG_SWAPBACKED
            if mem.flags.test_bits(folio, kinds | PG_SWAPCACHE | PG_UNEVICTABLE) == kinds:
                mem.flags.clear_bits(folio, PG_ACTIVE | PG_SWAPBACKED)
                mem.vmstat.count_vm_event("pglazyfree", mem.folio_nr_pages(folio))
            mem.set(folio, PG_LRU)
    for folio in batch:
        mem.folio_put(folio)


def _mlock_batch_add(mem: MemMap, cpu: Cpu, folio: Folio, what: Mlock) -> None:
    """Kernel: mm/mlock.c, mlock_folio(), mlock_new_folio(), munlock_folio()."""
    mem.folio_get(folio)
    before = cpu.mlock.update(lambda batch: (*batch, (folio, what)))
    if len(before) + 1 >= FOLIO_BATCH_SIZE or mem.folio_test_large(folio):
        mlock_folio_batch(mem, cpu)


def mlock_folio_batch(mem: MemMap, cpu: Cpu) -> None:
    """Do what this CPU's mlock batch waits for. Kernel: mm/mlock.c, mlock_folio_batch()."""
    batch = cpu.mlock.update(lambda _: ())
    for folio, what in batch:
        match what:
            case Mlock.LOCK:
                _mlock_folio(mem, folio)
            case Mlock.NEW:
                if mem.test(folio, PG_MLOCKED):
                    mem.set(folio, PG_UNEVICTABLE)
                mem.set(folio, PG_LRU)
            case Mlock.UNLOCK:
                _munlock_folio(mem, folio)
        mem.folio_put(folio)


def _mlock_folio(mem: MemMap, folio: Folio) -> None:
    """Make a folio unevictable if it is mlocked. Kernel: mm/mlock.c, __mlock_folio()."""
    if not mem.clear(folio, PG_LRU):
        return
    if not mem.test(folio, PG_MLOCKED):
        mem.flags.clear_bits(folio, PG_UNEVICTABLE)
    elif not mem.set(folio, PG_UNEVICTABLE):
        mem.flags.clear_bits(folio, PG_ACTIVE)
    mem.set(folio, PG_LRU)


def _munlock_folio(mem: MemMap, folio: Folio) -> None:
    """Make a folio evictable again. Kernel: mm/mlock.c, __munlock_folio().

    Divergence: locks are not counted. A collapse munlocks what it has isolated, and then the kernel
    does not look at its count either.
    """
    isolated = mem.clear(folio, PG_LRU)
    mem.clear(folio, PG_MLOCKED)
    if isolated:
        mem.flags.clear_bits(folio, PG_UNEVICTABLE)
        mem.set(folio, PG_LRU)


def mlock_vma_folio(mem: MemMap, cpu: Cpu, folio: Folio, vma: Vma) -> None:
    """Mlock a folio that a locked VMA maps whole. Kernel: mm/internal.h, mlock_vma_folio()."""
    if vma.vm_flags & (VM_LOCKED | VM_SPECIAL) == VM_LOCKED:
        mem.set(folio, PG_MLOCKED)
        _mlock_batch_add(mem, cpu, folio, Mlock.LOCK)


def munlock_vma_folio(mem: MemMap, cpu: Cpu, folio: Folio, vma: Vma) -> None:
    """Munlock what a locked VMA no longer maps. Kernel: mm/internal.h, munlock_vma_folio()."""
    if vma.vm_flags & VM_LOCKED:
        _mlock_batch_add(mem, cpu, folio, Mlock.UNLOCK)


def lru_add_drain(mem: MemMap, cpu: Cpu) -> None:
    """Empty this CPU's batches. Kernel: mm/folio.c, lru_add_drain()."""
    if cpu.lru_add.read():
        mem.machine.path(folio_batch_move_lru)(mem, cpu)
    if cpu.lru_lazyfree.value:  # its own CPU's alone
        lru_lazyfree(mem, cpu)
    mlock_drain_local(mem, cpu)


def mlock_drain_local(mem: MemMap, cpu: Cpu) -> None:
    """Empty this CPU's mlock batch. Kernel: mm/mlock.c, mlock_drain_local()."""
    if cpu.mlock.read():
        mlock_folio_batch(mem, cpu)


def lru_add_drain_all(mem: MemMap, cpus: tuple[Cpu, ...]) -> None:
    """Empty every CPU's batches. Kernel: mm/folio.c, lru_add_drain_all()."""
    for cpu in cpus:
        lru_add_drain(mem, cpu)


def folio_mark_isolated(mem: MemMap, folio: Folio) -> None:
    """Count it in NR_ISOLATED_ANON. Kernel: node_stat_mod_folio()."""
    mem.flags.raw[folio] |= PG_ISOLATED


def folio_clear_isolated(mem: MemMap, folio: Folio) -> None:
    """Stop counting it in NR_ISOLATED_ANON."""
    mem.flags.raw[folio] &= ~PG_ISOLATED
