# SPDX-License-Identifier: GPL-2.0-or-later
"""Small anonymous folios are reclaimed: aged, swapped out, or dropped. Kernel: mm/vmscan.c."""

from __future__ import annotations

from collections.abc import Callable

from mthp.mm.folio import folio_isolate_lru, folio_putback_lru
from mthp.mm.mm_types import MM_ANONPAGES, Kernel, Vma
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.page_flags import (
    PAGE_ANON_EXCLUSIVE,
    PG_DIRTY,
    PG_MLOCKED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_WRITEBACK,
)
from mthp.mm.page_vma_mapped import map_pte
from mthp.mm.pgtable import ptep_clear_flush, unlocked_after
from mthp.mm.pgtable_types import pte_dirty
from mthp.mm.rmap import (
    folio_lock_anon_vma_read,
    folio_referenced,
    folio_remove_rmap_ptes,
    is_kept_by_mlock,
    mapped_places,
    try_to_unmap,
)
from mthp.words.units import Address, Folio


def shrink_folio(kernel: Kernel, folio: Folio, entry: int) -> None:
    """Write a folio to slot `entry` and free it, unless it is in use.

    Kernel: mm/vmscan.c, shrink_folio_list().
    """
    reclaim_folio(
        kernel, folio, lambda: add_to_swap(kernel, folio, entry) and swap_out(kernel, folio, entry)
    )


def reclaim_folio(kernel: Kernel, folio: Folio, unused: Callable[[], bool]) -> None:
    """Isolate and lock a folio, and free it if it then is unused and not mlocked; put it back otherwise.

    Kernel: mm/vmscan.c, isolate_lru_folios(), shrink_folio_list().
    """
    mem = kernel.mem
    if not mem.folio_try_get(folio):
        return
    isolated = folio_isolate_lru(mem, folio)
    mem.folio_put(folio)
    if not isolated:
        return
    if mem.folio_trylock(folio):
        gone = not mem.test(folio, PG_MLOCKED) and unused()  # folio_evictable()
        mem.folio_unlock(folio)
        if gone:
            mem.free_folio(folio)
            return
    folio_putback_lru(mem, kernel.this_cpu, folio)


def swap_out(kernel: Kernel, folio: Folio, entry: int) -> bool:
    """Unmap a folio in the swap cache, write it and take it out; returns whether it was unused."""
    try_to_unmap(kernel, folio, entry)
    return not kernel.mem.folio_mapcount(folio) and remove_mapping(kernel, folio, entry)


def add_to_swap(kernel: Kernel, folio: Folio, entry: int) -> bool:
    """Add to the swap cache, if the slot is free. Kernel: mm/swapfile.c, folio_alloc_swap()."""
    if not kernel.swap.alloc_slot(folio, entry):
        return False
    kernel.mem.folio_ref_add(folio, 1)
    kernel.mem.set(folio, PG_SWAPCACHE)
    return True


def remove_mapping(kernel: Kernel, folio: Folio, entry: int) -> bool:
    """Write it out and take it from the swap cache, if nothing else refers to it; none can then.

    Kernel: mm/vmscan.c, pageout(), __remove_mapping().
    """
    mem = kernel.mem
    mem.clear(folio, PG_DIRTY)
    kernel.swap.contents[entry] = mem.content.read(folio)
    if not mem.refcount.freeze(folio, 2):
        return False
    if mem.clear(folio, PG_DIRTY):  # written again, by a reference that is put by now: it stays
        mem.refcount.write(folio, 2)
        mem.set(folio, PG_DIRTY)
        return False
    kernel.swap.del_folio(folio, 1)
    mem.clear(folio, PG_SWAPCACHE)
    return True


def folio_end_writeback(kernel: Kernel, folio: Folio, entry: int) -> None:
    """End the write of a swap cache folio to its slot.

    Kernel: mm/page_io.c, end_swap_bio_write(); mm/filemap.c, folio_end_writeback().
    """
    mem = kernel.mem
    kernel.swap.contents[entry] = mem.content.read(folio)
    mem.folio_get(folio)
    mem.clear(folio, PG_WRITEBACK)
    mem.folio_put(folio)


def free_swapped(kernel: Kernel, folio: Folio, entry: int) -> None:
    """Free a swap cache folio that is written and unmapped, as reclaim does when it comes by again.

    Kernel: mm/vmscan.c, shrink_folio_list().
    """
    mem = kernel.mem

    def unused() -> bool:
        is_left = mem.test(folio, PG_SWAPCACHE) and not mem.folio_mapcount(folio)
        return is_left and remove_mapping(kernel, folio, entry)

    reclaim_folio(kernel, folio, unused)


def discard_folio(kernel: Kernel, folio: Folio) -> None:
    """Drop a page that was given up, unless it was stored to or is used.

    Kernel: mm/vmscan.c, shrink_folio_list().
    """
    mem = kernel.mem

    def unused() -> bool:
        if not mem.folio_test_lazyfree(folio):
            return False
        with folio_lock_anon_vma_read(kernel, folio):
            for vma, address in mapped_places(kernel, folio):
                discard_one(kernel, folio, vma, address)
        return not mem.folio_mapcount(folio) and mem.refcount.freeze(folio, 1)

    reclaim_folio(kernel, folio, unused)


def discard_one(kernel: Kernel, folio: Folio, vma: Vma, address: Address) -> None:
    """Unmap one place: the PTE goes before references are counted, for GUP-fast takes no lock.

    Kernel: mm/rmap.c, try_to_unmap_one(), of a folio that is not swap-backed.
    """
    mem = kernel.mem
    mm = vma.vm_mm
    with mmu_notifier_invalidate_range(mm, address, address + kernel.geometry.page_size):
        found = map_pte(mm, address, folio)
        if found is None:
            return
        with unlocked_after(kernel, found) as pte:
            if is_kept_by_mlock(kernel, folio, vma):
                return
            pteval = ptep_clear_flush(mm, pte, address)
            if pte_dirty(pteval):
                mem.set(folio, PG_DIRTY)
            used = mem.folio_ref_count(folio) != 1 + mem.folio_mapcount(folio)
            if mem.test(folio, PG_DIRTY) or used:
                if mem.test(folio, PG_DIRTY):
                    mem.set(folio, PG_SWAPBACKED)
                pte.ptes.write(pte.base, pteval)
                return
            mem.page_flags.clear_bits(folio, PAGE_ANON_EXCLUSIVE)
            mm.counters[MM_ANONPAGES] -= 1
            folio_remove_rmap_ptes(mem, kernel.this_cpu, folio, folio, 1, vma)
            mem.folio_put(folio)


def shrink_active_list(kernel: Kernel, folio: Folio) -> None:
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
