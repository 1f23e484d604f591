# SPDX-License-Identifier: GPL-2.0-or-later
"""MADV_DONTNEED and MADV_FREE. Kernel: mm/madvise.c."""

from __future__ import annotations

from mthp.mm.memory_zap import zap_page_range_single
from mthp.mm.mm_types import Kernel, Mm, Vma
from mthp.mm.mmap_lock import lock_vma_under_rcu, with_vma_read_locked
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.page_flags import (
    PG_ACTIVE,
    PG_ANON,
    PG_DIRTY,
    PG_LRU,
    PG_REFERENCED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_UNEVICTABLE,
)
from mthp.mm.pgtable import (
    PteMap,
    flush_tlb_mm_range,
    mm_find_pmd,
    pmdp_get_lockless,
    pte_offset_map_lock,
    unlocked_after,
)
from mthp.mm.pgtable_types import DIRTY, YOUNG, pmd_trans_huge, pte_none, pte_pfn, pte_present
from mthp.mm.reports import Discarding, Zapped, Zapping
from mthp.mm.vm_flags import VM_LOCKED
from mthp.words.units import Address, Folio


def madvise_free(mm: Mm, start: Address, end: Address) -> None:
    """Let the pages of [start, end) be dropped, until they are stored to again.

    Kernel: mm/madvise.c, madvise_dontneed_free(), try_vma_read_lock().
    """
    with_vma_read_locked(mm, start, lambda vma: madvise_free_single_vma(vma, start, end))


def madvise_free_single_vma(vma: Vma, start: Address, end: Address) -> None:
    """Do MADV_FREE in one VMA. Kernel: madvise_free_single_vma(), madvise_free_pte_range()."""
    mm = vma.vm_mm
    kernel = mm.kernel
    if vma.vm_flags & VM_LOCKED:
        return
    kernel.report(Discarding(mm, start, end))
    with mmu_notifier_invalidate_range(mm, start, end):
        pmd = mm_find_pmd(mm, start)
        huge = pmd is None or pmd_trans_huge(pmdp_get_lockless(pmd))  # madvise_free_huge_pmd()
        found = None if pmd is None or huge else pte_offset_map_lock(mm, pmd, start)
        if found is not None:
            with unlocked_after(kernel, found) as pte:
                for i in range((end - start) >> mm.geometry.page_shift):
                    _free_pte(kernel, pte, i)
        flush_tlb_mm_range(mm, start, end)


def _free_pte(kernel: Kernel, pte: PteMap, i: int) -> None:
    """Let one small page be dropped. Divergence: large and swapped ones are left alone."""
    mem = kernel.mem
    pteval = pte.get(i)
    folio = Folio(pte_pfn(pteval))
    if pte_none(pteval) or not pte_present(pteval) or not folio or mem.folio_test_large(folio):
        return
    if mem.flags.test_bits(folio, PG_SWAPCACHE | PG_DIRTY):
        if not mem.folio_trylock(folio):
            return
        usable = mem.folio_mapcount(folio) == 1 and not mem.test(folio, PG_SWAPCACHE)
        if usable:
            mem.clear(folio, PG_DIRTY)
        mem.folio_unlock(folio)
        if not usable:
            return
    pte.ptes.clear_bits(pte.base + i, YOUNG | DIRTY)
    folio_mark_lazyfree(kernel, folio)


def folio_mark_lazyfree(kernel: Kernel, folio: Folio) -> None:
    """Mark it freeable. Divergence: at once, not when a batch is full. Kernel: mm/folio.c."""
    mem = kernel.mem
    wanted = PG_ANON | PG_SWAPBACKED | PG_LRU
    if mem.flags.test_bits(folio, wanted | PG_SWAPCACHE | PG_UNEVICTABLE) == wanted:
        mem.flags.clear_bits(folio, PG_ACTIVE | PG_REFERENCED | PG_SWAPBACKED)


def madvise_dontneed(mm: Mm, start: Address, end: Address) -> None:
    """Empty [start, end) of one table under mmap_lock. Kernel: madvise_dontneed_free()."""
    with mm.mmap_read_lock():
        for vma in mm.for_each_vma(start):
            if vma.vm_start >= end:
                break
            if not madvise_dontneed_single_vma(vma, max(start, vma.vm_start), end):
                return
    mm.kernel.report(Zapped(mm, start, end, mm.machine.current.name))


def madvise_dontneed_vma_locked(mm: Mm, start: Address, end: Address) -> None:
    """Empty [start, end) under the VMA lock, and under mmap_lock only where that cannot be had.

    Kernel: mm/madvise.c, get_lock_mode(), try_vma_read_lock().
    """
    vma = lock_vma_under_rcu(mm, start)
    if vma is not None and vma.vm_end < end:
        vma.vm_lock.leave()
        vma = None
    if vma is None:
        madvise_dontneed(mm, start, end)
        return
    is_zapped = madvise_dontneed_single_vma(vma, start, end)
    vma.vm_lock.leave()
    if is_zapped:
        mm.kernel.report(Zapped(mm, start, end, mm.machine.current.name))


def madvise_dontneed_single_vma(vma: Vma, start: Address, end: Address) -> bool:
    """Empty what a VMA has of a range, unless it is locked; returns whether it is not. Caller holds the
    VMA or mmap_lock.

    Kernel: mm/madvise.c, madvise_dontneed_single_vma(), madvise_dontneed_free_valid_vma().
    """
    if vma.vm_flags & VM_LOCKED:
        return False
    vma.vm_mm.kernel.report(Zapping(vma.vm_mm, start, end))
    zap_page_range_single(vma, start, min(end, vma.vm_end))
    return True
