# SPDX-License-Identifier: GPL-2.0-or-later
"""Fast twins of the daemon's walk: tables of which nothing comes are passed by a row at a time.

One that is not there, or that a huge PMD stands for, or that is seen at a glance to be refused, costs of
pages_to_scan what the profile says and leaves the cursor a table further; a refusal is counted, and that is
all. So the places where wakeups end among them follow by arithmetic.
"""

from __future__ import annotations

from typing import NamedTuple

from mthp.khugepaged.daemon import Khugepaged, collapse_scan_tables, wake_up
from mthp.khugepaged.eligibility import (
    collapse_possible_orders,
    collapse_test_exit_or_disable,
    hugepage_enabled,
)
from mthp.khugepaged.limits import collapse_max_ptes_none, exceeded
from mthp.machine.hold import Hold
from mthp.mm.folio import lru_add_drain_all
from mthp.mm.huge_mm import Tva
from mthp.mm.mm_types import Mm, Vma, vma_is_anonymous
from mthp.mm.pgtable_types import PMD_NONE
from mthp.vectorised.glance import Glance, glances, passes, passing_costs, pmd_slots
from mthp.words.events import KhugepagedScan, PassedBy, QuietWakeup, ScanPmd, Slept
from mthp.words.profiles import MissingTable
from mthp.words.results import ScanResult
from mthp.words.units import Address

_NO_END = 1 << 64
"""More of pages_to_scan than any row of tables costs."""
_MOST_THERE = 4096
"""Tables that are there, in one row."""


def vma_to_scan_at_once(daemon: Khugepaged, mm: Mm, address: Address) -> Vma | None:
    """Of a VMA that is shorter than every size that is enabled nothing more is asked."""
    kernel, passed = mm.kernel, 0
    settings = kernel.settings
    enabled = settings.orders_always | settings.orders_madvise | settings.orders_inherit
    least = (
        kernel.geometry.order_bytes((enabled & -enabled).bit_length() - 1) if enabled else _NO_END
    )
    leave = collapse_test_exit_or_disable(mm)
    for vma in mm.for_each_vma(address):
        if leave:
            passed += 1
            break
        if vma.vm_end - vma.vm_start >= least and collapse_possible_orders(
            vma, vma.vm_flags, Tva.KHUGEPAGED
        ):
            daemon.cc.progress += passed
            return vma
        passed += 1
    daemon.cc.progress += passed
    return None


class TableRow(NamedTuple):
    """Tables in a row of which nothing comes, from the cursor on, and what they cost of pages_to_scan."""

    nr: int
    there: list[Glance]
    progress: int


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
    holes = _most_holes(daemon, vma, collapse_possible_orders(vma, vma.vm_flags, Tva.KHUGEPAGED))
    while daemon.address < end:
        if vma_is_anonymous(vma):
            row = _row(daemon, vma, end, holes, max(1, progress_max - cc.progress))
            if row.nr:
                result = _pass_by(daemon, mm, row, None)
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
    mm, each, row = daemon.mm_slot, *_quiet_wakeups(daemon)
    if mm is None or row.nr < each:
        wake_up(daemon)
        return
    kernel = daemon.kernel
    # As the first of them does; afterwards there is nothing more in the batches.
    lru_add_drain_all(kernel.mem, kernel.cpus)
    daemon.wakeups += row.nr // each
    progress = 1 + each * passing_costs(kernel)
    visit = KhugepagedScan(mm.number, progress, full_scan_finished=False)
    slept = Slept("scan_sleep", kernel.settings.scan_sleep_millisecs)
    nr = row.nr - row.nr % each
    end = daemon.address + nr * mm.geometry.pmd_size
    row = TableRow(nr, [glance for glance in row.there if glance.event.address < end], 0)
    _pass_by(daemon, mm, row, QuietWakeup(slept, each, visit))
    daemon.cc.progress = progress


def _quiet_wakeups(daemon: Khugepaged) -> tuple[int, TableRow]:
    """How many tables a wakeup passes by, and those there are for wakeups from the cursor on."""
    kernel, mm, geometry = daemon.kernel, daemon.mm_slot, daemon.kernel.geometry
    cost = passing_costs(kernel)
    each = max(1, -(-(kernel.settings.pages_to_scan - 1) // cost))
    none = each, TableRow(0, [], 0)
    if mm is None or not hugepage_enabled(kernel) or collapse_test_exit_or_disable(mm):
        return none
    vma = mm.find_vma(daemon.address)
    if vma is None or geometry.pmd_align_up(vma.vm_start) > daemon.address:
        return none
    orders = collapse_possible_orders(vma, vma.vm_flags, Tva.KHUGEPAGED)
    if not orders or not vma_is_anonymous(vma):
        return none
    end = geometry.pmd_addr(vma.vm_end)
    row = _row(daemon, vma, end, _most_holes(daemon, vma, orders), _NO_END, cost)
    lock = mm.mmap_read_trylock() if row.nr >= each else None
    if lock is None:
        return none
    lock.release()
    return each, row


def _most_holes(daemon: Khugepaged, vma: Vma, orders: int) -> int | None:
    """With how many holes a table passes the scan; None where it takes more to say what comes of it."""
    kernel, pmd_order = daemon.kernel, daemon.kernel.geometry.pmd_order
    if kernel.node_reclaim or vma.vm_mm.notifiers or orders != 1 << pmd_order:
        return None
    return collapse_max_ptes_none(kernel, daemon.cc, vma, pmd_order)


def _row(
    daemon: Khugepaged,
    vma: Vma,
    end: Address,
    holes: int | None,
    most: int,
    dearest: int = _NO_END,
) -> TableRow:
    """The tables from the cursor on, until that much of pages_to_scan is spent, or one costs more than
    the dearest may. holes: as _most_holes().
    """
    mm, cost = vma.vm_mm, passing_costs(daemon.kernel)
    size, start = mm.geometry.pmd_size, daemon.address
    there: list[Glance] = []
    progress = 0
    if passes(mm, start, holes):
        return TableRow(0, there, 0)

    def pass_missing(address: Address) -> bool:
        """Go on to an address; whether it is reached."""
        nonlocal start, progress
        nr = min((address - start) // size, -(-(most - progress) // cost))
        start, progress = start + nr * size, progress + nr * cost
        return start == address and progress < most

    for at, glance in glances(mm, start, end, holes):
        if not pass_missing(at) or glance is None or glance.progress > dearest:
            break
        there.append(glance)
        start, progress = at + size, progress + glance.progress
        if progress >= most or len(there) == _MOST_THERE:
            break
    else:
        pass_missing(end)
    return TableRow((start - daemon.address) // size, there, progress)


def _pass_by(daemon: Khugepaged, mm: Mm, row: TableRow, wakeup: QuietWakeup | None) -> ScanResult:
    """Move the cursor over a row; returns what the last of its tables would answer."""
    kernel, cc, size = daemon.kernel, daemon.cc, mm.geometry.pmd_size
    events = tuple(glance.event for glance in row.there)
    kernel.trace_row(PassedBy(mm.number, daemon.address, size, row.nr, events, wakeup))
    daemon.address += row.nr * size
    cc.progress += row.progress
    refused = [each for each in row.there if each.event.status is ScanResult.EXCEED_NONE_PTE]
    for glance in refused:
        exceeded(kernel, kernel.geometry.pmd_order, glance.event.status)
    if refused:
        cc.init_scan()
        cc.present_ptes = refused[-1].present_ptes
        cc.node_load.update(refused[-1].nodes.tolist())
    last = bool(events) and events[-1].address == daemon.address - size
    return events[-1].status if last else ScanResult.NO_PTE_TABLE


def pass_by_tables_at_once(mm: Mm, address: Address, end: Address) -> tuple[int, int]:
    """Count tables that are not there, up to one that ends MADV_COLLAPSE, and huge PMDs."""
    size, huge = mm.geometry.pmd_size, list[ScanPmd]()
    for at, glance in glances(mm, address, end, None):
        if glance is None:
            end = at
            break
        huge.append(glance.event)
    if mm.kernel.profile.missing_table is MissingTable.END:
        for first, pmds in pmd_slots(mm, address, end):
            if not pmds.all():
                end = (first + int((pmds == PMD_NONE).argmax())) * size
                huge = [event for event in huge if event.address < end]
                break
    nr = (end - address) // size
    if nr:
        mm.kernel.trace_row(PassedBy(mm.number, address, size, nr, tuple(huge), None))
    return nr, len(huge)
