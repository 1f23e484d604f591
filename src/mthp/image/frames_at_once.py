# SPDX-License-Identifier: GPL-2.0-or-later
"""The fast twin of a capture's look at frames: NumPy does a batch of tables at once.

Hosts that have nothing but Python look by image/capture/frames.py, which comes to the same.
"""

from __future__ import annotations

import os
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mthp.image.capture.frames import BROKEN, KPF_HEAD, KPF_TAIL, Frames
from mthp.image.capture.pagemap import EXCLUSIVE, PRESENT

NEAR = 16
"""Frames that are no further apart are read by one call, with what is between them: another call costs
as much."""


class FramesAtOnce(Frames):
    """As Frames; frames near one another are read together, and compound pages by whole blocks."""

    batch_bytes = 1 << 21

    def look_up(self, pfns: array[int], low: bytes) -> tuple[bytes, bytes, bytes]:
        """As Frames.look_up()."""
        asked = np.frombuffer(pfns, np.uint64)
        # Of most tables that are there little is populated.
        (there,) = (np.frombuffer(low, np.uint8) & PRESENT).nonzero()
        distinct, inverse = np.unique(asked[there], return_inverse=True)
        frames = distinct.astype(np.int64)
        flags = _words(self.flags, frames)
        orders = np.zeros(len(frames), np.uint8)
        compound = flags & np.uint64(KPF_HEAD | KPF_TAIL) != 0
        once = (np.frombuffer(low, np.uint8)[there] & EXCLUSIVE != 0) & ~compound[inverse]
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
            several, at = np.unique(inverse[~once], return_inverse=True)
            counts[~once] = _words(self.counts, frames[several])[at]

        def spread(words: NDArray[Any]) -> bytes:
            whole = np.zeros(len(asked), words.dtype)
            whole[there] = words
            return whole.tobytes()

        return spread(flags[inverse]), spread(counts), spread(orders[inverse])


def _words(file: int, frames: NDArray[np.int64]) -> NDArray[np.uint64]:
    """What one of the two files has of ascending frames."""
    if not len(frames):
        return np.zeros(0, np.uint64)
    starts = np.flatnonzero(np.diff(frames, prepend=-NEAR - 1) > NEAR)
    firsts, counts = frames[starts], np.diff(starts, append=len(frames))
    sizes = frames[starts + counts - 1] + 1 - firsts
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
    found: NDArray[np.uint64] = words[frames + np.repeat(at - firsts, counts)]
    return found


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
