# SPDX-License-Identifier: GPL-2.0-or-later
"""mremap(), and exec's shift of its temporary stack. Kernel: mm/mremap.c."""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager, nullcontext

from mthp.machine.hold import Hold
from mthp.mm.huge_memory import pmdp_huge_clear_flush, split_huge_pmd
from mthp.mm.memory import pte_alloc
from mthp.mm.mm_types import Mm, PmdPtr, Vma, linear_page_index
from mthp.mm.mmap import do_munmap
from mthp.mm.mmap_lock import vma_start_write
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.pgtable import (
    flush_tlb_mm_range,
    mm_find_pmd,
    pgtable_trans_huge_deposit,
    pgtable_trans_huge_withdraw,
    pmd_lock,
    pmd_populate,
    pmd_ptr,
    pmdp_get_lockless,
    pte_offset_map,
    pte_offset_map_lock,
)
from mthp.mm.pgtable_types import (
    PMD_NONE,
    PTE_NONE,
    SOFT_DIRTY,
    pmd_is_migration_entry,
    pmd_is_table,
    pmd_none,
    pmd_pgtable,
    pmd_present,
    pmd_trans_huge,
    pte_none,
    pte_present,
)
from mthp.mm.reports import Moving
from mthp.mm.rmap import anon_vma_clone, anon_vma_lock_write
from mthp.mm.vm_flags import VM_STACK_INCOMPLETE
from mthp.mm.vma import do_vmi_munmap
from mthp.mm.vma_modify import VmaMerge, vma_merge_new_range
from mthp.words.units import Address


def do_mremap(mm: Mm, start: Address, end: Address, to: Address) -> int:
    """Move the memory of a range elsewhere, where nothing is left of what was there: 0, or -EFAULT where
    nothing is mapped at its start, and -EINVAL where the two overlap.

    Kernel: mm/mremap.c, do_mremap() with MREMAP_MAYMOVE and MREMAP_FIXED, remap_move(), mremap_to().
    """
    if start < to + end - start and to < end:
        return -errno.EINVAL
    shift = to - start
    with mm.mmap_write_lock():
        if mm.vma_lookup(start) is None:
            return -errno.EFAULT
        at = start
        while at < end:
            vma = mm.find_vma(at)
            if vma is None or vma.vm_start >= end:
                break
            first, last = max(vma.vm_start, at), min(vma.vm_end, end)
            move_vma(mm, first, last, first + shift)
            at = last
    return 0


def move_vma(mm: Mm, start: Address, end: Address, to: Address) -> None:
    """Move a part of a VMA to a place that is emptied for it. Caller holds mmap_lock for writing.

    Kernel: mm/mremap.c, mremap_to(), move_vma(), copy_vma_and_data(), unmap_source_vma().
    """
    do_munmap(mm, to, to + end - start)
    vma = mm.vma_lookup(start)
    assert vma is not None
    vma_start_write(vma)
    copy_vma(vma, start, end, to, vma.vm_flags)
    mm.kernel.report(Moving(mm, start, to, end - start, mm.machine.current.name))
    move_page_tables(vma, start, to, end - start)
    do_vmi_munmap(mm, start, end)


def copy_vma(vma: Vma, start: Address, end: Address, to: Address, vm_flags: int) -> None:
    """Make a mapping of a part's pages elsewhere: a neighbour there grows, or it is a VMA of its own.

    Kernel: mm/vma.c, copy_vma(), vma_merge_copied_range().
    """
    mm = vma.vm_mm
    pgoff = linear_page_index(vma, start)
    if vma.anon_vma is None:
        pgoff = to >> mm.geometry.page_shift
    stop = to + end - start
    merge = VmaMerge(
        mm, to, stop, vm_flags, pgoff, vma.anon_vma,
        mm.vma_lookup(to - 1), mm.find_vma(to), copied_from=vma,
    )  # fmt: skip
    if vma.file is not None or vma_merge_new_range(merge) is None:
        new = mm.mmap(to, stop, vm_flags, file=vma.file)
        new.vm_pgoff = pgoff
        anon_vma_clone(new, vma)


def relocate_vma_down(mm: Mm, to: int) -> None:
    """Shift exec's new stack to where it will stay, without rmap locks: rmap walks pass it over.

    Divergence: it is an ordinary stack once rmap walks can find it where it will stay.
    Kernel: mm/vma_exec.c, relocate_vma_down(); fs/exec.c, setup_arg_pages().
    """
    with mm.mmap_write_lock():
        vma = next(each for each in mm.vmas if each.vm_flags & VM_STACK_INCOMPLETE)
        vma_start_write(vma)
        start, end = vma.vm_start, vma.vm_end
        mm.kernel.report(Moving(mm, start, to, end - start, mm.machine.current.name))
        move_page_tables(vma, start, to, end - start)
        copy_vma(vma, start, end, to, vma.vm_flags & ~VM_STACK_INCOMPLETE)
        do_vmi_munmap(mm, start, end)


def move_page_tables(vma: Vma, start: Address, to: int, length: int) -> None:
    """Move whole tables by their PMD, the rest entry by entry.

    Kernel: mm/mremap.c, move_page_tables(), get_extent().
    """
    mm = vma.vm_mm
    size = mm.geometry.pmd_size
    with mmu_notifier_invalidate_range(mm, start, start + length):
        done = 0
        while done < length:
            old, new = start + done, to + done
            extent = min(size - old % size, size - new % size, length - done)
            move_extent(vma, old, new, extent)
            done += extent


def move_extent(vma: Vma, old: int, new: int, extent: int) -> None:
    """Move what lies within one old and one new table, if there is anything.

    Kernel: mm/mremap.c, get_old_pmd(), alloc_new_pmd(), in the loop of move_page_tables().
    """
    mm = vma.vm_mm
    old_pmd = mm_find_pmd(mm, old)
    if old_pmd is None or pmd_none(pmdval := pmdp_get_lockless(old_pmd)):
        return
    new_pmd = pmd_ptr(mm, new, create=True)
    assert new_pmd is not None
    while True:
        whole = extent == mm.geometry.pmd_size
        if pmd_trans_huge(pmdval) or pmd_is_migration_entry(pmdval):
            if whole and move_huge_pmd(vma, old, old_pmd, new_pmd):
                return
            split_huge_pmd(vma, old_pmd, old)
        elif whole and move_normal_pmd(vma, old, old_pmd, new_pmd):
            return
        if pmd_none(pmdp_get_lockless(old_pmd)):
            return
        pte_alloc(mm, new_pmd)
        if move_ptes(vma, (old_pmd, old), (new_pmd, new), extent):
            return
        pmdval = pmdp_get_lockless(old_pmd)


def rmap_locks(vma: Vma) -> AbstractContextManager[Hold | None]:
    """Keep rmap walks away meanwhile. Kernel: take_rmap_locks(), drop_rmap_locks()."""
    return nullcontext() if vma.anon_vma is None else anon_vma_lock_write(vma.anon_vma)


def move_normal_pmd(vma: Vma, old: int, old_pmd: PmdPtr, new_pmd: PmdPtr) -> bool:
    """Hang the table elsewhere; False: it is none (any more). The rmap locks are always taken.

    Kernel: mm/mremap.c, move_normal_pmd(), should_take_rmap_locks().
    """
    mm = vma.vm_mm
    with rmap_locks(vma):
        if not pmd_none(pmdp_get_lockless(new_pmd)):
            return False
        old_ptl = pmd_lock(old_pmd)
        new_ptl = pmd_lock(new_pmd) if new_pmd.page is not old_pmd.page else None
        pmdval = pmdp_get_lockless(old_pmd)
        moved = pmd_present(pmdval) and pmd_is_table(pmdval)
        if moved:
            old_pmd.page.pmds.write(old_pmd.slot, PMD_NONE)
            pmd_populate(new_pmd, pmd_pgtable(pmdval))
            flush_tlb_mm_range(mm, old, old + mm.geometry.pmd_size)
        if new_ptl is not None:
            new_ptl.release()
        old_ptl.release()
    return moved


def move_huge_pmd(vma: Vma, old: int, old_pmd: PmdPtr, new_pmd: PmdPtr) -> bool:
    """Map the huge page elsewhere; False: it is none any more. Kernel: mm/huge_memory.c."""
    if not pmd_none(pmdp_get_lockless(new_pmd)):
        return False
    old_ptl = pmd_lock(old_pmd)
    new_ptl = pmd_lock(new_pmd) if new_pmd.page is not old_pmd.page else None
    pmdval = pmdp_get_lockless(old_pmd)
    moved = pmd_trans_huge(pmdval) or pmd_is_migration_entry(pmdval)
    if moved:
        pmdval = pmdp_huge_clear_flush(vma.vm_mm, old, old_pmd)
        pgtable_trans_huge_deposit(new_pmd, pgtable_trans_huge_withdraw(old_pmd))
        new_pmd.page.pmds.write(new_pmd.slot, pmdval | SOFT_DIRTY)
    if new_ptl is not None:
        new_ptl.release()
    old_ptl.release()
    return moved


def move_ptes(
    vma: Vma, source: tuple[PmdPtr, int], target: tuple[PmdPtr, int], extent: int
) -> bool:
    """Move entries without rmap locks: rmap walks meet the old place before the new one. False:
    there is no table (any more). source, target: slot and address.

    Kernel: mm/mremap.c, move_ptes().
    """
    mm = vma.vm_mm
    found = pte_offset_map_lock(mm, source[0], source[1])
    if found is None:
        return False
    old_pte, old_ptl = found
    new_pte = pte_offset_map(mm.kernel, pmdp_get_lockless(target[0]), target[1])
    assert new_pte is not None  # mmap_lock is held for writing
    new_ptl = new_pte.table.ptl.lock() if new_pte.table is not old_pte.table else None
    was_present = False
    for i in range(extent >> mm.geometry.page_shift):
        if pte_none(old_pte.get(i)):
            continue
        pteval = old_pte.ptes.swap(old_pte.base + i, PTE_NONE)
        was_present |= pte_present(pteval)
        new_pte.ptes.write(new_pte.base + i, pteval | SOFT_DIRTY)
    if was_present:
        flush_tlb_mm_range(mm, source[1], source[1] + extent)
    if new_ptl is not None:
        new_ptl.release()
    new_pte.unmap()
    old_ptl.release()
    old_pte.unmap()
    return True
