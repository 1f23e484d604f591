# SPDX-License-Identifier: GPL-2.0-or-later
"""Mappings are taken away. Kernel: mm/vma.c."""

from __future__ import annotations

from collections.abc import Sequence

from mthp.mm.memory_zap import free_pgtables, unmap_vmas
from mthp.mm.mm_types import Mm, Vma
from mthp.mm.mmap_lock import vma_start_write
from mthp.mm.mmu_gather import tlb_finish_mmu, tlb_gather_mmu
from mthp.mm.vma_modify import split_vma
from mthp.words.units import Address


def do_vmi_munmap(mm: Mm, start: Address, end: Address) -> None:
    """Unmap a range, of which anything may be mapped. Caller holds mmap_lock for writing.

    Kernel: mm/vma.c, do_vmi_munmap(), do_vmi_align_munmap().
    """
    vmas = vms_gather_munmap_vmas(mm, start, end)
    if vmas:
        mm.detach_vmas(vmas)
        unmap_region(vmas, *mm.gap_around(start))


def vms_gather_munmap_vmas(mm: Mm, start: Address, end: Address) -> list[Vma]:
    """Split the VMAs across the edges of a range, and keep faults out of those inside; returns these.

    Kernel: mm/vma.c, vms_gather_munmap_vmas().
    """
    first = mm.vma_lookup(start)
    if first is not None and first.vm_start < start:
        split_vma(first, start, new_below=True)
    vmas: list[Vma] = []
    for vma in mm.for_each_vma(start):
        if vma.vm_start >= end:
            break
        if vma.vm_end > end:
            split_vma(vma, end, new_below=False)
        vma_start_write(vma)
        vmas.append(vma)
    return vmas


def unmap_region(vmas: Sequence[Vma], floor: Address, ceiling: Address) -> None:
    """Empty mappings that no lookup finds any more; then their tables go, and after a flush the pages.
    floor, ceiling: where the mapping before them ends, and the one after begins.

    Kernel: mm/vma.c, unmap_region(), vms_complete_munmap_vmas().
    """
    tlb = tlb_gather_mmu(vmas[0].vm_mm, vmas[0].vm_start, vmas[-1].vm_end)
    unmap_vmas(tlb, vmas)
    free_pgtables(tlb, vmas, floor, ceiling)
    tlb_finish_mmu(tlb)
