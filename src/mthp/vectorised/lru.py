# SPDX-License-Identifier: GPL-2.0-or-later
"""Fast twins of mm/folio.py and of what is freed there: small folios by the batch."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mthp.machine.cpu import Cpu
from mthp.mm.folio import FOLIO_BATCH_SIZE, folio_batch_move_lru
from mthp.mm.mem_map import MemMap
from mthp.mm.page_flags import PAGE_HWPOISON, PG_LOCKED, PG_LRU, PG_MLOCKED, PG_UNEVICTABLE

_OF_SMALL: Final = ("flags", "refcount", "page_flags", "anon_vma", "index")
"""Rows that a free folio has zeroes in, and that can hold something else for a small folio without
mappings; the memory cgroup is one more, which few have."""


def folio_batch_move_lru_at_once(mem: MemMap, cpu: Cpu) -> None:
    """Do the usual ones first: put on the LRU what others hold too and nobody locked into memory; free
    what the batch alone holds, if it is small and plain."""
    refcount, order = mem.refcount.raw, mem.order.raw
    flags, mapcount, page_flags = mem.flags.raw, mem.mapcount.raw, mem.page_flags.raw
    dead: list[int] = []
    others: list[int] = []
    for folio in cpu.lru_add.value:
        flag = flags[folio]
        if refcount[folio] > 1:
            if not flag & (PG_LRU | PG_MLOCKED):
                flags[folio] = flag & ~PG_UNEVICTABLE | PG_LRU
                refcount[folio] -= 1
                continue
        elif not (
            order[folio] or mapcount[folio] or flag & PG_LOCKED or page_flags[folio] & PAGE_HWPOISON
        ):
            dead.append(folio)
            continue
        others.append(folio)
    cpu.lru_add.value = tuple(others)
    if dead:
        free_small_folios(mem, np.array(dead))
    folio_batch_move_lru(mem, cpu)


def folio_add_lru_held(mem: MemMap, cpu: Cpu, folios: NDArray[Any]) -> None:
    """Do folio_add_lru() and a folio_put() for small folios in turn: the reference that would be
    put becomes the batch's."""
    batch = (*cpu.lru_add.value, *folios.tolist())
    while len(batch) >= FOLIO_BATCH_SIZE:
        cpu.lru_add.value = batch[:FOLIO_BATCH_SIZE]
        folio_batch_move_lru_at_once(mem, cpu)
        batch = batch[FOLIO_BATCH_SIZE:]
    cpu.lru_add.value = batch


def folio_add_lru_dead(mem: MemMap, cpu: Cpu, folios: NDArray[Any]) -> None:
    """Do the same for folios that nothing else refers to: whole batches are freed at once."""
    room = FOLIO_BATCH_SIZE - len(cpu.lru_add.value)
    if len(folios) > room:
        rest = (len(folios) - room) % FOLIO_BATCH_SIZE
        folio_add_lru_held(mem, cpu, folios[:room])
        free_small_folios(mem, folios[room : len(folios) - rest])
        folios = folios[len(folios) - rest :]
    folio_add_lru_held(mem, cpu, folios)


def free_small_folios(mem: MemMap, folios: NDArray[Any]) -> None:
    """Do free_folio() for small folios in turn, neither locked nor mapped nor poisoned."""
    memcgs = mem.memcg.view().take(folios)
    if np.count_nonzero(memcgs):
        for number, pages in enumerate(np.bincount(memcgs).tolist()):
            if number and pages:
                mem.memcgs[number - 1].uncharge(pages)
        mem.memcg.view()[folios] = 0
    for row in _OF_SMALL:
        getattr(mem, row).view()[folios] = 0
    allocator = mem.allocator
    if len(allocator.nodes) == 1:
        allocator.nodes[0].pcp[0].frombytes(folios.astype(np.int32).tobytes())
    else:
        for pfn in folios.tolist():
            allocator.free(pfn, 0)
