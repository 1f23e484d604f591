# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the populated page tables of a process, and then reads them."""

from __future__ import annotations

import bisect
import errno
import itertools
import operator
import os
import re
from typing import Iterable, Iterator, NamedTuple

from mthp.image.capture.frames import Frames
from mthp.image.capture.pagemap import (
    BATCH_BYTES,
    FILE,
    HUGE,
    IS_HUGE,
    IS_PFNZERO,
    NO_EXCLUSIVE,
    PFN,
    POPULATED,
    PRESENT,
    PROBE,
    ZERO,
    Batch,
    Scanner,
    as_zero,
    decode_words,
    flags_of_categories,
    keeps_soft_dirty,
)
from mthp.image.capture.proc import SmapsEntry, reading
from mthp.words.files import naming
from mthp.words.units import Geometry

BATCHES_AHEAD = 64
"""So many batches are read together where frames lie apart, as each batch's are among those of all."""
AHEAD_BYTES = 512 << 20
"""At most so much address space is read without asking PAGEMAP_SCAN whether it is populated."""
FILE_PAGES = re.compile(b"[%s]+" % b"".join(re.escape(bytes((k,))) for k in range(256) if k & FILE))
"""Runs of PTEs that map a file's pages, in the low bytes of a batch."""
BUSY_REGIONS = 1
"""Above this many regions a table, reading pagemap is cheaper than taking the regions apart."""


class ReadJob(NamedTuple):
    """Runs of tables (address, count) to read from pagemap, or regions that say it all."""

    runs: list[tuple[int, int]]
    regions: list[tuple[int, int, int]] | None


class TableReader:
    """Yields the populated tables of address ranges of one process, in order, a batch at a time."""

    def __init__(
        self,
        pid: int,
        pagemap: int,
        geometry: Geometry,
        scanner: Scanner | None,
        exclusive: bool,
        frames: Frames | None = None,
        batch_bytes: int = BATCH_BYTES,
    ) -> None:
        self.pid = pid
        self.scanner = scanner
        self._pagemap = pagemap
        self._geometry = geometry
        self._exclusive = exclusive
        self._gaps: list[tuple[int, int]] = []
        self._files: list[tuple[int, int]] = []
        self._frames = frames
        self._batch = max(1, batch_bytes // (8 * geometry.ptrs_per_pte))
        self._ahead = max(1, AHEAD_BYTES // geometry.pmd_size)
        self._words = bytearray()
        self._soft_dirty = keeps_soft_dirty()
        self._by_regions = not exclusive
        self._top = 1 << 64

    def windows(self, vmas: list[SmapsEntry]) -> list[tuple[int, int]]:
        """Whole-table ranges that cover the given VMAs; remembers what lies between them."""
        windows: list[tuple[int, int]] = []
        covered = 0
        if any("uw" in flags.split() for flags in {vma.flags for vma in vmas}):
            self._by_regions = False  # only pagemap tells which pages userfaultfd write-protected
        self._files = [(vma.start, vma.end) for vma in vmas if vma.skipped is not None]
        for vma in vmas:
            start, end = self._geometry.pmd_addr(vma.start), self._geometry.pmd_align_up(vma.end)
            if windows and start <= windows[-1][1]:
                start = windows.pop()[0]
            elif windows:
                self._gaps.append((covered, windows[-1][1]))
                covered = start
            else:
                covered = start
            self._gaps.append((covered, vma.start))
            windows.append((start, end))
            covered = vma.end
        if windows:
            self._gaps.append((covered, windows[-1][1]))
            self._top = covered
            if self.scanner is not None:
                self.scanner.top = covered
        self._gaps = [gap for gap in self._gaps if gap[0] < gap[1]]
        return windows

    def batches(self, windows: list[tuple[int, int]]) -> Iterator[Batch]:
        """Yield every table in windows with something in it; the last batch's words are reused."""
        with reading(self.pid):
            for batch in self._batches(self._batched(self._jobs(windows))):
                if self._drop_empty(batch):
                    yield batch
            if windows:  # of a dead process PAGEMAP_SCAN may say that nothing is populated
                self._read([(windows[0][0], 1)])

    def _batches(self, jobs: Iterator[ReadJob]) -> Iterator[Batch]:
        """What each job reads; where frames are looked up and lie apart, of some before any is looked at."""
        for job in jobs:
            if job.regions is not None or self._frames is None:
                yield self._from_job(job, None)
                continue
            words = self._read(job.runs)
            if not self._frames.lie_apart(words):
                yield self._from_job(job, words)
                continue
            read = [(job, bytearray(words))]
            more = itertools.islice(jobs, BATCHES_AHEAD - 1)
            read += ((each, bytearray(self._read(each.runs))) for each in more)
            with naming("/proc/kpageflags"):
                known = self._frames.ahead([words for _, words in read])
            while read:
                batch = self._from_job(*read.pop(0))
                batch.known = known
                yield batch

    def _from_job(self, job: ReadJob, words: bytearray | None) -> Batch:
        """The batch of a job. words: what it reads of pagemap, if that was read."""
        if job.regions is not None:
            batch = self._from_regions(job)
        else:
            batch = self._from_pagemap(job, self._read(job.runs) if words is None else words)
        self._blank_gaps(job.runs, batch)
        return batch

    def _jobs(self, windows: list[tuple[int, int]]) -> Iterator[ReadJob]:
        pmd = self._geometry.pmd_size
        for start, end in windows:
            if self.scanner is None:
                yield ReadJob([(start, (end - start) // pmd)], None)
            else:
                yield from self._scan_jobs(self.scanner, start, end)

    def _scan_jobs(self, scanner: Scanner, start: int, end: int) -> Iterator[ReadJob]:
        """What to read in one window, found by probing for regions.

        Where most tables hold something (or where they are cheaper to read than to describe), each
        probe commits twice as many tables as the one before to reading without further questions.
        """
        down, up = self._geometry.pmd_addr, self._geometry.pmd_align_up
        pmd = self._geometry.pmd_size
        pages = 0 if self._by_regions else PROBE
        ahead, more = 1, True
        while more and start < end:
            regions, more = scanner.find(start, end, POPULATED, pages)
            if not regions:
                return
            first, last = down(regions[0][0]), up(regions[-1][1])
            runs = self._runs(regions)
            dense = 2 * sum(count for _, count in runs) * pmd >= last - first
            ahead = min(2 * ahead, self._ahead) if first - start <= ahead * pmd else 1
            if more and dense and (pages or len(regions) > BUSY_REGIONS * (last - first) // pmd):
                start = min(end, max(last, first + ahead * pmd))
                yield ReadJob([(first, (start - first) // pmd)], None)
            elif pages:
                start = last
                yield ReadJob(runs, None)
            else:
                if more:  # the last table may hold regions that did not fit: the next call's
                    last = down(regions[-1][1])
                    regions = [(s, min(e, last), c) for s, e, c in regions if s < last]
                    runs = self._runs(regions)
                start = last
                yield ReadJob(runs, regions)

    def _runs(self, regions: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
        geometry = self._geometry
        ranges: list[tuple[int, int]] = []
        for start, end, _ in regions:
            start, end = geometry.pmd_addr(start), geometry.pmd_align_up(end)
            if ranges and start <= ranges[-1][1]:
                start = ranges.pop()[0]
            ranges.append((start, end))
        return [(start, (end - start) // geometry.pmd_size) for start, end in ranges]

    def _batched(self, jobs: Iterable[ReadJob]) -> Iterator[ReadJob]:
        """The same work in jobs of at most one batch of tables, small reads joined."""
        pmd = self._geometry.pmd_size
        joined: list[tuple[int, int]] = []
        free = self._batch
        for job in jobs:
            if job.regions is not None and joined:
                yield ReadJob(joined, None)
                joined, free = [], self._batch
            for address, count in job.runs:
                while count:
                    part = min(count, free)
                    joined.append((address, part))
                    address, count, free = address + part * pmd, count - part, free - part
                    if not free:
                        yield ReadJob(joined, job.regions)
                        joined, free = [], self._batch
            if job.regions is not None and joined:
                yield ReadJob(joined, job.regions)
                joined, free = [], self._batch
        if joined:
            yield ReadJob(joined, None)

    def changed(self, batch: Batch) -> dict[int, int]:
        """Read pagemap again: the tables (by address) in which it says other things now, and in how
        many entries. What was read before of `words` is gone."""
        if not batch.runs:
            return {}
        with reading(self.pid):
            words = self._read(batch.runs)
        if words == batch.before:
            return {}
        old, new = (self._ours(batch.runs, read) for read in (bytearray(batch.before), words))
        found = {}
        for k, address in enumerate(self._addresses(batch.runs)):
            rows = slice(k * self._geometry.ptrs_per_pte, (k + 1) * self._geometry.ptrs_per_pte)
            if old[rows] != new[rows]:
                found[address] = sum(map(operator.ne, old[rows], new[rows]))
        return found

    def _ours(self, runs: list[tuple[int, int]], words: bytearray) -> memoryview:
        """What was read, without what is not of the process's own."""
        batch = Batch([], decode_words(words, soft_dirty=False)[0], None)
        batch.words = words
        self._blank_files(runs, batch)
        self._blank_gaps(runs, batch)
        return memoryview(words).cast("Q")

    def _read(self, runs: list[tuple[int, int]]) -> bytearray:
        row = 8 * self._geometry.ptrs_per_pte
        size = row * sum(count for _, count in runs)
        if size != len(self._words):
            self._words = bytearray(size)
        view = memoryview(self._words)
        at = 0
        for address, count in runs:
            stop = at + count * row
            offset = address // self._geometry.page_size * 8
            while at < stop:
                got = os.preadv(self._pagemap, [view[at:stop]], offset)
                if not got and offset < self._top // self._geometry.page_size * 8:
                    raise OSError(errno.ESRCH, "pagemap ended")
                if not got:  # no process has addresses there: pagemap ends before the table does
                    view[at:stop] = bytes(stop - at)
                    break
                at, offset = at + got, offset + got
        return self._words

    def _from_pagemap(self, job: ReadJob, words: bytearray) -> Batch:
        low, high, zero_pages = decode_words(words, self._soft_dirty)
        batch = Batch(self._addresses(job.runs), low, high)
        batch.runs, batch.before, batch.words = job.runs, bytes(words), words
        self._blank_files(job.runs, batch)
        self._mark(job, batch, zero_pages)
        if not self._exclusive:
            batch.low = batch.low.translate(NO_EXCLUSIVE)
        return batch

    def _addresses(self, runs: list[tuple[int, int]]) -> list[int]:
        pmd = self._geometry.pmd_size
        return [address + k * pmd for address, count in runs for k in range(count)]

    def _places(self, runs: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
        """(index of the first PTE in the batch, start address, end address) of each run."""
        at = 0
        for address, count in runs:
            yield at, address, address + count * self._geometry.pmd_size
            at += count * self._geometry.ptrs_per_pte

    def _from_regions(self, job: ReadJob) -> Batch:
        addresses = self._addresses(job.runs)
        size = len(addresses) * self._geometry.ptrs_per_pte
        low, high = bytearray(size), bytearray(size)
        page, flags_of = self._geometry.page_size, {0: 0}
        regions = iter(job.regions or ())
        region = next(regions, None)
        for at, start, end in self._places(job.runs):
            while region is not None and region[0] < end:
                first, last, categories = region
                if categories not in flags_of:
                    flags_of[categories] = flags_of_categories(categories)
                flags = flags_of[categories]
                i = at + (first - start) // page if first > start else at
                j = at + ((last if last < end else end) - start) // page
                if i < j:
                    low[i:j] = bytes((flags & 255,)) * (j - i)
                    if flags >> 8:
                        high[i:j] = bytes((flags >> 8,)) * (j - i)
                if last > end:
                    break
                region = next(regions, None)
        return Batch(addresses, low, high if high.count(1) else None)

    def _mark(self, job: ReadJob, batch: Batch, zero_pages: bool) -> None:
        """Set ZERO and HUGE, which pagemap does not tell, where there may be such pages."""
        ptrs, page = self._geometry.ptrs_per_pte, self._geometry.page_size
        low = batch.low
        if self.scanner is None:  # a "file" that fills a table can only be the huge zero page
            for i in range(0, len(low), ptrs) if low.find(PRESENT | FILE) >= 0 else ():
                if low.count(PRESENT | FILE, i, i + ptrs) == ptrs:
                    low[i : i + ptrs] = bytes((PRESENT | ZERO | HUGE,)) * ptrs
            return
        maybe = () if zero_pages else self._maybe_huge(batch)
        for at, start, end in self._places(job.runs):
            if not zero_pages and not any(
                maybe[at // ptrs : at // ptrs + (end - start) // (ptrs * page)]
            ):
                continue
            for first, last, categories in self.scanner.find_all(start, end, IS_PFNZERO | IS_HUGE):
                flags = flags_of_categories(categories) & (ZERO | HUGE)
                if first % self._geometry.pmd_size:  # collapsed while it was asked about
                    flags &= ~HUGE
                add = bytes(
                    as_zero(value, flags) if value & PRESENT else value for value in range(256)
                )
                i, j = at + (first - start) // page, at + (last - start) // page
                low[i:j] = low[i:j].translate(add)

    def _maybe_huge(self, batch: Batch) -> list[bool]:
        """Of each table, whether a huge PMD may stand for it: its frames, where they are told, are one
        block."""
        ptrs, low = self._geometry.ptrs_per_pte, batch.low
        words = memoryview(batch.words or b"").cast("Q")
        firsts, lasts = words[::ptrs].tolist(), words[ptrs - 1 :: ptrs].tolist()
        found = [
            not (first := word & PFN) or (not first % ptrs and (last & PFN) - first == ptrs - 1)
            for word, last in zip(firsts, lasts)
        ]
        if True in found:
            found = [
                maybe and low.find(0, k * ptrs, (k + 1) * ptrs) < 0 for k, maybe in enumerate(found)
            ]
        return found

    def _drop_empty(self, batch: Batch) -> bool:
        """Keep only tables with something in them; whether there are any."""
        ptrs = self._geometry.ptrs_per_pte
        if batch.low.isascii() and not batch.low.strip(b"\0"):
            return False
        empty = bytes(ptrs)
        starts = range(0, len(batch.low), ptrs)
        keep = [i for i in starts if batch.low[i : i + ptrs] != empty]
        if len(keep) < len(batch.addresses):
            batch.addresses = [batch.addresses[i // ptrs] for i in keep]
            if batch.words is not None:
                view = memoryview(batch.words)
                batch.words = bytearray().join(view[8 * i : 8 * (i + ptrs)] for i in keep)
            if batch.high is not None:
                batch.high = bytearray().join(batch.high[i : i + ptrs] for i in keep)
            batch.low = bytearray().join(batch.low[i : i + ptrs] for i in keep)
        return True

    def _blank_files(self, runs: list[tuple[int, int]], batch: Batch) -> None:
        """Empty the PTEs of page cache in private file mappings."""
        for i, j in self._overlaps(runs, self._files):
            for match in FILE_PAGES.finditer(batch.low, i, j):
                self._blank(batch, *match.span())

    def _blank_gaps(self, runs: list[tuple[int, int]], batch: Batch) -> None:
        """Empty the PTEs that belong to no VMA that is captured."""
        for i, j in self._overlaps(runs, self._gaps):
            self._blank(batch, i, j)

    def _overlaps(
        self, runs: list[tuple[int, int]], ranges: list[tuple[int, int]]
    ) -> Iterator[tuple[int, int]]:
        """Where ascending address ranges stand in the batch: the first index, and one past the last."""
        page = self._geometry.page_size
        for at, start, end in self._places(runs) if ranges else ():
            k = bisect.bisect_right(ranges, (start, start)) - 1
            for first, last in ranges[max(k, 0) :]:
                if first >= end:
                    break
                i = at + (max(first, start) - start) // page
                j = at + (min(last, end) - start) // page
                if i < j:
                    yield i, j

    @staticmethod
    def _blank(batch: Batch, i: int, j: int) -> None:
        """Empty the PTEs from index i up to j."""
        batch.low[i:j] = bytes(j - i)
        if batch.words is not None:
            batch.words[8 * i : 8 * j] = bytes(8 * (j - i))
        if batch.high is not None:
            batch.high[i:j] = bytes(j - i)
