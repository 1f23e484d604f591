# SPDX-License-Identifier: GPL-2.0-or-later
"""The source folios of a window are locked and taken off the LRU. Kernel: mm/khugepaged.c."""

from __future__ import annotations

from mthp.khugepaged.control import CollapseControl
from mthp.khugepaged.limits import (
    collapse_max_ptes_none,
    collapse_max_ptes_shared,
    exceeded,
)
from mthp.mm.folio import (
    folio_clear_isolated,
    folio_isolate_lru,
    folio_mark_isolated,
    folio_putback_lru,
)
from mthp.mm.mem_map import MemMap
from mthp.mm.mm_types import Kernel, Vma
from mthp.mm.mmu_notifier import mmu_notifier_test_young
from mthp.mm.page_flags import PG_REFERENCED, PG_YOUNG, PG_ZONE_DEVICE
from mthp.mm.pgtable import PteMap
from mthp.mm.pgtable_types import (
    Pte,
    pte_dirty,
    pte_none_or_zero,
    pte_pfn,
    pte_present,
    pte_special,
    pte_uffd,
    pte_young,
)
from mthp.mm.vm_flags import VM_DROPPABLE
from mthp.words.events import NO_PFN, Isolate
from mthp.words.profiles import Lazyfree
from mthp.words.results import Refused, ScanResult
from mthp.words.units import Address, Folio, Order, Pfn


def vm_normal_page(mem: MemMap, pte: Pte) -> Pfn | None:
    """The frame of a present PTE, or None for special and device mappings.

    Kernel: mm/memory.c, vm_normal_page(), with the is_zone_device_page() test of both callers.
    """
    pfn = pte_pfn(pte)
    if pte_special(pte) or mem.flags.raw[mem.page_folio(pfn)] & PG_ZONE_DEVICE:
        return None
    return pfn


def refuses_lazyfree(kernel: Kernel, cc: CollapseControl, vma: Vma, folio: Folio, pte: Pte) -> bool:
    """Whether a clean page was given up by MADV_FREE, and khugepaged must keep it freeable."""
    return (
        cc.is_khugepaged
        and not vma.vm_flags & VM_DROPPABLE
        and kernel.mem.folio_test_lazyfree(folio)
        and not pte_dirty(pte)
        and kernel.profile.lazyfree is Lazyfree.REFUSE
    )


def folio_pte_referenced(mem: MemMap, folio: Folio, vma: Vma, address: Address, pte: Pte) -> bool:
    """Whether the page was used, as khugepaged counts it. Kernel: folio_pte_referenced()."""
    if mem.test(folio, PG_YOUNG | PG_REFERENCED) or pte_young(pte):
        return True
    return bool(vma.vm_mm.notifiers) and mmu_notifier_test_young(vma.vm_mm, address)


def release_pte_folio(kernel: Kernel, folio: Folio) -> None:
    """Give one isolated folio back through the LRU batch. Kernel: release_pte_folio()."""
    folio_clear_isolated(kernel.mem, folio)
    kernel.mem.folio_unlock(folio)
    folio_putback_lru(kernel.mem, kernel.this_cpu, folio)


def release_pte_pages(pte: PteMap, nr: int, compound_pagelist: list[Folio]) -> None:
    """Give back what the first nr PTEs isolated: small folios from the highest address down, then
    large ones in the order they were met. Kernel: mm/khugepaged.c, release_pte_pages().
    """
    kernel = pte.kernel
    mem = kernel.mem
    for i in range(nr - 1, -1, -1):
        pteval = pte.get(i)
        if pte_none_or_zero(pteval):
            continue
        folio = mem.page_folio(pte_pfn(pteval))
        if not mem.folio_test_large(folio):
            release_pte_folio(kernel, folio)
    for folio in compound_pagelist:
        release_pte_folio(kernel, folio)
    compound_pagelist.clear()


class Isolation:
    """What __collapse_huge_page_isolate() has counted and taken: of the first `done` PTEs."""

    __slots__ = (
        "address", "cc", "compound_pagelist", "done", "folio", "kernel", "max_ptes_none",
        "max_ptes_shared", "mem", "none_or_zero", "order", "referenced", "shared", "sub_pmd", "vma",
    )  # fmt: skip

    def __init__(self, vma: Vma, address: Address, cc: CollapseControl, order: Order) -> None:
        kernel = self.kernel = vma.vm_mm.kernel
        self.mem = kernel.mem
        self.vma = vma
        self.address = address
        self.cc = cc
        self.order = order
        self.sub_pmd = order != kernel.geometry.pmd_order
        self.max_ptes_none = collapse_max_ptes_none(kernel, cc, vma, order)
        self.max_ptes_shared = collapse_max_ptes_shared(kernel, cc, order)
        self.done = self.none_or_zero = self.shared = self.referenced = 0
        self.folio = NO_PFN
        self.compound_pagelist: list[Folio] = []

    def take_none(self) -> None:
        """Spend the budget for empty and zero-page PTEs."""
        self.none_or_zero += 1
        if self.max_ptes_none is None:
            raise Refused(ScanResult.FAIL)
        if self.none_or_zero > self.max_ptes_none:
            raise exceeded(self.kernel, self.order, ScanResult.EXCEED_NONE_PTE)

    def take_page(self, address: Address, pteval: Pte) -> None:
        """Check, lock and isolate the folio behind one non-empty PTE, in the kernel's order."""
        if not pte_present(pteval):
            raise Refused(ScanResult.PTE_NON_PRESENT)
        if pte_uffd(pteval):
            raise Refused(ScanResult.PTE_UFFD)
        page = vm_normal_page(self.mem, pteval)
        if page is None:
            raise Refused(ScanResult.PAGE_NULL)
        folio = self.folio = self.mem.page_folio(page)
        if refuses_lazyfree(self.kernel, self.cc, self.vma, folio, pteval):
            raise Refused(ScanResult.PAGE_LAZYFREE)
        if self.mem.folio_maybe_mapped_shared(folio):
            self.take_shared()
        if self.sub_pmd and self.mem.folio_order(folio) >= self.order:
            raise Refused(ScanResult.PTE_MAPPED_HUGEPAGE)
        if folio not in self.compound_pagelist:
            self.lock_and_isolate(folio)
        if self.cc.is_khugepaged and folio_pte_referenced(
            self.mem, folio, self.vma, address, pteval
        ):
            self.referenced += 1

    def take_shared(self) -> None:
        """Spend the budget for pages that several processes map."""
        self.shared += 1
        if self.shared > self.max_ptes_shared:
            raise exceeded(self.kernel, self.order, ScanResult.EXCEED_SHARED_PTE)

    def lock_and_isolate(self, folio: Folio) -> None:
        """Lock the folio, see that nothing else refers to it, take it off the LRU."""
        mem = self.mem
        if not mem.folio_trylock(folio):
            raise Refused(ScanResult.PAGE_LOCK)
        if mem.folio_expected_ref_count(folio) != mem.folio_ref_count(folio):
            mem.folio_unlock(folio)
            raise Refused(ScanResult.PAGE_COUNT)
        if not folio_isolate_lru(mem, folio):
            mem.folio_unlock(folio)
            raise Refused(ScanResult.DEL_PAGE_LRU)
        folio_mark_isolated(mem, folio)
        if mem.folio_test_large(folio):
            self.compound_pagelist.append(folio)

    def trace(self, result: ScanResult) -> None:
        """Record what the tracepoint mm_collapse_huge_page_isolate tells."""
        self.kernel.trace(
            Isolate(
                self.vma.vm_mm.number,
                self.address,
                self.folio,
                self.none_or_zero,
                self.referenced,
                result,
                self.order,
            )
        )


def isolate_ptes(isolation: Isolation, pte: PteMap) -> None:
    """Look at every entry of the window in turn. Refused: as __collapse_huge_page_isolate()."""
    page_shift = isolation.kernel.geometry.page_shift
    for i in range(1 << isolation.order):
        pteval = pte.get(i)
        if pte_none_or_zero(pteval):
            isolation.take_none()
        else:
            isolation.take_page(isolation.address + (i << page_shift), pteval)
        isolation.done += 1


def __collapse_huge_page_isolate(
    vma: Vma, start_addr: Address, pte: PteMap, cc: CollapseControl, order: Order
) -> list[Folio]:
    """Lock and isolate every folio of the window; returns the large ones in order met.

    Caller holds the PTE lock, mmap_lock for writing and anon_vma for writing; the PMD is clear.
    A refusal has put everything back.
    Refused: EXCEED_NONE_PTE, EXCEED_SHARED_PTE, PTE_NON_PRESENT, PTE_UFFD, PAGE_NULL,
    PAGE_LAZYFREE, PTE_MAPPED_HUGEPAGE, PAGE_LOCK, PAGE_COUNT, DEL_PAGE_LRU, LACK_REFERENCED_PAGE.
    Kernel: mm/khugepaged.c, __collapse_huge_page_isolate().
    """
    path = pte.kernel.machine.path
    pte.table.ptl.assert_held()
    isolation = Isolation(vma, start_addr, cc, order)
    try:
        path(isolate_ptes)(isolation, pte)
        if cc.is_khugepaged and not isolation.referenced:
            raise Refused(ScanResult.LACK_REFERENCED_PAGE)
    except Refused as refusal:
        if isolation.done:
            path(release_pte_pages)(pte, isolation.done, isolation.compound_pagelist)
        isolation.trace(refusal.result)
        raise
    isolation.trace(ScanResult.SUCCEED)
    return isolation.compound_pagelist
