# SPDX-License-Identifier: GPL-2.0-or-later
"""The PAGEMAP_SCAN ioctl: which regions of a process hold what (Linux 6.7 and later).

Kernel: fs/proc/task_mmu.c, do_pagemap_scan().
"""

from __future__ import annotations

import errno
import fcntl
import os
from array import array
from typing import Iterator

from mthp.image.capture.pagemap import GUARD, HUGE, PRESENT, SOFT_DIRTY, SWAPPED, ZERO

# PAGEMAP_SCAN. Kernel: include/uapi/linux/fs.h.
PAGEMAP_SCAN = 0xC0606610
IS_PRESENT, IS_SWAPPED, IS_PFNZERO, IS_HUGE, IS_SOFT_DIRTY, IS_GUARD = (1 << k for k in range(3, 9))
POPULATED = IS_PRESENT | IS_SWAPPED
PROBE = 16
"""Regions (and, when pagemap is read anyway, pages) asked for in one PAGEMAP_SCAN."""


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
