# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run leaves behind: the kernel's tracepoints, and what a collapse costs.

Kernel: include/trace/events/huge_memory.h. The kernel's anonymous events carry no address; ours do.
`mm` is a process id. Everything shown to people is made from these records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from mthp.words.results import ScanResult

NO_PFN = -1


class Attempt(NamedTuple):
    """The entry of collapse_huge_page(), as a kprobe on it sees it."""

    mm: int
    address: int
    order: int


class ScanPmd(NamedTuple):
    """mm_khugepaged_scan_pmd: one table was scanned, after its attempts."""

    mm: int
    address: int
    scan_pfn: int
    referenced: int
    none_or_zero: int
    status: ScanResult
    unmapped: int


class Isolate(NamedTuple):
    """mm_collapse_huge_page_isolate: the isolation of one window ended."""

    mm: int
    address: int
    scan_pfn: int
    none_or_zero: int
    referenced: int
    status: ScanResult
    order: int


class Swapin(NamedTuple):
    """mm_collapse_huge_page_swapin: a window was swapped in. ret is printed as the enum's number.
    swapped_in: faults, each of which may bring a large folio. pages (ours): base pages that came
    back."""

    mm: int
    address: int
    swapped_in: int
    referenced: int
    ret: ScanResult
    order: int
    pages: int = 0


class CollapseHugePage(NamedTuple):
    """mm_collapse_huge_page: one attempt ended."""

    mm: int
    address: int
    isolated: int
    status: ScanResult
    order: int


class KhugepagedScan(NamedTuple):
    """mm_khugepaged_scan: one visit to one mm ended."""

    mm: int
    progress: int
    full_scan_finished: bool


class PmdFlush(NamedTuple):
    """The whole PMD range was unmapped and flushed for the window [address, address + order).

    ptes_inside, ptes_outside: present PTEs of the table within and outside the window; each may
    have had a TLB entry on any CPU that ran the process. ipis: sync IPIs sent afterwards.
    """

    mm: int
    address: int
    order: int
    ptes_inside: int
    ptes_outside: int
    ipis: int


class Copied(NamedTuple):
    """A window was copied: pages copied, and holes or zero pages that became memory."""

    mm: int
    address: int
    order: int
    pages: int
    filled: int


class OrderWalk(NamedTuple):
    """A table passed the scan, and windows are now chosen in it.

    present_ptes: bit i is set if PTE i maps a page. enabled_orders: bitmap of the VMA's orders.
    """

    mm: int
    address: int
    present_ptes: int
    unmapped: int
    enabled_orders: int


OrderPolicy = Callable[[OrderWalk], Iterable[tuple[int, int]]]
"""Chooses windows in a table that passed the scan: (offset in PTEs from the table's start, order).

A generator is sent the ScanResult of each window before it is asked for the next.
"""


class Slept(NamedTuple):
    """khugepaged slept: which knob ("scan_sleep" or "alloc_sleep"), for how many milliseconds."""

    knob: str
    millisecs: int


class QuietWakeup(NamedTuple):
    """A wakeup that comes to nothing but tables that are passed by, and the sleep before it."""

    slept: Slept
    tables: int
    visit: KhugepagedScan


class PassedBy(NamedTuple):
    """Tables in a row of which it is plain that nothing comes of them, from address on, each pmd_size
    bytes after the last.

    there: what is said of those that are there; of the others there is nothing. wakeup: whole wakeups
    that come to nothing else, of which each is so; None within one.
    """

    mm: int
    address: int
    pmd_size: int
    nr: int
    there: tuple[ScanPmd, ...] = ()
    wakeup: QuietWakeup | None = None

    def within(self, start: int, end: int) -> PassedBy:
        """Those of [start, end), which holds whole tables, without their wakeups."""
        first = max(self.address, start)
        stop = min(self.address + self.nr * self.pmd_size, end)
        there = tuple(event for event in self.there if first <= event.address < stop)
        return PassedBy(self.mm, first, self.pmd_size, max(0, stop - first) // self.pmd_size, there)


Event = (
    Attempt
    | ScanPmd
    | Isolate
    | Swapin
    | CollapseHugePage
    | KhugepagedScan
    | PmdFlush
    | Copied
    | OrderWalk
    | Slept
)


def singly(events: Iterable[Event | PassedBy]) -> Iterator[Event]:
    """Each event by itself, also those that a row of tables stands for."""
    for event in events:
        if not isinstance(event, PassedBy):
            yield event
            continue
        mm, address, size, nr, there, wakeup = event
        said = {each.address: each for each in there}
        for k, at in enumerate(range(address, address + nr * size, size)):
            if wakeup is not None and k % wakeup.tables == 0:
                yield wakeup.slept
            yield said.get(at) or ScanPmd(mm, at, NO_PFN, 0, 0, ScanResult.NO_PTE_TABLE, 0)
            if wakeup is not None and (k + 1) % wakeup.tables == 0:
                yield wakeup.visit


TRACEPOINTS: dict[type, str] = {
    Attempt: "collapse_huge_page",
    ScanPmd: "mm_khugepaged_scan_pmd",
    Isolate: "mm_collapse_huge_page_isolate",
    Swapin: "mm_collapse_huge_page_swapin",
    CollapseHugePage: "mm_collapse_huge_page",
    KhugepagedScan: "mm_khugepaged_scan",
}


_PRINTED: dict[type, tuple[str, ...]] = {
    ScanPmd: ("mm", "scan_pfn", "referenced", "none_or_zero", "status", "unmapped"),
    Isolate: ("scan_pfn", "none_or_zero", "referenced", "status", "order"),
    Swapin: ("mm", "swapped_in", "referenced", "ret", "order"),
    CollapseHugePage: ("mm", "isolated", "status", "order"),
    KhugepagedScan: ("mm", "progress", "full_scan_finished"),
}
"""The fields that a tracepoint prints, in the kernel's order."""


def _fields(event: Event) -> str:
    if isinstance(event, Attempt):
        return f"(collapse_huge_page) address=0x{event.address:x} order={event.order}"
    return ", ".join(f"{name}={_printed(event, name)}" for name in _PRINTED[type(event)])


def _printed(event: Event, name: str) -> str:
    value = getattr(event, name)
    if name == "scan_pfn":
        return f"0x{value & (1 << 64) - 1:x}"
    return value.string if name == "status" else str(int(value))


def ftrace(events: Iterable[Event], comm: str = "khugepaged", pid: int = 42) -> Iterator[str]:
    """Lines as /sys/kernel/tracing/trace prints them, the address added where the kernel omits it.

    The clock is the number of the event in microseconds: the model has no other time.
    """
    for number, event in enumerate(events):
        name = TRACEPOINTS.get(type(event))
        if name is None:
            continue
        text = _fields(event)
        if not isinstance(event, Attempt | KhugepagedScan):
            text += f", address=0x{event.address:x}"  # type: ignore[union-attr]
        seconds, micros = divmod(number, 1_000_000)
        yield f"{comm:>16}-{pid:<7} [000] ..... {seconds:>5}.{micros:06d}: {name}: {text}"
