# SPDX-License-Identifier: GPL-2.0-or-later
"""Soft-dirty marks are cleared: stores leave them anew. Kernel: fs/proc/task_mmu.c."""

from __future__ import annotations

from mthp.mm.gup import folio_maybe_dma_pinned
from mthp.mm.huge_memory import pmdp_invalidate
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
    SOFT_DIRTY,
    WRITE,
    Pte,
    pmd_trans_huge,
    pte_none,
    pte_pfn,
    pte_present,
)
from mthp.mm.reports import SoftDirtyCleared
from mthp.mm.vm_flags import VM_SOFTDIRTY
from mthp.words.units import Address


def clear_refs_write(mm: Mm) -> None:
    """Write 4 to /proc/PID/clear_refs. Kernel: fs/proc/task_mmu.c, clear_refs_write()."""
    kernel = mm.kernel
    geometry = mm.geometry
    with mm.mmap_write_lock():
        vmas = tuple(mm.vmas)
        for vma in vmas:
            if vma.vm_flags & VM_SOFTDIRTY:
                vma_start_write(vma)
                vma.vm_flags &= ~VM_SOFTDIRTY
        for vma in vmas:
            with mmu_notifier_invalidate_range(mm, vma.vm_start, vma.vm_end):
                for start in range(geometry.pmd_addr(vma.vm_start), vma.vm_end, geometry.pmd_size):
                    clear_refs_pte_range(vma, start)
            flush_tlb_mm_range(mm, vma.vm_start, vma.vm_end)
            by = mm.machine.current.name
            kernel.report(SoftDirtyCleared(mm, vma.vm_start, vma.vm_end, by))


def clear_refs_pte_range(vma: Vma, start: Address) -> None:
    """Clear the marks of one table. Kernel: fs/proc/task_mmu.c, clear_refs_pte_range()."""
    mm = vma.vm_mm
    pmd = mm_find_pmd(mm, start)
    if pmd is None:
        return
    if pmd_trans_huge(pmdp_get_lockless(pmd)):
        with pmd_lock(pmd):
            if pmd_trans_huge(pmdp_get_lockless(pmd)):
                clear_soft_dirty_pmd(vma, start, pmd)
                return
    found = pte_offset_map_lock(mm, pmd, start)
    if found is None:
        return
    with unlocked_after(mm.kernel, found) as pte:
        for i in range(mm.geometry.ptrs_per_pte):
            pteval = pte.get(i)
            if pte_none(pteval):
                continue
            if not pte_present(pteval):
                pte.ptes.write(pte.base + i, pteval & ~SOFT_DIRTY)
            elif not pte_is_pinned(vma, pteval):
                # ptep_modify_prot_start(), ptep_modify_prot_commit()
                old = pte.ptes.swap(pte.base + i, 0)
                pte.ptes.write(pte.base + i, old & ~(WRITE | SOFT_DIRTY))


def pte_is_pinned(vma: Vma, pteval: Pte) -> bool:
    """Whether the page may be pinned. Kernel: fs/proc/task_mmu.c, pte_is_pinned()."""
    kernel = vma.vm_mm.kernel
    page = pte_pfn(pteval)
    return bool(page) and folio_maybe_dma_pinned(kernel, kernel.mem.page_folio(page))


def clear_soft_dirty_pmd(vma: Vma, start: Address, pmd: PmdPtr) -> None:
    """Clear the mark of a huge PMD. Kernel: fs/proc/task_mmu.c, clear_soft_dirty_pmd()."""
    old = pmdp_invalidate(vma.vm_mm, start, pmd)
    pmd.page.pmds.write(pmd.slot, old & ~(WRITE | SOFT_DIRTY | NO_ACCESS))
