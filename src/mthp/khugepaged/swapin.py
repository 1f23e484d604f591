# SPDX-License-Identifier: GPL-2.0-or-later
"""Missing pages are brought in before a collapse. Kernel: mm/khugepaged.c."""

from __future__ import annotations

from mthp.machine.hold import Hold
from mthp.mm.folio import lru_add_drain
from mthp.mm.memory_swap import VmFault, do_swap_page
from mthp.mm.mm_types import MM_SWAPENTS, Mm, PmdPtr, Vma
from mthp.mm.pgtable import PteMap, pmdp_get_lockless, pte_offset_map
from mthp.mm.pgtable_types import pte_none, pte_present
from mthp.words.events import Swapin
from mthp.words.results import Refused, ScanResult
from mthp.words.units import Address, Order


def __collapse_huge_page_swapin(
    mm: Mm,
    vma: Vma,
    start_addr: Address,
    pmd: PmdPtr,
    referenced: int,
    order: Order,
    mmap_lock: Hold,
) -> None:
    """Swap in what the window misses. Below PMD order the first such entry refuses.

    mmap_lock is held for reading; a refusal has released it.
    Refused: NO_PTE_TABLE, EXCEED_SWAP_PTE, PAGE_LOCK (the fault said RETRY), FAIL.
    Kernel: mm/khugepaged.c, __collapse_huge_page_swapin().
    """
    kernel = mm.kernel
    swapped_in, entries = 0, _swapents(mm)
    result = ScanResult.SUCCEED
    pte: PteMap | None = None
    try:
        for i in range(1 << order):
            if pte is None:
                pte = pte_offset_map(kernel, pmdp_get_lockless(pmd), start_addr)
                if pte is None:
                    raise Refused(ScanResult.NO_PTE_TABLE)
            orig_pte = pte.get(i)
            if pte_none(orig_pte) or pte_present(orig_pte):
                continue
            if order != mm.geometry.pmd_order:
                kernel.vmstat.count_mthp_stat(order, "collapse_exceed_swap_pte")
                raise Refused(ScanResult.EXCEED_SWAP_PTE)
            pte.unmap()
            pte = None
            address = start_addr + (i << mm.geometry.page_shift)
            fault = do_swap_page(mm, vma, address, pmd, orig_pte, mmap_lock)
            if fault is VmFault.RETRY:
                raise Refused(ScanResult.PAGE_LOCK)
            if fault is VmFault.ERROR:
                raise Refused(ScanResult.FAIL)
            swapped_in += 1
        if swapped_in:
            lru_add_drain(kernel.mem, kernel.this_cpu)
    except Refused as refusal:
        result = refusal.result
        if mmap_lock.active:
            mmap_lock.release()
        raise
    finally:
        if pte is not None:
            pte.unmap()
        pages = entries - _swapents(mm)
        kernel.trace(Swapin(mm.number, start_addr, swapped_in, referenced, result, order, pages))


def _swapents(mm: Mm) -> int:
    """Told in an event alone."""
    return mm.machine.data_race(lambda: int(mm.counters[MM_SWAPENTS]))
