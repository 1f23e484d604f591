# SPDX-License-Identifier: GPL-2.0-or-later
"""Reverse mapping walks: find every PTE of a folio, and lock its table.

Kernel: mm/page_vma_mapped.c, mm/rmap.c (rmap_walk_anon).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mthp.machine.cpu import flush_tlb_range
from mthp.machine.locks import Hold
from mthp.mm.kernel import Kernel
from mthp.mm.mm_struct import Mm
from mthp.mm.pagetable import PteMap, mm_find_pmd, pmdp_get_lockless, pte_offset_map
from mthp.mm.pte import PTE_NONE, Leaf, leaf_kind, pmd_is_table, pte_none, pte_pfn, pte_present
from mthp.mm.rmap import rmap_walk
from mthp.mm.vma import Vma


def folio_lock_anon_vma_read(kernel: Kernel, folio: int) -> Hold:
    """Kernel: mm/rmap.c, folio_lock_anon_vma_read()."""
    return kernel.anon_vmas[kernel.mem.anon_vma.raw[folio]].rwsem.read()


def flush_tlb_page(mm: Mm, address: int) -> None:
    """Forget one page's translation on every CPU; address: bytes. Kernel: flush_tlb_page()."""
    kernel = mm.kernel
    vpn = address >> kernel.geometry.page_shift
    flush_tlb_range(kernel.cpus, mm.number, vpn, vpn + 1, kernel.this_cpu.number)


def ptep_clear_flush(mm: Mm, pte: PteMap, address: int) -> int:
    """Empty a locked PTE, flush it, and give what it held.

    Kernel: mm/pgtable-generic.c, ptep_clear_flush().
    """
    pteval = pte.ptes.swap(pte.base, PTE_NONE)
    flush_tlb_page(mm, address)
    return pteval


def map_pte(mm: Mm, address: int, wanted: int) -> tuple[PteMap, Hold] | None:
    """The locked PTE of address, if it maps page `wanted` or is its migration entry (negative).

    A PMD that is none, or a PTE that is something else, is passed over without a lock.
    Kernel: mm/page_vma_mapped.c, map_pte(), check_pte().
    """
    pmd = mm_find_pmd(mm, address)
    while pmd is not None:
        pmdval = pmdp_get_lockless(pmd)
        if not pmd_is_table(pmdval):
            return None
        pte = pte_offset_map(mm.kernel, pmdval, address)
        assert pte is not None
        if not is_wanted(pte.get(0), wanted):
            pte.unmap()
            return None
        ptl = pte.table.ptl.lock()
        if pmdp_get_lockless(pmd) != pmdval:
            ptl.release()
            pte.unmap()
            continue
        if is_wanted(pte.get(0), wanted):
            return pte, ptl
        ptl.release()
        pte.unmap()
        return None
    return None


def is_wanted(pteval: int, wanted: int) -> bool:
    """Whether a PTE maps page `wanted`; for -page, whether it is that page's migration entry."""
    if pte_present(pteval):
        return pte_pfn(pteval) == wanted
    migrating = not pte_none(pteval) and leaf_kind(pteval) is Leaf.MIGRATION
    return migrating and pte_pfn(pteval) == -wanted


@contextmanager
def unlocked_after(kernel: Kernel, found: tuple[PteMap, Hold]) -> Iterator[PteMap]:
    """Kernel: pte_unmap_unlock()."""
    pte, ptl = found
    yield pte
    if not kernel.machine.abandoned:
        ptl.release()
        pte.unmap()


def mapped_places(kernel: Kernel, folio: int) -> list[tuple[Vma, int]]:
    """Where a small folio may be mapped. Caller holds its anon_vma."""
    return list(rmap_walk(kernel.mem, folio, kernel.anon_vmas))
