# SPDX-License-Identifier: GPL-2.0-or-later
"""madvise(): MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE and others. Kernel: mm/madvise.c."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from mthp.mm.madvise_pages import madvise_cold, madvise_free_single_vma, madvise_pageout
from mthp.mm.memory_zap import zap_page_range_single
from mthp.mm.mm_types import Mm, Vma
from mthp.mm.mmap_lock import lock_vma_under_rcu, vma_start_write, with_vma_read_locked
from mthp.mm.reports import Zapped, Zapping
from mthp.mm.vm_flags import VM_HUGEPAGE, VM_LOCKED, VM_NOHUGEPAGE
from mthp.mm.vma_modify import vma_modify_flags
from mthp.words.profiles import HugepageMadvise
from mthp.words.units import Address

MADV_DONTNEED: Final = 4
MADV_FREE: Final = 8
MADV_HUGEPAGE: Final = 14
MADV_NOHUGEPAGE: Final = 15
MADV_COLD: Final = 20
MADV_PAGEOUT: Final = 21
MADV_COLLAPSE: Final = 25
"""Kernel: include/uapi/asm-generic/mman-common.h. The last is khugepaged's to do."""


def do_madvise(mm: Mm, start: Address, end: Address, behavior: int) -> int:
    """Give advice on a range: 0, or a negative errno. A gap does not end it, but the answer is -ENOMEM.

    Kernel: mm/madvise.c, do_madvise(), madvise_do_behavior().
    """
    if behavior in _FLAGS:
        with mm.mmap_write_lock():
            return madvise_walk_vmas(mm, start, end, _update(behavior))
    advise = _BEHAVIORS.get(behavior)
    if advise is None:
        return -errno.EINVAL

    def act(vma: Vma, start: Address, end: Address) -> int:
        if vma.vm_flags & VM_LOCKED:
            return -errno.EINVAL
        advise(vma, start, end)
        return 0

    with mm.mmap_read_lock():
        return madvise_walk_vmas(mm, start, end, act)


Behavior = Callable[[Vma, Address, Address], int]
"""What is done to a range of one VMA: 0, or the negative errno that ends it all."""


def madvise_walk_vmas(mm: Mm, start: Address, end: Address, act: Behavior) -> int:
    """Do something to each VMA's part of a range. Caller holds mmap_lock.

    Kernel: mm/madvise.c, madvise_walk_vmas().
    """
    unmapped_error = 0
    while start < end:
        vma = mm.find_vma(start)
        if vma is None:
            return -errno.ENOMEM
        if start < vma.vm_start:
            unmapped_error = -errno.ENOMEM
            start = vma.vm_start
            continue
        stop = min(vma.vm_end, end)
        error = act(vma, start, stop)
        if error:
            return error
        start = stop
    return unmapped_error


def _update(behavior: int) -> Behavior:
    """Set flags of VMAs, which are split and merged for it. Kernel: madvise_update_vma(),
    hugepage_madvise().
    """
    unset, wanted = _FLAGS[behavior]

    def update(vma: Vma, start: Address, end: Address) -> int:
        kernel, vm_flags = vma.vm_mm.kernel, vma.vm_flags & ~unset | wanted
        at_once = kernel.profile.hugepage_madvise is HugepageMadvise.ANY_CALL
        if at_once and wanted & VM_HUGEPAGE:
            kernel.khugepaged_enter_vma(vma, vm_flags)
        if vm_flags != vma.vm_flags:
            vma = vma_modify_flags(vma, start, end, vm_flags)
            vma_start_write(vma)
            vma.vm_flags = vm_flags
            if wanted & VM_HUGEPAGE and not at_once:
                kernel.khugepaged_enter_vma(vma, vm_flags)
        return 0

    return update


_FLAGS: Final = {
    MADV_HUGEPAGE: (VM_NOHUGEPAGE, VM_HUGEPAGE),
    MADV_NOHUGEPAGE: (VM_HUGEPAGE, VM_NOHUGEPAGE),
}
"""Advice -> flags that it clears, and sets."""


def madvise_free(mm: Mm, start: Address, end: Address) -> None:
    """Let the pages of [start, end) be dropped, until they are stored to again.

    Kernel: mm/madvise.c, madvise_dontneed_free(), try_vma_read_lock().
    """
    with_vma_read_locked(mm, start, lambda vma: madvise_free_single_vma(vma, start, end))


def madvise_dontneed(mm: Mm, start: Address, end: Address) -> None:
    """Empty [start, end) of one table under mmap_lock. Kernel: madvise_dontneed_free()."""
    with mm.mmap_read_lock():
        for vma in mm.for_each_vma(start):
            if vma.vm_start >= end:
                break
            if not madvise_dontneed_single_vma(vma, max(start, vma.vm_start), end):
                return
    mm.kernel.report(Zapped(mm, start, end, mm.machine.current.name))


def madvise_dontneed_vma_locked(mm: Mm, start: Address, end: Address) -> None:
    """Empty [start, end) under the VMA lock, and under mmap_lock only where that cannot be had.

    Kernel: mm/madvise.c, get_lock_mode(), try_vma_read_lock().
    """
    vma = lock_vma_under_rcu(mm, start)
    if vma is not None and vma.vm_end < end:
        vma.vm_lock.leave()
        vma = None
    if vma is None:
        madvise_dontneed(mm, start, end)
        return
    is_zapped = madvise_dontneed_single_vma(vma, start, end)
    vma.vm_lock.leave()
    if is_zapped:
        mm.kernel.report(Zapped(mm, start, end, mm.machine.current.name))


def madvise_dontneed_single_vma(vma: Vma, start: Address, end: Address) -> bool:
    """Empty what a VMA has of a range, unless it is locked; returns whether it is not. Caller holds the
    VMA or mmap_lock.

    Kernel: mm/madvise.c, madvise_dontneed_single_vma(), madvise_dontneed_free_valid_vma().
    """
    if vma.vm_flags & VM_LOCKED:
        return False
    vma.vm_mm.kernel.report(Zapping(vma.vm_mm, start, end))
    zap_page_range_single(vma, start, min(end, vma.vm_end))
    return True


_BEHAVIORS: Final[dict[int, Callable[[Vma, Address, Address], object]]] = {
    MADV_DONTNEED: madvise_dontneed_single_vma,
    MADV_FREE: madvise_free_single_vma,
    MADV_COLD: madvise_cold,
    MADV_PAGEOUT: madvise_pageout,
}
"""Advice that leaves VMAs as they are."""
