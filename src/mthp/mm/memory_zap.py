# SPDX-License-Identifier: GPL-2.0-or-later
"""Ranges are emptied, and tables that are empty then are given back. Kernel: mm/memory.c.

Apart from memory.py, which is long.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from mthp.mm.huge_memory import split_huge_pmd, zap_deposited_table
from mthp.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, Kernel, PmdPtr, Vma
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.pgtable import (
    PteMap,
    clear_full_ptes,
    flush_tlb_mm_range,
    folio_pte_batch,
    mm_find_pmd,
    pmd_lock,
    pmdp_get_lockless,
    pte_free_tlb,
    pte_offset_map,
    pte_offset_map_lock,
)
from mthp.mm.pgtable_types import (
    PMD_NONE,
    Leaf,
    Pte,
    is_huge_zero_pmd,
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
from mthp.mm.swap_state import swap_pte_batch
from mthp.mm.swapfile import free_swap_cache, swap_put_entries_direct
from mthp.words.units import Address, Folio


class ZapDetails(NamedTuple):
    """What zapping a range takes with it. reclaim_pt: tables that are empty then. drop_markers: guard
    markers too. Kernel: struct zap_details."""

    reclaim_pt: bool
    drop_markers: bool


DONTNEED: Final = ZapDetails(reclaim_pt=True, drop_markers=False)
"""Kernel: mm/madvise.c, madvise_dontneed_single_vma()."""
UNMAP: Final = ZapDetails(reclaim_pt=False, drop_markers=True)
"""Kernel: mm/memory.c, unmap_vmas()."""

Freed = list[tuple[Folio, int]]
"""Folios, each with how many references to it were taken out of page tables."""


def zap_page_range_single(vma: Vma, start: Address, end: Address) -> None:
    """Empty a range. Caller holds mmap_lock. Kernel: mm/memory.c, zap_page_range_single()."""
    mm = vma.vm_mm
    with mmu_notifier_invalidate_range(mm, start, end):
        freed = zap_vma_range(vma, start, end, DONTNEED)
        # tlb_finish_mmu(): pages are given back only when no CPU can reach them any more.
        flush_tlb_mm_range(mm, start, end)
        free_pages_and_swap_cache(mm.kernel, freed)


def free_pages_and_swap_cache(kernel: Kernel, freed: Freed) -> None:
    """Put what page tables referred to; what nobody maps any more gives its swap slot up first.

    Kernel: mm/swap_state.c, free_pages_and_swap_cache().
    """
    for folio, nr in freed:
        free_swap_cache(kernel, folio)
        kernel.mem.folio_put(folio, nr)


def zap_vma_range(vma: Vma, start: Address, end: Address, details: ZapDetails) -> Freed:
    """Empty what the VMA has of [start, end); returns the folios it mapped.

    Kernel: mm/memory.c, __zap_vma_range().
    """
    parts = vma.vm_mm.geometry.pmd_ranges(start, end)
    return [each for part in parts for each in zap_pmd_range(vma, *part, details)]


def zap_pmd_range(vma: Vma, start: Address, end: Address, details: ZapDetails) -> Freed:
    """Empty a range in one table; returns the folios it mapped. Where the PMD is no table any more by
    then, it is looked at again. Kernel: mm/memory.c, zap_pmd_range().
    """
    pmd = mm_find_pmd(vma.vm_mm, start)
    freed: Freed | None = None
    while pmd is not None and freed is None:
        pmdval = pmdp_get_lockless(pmd)
        if pmd_trans_huge(pmdval) or pmd_is_migration_entry(pmdval):
            if not whole_table(vma, start, end):
                split_huge_pmd(vma, pmd, start)
            elif (freed := zap_huge_pmd(vma, pmd)) is not None:
                break
            pmdval = pmdp_get_lockless(pmd)
        freed = [] if pmd_none(pmdval) else zap_pte_range(vma, pmd, start, end, details)
    return freed or []


def zap_huge_pmd(vma: Vma, pmd: PmdPtr) -> Freed | None:
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
        is_zero = is_huge_zero_pmd(pmdval)
        if not is_zero:
            if present:
                folio_remove_rmap_pmd(kernel.mem, kernel.this_cpu, folio, vma)
            mm.counters[MM_ANONPAGES] -= kernel.geometry.ptrs_per_pte
        zap_deposited_table(kernel, pmd)
    return [(folio, 1)] if present and not is_zero else []


def zap_pte_range(
    vma: Vma, pmd: PmdPtr, start: Address, end: Address, details: ZapDetails
) -> Freed | None:
    """Empty entries, and the table if that is all of it; returns the folios they mapped. None: the PMD
    points to no table any more.

    Kernel: mm/memory.c, zap_pte_range(), do_zap_pte_range().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    found = pte_offset_map_lock(mm, pmd, start)
    if found is None:
        return None
    pte, ptl = found
    freed: Freed = []
    may_reclaim = details.reclaim_pt and whole_table(vma, start, end)
    i, end_i = 0, (end - start) >> kernel.geometry.page_shift
    while i < end_i:
        pteval = pte.get(i)
        nr = 1
        if pte_present(pteval):
            nr = zap_present_ptes(vma, pte, i, pteval, end_i - i, freed)
        elif not pte_none(pteval):
            nr = zap_nonpresent_ptes(vma, pte, i, pteval, end_i - i, details)
            if not nr:
                nr, may_reclaim = 1, False
        i += nr
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


def zap_present_ptes(vma: Vma, pte: PteMap, i: int, pteval: Pte, max_nr: int, freed: Freed) -> int:
    """Clear PTE `i`, and those after it that map the next pages of its large folio, at most max_nr;
    returns how many. Kernel: mm/memory.c, zap_present_ptes(), zap_present_folio_ptes().
    """
    kernel = pte.kernel
    mem, page = kernel.mem, pte_pfn(pteval)
    if not page:
        clear_full_ptes(pte, i, 1)
        return 1
    folio = mem.page_folio(page)
    nr = 1
    if mem.folio_test_large(folio):
        nr = folio_pte_batch(pte, i, pteval, max_nr)
    clear_full_ptes(pte, i, nr)
    folio_remove_rmap_ptes(mem, kernel.this_cpu, folio, page, nr, vma)
    vma.vm_mm.counters[MM_ANONPAGES] -= nr
    freed.append((folio, nr))
    return nr


def zap_nonpresent_ptes(
    vma: Vma, pte: PteMap, i: int, pteval: Pte, max_nr: int, details: ZapDetails
) -> int:
    """Clear entry `i`, and swap entries after it that name the next slots, at most max_nr; returns how
    many, or 0 where a guard marker stays. Kernel: mm/memory.c, zap_nonpresent_ptes().
    """
    kernel, counters = pte.kernel, vma.vm_mm.counters
    nr = 1
    match leaf_kind(pteval):
        case Leaf.SWAP:
            nr = swap_pte_batch(pte, i, max_nr, pteval)
            counters[MM_SWAPENTS] -= nr
            swap_put_entries_direct(kernel, pte_pfn(pteval), nr)
        case Leaf.MIGRATION:
            counters[MM_ANONPAGES] -= 1
        case Leaf.GUARD if not details.drop_markers:
            return 0
    clear_full_ptes(pte, i, nr)
    return nr


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
