# SPDX-License-Identifier: GPL-2.0-or-later
"""The fast twin of a capture's look at frames: NumPy does a batch of tables at once.

Hosts that have nothing but Python look by image/capture/frames.py, which comes to the same.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mthp.image.capture.frames import BROKEN, KPF_HEAD, KPF_TAIL, Frames
from mthp.image.capture.pagemap import EXCLUSIVE, HUGE, PFN, PRESENT

NEAR = 16
"""Frames that are no further apart are read by one call, with what is between them: another call costs
as much."""
_SHIFT = NEAR.bit_length() - 1
_FEW = 1 << 12
"""Frames that are not worth looking for a way to find together."""
_ROW = 64
"""Where so many frames and fewer lie in a row, the next may well be another batch's."""
_SPREAD, _MOST_BLOCKS = 64, 1 << 23
"""More blocks of frames for each frame than this, or in all, are too many to note where each lies."""
_MOST_BYTES = 256 << 20
"""Of a file, as many are kept of all frames that are found together."""
_SAMPLE, _SOME = 1 << 14, 1 << 8
"""Bytes of pagemap that tell how frames lie, where so many frames are among them."""
_MAP_NORESERVE = 0x4000  # not in the mmap module before Python 3.13


class KnownFlags:
    """What a file of /proc has of frames below `end`, each word at the frame's place; nothing is kept of
    what was not read."""

    def __init__(self, file: int, end: int) -> None:
        self.file = file
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        memory = mmap.mmap(-1, 8 * end, flags=flags)
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        self._bytes = memoryview(memory)
        self.words = np.frombuffer(memory, np.uint64)

    def read(self, first: int, end: int) -> None:
        """Read what the file has of frames from one on; beyond its end there is nothing."""
        at, end = 8 * first, 8 * end
        while at < end and (got := os.preadv(self.file, [self._bytes[at:end]], at)):
            at += got


class FramesAtOnce(Frames):
    """As Frames; frames that lie apart are marked, found and told together."""

    def lie_apart(self, words: bytearray) -> bool:
        """As Frames.lie_apart()."""
        frames, rows = rows_among(words)
        return frames >= _SOME and rows * _ROW > frames

    def ahead(self, words: list[bytearray]) -> KnownFlags | None:
        """As Frames.ahead()."""
        frames = [found for each in words if len(found := _frames_of(each))]
        number = sum(map(len, frames))
        if number < _FEW:
            return None
        first = min(int(each.min()) for each in frames) >> _SHIFT
        blocks = (max(int(each.max()) for each in frames) >> _SHIFT) + 1 - first
        if blocks > min(_SPREAD * number, _MOST_BLOCKS):
            return None
        there = np.zeros(blocks, np.bool_)
        for each in frames:
            there[(each >> _SHIFT) - first] = True
        if 8 * NEAR * int(np.count_nonzero(there)) > _MOST_BYTES:
            return None
        try:
            known = KnownFlags(self.flags, NEAR * (first + blocks))
        except OSError:  # no address space is left, or none is lent (vm.overcommit_memory 2)
            return None
        borders = np.diff(there.view(np.int8), prepend=np.int8(0), append=np.int8(0)).nonzero()[0]
        ends = iter((NEAR * (borders + first)).tolist())
        for start, end in zip(ends, ends, strict=True):
            known.read(start, end)
        return known

    def look_up(
        self, pfns: array[int], low: bytes, known: KnownFlags | None = None
    ) -> tuple[bytes, bytes, bytes]:
        """As Frames.look_up()."""
        if known is None:
            return super().look_up(pfns, low)
        asked, bits = np.frombuffer(pfns, np.uint64), np.frombuffer(low, np.uint8)
        # Of most tables that are there little is populated.
        (there,) = (bits & PRESENT).nonzero()
        frames = asked[there].astype(np.int64)
        flags = known.words[frames]
        orders = np.zeros(len(frames), np.uint8)
        compound = flags & np.uint64(KPF_HEAD | KPF_TAIL) != 0
        once = bits[there] & EXCLUSIVE != 0
        once &= bits[there] & HUGE == 0 if self.tells_huge else ~compound
        if compound.any():
            blocks = np.unique(frames[compound] // self.block)
            whole = (blocks[:, None] * self.block + np.arange(self.block)).reshape(-1)
            words = _words(self.flags, whole)
            sizes = _orders(words, self.block)
            theirs = np.isin(frames // self.block, blocks)
            at = np.searchsorted(whole, frames[theirs])
            flags[theirs], orders[theirs] = words[at], sizes[at]
        counts = np.full(len(there), self.counts is not None, np.uint32)
        if self.counts is not None and not once.all():
            several, at = np.unique(frames[~once], return_inverse=True)
            counts[~once] = _words(self.counts, several)[at]

        def spread(words: NDArray[Any]) -> bytes:
            whole = np.zeros(len(asked), words.dtype)
            whole[there] = words
            return whole.tobytes()

        return spread(flags), spread(counts), spread(orders)


def _frames_of(words: bytearray) -> NDArray[np.int64]:
    """The frames that words of pagemap name, in their order."""
    entries = np.frombuffer(words, np.int64)
    frames: NDArray[np.int64] = entries[entries < 0] & PFN  # bit 63: present
    return frames


def rows_among(words: bytearray) -> tuple[int, int]:
    """How many frames the first words of pagemap name, and in how many rows these lie."""
    frames = _frames_of(words[:_SAMPLE])
    return len(frames), int(np.count_nonzero(np.abs(np.diff(frames)) != 1)) + 1


def _words(file: int, frames: NDArray[np.int64]) -> NDArray[np.uint64]:
    """What one of the two files has of ascending frames."""
    starts = np.flatnonzero(np.diff(frames, prepend=-NEAR - 1) > NEAR)
    firsts, counts = frames[starts], np.diff(starts, append=len(frames))
    sizes = frames[starts + counts - 1] + 1 - firsts
    at = np.cumsum(sizes) - sizes
    words = _read_runs(file, firsts, sizes)
    found: NDArray[np.uint64] = words[frames + np.repeat(at - firsts, counts)]
    return found


def _read_runs(
    file: int, firsts: NDArray[np.int64], sizes: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """What one of the two files has of runs of frames, one behind the other; 0 beyond its end."""
    at = np.cumsum(sizes) - sizes
    words = np.zeros(int(sizes.sum()), np.uint64)
    view = words.data.cast("B")
    pread = os.preadv
    for start, first, size in (8 * np.stack([at, firsts, sizes], axis=1)).tolist():
        done = pread(file, [view[start : start + size]], first)
        while done < size and (
            got := pread(file, [view[start + done : start + size]], first + done)
        ):
            done += got
    return words


def _orders(words: NDArray[np.uint64], block: int) -> NDArray[np.uint8]:
    """The order of each frame's folio, or BROKEN, in whole blocks; lends tails their head's flags."""
    tail = words & np.uint64(KPF_TAIL) != 0
    head = (words & np.uint64(KPF_HEAD) != 0) & ~tail
    before = np.zeros(len(words), np.bool_)
    before[1:] = (head | tail)[:-1]
    before[::block] = False
    begins = head | (tail & ~before)
    (starts,) = begins.nonzero()
    (pages,) = (head | tail).nonzero()
    folio = (np.cumsum(begins) - 1)[pages]
    nr = np.bincount(folio, minlength=len(starts))
    whole = head[starts] & (nr > 1) & (nr & (nr - 1) == 0) & (starts % nr == 0)
    orders = np.zeros(len(words), np.uint8)
    orders[pages] = np.where(whole, np.log2(nr).astype(np.uint8), BROKEN)[folio]
    lent = words[starts] & ~np.uint64(KPF_HEAD)
    lends = whole & (lent & ~words[np.minimum(starts + 1, len(words) - 1)] != 0)
    lent[~lends] = 0
    words[pages] |= np.where(tail[pages], lent[folio], 0)
    return orders
