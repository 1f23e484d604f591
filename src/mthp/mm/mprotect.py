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
    PteMap,
    flush_tlb_mm_range,
    folio_pte_batch,
    mm_find_pmd,
    pmd_lock,
    pmdp_get_lockless,
    pte_offset_map_lock,
    unlocked_after,
)
from mthp.mm.pgtable_types import (
    DIRTY,
    NO_ACCESS,
    PFN_SHIFT,
    PTE_NONE,
    SOFT_DIRTY,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
    Pmd,
    Pte,
    leaf_kind,
    pmd_is_migration_entry,
    pmd_trans_huge,
    pte_pfn,
    pte_present,
    pte_protnone,
)
from mthp.mm.reports import StoresForbidden
from mthp.mm.vm_flags import (
    VM_ACCOUNT,
    VM_EXEC,
    VM_HUGETLB,
    VM_NORESERVE,
    VM_READ,
    VM_SHARED,
    VM_SOFTDIRTY,
    VM_UFFD_WP,
    VM_WRITE,
)
from mthp.mm.vma_modify import VM_STICKY, vma_modify_flags
from mthp.words.profiles import PmdModify
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
    changed, i, end_i = False, 0, (end - start) >> mm.geometry.page_shift
    with unlocked_after(mm.kernel, found) as pte:
        while i < end_i:
            pteval, nr = pte.get(i), 1
            if not pte_present(pteval):
                new = change_softleaf_pte(pteval, right)
                if new != pteval:
                    pte.ptes.write(pte.base + i, new)
                    changed = True
            elif not _is_spared(pteval, right):
                page, mem = pte_pfn(pteval), mm.kernel.mem
                if page and mem.folio_test_large(mem.page_folio(page)):
                    nr = folio_pte_batch(pte, i, pteval, end_i - i, WRITE | SOFT_DIRTY)
                change_present_ptes(vma, pte, i, nr, right)
                changed = True
            i += nr
    return changed


def change_present_ptes(vma: Vma, pte: PteMap, i: int, nr: int, right: Right) -> None:
    """Take the right from entries that map pages of one folio in a row. If one of them was used, or stored
    to, all were, as far as they say from now on.

    Kernel: mm/mprotect.c, change_present_ptes(); include/linux/pgtable.h, modify_prot_start_ptes(): the
    hardware may set bits before, not between.
    """
    places = range(pte.base + i, pte.base + i + nr)
    old = pte.ptes.swap(places[0], PTE_NONE)
    for at in places[1:]:
        another = pte.ptes.swap(at, PTE_NONE)
        old = Pte(old | another & YOUNG | (DIRTY | SOFT_DIRTY if another & DIRTY else 0))
    for k, at in enumerate(places):
        pte.ptes.write(at, right.changed(vma, old + (k << PFN_SHIFT)))


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
            pmd.page.pmds.write(pmd.slot, right.changed(vma, pmd_modify(vma, old)))
    return True


def pmd_modify(vma: Vma, pmdval: Pmd) -> Pmd:
    """A huge PMD as a change of its protection leaves it, but for the rights. What is read-only keeps that
    it was stored to in a bit of software's, which no kernel loses. Kernel: arch/x86/include/asm/pgtable.h,
    pmd_modify(), pmd_clear_saveddirty().
    """
    kept = vma.vm_mm.kernel.profile.pmd_modify is PmdModify.KEPT or not pmdval & WRITE
    return pmdval if kept else Pmd(Pte(pmdval & ~DIRTY))


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
    vm_flags = _accounted(vma, vm_flags)
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


def _accounted(vma: Vma, vm_flags: int) -> int:
    """The flags that a VMA gets, with VM_ACCOUNT as it is from now on: what may be written to is counted, and
    counted no more if it may not and never was. Kernel: mm/mprotect.c, mprotect_fixup().
    """
    if vm_flags & VM_WRITE:
        counted = not vma.vm_flags & (VM_ACCOUNT | VM_WRITE | VM_HUGETLB | VM_SHARED | VM_NORESERVE)
        return vm_flags | VM_ACCOUNT if counted else vm_flags
    forgotten = vma.file is None and vma.anon_vma is None
    return vm_flags & ~VM_ACCOUNT if forgotten else vm_flags


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
