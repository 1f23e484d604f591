# SPDX-License-Identifier: GPL-2.0-or-later
"""MADV_FREE, and reclaim that drops what was given up. Kernel: mm/madvise.c, mm/vmscan.c."""

from __future__ import annotations

from mthp.machine.cpu import flush_tlb_range
from mthp.mm.folio import (
    PAGE_ANON_EXCLUSIVE,
    PG_ACTIVE,
    PG_ANON,
    PG_DIRTY,
    PG_LRU,
    PG_REFERENCED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_UNEVICTABLE,
)
from mthp.mm.kernel import Kernel
from mthp.mm.lru import folio_isolate_lru, folio_putback_lru
from mthp.mm.mm_struct import MM_ANONPAGES, Mm
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.pagetable import PteMap, mm_find_pmd, pmdp_get_lockless, pte_offset_map_lock
from mthp.mm.pte import DIRTY, YOUNG, pmd_trans_huge, pte_dirty, pte_none, pte_pfn, pte_present
from mthp.mm.rmap import folio_remove_rmap_ptes
from mthp.mm.vma import Vma
from mthp.rivals.fault import lock_vma_under_rcu
from mthp.rivals.said import Discarding
from mthp.rivals.walk import (
    folio_lock_anon_vma_read,
    map_pte,
    mapped_places,
    ptep_clear_flush,
    unlocked_after,
)


def madvise_free(mm: Mm, start: int, end: int) -> None:
    """The pages of [start, end) may be dropped, until they are stored to again.

    Kernel: mm/madvise.c, madvise_dontneed_free(), try_vma_read_lock().
    """
    vma = lock_vma_under_rcu(mm, start)
    if vma is not None:
        madvise_free_single_vma(vma, start, end)
        vma.vm_lock.leave()
        return
    with mm.mmap_read_lock():
        vma = mm.find_vma(start)
        if vma is not None and start >= vma.vm_start:
            madvise_free_single_vma(vma, start, end)


def madvise_free_single_vma(vma: Vma, start: int, end: int) -> None:
    """Kernel: mm/madvise.c, madvise_free_single_vma(), madvise_free_pte_range()."""
    mm = vma.vm_mm
    kernel = mm.kernel
    shift = kernel.geometry.page_shift
    kernel.witness(Discarding(mm, start, end))
    with mmu_notifier_invalidate_range(mm, start, end):
        pmd = mm_find_pmd(mm, start)
        huge = pmd is None or pmd_trans_huge(pmdp_get_lockless(pmd))  # madvise_free_huge_pmd()
        found = None if pmd is None or huge else pte_offset_map_lock(mm, pmd, start)
        if found is not None:
            with unlocked_after(kernel, found) as pte:
                for i in range((end - start) >> shift):
                    _free_pte(kernel, pte, i)
        this_cpu = kernel.this_cpu.number
        flush_tlb_range(kernel.cpus, mm.number, start >> shift, end >> shift, this_cpu)


def _free_pte(kernel: Kernel, pte: PteMap, i: int) -> None:
    """Divergence: large folios and swapped pages are left alone."""
    mem = kernel.mem
    pteval = pte.get(i)
    page = pte_pfn(pteval)
    if pte_none(pteval) or not pte_present(pteval) or not page or mem.folio_test_large(page):
        return
    if mem.flags.test_bits(page, PG_SWAPCACHE | PG_DIRTY):
        if not mem.folio_trylock(page):
            return
        usable = mem.folio_mapcount(page) == 1 and not mem.test(page, PG_SWAPCACHE)
        if usable:
            mem.clear(page, PG_DIRTY)
        mem.folio_unlock(page)
        if not usable:
            return
    pte.ptes.clear_bits(pte.base + i, YOUNG | DIRTY)
    folio_mark_lazyfree(kernel, page)


def folio_mark_lazyfree(kernel: Kernel, folio: int) -> None:
    """Divergence: at once, where the kernel waits until its batch is full. Kernel: mm/folio.c."""
    mem = kernel.mem
    wanted = PG_ANON | PG_SWAPBACKED | PG_LRU
    if mem.flags.test_bits(folio, wanted | PG_SWAPCACHE | PG_UNEVICTABLE) == wanted:
        mem.flags.clear_bits(folio, PG_ACTIVE | PG_REFERENCED | PG_SWAPBACKED)


def discard_folio(kernel: Kernel, folio: int) -> None:
    """Drop a page that was given up, unless it was stored to or is used.

    Kernel: mm/vmscan.c, shrink_folio_list().
    """
    mem = kernel.mem
    if not mem.folio_try_get(folio):
        return
    isolated = folio_isolate_lru(mem, folio)
    mem.folio_put(folio)
    if not isolated:
        return
    if mem.folio_test_lazyfree(folio) and mem.folio_trylock(folio):
        with folio_lock_anon_vma_read(kernel, folio):
            for vma, address in mapped_places(kernel, folio):
                discard_one(kernel, folio, vma, address)
        gone = not mem.folio_mapcount(folio) and mem.refcount.freeze(folio, 1)
        mem.folio_unlock(folio)
        if gone:
            mem.free_folio(folio)
            return
    folio_putback_lru(mem, kernel.this_cpu, folio)


def discard_one(kernel: Kernel, folio: int, vma: Vma, address: int) -> None:
    """The PTE is cleared before references are counted, for GUP-fast takes no lock.

    Kernel: mm/rmap.c, try_to_unmap_one(), of a folio that is not swap-backed.
    """
    mem = kernel.mem
    mm = vma.vm_mm
    with mmu_notifier_invalidate_range(mm, address, address + kernel.geometry.page_size):
        found = map_pte(mm, address, folio)
        if found is None:
            return
        with unlocked_after(kernel, found) as pte:
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
