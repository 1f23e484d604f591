# SPDX-License-Identifier: GPL-2.0-or-later
"""mmap() and munmap() of anonymous memory, of any range. Kernel: mm/mmap.c, mm/vma.c."""

from __future__ import annotations

import errno

from mthp.mm.mm_types import Mm, Vma
from mthp.mm.mmap_lock import vma_start_write
from mthp.mm.reports import Zapped, Zapping
from mthp.mm.vm_flags import VM_ACCOUNT, VM_READ, VM_SOFTDIRTY, VM_WRITE
from mthp.mm.vma import do_vmi_munmap
from mthp.mm.vma_modify import VmaMerge, vma_merge_new_range
from mthp.words.units import Address


def do_mmap(mm: Mm, start: Address, end: Address, vm_flags: int, file: str | None = None) -> int:
    """Map private memory at [start, end), where nothing is left of what was there; 0. file: whose it is, None
    where it is anonymous.

    Divergence: what was there leaves the tree before it is emptied.
    Kernel: mm/mmap.c, do_mmap(); mm/vma.c, __mmap_region(). mmap(MAP_FIXED).
    """
    with mm.mmap_write_lock():
        do_munmap(mm, start, end)
        mmap_region(mm, start, end, vm_flags | VM_SOFTDIRTY, file)
    return 0


def mmap_region(mm: Mm, start: Address, end: Address, vm_flags: int, file: str | None) -> Vma:
    """Map a range that is free: a neighbour grows over it, or it is a VMA of its own. Kernel: mm/vma.c,
    __mmap_region().
    """
    after = mm.find_vma(start)
    prev = mm.vma_lookup(start - 1)
    pgoff = start >> mm.geometry.page_shift
    merge = VmaMerge(mm, start, end, vm_flags, pgoff, prev=prev, next=after)
    vma = vma_merge_new_range(merge) if file is None else None
    if vma is None:
        vma = mm.mmap(start, end, vm_flags, file=file)
        vma_start_write(vma)
    return vma


def do_brk(mm: Mm, brk: Address) -> int:
    """Have the heap end at brk, a whole number of pages: 0, or -ENOMEM where it would begin before its start,
    where something else is in the way (a page more than it needs), or where nothing is left to take away.

    Kernel: mm/mmap.c, brk(2).
    """
    with mm.mmap_write_lock():
        if brk < mm.start_brk:
            return -errno.ENOMEM
        low, high = sorted((brk, mm.brk))
        other = mm.find_vma(low)
        if brk < mm.brk:
            if other is None or other.vm_start >= high:
                return -errno.ENOMEM
            do_munmap(mm, low, high)
        elif brk > mm.brk:
            if other is not None and other.vm_start < high + mm.geometry.page_size:
                return -errno.ENOMEM
            do_brk_flags(mm, low, high)
        mm.brk = brk
    return 0


def do_brk_flags(mm: Mm, start: Address, end: Address) -> Vma:
    """Map a range that is free at the heap's end: what ends there grows. Kernel: mm/vma.c, do_brk_flags()."""
    vm_flags = VM_READ | VM_WRITE | VM_ACCOUNT | VM_SOFTDIRTY
    prev = mm.vma_lookup(start - 1) if start > mm.start_brk else None
    merge = VmaMerge(mm, start, end, vm_flags, start >> mm.geometry.page_shift, prev=prev)
    vma = vma_merge_new_range(merge)
    if vma is None:
        vma = mm.mmap(start, end, vm_flags)
        vma_start_write(vma)
    return vma


def vm_munmap(mm: Mm, start: Address, end: Address) -> int:
    """Unmap a range, of which anything may be mapped; 0. Kernel: mm/vma.c, __vm_munmap()."""
    with mm.mmap_write_lock():
        do_munmap(mm, start, end)
    return 0


def do_munmap(mm: Mm, start: Address, end: Address) -> None:
    """Give up what is mapped in a range. Caller holds mmap_lock for writing.

    Kernel: mm/mmap.c, do_munmap().
    """
    vma = mm.find_vma(start)
    if vma is not None and vma.vm_start < end:
        mm.kernel.report(Zapping(mm, start, end))
        do_vmi_munmap(mm, start, end)
        mm.kernel.report(Zapped(mm, start, end, mm.machine.current.name))
