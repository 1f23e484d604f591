# SPDX-License-Identifier: GPL-2.0-or-later
"""fork(), a fork() that fails half way, exit, and exec's temporary stack. Kernel: kernel/fork.c."""

from __future__ import annotations

from collections.abc import Callable

from mthp.mm.huge_memory import copied_entry, copy_huge_pmd
from mthp.mm.memory import pte_alloc
from mthp.mm.memory_zap import free_pgtables, unmap_vmas
from mthp.mm.mm_types import CEILING, FLOOR, MM_ANONPAGES, MM_SWAPENTS, Mm, PmdPtr, Vma
from mthp.mm.mmap_lock import vma_start_write
from mthp.mm.mmu_gather import tlb_finish_mmu, tlb_gather_mmu
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.page_flags import PAGE_ANON_EXCLUSIVE
from mthp.mm.pgtable import (
    PteMap,
    flush_tlb_mm_range,
    folio_pte_batch,
    mm_find_pmd,
    pmd_ptr,
    pmdp_get_lockless,
    pte_offset_map_lock,
    set_ptes,
)
from mthp.mm.pgtable_types import (
    DIRTY,
    SOFT_DIRTY,
    SWP_EXCLUSIVE,
    WRITE,
    YOUNG,
    Leaf,
    Pte,
    leaf_kind,
    pmd_is_migration_entry,
    pmd_is_table,
    pmd_trans_huge,
    pte_none,
    pte_pfn,
    pte_present,
)
from mthp.mm.reports import Forked, Gone, Halfway, Zapped, Zapping
from mthp.mm.rmap import anon_vma_fork, folio_add_anon_rmap_ptes, remember_mm
from mthp.mm.vm_flags import VM_LOCKED, VM_UFFD_MISSING, VM_UFFD_RWP, VM_UFFD_WP
from mthp.words.units import Address

Enter = Callable[[Mm], None]
"""The type of khugepaged_fork(), which the daemon gives."""


def dup_mmap(child: Mm, parent: Mm, khugepaged_fork: Enter) -> None:
    """Copy every mapping into a new mm, and register the mm once all is copied.

    Kernel: mm/mmap.c, dup_mmap().
    """
    with parent.mmap_write_lock(), child.mmap_write_lock():
        child.start_brk, child.brk = parent.start_brk, parent.brk
        for vma in tuple(parent.vmas):
            vma_start_write(vma)
            vm_flags = vma.vm_flags & ~(VM_LOCKED | VM_UFFD_MISSING | VM_UFFD_WP | VM_UFFD_RWP)
            copy = child.mmap(vma.vm_start, vma.vm_end, vm_flags, file=vma.file)
            copy.vm_pgoff = vma.vm_pgoff
            if vma.anon_vma is not None:
                anon_vma_fork(copy, vma)
                copy_page_range(copy, vma)
        khugepaged_fork(child)
        for vma in parent.vmas:
            flush_tlb_mm_range(parent, vma.vm_start, vma.vm_end)
    parent.kernel.report(Forked(parent, child, parent.machine.current.name))


def copy_page_range(copy: Vma, vma: Vma) -> None:
    """Copy a mapping's tables; secondary MMUs are told, as pages may not be written any more.

    Kernel: mm/memory.c, copy_page_range(), copy_pmd_range().
    """
    mm = vma.vm_mm
    with mmu_notifier_invalidate_range(mm, vma.vm_start, vma.vm_end):
        for start, end in mm.geometry.pmd_ranges(vma.vm_start, vma.vm_end):
            source = mm_find_pmd(mm, start)
            if source is None:
                continue
            target = pmd_ptr(copy.vm_mm, start, create=True)
            assert target is not None
            pmdval = pmdp_get_lockless(source)
            huge = pmd_trans_huge(pmdval) or pmd_is_migration_entry(pmdval)
            if huge and copy_huge_pmd(copy, vma, target, source, start):
                continue
            if pmd_is_table(pmdp_get_lockless(source)):
                copy_pte_range(copy, vma, (target, source), start, end)


def copy_pte_range(
    copy: Vma, vma: Vma, slots: tuple[PmdPtr, PmdPtr], start: Address, end: Address
) -> None:
    """Share every page of [start, end), which lies in one table, read-only on both sides. slots: of the
    copy and of what is copied.

    Divergence: a small page that is pinned is shared too. Kernel: mm/memory.c, copy_pte_range().
    """
    child = copy.vm_mm
    target, source = slots
    pte_alloc(child, target)
    theirs = pte_offset_map_lock(child, target, start)
    if theirs is None:
        return
    dst, dst_ptl = theirs
    mine = pte_offset_map_lock(vma.vm_mm, source, start)
    if mine is not None:
        src, src_ptl = mine
        i, end_i = 0, (end - start) >> vma.vm_mm.geometry.page_shift
        while i < end_i:
            pteval = src.get(i)
            if pte_present(pteval):
                i += copy_present_ptes(copy, vma, (dst, src), i, pteval, end_i - i)
                continue
            if not pte_none(pteval):
                copy_nonpresent_pte(copy, (dst, src), i, pteval)
            i += 1
        src_ptl.release()
        src.unmap()
    dst_ptl.release()
    dst.unmap()


def copy_present_ptes(
    copy: Vma, vma: Vma, tables: tuple[PteMap, PteMap], i: int, pteval: Pte, max_nr: int
) -> int:
    """Share the page of PTE `i`, and those after it of its large folio, at most max_nr; returns how many.
    tables: of the copy and of what is copied. Kernel: mm/memory.c, copy_present_ptes().
    """
    dst, src = tables
    kernel = src.kernel
    mem, page, nr = kernel.mem, pte_pfn(pteval), 1
    if page:
        folio = mem.page_folio(page)
        if mem.folio_test_large(folio):
            nr = folio_pte_batch(src, i, pteval, max_nr, respect=DIRTY | SOFT_DIRTY)
        mem.folio_ref_add(folio, nr)
        pages = range(page, page + nr)
        for each in pages:
            mem.page_flags.clear_bits(each, PAGE_ANON_EXCLUSIVE)
        remember_mm(mem, folio, vma.vm_mm)
        folio_add_anon_rmap_ptes(mem, kernel.this_cpu, folio, pages, copy, exclusive=False)
        copy.vm_mm.counters[MM_ANONPAGES] += nr
    places = range(src.base + i, src.base + i + nr)
    if any(src.ptes.raw[at] & WRITE for at in places):  # they are locked
        for at in places:
            src.ptes.clear_bits(at, WRITE)
    set_ptes(dst, i, copied_entry(pteval, copy), nr)
    return nr


def copy_nonpresent_pte(copy: Vma, tables: tuple[PteMap, PteMap], i: int, pteval: Pte) -> None:
    """Let a swapped page be shared, or one that is on its way elsewhere; markers are copied but for those
    of userfaultfd. Kernel: mm/memory.c, copy_nonpresent_pte().
    """
    dst, src = tables
    counters = copy.vm_mm.counters
    match leaf_kind(pteval):
        case Leaf.SWAP:
            src.kernel.swap.add_user(pte_pfn(pteval))
            counters[MM_SWAPENTS] += 1
        case Leaf.MIGRATION:
            counters[MM_ANONPAGES] += 1
        case Leaf.UFFD_WP_MARKER:
            return
    if pteval & (WRITE | SWP_EXCLUSIVE):
        src.ptes.write(src.base + i, pteval & ~(WRITE | SWP_EXCLUSIVE))
    dst.ptes.write(dst.base + i, copied_entry(pteval, copy, YOUNG))


def dup_mmap_failing(child: Mm, parent: Mm, khugepaged_fork: Enter) -> None:
    """Copy mappings until memory runs out, after the first one.

    The rest of the child's tree are placeholders, and the child is registered with khugepaged only
    if there are none. Kernel: mm/mmap.c, dup_mmap(), the XA_ZERO_ENTRY path; kernel/fork.c.
    """
    report = parent.kernel.report
    report(Halfway(child, True))
    with parent.mmap_write_lock(), child.mmap_write_lock():
        for vma in parent.vmas[:1]:
            child.mmap(vma.vm_start, vma.vm_end, vma.vm_flags)
        register_if_complete(child, khugepaged_fork, complete=False)
    mmput(child)


def register_if_complete(child: Mm, khugepaged_fork: Enter, *, complete: bool) -> None:
    """Register the child, which is only done when nothing can fail any more."""
    if complete:
        khugepaged_fork(child)


def mmput(mm: Mm) -> None:
    """Let the last user leave. Kernel: kernel/fork.c, mmput()."""
    mm.mm_users.write(0)


def exit_mm(mm: Mm, khugepaged_exit: Enter) -> None:
    """End a process: its slot goes first, and waits for the daemon. Kernel: __mmput()."""
    mmput(mm)
    khugepaged_exit(mm)
    exit_mmap(mm)


def exit_mmap(mm: Mm) -> None:
    """Unmap everything, then give back tables, pages and VMAs. Kernel: mm/mmap.c, exit_mmap()."""
    kernel, vmas, by = mm.kernel, tuple(mm.vmas), mm.machine.current.name
    for notifier in mm.notifiers:  # mmu_notifier_release()
        notifier.invalidate_range_start(mm, FLOOR, CEILING)
    tlb = tlb_gather_mmu(mm, FLOOR, CEILING)
    with mm.mmap_read_lock():
        for vma in vmas:
            kernel.report(Zapping(mm, vma.vm_start, vma.vm_end))
        unmap_vmas(tlb, vmas)
    with mm.mmap_write_lock():
        free_pgtables(tlb, vmas)
        tlb_finish_mmu(tlb)
        mm.detach_vmas(vmas)
        for vma in vmas:
            kernel.report(Zapped(mm, vma.vm_start, vma.vm_end, by))
        kernel.report(Gone(mm))
