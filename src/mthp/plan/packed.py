# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables as packed bits, and the aligned windows of each order that have all of their pages.

Two windows are one of the next order: from pages up, a step each. What a step leaves is folded together
while there are rows to fold, so that each costs half of the one before it, until a table is one word.
tally() and what Numba makes of tally_by_loops() count the same; a test holds both to the windows one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.words.units import Geometry

Bools = NDArray[np.bool_]
Counts = NDArray[np.int64]
Words = NDArray[np.uint64]
"""(rows, n) bits of n tables. Of pages, bit b of row r is page 64 * r + b. Of the windows of an order: where
joined() puts them."""

Tally = Callable[[Words, NDArray[np.intp], Geometry], Counts]

_TABLES_AT_ONCE = 8192
"""So that all of them and what is made of them stay in the cache."""
_BY_LOOPS_AT_ONCE = 1024


class Rung(NamedTuple):
    """From the windows of an order to those of the next. Of two that are joined the second stands `shift`
    bits higher, or, where that is 0, in the next row. first: the places of the first. rows: before it.
    """

    shift: np.uint64
    first: np.uint64
    rows: int


@cache
def steps_of(pmd_order: int) -> tuple[Rung, ...]:
    """The steps from pages to the PMD order."""
    bits = min(pmd_order, 6)
    of_rows = pmd_order - bits
    steps, rows = [], 1 << of_rows
    for order in range(pmd_order):
        # Rows are folded from the highest bit of their number down, so that windows of which it is the
        # lowest bit that differs are joined where that bit went last, or in rows if it never went.
        place = order if order < 6 else of_rows - 1 - (order - 6)
        shift = 1 << place if place < 6 else 0
        first = sum(1 << bit for bit in range(1 << bits) if not bit & shift)
        steps.append(Rung(np.uint64(shift), np.uint64(first), rows))
        rows = max(rows >> 1, 1)
    return tuple(steps)


def pack(bools: Bools) -> Words:
    """(n, PTRS) truth values of pages, packed."""
    packed = np.packbits(bools, axis=1, bitorder="little")
    packed = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8)))
    return np.ascontiguousarray(packed.view("<u8").T.astype(np.uint64))


def unpack(words: Words, geometry: Geometry) -> Bools:
    """(n, PTRS) truth values of packed pages."""
    packed = np.ascontiguousarray(words.T.astype("<u8")).view(np.uint8)
    bits = np.unpackbits(packed, axis=1, count=geometry.ptrs_per_pte, bitorder="little")
    return bits.view(np.bool_)


def joined(windows: Words, step: Rung, how: np.ufunc) -> Words:
    """Of the windows of an order those of the next. how: bitwise_and for those of which both halves are
    there, bitwise_or for either."""
    if not step.shift:
        either: Words = how(windows[::2], windows[1::2])
        return either
    half = step.rows >> 1
    low, high = windows[: half or 1], windows[half or 1 :]
    found: Words = low >> step.shift
    how(low, found, out=found)
    found &= step.first
    if half:
        second = high << step.shift
        how(high, second, out=second)
        second &= ~step.first
        found |= second
    return found


def parted(windows: Words, step: Rung) -> Words:
    """The halves of the windows that a step led to."""
    if not step.shift:
        return np.repeat(windows, 2, axis=0)
    if step.rows > 1:
        second = windows >> step.shift
        second &= step.first
        windows = np.concatenate([windows & step.first, second])
    return windows | windows << step.shift


def ladder(pages: Words, order: int, how: np.ufunc, geometry: Geometry) -> list[Words]:
    """The windows of each order, from pages up to an order."""
    found = [pages]
    for step in steps_of(geometry.pmd_order)[:order]:
        found.append(joined(found[-1], step, how))
    return found


def pages_of(windows: Words, order: int, geometry: Geometry) -> Words:
    """The pages of windows of an order."""
    for step in reversed(steps_of(geometry.pmd_order)[:order]):
        windows = parted(windows, step)
    return windows


def count(words: Words) -> Counts:
    """How many bits each table has."""
    found: Counts = np.bitwise_count(words).sum(axis=0, dtype=np.int64)
    return found


def tally(pages: Words, starts: NDArray[np.intp], geometry: Geometry) -> Counts:
    """(runs, orders): how many windows have all of their pages, in each run of tables that follow each
    other. starts: where the runs begin, the first at 0. Orders that no folio may have are left out."""
    orders = geometry.pmd_order + 1
    lowest = min(geometry.anon_orders)
    found = np.zeros((orders, len(starts)), np.int64)
    for first in range(0, pages.shape[1], _TABLES_AT_ONCE):
        windows = pages[:, first : first + _TABLES_AT_ONCE]
        ends = first, first + windows.shape[1] - 1
        full = np.zeros((orders, windows.shape[1]), np.uint16)
        for order, step in enumerate(steps_of(geometry.pmd_order), 1):
            windows = joined(windows, step, np.bitwise_and)
            if order >= lowest:
                np.add.reduce(np.bitwise_count(windows), axis=0, out=full[order])
        begin, last = (np.searchsorted(starts, ends, side="right") - 1).tolist()
        cuts = np.maximum(starts[begin : last + 1] - first, 0)
        found[:, begin : last + 1] += np.add.reduceat(full, cuts, axis=1, dtype=np.uint32)
    return found.T


def tally_by_loops(
    pages: Any, starts: Any, shifts: Any, firsts: Any, lowest: Any, scratch: Any, found: Any
) -> None:
    """As tally(), number by number. starts: the end as well. scratch: twice the rows of some tables. found:
    is added to. What is read and what is written are never the same, so that machines can do many at once.
    """
    _, rows, at_once = scratch.shape
    for run in range(len(starts) - 1):
        for begin in range(starts[run], starts[run + 1], at_once):
            tables = min(at_once, starts[run + 1] - begin)
            windows, part, above, spare = (
                pages,
                slice(begin, begin + tables),
                scratch[0],
                scratch[1],
            )
            left = rows
            for step in range(len(shifts)):
                shift, first, half = shifts[step], firsts[step], left // 2
                for row in range(max(half, 1)):
                    into = above[row, :tables]
                    if shift == 0:
                        low, high = windows[2 * row, part], windows[2 * row + 1, part]
                        for k in range(tables):
                            into[k] = low[k] & high[k]
                    elif half:
                        low, high = windows[row, part], windows[row + half, part]
                        for k in range(tables):
                            one, two = low[k], high[k]
                            into[k] = (
                                one & one >> shift & first | (two & two >> shift & first) << shift
                            )
                    else:
                        low = windows[row, part]
                        for k in range(tables):
                            into[k] = low[k] & low[k] >> shift & first
                windows, part, above, spare = above, slice(0, tables), spare, above
                left = max(half, 1)
                if step + 1 >= lowest:
                    full = np.uint64(0)
                    for row in range(left):
                        low = windows[row, part]
                        for k in range(tables):
                            # The bits of a word, which machines count by an instruction for it.
                            bits = low[k]
                            bits -= bits >> np.uint64(1) & np.uint64(0x5555555555555555)
                            bits = (bits & np.uint64(0x3333333333333333)) + (
                                bits >> np.uint64(2) & np.uint64(0x3333333333333333)
                            )
                            bits = bits + (bits >> np.uint64(4)) & np.uint64(0x0F0F0F0F0F0F0F0F)
                            full += bits * np.uint64(0x0101010101010101) >> np.uint64(56)
                    found[run, step + 1] += full


@cache
def compiled() -> Tally:
    """tally() as machine code. ImportError where Numba is not installed."""
    from numba import njit

    try:
        run = njit(cache=True)(tally_by_loops)
    except RuntimeError:  # there is no folder that Numba may write to
        run = njit(tally_by_loops)

    def tally_of(pages: Words, starts: NDArray[np.intp], geometry: Geometry) -> Counts:
        steps = steps_of(geometry.pmd_order)
        shifts, firsts = (np.array(column) for column in list(zip(*steps, strict=True))[:2])
        found = np.zeros((len(starts), geometry.pmd_order + 1), np.uint64)
        scratch = np.zeros((2, len(pages), _BY_LOOPS_AT_ONCE), np.uint64)
        ends = np.append(starts, pages.shape[1])
        run(
            np.ascontiguousarray(pages),
            ends,
            shifts,
            firsts,
            min(geometry.anon_orders),
            scratch,
            found,
        )
        return found.astype(np.int64)

    return tally_of
