# SPDX-License-Identifier: GPL-2.0-or-later
"""A window is copied into its new folio, and the sources are let go. Kernel: mm/khugepaged.c."""

from __future__ import annotations

from mthp.khugepaged.isolate import release_pte_folio, release_pte_pages
from mthp.mm.folio import folio_clear_isolated, folio_putback_lru
from mthp.mm.mem_map import MemMap
from mthp.mm.mm_types import MM_ANONPAGES, PmdPtr, Vma
from mthp.mm.page_flags import PAGE_HWPOISON
from mthp.mm.pgtable import PteMap, clear_ptes, pmd_lock, pmd_populate
from mthp.mm.pgtable_types import (
    DIRTY,
    PFN_SHIFT,
    PTE_NONE,
    SOFT_DIRTY,
    WRITE,
    YOUNG,
    Pmd,
    Pte,
    pmd_pgtable,
    pte_none,
    pte_none_or_zero,
    pte_pfn,
)
from mthp.mm.rmap import folio_remove_rmap_ptes
from mthp.mm.swapfile import free_swap_cache
from mthp.words.events import Copied
from mthp.words.results import Refused, ScanResult
from mthp.words.units import Address, Folio, Order

NEXT_FRAME = 1 << PFN_SHIFT
BATCH_IGNORES = ~(YOUNG | DIRTY | SOFT_DIRTY | WRITE)


def copy_mc_user_highpage(mem: MemMap, to: int, source: int) -> bool:
    """Copy a page; False if the source is poisoned.

    Kernel: include/linux/highmem.h, copy_mc_user_highpage().
    """
    if mem.page_flags.test_bits(source, PAGE_HWPOISON):
        return False
    mem.content.write(to, mem.content.read(source))
    return True


def folio_pte_batch(mem: MemMap, folio: Folio, pte: PteMap, i: int, pteval: Pte, most: int) -> int:
    """How many PTEs from i on map consecutive pages of the folio in the same way, at most `most`.

    Young, dirty, soft-dirty and write may differ.
    Kernel: mm/internal.h, folio_pte_batch().
    """
    last = folio + mem.folio_nr_pages(folio) - 1
    most = min(most, last - pte_pfn(pteval) + 1)
    nr = 1
    expected = (pteval + NEXT_FRAME) & BATCH_IGNORES
    while nr < most and pte.get(i + nr) & BATCH_IGNORES == expected:
        expected += NEXT_FRAME
        nr += 1
    return nr


def __collapse_huge_page_copy_succeeded(
    pte: PteMap, vma: Vma, order: Order, compound_pagelist: list[Folio]
) -> int:
    """Clear the PTEs, drop the mappings, unlock and put the sources; pages filled from nothing.

    Kernel: mm/khugepaged.c, __collapse_huge_page_copy_succeeded().
    """
    kernel = pte.kernel
    mem = kernel.mem
    cpu = kernel.this_cpu
    ptl = pte.table.ptl
    nr_pages = 1 << order
    filled = 0
    i = 0
    while i < nr_pages:
        nr_ptes = 1
        pteval = pte.get(i)
        if pte_none_or_zero(pteval):
            filled += 1
            if not pte_none(pteval):
                with ptl.lock():
                    pte.ptes.write(pte.base + i, PTE_NONE)
        else:
            page = pte_pfn(pteval)
            src = mem.page_folio(page)
            if mem.folio_test_large(src):
                nr_ptes = mem.machine.path(folio_pte_batch)(mem, src, pte, i, pteval, nr_pages - i)
            else:
                release_pte_folio(kernel, src)
            with ptl.lock():
                clear_ptes(pte, i, nr_ptes)
                folio_remove_rmap_ptes(mem, cpu, src, page, nr_ptes, vma)
            free_swap_cache(kernel, src)
            mem.folio_put(src, nr_ptes)
        i += nr_ptes
    vma.vm_mm.counters[MM_ANONPAGES] += filled
    for src in compound_pagelist:
        folio_clear_isolated(mem, src)
        mem.folio_unlock(src)
        free_swap_cache(kernel, src)
        folio_putback_lru(mem, cpu, src)
    return filled


def __collapse_huge_page_copy_failed(
    pte: PteMap, pmd: PmdPtr, orig_pmd: Pmd, order: Order, compound_pagelist: list[Folio]
) -> None:
    """Restore the PMD, then release the folios. Kernel: __collapse_huge_page_copy_failed()."""
    path = pte.kernel.machine.path
    with pmd_lock(pmd):
        pmd_populate(pmd, pmd_pgtable(orig_pmd))
    path(release_pte_pages)(pte, 1 << order, compound_pagelist)


def __collapse_huge_page_copy(
    pte: PteMap,
    folio: Folio,
    pmd: PmdPtr,
    orig_pmd: Pmd,
    vma: Vma,
    address: Address,
    order: Order,
    compound_pagelist: list[Folio],
) -> None:
    """Fill the new folio. On success the window's PTEs are clear and its sources are gone.

    mmap_lock is held for writing, anon_vma too below PMD order; no PTE lock while copying.
    Refused: COPY_MC, with the PMD restored and the folios released.
    Kernel: mm/khugepaged.c, __collapse_huge_page_copy().
    """
    mem = pte.kernel.mem
    for i in range(1 << order):
        pteval = pte.get(i)
        if pte_none_or_zero(pteval):
            mem.content.write(folio + i, 0)
        elif not copy_mc_user_highpage(mem, folio + i, pte_pfn(pteval)):
            __collapse_huge_page_copy_failed(pte, pmd, orig_pmd, order, compound_pagelist)
            raise Refused(ScanResult.COPY_MC)
    filled = __collapse_huge_page_copy_succeeded(pte, vma, order, compound_pagelist)
    pages = (1 << order) - filled
    pte.kernel.trace(Copied(vma.vm_mm.number, address, order, pages, filled))
