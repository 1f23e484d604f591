# SPDX-License-Identifier: GPL-2.0-or-later
"""The measurements of `mthp calibrate`: each changes memory of our own alone, and no setting."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import os
import resource
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mthp.calibrate.region import (
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    PAGE,
    Region,
)
from mthp.words.costs import Cost, CostTable, StopPoint, fit_stop
from mthp.words.units import Geometry

EMPTY: Final = (511, 384, 256, 128, 0)
"""Empty PTEs of the tables that are collapsed: four as in the published measurement, and a full table."""
_PAGEMAP_SCAN: Final = 0xC0606610
_SIZES: Final = {"4k": 1 << 12, "64k": 1 << 16, "2m": 1 << 21}
_BEFORE: Final = 4
"""Tables that are collapsed before the one that is written to."""
_BIG: Final = 64 << 20
"""Bytes to copy and to clear: more than caches hold."""


@dataclass
class Measurements:
    """What was measured. costs: the table. calls, stops: MADV_COLLAPSE of one table, by its empty PTEs: how
    long the call took, and how long another thread of the process that writes to the table stood still.
    flushes: CPUs that must confirm a flush -> ns. missing: what could not be measured, and why.
    """

    costs: dict[str, Cost] = field(default_factory=dict)
    calls: list[StopPoint] = field(default_factory=list)
    stops: list[StopPoint] = field(default_factory=list)
    flushes: dict[int, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def table(self) -> CostTable:
        """The costs as a table."""
        return CostTable(self.costs)


def spent(work: Callable[[], object]) -> int:
    """Nanoseconds that it takes."""
    began = time.perf_counter_ns()
    work()
    return time.perf_counter_ns() - began


class Calibration:
    """Measures everything, each `rounds` times; what counts is the median."""

    def __init__(self, geometry: Geometry, rounds: int) -> None:
        self.geometry = geometry
        self.rounds = rounds
        self.pages = geometry.ptrs_per_pte
        self.region = Region(geometry.pmd_size, geometry.pmd_size)
        self.row = Region((1 + _BEFORE) * geometry.pmd_size, geometry.pmd_size)
        self.found = Measurements()

    def run(self, report: Callable[[str], None]) -> Measurements:
        """Measure; report is told what comes next."""
        steps: tuple[tuple[str, Callable[[], None]], ...] = (
            ("copy, clear", self.copies),
            ("faults and zaps", self.faults),
            ("PAGEMAP_SCAN", self.pagemap_scan),
            ("TLB flushes", self.flushes),
            ("collapses", self.collapses),
            ("scans", self.scans),
            ("stops", self.stops),
        )
        with _quiet():
            for name, step in steps:
                report(name)
                try:
                    step()
                except OSError as error:
                    self.found.missing[name] = error.strerror or str(error)
        if self.found.calls and "scan_pte" in self.found.costs:
            self.fit()
        return self.found

    def note(self, name: str, times: Sequence[float], each: int = 1) -> None:
        """Note a cost: the median, of that many pieces a time."""
        middle = statistics.median(times) / each
        quarters = statistics.quantiles(times, n=4)
        spread = (quarters[2] - quarters[0]) / each
        source = f"measured here, median of {len(times)}, half within {spread:.0f} ns"
        self.found.costs[name] = Cost(max(0.0, middle), source)

    def copies(self) -> None:
        """Copy and clear pieces of memory that no cache holds, less what a single byte takes."""
        source, target = (np.full(_BIG, k, np.uint8) for k in (1, 2))
        pieces = np.random.default_rng(1).permutation(_BIG // _SIZES["4k"])[:512] * _SIZES["4k"]
        works: dict[str, Callable[[int, int], None]] = {
            "copy": lambda at, size: target.__setitem__(
                slice(at, at + size), source[at : at + size]
            ),
            "clear": lambda at, size: target.__setitem__(slice(at, at + size), 0),
        }
        for what, work in works.items():
            for name, size in _SIZES.items():
                places = (pieces // size * size).tolist()[: max(16, _BIG // size // 8)]
                times: list[float] = []
                for _ in range(self.rounds):
                    single = spent(lambda: [work(at, 1) for at in places])  # noqa: B023
                    times.append(spent(lambda: [work(at, size) for at in places]) - single)  # noqa: B023
                self.note(f"{what}_{name}", times, len(places))

    def faults(self) -> None:
        """Map base pages and huge pages by writing, and give them back."""
        base, zap_base, huge, zap_huge = list[int](), list[int](), list[int](), list[int]()
        region = self.region
        for _ in range(self.rounds):
            region.advise(MADV_DONTNEED)
            region.advise(MADV_NOHUGEPAGE)
            base.append(spent(lambda: region.bytes.__setitem__(slice(None, None, PAGE), 1)))
            zap_base.append(spent(lambda: region.advise(MADV_DONTNEED)))
            region.advise(MADV_HUGEPAGE)
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            took = spent(lambda: region.bytes.__setitem__(0, 1))
            region.bytes[::PAGE] = 1
            if resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < self.pages // 2:
                huge.append(took)
                zap_huge.append(spent(lambda: region.advise(MADV_DONTNEED)))
        self.note("fault_page", base, self.pages)
        self.note("zap_page", zap_base, self.pages)
        if len(huge) > self.rounds // 2:
            self.note("fault_pmd", huge)
            self.note("zap_pmd", zap_huge)
        else:
            self.found.missing["fault_pmd"] = (
                "a fault in memory advised to MADV_HUGEPAGE maps none here"
            )

    def pagemap_scan(self) -> None:
        """Ask for the written pages of a full table."""
        self.region.renew()
        region = self.region
        with open("/proc/self/pagemap", "rb") as pagemap:
            vector = np.zeros(3 * self.pages, np.uint64)
            end = region.address + region.size
            request = struct.pack(
                "QQQQQQQQQQQQ", 96, 0, region.address, end, 0, vector.ctypes.data, self.pages, 0,
                0, 0, 1 << 3, 1 << 3,
            )  # fmt: skip
            times: list[float] = [
                spent(lambda: fcntl.ioctl(pagemap, _PAGEMAP_SCAN, request))
                for _ in range(self.rounds)
            ]
        self.note("pagemap_scan", times, self.pages)

    def flushes(self) -> None:
        """Take away and give back the right to write: alone, and while threads run on other CPUs."""
        region, cpus = self.region, sorted(os.sched_getaffinity(0))
        region.renew(np.zeros(1, np.intp))

        def flush() -> float:
            region.protect(writable=True, size=PAGE)
            region.bytes[0] = 1
            return spent(lambda: region.protect(writable=False, size=PAGE))

        def flushed(others: list[int]) -> float:
            with _running(others):
                return statistics.median(flush() for _ in range(8 * self.rounds))

        alone = flushed([])
        counts = sorted({1, len(cpus) // 2, len(cpus) - 1} - {0})
        for count in counts if len(cpus) > 1 else ():
            self.found.flushes[count] = max(0.0, flushed(cpus[-count:]) - alone)
        region.protect(writable=True, size=region.size)
        if self.found.flushes:
            count, ns = max(self.found.flushes.items())
            self.found.costs["flush_ipi"] = Cost(
                ns, f"measured here, {count} other CPUs busy, median of {8 * self.rounds}"
            )
        else:
            self.found.missing["flush_ipi"] = "one CPU"
        self.refills()

    def refills(self) -> None:
        """Read a byte of each page of a full table, after a flush of all, and again."""
        region = self.region
        region.renew()
        column = region.bytes[::PAGE]
        times: list[float] = []
        for _ in range(4 * self.rounds):
            region.protect(writable=False, size=region.size)
            region.protect(writable=True, size=region.size)
            cold = spent(column.sum)
            times.append(cold - spent(column.sum))
        self.note("refill", times, self.pages)

    def kept(self, empty: int) -> NDArray[np.intp]:
        """The pages of a table with so many empty PTEs, spread evenly."""
        present = self.pages - empty
        return np.arange(present) * self.pages // present

    def call(self, empty: int) -> float:
        """How long MADV_COLLAPSE takes for a table with so many empty PTEs."""
        self.region.renew(self.kept(empty))
        return spent(lambda: self.region.advise(MADV_COLLAPSE))

    def collapses(self) -> None:
        """Collapse tables with more and fewer pages."""
        for empty in EMPTY:
            ns = statistics.median(self.call(empty) for _ in range(self.rounds))
            self.found.calls.append(StopPoint(empty, ns))

    def scans(self) -> None:
        """Let the scan of full tables end at their last page, and at their first."""
        region, times = self.region, list[float]()
        for _ in range(self.rounds):
            took = []
            for page in (self.pages - 1, 0):
                region.renew()
                with region.held(page):
                    took.append(spent(lambda: _collapse(region)))
            times.append(took[0] - took[1])
        self.note("scan_pte", times, self.pages - 1)

    def stops(self) -> None:
        """See how long a thread that writes to the table stands still meanwhile. On a host that lets it stand
        still without a collapse, too, the calls have to do.
        """
        if not self.found.calls:
            return
        idle = statistics.median(self.stop(None) for _ in range(self.rounds))
        for empty in EMPTY:
            ns = statistics.median(self.stop(empty) for _ in range(self.rounds))
            self.found.stops.append(StopPoint(empty, ns))
        if idle > min(point.ns for point in self.found.stops) / 4:
            self.found.stops.clear()
            self.found.missing["stops"] = (
                "a thread stands still for other reasons: the host is busy"
            )

    def fit(self) -> None:
        """Split the stops, or the calls, into what each page costs and what does not depend on pages."""
        costs, calls = self.found.costs, self.found.calls
        points, what = (
            self.found.stops or calls,
            "stops" if self.found.stops else "calls, the scan in them",
        )
        whole = costs["clear_2m"]
        clear = costs["clear_page"] = Cost(
            whole.ns / self.pages, "measured here: clear_2m, each page"
        )
        stop, copy = fit_stop(points, clear.ns, self.pages)
        source = (
            f"measured here: a line through {len(points)} {what}, each the median of {self.rounds}"
        )
        costs["stop"], costs["copy_page"] = (
            Cost(max(0.0, stop), source),
            Cost(max(0.0, copy), source),
        )
        if self.found.stops:
            rest = statistics.median(
                call.ns - stop.ns - (self.pages - call.empty) * costs["scan_pte"].ns
                for call, stop in zip(calls, self.found.stops, strict=True)
            )
            if rest > 0:
                source = "measured here: MADV_COLLAPSE less its stop and its scan"
                costs["allocate"] = Cost(rest, source)
            else:
                why = "the call is shorter than the stop, in which a thread is woken, too"
                self.found.missing["allocate"] = why

    def stop(self, empty: int | None) -> float:
        """The longest time between two writes to a table while it is collapsed, with so many empty PTEs;
        None: while it is huge already.

        Full tables stand before it, so that the writes have begun by then; this thread does not let go of
        Python's lock until the collapse must be over.
        """
        region, last = self.row, self.row.size - self.geometry.pmd_size
        full = np.arange(last // PAGE)
        if empty is None:
            region.renew()
            region.advise(MADV_COLLAPSE, last, self.geometry.pmd_size)
        else:
            region.renew(np.concatenate([full, last // PAGE + self.kept(empty)]))
        enough = int(3 * _BEFORE * self.found.calls[-1].ns)
        begun = threading.Event()

        def collapse() -> None:
            begun.set()
            _collapse(region)

        thread = threading.Thread(target=collapse)
        interval = sys.getswitchinterval()
        page, clock, longest = region.bytes.data[last:], time.perf_counter_ns, 0
        sys.setswitchinterval(60)
        try:
            thread.start()
            begun.wait()
            began = before = clock()
            while before - began < enough:
                page[0] = 1
                now = clock()
                longest = max(longest, now - before)
                before = now
        finally:
            sys.setswitchinterval(interval)
        thread.join()
        return longest


def _collapse(region: Region) -> None:
    """Ask for a collapse, which may be refused."""
    with contextlib.suppress(OSError):
        region.advise(MADV_COLLAPSE)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Measure without Python's collector between."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextlib.contextmanager
def _running(cpus: list[int]) -> Iterator[None]:
    """Keep those CPUs busy with threads of this process, which hold no lock of Python's meanwhile."""
    stop = threading.Event()

    def work(cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        while not stop.is_set():
            hashlib.pbkdf2_hmac("sha256", b"busy", b"busy", 20_000)

    own = os.sched_getaffinity(0)
    threads = [threading.Thread(target=work, args=(cpu,)) for cpu in cpus]
    try:
        os.sched_setaffinity(0, own - set(cpus))
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        os.sched_setaffinity(0, own)
