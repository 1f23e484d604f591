# SPDX-License-Identifier: GPL-2.0-or-later
"""Swap slots are given up; for swapoff every page comes back. Kernel: mm/swapfile.c."""

from __future__ import annotations

from mthp.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, Kernel, Mm, PmdPtr, Vma
from mthp.mm.page_flags import PG_ANON, PG_DIRTY, PG_SWAPCACHE, PG_UPTODATE, PG_WRITEBACK
from mthp.mm.page_vma_mapped import folio_lock
from mthp.mm.pgtable import (
    mm_find_pmd,
    pmdp_get_lockless,
    pte_offset_map,
    pte_offset_map_lock,
    unlocked_after,
)
from mthp.mm.pgtable_types import (
    SOFT_DIRTY,
    SWP_EXCLUSIVE,
    UFFD_WP,
    Leaf,
    Pte,
    leaf_kind,
    mk_pte,
    pte_none,
    pte_pfn,
    pte_present,
)
from mthp.mm.rmap import folio_add_anon_rmap_ptes, folio_add_new_anon_rmap
from mthp.mm.swap_state import (
    folio_matches_swap_entry,
    swap_cache_del_folio,
    swap_cache_get_folio,
    swapin_sync,
)
from mthp.mm.swap_table import SwapError
from mthp.words.units import Address, Folio


def unuse_mm(mm: Mm, address: Address) -> None:
    """Bring one page back. Kernel: mm/swapfile.c, unuse_mm(), unuse_pte_range()."""
    kernel = mm.kernel
    with mm.mmap_read_lock():
        vma = mm.find_vma(address)
        pmd = mm_find_pmd(mm, address)
        if vma is None or address < vma.vm_start or pmd is None:
            return
        pte = pte_offset_map(kernel, pmdp_get_lockless(pmd), address)
        if pte is None:
            return
        with pte:
            pteval = pte.get(0)
        if pte_none(pteval) or pte_present(pteval) or leaf_kind(pteval) is not Leaf.SWAP:
            return
        folio = swap_cache_get_folio(kernel, pte_pfn(pteval))
        if folio is None:
            read = swapin_sync(mm, vma, address, pmd, pteval)
            if isinstance(read, SwapError):
                return
            folio = read
        folio_lock(kernel, folio)
        unuse_pte(vma, pmd, address, pteval, folio)
        folio_free_swap(kernel, folio)
        kernel.mem.folio_unlock(folio)
        kernel.mem.folio_put(folio)


def unuse_pte(vma: Vma, pmd: PmdPtr, address: Address, entry: Pte, folio: Folio) -> None:
    """Map a locked swap cache folio where its entry still stands.

    Kernel: mm/swapfile.c, unuse_pte().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    mem = kernel.mem
    if not folio_matches_swap_entry(kernel, folio, pte_pfn(entry)):
        return
    if not mem.test(folio, PG_UPTODATE):
        return
    found = pte_offset_map_lock(mm, pmd, address)
    if found is None:
        return
    with unlocked_after(kernel, found) as pte:
        old = pte.get(0)
        if old != entry:
            return
        mm.counters[MM_SWAPENTS] -= 1
        mm.counters[MM_ANONPAGES] += 1
        mem.folio_get(folio)
        exclusive = old & SWP_EXCLUSIVE != 0
        if mem.test(folio, PG_ANON):
            pages = range(folio, folio + 1)
            folio_add_anon_rmap_ptes(mem, kernel.this_cpu, folio, pages, vma, exclusive=exclusive)
        else:
            folio_add_new_anon_rmap(mem, folio, vma, address, exclusive=exclusive)
        pte.ptes.write(pte.base, mk_pte(folio, old & (SOFT_DIRTY | UFFD_WP)))
        kernel.swap.put_users(pte_pfn(entry), 1)


def folio_free_swap(kernel: Kernel, folio: Folio) -> bool:
    """Give up the swap slots of a folio that is in memory, which is dirty from then on; returns whether it
    has none any more. Slots that other PTEs still name stay, and so do those that are being written.

    Caller holds the folio lock. Kernel: mm/swapfile.c, folio_free_swap(), folio_swapcache_freeable().
    """
    mem = kernel.mem
    if mem.flags.test_bits(folio, PG_SWAPCACHE | PG_WRITEBACK) != PG_SWAPCACHE:
        return False
    if kernel.swap.folio_maybe_swapped(folio, mem.folio_nr_pages(folio)):
        return False
    swap_cache_del_folio(kernel, folio)
    mem.flags.set_bits(folio, PG_DIRTY)
    return True


def swap_put_entries_direct(kernel: Kernel, entry: int, nr: int) -> None:
    """One PTE less names each of nr slots; what is left of them in the swap cache alone is given up.

    Kernel: mm/swapfile.c, swap_put_entries_direct(), swap_put_entries_cluster().
    """
    if kernel.swap.put_users(entry, nr):
        for each in range(entry, entry + nr):
            try_to_reclaim_swap(kernel, each)


def try_to_reclaim_swap(kernel: Kernel, entry: int) -> None:
    """Take what stands for a slot out of the swap cache, if nobody maps it or names its slots.

    Kernel: mm/swapfile.c, __try_to_reclaim_swap() with TTRS_UNMAPPED.
    """
    mem = kernel.mem
    folio = swap_cache_get_folio(kernel, entry)
    if folio is None:
        return
    if mem.folio_trylock(folio):
        if folio_matches_swap_entry(kernel, folio, entry) and not mem.folio_mapcount(folio):
            folio_free_swap(kernel, folio)
        mem.folio_unlock(folio)
    mem.folio_put(folio)


def free_swap_cache(kernel: Kernel, folio: Folio) -> None:
    """Give up the swap slot of a folio that is not mapped any more. Kernel: mm/swap_state.c."""
    mem = kernel.mem
    if not mem.test(folio, PG_SWAPCACHE) or mem.folio_mapcount(folio):
        return
    if mem.folio_trylock(folio):
        folio_free_swap(kernel, folio)
        mem.folio_unlock(folio)
