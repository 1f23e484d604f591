# SPDX-License-Identifier: GPL-2.0-or-later
"""The page tables of a process in a dump, as the words that /proc/PID/pagemap would show.

Kernel: fs/proc/task_mmu.c, pte_to_pagemap_entry() and pagemap_pmd_range_thp();
arch/x86/include/asm/pgtable_64.h (entries that are not present), include/linux/swapops.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.image.capture.deep import DeepReader
from mthp.image.capture.frames import KPF_ANON
from mthp.image.capture.pagemap import HUGE, PRESENT, ZERO, Batch, as_zero
from mthp.image.capture.pages import GLOBAL, HUGE_PAGE, PRESENT_BIT
from mthp.image.capture.proc import SmapsEntry
from mthp.image.capture.tables import ReadJob, TableReader
from mthp.image.vmcore.frames import DumpFrames, FrameFacts
from mthp.words.units import Geometry

Words = NDArray[np.uint64]
_SPECIAL = 1 << 9
_SOFT_DIRTY, _UFFD = 1 << 11, 1 << 10
_SWP_SOFT_DIRTY, _SWP_UFFD = 1 << 1, 1 << 2
_TYPE_SHIFT, _OFFSET_BITS, _OFFSET_SHIFT = 59, 5, 14
_MARKER = 31
"""The last type of swap entries. Kernel: SWP_PTE_MARKER."""
_MARKER_UFFD, _MARKER_GUARD = 1, 4
_FRAME_BITS = (1 << 40) - 1
_TO_ZERO = np.array([as_zero(value, ZERO) for value in range(256)], np.uint8)
_TO_HUGE = np.array([as_zero(value, HUGE) for value in range(256)], np.uint8)


class ReadEntries(NamedTuple):
    """The entries of some tables, one after another. words: themselves; frames: what they map, 0 for none;
    present; huge: under a PMD that maps a huge page; zero: of the zero page, small or huge; normal: a page
    with a struct page that counts; swap: a place in swap; marker: neither; facts: of the normal ones."""

    words: Words
    frames: Words
    present: NDArray[np.bool_]
    huge: NDArray[np.bool_]
    zero: NDArray[np.bool_]
    normal: NDArray[np.bool_]
    swap: NDArray[np.bool_]
    facts: FrameFacts


class DumpTables(TableReader):
    """Reads the tables of the process that a deep reader has turned to."""

    def __init__(self, pid: int, deep: DeepReader, frames: DumpFrames, geometry: Geometry) -> None:
        super().__init__(pid, -1, geometry, None, True, frames)
        self._deep, self._dump_frames = deep, frames
        self._soft_dirty = True
        self._zero = self._huge = np.zeros(0, np.bool_)
        self._starts = self._ends = np.zeros(0, np.uint64)

    def windows(self, vmas: list[SmapsEntry]) -> list[tuple[int, int]]:
        """As TableReader.windows()."""
        dirty = [vma for vma in vmas if "sd" in vma.flags.split()]
        self._starts = np.array([vma.start for vma in dirty], np.uint64)
        self._ends = np.array([vma.end for vma in dirty], np.uint64)
        return super().windows(vmas)

    def populated(self, start: int, end: int) -> Iterator[tuple[int, bool]]:
        """The tables in a range that there are, and whether each is one huge page."""
        for address, entry in self._deep.pmds(start, end):
            yield address, bool(entry & HUGE_PAGE and entry & (PRESENT_BIT | GLOBAL))

    def entries(self, addresses: list[int], leafs: list[bool]) -> ReadEntries:
        """Read tables. leafs: whether each is one huge page."""
        deep, nr = self._deep, self._geometry.ptrs_per_pte
        raw = b"".join(map(deep.table, addresses))
        words = np.frombuffer(raw, np.uint64)
        _, found = deep.pages.decode(raw)
        frames = np.frombuffer(found, np.uint64)
        present = words & np.uint64(PRESENT_BIT | GLOBAL) != 0
        huge = np.repeat(np.array(leafs, np.bool_), nr) & present
        source = self._dump_frames
        zero = present & ((frames == np.uint64(source.zero)) | huge & source.in_huge_zero(frames))
        normal = present & ~zero & (huge | (words & np.uint64(_SPECIAL) == 0))
        there = ~present & (words != 0)
        swap = there & (words >> np.uint64(_TYPE_SHIFT) < np.uint64(source.swap_files))
        return ReadEntries(
            words, frames, present, huge, zero, normal, swap, source.facts(frames[normal])
        )

    def _jobs(self, windows: list[tuple[int, int]]) -> Iterator[ReadJob]:
        for start, end in windows:
            for address, _ in self.populated(start, end):
                yield ReadJob([(address, 1)], None)

    def changed(self, batch: Batch) -> dict[int, int]:
        """Nothing in a dump changes."""
        return {}

    def _read(self, runs: list[tuple[int, int]]) -> bytearray:
        addresses = self._addresses(runs)
        pmd = self._geometry.pmd_size
        leafs = [any(leaf for _, leaf in self.populated(at, at + pmd)) for at in addresses]
        read = self.entries(addresses, leafs)
        self._zero, self._huge = read.zero, read.huge
        return bytearray(self._as_pagemap(addresses, read).tobytes())

    def _as_pagemap(self, addresses: list[int], read: ReadEntries) -> Words:
        """The words that pagemap shows."""
        words, one = read.words, np.uint64(1)

        def flag(which: NDArray[np.bool_], bit: int) -> Words:
            return which.astype(np.uint64) << np.uint64(bit)

        there = ~read.present & (words != 0)
        kind = words >> np.uint64(_TYPE_SHIFT)
        offset = ~words << np.uint64(_OFFSET_BITS) >> np.uint64(_OFFSET_SHIFT)
        has_frame = there & ~read.swap & (kind != np.uint64(_MARKER))
        offset = np.where(has_frame, offset & np.uint64(_FRAME_BITS), offset)
        marker = there & (kind == np.uint64(_MARKER))
        guard = marker & (offset & np.uint64(_MARKER_GUARD) != 0)
        uffd = np.where(
            read.present, words & np.uint64(_UFFD) != 0, words & np.uint64(_SWP_UFFD) != 0
        )
        uffd = uffd & (read.present | there) | marker & (offset & one != 0)
        soft = np.where(
            read.present,
            words & np.uint64(_SOFT_DIRTY) != 0,
            there & (words & np.uint64(_SWP_SOFT_DIRTY) != 0),
        )
        soft = (soft | self._in_dirty_vmas(addresses)) & (words != 0)
        nothing = np.uint64(0)
        made: Words = np.where(read.present, read.frames, nothing)
        made |= np.where(there, kind | offset << np.uint64(_OFFSET_BITS), nothing)
        made &= np.uint64((1 << 55) - 1)
        of_file, exclusive = np.zeros_like(read.present), np.zeros_like(read.present)
        of_file[read.normal] = read.facts.flags & np.uint64(KPF_ANON) == 0
        exclusive[read.normal] = read.facts.counts == 1
        for which, bit in (
            (read.present, 63), (there, 62), (of_file, 61), (guard, 58), (uffd, 57), (exclusive, 56),
            (soft, 55),
        ):  # fmt: skip
            made |= flag(which, bit)
        return made

    def _in_dirty_vmas(self, addresses: list[int]) -> NDArray[np.bool_]:
        """Whether each page is in a VMA that is soft-dirty as a whole."""
        size, nr = self._geometry.page_size, self._geometry.ptrs_per_pte
        pages = np.array(addresses, np.uint64)[:, None] + np.arange(
            nr, dtype=np.uint64
        ) * np.uint64(size)
        places = pages.reshape(-1)
        if not len(self._starts):
            return np.zeros(len(places), np.bool_)
        k = np.searchsorted(self._starts, places, "right") - 1
        return np.asarray((k >= 0) & (places < self._ends[np.maximum(k, 0)]))

    def _mark(self, job: ReadJob, batch: Batch, zero_pages: bool) -> None:
        low = np.frombuffer(batch.low, np.uint8)
        there = low & PRESENT != 0
        for which, made in ((self._zero, _TO_ZERO), (self._huge, _TO_HUGE)):
            low = np.where(which & there, made[low], low)
        batch.low = bytearray(low.astype(np.uint8).tobytes())
