# SPDX-License-Identifier: GPL-2.0-or-later
"""khugepaged's loop: mm slots, the cursor, the budget, sleeping. Kernel: mm/khugepaged.c.

A wakeup is one khugepaged_do_scan(). A full scan is one round over all mms; it may take many
wakeups. Work counts as no time: only the two sleeps pass, and they are recorded as Slept events.
"""

from __future__ import annotations

from mthp.khugepaged.control import Caller, CollapseControl
from mthp.khugepaged.eligibility import (
    collapse_possible_orders,
    collapse_test_exit,
    collapse_test_exit_or_disable,
    hugepage_enabled,
)
from mthp.khugepaged.scan import collapse_scan_pmd
from mthp.machine.hold import Hold, Rank
from mthp.machine.locks import SpinLock
from mthp.mm.folio import lru_add_drain_all
from mthp.mm.huge_mm import Tva
from mthp.mm.mm_types import MMF_VM_HUGEPAGE, Kernel, Mm, Vma, vma_is_anonymous
from mthp.words.events import KhugepagedScan, Slept
from mthp.words.profiles import ScanCost
from mthp.words.results import KernelBug, Rule, ScanResult
from mthp.words.units import Address


def collapse_single_pmd(
    address: Address, vma: Vma, mmap_lock: Hold, cc: CollapseControl
) -> ScanResult:
    """Collapse within one PMD range of one VMA. mmap_lock is held on entry and may be released.

    Divergence: file mappings are not modelled and answer FAIL.
    Kernel: mm/khugepaged.c, collapse_single_pmd().
    """
    if not vma_is_anonymous(vma):
        return ScanResult.FAIL
    return collapse_scan_pmd(vma.vm_mm, vma, address, mmap_lock, cc)


def vma_to_scan(daemon: Khugepaged, mm: Mm, address: Address) -> Vma | None:
    """The first VMA from address on that may be collapsed, each before it costing one of pages_to_scan;
    None where there is none, or the mm is to be left alone. Kernel: collapse_scan_mm_slot().
    """
    for vma in mm.for_each_vma(address):
        if collapse_test_exit_or_disable(mm):
            daemon.cc.progress += 1
            return None
        if collapse_possible_orders(vma, vma.vm_flags, Tva.KHUGEPAGED):
            return vma
        daemon.cc.progress += 1
    return None


def collapse_scan_tables(
    daemon: Khugepaged,
    vma: Vma,
    end: Address,
    mmap_lock: Hold,
    progress_max: int,
    result: ScanResult,
) -> tuple[ScanResult, bool | None]:
    """Walk the tables of one VMA from the cursor to end. result: the last table's before it.

    Returns the last result, and whether the mm is done, None: it is the next VMA's turn.
    Kernel: mm/khugepaged.c, collapse_scan_mm_slot().
    """
    mm, cc = vma.vm_mm, daemon.cc
    while daemon.address < end:
        if collapse_test_exit_or_disable(mm):
            return result, True
        result = collapse_single_pmd(daemon.address, vma, mmap_lock, cc)
        if result is ScanResult.SUCCEED:
            daemon.pages_collapsed += 1
        daemon.address += mm.geometry.pmd_size
        if mm.kernel.profile.progress is ScanCost.PER_PMD:
            cc.progress += mm.geometry.ptrs_per_pte
        if not mmap_lock.active or cc.progress >= progress_max:
            return result, False
    return result, None


def wake_up(daemon: Khugepaged) -> None:
    """Sleep until the next wakeup, and make it. Kernel: mm/khugepaged.c, khugepaged()."""
    daemon.khugepaged_wait_work()
    daemon.khugepaged_do_scan()


class Khugepaged:
    """The daemon of one kernel. mm_slots is the list of registered mms, in scan order.

    mm_slot, address: the cursor; mm_slot is None between two full scans. mm_slots and the cursor
    are guarded by khugepaged_mm_lock. full_scans, wakeups: how many there were.
    """

    __slots__ = (
        "address", "cc", "full_scans", "kernel", "mm_lock", "mm_slot", "mm_slots",
        "pages_collapsed", "wakeups",
    )  # fmt: skip

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.mm_lock = SpinLock(kernel.machine, "khugepaged_mm_lock", Rank.MM_LIST)
        self.mm_slots: list[Mm] = []
        self.mm_slot: Mm | None = None
        self.address = 0
        self.pages_collapsed = 0
        self.full_scans = 0
        self.wakeups = 0
        self.cc = CollapseControl(Caller.KHUGEPAGED)

    # Registering

    def khugepaged_enter(self, mm: Mm) -> None:
        """Put an mm just behind the cursor's round. Kernel: __khugepaged_enter()."""
        if collapse_test_exit(mm):
            raise KernelBug(Rule.STATE, f"{mm} is registered after its last user left")
        if mm.mm_flags_test(MMF_VM_HUGEPAGE):
            return
        mm.mm_flags_set(MMF_VM_HUGEPAGE)
        with self.mm_lock.lock():
            self.mm_slots.append(mm)

    def khugepaged_fork(self, mm: Mm, oldmm: Mm) -> None:
        """Register a child whose parent is registered. Kernel: khugepaged_fork()."""
        if oldmm.mm_flags_test(MMF_VM_HUGEPAGE):
            self.khugepaged_enter(mm)

    def khugepaged_enter_vma(self, vma: Vma, vm_flags: int) -> None:
        """Register the mm if the VMA can be collapsed under these flags. Kernel: khugepaged_enter_vma()."""
        mm = vma.vm_mm
        if mm.mm_flags_test(MMF_VM_HUGEPAGE) or not hugepage_enabled(self.kernel):
            return
        if collapse_possible_orders(vma, vm_flags, Tva.KHUGEPAGED):
            self.khugepaged_enter(mm)

    def khugepaged_exit(self, mm: Mm) -> None:
        """Leave, or wait until the daemon lets go of the mm. Kernel: __khugepaged_exit()."""
        with self.mm_lock.lock():
            registered = mm in self.mm_slots
            current = self.mm_slot is mm
            if registered and not current:
                self.mm_slots.remove(mm)
        if registered and current:
            with mm.mmap_write_lock():
                pass
        elif registered:
            mm.mm_flags_clear(MMF_VM_HUGEPAGE)

    def collect_mm_slot(self, mm: Mm) -> None:
        """Forget an mm without users. Kernel: collect_mm_slot()."""
        self.mm_lock.assert_held()
        if collapse_test_exit(mm):
            self.mm_slots.remove(mm)

    # Scanning

    def khugepaged_do_scan(self) -> None:
        """One wakeup scans until pages_to_scan, the second round, or the second failed allocation.

        Kernel: mm/khugepaged.c, khugepaged_do_scan().
        """
        kernel = self.kernel
        self.wakeups += 1
        progress_max = kernel.settings.pages_to_scan
        pass_through_head = 0
        may_sleep = True
        lru_add_drain_all(kernel.mem, kernel.cpus)
        self.cc.progress = 0
        while True:
            with self.mm_lock.lock():
                pass_through_head += self.mm_slot is None
                mm = self._current_slot() if pass_through_head < 2 else None
            if mm is None:
                break
            result = self.collapse_scan_mm_slot(mm, progress_max)
            if self.cc.progress >= progress_max:
                break
            if result is ScanResult.ALLOC_HUGE_PAGE_FAIL:
                if not may_sleep:
                    break
                may_sleep = False
                kernel.trace(Slept("alloc_sleep", kernel.settings.alloc_sleep_millisecs))

    def khugepaged_wait_work(self) -> None:
        """Sleep until the next wakeup. Kernel: khugepaged_wait_work()."""
        self.kernel.trace(Slept("scan_sleep", self.kernel.settings.scan_sleep_millisecs))

    def _current_slot(self) -> Mm | None:
        """The mm under the cursor, which starts a new round if it stood nowhere; None: no work."""
        self.mm_lock.assert_held()
        if not self.mm_slots or not hugepage_enabled(self.kernel):
            return None
        if self.mm_slot is None:
            self.mm_slot = self.mm_slots[0]
            self.address = 0
        return self.mm_slot

    def collapse_scan_mm_slot(self, mm: Mm, progress_max: int) -> ScanResult:
        """One visit to the mm under the cursor: until a collapse was tried, its end, or the
        budget's end. Returns the last table's result.

        Divergence: khugepaged_mm_lock is not held on entry; the caller has read the cursor under it.
        Kernel: mm/khugepaged.c, collapse_scan_mm_slot().
        """
        progress_prev = self.cc.progress
        # Never wait for the lock: a busy mm is skipped until the next full scan.
        mmap_lock = mm.mmap_read_trylock()
        if mmap_lock is None:
            result, finished = ScanResult.FAIL, True
        else:
            self.cc.progress += 1
            with mmap_lock:
                result, finished = self._scan_vmas(mm, mmap_lock, progress_max)
        with self.mm_lock.lock():
            if self.mm_slot is not mm:
                raise KernelBug(Rule.STATE, "the scan cursor moved while its mm was scanned")
            if finished or collapse_test_exit_or_disable(mm):
                self._advance(mm)
        self.kernel.trace(
            KhugepagedScan(mm.number, self.cc.progress - progress_prev, self.mm_slot is None)
        )
        return result

    def _scan_vmas(self, mm: Mm, mmap_lock: Hold, progress_max: int) -> tuple[ScanResult, bool]:
        """Walk the VMAs from the cursor on. Returns the last result, and whether the mm is done."""
        cc = self.cc
        to_scan, scan_tables = mm.machine.path(vma_to_scan), mm.machine.path(collapse_scan_tables)
        result = ScanResult.FAIL
        if collapse_test_exit_or_disable(mm):
            return result, True
        vma = to_scan(self, mm, self.address)
        while vma is not None:
            hstart = mm.geometry.pmd_align_up(vma.vm_start)
            hend = mm.geometry.pmd_addr(vma.vm_end)
            if self.address > hend:
                cc.progress += 1
            else:
                self.address = max(self.address, hstart)
                result, done = scan_tables(self, vma, hend, mmap_lock, progress_max, result)
                if done is not None:
                    return result, done
            vma = to_scan(self, mm, vma.vm_end)
        return result, True

    def _advance(self, mm: Mm) -> None:
        """Move the cursor to the next mm, or end the full scan."""
        at = self.mm_slots.index(mm)
        if at + 1 < len(self.mm_slots):
            self.mm_slot = self.mm_slots[at + 1]
            self.address = 0
        else:
            self.mm_slot = None
            self.full_scans += 1
        self.collect_mm_slot(mm)
