# SPDX-License-Identifier: GPL-2.0-or-later
"""collapse_huge_page(): one window becomes one folio. Kernel: mm/khugepaged.c."""

from __future__ import annotations

from mthp.khugepaged.alloc import alloc_charge_folio, check_memcg_alloc_deferred
from mthp.khugepaged.control import CollapseControl
from mthp.khugepaged.copy import __collapse_huge_page_copy
from mthp.khugepaged.install import __folio_mark_uptodate, install_pmd, install_ptes, restore_pmd
from mthp.khugepaged.isolate import __collapse_huge_page_isolate
from mthp.khugepaged.revalidate import (
    Expect,
    check_pmd_still_valid,
    find_pmd_or_thp_or_none,
    hugepage_vma_revalidate,
)
from mthp.khugepaged.swapin import __collapse_huge_page_swapin
from mthp.machine.cpu import tlb_remove_table_sync_one
from mthp.machine.hold import Hold
from mthp.mm.mm_types import Kernel, Mm, PmdPtr, Vma
from mthp.mm.mmap_lock import vma_start_write
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.pgtable import PteMap, pmd_lock, pmdp_collapse_flush, pte_offset_map
from mthp.mm.pgtable_types import PRESENT, Pmd, pmd_is_table, pmd_pgtable
from mthp.mm.rmap import anon_vma_lock_write
from mthp.words.events import Attempt, CollapseHugePage, PmdFlush
from mthp.words.profiles import UnmapOrder
from mthp.words.results import KernelBug, Refused, Rule, ScanResult
from mthp.words.units import Address, Folio, Order


class _Leaving:
    """Lets go of anon_vma and of the mapped table on every way out, in the profile's order."""

    __slots__ = ("anon_vma", "order", "pte")

    def __init__(self, kernel: Kernel, anon_vma: Hold) -> None:
        self.order = kernel.profile.unmap_order
        self.anon_vma = anon_vma
        self.pte: PteMap | None = None

    def __enter__(self) -> _Leaving:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pte is not None and self.order is UnmapOrder.BEFORE_ANON_VMA_UNLOCK:
            self.pte.unmap()
        if self.anon_vma.active:
            self.anon_vma.release()
        if self.pte is not None and self.order is UnmapOrder.AFTER_ANON_VMA_UNLOCK:
            self.pte.unmap()


def collapse_huge_page(
    mm: Mm, start_addr: Address, referenced: int, unmapped: int, cc: CollapseControl, order: Order
) -> ScanResult:
    """Collapse one window into one new folio.

    mmap_lock must NOT be held on entry, and is not held on return: allocating may reclaim and
    compact, which takes long. Everything learnt before is stale and checked again.

    start_addr: bytes, aligned to the window of 1 << order pages. referenced, unmapped: what the scan
    counted. Returns SUCCEED or why not; locks, PTE maps, references and the page table are balanced
    on every exit. KernelBug: mmap_lock held, or a misaligned start_addr.
    Kernel: mm/khugepaged.c, collapse_huge_page().
    """
    kernel = mm.kernel
    mm.mmap_lock.assert_not_held()
    if start_addr & (kernel.geometry.order_bytes(order) - 1):
        raise KernelBug(
            Rule.STATE, f"collapse_huge_page: {start_addr:#x} is not aligned to order {order}"
        )
    kernel.trace(Attempt(mm.number, start_addr, order))
    pmd_addr = kernel.geometry.pmd_addr(start_addr)
    result = ScanResult.SUCCEED
    try:
        with alloc_charge_folio(mm, cc, order) as new:
            check_memcg_alloc_deferred(mm)
            with mm.mmap_read_lock() as mmap_lock:
                vma = hugepage_vma_revalidate(mm, pmd_addr, Expect.ANON, cc, order)
                pmd = find_pmd_or_thp_or_none(mm, pmd_addr)
                if unmapped:
                    __collapse_huge_page_swapin(
                        mm, vma, start_addr, pmd, referenced, order, mmap_lock
                    )
            with mm.mmap_write_lock():
                vma = hugepage_vma_revalidate(mm, pmd_addr, Expect.ANON, cc, order)
                vma_start_write(vma)
                check_pmd_still_valid(mm, pmd_addr, pmd)
                _replace(vma, start_addr, pmd, new.folio, cc, order)
                new.installed = True
    except Refused as refusal:
        result = refusal.result
    isolated = int(result is ScanResult.SUCCEED)
    kernel.trace(CollapseHugePage(mm.number, start_addr, isolated, result, order))
    return result


def trace_flush(mm: Mm, orig_pmd: Pmd, start_addr: Address, order: Order) -> None:
    """Record how many PTEs within and outside the window were flushed. Not a step."""
    kernel = mm.kernel
    if pmd_is_table(orig_pmd):
        ptes = kernel.tables[pmd_pgtable(orig_pmd)].ptes
        first = kernel.geometry.pte_index(start_addr)
        inside, outside = kernel.machine.data_race(ptes.count, first, 1 << order, PRESENT)
        ipis = len(kernel.cpus) - 1
        kernel.trace(PmdFlush(mm.number, start_addr, order, inside, outside, ipis))


def _replace(
    vma: Vma, start_addr: Address, pmd: PmdPtr, folio: Folio, cc: CollapseControl, order: Order
) -> None:
    """Do the part under anon_vma: detach the table, isolate, copy, install.

    mmap_lock and the VMA are held for writing. Refused: as isolate and copy, with the table back.
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    pmd_addr = kernel.geometry.pmd_addr(start_addr)
    end_addr = start_addr + kernel.geometry.order_bytes(order)
    is_pmd_order = order == kernel.geometry.pmd_order
    assert vma.anon_vma is not None
    with _Leaving(kernel, anon_vma_lock_write(vma.anon_vma)) as leaving:
        with mmu_notifier_invalidate_range(mm, start_addr, end_addr), pmd_lock(pmd):
            # Clears the whole PMD: no huge and small TLB entries of one address, and GUP-fast
            # backs off when it sees the PMD changed.
            orig_pmd = pmdp_collapse_flush(vma, pmd_addr, pmd)
            trace_flush(mm, orig_pmd, start_addr, order)
        tlb_remove_table_sync_one(kernel.cpus, kernel.this_cpu.number)

        pte = leaving.pte = pte_offset_map(kernel, orig_pmd, start_addr)
        try:
            if pte is None:
                raise Refused(ScanResult.NO_PTE_TABLE)
            with pte.table.ptl.lock():
                compound_pagelist = __collapse_huge_page_isolate(vma, start_addr, pte, cc, order)
        except Refused:
            restore_pmd(kernel, pmd, orig_pmd)
            raise

        if is_pmd_order:
            # Every page is locked, so no rmap walk can run. Below PMD order neighbours in the same
            # table are not, and their walkers would meet a PMD that is none.
            leaving.anon_vma.release()

        kernel.machine.path(__collapse_huge_page_copy)(
            pte, folio, pmd, orig_pmd, vma, start_addr, order, compound_pagelist
        )
        __folio_mark_uptodate(kernel, folio)
        if is_pmd_order:
            install_pmd(kernel, folio, pmd, orig_pmd, vma, pmd_addr)
        else:
            install_ptes(kernel, folio, pmd, orig_pmd, pte, vma, start_addr)
