# SPDX-License-Identifier: GPL-2.0-or-later
"""Ranges are emptied, and tables that are empty then are given back. Kernel: mm/memory.c.

Apart from memory.py, which is long.
"""

from __future__ import annotations

from mthp.mm.huge_memory import split_huge_pmd, zap_deposited_table
from mthp.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, Kernel, PmdPtr, Vma
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.pgtable import (
    PteMap,
    flush_tlb_mm_range,
    mm_find_pmd,
    pmd_lock,
    pmdp_get_lockless,
    pte_free_tlb,
    pte_offset_map,
    pte_offset_map_lock,
)
from mthp.mm.pgtable_types import (
    PMD_NONE,
    PTE_NONE,
    Leaf,
    leaf_kind,
    pmd_folio,
    pmd_is_migration_entry,
    pmd_none,
    pmd_pgtable,
    pmd_trans_huge,
    pte_none,
    pte_pfn,
    pte_present,
)
from mthp.mm.rmap import folio_remove_rmap_pmd, folio_remove_rmap_ptes
from mthp.words.units import Address, Folio


def zap_page_range_single(vma: Vma, start: Address, end: Address) -> None:
    """Empty a range. Caller holds mmap_lock. Kernel: mm/memory.c, zap_page_range_single()."""
    mm = vma.vm_mm
    with mmu_notifier_invalidate_range(mm, start, end):
        freed = zap_vma_range(vma, start, end)
        # tlb_finish_mmu(): pages are given back only when no CPU can reach them any more.
        flush_tlb_mm_range(mm, start, end)
        for folio in freed:
            mm.kernel.mem.folio_put(folio)


def zap_vma_range(vma: Vma, start: Address, end: Address) -> list[Folio]:
    """Empty what the VMA has of [start, end); returns the folios it mapped.

    Kernel: mm/memory.c, __zap_vma_range().
    """
    parts = vma.vm_mm.geometry.pmd_ranges(start, end)
    return [folio for part in parts for folio in zap_pmd_range(vma, *part)]


def zap_pmd_range(vma: Vma, start: Address, end: Address) -> list[Folio]:
    """Empty a range in one table; returns the folios it mapped. Where the PMD is no table any more by
    then, it is looked at again. Kernel: mm/memory.c, zap_pmd_range().
    """
    pmd = mm_find_pmd(vma.vm_mm, start)
    freed: list[Folio] | None = None
    while pmd is not None and freed is None:
        pmdval = pmdp_get_lockless(pmd)
        if pmd_trans_huge(pmdval) or pmd_is_migration_entry(pmdval):
            if not whole_table(vma, start, end):
                split_huge_pmd(vma, pmd, start)
            elif (freed := zap_huge_pmd(vma, pmd)) is not None:
                break
            pmdval = pmdp_get_lockless(pmd)
        freed = [] if pmd_none(pmdval) else zap_pte_range(vma, pmd, start, end)
    return freed or []


def zap_huge_pmd(vma: Vma, pmd: PmdPtr) -> list[Folio] | None:
    """Empty a huge PMD; returns the folio that lost a mapping. None: it is no huge PMD any more.

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
        folio = pmd_folio(pmdval)
        if present:
            folio_remove_rmap_pmd(kernel.mem, kernel.this_cpu, folio, vma)
        mm.counters[MM_ANONPAGES] -= kernel.geometry.ptrs_per_pte
        zap_deposited_table(kernel, pmd)
    return [folio] if present else []


def zap_pte_range(vma: Vma, pmd: PmdPtr, start: Address, end: Address) -> list[Folio] | None:
    """Empty entries, and the table if that is all of it; returns the folios they mapped. None: the PMD
    points to no table any more.

    Kernel: mm/memory.c, zap_pte_range().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    found = pte_offset_map_lock(mm, pmd, start)
    if found is None:
        return None
    pte, ptl = found
    freed: list[Folio] = []
    for i in range((end - start) >> kernel.geometry.page_shift):
        if not pte_none(pte.get(i)):
            zap_present_ptes(vma, pte, i, freed)
    may_reclaim = whole_table(vma, start, end)
    reclaimed = zap_empty_pte_table(pmd, pte) if may_reclaim else None
    ptl.release()
    pte.unmap()
    if may_reclaim and reclaimed is None:
        reclaimed = zap_pte_table_if_empty(kernel, pmd, start)
    if reclaimed is not None:
        pte_free_tlb(kernel.tables[reclaimed])
    return freed


def whole_table(vma: Vma, start: Address, end: Address) -> bool:
    """Whether the range is all of a table. Kernel: mm/memory.c, pte_table_reclaim_possible()."""
    return end - start >= vma.vm_mm.geometry.pmd_size


def zap_present_ptes(vma: Vma, pte: PteMap, i: int, freed: list[Folio]) -> None:
    """Clear one entry. Kernel: mm/memory.c, zap_present_ptes(), zap_nonpresent_ptes().

    Divergence: what is left in the swap cache of a slot that no PTE names any more stays there.
    """
    kernel = pte.kernel
    counters = vma.vm_mm.counters
    old = pte.ptes.swap(pte.base + i, PTE_NONE)
    page = pte_pfn(old)
    if not pte_present(old):
        if leaf_kind(old) is Leaf.SWAP:
            counters[MM_SWAPENTS] -= 1
            kernel.swap.put_users(page, 1)
        elif leaf_kind(old) is Leaf.MIGRATION:
            counters[MM_ANONPAGES] -= 1
    elif page:
        folio = kernel.mem.page_folio(page)
        folio_remove_rmap_ptes(kernel.mem, kernel.this_cpu, folio, page, 1, vma)
        counters[MM_ANONPAGES] -= 1
        freed.append(folio)


def zap_empty_pte_table(pmd: PmdPtr, pte: PteMap) -> int | None:
    """Take a table that was just emptied out of its slot, unless the slot is locked.

    Kernel: mm/memory.c, zap_empty_pte_table().
    """
    pml = pmd.page.ptl.trylock()
    if pml is None:
        return None
    pmdval = pmd.page.pmds.swap(pmd.slot, PMD_NONE)
    pml.release()
    return pmd_pgtable(pmdval)


def zap_pte_table_if_empty(kernel: Kernel, pmd: PmdPtr, start: Address) -> int | None:
    """Take an emptied table out of its slot, if nobody has filled it since its lock was let go.

    Kernel: mm/memory.c, zap_pte_table_if_empty().
    """
    with pmd_lock(pmd):
        pmdval = pmdp_get_lockless(pmd)
        pte = pte_offset_map(kernel, pmdval, start)
        if pte is None:
            return None
        with pte, pte.table.ptl.lock():
            if not all(pte_none(pte.get(i)) for i in range(kernel.geometry.ptrs_per_pte)):
                return None
            pmd.page.pmds.write(pmd.slot, PMD_NONE)
    return pmd_pgtable(pmdval)
