# SPDX-License-Identifier: GPL-2.0-or-later
# ruff: noqa: B905, UP033 - production hosts: this one file also runs on Python 3.8
"""Write what khugepaged would find in live processes into one .npz file (docs/snapshot-format.md).

Runs alone: copy this file to a host and call `python3 capture.py --pid N -o FILE`. It only reads
/proc and /sys, and it needs nothing but the standard library, on purpose: no numpy, no mthp.

Kernel: fs/proc/task_mmu.c (smaps, pagemap, PAGEMAP_SCAN), fs/proc/page.c (kpageflags, kpagecount).
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import errno
import fcntl
import functools
import glob
import json
import operator
import os
import platform
import re
import secrets
import signal
import struct
import sys
import tempfile
import time
import zipfile
from array import array
from typing import IO, Any, Callable, Iterable, Iterator, NamedTuple, NoReturn  # noqa: UP035

SCHEMA = "mthp-snapshot/1"
TOOL = "mthp-snap 1"
THP = "/sys/kernel/mm/transparent_hugepage"
OK, FAILED, USAGE, LACKING = 0, 1, 2, 5

# Bits of the `pte` member.
PRESENT, SWAPPED, FILE, ZERO, HUGE, SOFT_DIRTY, UFFD_WP, EXCLUSIVE = (1 << k for k in range(8))
GUARD = 1 << 8

# PAGEMAP_SCAN. Kernel: include/uapi/linux/fs.h.
PAGEMAP_SCAN = 0xC0606610
IS_PRESENT, IS_SWAPPED, IS_PFNZERO, IS_HUGE, IS_SOFT_DIRTY, IS_GUARD = (1 << k for k in range(3, 9))
POPULATED = IS_PRESENT | IS_SWAPPED

# /proc/kpageflags. Kernel: include/uapi/linux/kernel-page-flags.h.
KPF_HEAD, KPF_THP, KPF_ZERO_PAGE = 1 << 15, 1 << 22, 1 << 24

BATCH_BYTES = 1 << 19
"""Pagemap bytes held by one batch of tables: the unit of reading, decoding and writing."""
AHEAD_BYTES = 512 << 20
"""At most so much address space is read without asking PAGEMAP_SCAN whether it is populated."""
PROBE = 16
"""Regions (and, when pagemap is read anyway, pages) asked for in one PAGEMAP_SCAN."""
BUSY_REGIONS = 1
"""Above this many regions a table, reading pagemap is cheaper than taking the regions apart."""
AGAIN_TABLES = 512
"""At most this many tables of a process are read a second time to measure tearing."""
BLIND_BYTES = 16 << 30
"""Without PAGEMAP_SCAN, larger VMAs with neither Rss nor Swap are taken as empty."""


class CaptureError(Exception):
    """What stops a capture: one line for people, and the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


class PageSizes(NamedTuple):
    """Bytes of a page and of the range of one page table."""

    page: int
    pmd: int

    @property
    def ptrs(self) -> int:
        return self.pmd // self.page

    def down(self, address: int) -> int:
        return address & -self.pmd

    def up(self, address: int) -> int:
        return (address + self.pmd - 1) & -self.pmd


# --- /proc and /sys text -----------------------------------------------------------------------


def text(path: str) -> str | None:
    """A small file's text without its last newline; None where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return None


def number(path: str) -> int | None:
    """The integer a file holds; None where there is none ("max" included)."""
    value = (text(path) or "").strip()
    return int(value) if value.isdigit() else None


class SmapsEntry(NamedTuple):
    """One entry of smaps; sizes in bytes. skipped: why its pages are not in the snapshot."""

    start: int
    end: int
    perms: str
    offset: int
    dev: str
    inode: int
    path: str
    flags: str
    sizes: dict[str, int]
    skipped: str | None

    @property
    def identity(self) -> tuple[int, int, str, int, str, int]:
        return (self.start, self.end, self.perms, self.offset, self.dev, self.inode)


SIZES = {
    b"Rss": "rss",
    b"Anonymous": "anonymous",
    b"Referenced": "referenced",
    b"Swap": "swap",
    b"AnonHugePages": "anon_huge",
    b"LazyFree": "lazyfree",
    b"Locked": "locked",
    b"THPeligible": "thp_eligible",
}


def why_skipped(perms: str, inode: int, path: str, flags: list[str]) -> str | None:
    """Why a VMA is not anonymous to the kernel; None if it is. Kernel: vma_is_anonymous()."""
    if "ht" in flags:
        return "hugetlb"
    if "pf" in flags or "io" in flags:
        return "device or pfn mapping"
    if path == "/dev/zero" and perms.endswith("p"):
        return None
    if inode or path.startswith("/"):
        return "file mapping" if perms.endswith("p") else "shared mapping"
    if path and not re.match(r"\[(heap|stack(:\d+)?|anon:.*)\]$", path):
        return "special mapping"
    return "shared mapping" if perms.endswith("s") else None


def parse_maps(lines: Iterable[bytes]) -> Iterator[SmapsEntry]:
    """VMAs from the lines of maps or smaps (from maps: without sizes and flags)."""
    head: list[str] = []
    sizes: dict[str, int] = {}
    flags = ""
    for line in lines:
        key, colon, value = line.partition(b":")
        if colon and b"-" not in key and b" " not in key:
            if key in SIZES:
                words = value.split()
                sizes[SIZES[key]] = int(words[0]) << (10 if len(words) > 1 else 0)
            elif key == b"VmFlags":
                flags = value.decode().strip()
            continue
        if head:
            yield _vma(head, sizes, flags)
        head, sizes, flags = line.decode("utf-8", "replace").rstrip("\n").split(None, 5), {}, ""
    if head:
        yield _vma(head, sizes, flags)


def _vma(head: list[str], sizes: dict[str, int], flags: str) -> SmapsEntry:
    start, _, end = head[0].partition("-")
    path = head[5] if len(head) > 5 else ""
    skipped = why_skipped(head[1], int(head[4]), path, flags.split())
    return SmapsEntry(
        int(start, 16), int(end, 16), head[1], int(head[2], 16), head[3], int(head[4]), path,
        flags, sizes, skipped,
    )  # fmt: skip


def gone(pid: int) -> CaptureError:
    """The error of a process that went away."""
    return CaptureError(f"process {pid} exited (or ran another program) while it was read")


def read_vmas(pid: int, file: str) -> list[SmapsEntry]:
    """The VMAs of /proc/PID/maps or smaps; CaptureError where they cannot be read."""
    try:
        with open(f"/proc/{pid}/{file}", "rb") as lines:
            return list(parse_maps(lines))
    except PermissionError:
        raise not_ours(pid) from None
    except OSError as error:
        raise (gone(pid) if error.errno in (errno.ESRCH, errno.ENOENT) else error) from None


def not_ours(pid: int) -> CaptureError:
    """The error of a process that belongs to somebody else."""
    return CaptureError(f"process {pid} is not ours to read (run as its user or as root)", USAGE)


# --- reading page tables -----------------------------------------------------------------------


class Batch:
    """Some tables of a process, decoded: one byte a PTE in low, bits 8-15 in high if any is set.

    words: the same tables as pagemap has them; None where only PAGEMAP_SCAN was asked.
    """

    __slots__ = ("addresses", "high", "low", "words")

    def __init__(self, addresses: list[int], low: bytearray, high: bytearray | None) -> None:
        self.addresses = addresses
        self.low = low
        self.high = high
        self.words: bytearray | None = None


def _byte(k: int) -> int:
    return k if sys.byteorder == "little" else 7 - k


def _decode_flags(top: int) -> int:
    if not top & 0xC0:
        return 0
    bits = ((0x80, PRESENT), (0x40, SWAPPED), (0x20, FILE), (2, UFFD_WP), (1, EXCLUSIVE))
    return sum(flag for bit, flag in bits if top & bit)


# pagemap keeps its flags in bits 55-63: the top byte, and the top bit of the one below.
LOW_OF_TOP = bytes(_decode_flags(top) for top in range(256))
HIGH_OF_TOP = bytes(1 if top & 0x44 == 0x44 else 0 for top in range(256))
SOFT_OF_BYTE = bytes(SOFT_DIRTY if value & 0x80 else 0 for value in range(256))
SOFT_IF_ANY = bytes(SOFT_DIRTY if value else 0 for value in range(256))
NO_EXCLUSIVE = bytes(value & ~EXCLUSIVE for value in range(256))
EVEN = bytes(range(0, 256, 2))
NOT_SWAPPED = bytes(value for value in range(256) if not value & SWAPPED)
LOW_7_BITS = bytes(value & 0x7F for value in range(256))
# Top bytes that need a second look (a search for one byte is the cheapest test there is). Zero
# pages are present, neither exclusive nor a file's, and so are shared pages; then guards.
MAYBE_ZERO, GUARDS = (0x80, 0x82), (0x44, 0x46)


def _or_bytes(left: bytearray, right: bytearray, mask: bytearray) -> bytearray:
    """left | (right & mask), byte by byte."""
    word = int.from_bytes(right, "little") & int.from_bytes(mask, "little")
    return bytearray((int.from_bytes(left, "little") | word).to_bytes(len(left), "little"))


def decode_words(words: bytearray, soft_dirty: bool) -> tuple[bytearray, bytearray | None, bool]:
    """pagemap words -> low bytes of the PTE flags, high bytes if any is set, maybe zero pages.

    soft_dirty: whether this kernel keeps that bit at all (CONFIG_MEM_SOFT_DIRTY).
    """
    top = words[_byte(7) :: 8]
    low = top.translate(LOW_OF_TOP)
    below = words[_byte(6) :: 8] if soft_dirty else low[:0]
    if not below.isascii():
        low = _or_bytes(low, below.translate(SOFT_OF_BYTE), low.translate(SOFT_IF_ANY))
    high = top.translate(HIGH_OF_TOP) if any(value in top for value in GUARDS) else None
    return low, high, any(value in top for value in MAYBE_ZERO)


def as_zero(value: int, flags: int) -> int:
    """value | flags; a zero page is neither a file's nor exclusive, whatever pagemap says."""
    return (value | flags) & ~(FILE | EXCLUSIVE) if flags & ZERO else value | flags


class Scanner:
    """The PAGEMAP_SCAN ioctl on one open pagemap (Linux 6.7 and later)."""

    def __init__(self, pagemap: int) -> None:
        self._pagemap = pagemap
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._vector = array("Q", bytes(24 * PROBE))
        self._guard = IS_GUARD

    def works(self) -> bool:
        """Ask once for nothing; learn whether the kernel reports guard regions (6.15)."""
        for self._guard in (IS_GUARD, 0):
            try:
                self.find(0, 0, POPULATED)
                return True
            except OSError as error:
                if error.errno == errno.ESRCH:
                    raise
        return False

    def find(
        self, start: int, end: int, anyof: int, pages: int = 0
    ) -> tuple[list[tuple[int, int, int]], bool]:
        """Regions (start, end, categories) holding any of the categories, and: may be more.

        pages: stop after so many pages; 0: no limit.

        walk_end is not used: it can be stale when the vector got full exactly at a flush.
        """
        returned = POPULATED | IS_PFNZERO | IS_HUGE | IS_SOFT_DIRTY | self._guard
        vector = self._vector
        where = vector.buffer_info()[0]
        argument = array("Q", (96, 0, start, end, 0, where, PROBE, pages, 0, 0, anyof, returned))
        found = fcntl.ioctl(self._pagemap, PAGEMAP_SCAN, argument, True)
        stop = 3 * found
        regions = list(zip(vector[0:stop:3], vector[1:stop:3], vector[2:stop:3]))
        more = found == PROBE
        if pages and not more:
            more = sum(last - first for first, last, _ in regions) >= pages * self._page
        return regions, more

    def find_all(self, start: int, end: int, anyof: int) -> Iterator[tuple[int, int, int]]:
        """Every region of [start, end) with any of the categories, over several calls."""
        more = True
        while more and start < end:
            regions, more = self.find(start, end, anyof)
            yield from regions
            if regions:
                start = regions[-1][1]


def flags_of_categories(categories: int) -> int:
    """A region's PAGEMAP_SCAN categories as PTE flags."""
    bits = (
        (IS_PRESENT, PRESENT), (IS_SWAPPED, SWAPPED), (IS_PFNZERO, ZERO), (IS_HUGE, HUGE),
        (IS_SOFT_DIRTY, SOFT_DIRTY), (IS_GUARD, GUARD | SWAPPED),
    )  # fmt: skip
    flags = 0
    for bit, flag in bits:
        if categories & bit:
            flags |= flag
    return flags


class ReadJob(NamedTuple):
    """Runs of tables (address, count) to read from pagemap, or regions that say it all."""

    runs: list[tuple[int, int]]
    regions: list[tuple[int, int, int]] | None


class TableReader:
    """Yields the populated tables of address ranges of one process, in order, a batch at a time."""

    def __init__(
        self, pid: int, pagemap: int, geometry: PageSizes, scanner: Scanner | None, exclusive: bool
    ) -> None:
        self.pid = pid
        self.scanner = scanner
        self._pagemap = pagemap
        self._geometry = geometry
        self._exclusive = exclusive
        self._gaps: list[tuple[int, int]] = []
        self._batch = max(1, BATCH_BYTES // (8 * geometry.ptrs))
        self._ahead = max(1, AHEAD_BYTES // geometry.pmd)
        self._words = bytearray()
        self._soft_dirty = keeps_soft_dirty()
        self._by_regions = not exclusive

    def windows(self, vmas: list[SmapsEntry]) -> list[tuple[int, int]]:
        """Whole-table ranges that cover the given VMAs; remembers what lies between them."""
        windows: list[tuple[int, int]] = []
        covered = 0
        if any("uw" in vma.flags.split() for vma in vmas):
            self._by_regions = False  # only pagemap tells which pages userfaultfd write-protected
        for vma in vmas:
            start, end = self._geometry.down(vma.start), self._geometry.up(vma.end)
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
        self._gaps = [gap for gap in self._gaps if gap[0] < gap[1]]
        return windows

    def batches(self, windows: list[tuple[int, int]]) -> Iterator[Batch]:
        """Every table in windows with something in it; the last batch's words are reused."""
        try:
            for job in self._batched(self._jobs(windows)):
                batch = self._from_pagemap(job) if job.regions is None else self._from_regions(job)
                self._blank_gaps(job, batch)
                if self._drop_empty(batch):
                    yield batch
            if windows:  # of a dead process PAGEMAP_SCAN may say that nothing is populated
                self._read([(windows[0][0], 1)])
        except OSError as error:
            raise (gone(self.pid) if error.errno == errno.ESRCH else error) from None

    def _jobs(self, windows: list[tuple[int, int]]) -> Iterator[ReadJob]:
        pmd = self._geometry.pmd
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
        down, up, pmd = self._geometry.down, self._geometry.up, self._geometry.pmd
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
        down, up, pmd = self._geometry.down, self._geometry.up, self._geometry.pmd
        ranges: list[tuple[int, int]] = []
        for start, end, _ in regions:
            start, end = down(start), up(end)
            if ranges and start <= ranges[-1][1]:
                start = ranges.pop()[0]
            ranges.append((start, end))
        return [(start, (end - start) // pmd) for start, end in ranges]

    def _batched(self, jobs: Iterable[ReadJob]) -> Iterator[ReadJob]:
        """The same work in jobs of at most one batch of tables, small reads joined."""
        pmd = self._geometry.pmd
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

    def _read(self, runs: list[tuple[int, int]]) -> bytearray:
        row = 8 * self._geometry.ptrs
        size = row * sum(count for _, count in runs)
        if size != len(self._words):
            self._words = bytearray(size)
        view = memoryview(self._words)
        at = 0
        for address, count in runs:
            stop = at + count * row
            offset = address // self._geometry.page * 8
            while at < stop:
                got = os.preadv(self._pagemap, [view[at:stop]], offset)
                if not got:
                    raise OSError(errno.ESRCH, "pagemap ended")
                at, offset = at + got, offset + got
        return self._words

    def _from_pagemap(self, job: ReadJob) -> Batch:
        words = self._read(job.runs)
        low, high, zero_pages = decode_words(words, self._soft_dirty)
        batch = Batch(self._addresses(job), low, high)
        batch.words = words
        self._mark(job, batch, zero_pages)
        if not self._exclusive:
            batch.low = batch.low.translate(NO_EXCLUSIVE)
        return batch

    def _addresses(self, job: ReadJob) -> list[int]:
        pmd = self._geometry.pmd
        return [address + k * pmd for address, count in job.runs for k in range(count)]

    def _places(self, job: ReadJob) -> Iterator[tuple[int, int, int]]:
        """(index of the first PTE in the batch, start address, end address) of each run."""
        at = 0
        for address, count in job.runs:
            yield at, address, address + count * self._geometry.pmd
            at += count * self._geometry.ptrs

    def _from_regions(self, job: ReadJob) -> Batch:
        addresses = self._addresses(job)
        size = len(addresses) * self._geometry.ptrs
        low, high = bytearray(size), bytearray(size)
        page, flags_of = self._geometry.page, {0: 0}
        regions = iter(job.regions or ())
        region = next(regions, None)
        for at, start, end in self._places(job):
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
        ptrs, page = self._geometry.ptrs, self._geometry.page
        low = batch.low
        if self.scanner is None:  # a "file" that fills a table can only be the huge zero page
            for i in range(0, len(low), ptrs) if low.find(PRESENT | FILE) >= 0 else ():
                if low.count(PRESENT | FILE, i, i + ptrs) == ptrs:
                    low[i : i + ptrs] = bytes((PRESENT | ZERO | HUGE,)) * ptrs
            return
        for at, start, end in self._places(job):
            stop = at + (end - start) // page
            if not zero_pages and all(low.find(0, i, i + ptrs) >= 0 for i in range(at, stop, ptrs)):
                continue
            for first, last, categories in self.scanner.find_all(start, end, IS_PFNZERO | IS_HUGE):
                flags = flags_of_categories(categories) & (ZERO | HUGE)
                add = bytes(as_zero(value, flags) if value else 0 for value in range(256))
                i, j = at + (first - start) // page, at + (last - start) // page
                low[i:j] = low[i:j].translate(add)

    def _drop_empty(self, batch: Batch) -> bool:
        """Keep only tables with something in them; whether there are any."""
        ptrs = self._geometry.ptrs
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

    def _blank_gaps(self, job: ReadJob, batch: Batch) -> None:
        """Empty the PTEs that belong to no anonymous VMA."""
        page = self._geometry.page
        for at, start, end in self._places(job):
            k = bisect.bisect_right(self._gaps, (start, start)) - 1
            for gap_start, gap_end in self._gaps[max(k, 0) :]:
                if gap_start >= end:
                    break
                i = at + (max(gap_start, start) - start) // page
                j = at + (min(gap_end, end) - start) // page
                if i < j:
                    batch.low[i:j] = bytes(j - i)
                    if batch.words is not None:
                        batch.words[8 * i : 8 * j] = bytes(8 * (j - i))
                    if batch.high is not None:
                        batch.high[i:j] = bytes(j - i)


@functools.lru_cache(maxsize=None)
def keeps_soft_dirty() -> bool:
    """Whether the kernel tracks soft-dirty pages: then it marks every new VMA so, ours too."""
    with open("/proc/self/smaps", "rb", buffering=0) as file:
        first = re.search(rb"^VmFlags:(.*)$", file.read(4096), re.M)
    return first is None or b" sd" in first[1]


# --- physical pages (root) ---------------------------------------------------------------------


class Frames:
    """kpageflags, kpagecount and folio orders of the frames that page tables point to."""

    def __init__(self, flags: int, counts: int | None, geometry: PageSizes) -> None:
        self._flags = flags
        self._counts = counts
        self._block = geometry.ptrs

    def close(self) -> None:
        """Close what is open."""
        for file in (self._flags, self._counts):
            if file is not None:
                os.close(file)

    def look_up(self, pfns: array[int]) -> tuple[bytes, bytes, bytes]:
        """Per PTE, as u64, u32 and u8: flags, mapcount, order of the folio. 0 where pfn is 0.

        A frame's three values travel as one 16-byte record, so that one look-up fetches them.
        """
        records = {0: bytes(16)}
        for block in self._blocks(pfns):
            first, packed = self._read_block(block)
            if 2 * len(block) > len(packed) // 16:
                block = list(range(first, first + len(packed) // 16))
            for pfn in block:
                k = 16 * (pfn - first)
                records[pfn] = packed[k : k + 16]
        found = b"".join(map(records.__getitem__, pfns))
        flags, counts = bytearray(8 * len(pfns)), bytearray(4 * len(pfns))
        for k in range(8):
            flags[k::8] = found[k::16]
        for k in range(4):
            counts[k::4] = found[8 + k :: 16]
        return bytes(flags), bytes(counts), found[12::16]

    def _blocks(self, pfns: array[int]) -> Iterator[list[int]]:
        """The distinct frames, ascending, cut where a folio of PMD order would end."""
        distinct = sorted(set(pfns) - {0})
        at = 0
        while at < len(distinct):
            stop = distinct[at] - distinct[at] % self._block + self._block
            end = bisect.bisect_left(distinct, stop, at)
            yield distinct[at:end]
            at = end

    def _read_block(self, block: list[int]) -> tuple[int, bytes]:
        """The first frame read, and a record for it and each that follows."""
        first, count = block[0], block[-1] - block[0] + 1
        flags = self._values(self._flags, first, count)
        if any(self._kinds(flags)):
            first, count = first - first % self._block, self._block
            flags = self._values(self._flags, first, count)
        orders = self._orders(flags, self._kinds(flags))
        counts = self._values(self._counts, first, count)
        low_half = range(4) if sys.byteorder == "little" else range(4, 8)
        packed = bytearray(16 * count)
        for k in range(8):
            packed[k::16] = flags[k::8]
        for at, k in enumerate(low_half):
            packed[8 + at :: 16] = counts[k::8]
        packed[12::16] = orders
        return first, bytes(packed)

    @staticmethod
    def _values(file: int | None, first: int, count: int) -> bytearray:
        data = bytearray(8 * count)
        if file is not None:
            os.preadv(file, [data], 8 * first)
        return data

    @staticmethod
    def _kinds(flags: bytearray) -> bytes:
        """Per frame: 1 the head of a compound page, 2 a tail, 0 neither; b"" if all are neither."""
        heads, tails = flags[_byte(1) :: 8], flags[_byte(2) :: 8]
        if heads.isascii() and not tails.translate(None, EVEN):
            return b""
        return bytes(2 if tail & 1 else head >> 7 for head, tail in zip(heads, tails))

    @staticmethod
    def _orders(flags: bytearray, kinds: bytes) -> bytes:
        """Each frame's folio order; also lends tails their head's flags, as new kernels do.

        Kernel: a folio is aligned to its size, so a block of PMD order holds it whole.
        """
        orders = bytearray(len(flags) // 8)
        words = memoryview(flags).cast("Q")
        for match in re.finditer(b"\1\2+", kinds):
            start, stop = match.span()
            head = words[start] & ~KPF_HEAD
            for k in range(start + 1, stop) if head & ~words[start + 1] else ():
                words[k] |= head
            orders[start:stop] = bytes(((stop - start).bit_length() - 1,)) * (stop - start)
        return bytes(orders)


# --- the columns of the file -------------------------------------------------------------------


class Columns:
    """The table rows, one spooled file a member, so that memory stays small."""

    WIDTH = {"pte": 2, "pfn": 8, "kpageflags": 8, "kpagecount": 4, "folio_order": 1}  # noqa: RUF012
    TYPE = {1: "|u1", 2: "u2", 4: "u4", 8: "u8"}  # noqa: RUF012

    def __init__(self, geometry: PageSizes, folder: str, members: list[str]) -> None:
        self.geometry = geometry
        self.address: array[int] = array("Q")
        self.process: array[int] = array("H")
        self.files: dict[str, IO[bytes]] = {
            name: tempfile.SpooledTemporaryFile(4 << 20, dir=folder)  # noqa: SIM115 - kept open
            for name in members
        }

    def add(self, process: int, batch: Batch, parts: dict[str, bytes]) -> None:
        """Append the tables of a batch; parts: its data for each member."""
        for name, data in parts.items():
            self.files[name].write(data)
        self.address.extend(batch.addresses)
        self.process.extend([process] * len(batch.addresses))

    def close(self) -> None:
        """Close what is open."""
        for file in self.files.values():
            file.close()

    def truncate(self, rows: int) -> None:
        """Forget all tables from the row on."""
        for name, file in self.files.items():
            file.seek(rows * self.geometry.ptrs * self.WIDTH[name])
            file.truncate()
        del self.address[rows:], self.process[rows:]

    def row(self, name: str, k: int) -> bytes:
        """The bytes of one table in one column."""
        size = self.geometry.ptrs * self.WIDTH[name]
        self.files[name].seek(k * size)
        return self.files[name].read(size)

    def patch(self, name: str, k: int, data: bytes) -> None:
        """Replace the bytes of one table in one column."""
        self.files[name].seek(k * len(data))
        self.files[name].write(data)

    def rewind(self) -> None:
        """Go back to the end, to append again."""
        for file in self.files.values():
            file.seek(0, os.SEEK_END)


def npy_header(kind: str, shape: tuple[int, ...]) -> bytes:
    """The start of a .npy file, version 1.0: magic, length, a Python literal, padded to 64."""
    order = "" if kind.startswith("|") else "<" if sys.byteorder == "little" else ">"
    literal = f"{{'descr': '{order}{kind}', 'fortran_order': False, 'shape': {shape!r}, }}"
    padded = literal + " " * (-(10 + len(literal) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode("latin1")


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while True:
        chunk = file.read(1 << 20)
        if not chunk:
            return
        yield chunk


def write_file(target: IO[bytes], meta: dict[str, Any], columns: Columns) -> None:
    """Write the whole .npz: meta first, then every column."""
    document = json.dumps(meta, ensure_ascii=True, separators=(",", ":")).encode()
    rows, ptrs = len(columns.address), columns.geometry.ptrs
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, True, 1) as archive:

        def member(name: str, kind: str, shape: tuple[int, ...], chunks: Iterable[bytes]) -> None:
            entry = zipfile.ZipInfo(name + ".npy", time.localtime()[:6])
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o600 << 16
            entry.file_size = 1 << 20
            for size in shape:
                entry.file_size *= max(size, 1)
            with archive.open(entry, "w") as file:
                file.write(npy_header(kind, shape))
                for chunk in chunks:
                    file.write(chunk)

        member("meta", "|u1", (len(document),), [document])
        member("table_address", "u8", (rows,), [columns.address.tobytes()])
        member("table_process", "u2", (rows,), [columns.process.tobytes()])
        for name, spool in columns.files.items():
            kind = Columns.TYPE[Columns.WIDTH[name]]
            member(name, kind, (rows, ptrs), _chunks(spool))


# --- one process -------------------------------------------------------------------------------


class ProcessReader:
    """Reads one process into the columns of a session."""

    def __init__(self, pid: int, index: int, session: CaptureRun) -> None:
        self.pid = pid
        self.index = index
        self.session = session
        self.geometry = session.geometry
        self.vmas: list[SmapsEntry] = []
        self.tearing = {"vmas_changed": 0, "tables_changed": 0, "pages_changed": 0}
        self.tearing.update(tables_read_again=0, tables=0)

    def read(self) -> None:
        """Read the whole process: mappings, tables, and what changed meanwhile."""
        session = self.session
        self.vmas = read_vmas(self.pid, "smaps")
        if not self.vmas:
            raise CaptureError(f"process {self.pid} has no address space (kernel thread)", USAGE)
        anonymous = [vma for vma in self.vmas if vma.skipped is None]
        if not session.privilege["pagemap_scan"]:
            anonymous = self._leave_out_blind(anonymous)
        pagemap = open_pagemap(self.pid)
        try:
            reader = session.table_reader(self.pid, pagemap)
            first = len(session.columns.address)
            for batch in reader.batches(reader.windows(anonymous)):
                session.columns.add(self.index, batch, session.parts(batch, reader.scanner))
            rows = range(first, len(session.columns.address))
            if reader.scanner is None:
                self._deduce_huge(anonymous, rows)
            self._measure_tearing(reader, rows)
        finally:
            os.close(pagemap)

    def _leave_out_blind(self, vmas: list[SmapsEntry]) -> list[SmapsEntry]:
        big = [
            vma
            for vma in vmas
            if vma.end - vma.start > BLIND_BYTES
            and not (vma.sizes.get("rss") or vma.sizes.get("swap"))
        ]
        if big:
            self.session.not_seen(
                f"process {self.pid}: {len(big)} VMAs over {BLIND_BYTES >> 30} GiB without Rss or "
                "Swap were taken as empty (no PAGEMAP_SCAN): zero pages and guards in them"
            )
        return [vma for vma in vmas if vma not in big]

    def _deduce_huge(self, vmas: list[SmapsEntry], rows: range) -> None:
        """Without PAGEMAP_SCAN: full tables of a VMA are huge if AnonHugePages counts them all."""
        columns, down, up = self.session.columns, self.geometry.down, self.geometry.up
        pmd, ptrs = self.geometry.pmd, self.geometry.ptrs
        addresses = columns.address[rows.start : rows.stop]
        for vma in vmas:
            claimed = vma.sizes.get("anon_huge", 0) // pmd
            i = bisect.bisect_left(addresses, up(vma.start))
            j = bisect.bisect_left(addresses, down(vma.end))
            if not claimed or i >= j:
                continue
            full = [k for k in range(rows.start + i, rows.start + j) if self._looks_huge(k)]
            if len(full) != claimed:
                self.session.not_seen(
                    f"process {self.pid}: which {claimed} of {len(full)} full tables are mapped by "
                    f"a huge PMD (no PAGEMAP_SCAN)"
                )
                continue
            for k in full:
                row = int.from_bytes(columns.row("pte", k), sys.byteorder)
                mark = int.from_bytes(array("H", [HUGE] * ptrs).tobytes(), sys.byteorder)
                columns.patch("pte", k, (row | mark).to_bytes(2 * ptrs, sys.byteorder))
        columns.rewind()

    def _looks_huge(self, k: int) -> bool:
        columns, ptrs = self.session.columns, self.geometry.ptrs
        flags = array("H", columns.row("pte", k))
        if not all(flag & (PRESENT | ZERO) == PRESENT for flag in flags):
            return False
        if "pfn" not in columns.files:
            return True
        pfns = array("Q", columns.row("pfn", k))
        orders = columns.row("folio_order", k) if "folio_order" in columns.files else b""
        consecutive = pfns == array("Q", range(pfns[0], pfns[0] + ptrs))
        return consecutive and (not orders or 1 << orders[0] == ptrs)

    def _measure_tearing(self, reader: TableReader, rows: range) -> None:
        """Look at VMAs and tables once more, and count what is no longer as it was read."""
        columns, pmd = self.session.columns, self.geometry.pmd
        now = {vma.identity for vma in read_vmas(self.pid, "maps")}
        before = {vma.identity for vma in self.vmas}
        step = max(1, -(-len(rows) // AGAIN_TABLES))
        sample = {columns.address[k]: k for k in rows[::step]}
        self.tearing["vmas_changed"] = len(now ^ before)
        self.tearing["tables"] = len(rows)
        self.tearing["tables_read_again"] = len(sample)
        windows = [(address, address + pmd) for address in sample]
        for batch in reader.batches(windows):
            parts = self.session.parts(batch, reader.scanner, physical=False)
            for k, address in enumerate(batch.addresses):
                if address in sample:
                    self._compare(sample.pop(address), k, parts)
        for k in sample.values():
            self._compare(k, 0, {"pte": bytes(2 * self.geometry.ptrs)})
        columns.rewind()

    def _compare(self, row: int, k: int, parts: dict[str, bytes]) -> None:
        changed = 0
        for name, data in parts.items():
            size = self.geometry.ptrs * Columns.WIDTH[name]
            kind = "H" if name == "pte" else "Q"
            old = array(kind, self.session.columns.row(name, row))
            new = array(kind, bytes(data[k * size : (k + 1) * size]))
            if name == "pte" and not self.session.privilege["pagemap_scan"]:
                old = array(kind, (flags & ~(HUGE | ZERO) for flags in old))
                new = array(kind, (flags & ~(HUGE | ZERO) for flags in new))
            if old != new:
                changed = max(changed, sum(map(operator.ne, old, new)))
        self.tearing["tables_changed"] += bool(changed)
        self.tearing["pages_changed"] += changed


def open_pagemap(pid: int) -> int:
    """A descriptor of /proc/PID/pagemap; CaptureError where it cannot be opened."""
    try:
        return os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    except PermissionError:
        raise not_ours(pid) from None
    except OSError as error:
        raise (gone(pid) if error.errno in (errno.ESRCH, errno.ENOENT) else error) from None


# --- what the host and the process say of themselves -------------------------------------------


def sysfs_settings() -> dict[str, str]:
    """Every readable file of the transparent_hugepage tree and two of ksm, by relative path."""
    mm = os.path.dirname(THP)
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(THP) for name in names]
    found = {os.path.relpath(path, THP): text(path) for path in sorted(paths)}
    for name in ("ksm/run", "ksm/use_zero_pages"):
        found["../" + name] = text(f"{mm}/{name}")
    return {path: value for path, value in found.items() if value is not None}


def host_facts() -> dict[str, Any]:
    """What the host tells of itself: kernel, memory, swap, nodes, CPUs."""
    names = "MemTotal|MemFree|MemAvailable|SwapTotal|SwapFree"
    amounts = re.findall(rf"^({names}):\s+(\d+) kB", text("/proc/meminfo") or "", re.M)
    node = "/sys/devices/system/node"
    rows = {
        os.path.basename(os.path.dirname(path)): (text(path) or "").split()
        for path in sorted(glob.glob(node + "/node[0-9]*/distance"))
    }
    return {
        "hostname": platform.node(),
        "kernel": platform.release(),
        "version": text("/proc/version"),
        "machine": platform.machine(),
        "sysfs": sysfs_settings(),
        "buddyinfo": text("/proc/buddyinfo"),
        "meminfo": {name: int(kib) << 10 for name, kib in amounts},
        "swaps": text("/proc/swaps"),
        "nodes": {
            "online": text(node + "/online"),
            "distance": {name: [int(value) for value in row] for name, row in rows.items()},
            "zone_reclaim_mode": number("/proc/sys/vm/zone_reclaim_mode"),
        },
        "cpus": os.cpu_count(),
    }


def cgroup_mounts() -> dict[str, str]:
    """Where cgroup v2 ("") and the v1 memory controller ("memory") are mounted."""
    mounts: dict[str, str] = {}
    for line in (text("/proc/self/mounts") or "").splitlines():
        _, folder, kind, options = line.split()[:4]
        if kind == "cgroup2":
            mounts[""] = folder
        elif kind == "cgroup" and "memory" in options.split(","):
            mounts["memory"] = folder
    return mounts


MEMCG_FILES = {
    "": {
        "limit": "memory.max", "usage": "memory.current", "high": "memory.high",
        "swap_limit": "memory.swap.max", "swap_usage": "memory.swap.current",
    },
    "memory": {"limit": "memory.limit_in_bytes", "usage": "memory.usage_in_bytes"},
}  # fmt: skip


def reclaimable(path: str) -> int | None:
    """Bytes of a memory.stat that reclaim takes without swap: page cache, and slab where counted."""
    stat = dict(line.split() for line in (text(path) or "").splitlines())
    prefix = "total_" if "total_active_file" in stat else ""
    names = (f"{prefix}active_file", f"{prefix}inactive_file", "slab_reclaimable")
    return sum(int(stat.get(name, 0)) for name in names) if stat else None


def memcg_of(pid: int) -> tuple[str | None, dict[str, Any] | None]:
    """The process's cgroup path, and the memory limits of whichever ancestor has least room."""
    groups = dict(
        line.split(":", 2)[1:] for line in (text(f"/proc/{pid}/cgroup") or "").splitlines()
    )
    mounts = cgroup_mounts()
    tightest: dict[str, Any] | None = None
    for controller, files in MEMCG_FILES.items():
        path, mount = groups.get(controller), mounts.get(controller)
        while path is not None and mount is not None:
            folder = mount + path.rstrip("/")
            limits: dict[str, Any] = {k: number(f"{folder}/{name}") for k, name in files.items()}
            limits["path"] = path
            limits["reclaimable"] = reclaimable(f"{folder}/memory.stat")
            if limits["limit"] is not None and limits["limit"] < 1 << 60:
                room = limits["limit"] - (limits["usage"] or 0)
                if tightest is None or room < tightest["limit"] - (tightest["usage"] or 0):
                    tightest = limits
            path = None if path == "/" else os.path.dirname(path)
    return groups.get("memory", groups.get("")), tightest


def read_status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status that the file keeps; says why a process has no pages."""
    lines = (text(f"/proc/{pid}/status") or "").splitlines()
    fields = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "State" not in fields:
        raise CaptureError(f"no process {pid}", USAGE)
    if fields.get("Tgid", str(pid)) != str(pid):
        raise CaptureError(f"{pid} is a thread: capture its process {fields['Tgid']}", USAGE)
    if fields["State"][0] in "ZX":
        raise CaptureError(f"process {pid} has ended (zombie): it has no address space", USAGE)
    if fields.get("Kthread") == "1" or "VmSize" not in fields:
        raise CaptureError(f"process {pid} is a kernel thread: it has no address space", USAGE)
    keep = ("Name", "State", "Uid", "Threads", "THP_enabled", "VmRSS", "RssAnon", "VmSwap", "VmPTE")
    return {key: fields[key] for key in keep if key in fields}


def numa_policies(pid: int) -> dict[str, list[str]]:
    """VMA start (hex) -> policy and pages per node, from numa_maps; {} on a one-node host."""
    if len(glob.glob("/sys/devices/system/node/node[0-9]*")) < 2:
        return {}
    lines = [line.split() for line in (text(f"/proc/{pid}/numa_maps") or "").splitlines()]
    return {w[0]: [w[1], *(x for x in w[2:] if re.match(r"N\d+=", x))] for w in lines if w}


def describe_process(reader: ProcessReader, status: dict[str, str], command: str) -> dict[str, Any]:
    """The entry of one process in meta. command: as /proc/PID/cmdline has it."""
    pid = reader.pid
    cgroup, memcg = memcg_of(pid)
    policies = numa_policies(pid)
    try:
        exe: str | None = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        exe = None
    vmas = []
    for vma in reader.vmas:
        entry: dict[str, Any] = {
            "start": vma.start, "end": vma.end, "perms": vma.perms, "offset": vma.offset,
            "dev": vma.dev, "inode": vma.inode, "path": vma.path, "flags": vma.flags,
            **vma.sizes, "skipped": vma.skipped,
        }  # fmt: skip
        if f"{vma.start:x}" in policies:
            entry["numa"] = policies[f"{vma.start:x}"]
        vmas.append(entry)
    thp = status.get("THP_enabled")
    return {
        "pid": pid,
        "comm": status["Name"],
        "cmdline": command.split("\0")[:-1],
        "exe": exe,
        "cgroup": cgroup,
        "memcg": memcg,
        "status": status,
        "thp_disable": None if thp is None else thp == "0",
        "tearing": reader.tearing,
        "vmas": vmas,
    }


# --- redaction ---------------------------------------------------------------------------------

ADDRESS_LIMIT = 1 << 56
KEPT_PATHS = ("[heap]", "[stack]", "[vdso]", "[vvar]", "/dev/zero")


def redact(meta: dict[str, Any], columns: Columns) -> None:
    """Take names out, and move each process by its own random number of whole tables."""
    pmd = columns.geometry.pmd
    meta.update(hostname=None, version=None)
    meta["swaps"] = re.sub(r"(?m)^(?!Filename)\S+", "-", meta["swaps"] or "")
    shifts = array("q")
    for process in meta["processes"]:
        process.update(comm=None, cmdline=None, exe=None, cgroup=None)
        process["status"].pop("Name", None)
        process["status"].pop("Uid", None)
        if process["memcg"]:
            process["memcg"]["path"] = None
        vmas = [vma for vma in process["vmas"] if vma["end"] <= ADDRESS_LIMIT]
        low = vmas[0]["start"] // pmd
        high = -(-vmas[-1]["end"] // pmd)
        shift = (1 + secrets.randbelow(ADDRESS_LIMIT // pmd - (high - low) - 1) - low) * pmd
        shifts.append(shift)
        for vma in vmas:
            path = vma["path"]
            if path not in KEPT_PATHS:
                vma["path"] = "[anon]" if path.startswith("[anon:") else ""
            vma.update(start=vma["start"] + shift, end=vma["end"] + shift)
            vma.update(dev="00:00", inode=0, offset=0)
        process["vmas"] = vmas
    for k, index in enumerate(columns.process):
        columns.address[k] += shifts[index]


# --- one capture -------------------------------------------------------------------------------


NEVER = "never visible: "


class CaptureRun:
    """What one run can see, the columns it fills, and the sentences on what it cannot see."""

    def __init__(self, args: argparse.Namespace, folder: str) -> None:
        self.args = args
        self.geometry = host_geometry()
        self.unseen: list[str] = []
        self._own = open_pagemap(os.getpid())
        self.frame_shift = 0
        self.frames: Frames | None = None
        self.privilege = self._privilege()
        if args.redact:
            self.frame_shift = (1 + secrets.randbelow(1 << 30)) * self.geometry.ptrs
        members = ["pte"]
        if self.privilege["pfn"]:
            members.append("pfn")
        if self.frames is not None:
            members += ["kpageflags", "kpagecount", "folio_order"]
        self.columns = Columns(self.geometry, folder, members)
        self._say_what_is_unseen()

    def close(self) -> None:
        """Close what is open."""
        os.close(self._own)
        if self.frames is not None:
            self.frames.close()
        self.columns.close()

    def _privilege(self) -> dict[str, bool]:
        scanner = Scanner(self._own)
        scan = self.args.reader != "pagemap" and scanner.works()
        if self.args.reader == "scan" and not scan:
            raise CaptureError("this kernel has no PAGEMAP_SCAN (Linux 6.7)", LACKING)
        exclusive = not self.args.no_exclusive or not scan
        anchor = array("Q", [1] * 16)
        word = os.pread(self._own, 8, anchor.buffer_info()[0] // self.geometry.page * 8)
        pfn = exclusive and array("Q", word)[0] & ((1 << 55) - 1) != 0
        flags = _open_or_none("/proc/kpageflags") if pfn else None
        if flags is not None:
            self.frames = Frames(flags, _open_or_none("/proc/kpagecount"), self.geometry)
        return {
            "root": os.geteuid() == 0,
            "pfn": pfn,
            "kpageflags": flags is not None,
            "pagemap_scan": scan,
            "exclusive": not self.args.no_exclusive,
        }

    def not_seen(self, sentence: str) -> None:
        """Remember, once, a sentence on what could not be seen."""
        if sentence not in self.unseen:
            self.unseen.append(sentence)

    def _say_what_is_unseen(self) -> None:
        if self.frames is None:
            why = "" if self.privilege["exclusive"] else " or without the exclusive bit"
            self.not_seen(
                f"not root{why}: folio orders, folio flags (locked, referenced, on the LRU)"
            )
            self.not_seen("not root: how many processes share a page")
        if not self.privilege["exclusive"]:
            self.not_seen("--no-exclusive: which pages are mapped by this process alone")
        if not self.privilege["pagemap_scan"] and self.frames is None:
            self.not_seen("no PAGEMAP_SCAN: zero pages look like shared pages")
        for always in (
            "pins (GUP) and other extra references",
            "young and dirty bits of the PTEs",
            "folios waiting in per-CPU LRU batches",
            "locks held for a moment",
            "which VMAs already have an anon_vma although nothing was written",
        ):
            self.not_seen(NEVER + always)

    def table_reader(self, pid: int, pagemap: int) -> TableReader:
        """The reader of one process, by PAGEMAP_SCAN where it works."""
        scanner = None
        if self.privilege["pagemap_scan"]:
            scanner = Scanner(pagemap)
            scanner.works()
        exclusive = self.privilege["exclusive"]
        return TableReader(pid, pagemap, self.geometry, scanner, exclusive)

    def parts(
        self, batch: Batch, scanner: Scanner | None, physical: bool = True
    ) -> dict[str, bytes]:
        """A batch as the bytes of each member; clears the flags in batch.words on the way."""
        parts: dict[str, bytes] = {}
        if "pfn" in self.columns.files and batch.words is not None:
            words = batch.words
            words[_byte(7) :: 8] = bytes(len(batch.low))
            if not words[_byte(6) :: 8].isascii():
                words[_byte(6) :: 8] = words[_byte(6) :: 8].translate(LOW_7_BITS)
            pfns = array("Q", bytes(words))
            here = pfns
            if batch.low.translate(None, NOT_SWAPPED):
                here = array("Q", (p * (f & PRESENT) for p, f in zip(pfns, batch.low)))
            if physical and self.frames is not None:
                self._add_physical(parts, here, batch, scanner)
            if self.frame_shift:
                here = array("Q", (p + self.frame_shift if p else 0 for p in here))
                pfns = here
            parts["pfn"] = pfns.tobytes()
        flags = bytearray(2 * len(batch.low))
        first, second = (0, 1) if sys.byteorder == "little" else (1, 0)
        flags[first::2] = batch.low
        if batch.high is not None:
            flags[second::2] = batch.high
        parts["pte"] = bytes(flags)
        return parts

    def _add_physical(
        self, parts: dict[str, bytes], pfns: array[int], batch: Batch, scanner: Scanner | None
    ) -> None:
        assert self.frames is not None
        flags, counts, orders = self.frames.look_up(pfns)
        if scanner is None and flags[_byte(3) :: 8].translate(None, EVEN):
            for k, flag in enumerate(memoryview(flags).cast("Q")):
                if flag & KPF_ZERO_PAGE:
                    batch.low[k] = as_zero(batch.low[k], ZERO | (HUGE if flag & KPF_THP else 0))
        parts["kpageflags"], parts["kpagecount"], parts["folio_order"] = flags, counts, orders

    def meta(self, processes: list[dict[str, Any]], frozen: bool) -> dict[str, Any]:
        """The document that describes the whole capture."""
        names = ("vmas_changed", "tables_changed", "pages_changed", "tables_read_again", "tables")
        tearing: dict[str, Any] = {
            name: sum(process["tearing"][name] for process in processes) for name in names
        }
        tearing["how"] = (
            f"after a process was read, its VMA list was read again, and so were all its tables, "
            f"or {AGAIN_TABLES} of them evenly spaced if it has more; tables empty the first time "
            "were not looked at again"
        )
        return {
            "schema": SCHEMA,
            "tool": TOOL,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **host_facts(),
            "page_size": self.geometry.page,
            "pmd_size": self.geometry.pmd,
            "privilege": self.privilege,
            "unseen": self.unseen,
            "tearing": tearing,
            "frozen": frozen,
            "redacted": self.args.redact,
            "processes": processes,
        }


def _open_or_none(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:
        return None


def host_geometry() -> PageSizes:
    """Page and PMD size of this host; CaptureError (5) where it lacks something."""
    if not os.path.exists("/proc/self/pagemap"):
        raise CaptureError("this host has no /proc/PID/pagemap (CONFIG_PROC_PAGE_MONITOR)", LACKING)
    if not os.path.isdir(THP):
        raise CaptureError("this kernel has no transparent huge pages", LACKING)
    page = os.sysconf("SC_PAGE_SIZE")
    return PageSizes(page, number(THP + "/hpage_pmd_size") or 2 << 20)


def pids_of_cgroup(path: str) -> list[int]:
    """Processes of a cgroup and of those below it; a relative path is one of cgroup v2."""
    folder = path
    if not os.path.exists(os.path.join(folder, "cgroup.procs")):
        folder = cgroup_mounts().get("", "/sys/fs/cgroup") + "/" + path.strip("/")
    if not os.path.exists(os.path.join(folder, "cgroup.procs")):
        raise CaptureError(f"no cgroup {path}", USAGE)
    found = [os.path.join(here, "cgroup.procs") for here, _, _ in os.walk(folder)]
    pids = {int(pid) for procs in found for pid in (text(procs) or "").split()} - {0, os.getpid()}
    if not pids:
        raise CaptureError(f"cgroup {path} has no processes", USAGE)
    return sorted(pids)


@contextlib.contextmanager
def frozen(pids: list[int], wanted: bool) -> Iterator[None]:
    """Stop the processes while the body runs; those that were stopped already stay stopped."""
    stopped: list[int] = []
    try:
        for pid in pids if wanted else ():
            if _state(pid) not in "Tt":
                stopped.append(pid)
                os.kill(pid, signal.SIGSTOP)
        deadline = time.monotonic() + 5
        while any(_state(pid) not in "TtZX?" for pid in stopped):
            if time.monotonic() > deadline:
                raise CaptureError("a process did not stop within 5 seconds")
            time.sleep(0.001)
        yield
    except PermissionError as error:
        raise CaptureError(f"cannot stop the process: {error.strerror}", USAGE) from None
    finally:
        for pid in stopped:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)


def _state(pid: int) -> str:
    match = re.search(r"^State:\s+(\S)", text(f"/proc/{pid}/status") or "", re.M)
    return match[1] if match else "?"


def may_freeze(args: argparse.Namespace, pids: list[int]) -> bool:
    """Whether to stop the processes; asks unless --yes was given."""
    if not args.freeze or args.yes:
        return bool(args.freeze)
    if not sys.stdin.isatty():
        raise CaptureError("--freeze asks on the terminal, and there is none: add --yes", USAGE)
    names = ", ".join(f"{pid} ({text(f'/proc/{pid}/comm')})" for pid in pids)
    print(f"Stop {names} while it is read? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CaptureError("not frozen, nothing read", FAILED)
    return True


def read_processes(session: CaptureRun, pids: list[int]) -> Iterator[dict[str, Any]]:
    """Each process described; one that ends is an error, unless a whole cgroup was asked for."""
    last: CaptureError | None = None
    index = 0
    for pid in pids:
        reader = ProcessReader(pid, index, session)
        rows = len(session.columns.address)
        try:
            status = read_status(pid)
            # Before the pages: where it was swapped out, this brings it back.
            command = text(f"/proc/{pid}/cmdline") or ""
            reader.read()
        except CaptureError as error:
            if not session.args.cgroup:
                raise
            last = error
            session.columns.truncate(rows)
            session.not_seen(str(error))
            continue
        index += 1
        yield describe_process(reader, status, command)
    if last is not None and not index:
        raise last


@contextlib.contextmanager
def replacing(path: str) -> Iterator[IO[bytes]]:
    """A file of mode 0600 beside path, renamed to it when the body ends well."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise CaptureError(f"{path} is not a regular file", USAGE)
    try:
        handle, temporary = tempfile.mkstemp(
            prefix=".mthp-snap-", dir=os.path.dirname(os.path.abspath(path))
        )
    except OSError as error:
        raise CaptureError(f"cannot write {path}: {error.strerror}", USAGE) from None
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def capture(args: argparse.Namespace) -> str:
    """Do what the arguments say; returns the line for stderr."""
    began = time.monotonic()
    pids = sorted(set(args.pid or ())) if not args.cgroup else pids_of_cgroup(args.cgroup)
    if len(pids) > 65535:
        raise CaptureError("more than 65535 processes", USAGE)
    for pid in () if args.cgroup else pids:
        read_status(pid)
    folder = os.path.dirname(os.path.abspath(args.output))
    with replacing(args.output) as file, contextlib.closing(CaptureRun(args, folder)) as session:
        freeze = may_freeze(args, pids)
        with frozen(pids, freeze):
            processes = list(read_processes(session, pids))
        meta = session.meta(processes, freeze)
        if args.redact:
            redact(meta, session.columns)
        write_file(file, meta, session.columns)
        size, tables = file.tell(), len(session.columns.address)
    torn = meta["tearing"]["pages_changed"]
    return (
        f"{len(processes)} process(es), {tables} tables, {size >> 10} KiB in "
        f"{time.monotonic() - began:.2f} s to {args.output}; {torn} pages changed meanwhile; "
        f"not seen: {'; '.join(sentence.replace(NEVER, '') for sentence in session.unseen)}"
    )


# --- command line ------------------------------------------------------------------------------


def _pid(value: str) -> int:
    pid = os.getpid() if value == "self" else int(value) if value.isdigit() else 0
    if pid <= 0:
        raise argparse.ArgumentTypeError(f"not a pid: {value!r}")
    return pid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, for this file alone and for `mthp snap`."""
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--pid", type=_pid, action="append", metavar="N", help="may be repeated")
    target.add_argument("--cgroup", metavar="PATH", help="every process of a cgroup")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="mode 0600")
    parser.add_argument("--redact", action="store_true", help="drop names, shift addresses")
    parser.add_argument("--freeze", action="store_true", help="SIGSTOP while reading; asks first")
    parser.add_argument("--yes", action="store_true", help="do not ask before --freeze")
    parser.add_argument(
        "--no-exclusive", action="store_true", help="skip the exclusive bit: faster"
    )
    parser.add_argument("--quiet", action="store_true", help="errors only")
    parser.add_argument(
        "--reader", choices=("auto", "scan", "pagemap"), default="auto", help=argparse.SUPPRESS
    )


def _stop(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def run(args: argparse.Namespace, prog: str = "mthp snap") -> int:
    """Capture; one line on stderr, whatever happens. Returns the exit code."""
    before: list[tuple[int, Callable[..., Any] | int | None]] = []
    with contextlib.suppress(ValueError):  # not in the main thread: leave signals alone
        before = [(n, signal.signal(n, _stop)) for n in (signal.SIGTERM, signal.SIGHUP)]
    try:
        line = capture(args)
        if not args.quiet:
            print(f"{prog}: {line}", file=sys.stderr)
        return OK
    except CaptureError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"{prog}: interrupted, nothing written", file=sys.stderr)
        return FAILED
    finally:
        for number_, handler in before:
            signal.signal(number_, handler)


def main(argv: list[str] | None = None, prog: str = "capture.py") -> int:
    """Parse, capture, write; an exit code."""
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USAGE
    return run(args, prog)


if __name__ == "__main__":
    sys.exit(main())
