# SPDX-License-Identifier: GPL-2.0-or-later
"""munmap() and mmap() of the same place. Kernel: mm/vma.c."""

from __future__ import annotations

from collections.abc import Callable

from mthp.mm.huge_memory import split_huge_pmd
from mthp.mm.memory_zap import UNMAP, free_pages_and_swap_cache, zap_vma_range
from mthp.mm.mm_types import Mm, Vma
from mthp.mm.mmap_lock import vma_start_write
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.pgtable import (
    flush_tlb_mm_range,
    mm_find_pmd,
    pmd_lock,
    pmdp_get_lockless,
    pte_free_tlb,
)
from mthp.mm.pgtable_types import PMD_NONE, pmd_is_table, pmd_pgtable
from mthp.mm.reports import StoredTo, Zapped, Zapping
from mthp.mm.rmap import anon_vma_lock_write
from mthp.mm.vm_flags import VM_DEFAULT
from mthp.words.units import Address


def munmap(mm: Mm, start: Address, end: Address) -> Vma | None:
    """Remove the mapping of [start, end), its pages and its table. Kernel: do_vmi_munmap()."""
    with mm.mmap_write_lock():
        vma = _unmap_locked(mm, start, end)
    mm.kernel.report(Zapped(mm, start, end, mm.machine.current.name))
    return vma


def munmap_and_mmap(mm: Mm, start: Address, file: str | None = None) -> None:
    """Put another mapping in the place of the one that begins at start: just as suitable, or a file's."""
    kernel, by = mm.kernel, mm.machine.current.name
    with mm.mmap_write_lock():
        old = mm.vma_lookup(start)
        if old is None or old.vm_start != start:
            return
        end = old.vm_end
        _unmap_locked(mm, start, end)
        new = mm.mmap(start, end, VM_DEFAULT if file else old.vm_flags, file=file)
        mm.link_anon_vma(new)
    kernel.report(Zapped(mm, start, end, by))
    if file is not None:
        for address in range(start, end, mm.geometry.page_size):
            kernel.report(StoredTo(mm, address, kernel.files[file], by))


def munmap_tail(
    mm: Mm, start: Address, then: Callable[[Address, Address], object] | None = None
) -> None:
    """Unmap a mapping from start on: it shrinks, and a huge PMD across start is split.

    then: what is done with its range under the same mmap_lock.

    Kernel: mm/vma.c, __split_vma(), vms_gather_munmap_vmas(); mm/huge_memory.c,
    vma_adjust_trans_huge().
    """
    kernel = mm.kernel
    with mm.mmap_write_lock():
        vma = mm.find_vma(start)
        if vma is None or vma.vm_start >= start or vma.anon_vma is None:
            return
        vma_start_write(vma)
        end = vma.vm_end
        pmd = mm_find_pmd(mm, start)
        with anon_vma_lock_write(vma.anon_vma):  # vma_prepare(), vma_complete()
            if pmd is not None:
                split_huge_pmd(vma, pmd, start)
            mm.vma_set_range(vma, vma.vm_start, start)
        kernel.report(Zapping(mm, start, end))
        unmap_region(vma, start, end)
        if then is not None:
            then(start, end)
    kernel.report(Zapped(mm, start, end, mm.machine.current.name))


def _unmap_locked(mm: Mm, start: Address, end: Address) -> Vma | None:
    vma = mm.find_vma(start)
    if vma is None or vma.vm_start != start:
        return None
    vma_start_write(vma)
    mm.kernel.report(Zapping(mm, start, end))
    unmap_region(vma, start, end)
    return vma


def unmap_region(vma: Vma, start: Address, end: Address) -> None:
    """Zap the range, take the VMA out unless it has shrunk, flush, give pages and tables back.

    Divergence: the VMA leaves the tree only now; it is locked, so that who finds it cannot tell.
    Kernel: mm/vma.c, unmap_region(); mm/rmap.c, unlink_anon_vmas().
    """
    mm = vma.vm_mm
    with mmu_notifier_invalidate_range(mm, start, end):
        freed = zap_vma_range(vma, start, end, UNMAP)
        if vma in mm.vmas and vma.vm_end > start:
            unlink(vma)
        free_pgtables(mm, start, end)
        flush_tlb_mm_range(mm, start, end)
        free_pages_and_swap_cache(mm.kernel, freed)


def unlink(vma: Vma) -> None:
    """Let neither lookup nor rmap walk find the VMA any more."""
    if vma.anon_vma is None:
        vma.vm_mm.unlink_vma(vma)
        return
    with anon_vma_lock_write(vma.anon_vma):
        vma.vm_mm.unlink_vma(vma)


def free_pgtables(mm: Mm, start: Address, end: Address) -> None:
    """Free the tables of [start, end) that no VMA has a part of. Kernel: mm/memory.c, free_pgtables(),
    free_pte_range().
    """
    geometry = mm.geometry
    for address, _ in geometry.pmd_ranges(start, end):
        table = geometry.pmd_addr(address)
        pmd = mm_find_pmd(mm, table)
        if pmd is None or _is_mapped(mm, table, geometry.pmd_size):
            continue
        pmdval = pmdp_get_lockless(pmd)
        if not pmd_is_table(pmdval):
            continue
        with pmd_lock(pmd):
            pmd.page.pmds.write(pmd.slot, PMD_NONE)
        pte_free_tlb(mm.kernel.tables[pmd_pgtable(pmdval)])


def free_pmd_pages(mm: Mm, start: Address, end: Address) -> None:
    """Free the pages of PMD slots of [start, end) that no VMA has a part of.

    Divergence: not with the tables below them, for tasks that race may still hold a slot of theirs.
    Kernel: mm/memory.c, free_pmd_range().
    """
    span = mm.geometry.pmd_size * mm.geometry.ptrs_per_pte
    for number in range(start // span, (end - 1) // span + 1):
        if number in mm.pmd_pages and not _is_mapped(mm, number * span, span):
            del mm.pmd_pages[number]
            mm.pmd_numbers.remove(number)


def _is_mapped(mm: Mm, start: Address, size: int) -> bool:
    """Whether a VMA has a part of so many bytes from start on."""
    vma = mm.find_vma(start)
    return vma is not None and vma.vm_start < start + size
