# SPDX-License-Identifier: GPL-2.0-or-later
"""Rights are taken away: NUMA hints, write protection, mprotect().

Kernel: mm/mprotect.c, mm/mempolicy.c (folio_can_map_prot_numa).
"""

from __future__ import annotations

from enum import Enum

from mthp.mm.huge_memory import pmdp_invalidate, split_huge_pmd
from mthp.mm.mm_types import Mm, PmdPtr, Vma
from mthp.mm.mmap_lock import vma_start_write
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.pgtable import (
    flush_tlb_mm_range,
    mm_find_pmd,
    pmd_lock,
    pmdp_get_lockless,
    pte_offset_map_lock,
    unlocked_after,
)
from mthp.mm.pgtable_types import (
    NO_ACCESS,
    UFFD_WP,
    WRITE,
    Leaf,
    Pte,
    leaf_kind,
    pmd_is_migration_entry,
    pmd_trans_huge,
    pte_pfn,
    pte_present,
    pte_protnone,
)
from mthp.mm.reports import StoresForbidden
from mthp.mm.vm_flags import VM_WRITE
from mthp.words.units import Address


class Right(Enum):
    """What is taken away. Kernel: MM_CP_PROT_NUMA, MM_CP_UFFD_WP, and a new vm_page_prot."""

    NUMA = "any access, until the next fault looks where it came from"
    UFFD_WP = "stores, which userfaultfd's monitor is told of"
    STORES = "stores"

    def without(self, entry: int) -> int:
        """Return the present entry without the right."""
        if self is Right.NUMA:
            return entry & ~WRITE | NO_ACCESS
        return entry & ~WRITE | (UFFD_WP if self is Right.UFFD_WP else 0)


def change_protection(vma: Vma, start: Address, end: Address, right: Right) -> bool:
    """Take a right from [start, end), which lies in one table; returns whether any PTE changed.

    Kernel: mm/mprotect.c, change_protection(), change_pmd_range().
    """
    mm = vma.vm_mm
    pmd = mm_find_pmd(mm, start)
    if pmd is None:
        return False
    changed = False
    with mmu_notifier_invalidate_range(mm, start, end):
        pmdval = pmdp_get_lockless(pmd)
        if pmd_trans_huge(pmdval) or pmd_is_migration_entry(pmdval):
            if end - start < mm.geometry.pmd_size:
                split_huge_pmd(vma, pmd, start)
            elif change_huge_pmd(vma, pmd, start, right):
                changed = True
        if not changed:
            changed = change_pte_range(mm, pmd, start, end, right)
        flush_tlb_mm_range(mm, start, end)
    return changed


def change_pte_range(mm: Mm, pmd: PmdPtr, start: Address, end: Address, right: Right) -> bool:
    """Take the right from PTEs; returns whether any had it. Kernel: change_pte_range()."""
    found = pte_offset_map_lock(mm, pmd, start)
    if found is None:
        return False
    changed = False
    with unlocked_after(mm.kernel, found) as pte:
        for i in range((end - start) >> mm.geometry.page_shift):
            pteval = pte.get(i)
            if not pte_present(pteval):
                new = change_softleaf_pte(pteval, right)
                if new != pteval:
                    pte.ptes.write(pte.base + i, new)
                    changed = True
                continue
            if _is_spared(pteval, right):
                continue
            # ptep_modify_prot_start(), ptep_modify_prot_commit(): the hardware may set bits between
            old = pte.ptes.swap(pte.base + i, 0)
            pte.ptes.write(pte.base + i, right.without(old))
            changed = True
    return changed


def change_softleaf_pte(entry: int, right: Right) -> int:
    """Take the right from an entry that is not present: a page that migrates comes back without the
    right to store, and uffd write protection stays with the entry. Kernel: change_softleaf_pte().
    """
    kind = leaf_kind(entry)
    if kind is Leaf.MIGRATION:
        entry &= ~WRITE
    is_protected = right is Right.UFFD_WP and kind in (Leaf.MIGRATION, Leaf.SWAP)
    return entry | UFFD_WP if is_protected else entry


def _is_spared(pteval: Pte, right: Right) -> bool:
    """NUMA hints are not for the zero page, nor given twice. Kernel: folio_can_map_prot_numa()."""
    return right is Right.NUMA and (not pte_pfn(pteval) or pte_protnone(pteval))


def change_huge_pmd(vma: Vma, pmd: PmdPtr, start: Address, right: Right) -> bool:
    """Take the right from a huge PMD, if it still is one. Divergence: not for a NUMA hint.

    Kernel: mm/huge_memory.c, change_huge_pmd().
    """
    with pmd_lock(pmd):
        pmdval = pmdp_get_lockless(pmd)
        if pmd_is_migration_entry(pmdval):  # change_non_present_huge_pmd()
            pmd.page.pmds.write(pmd.slot, change_softleaf_pte(pmdval, right))
            return True
        if not pmd_trans_huge(pmdval):
            return False
        if right is not Right.NUMA:
            old = pmdp_invalidate(vma.vm_mm, start, pmd)
            pmd.page.pmds.write(pmd.slot, right.without(old))
    return True


def mprotect(mm: Mm, start: Address, end: Address) -> None:
    """Make a whole mapping read-only. Kernel: mm/mprotect.c, do_mprotect_pkey()."""
    with mm.mmap_write_lock():
        vma = mm.vma_lookup(start)
        if vma is None:
            return
        vma_start_write(vma)
        vma.vm_flags &= ~VM_WRITE
        mm.kernel.report(StoresForbidden(mm, vma))
        change_protection(vma, start, end, Right.STORES)


def task_numa_work(mm: Mm, start: Address, end: Address) -> None:
    """Give hints to the pages of one table, unless mmap_lock is contended.

    Kernel: kernel/sched/fair.c, task_numa_work(); mm/mempolicy.c, change_prot_numa().
    """
    mmap_lock = mm.mmap_read_trylock()
    if mmap_lock is None:
        return
    with mmap_lock:
        vma = mm.vma_lookup(start)
        if vma is not None:
            change_protection(vma, start, end, Right.NUMA)
