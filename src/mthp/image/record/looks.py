# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks at a recorded program's anonymous pages: which of them hold nothing but zeroes.

What they hold is compared here with zeroes and forgotten. Pages that are not there, that a file has, or that
are the zero page are not touched: a load would bring them in. Looked at is a little at a time, between which
the trace is taken in and the processor left to others.

Kernel: fs/proc/base.c, mem_rw(); fs/proc/task_mmu.c, pagemap_read() and do_pagemap_scan().
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from array import array
from typing import Any, Callable, Iterable, Iterator

from mthp.image.capture.pagemap import FILE, IS_PFNZERO, IS_PRESENT, PRESENT, Scanner, decode_words
from mthp.image.capture.proc import text
from mthp.image.record.child import mappings
from mthp.words.units import Geometry

VERSION = 1
SLICE_SECONDS = 0.01
SHARE = 4
"""After a slice nothing is looked at for so long that it took one part in four of a CPU."""
LAST_SECONDS = 2.0
"""What is there at the end is looked at once more, for no longer than that."""
MOST_RUNS = 1 << 22
"""Runs of pages that are kept; after these nothing is looked at any more."""
CHUNK_PAGES = 64
BLIND_BYTES = 16 << 30
"""Where PAGEMAP_SCAN is missing, larger mappings are passed over."""


class Looks:
    """What was seen, and when to look again. seconds: from the beginning of one look to that of the next.

    time, until, pid, runs: of each slice of a look, when it began and ended (CLOCK_MONOTONIC, nanoseconds),
    at which process, and how many of the runs are of it. page, pages, zero: each run of pages, its first page
    and whether they are all zero. count: looks that were finished. read: pages. spent: our own CPU time, in
    seconds. due: when to go on, in seconds. full: there are too many runs.
    """

    def __init__(self, seconds: float, geometry: Geometry) -> None:
        self.seconds = seconds
        self.time, self.until, self.pid, self.runs = (array(each) for each in "QQII")
        self.page, self.pages, self.zero = array("Q"), array("I"), bytearray()
        self.count = self.read = 0
        self.spent = 0.0
        self.full = False
        self.due = time.monotonic() + seconds
        self._geometry = geometry
        self._zeros = bytes(geometry.page_size)
        self._next = self.due
        self._work: Iterator[None] | None = None
        self._row = False

    def go_on(self, pids: Iterable[int]) -> None:
        """Look for a moment, if it is time to. pids: the processes, where a new look begins."""
        began = time.monotonic()
        if began < self.due:
            return
        used = time.process_time()
        if self._work is None:
            self._next = began + self.seconds
            self._work = self._look([*pids])
        for _ in self._work:
            if time.monotonic() >= began + SLICE_SECONDS:
                break
        else:
            self._work = None
            self.count += 1
        self._end_row()
        used = time.process_time() - used
        self.spent += used
        self.due = time.monotonic() + (SHARE - 1) * used
        if self._work is None:
            self.due = max(self.due, self._next)
        if self.full:
            self.due = math.inf

    def once_more(self, pids: Iterable[int], meanwhile: Callable[[], None]) -> None:
        """Look at what is there now, from the start. meanwhile: what has to be done between slices."""
        until = time.monotonic() + LAST_SECONDS
        count, self._work = self.count, None
        while self.count == count and time.monotonic() < until and not self.full:
            self.due = 0.0
            self.go_on(pids)
            meanwhile()

    def told(self) -> dict[str, Any]:
        """What the document says of them."""
        return {
            "version": VERSION,
            "seconds": self.seconds,
            "count": self.count,
            "pages": self.read,
            "spent": round(self.spent, 6),
            "full": self.full,
        }

    def _look(self, pids: list[int]) -> Iterator[None]:
        """Look at processes, and stop every so many pages."""
        for pid in pids:
            with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
                held = []
                for name in ("pagemap", "mem"):
                    held.append(os.open(f"/proc/{pid}/{name}", os.O_RDONLY))
                    opened.callback(os.close, held[-1])
                for page, pages in self._present(pid, held[0]):
                    for first in range(page, page + pages, CHUNK_PAGES):
                        if not self._row:
                            self._begin_row(pid)
                        self._read(held[1], first, min(CHUNK_PAGES, page + pages - first))
                        yield
                        if len(self.page) >= MOST_RUNS:
                            self.full = True
                            return
            self._end_row()

    def _present(self, pid: int, pagemap: int) -> Iterator[tuple[int, int]]:
        """Runs of pages of a process that are there, private and no file's: the first, and how many."""
        shift = self._geometry.page_shift
        scanner: Scanner | None = Scanner(pagemap)
        if scanner is not None and not scanner.works():
            scanner = None
        for each in mappings(text(f"/proc/{pid}/maps")) or []:
            start, end = each["start"], each["end"]
            if each["perms"][3] != "p" or each["path"].startswith("[v"):
                continue
            if scanner is not None:
                for first, last, categories in scanner.find_all(start, end, IS_PRESENT):
                    if not categories & IS_PFNZERO:
                        yield first >> shift, (last - first) >> shift
            elif end - start <= BLIND_BYTES:
                yield from self._by_words(pagemap, start >> shift, end >> shift)

    def _by_words(self, pagemap: int, page: int, end: int) -> Iterator[tuple[int, int]]:
        """The same of one mapping, by the words of pagemap."""
        table = self._geometry.ptrs_per_pte
        for first in range(page, end, table):
            words = os.pread(pagemap, 8 * min(table, end - first), 8 * first)
            low, _, _ = decode_words(bytearray(words), soft_dirty=False)
            at = 0
            while at < len(low):
                stop, there = at, low[at] & (PRESENT | FILE) == PRESENT
                while stop < len(low) and (low[stop] & (PRESENT | FILE) == PRESENT) is there:
                    stop += 1
                if there:
                    yield first + at, stop - at
                at = stop

    def _read(self, mem: int, page: int, pages: int) -> None:
        """Compare some pages with zeroes. Those that cannot be read are passed over."""
        size, end = self._geometry.page_size, page + pages
        while page < end:
            try:
                data = os.pread(mem, (end - page) * size, page * size)
            except OSError:
                data = b""
            there = len(data) // size
            for k in range(there):
                self._note(page + k, data.startswith(self._zeros, k * size))
            self.read += there
            page += there or 1

    def _note(self, page: int, zero: bool) -> None:
        if self.runs[-1] and self.zero[-1] == zero and self.page[-1] + self.pages[-1] == page:
            self.pages[-1] += 1
            return
        self.page.append(page)
        self.pages.append(1)
        self.zero.append(zero)
        self.runs[-1] += 1

    def _begin_row(self, pid: int) -> None:
        self.time.append(time.monotonic_ns())
        self.until.append(0)
        self.pid.append(pid)
        self.runs.append(0)
        self._row = True

    def _end_row(self) -> None:
        if self._row:
            self.until[-1] = time.monotonic_ns()
            self._row = False
