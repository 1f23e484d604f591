# SPDX-License-Identifier: GPL-2.0-or-later
"""GUP-fast: pin a page by walking the page table without a lock. Kernel: mm/gup.c."""

from __future__ import annotations

from typing import Final

from mthp.mm.mm_types import Kernel, Mm, PmdPtr
from mthp.mm.page_flags import PAGE_ANON_EXCLUSIVE, PG_DIRTY
from mthp.mm.pgtable import mm_find_pmd, pmdp_get_lockless, pte_offset_map
from mthp.mm.pgtable_types import (
    Pmd,
    Pte,
    pmd_present,
    pmd_trans_huge,
    pte_pfn,
    pte_present,
    pte_protnone,
    pte_special,
    pte_write,
)
from mthp.mm.reports import Pinned, StoredTo
from mthp.words.units import Address, Folio, Pfn

GET: Final = 1
PIN: Final = 1024
"""References that a walk takes. Kernel: FOLL_GET; FOLL_PIN with GUP_PIN_COUNTING_BIAS."""


def try_grab_folio_fast(kernel: Kernel, page: Pfn, refs: int = GET) -> Folio | None:
    """Take references on the page's folio, unless it is being freed.

    Divergence: large folios are pinned by their reference count too, not by one of their own.
    Kernel: mm/gup.c, try_grab_folio_fast(), try_get_folio().
    """
    mem = kernel.mem
    folio = mem.page_folio(page)
    if not mem.refcount.add_unless_zero(folio, refs):
        return None
    if mem.page_folio(page) != folio:  # it was split meanwhile
        mem.folio_put(folio, refs)
        return None
    return folio


def folio_maybe_dma_pinned(kernel: Kernel, folio: Folio) -> bool:
    """Whether the folio may be pinned; what page tables refer to of a large one is no pin.

    Kernel: include/linux/mm.h, folio_maybe_dma_pinned().
    """
    mem = kernel.mem
    mapped = mem.folio_mapcount(folio) if mem.folio_test_large(folio) else 0
    return mem.folio_ref_count(folio) - mapped >= PIN


def gup_fast_pte_range(
    kernel: Kernel, pmdval: Pmd, pmd: PmdPtr, address: Address, refs: int
) -> Pfn | None:
    """Take references on the page behind a writable PTE; None where the slow path must be taken.

    After the reference is taken, the PMD and the PTE must still be what they were.
    Kernel: mm/gup.c, gup_fast_pte_range().
    """
    pte = pte_offset_map(kernel, pmdval, address)
    if pte is None:
        return None
    with pte:
        pteval = pte.get(0)
        if not pte_present(pteval) or pte_protnone(pteval):
            return None
        if not pte_write(pteval) or pte_special(pteval):
            return None
        page = pte_pfn(pteval)
        folio = try_grab_folio_fast(kernel, page, refs)
        if folio is None:
            return None
        if not pmd_unchanged(pmd, pmdval) or not pte_unchanged(pte.get(0), pteval):
            kernel.mem.folio_put(folio, refs)
            return None
    return page


def pmd_unchanged(pmd: PmdPtr, pmdval: Pmd) -> bool:
    """Check the PMD again after the reference was taken."""
    return pmdp_get_lockless(pmd) == pmdval


def pte_unchanged(now: Pte, pteval: Pte) -> bool:
    """Check the PTE again after the reference was taken."""
    return now == pteval


def gup_fast_pmd_leaf(
    kernel: Kernel, pmdval: Pmd, pmd: PmdPtr, address: Address, refs: int
) -> Pfn | None:
    """Pin the page behind a writable huge PMD. Kernel: mm/gup.c, gup_fast_pmd_leaf()."""
    if pte_protnone(pmdval) or not pte_write(pmdval):
        return None
    folio = try_grab_folio_fast(kernel, pte_pfn(pmdval), refs)
    if folio is None:
        return None
    if not pmd_unchanged(pmd, pmdval):
        kernel.mem.folio_put(folio, refs)
        return None
    return Pfn(pte_pfn(pmdval) + kernel.geometry.pte_index(address))


def gup_fast(mm: Mm, address: Address, refs: int = GET) -> Pfn | None:
    """Get or pin the page of address for writing, interrupts off meanwhile; None: not by this path.

    Kernel: mm/gup.c, gup_fast(), gup_fast_pmd_range().
    """
    kernel = mm.kernel
    cpu = kernel.this_cpu
    cpu.local_irq_save()
    try:
        pmd = mm_find_pmd(mm, address)
        if pmd is None:
            return None
        pmdval = pmdp_get_lockless(pmd)
        if not pmd_present(pmdval):
            return None
        if pmd_trans_huge(pmdval):
            return gup_fast_pmd_leaf(kernel, pmdval, pmd, address, refs)
        return gup_fast_pte_range(kernel, pmdval, pmd, address, refs)
    finally:
        if not kernel.machine.abandoned:
            cpu.local_irq_restore()


def get_and_write(mm: Mm, address: Address, value: int) -> None:
    """Refer to a page for as long as a device writes to it, as those do who pin nothing.

    Kernel: mm/gup.c, get_user_pages_fast(); set_page_dirty_lock().
    """
    kernel = mm.kernel
    page = gup_fast(mm, address)
    if page is None:
        return
    folio = kernel.mem.page_folio(page)
    kernel.mem.content.write(page, value)
    kernel.report(StoredTo(mm, address, value, kernel.machine.current.name))
    kernel.mem.set(folio, PG_DIRTY)
    kernel.mem.folio_put(kernel.mem.page_folio(page))


def pin_and_write(mm: Mm, address: Address, value: int) -> None:
    """Pin a page, have a device write to it later, and keep the pin."""
    kernel = mm.kernel
    page = gup_fast(mm, address, PIN)
    if page is None:
        return
    # A page that is being unmapped may lose the mark meanwhile; no present entry maps it then.
    flags, folio = kernel.mem.page_flags.raw, kernel.mem.page_folio(page)
    exclusive = kernel.machine.data_race(lambda: flags[folio] & PAGE_ANON_EXCLUSIVE != 0)
    by = kernel.machine.current.name
    kernel.report(Pinned(mm, address, page, exclusive, by))
    kernel.mem.content.write(page, value)
    kernel.report(StoredTo(mm, address, value, by))
