# SPDX-License-Identifier: GPL-2.0-or-later
"""madvise(): MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE and others. Kernel: mm/madvise.c."""

from __future__ import annotations

import errno
from enum import Enum
from typing import Final

from mthp.mm.madvise_pages import madvise_cold, madvise_free_single_vma, madvise_pageout
from mthp.mm.memory_zap import zap_page_range_single
from mthp.mm.mm_types import Mm, Vma, userfaultfd_armed
from mthp.mm.mmap_lock import lock_vma_under_rcu, vma_start_write
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


class LockMode(Enum):
    """What keeps the VMAs meanwhile. Kernel: mm/madvise.c, enum madvise_lock_mode."""

    VMA_READ = "the lock of the one VMA, or else mmap_lock"
    MMAP_READ = "mmap_lock for reading"
    MMAP_WRITE = "mmap_lock for writing"


def do_madvise(
    mm: Mm, start: Address, end: Address, behavior: int, lock_mode: LockMode | None = None
) -> int:
    """Give advice on a range: 0, or a negative errno. A gap does not end it, but the answer is -ENOMEM.
    lock_mode: another than this kernel's.

    Kernel: mm/madvise.c, do_madvise(), madvise_do_behavior(), get_lock_mode().
    """
    lock_mode = lock_mode or _LOCK_MODES.get(behavior)
    if lock_mode is None:
        return -errno.EINVAL
    if lock_mode is LockMode.MMAP_WRITE:
        with mm.mmap_write_lock():
            return madvise_walk_vmas(mm, start, end, behavior)
    vma = try_vma_read_lock(mm, start, end) if lock_mode is LockMode.VMA_READ else None
    if vma is not None:
        error = madvise_vma_behavior(vma, start, end, behavior)
        vma.vm_lock.leave()
        return error
    with mm.mmap_read_lock():
        return madvise_walk_vmas(mm, start, end, behavior)


def try_vma_read_lock(mm: Mm, start: Address, end: Address) -> Vma | None:
    """Lock the VMA that a range lies in; None: take mmap_lock instead.

    Kernel: mm/madvise.c, try_vma_read_lock(), is_vma_lock_sufficient().
    """
    vma = lock_vma_under_rcu(mm, start)
    if vma is not None and (end > vma.vm_end or userfaultfd_armed(vma)):
        vma.vm_lock.leave()
        return None
    return vma


def madvise_walk_vmas(mm: Mm, start: Address, end: Address, behavior: int) -> int:
    """Give advice on each VMA's part of a range. Caller holds mmap_lock.

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
        error = madvise_vma_behavior(vma, start, stop, behavior)
        if error:
            return error
        start = stop
    return unmapped_error


def madvise_vma_behavior(vma: Vma, start: Address, end: Address, behavior: int) -> int:
    """Give advice on a range of one VMA: 0, or -EINVAL where it is locked and may not be.

    Kernel: mm/madvise.c, madvise_vma_behavior(), madvise_dontneed_free_valid_vma(), can_madv_lru_vma().
    """
    if behavior == MADV_HUGEPAGE:
        hugepage_madvise(vma, start, end, VM_NOHUGEPAGE, VM_HUGEPAGE)
    elif behavior == MADV_NOHUGEPAGE:
        hugepage_madvise(vma, start, end, VM_HUGEPAGE, VM_NOHUGEPAGE)
    elif vma.vm_flags & VM_LOCKED:
        return -errno.EINVAL
    elif behavior == MADV_DONTNEED:
        madvise_dontneed_single_vma(vma, start, end)
    elif behavior == MADV_FREE:
        madvise_free_single_vma(vma, start, end)
    elif behavior == MADV_COLD:
        madvise_cold(vma, start, end)
    else:
        madvise_pageout(vma, start, end)
    return 0


def hugepage_madvise(vma: Vma, start: Address, end: Address, unset: int, wanted: int) -> None:
    """Clear and set flags of a range, for which VMAs are split and merged. Kernel: mm/khugepaged.c,
    hugepage_madvise(); mm/madvise.c, madvise_update_vma().
    """
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


def madvise_dontneed_single_vma(vma: Vma, start: Address, end: Address) -> None:
    """Empty a range of a VMA. Kernel: mm/madvise.c, madvise_dontneed_single_vma()."""
    mm = vma.vm_mm
    mm.kernel.report(Zapping(mm, start, end))
    zap_page_range_single(vma, start, end)
    mm.kernel.report(Zapped(mm, start, end, mm.machine.current.name))


_LOCK_MODES: Final = {
    MADV_DONTNEED: LockMode.VMA_READ,
    MADV_FREE: LockMode.VMA_READ,
    MADV_COLD: LockMode.MMAP_READ,
    MADV_PAGEOUT: LockMode.MMAP_READ,
    MADV_HUGEPAGE: LockMode.MMAP_WRITE,
    MADV_NOHUGEPAGE: LockMode.MMAP_WRITE,
}
"""What each advice takes. Kernel: mm/madvise.c, get_lock_mode()."""
