# SPDX-License-Identifier: GPL-2.0-or-later
"""MADV_FREE, MADV_COLD and MADV_PAGEOUT: what is advised of pages. Kernel: mm/madvise.c.

Apart from madvise.py, since splits and reclaim know more than it needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from mthp.mm.folio import (
    folio_isolate_lru,
    folio_mark_lazyfree,
    folio_putback_lru,
    lru_add_drain,
)
from mthp.mm.huge_memory import pmdp_invalidate
from mthp.mm.huge_memory_split import split_folio
from mthp.mm.mm_types import MM_SWAPENTS, Kernel, PmdPtr, Vma
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.page_flags import (
    PG_ACTIVE,
    PG_DIRTY,
    PG_LRU,
    PG_REFERENCED,
    PG_SWAPCACHE,
    PG_UNEVICTABLE,
    PG_YOUNG,
)
from mthp.mm.pgtable import (
    PteMap,
    clear_full_ptes,
    flush_tlb_mm_range,
    folio_pte_batch,
    mm_find_pmd,
    pmd_lock,
    pmdp_get_lockless,
    pte_offset_map_lock,
)
from mthp.mm.pgtable_types import (
    DIRTY,
    NO_ACCESS,
    YOUNG,
    ZERO_PFN,
    Leaf,
    Pte,
    is_huge_zero_pmd,
    leaf_kind,
    pmd_folio,
    pmd_trans_huge,
    pte_none,
    pte_pfn,
    pte_present,
)
from mthp.mm.reports import Discarding
from mthp.mm.swap_state import swap_pte_batch
from mthp.mm.swapfile import folio_free_swap, swap_put_entries_direct
from mthp.mm.vmscan import reclaim_pages
from mthp.words.units import Address, Folio

Visit = Callable[[PteMap, int, Pte, int], int]
"""What is done to entry i of a locked table, which holds a value, and to those after it, of which there are
so many at most: returns how many it has dealt with."""


def walk_ptes(vma: Vma, start: Address, end: Address, visit: Visit) -> None:
    """Visit the entries of a range in one table. A large folio of which only a part is meant is split
    first; where it is shared, locked or cannot be split, its part is passed over.

    Kernel: mm/madvise.c, madvise_free_pte_range(), madvise_cold_or_pageout_pte_range().
    """
    mm = vma.vm_mm
    mem = mm.kernel.mem
    pmd = mm_find_pmd(mm, start)
    found = pte_offset_map_lock(mm, pmd, start) if pmd is not None else None
    i, end_i = 0, (end - start) >> mm.geometry.page_shift
    while found is not None and i < end_i:
        pte, ptl = found
        pteval, nr = pte.get(i), end_i - i
        page = pte_pfn(pteval) if pte_present(pteval) else ZERO_PFN
        folio = mem.page_folio(page)
        if page and mem.folio_test_large(folio):
            nr = folio_pte_batch(pte, i, pteval, nr)
            if nr < mem.folio_nr_pages(folio):
                if not mem.folio_maybe_mapped_shared(folio) and mem.folio_trylock(folio):
                    mem.folio_get(folio)
                    ptl.release()
                    pte.unmap()
                    nr = 0 if _split_locked(mm.kernel, folio) else nr
                    found = pte_offset_map_lock(mm, pmd, start) if pmd is not None else None
                i += nr
                continue
        i += 1 if pte_none(pteval) else visit(pte, i, pteval, nr)
    if found is not None:
        found[1].release()
        found[0].unmap()


def _split_locked(kernel: Kernel, folio: Folio) -> bool:
    """Split a folio whose lock and a reference are the caller's, who gives both up."""
    split = split_folio(kernel, folio, folio)
    kernel.mem.folio_unlock(folio)
    kernel.mem.folio_put(folio)
    return split


# MADV_FREE


def madvise_free_single_vma(vma: Vma, start: Address, end: Address) -> None:
    """Let the pages of a range in one VMA be dropped, until they are stored to again.

    Kernel: mm/madvise.c, madvise_free_single_vma(), madvise_free_pte_range().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    kernel.report(Discarding(mm, start, end, kernel.machine.current.name))
    lru_add_drain(kernel.mem, kernel.this_cpu)
    with mmu_notifier_invalidate_range(mm, start, end):
        for first, last in mm.geometry.pmd_ranges(start, end):
            pmd = mm_find_pmd(mm, first)
            if pmd is None or not madvise_free_huge_pmd(vma, pmd, first, last):
                walk_ptes(vma, first, last, _free_ptes(vma))
        flush_tlb_mm_range(mm, start, end)


def madvise_free_huge_pmd(vma: Vma, pmd: PmdPtr, start: Address, end: Address) -> bool:
    """Let a huge page be dropped; one of which only a part is meant is split. Returns whether nothing is
    left to be done. Kernel: mm/huge_memory.c, madvise_free_huge_pmd().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    mem = kernel.mem
    if not pmd_trans_huge(pmdp_get_lockless(pmd)):
        return False
    ptl = pmd_lock(pmd)
    pmdval = pmdp_get_lockless(pmd)
    folio = pmd_folio(pmdval)
    usable = pmd_trans_huge(pmdval) and not is_huge_zero_pmd(pmdval)
    usable = usable and not mem.folio_maybe_mapped_shared(folio) and mem.folio_trylock(folio)
    if not usable:
        ptl.release()
        return False
    if end - start != mm.geometry.pmd_size:
        mem.folio_get(folio)
        ptl.release()
        _split_locked(kernel, folio)
        return False
    mem.clear(folio, PG_DIRTY)
    mem.folio_unlock(folio)
    if pmdval & (YOUNG | DIRTY):
        pmdval = pmdp_invalidate(mm, start, pmd)
        pmd.page.pmds.write(pmd.slot, pmdval & ~(YOUNG | DIRTY | NO_ACCESS))
    folio_mark_lazyfree(mem, kernel.this_cpu, folio)
    ptl.release()
    return True


def _free_ptes(vma: Vma) -> Visit:
    """Let small pages and whole large folios be dropped; swapped pages are at once.

    Kernel: mm/madvise.c, madvise_free_pte_range().
    """
    kernel = vma.vm_mm.kernel
    mem = kernel.mem

    def visit(pte: PteMap, i: int, pteval: Pte, max_nr: int) -> int:
        if not pte_present(pteval):
            return _free_nonpresent(vma, pte, i, pteval, max_nr)
        if not pte_pfn(pteval):
            return 1
        folio = mem.page_folio(pte_pfn(pteval))
        nr = mem.folio_nr_pages(folio)
        if mem.flags.test_bits(folio, PG_SWAPCACHE | PG_DIRTY):
            if not mem.folio_trylock(folio):
                return nr
            usable = mem.folio_mapcount(folio) == nr and (
                not mem.test(folio, PG_SWAPCACHE) or folio_free_swap(kernel, folio)
            )
            if usable:
                mem.clear(folio, PG_DIRTY)
            mem.folio_unlock(folio)
            if not usable:
                return nr
        for at in range(pte.base + i, pte.base + i + nr):
            pte.ptes.clear_bits(at, YOUNG | DIRTY)
        folio_mark_lazyfree(mem, kernel.this_cpu, folio)
        return nr

    return visit


def _free_nonpresent(vma: Vma, pte: PteMap, i: int, pteval: Pte, max_nr: int) -> int:
    """Give swap slots up, and what killed its users."""
    match leaf_kind(pteval):
        case Leaf.SWAP:
            nr = swap_pte_batch(pte, i, max_nr, pteval)
            vma.vm_mm.counters[MM_SWAPENTS] -= nr
            swap_put_entries_direct(pte.kernel, pte_pfn(pteval), nr)
            clear_full_ptes(pte, i, nr)
            return nr
        case Leaf.HWPOISON:
            clear_full_ptes(pte, i, 1)
    return 1


# MADV_COLD and MADV_PAGEOUT


def madvise_cold(vma: Vma, start: Address, end: Address) -> None:
    """Let the pages of a range be reclaimed before others. Kernel: mm/madvise.c, madvise_cold()."""
    _cold_or_pageout(vma, start, end, pageout=False)


def madvise_pageout(vma: Vma, start: Address, end: Address) -> None:
    """Reclaim the pages of a range. Kernel: mm/madvise.c, madvise_pageout()."""
    _cold_or_pageout(vma, start, end, pageout=True)


def _cold_or_pageout(vma: Vma, start: Address, end: Address, *, pageout: bool) -> None:
    """Kernel: mm/madvise.c, can_madv_lru_vma(), madvise_cold_or_pageout_pte_range()."""
    mm = vma.vm_mm
    kernel = mm.kernel
    lru_add_drain(kernel.mem, kernel.this_cpu)
    for first, last in mm.geometry.pmd_ranges(start, end):
        pmd = mm_find_pmd(mm, first)
        isolated: deque[Folio] | None = deque() if pageout else None
        if pmd is None or not _cold_huge_pmd(vma, pmd, first, last, isolated):
            walk_ptes(vma, first, last, _cold_ptes(kernel, isolated))
        if isolated:
            reclaim_pages(kernel, isolated)
    flush_tlb_mm_range(mm, start, end)


def _cold_huge_pmd(
    vma: Vma, pmd: PmdPtr, start: Address, end: Address, isolated: deque[Folio] | None
) -> bool:
    """Deal with a huge PMD; returns whether nothing is left to be done. A huge page of which only a part is
    meant is split. Kernel: mm/madvise.c, madvise_cold_or_pageout_pte_range().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    mem = kernel.mem
    if not pmd_trans_huge(pmdp_get_lockless(pmd)):
        return False
    ptl = pmd_lock(pmd)
    pmdval = pmdp_get_lockless(pmd)
    if not pmd_trans_huge(pmdval):
        ptl.release()
        return False
    folio = pmd_folio(pmdval)
    if not is_huge_zero_pmd(pmdval) and not mem.folio_maybe_mapped_shared(folio):
        if end - start != mm.geometry.pmd_size:
            if mem.folio_trylock(folio):
                mem.folio_get(folio)
                ptl.release()
                return not _split_locked(kernel, folio)
        else:
            if isolated is None and pmdval & YOUNG:
                pmd.page.pmds.clear_bits(pmd.slot, YOUNG)
            _deactivate_or_isolate(kernel, folio, isolated)
    ptl.release()
    return True


def _cold_ptes(kernel: Kernel, isolated: deque[Folio] | None) -> Visit:
    """Make small pages and whole large folios cold, or take them off the LRU to be reclaimed, if no other
    process maps them."""
    mem = kernel.mem

    def visit(pte: PteMap, i: int, pteval: Pte, max_nr: int) -> int:
        if not pte_present(pteval) or not pte_pfn(pteval):
            return 1
        folio = mem.page_folio(pte_pfn(pteval))
        nr = mem.folio_nr_pages(folio)
        if not mem.test(folio, PG_LRU) or mem.folio_mapcount(folio) != nr:
            return nr
        if isolated is None:
            for at in range(pte.base + i, pte.base + i + nr):
                pte.ptes.clear_bits(at, YOUNG)
        _deactivate_or_isolate(kernel, folio, isolated)
        return nr

    return visit


def _deactivate_or_isolate(kernel: Kernel, folio: Folio, isolated: deque[Folio] | None) -> None:
    """Forget that it was used; then let it be reclaimed soon, or take it off the LRU for that.

    Kernel: mm/folio.c, folio_deactivate(); mm/vmscan.c, folio_isolate_lru().
    """
    mem = kernel.mem
    mem.flags.clear_bits(folio, PG_REFERENCED | PG_YOUNG)
    if isolated is None:
        if mem.flags.test_bits(folio, PG_LRU | PG_UNEVICTABLE) == PG_LRU:
            mem.flags.clear_bits(folio, PG_ACTIVE)
    elif folio_isolate_lru(mem, folio):
        if mem.test(folio, PG_UNEVICTABLE):
            folio_putback_lru(mem, kernel.this_cpu, folio)
        else:
            isolated.appendleft(folio)
