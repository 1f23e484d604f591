# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of /proc/PID/pagemap as bytes of flags, many at a time, and the PAGEMAP_SCAN ioctl.

Kernel: fs/proc/task_mmu.c, pagemap_read() and do_pagemap_scan().
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import re
import sys
from array import array
from typing import Any, Iterator

# Bits of the `pte` member.
PRESENT, SWAPPED, FILE, ZERO, HUGE, SOFT_DIRTY, UFFD_WP, EXCLUSIVE = (1 << k for k in range(8))
GUARD = 1 << 8
BATCH_BYTES = 1 << 19
"""Pagemap bytes held by one batch of tables, where no other size is given: the unit of reading, decoding
and writing."""
PFN = (1 << 55) - 1
"""The bits of a word of pagemap that are not flags: a frame, or a place in swap."""


class Batch:
    """Some tables of a process, decoded: one byte a PTE in low, bits 8-15 in high if any is set.

    words: the same tables as pagemap has them; None where only PAGEMAP_SCAN was asked. runs, before:
    what was read of pagemap, and what it said then. misfits: tables that what was found of their
    frames contradicts, by index. known: what Frames.ahead() found of their frames.
    """

    __slots__ = ("addresses", "before", "high", "known", "low", "misfits", "runs", "words")

    def __init__(self, addresses: list[int], low: bytearray, high: bytearray | None) -> None:
        self.addresses = addresses
        self.low = low
        self.high = high
        self.words: bytearray | None = None
        self.runs: list[tuple[int, int]] = []
        self.before = b""
        self.misfits: list[int] = []
        self.known: Any = None


def byte_of_word(k: int) -> int:
    """Where byte k of a 64-bit word, counted from the lowest, stands in memory."""
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
SWAP_ENTRIES, ZERO_PAGES = (
    re.compile(b"[%s]+" % b"".join(re.escape(bytes((k,))) for k in range(256) if k & flag))
    for flag in (SWAPPED, ZERO)
)
"""Runs of PTEs with one of these flags, in the low bytes of a batch."""
LOW_7_BITS = bytes(value & 0x7F for value in range(256))
# Top bytes that need a second look (a search for one byte is the cheapest test there is). Zero
# pages are present, neither exclusive nor a file's, and so are shared pages; then guards.
MAYBE_ZERO, GUARDS = (0x80, 0x82), (0x44, 0x46)


def _or_bytes(left: bytearray, right: bytearray, mask: bytearray) -> bytearray:
    """Compute left | (right & mask), byte by byte."""
    word = int.from_bytes(right, "little") & int.from_bytes(mask, "little")
    return bytearray((int.from_bytes(left, "little") | word).to_bytes(len(left), "little"))


def decode_words(words: bytearray, soft_dirty: bool) -> tuple[bytearray, bytearray | None, bool]:
    """From pagemap words: low bytes of the PTE flags, high bytes if any is set, and maybe zero
    pages.

    soft_dirty: whether this kernel keeps that bit at all (CONFIG_MEM_SOFT_DIRTY).
    """
    top = words[byte_of_word(7) :: 8]
    low = top.translate(LOW_OF_TOP)
    below = words[byte_of_word(6) :: 8] if soft_dirty else low[:0]
    if not below.isascii():
        low = _or_bytes(low, below.translate(SOFT_OF_BYTE), low.translate(SOFT_IF_ANY))
    high = top.translate(HIGH_OF_TOP) if any(value in top for value in GUARDS) else None
    return low, high, any(value in top for value in MAYBE_ZERO)


def without(kind: re.Pattern[bytes], pfns: array[int], low: bytearray) -> array[int]:
    """The frames of PTEs, 0 for those whose low bytes are of a kind."""
    words = None
    for match in kind.finditer(low):
        words = words or bytearray(pfns)
        i, j = match.span()
        words[8 * i : 8 * j] = bytes(8 * (j - i))
    return array("Q", bytes(words)) if words else pfns


def as_zero(value: int, flags: int) -> int:
    """Add the flags; a zero page is neither a file's nor exclusive, whatever pagemap says."""
    return (value | flags) & ~(FILE | EXCLUSIVE) if flags & ZERO else value | flags


@functools.lru_cache(maxsize=None)
def keeps_soft_dirty() -> bool:
    """Whether the kernel tracks soft-dirty pages: then it marks every new VMA so, ours too."""
    with open("/proc/self/smaps", "rb", buffering=0) as file:
        first = re.search(rb"^VmFlags:(.*)$", file.read(4096), re.M)
    return first is None or b" sd" in first[1]


# PAGEMAP_SCAN. Kernel: include/uapi/linux/fs.h.
PAGEMAP_SCAN = 0xC0606610
IS_FILE = 1 << 2
IS_PRESENT, IS_SWAPPED, IS_PFNZERO, IS_HUGE, IS_SOFT_DIRTY, IS_GUARD = (1 << k for k in range(3, 9))
POPULATED = IS_PRESENT | IS_SWAPPED
PROBE = 16
"""Regions (and, when pagemap is read anyway, pages) asked for in one PAGEMAP_SCAN."""


class Scanner:
    """The PAGEMAP_SCAN ioctl on one open pagemap (Linux 6.7 and later).

    top: the address at which the process's last mapping ends. Of a range that goes on beyond all addresses
    a process may have the kernel says EFAULT: fs/proc/task_mmu.c, pagemap_scan_get_args().
    """

    def __init__(self, pagemap: int) -> None:
        self._pagemap = pagemap
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._vector = array("Q", bytes(24 * PROBE))
        self._guard = IS_GUARD
        self.top = 1 << 64

    def works(self) -> bool:
        """Ask once for nothing, and learn whether the kernel reports guard regions (6.15)."""
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
        """Regions (start, end, categories) with any of the categories, a file's pages left out, and
        whether there may be more.

        pages: stop after so many pages; 0: no limit.

        walk_end is not used: it can be stale when the vector got full exactly at a flush.
        """
        end = min(end, self.top)
        if start > end:
            return [], False
        returned = POPULATED | IS_PFNZERO | IS_HUGE | IS_SOFT_DIRTY | self._guard
        vector = self._vector
        where = vector.buffer_info()[0]
        argument = array(
            "Q", (96, 0, start, end, 0, where, PROBE, pages, IS_FILE, IS_FILE, anyof, returned)
        )
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
    return flags if flags & PRESENT else flags & ~HUGE  # a huge page that is being migrated
