# SPDX-License-Identifier: GPL-2.0-or-later
"""One table is looked at: is it worth a collapse, what does it hold? Kernel: mm/khugepaged.c."""

from __future__ import annotations

from mthp.khugepaged.control import CollapseControl
from mthp.khugepaged.eligibility import collapse_possible_orders
from mthp.khugepaged.isolate import folio_pte_referenced, refuses_lazyfree, vm_normal_page
from mthp.khugepaged.limits import (
    collapse_max_ptes_none,
    collapse_max_ptes_shared,
    collapse_max_ptes_swap,
    exceeded,
)
from mthp.khugepaged.order_walk import mthp_collapse
from mthp.khugepaged.revalidate import find_pmd_or_thp_or_none
from mthp.machine.hold import Hold
from mthp.mm.huge_mm import Tva
from mthp.mm.mm_types import Kernel, Mm, Vma
from mthp.mm.page_flags import PG_ANON, PG_LOCKED, PG_LRU
from mthp.mm.pgtable import PteMap, pmdp_get_lockless, pte_offset_map
from mthp.mm.pgtable_types import Pte, pte_none_or_zero, pte_present, pte_swp_uffd_any, pte_uffd
from mthp.mm.reports import Scanning
from mthp.words.events import NO_PFN, ScanPmd
from mthp.words.profiles import ScanCost
from mthp.words.results import KernelBug, Refused, Rule, ScanResult
from mthp.words.units import Address, Folio


class Scan:
    """What collapse_scan_pmd() counts while it looks at one table."""

    __slots__ = (
        "address", "cc", "failed_pfn", "kernel", "max_ptes_none", "max_ptes_shared",
        "max_ptes_swap", "none_or_zero", "referenced", "shared", "unmapped", "vma",
    )  # fmt: skip

    def __init__(self, vma: Vma, address: Address, cc: CollapseControl) -> None:
        kernel = vma.vm_mm.kernel
        pmd_order = kernel.geometry.pmd_order
        self.kernel = kernel
        self.vma = vma
        self.address = address
        self.cc = cc
        self.max_ptes_none = collapse_max_ptes_none(kernel, cc, vma, pmd_order)
        self.max_ptes_shared = collapse_max_ptes_shared(kernel, cc, pmd_order)
        self.max_ptes_swap = collapse_max_ptes_swap(kernel, cc, pmd_order)
        self.none_or_zero = self.shared = self.referenced = self.unmapped = 0
        self.failed_pfn = NO_PFN

    def exceeded(self, result: ScanResult) -> Refused:
        """Refuse since a budget is spent; in the scan this is booked to the PMD order."""
        return exceeded(self.kernel, self.kernel.geometry.pmd_order, result)

    def take_none(self) -> None:
        """Count an empty or zero-page PTE."""
        self.none_or_zero += 1
        if self.max_ptes_none is not None and self.none_or_zero > self.max_ptes_none:
            raise self.exceeded(ScanResult.EXCEED_NONE_PTE)

    def take_unmapped(self, pteval: Pte) -> None:
        """Count an entry that is neither none nor present: swap, migration, guard, poison."""
        self.unmapped += 1
        if self.unmapped > self.max_ptes_swap:
            raise self.exceeded(ScanResult.EXCEED_SWAP_PTE)
        if pte_swp_uffd_any(pteval):
            raise Refused(ScanResult.PTE_UFFD)

    def take_page(self, i: int, pteval: Pte) -> None:
        """Check a present PTE: the kernel's checks in the kernel's order."""
        if pte_uffd(pteval):
            raise Refused(ScanResult.PTE_UFFD)
        mem = self.kernel.mem
        page = vm_normal_page(mem, pteval)
        if page is None:
            raise Refused(ScanResult.PAGE_NULL)
        folio = mem.page_folio(page)
        if refuses_lazyfree(self.kernel, self.cc, self.vma, folio, pteval):
            raise self.refused_at(folio, ScanResult.PAGE_LAZYFREE)
        if not mem.test(folio, PG_ANON):
            raise self.refused_at(folio, ScanResult.PAGE_ANON)
        if mem.folio_maybe_mapped_shared(folio):
            self.shared += 1
            if self.shared > self.max_ptes_shared:
                self.failed_pfn = folio
                raise self.exceeded(ScanResult.EXCEED_SHARED_PTE)
        self.cc.present_ptes |= 1 << i
        node = mem.folio_nid(folio)
        if collapse_scan_abort(self.kernel, node, self.cc):
            raise self.refused_at(folio, ScanResult.SCAN_ABORT)
        self.cc.node_load[node] += 1
        if not mem.test(folio, PG_LRU):
            raise self.refused_at(folio, ScanResult.PAGE_LRU)
        if mem.test(folio, PG_LOCKED):
            raise self.refused_at(folio, ScanResult.PAGE_LOCK)
        if mem.folio_expected_ref_count(folio) != mem.folio_ref_count(folio):
            raise self.refused_at(folio, ScanResult.PAGE_COUNT)
        address = self.address + (i << self.kernel.geometry.page_shift)
        if self.cc.is_khugepaged and folio_pte_referenced(mem, folio, self.vma, address, pteval):
            self.referenced += 1

    def refused_at(self, folio: Folio, result: ScanResult) -> Refused:
        """Remember the folio for the tracepoint."""
        self.failed_pfn = folio
        return Refused(result)

    def check_referenced(self) -> None:
        """See that khugepaged finds a page in use; half the table where it would swap in."""
        if not self.cc.is_khugepaged:
            return
        half = self.kernel.geometry.ptrs_per_pte // 2
        if not self.referenced or (self.unmapped and self.referenced < half):
            raise Refused(ScanResult.LACK_REFERENCED_PAGE)


def collapse_scan_abort(kernel: Kernel, nid: int, cc: CollapseControl) -> bool:
    """Whether pages of the table lie on nodes too far apart. Kernel: collapse_scan_abort()."""
    if not kernel.node_reclaim or cc.node_load[nid]:
        return False
    return any(
        load and kernel.node_distance(nid, other) > kernel.node_reclaim_distance
        for other, load in cc.node_load.items()
    )


def scan_ptes(scan: Scan, pte: PteMap) -> None:
    """Look at every entry in turn. Refused: as collapse_scan_pmd()."""
    count = scan.kernel.profile.progress is ScanCost.PER_PTE
    for i in range(scan.kernel.geometry.ptrs_per_pte):
        pteval = pte.get(i)
        scan.cc.progress += count
        if pte_none_or_zero(pteval):
            scan.take_none()
        elif not pte_present(pteval):
            scan.take_unmapped(pteval)
        else:
            scan.take_page(i, pteval)


def collapse_scan_pmd(
    mm: Mm, vma: Vma, start_addr: Address, mmap_lock: Hold, cc: CollapseControl
) -> ScanResult:
    """Scan the table at start_addr (PMD aligned), then collapse what mthp_collapse() finds.

    mmap_lock is held for reading on entry; it is released if the scan passed (mmap_lock.active
    tells), and the VMA is then stale.
    Returns NO_PTE_TABLE, PMD_MAPPED, EXCEED_*, PTE_UFFD, PAGE_*, SCAN_ABORT, LACK_REFERENCED_PAGE,
    or what mthp_collapse() returned. Kernel: mm/khugepaged.c, collapse_scan_pmd().
    """
    mm.mmap_lock.assert_held()
    kernel = mm.kernel
    geometry = kernel.geometry
    if start_addr & (geometry.pmd_size - 1):
        raise KernelBug(Rule.STATE, f"collapse_scan_pmd: {start_addr:#x} is not PMD aligned")
    kernel.report(
        Scanning(vma, start_addr, start_addr + geometry.pmd_size, mm.machine.current.name)
    )
    scan = Scan(vma, start_addr, cc)
    pte: PteMap | None = None
    try:
        try:
            pmd = find_pmd_or_thp_or_none(mm, start_addr)
            cc.init_scan()
            tva = Tva.KHUGEPAGED if cc.is_khugepaged else Tva.FORCED_COLLAPSE
            enabled_orders = collapse_possible_orders(vma, vma.vm_flags, tva)
            if enabled_orders != 1 << geometry.pmd_order:
                scan.max_ptes_none = geometry.ptrs_per_pte - 1
            pte = pte_offset_map(kernel, pmdp_get_lockless(pmd), start_addr)
            if pte is None:
                raise Refused(ScanResult.NO_PTE_TABLE)
        except Refused:
            cc.progress += kernel.profile.progress is ScanCost.PER_PTE
            raise
        with pte, pte.table.ptl.lock():
            kernel.machine.path(scan_ptes)(scan, pte)
            scan.check_referenced()
    except Refused as refusal:
        result = refusal.result
    else:
        mmap_lock.release()
        result = mthp_collapse(mm, start_addr, scan.referenced, scan.unmapped, cc, enabled_orders)
    kernel.trace(
        ScanPmd(
            mm.number,
            start_addr,
            scan.failed_pfn,
            scan.referenced,
            scan.none_or_zero,
            result,
            scan.unmapped,
        )
    )
    return result
