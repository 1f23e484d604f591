# SPDX-License-Identifier: GPL-2.0-or-later
"""Fast twins of the daemon's walk: tables that are not looked into are passed by a row at a time.

One that is not there, or that a huge PMD stands for, costs of pages_to_scan what the profile says and
leaves the cursor a table further, and nothing else; so the places where wakeups end among them follow
by arithmetic.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mthp.khugepaged.daemon import Khugepaged, collapse_scan_tables, wake_up
from mthp.khugepaged.eligibility import (
    collapse_possible_orders,
    collapse_test_exit_or_disable,
    hugepage_enabled,
)
from mthp.machine.hold import Hold
from mthp.mm.folio import lru_add_drain_all
from mthp.mm.huge_mm import Tva
from mthp.mm.mm_types import Kernel, Mm, Vma, vma_is_anonymous
from mthp.mm.pgtable_types import HUGE, PMD_NONE, PRESENT
from mthp.words.events import KhugepagedScan, PassedBy, QuietWakeup, Slept
from mthp.words.profiles import MissingTable, ScanCost
from mthp.words.results import ScanResult
from mthp.words.units import Address

_MAPPED: Final = PRESENT | HUGE
"""Bits of a huge PMD, as pmd_trans_huge() asks."""


def collapse_scan_tables_at_once(
    daemon: Khugepaged,
    vma: Vma,
    end: Address,
    mmap_lock: Hold,
    progress_max: int,
    result: ScanResult,
) -> tuple[ScanResult, bool | None]:
    """Pass by rows of tables; one that is to be looked into is the function's."""
    mm, cc = vma.vm_mm, daemon.cc
    pmd_size = mm.geometry.pmd_size
    while daemon.address < end:
        nr, huge = 0, list[Address]()
        if vma_is_anonymous(vma):
            most = _tables_for(mm.kernel, progress_max - cc.progress)
            last = min(end, daemon.address + most * pmd_size)
            nr, huge = _tables_to_pass(mm, daemon.address, last)
        if nr:
            result = _pass_by(daemon, mm, nr, huge, None)
            if cc.progress >= progress_max:
                return result, False
            continue
        result, done = collapse_scan_tables(
            daemon, vma, daemon.address + pmd_size, mmap_lock, progress_max, result
        )
        if done is not None:
            return result, done
    return result, None


def wake_up_at_once(daemon: Khugepaged) -> None:
    """Pass the wakeups that would end among tables to be passed by; if there are none, wake up."""
    mm, each, nr, huge = daemon.mm_slot, *_quiet_wakeups(daemon)
    if mm is None or nr < each:
        wake_up(daemon)
        return
    kernel = daemon.kernel
    # As the first of them does; afterwards there is nothing more in the batches.
    lru_add_drain_all(kernel.mem, kernel.cpus)
    daemon.wakeups += nr // each
    daemon.cc.progress = 1 + each * _cost(kernel)
    visit = KhugepagedScan(mm.number, daemon.cc.progress, full_scan_finished=False)
    slept = Slept("scan_sleep", kernel.settings.scan_sleep_millisecs)
    nr -= nr % each
    end = daemon.address + nr * mm.geometry.pmd_size
    _pass_by(daemon, mm, nr, [at for at in huge if at < end], QuietWakeup(slept, each, visit))


def _quiet_wakeups(daemon: Khugepaged) -> tuple[int, int, list[Address]]:
    """How many tables a wakeup passes by, how many there are for wakeups from the cursor on, and the
    huge ones of these."""
    kernel, mm, geometry = daemon.kernel, daemon.mm_slot, daemon.kernel.geometry
    each = _tables_for(kernel, kernel.settings.pages_to_scan - 1)
    if mm is None or not hugepage_enabled(kernel) or collapse_test_exit_or_disable(mm):
        return each, 0, []
    vma = mm.find_vma(daemon.address)
    if vma is None or geometry.pmd_align_up(vma.vm_start) > daemon.address:
        return each, 0, []
    nr, huge = _tables_to_pass(mm, daemon.address, geometry.pmd_addr(vma.vm_end))
    if nr < each or not vma_is_anonymous(vma):
        return each, 0, []
    if not collapse_possible_orders(vma, vma.vm_flags, Tva.KHUGEPAGED):
        return each, 0, []
    lock = mm.mmap_read_trylock()
    if lock is None:
        return each, 0, []
    lock.release()
    return each, nr, huge


def _pass_by(
    daemon: Khugepaged, mm: Mm, nr: int, huge: list[Address], wakeup: QuietWakeup | None
) -> ScanResult:
    """Move the cursor over nr tables; returns what the last of them would answer."""
    size = mm.geometry.pmd_size
    daemon.kernel.trace_row(PassedBy(mm.number, daemon.address, size, nr, tuple(huge), wakeup))
    daemon.address += nr * size
    if wakeup is None:
        daemon.cc.progress += nr * _cost(daemon.kernel)
    last = huge and huge[-1] == daemon.address - size
    return ScanResult.PMD_MAPPED if last else ScanResult.NO_PTE_TABLE


def _cost(kernel: Kernel) -> int:
    """What a table that is passed by costs of pages_to_scan."""
    per_pmd = kernel.profile.progress is ScanCost.PER_PMD
    return kernel.geometry.ptrs_per_pte if per_pmd else 1


def _tables_for(kernel: Kernel, progress: int) -> int:
    """How many such tables are passed by before that much is spent; one is in any case."""
    return max(1, -(-progress // _cost(kernel)))


def _slots(mm: Mm, address: Address, end: Address) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The PMD slots of [address, end), page by page where there is one: the first's number, values."""
    shift, nr = mm.geometry.pmd_shift, mm.geometry.ptrs_per_pte
    at, stop = address >> shift, end >> shift
    numbers = mm.pmd_numbers  # a mapping may span far more than there is
    for k in range(bisect_left(numbers, at // nr), bisect_left(numbers, -(-stop // nr))):
        base = numbers[k] * nr
        first = max(at, base)
        yield first, mm.pmd_pages[numbers[k]].pmds.view()[first - base : stop - base]


def _tables_to_pass(mm: Mm, address: Address, end: Address) -> tuple[int, list[Address]]:
    """How many tables in a row from address on are not there or mapped by a huge PMD; of these the
    addresses.
    """
    shift = mm.geometry.pmd_shift
    huge: list[Address] = []
    for first, pmds in _slots(mm, address, end):
        for slot in pmds.nonzero()[0].tolist():
            at = (first + slot) << shift
            if int(pmds[slot]) & _MAPPED != _MAPPED:
                return (at - address) >> shift, huge
            huge.append(at)
    return (end - address) >> shift, huge


def pass_by_tables_at_once(mm: Mm, address: Address, end: Address) -> tuple[int, int]:
    """Count tables that are not there, up to one that ends MADV_COLLAPSE, and huge PMDs."""
    size = mm.geometry.pmd_size
    nr, huge = _tables_to_pass(mm, address, end)
    if mm.kernel.profile.missing_table is MissingTable.END:
        for first, pmds in _slots(mm, address, address + nr * size):
            if not pmds.all():
                missing = (first + int((pmds == PMD_NONE).argmax())) * size
                nr, huge = (missing - address) // size, [at for at in huge if at < missing]
                break
    if nr:
        mm.kernel.trace_row(PassedBy(mm.number, address, size, nr, tuple(huge), None))
    return nr, len(huge)
