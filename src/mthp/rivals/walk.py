# SPDX-License-Identifier: GPL-2.0-or-later
"""Reverse mapping walks: find every PTE of a folio, and lock its table.

Kernel: mm/page_vma_mapped.c, mm/rmap.c (rmap_walk_anon).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import NamedTuple

from mthp.machine.cpu import flush_tlb_range
from mthp.machine.locks import Hold
from mthp.mm.kernel import Kernel
from mthp.mm.mm_struct import Mm
from mthp.mm.pagetable import (
    PmdPtr,
    PteMap,
    mm_find_pmd,
    pmd_lock,
    pmdp_get_lockless,
    pte_offset_map,
    pte_offset_map_lock,
)
from mthp.mm.pte import (
    PTE_NONE,
    Leaf,
    leaf_kind,
    pmd_is_migration_entry,
    pmd_is_table,
    pmd_trans_huge,
    pte_none,
    pte_pfn,
    pte_present,
)
from mthp.mm.rmap import rmap_walk
from mthp.mm.vma import VM_STACK_INCOMPLETE, Vma, linear_page_index


def folio_lock_anon_vma_read(kernel: Kernel, folio: int) -> Hold:
    """Kernel: mm/rmap.c, folio_lock_anon_vma_read()."""
    return kernel.anon_vmas[kernel.mem.anon_vma.raw[folio]].rwsem.read()


def folio_trylock_anon_vma_read(kernel: Kernel, folio: int) -> Hold | None:
    """The same, or None at once. Kernel: struct rmap_walk_control, try_lock."""
    return kernel.anon_vmas[kernel.mem.anon_vma.raw[folio]].rwsem.try_read()


def folio_lock(kernel: Kernel, folio: int) -> None:
    """Wait for a folio's lock and take it. Kernel: include/linux/pagemap.h, folio_lock()."""
    while not kernel.mem.folio_trylock(folio):
        kernel.mem.folio_wait_locked(folio)


def folio_walk(vma: Vma, address: int) -> int | None:
    """The page that address maps, with a reference on its folio; None if it maps none.

    Kernel: mm/pagewalk.c, folio_walk_start(), folio_walk_end().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    pmd = mm_find_pmd(mm, address)
    if pmd is None:
        return None
    if pmd_trans_huge(pmdp_get_lockless(pmd)):
        with pmd_lock(pmd):
            pmdval = pmdp_get_lockless(pmd)
            if pmd_trans_huge(pmdval):
                kernel.mem.folio_get(pte_pfn(pmdval))
                return pte_pfn(pmdval) + mm.geometry.pte_index(address)
    found = pte_offset_map_lock(mm, pmd, address)
    if found is None:
        return None
    with unlocked_after(kernel, found) as pte:
        pteval = pte.get(0)
        if not pte_present(pteval) or not pte_pfn(pteval):
            return None
        kernel.mem.folio_get(kernel.mem.page_folio(pte_pfn(pteval)))
        return pte_pfn(pteval)


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


class HugeMapping(NamedTuple):
    """A folio found by its PMD, which is locked. pmdval: what the slot holds."""

    pmd: PmdPtr
    ptl: Hold
    pmdval: int


class Lookup(Enum):
    """How an entry is looked at that is none, or of somebody else. Kernel: PVMW_SYNC."""

    LOCKLESS = "and passed over: somebody may be about to change it"
    SYNC = "once it is locked: whoever works on it has finished"


def page_vma_mapped_walk(
    mm: Mm, address: int, wanted: int, lookup: Lookup = Lookup.LOCKLESS
) -> HugeMapping | tuple[PteMap, Hold] | None:
    """The locked PMD or PTE of address, if it maps page `wanted` or is its migration entry (negative).

    A PMD that is none is passed over without a lock.
    Kernel: mm/page_vma_mapped.c, page_vma_mapped_walk(), map_pte(), check_pte(), check_pmd().
    """
    pmd = mm_find_pmd(mm, address)
    while pmd is not None:
        pmdval = pmdp_get_lockless(pmd)
        if pmd_trans_huge(pmdval) or pmd_is_migration_entry(pmdval):
            ptl = pmd_lock(pmd)
            pmdval = pmdp_get_lockless(pmd)
            if is_wanted_pmd(mm, pmdval, wanted):
                return HugeMapping(pmd, ptl, pmdval)
            ptl.release()
            if not pmd_is_table(pmdval):
                return None
            continue  # it was split under us
        if not pmd_is_table(pmdval):
            if lookup is Lookup.SYNC:
                sync_with_folio_pmd_zap(mm, pmd, abs(wanted))
            return None
        pte = pte_offset_map(mm.kernel, pmdval, address)
        assert pte is not None
        if lookup is Lookup.LOCKLESS and not is_wanted(pte.get(0), wanted):
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


def sync_with_folio_pmd_zap(mm: Mm, pmd: PmdPtr, page: int) -> None:
    """Whoever has emptied a PMD that may have been the folio's has finished with it.

    Divergence: done at any place of a folio as large as a table. Kernel: mm/internal.h.
    """
    mem = mm.kernel.mem
    if mem.order.raw[mem.page_folio(page)] >= mm.geometry.pmd_order:
        pmd_lock(pmd).release()


def map_pte(
    mm: Mm, address: int, wanted: int, lookup: Lookup = Lookup.LOCKLESS
) -> tuple[PteMap, Hold] | None:
    """The same of a small folio, which no PMD maps."""
    found = page_vma_mapped_walk(mm, address, wanted, lookup)
    assert not isinstance(found, HugeMapping)
    return found


def is_wanted_pmd(mm: Mm, pmdval: int, wanted: int) -> bool:
    """Whether a PMD maps the folio of page `wanted`; for -page, whether it is its migration entry."""
    first, page = pte_pfn(pmdval), abs(wanted)
    kind = pmd_trans_huge if wanted > 0 else pmd_is_migration_entry
    return kind(pmdval) and first <= page < first + mm.geometry.ptrs_per_pte


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
    """Where a folio's pages may be mapped. Caller holds its anon_vma.

    A temporary stack is passed over: its tables are moved without rmap locks.
    Kernel: mm/rmap.c, invalid_migration_vma().
    """
    places = rmap_walk(kernel.mem, folio, kernel.anon_vmas)
    return [(vma, at) for vma, at in places if not vma.vm_flags & VM_STACK_INCOMPLETE]


def page_at(kernel: Kernel, folio: int, vma: Vma, address: int) -> int:
    """The page of a folio that a place of its may map."""
    return folio + linear_page_index(vma, address) - kernel.mem.index.raw[folio]
