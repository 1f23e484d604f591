# SPDX-License-Identifier: GPL-2.0-or-later
"""Reclaim looks whether a page was used. Kernel: mm/vmscan.c, mm/rmap.c."""

from __future__ import annotations

from mthp.mm.kernel import Kernel
from mthp.mm.lru import folio_isolate_lru, folio_putback_lru
from mthp.mm.mmu_notifier import mmu_notifier_test_young
from mthp.mm.pte import YOUNG
from mthp.mm.vma import Vma
from mthp.rivals.walk import (
    flush_tlb_page,
    folio_trylock_anon_vma_read,
    map_pte,
    mapped_places,
    unlocked_after,
)


def shrink_active_list(kernel: Kernel, folio: int) -> None:
    """Take one folio off the LRU, see whether it was used, and give it back.

    Kernel: mm/vmscan.c, shrink_active_list().
    """
    mem = kernel.mem
    if not mem.folio_try_get(folio):
        return
    isolated = folio_isolate_lru(mem, folio)
    mem.folio_put(folio)
    if isolated:
        folio_referenced(kernel, folio)
        folio_putback_lru(mem, kernel.this_cpu, folio)


def folio_referenced(kernel: Kernel, folio: int) -> int:
    """How many places used the folio since last time; they are asked anew from here on. Never waits
    for a lock.

    Kernel: mm/rmap.c, folio_referenced().
    """
    mem = kernel.mem
    if not mem.folio_mapcount(folio) or not mem.folio_trylock(folio):
        return 0
    referenced = 0
    anon_vma = folio_trylock_anon_vma_read(kernel, folio)
    if anon_vma is not None:
        with anon_vma:
            for vma, address in mapped_places(kernel, folio):
                referenced += folio_referenced_one(kernel, folio, vma, address)
    mem.folio_unlock(folio)
    return referenced


def folio_referenced_one(kernel: Kernel, folio: int, vma: Vma, address: int) -> bool:
    """Kernel: mm/rmap.c, folio_referenced_one(), clear_flush_young_ptes_notify()."""
    mm = vma.vm_mm
    found = map_pte(mm, address, folio)
    if found is None:
        return False
    with unlocked_after(kernel, found) as pte:
        young = pte.ptes.clear_bits(pte.base, YOUNG) & YOUNG != 0
        if young:
            flush_tlb_page(mm, address)
    return young or mmu_notifier_test_young(mm, address)
