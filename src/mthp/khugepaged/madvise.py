# SPDX-License-Identifier: GPL-2.0-or-later
"""MADV_COLLAPSE: a process has a range collapsed. Kernel: mm/khugepaged.c, madvise_collapse()."""

from __future__ import annotations

import errno
from typing import Final

from mthp.khugepaged.control import Caller, CollapseControl
from mthp.khugepaged.daemon import collapse_single_pmd
from mthp.khugepaged.eligibility import collapse_possible_orders
from mthp.khugepaged.revalidate import Expect, hugepage_vma_revalidate
from mthp.machine.hold import Hold
from mthp.mm.folio import lru_add_drain_all
from mthp.mm.huge_mm import Tva
from mthp.mm.mm_types import Mm, Vma
from mthp.mm.pgtable import pmd_ptr
from mthp.words.profiles import EmptyRange, MissingTable
from mthp.words.results import KernelBug, Refused, Rule, ScanResult
from mthp.words.units import Address

THP: Final = frozenset({ScanResult.SUCCEED, ScanResult.PMD_MAPPED})
"""After these the range is mapped by a huge page."""

GO_ON: Final = frozenset(
    {
        ScanResult.NO_PTE_TABLE,
        ScanResult.PTE_NON_PRESENT,
        ScanResult.PTE_UFFD,
        ScanResult.LACK_REFERENCED_PAGE,
        ScanResult.PAGE_NULL,
        ScanResult.PAGE_COUNT,
        ScanResult.PAGE_LOCK,
        ScanResult.PAGE_COMPOUND,
        ScanResult.PAGE_LRU,
        ScanResult.DEL_PAGE_LRU,
    }
)
"""After these the range has failed, and the next one is tried all the same."""

ADDRESS_BITS: Final = 64
"""An address of the kernel has so many."""

_ERRNO: Final = {
    ScanResult.ALLOC_HUGE_PAGE_FAIL: errno.ENOMEM,
    ScanResult.CGROUP_CHARGE_FAIL: errno.EBUSY,
    ScanResult.EXCEED_NONE_PTE: errno.EBUSY,
    ScanResult.PAGE_COUNT: errno.EAGAIN,
    ScanResult.PAGE_LOCK: errno.EAGAIN,
    ScanResult.PAGE_LRU: errno.EAGAIN,
    ScanResult.DEL_PAGE_LRU: errno.EAGAIN,
    ScanResult.PAGE_FILLED: errno.EAGAIN,
    ScanResult.PAGE_HAS_PRIVATE: errno.EAGAIN,
    ScanResult.PAGE_DIRTY_OR_WRITEBACK: errno.EAGAIN,
}


def madvise_collapse_errno(result: ScanResult) -> int:
    """What madvise() returns for a result. Kernel: mm/khugepaged.c, madvise_collapse_errno()."""
    return -_ERRNO.get(result, errno.EINVAL)


def is_range(mm: Mm, start: Address, end: Address) -> bool:
    """Whether a range begins on a page and ends within the address space.

    Kernel: mm/madvise.c, check_input_range().
    """
    return not start % mm.geometry.page_size and not end >> ADDRESS_BITS


def do_madvise_collapse(mm: Mm, start: Address, length: int) -> int:
    """madvise(start, length, MADV_COLLAPSE) as a process calls it: 0 or a negative errno.

    The first VMA that cannot be collapsed ends it; a gap does not, but the answer is -ENOMEM then.
    Kernel: mm/madvise.c, do_madvise(), madvise_walk_vmas().
    """
    page_size = mm.geometry.page_size
    end = start + -(-length // page_size) * page_size
    if not is_range(mm, start, end):
        return -errno.EINVAL
    unmapped_error = 0
    mmap_lock = mm.mmap_read_lock()
    try:
        while start < end:
            if not mmap_lock.active:
                mmap_lock = mm.mmap_read_lock()
            vma = mm.find_vma(start)
            if vma is None:
                return -errno.ENOMEM
            if start < vma.vm_start:
                unmapped_error = -errno.ENOMEM
                start = vma.vm_start
                continue
            stop = min(vma.vm_end, end)
            error = madvise_collapse_locked(vma, start, stop, mmap_lock)
            if error:
                return error
            start = stop
    finally:
        if mmap_lock.active:
            mmap_lock.release()
    return unmapped_error


def madvise_collapse(vma: Vma, start: Address, end: Address) -> int:
    """madvise(MADV_COLLAPSE) of [start, end) in vma: 0 or a negative errno."""
    with vma.vm_mm.mmap_read_lock() as mmap_lock:
        return madvise_collapse_locked(vma, start, end, mmap_lock)


def madvise_collapse_locked(vma: Vma, start: Address, end: Address, mmap_lock: Hold) -> int:
    """Collapse every aligned PMD range of [start, end) in vma, to PMD order.

    mmap_lock is held for reading on entry; vma is stale once it was let go. Returns 0 if every range is
    huge afterwards, else a negative errno. Kernel: mm/khugepaged.c, madvise_collapse().
    """
    mm = vma.vm_mm
    if not vma.vm_start <= start <= end <= vma.vm_end:
        raise KernelBug(Rule.STATE, f"BUG_ON in madvise_collapse: {start:#x}-{end:#x} leaves {vma}")
    if not collapse_possible_orders(vma, vma.vm_flags, Tva.FORCED_COLLAPSE):
        return -errno.EINVAL
    hstart = mm.geometry.pmd_align_up(start)
    hend = mm.geometry.pmd_addr(end)
    kernel = mm.kernel
    is_known_before = kernel.profile.empty_range is EmptyRange.ZERO
    if hstart >= hend and is_known_before:
        return 0
    lru_add_drain_all(kernel.mem, kernel.cpus)
    if hstart >= hend:
        return -errno.EINVAL if hstart > hend else 0
    return _collapse_ranges(mm, vma, hstart, hend, mmap_lock)


def _collapse_ranges(mm: Mm, vma: Vma, hstart: Address, hend: Address, mmap_lock: Hold) -> int:
    """Do the loop of madvise_collapse(); mmap_lock is held on entry."""
    cc = CollapseControl(Caller.MADVISE)
    last_fail = ScanResult.FAIL
    thps = 0
    address = hstart
    current: Hold | None = mmap_lock
    try:
        while address < hend:
            if current is None or not current.active:
                current = mm.mmap_read_lock()
                try:
                    vma = hugepage_vma_revalidate(
                        mm, address, Expect.ANY, cc, mm.geometry.pmd_order
                    )
                except Refused as refusal:
                    last_fail = refusal.result
                    break
                hend = min(hend, mm.geometry.pmd_addr(vma.vm_end))
            passed, huge = mm.machine.path(pass_by_tables)(mm, address, hend)
            if passed:
                thps += huge
                last_fail = last_fail if huge == passed else ScanResult.NO_PTE_TABLE
                address += passed * mm.geometry.pmd_size
                continue
            result = collapse_single_pmd(address, vma, current, cc)
            if result in THP:
                thps += 1
            else:
                last_fail = result
                if result not in GO_ON or _ends_at_missing_table(mm, address, result):
                    break
            address += mm.geometry.pmd_size
    finally:
        if current is not None and current.active and current is not mmap_lock:
            current.release()
    if thps == (hend - hstart) >> mm.geometry.pmd_shift:
        return 0
    return madvise_collapse_errno(last_fail)


def pass_by_tables(mm: Mm, address: Address, end: Address) -> tuple[int, int]:
    """How many tables from address on need not be looked into, and how many of them are huge PMDs.

    None: each range is asked in turn. A fast twin counts those of which the answer is known.
    """
    return 0, 0


def _ends_at_missing_table(mm: Mm, address: Address, result: ScanResult) -> bool:
    """Whether the result ends the call: the PMD is there and empty, and the profile minds."""
    minds = mm.kernel.profile.missing_table is MissingTable.END
    return minds and result is ScanResult.NO_PTE_TABLE and pmd_ptr(mm, address) is not None
