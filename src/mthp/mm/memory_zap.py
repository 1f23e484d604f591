# SPDX-License-Identifier: GPL-2.0-or-later
"""Ranges are emptied, and tables that are empty then are given back. Kernel: mm/memory.c.

Apart from memory.py, which is long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from mthp.mm.huge_memory import split_huge_pmd, zap_deposited_table
from mthp.mm.mm_types import CEILING, FLOOR, MM_ANONPAGES, MM_SWAPENTS, Kernel, PmdPtr, Vma
from mthp.mm.mmap_lock import vma_start_write
from mthp.mm.mmu_gather import (
    MmuGather,
    pte_free_tlb,
    tlb_finish_mmu,
    tlb_gather_mmu,
    tlb_remove_folio_pages,
)
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.pgtable import (
    PteMap,
    clear_full_ptes,
    folio_pte_batch,
    mm_find_pmd,
    pmd_lock,
    pmdp_get_lockless,
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
    pmd_is_table,
    pmd_none,
    pmd_pgtable,
    pmd_trans_huge,
    pte_none,
    pte_pfn,
    pte_present,
)
from mthp.mm.rmap import folio_remove_rmap_pmd, folio_remove_rmap_ptes, unlink_anon_vmas
from mthp.mm.swap_state import swap_pte_batch
from mthp.mm.swapfile import swap_put_entries_direct
from mthp.words.units import Address


class ZapDetails(NamedTuple):
    """What zapping a range takes with it. reclaim_pt: tables that are empty then. drop_markers: guard
    markers too. Kernel: struct zap_details."""

    reclaim_pt: bool
    drop_markers: bool


DONTNEED: Final = ZapDetails(reclaim_pt=True, drop_markers=False)
"""Kernel: mm/madvise.c, madvise_dontneed_single_vma()."""
UNMAP: Final = ZapDetails(reclaim_pt=False, drop_markers=True)
"""Kernel: mm/memory.c, unmap_vmas()."""


def zap_page_range_single(vma: Vma, start: Address, end: Address) -> None:
    """Empty a range. Caller holds mmap_lock or the VMA. Kernel: mm/memory.c, zap_page_range_single(); since
    7.3 zap_vma_range().
    """
    mm = vma.vm_mm
    tlb = tlb_gather_mmu(mm, start, end)
    with mmu_notifier_invalidate_range(mm, start, end):
        zap_vma_range(tlb, vma, start, end, DONTNEED)
    tlb_finish_mmu(tlb)


def unmap_vmas(tlb: MmuGather, vmas: Sequence[Vma]) -> None:
    """Empty mappings. Kernel: mm/memory.c, unmap_vmas()."""
    with mmu_notifier_invalidate_range(tlb.mm, tlb.start, tlb.end):
        for vma in vmas:
            zap_vma_range(tlb, vma, vma.vm_start, vma.vm_end, UNMAP)


def zap_vma_range(
    tlb: MmuGather, vma: Vma, start: Address, end: Address, details: ZapDetails
) -> None:
    """Empty what the VMA has of [start, end). Kernel: mm/memory.c, __zap_vma_range()."""
    for part in vma.vm_mm.geometry.pmd_ranges(start, end):
        zap_pmd_range(tlb, vma, *part, details)


def zap_pmd_range(
    tlb: MmuGather, vma: Vma, start: Address, end: Address, details: ZapDetails
) -> None:
    """Empty a range in one table. Where the PMD is no table any more by then, it is looked at again.

    Kernel: mm/memory.c, zap_pmd_range().
    """
    pmd = mm_find_pmd(vma.vm_mm, start)
    while pmd is not None:
        pmdval = pmdp_get_lockless(pmd)
        if pmd_trans_huge(pmdval) or pmd_is_migration_entry(pmdval):
            if not whole_table(vma, start, end):
                split_huge_pmd(vma, pmd, start)
            elif zap_huge_pmd(tlb, vma, pmd):
                return
            pmdval = pmdp_get_lockless(pmd)
        if pmd_none(pmdval) or zap_pte_range(tlb, vma, pmd, start, end, details):
            return


def zap_huge_pmd(tlb: MmuGather, vma: Vma, pmd: PmdPtr) -> bool:
    """Empty a huge PMD. False: it is none any more.

    Kernel: mm/huge_memory.c, zap_huge_pmd().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    with pmd_lock(pmd):
        pmdval = pmd.page.pmds.read(pmd.slot)
        present = pmd_trans_huge(pmdval)
        if not present and not pmd_is_migration_entry(pmdval):
            return False
        pmd.page.pmds.write(pmd.slot, PMD_NONE)
        folio = pmd_folio(pmdval)
        is_zero = is_huge_zero_pmd(pmdval)
        if not is_zero:
            if present:
                folio_remove_rmap_pmd(kernel.mem, kernel.this_cpu, folio, vma)
            mm.counters[MM_ANONPAGES] -= kernel.geometry.ptrs_per_pte
        zap_deposited_table(kernel, pmd)
    if present and not is_zero:
        tlb_remove_folio_pages(tlb, folio, 1)
    return True


def zap_pte_range(
    tlb: MmuGather, vma: Vma, pmd: PmdPtr, start: Address, end: Address, details: ZapDetails
) -> bool:
    """Empty entries, and take the table away if that is all of it. False: the PMD points to no table any
    more.

    Kernel: mm/memory.c, zap_pte_range(), do_zap_pte_range().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    found = pte_offset_map_lock(mm, pmd, start)
    if found is None:
        return False
    pte, ptl = found
    may_reclaim = details.reclaim_pt and whole_table(vma, start, end)
    i, end_i = 0, (end - start) >> kernel.geometry.page_shift
    while i < end_i:
        pteval = pte.get(i)
        nr = 1
        if pte_present(pteval):
            nr = zap_present_ptes(tlb, vma, pte, i, pteval, end_i - i)
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
        pte_free_tlb(tlb, reclaimed)
    return True


def whole_table(vma: Vma, start: Address, end: Address) -> bool:
    """Whether the range is all of a table. Kernel: mm/memory.c, pte_table_reclaim_possible()."""
    return end - start >= vma.vm_mm.geometry.pmd_size


def zap_present_ptes(
    tlb: MmuGather, vma: Vma, pte: PteMap, i: int, pteval: Pte, max_nr: int
) -> int:
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
    tlb_remove_folio_pages(tlb, folio, nr)
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


# Tables


def free_pgtables(
    tlb: MmuGather, vmas: Sequence[Vma], floor: Address = FLOOR, ceiling: Address = CEILING
) -> None:
    """Hide emptied mappings from rmap walks, and take the tables away that no mapping beside them has a part
    of. floor, ceiling: where the one before ends, and the one after begins.

    Kernel: mm/memory.c, free_pgtables().
    """
    size, first = tlb.mm.geometry.pmd_size, 0
    for at, vma in enumerate(vmas, 1):
        vma_start_write(vma)
        unlink_anon_vmas(vma)
        after = vmas[at].vm_start if at < len(vmas) else ceiling
        if at == len(vmas) or after > vma.vm_end + size:
            free_pgd_range(tlb, vmas[first].vm_start, vma.vm_end, floor, after)
            first = at


def free_pgd_range(
    tlb: MmuGather, start: Address, end: Address, floor: Address, ceiling: Address
) -> None:
    """Take away what has to do with [start, end) alone: tables, and the pages of PMDs.

    Kernel: mm/memory.c, free_pgd_range().
    """
    geometry = tlb.mm.geometry
    start = geometry.pmd_addr(start)
    if start < floor:
        start += geometry.pmd_size
    if end > geometry.pmd_addr(ceiling):
        end -= geometry.pmd_size
    span = geometry.pmd_size * geometry.ptrs_per_pte
    for begin in range(start & -span, end, span):
        free_pmd_range(tlb, max(begin, start), min(begin + span, end), floor, ceiling)


def free_pmd_range(
    tlb: MmuGather, start: Address, end: Address, floor: Address, ceiling: Address
) -> None:
    """Take away the tables of one page of PMDs, and then the page.

    Divergence: the page stays where a scheduler watches steps. Kernel: mm/memory.c, free_pmd_range().
    """
    mm, size = tlb.mm, tlb.mm.geometry.pmd_size
    span = size * mm.geometry.ptrs_per_pte
    number, first = divmod(start, span)
    page = mm.pmd_pages.get(number)
    if page is None:
        return
    for slot in range(first // size, first // size + -((start - end) // size)):
        pmdval = pmdp_get_lockless(PmdPtr(page, slot))
        if pmd_is_table(pmdval):
            page.pmds.write(slot, PMD_NONE)  # free_pte_range()
            pte_free_tlb(tlb, pmd_pgtable(pmdval))
    if number * span >= floor and end <= ceiling & -span and mm.machine.on_step is None:
        del mm.pmd_pages[number]
        mm.pmd_numbers.remove(number)
