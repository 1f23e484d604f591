# SPDX-License-Identifier: GPL-2.0-or-later
"""MADV_DONTNEED: zap PTEs or a huge PMD, and give empty tables back. Kernel: mm/memory.c."""

from __future__ import annotations

from mthp.machine.cpu import flush_tlb_range
from mthp.machine.step import Access
from mthp.mm.mm_struct import MM_ANONPAGES, MM_SWAPENTS, Mm
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.pagetable import (
    PmdPtr,
    PteMap,
    mm_find_pmd,
    pmd_lock,
    pmdp_get_lockless,
    pte_free_tlb,
    pte_offset_map_lock,
)
from mthp.mm.pte import (
    PMD_NONE,
    PTE_NONE,
    Leaf,
    leaf_kind,
    pmd_is_migration_entry,
    pmd_none,
    pmd_pgtable,
    pmd_trans_huge,
    pte_none,
    pte_pfn,
    pte_present,
)
from mthp.mm.rmap import folio_remove_rmap_pmd, folio_remove_rmap_ptes
from mthp.mm.vma import Vma
from mthp.rivals.fault import lock_vma_under_rcu
from mthp.rivals.huge import split_huge_pmd, zap_deposited_table
from mthp.rivals.said import Zapped, Zapping


def madvise_dontneed(mm: Mm, start: int, end: int) -> None:
    """Empty [start, end), which lies in one table. Kernel: mm/madvise.c, madvise_dontneed_free(),
    as kernels do that take mmap_lock for it.
    """
    with mm.mmap_read_lock():
        vma = mm.find_vma(start)
        if vma is None or start < vma.vm_start:
            return
        madvise_dontneed_single_vma(vma, start, end)
    mm.kernel.witness(Zapped(mm, start, end, mm.machine.current.name))


def madvise_dontneed_vma_locked(mm: Mm, start: int, end: int) -> None:
    """The same under the VMA lock, and under mmap_lock only where that is not to be had.

    Kernel: mm/madvise.c, get_lock_mode(), try_vma_read_lock().
    """
    vma = lock_vma_under_rcu(mm, start)
    if vma is None:
        madvise_dontneed(mm, start, end)
        return
    madvise_dontneed_single_vma(vma, start, end)
    vma.vm_lock.leave()
    mm.kernel.witness(Zapped(mm, start, end, mm.machine.current.name))


def madvise_dontneed_single_vma(vma: Vma, start: int, end: int) -> None:
    """Caller holds the VMA or mmap_lock. Kernel: mm/madvise.c, madvise_dontneed_single_vma()."""
    vma.vm_mm.kernel.witness(Zapping(vma.vm_mm, start, end))
    zap_page_range_single(vma, start, min(end, vma.vm_end))


def zap_page_range_single(vma: Vma, start: int, end: int) -> None:
    """Caller holds mmap_lock. Kernel: mm/memory.c, zap_page_range_single()."""
    mm = vma.vm_mm
    kernel = mm.kernel
    with mmu_notifier_invalidate_range(mm, start, end):
        freed = zap_pmd_range(vma, start, end)
        # tlb_finish_mmu(): pages are given back only when no CPU can reach them any more.
        shift = kernel.geometry.page_shift
        this_cpu = kernel.this_cpu.number
        flush_tlb_range(kernel.cpus, mm.number, start >> shift, end >> shift, this_cpu)
        for folio in freed:
            kernel.mem.folio_put(folio)


def zap_pmd_range(vma: Vma, start: int, end: int) -> list[int]:
    """The folios that lost a mapping. Kernel: mm/memory.c, zap_pmd_range()."""
    pmd = mm_find_pmd(vma.vm_mm, start)
    if pmd is None:
        return []
    pmdval = pmdp_get_lockless(pmd)
    if pmd_none(pmdval):
        return []
    if pmd_trans_huge(pmdval) or pmd_is_migration_entry(pmdval):
        if not whole_table(vma, start, end):
            split_huge_pmd(vma, pmd, start)
        elif (freed := zap_huge_pmd(vma, pmd)) is not None:
            return freed
    return zap_pte_range(vma, pmd, start, end)


def zap_huge_pmd(vma: Vma, pmd: PmdPtr) -> list[int] | None:
    """The folio that lost a mapping; None: it is no huge PMD any more.

    Kernel: mm/huge_memory.c, zap_huge_pmd().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    with pmd_lock(pmd):
        pmdval = pmd.page.pmds.read(pmd.slot)
        present = pmd_trans_huge(pmdval)
        if not present and not pmd_is_migration_entry(pmdval):
            return None
        pmd.page.pmds.write(pmd.slot, PMD_NONE)
        folio = pte_pfn(pmdval)
        if present:
            folio_remove_rmap_pmd(kernel.mem, kernel.this_cpu, folio, vma)
        mm.counters[MM_ANONPAGES] -= kernel.geometry.ptrs_per_pte
        zap_deposited_table(kernel, pmd)
    return [folio] if present else []


def zap_pte_range(vma: Vma, pmd: PmdPtr, start: int, end: int) -> list[int]:
    """Kernel: mm/memory.c, zap_pte_range()."""
    mm = vma.vm_mm
    kernel = mm.kernel
    found = pte_offset_map_lock(mm, pmd, start)
    if found is None:
        return []
    pte, ptl = found
    freed: list[int] = []
    for i in range((end - start) >> kernel.geometry.page_shift):
        if not pte_none(pte.get(i)):
            zap_present_ptes(vma, pte, i, freed)
    reclaimed = zap_empty_pte_table(pmd, pte) if whole_table(vma, start, end) else None
    ptl.release()
    pte.unmap()
    if reclaimed is not None:
        pte_free_tlb(kernel.tables[reclaimed])
    return freed


def whole_table(vma: Vma, start: int, end: int) -> bool:
    """Kernel: mm/memory.c, pte_table_reclaim_possible()."""
    return end - start >= vma.vm_mm.geometry.pmd_size


def zap_present_ptes(vma: Vma, pte: PteMap, i: int, freed: list[int]) -> None:
    """Clear one entry. Kernel: mm/memory.c, zap_present_ptes(), zap_nonpresent_ptes().

    Divergence: what is left in the swap cache of a slot that nobody names any more stays there.
    """
    kernel = pte.kernel
    counters = vma.vm_mm.counters
    old = pte.ptes.swap(pte.base + i, PTE_NONE)
    page = pte_pfn(old)
    if not pte_present(old):
        if leaf_kind(old) is Leaf.SWAP:
            counters[MM_SWAPENTS] -= 1
            kernel.machine.step(Access.RMW, kernel.swap, page)
            kernel.swap.put_users(page, 1)
        elif leaf_kind(old) is Leaf.MIGRATION:
            counters[MM_ANONPAGES] -= 1
    elif page:
        folio = kernel.mem.page_folio(page)
        folio_remove_rmap_ptes(kernel.mem, kernel.this_cpu, folio, page, 1, vma)
        counters[MM_ANONPAGES] -= 1
        freed.append(folio)


def zap_empty_pte_table(pmd: PmdPtr, pte: PteMap) -> int | None:
    """Take a table that was just emptied out of its slot. Kernel: zap_empty_pte_table()."""
    pml = pmd.page.ptl.trylock()
    if pml is None:
        return None
    pmdval = pmd.page.pmds.swap(pmd.slot, PMD_NONE)
    pml.release()
    return pmd_pgtable(pmdval)
