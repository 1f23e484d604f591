# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs full scans to the fixed point, and keeps what a report needs of the events.

A full scan that changes no PTE and no folio, started from drained LRU batches, is the fixed point.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from mthp.khugepaged.daemon import Khugepaged, wake_up
from mthp.khugepaged.eligibility import hugepage_enabled
from mthp.mm.mm_types import Kernel
from mthp.predict.measure import frames_in_use
from mthp.words.events import (
    Attempt,
    CollapseHugePage,
    Copied,
    Event,
    KhugepagedScan,
    OrderWalk,
    PassedBy,
    PmdFlush,
    ScanPmd,
    Slept,
    Swapin,
)
from mthp.words.results import ScanResult

MAX_FULL_SCANS = 1000
"""A run that has not come to rest by then is stopped and says so."""


Windows = dict[int, list[tuple[int, int]]]


class Interrupted(Exception):
    """The user asked to stop; raised between two tables."""


class PassesDone(Exception):
    """Raised when the full scans that were asked for are done."""


@dataclass(slots=True)
class TableLog:
    """What the last full scan did with one table. attempts: (address, order, result)."""

    scan: ScanPmd | None = None
    walk: OrderWalk | None = None
    attempts: list[tuple[int, int, ScanResult]] = field(default_factory=list)


@dataclass
class Tally:
    """Consumes events: sums over the whole run, and the log of the full scan under way.

    on_event: called with each event about tables that are looked into. on_table: called after each
    scanned table that is there; may raise Interrupted. keep: every event, if a list was given; tables
    that are passed by stand in it as rows. added: mm and table -> by how many frames its collapses made
    the memory in use grow. torn: tables (mm, address) of which what was collapsed is summed too.
    windows: mm -> (address, order) of each that collapsed. changed_in: the number of the full scan that
    changed something last.
    """

    kernel: Kernel
    keep: list[Event | PassedBy] | None = None
    on_event: Callable[[Event], None] | None = None
    on_table: Callable[[], None] | None = None
    torn: frozenset[tuple[int, int]] = frozenset()
    windows: Windows = field(default_factory=dict)
    attempts: Counter[tuple[int, ScanResult]] = field(default_factory=Counter)
    succeeded: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    collapsed_bytes: int = 0
    torn_collapsed: int = 0
    copied_bytes: int = 0
    filled_bytes: int = 0
    swapped_in: int = 0
    sleeps: Counter[str] = field(default_factory=Counter)
    added: Counter[tuple[int, int]] = field(default_factory=Counter)
    tables: dict[tuple[int, int], TableLog] = field(default_factory=dict)
    last_pass: dict[tuple[int, int], TableLog] = field(default_factory=dict)
    changed: bool = False
    changed_in: int = 1
    full_scans: int = 0
    limit: int = MAX_FULL_SCANS
    _pending: TableLog = field(default_factory=TableLog)
    _flush: PmdFlush | None = None
    _in_use: int = field(init=False)

    def __post_init__(self) -> None:
        self._in_use = frames_in_use(self.kernel)

    def __call__(self, event: Event) -> None:
        if self.keep is not None:
            self.keep.append(event)
        if self.on_event is not None:
            self.on_event(event)
        match event:
            case PmdFlush():
                self._flush = event
            case CollapseHugePage():
                self.end_attempt(event)
            case Attempt():
                self._flush = None
            case Copied():
                page = self.kernel.geometry.page_size
                self.copied_bytes += event.pages * page
                self.filled_bytes += event.filled * page
            case Swapin():
                self.swapped_in += event.pages
                if event.swapped_in > 0:
                    self.changed, self.changed_in = True, self.full_scans + 1
            case OrderWalk():
                self._pending.walk = event
            case ScanPmd():
                self._pending.scan = event
                self.tables[event.mm, event.address] = self._pending
                if self._pending.attempts:
                    in_use = frames_in_use(self.kernel)
                    self.added[event.mm, event.address] += in_use - self._in_use
                    self._in_use = in_use
                self._pending = TableLog()
                if self.on_table is not None:
                    self.on_table()
            case Slept():
                self.sleeps[event.knob] += event.millisecs
            case KhugepagedScan():
                if event.full_scan_finished:
                    self.full_scans += 1
                    self.last_pass, self.tables = self.tables, {}
                    if self.full_scans >= self.limit:
                        raise PassesDone
            case _:
                pass

    def pass_by(self, row: PassedBy) -> None:
        """Take in a row of tables of which nothing comes: the sleeps, and those that are there."""
        if self.keep is not None:
            self.keep.append(row)
        for event in row.there:
            self.tables[event.mm, event.address] = TableLog(event)
            if self.on_table is not None:
                self.on_table()
        if row.wakeup is not None:
            slept = row.wakeup.slept
            self.sleeps[slept.knob] += row.nr // row.wakeup.tables * slept.millisecs

    def end_attempt(self, event: CollapseHugePage) -> None:
        """Add one attempt to the sums of the successes or the refusals, by the fields of Effort."""
        self._pending.attempts.append((event.address, event.order, event.status))
        self.attempts[event.order, event.status] += 1
        size = self.kernel.geometry.order_bytes(event.order)
        ok = event.status is ScanResult.SUCCEED
        books = self.succeeded if ok else self.refused
        books["attempts"] += 1
        # What could not be charged was allocated all the same.
        allocated = event.status is not ScanResult.ALLOC_HUGE_PAGE_FAIL
        books["allocated_bytes"] += size if allocated else 0
        if self._flush is not None:
            books["flushed_bytes"] += self.kernel.geometry.pmd_size
            books["ipis"] += self._flush.ipis
            books["tlb_outside"] += self._flush.ptes_outside
        if ok:
            self.windows.setdefault(event.mm, []).append((event.address, event.order))
            self.collapsed_bytes += size
            if (event.mm, self.kernel.geometry.pmd_addr(event.address)) in self.torn:
                self.torn_collapsed += size
            self.changed, self.changed_in = True, self.full_scans + 1


@dataclass(frozen=True)
class RunEnd:
    """How a run ended."""

    full_scans: int
    wakeups: int
    fixed_point: bool
    complete: bool


def run_full_scans(
    kernel: Kernel,
    daemon: Khugepaged,
    tally: Tally,
    passes: int | None,
    most: int = MAX_FULL_SCANS,
    on_sleep: Callable[[int], None] | None = None,
) -> RunEnd:
    """Wake khugepaged until `passes` full scans are done, or to the fixed point if None, but then
    for no more than `most` of them.

    on_sleep: called with the number of wakeups when some have ended. A full scan that began within
    a wakeup did not start from drained batches; two in a row that change nothing are then asked for.
    """
    kernel.trace, kernel.trace_row = tally, tally.pass_by
    tally.limit = most if passes is None else passes
    first, quiet = daemon.wakeups, 0
    drained = True

    def end(*, fixed_point: bool, complete: bool) -> RunEnd:
        return RunEnd(tally.full_scans, daemon.wakeups - first, fixed_point, complete)

    try:
        while daemon.mm_slots and hugepage_enabled(kernel):
            drained = daemon.mm_slot is None
            before = tally.full_scans
            if daemon.wakeups == first:
                daemon.khugepaged_do_scan()
            else:
                kernel.machine.path(wake_up)(daemon)
            if on_sleep is not None:
                on_sleep(daemon.wakeups - first)
            if tally.full_scans == before:
                continue
            quiet = 0 if tally.changed else quiet + 1
            tally.changed = False
            if passes is None and quiet and (drained or quiet > 1):
                return end(fixed_point=True, complete=True)
    except Interrupted:
        return end(fixed_point=False, complete=False)
    except PassesDone:
        # As many as were asked for; a run to the fixed point that got here did not come to rest.
        at_rest = not tally.changed and (drained or quiet > 0)
        return end(fixed_point=at_rest, complete=passes is not None)
    return end(fixed_point=True, complete=True)
