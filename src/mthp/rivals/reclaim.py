# SPDX-License-Identifier: GPL-2.0-or-later
"""Swap-out of a small anonymous folio. Kernel: mm/vmscan.c, mm/rmap.c, mm/swap_state.c."""

from __future__ import annotations

from mthp.machine.step import Access
from mthp.mm.folio import PAGE_ANON_EXCLUSIVE, PG_SWAPCACHE, PG_WRITEBACK
from mthp.mm.kernel import Kernel
from mthp.mm.lru import folio_isolate_lru, folio_putback_lru
from mthp.mm.mm_struct import MM_ANONPAGES, MM_SWAPENTS
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.pte import SOFT_DIRTY, SWP_EXCLUSIVE, UFFD_WP, Leaf, leaf_pte
from mthp.mm.rmap import folio_remove_rmap_ptes
from mthp.mm.vma import Vma
from mthp.rivals.walk import (
    folio_lock_anon_vma_read,
    map_pte,
    mapped_places,
    ptep_clear_flush,
    unlocked_after,
)


def shrink_folio(kernel: Kernel, folio: int, entry: int) -> None:
    """Write a folio to slot `entry` and free it, unless somebody uses it.

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
        gone = add_to_swap(kernel, folio, entry) and swap_out(kernel, folio, entry)
        mem.folio_unlock(folio)
        if gone:
            mem.free_folio(folio)
            return
    folio_putback_lru(mem, kernel.this_cpu, folio)


def swap_out(kernel: Kernel, folio: int, entry: int) -> bool:
    """Unmap a folio in the swap cache, write it and take it out again; whether nobody used it."""
    try_to_unmap(kernel, folio, entry)
    return not kernel.mem.folio_mapcount(folio) and remove_mapping(kernel, folio, entry)


def add_to_swap(kernel: Kernel, folio: int, entry: int) -> bool:
    """Whether the slot was free. Kernel: mm/swapfile.c, folio_alloc_swap()."""
    swap = kernel.swap
    kernel.machine.step(Access.WRITE, swap, entry)
    if entry in swap.users or entry in swap.cache:
        return False
    swap.add_to_cache(entry, folio, 1)
    kernel.mem.folio_ref_add(folio, 1)
    kernel.mem.set(folio, PG_SWAPCACHE)
    return True


def try_to_unmap(kernel: Kernel, folio: int, entry: int) -> None:
    """A swap entry wherever the folio is mapped. Kernel: mm/rmap.c, try_to_unmap()."""
    with folio_lock_anon_vma_read(kernel, folio):
        for vma, address in mapped_places(kernel, folio):
            try_to_unmap_one(kernel, folio, entry, vma, address)


def try_to_unmap_one(kernel: Kernel, folio: int, entry: int, vma: Vma, address: int) -> None:
    """Kernel: mm/rmap.c, try_to_unmap_one()."""
    mem = kernel.mem
    mm = vma.vm_mm
    size = kernel.geometry.page_size
    with mmu_notifier_invalidate_range(mm, address, address + size):
        found = map_pte(mm, address, folio)
        if found is None:
            return
        with unlocked_after(kernel, found) as pte:
            pteval = ptep_clear_flush(mm, pte, address)
            exclusive = mem.page_flags.clear_bits(folio, PAGE_ANON_EXCLUSIVE)
            flags = pteval & (SOFT_DIRTY | UFFD_WP) | (SWP_EXCLUSIVE if exclusive else 0)
            pte.ptes.write(pte.base, leaf_pte(Leaf.SWAP, entry, flags))
            kernel.swap.add_user(entry)
            mm.counters[MM_ANONPAGES] -= 1
            mm.counters[MM_SWAPENTS] += 1
            folio_remove_rmap_ptes(mem, kernel.this_cpu, folio, folio, 1, vma)
            mem.folio_put(folio)


def remove_mapping(kernel: Kernel, folio: int, entry: int) -> bool:
    """Write it out and take it from the swap cache, if nobody else refers to it; nobody can then.

    Kernel: mm/vmscan.c, pageout(), __remove_mapping().
    """
    mem = kernel.mem
    kernel.swap.contents[entry] = mem.content.read(folio)
    if not mem.refcount.freeze(folio, 2):
        return False
    kernel.machine.step(Access.WRITE, kernel.swap, entry)
    kernel.swap.remove_from_cache(folio, 1)
    mem.clear(folio, PG_SWAPCACHE)
    return True


def folio_end_writeback(kernel: Kernel, folio: int, entry: int) -> None:
    """The write of a swap cache folio to its slot ends.

    Kernel: mm/page_io.c, end_swap_bio_write(); mm/filemap.c, folio_end_writeback().
    """
    mem = kernel.mem
    kernel.swap.contents[entry] = mem.content.read(folio)
    mem.folio_get(folio)
    mem.clear(folio, PG_WRITEBACK)
    mem.folio_put(folio)


def free_swapped(kernel: Kernel, folio: int, entry: int) -> None:
    """Reclaim comes by again at a swap cache folio that is written and unmapped, and frees it.

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
        unused = mem.test(folio, PG_SWAPCACHE) and not mem.folio_mapcount(folio)
        gone = unused and remove_mapping(kernel, folio, entry)
        mem.folio_unlock(folio)
        if gone:
            mem.free_folio(folio)
            return
    folio_putback_lru(mem, kernel.this_cpu, folio)
