# SPDX-License-Identifier: GPL-2.0-or-later
"""Rights are taken away, or given: NUMA hints, write protection, mprotect().

Kernel: mm/mprotect.c, mm/mempolicy.c (folio_can_map_prot_numa).
"""

from __future__ import annotations

import errno
from enum import Enum
from typing import Final

from mthp.mm.huge_memory import pmdp_invalidate, split_huge_pmd
from mthp.mm.mm_types import Mm, PmdPtr, Vma
from mthp.mm.mmap_lock import vma_start_write
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.page_flags import PAGE_ANON_EXCLUSIVE
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
    SOFT_DIRTY,
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
from mthp.mm.vm_flags import VM_EXEC, VM_READ, VM_SOFTDIRTY, VM_UFFD_WP, VM_WRITE
from mthp.mm.vma_modify import VM_STICKY, vma_modify_flags
from mthp.words.units import Address

_RIGHTS: Final = VM_READ | VM_WRITE | VM_EXEC


class Right(Enum):
    """What is taken away. Kernel: MM_CP_PROT_NUMA, MM_CP_UFFD_WP, and a new vm_page_prot."""

    NUMA = "any access, until the next fault looks where it came from"
    UFFD_WP = "stores, which userfaultfd's monitor is told of"
    STORES = "stores"
    GIVEN = "none: where a store need not fault, it may go through"

    def changed(self, vma: Vma, entry: int) -> int:
        """Return the present entry as it is from now on."""
        match self:
            case Right.NUMA:
                return entry & ~WRITE | NO_ACCESS
            case Right.UFFD_WP:
                return entry & ~WRITE | UFFD_WP
            case Right.GIVEN:
                return entry | WRITE if can_change_pte_writable(vma, entry) else entry
        return entry & ~WRITE


def can_change_pte_writable(vma: Vma, entry: int) -> bool:
    """Whether a store through a present entry of a writable VMA need not fault: the page is this
    process's alone. Kernel: mm/mprotect.c, can_change_private_pte_writable().
    """
    if entry & NO_ACCESS or not (vma.vm_flags & VM_SOFTDIRTY or entry & SOFT_DIRTY):
        return False
    page = pte_pfn(entry)
    alone = page and vma.vm_mm.kernel.mem.page_flags.raw[page] & PAGE_ANON_EXCLUSIVE
    return bool(alone) and not (vma.vm_flags & VM_UFFD_WP and entry & UFFD_WP)


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
            changed = change_pte_range(vma, pmd, start, end, right)
        flush_tlb_mm_range(mm, start, end)
    return changed


def change_pte_range(vma: Vma, pmd: PmdPtr, start: Address, end: Address, right: Right) -> bool:
    """Take the right from PTEs; returns whether any had it. Kernel: change_pte_range()."""
    mm = vma.vm_mm
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
            pte.ptes.write(pte.base + i, right.changed(vma, old))
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
            pmd.page.pmds.write(pmd.slot, right.changed(vma, old))
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


def do_mprotect(mm: Mm, start: Address, end: Address, rights: int) -> int:
    """Give a range other rights (VM_READ, VM_WRITE, VM_EXEC): 0, or -ENOMEM at the first gap.

    Kernel: mm/mprotect.c, do_mprotect_pkey().
    """
    with mm.mmap_write_lock():
        while start < end:
            vma = mm.vma_lookup(start)
            if vma is None:
                return -errno.ENOMEM
            stop = min(vma.vm_end, end)
            mprotect_fixup(vma, start, stop, vma.vm_flags & ~_RIGHTS | rights)
            start = stop
    return 0


def mprotect_fixup(vma: Vma, start: Address, end: Address, vm_flags: int) -> None:
    """Give a range within one VMA other rights. Kernel: mm/mprotect.c, mprotect_fixup()."""
    if vm_flags == vma.vm_flags:
        return
    vma = vma_modify_flags(vma, start, end, vm_flags)
    vma_start_write(vma)
    vma.vm_flags = vm_flags | vma.vm_flags & VM_STICKY
    right = Right.STORES
    if vm_flags & VM_WRITE:
        right = Right.GIVEN
    else:
        vma.vm_mm.kernel.report(StoresForbidden(vma.vm_mm, vma))
    for part in vma.vm_mm.geometry.pmd_ranges(start, end):
        change_protection(vma, *part, right)


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
