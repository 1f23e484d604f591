# SPDX-License-Identifier: GPL-2.0-or-later
"""In which wakeup khugepaged comes to each table. Kernel: mm/khugepaged.c, khugepaged_do_scan().

What a table costs of pages_to_scan is taken at its most, so that each is come to no later than is said.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.plan.packed import Bools, Counts
from mthp.plan.runs import Walk
from mthp.words.units import Geometry


class Visits(NamedTuple):
    """What a full scan comes to in one process: what it costs, in turn; of which process; and the rows of
    tables, NO_TABLE for all between two of them."""

    cost: Counts
    number: int
    row: Counts

    @classmethod
    def of(
        cls,
        number: int,
        walk: Walk,
        eligible: Bools,
        passing: int,
        most: Counts,
        geometry: Geometry,
    ) -> Visits:
        """That of a process. passing: what a table costs that has no entries. most: of each mapping, holes
        at which the scan of a table ends; as many as a table has pages where it does not."""
        mine = eligible[walk.vma]
        vma, row = walk.vma[mine], walk.row[mine]
        early = np.maximum(walk.holes[mine] - most[vma] - 1, 0)
        tables = geometry.ptrs_per_pte + 1 - early
        filled = np.bincount(vma, minlength=len(eligible))
        between = np.where(eligible, np.maximum(walk.spanned - filled, 0) * passing, 1)
        # All that a mapping costs beside stands before its tables, which is no later than they are.
        starts = np.searchsorted(vma, np.arange(len(eligible)))
        cost = np.insert(tables, starts, between)
        rows = np.insert(row, starts, NO_TABLE)
        return cls(np.append(1, cost), number, np.append(NO_TABLE, rows))


NO_TABLE = -1


class Wakeups(NamedTuple):
    """Of one full scan: how many it takes, over how many tables; and of each process, by its number, how many
    tables are before it, their rows, and in which wakeup each is come to."""

    all: int
    tables: int
    before: dict[int, int]
    row: dict[int, Counts]
    wakeup: dict[int, Counts]

    @classmethod
    def of(cls, visits: Iterable[Visits], pages_to_scan: int) -> Wakeups:
        """Each goes on until it has spent pages_to_scan, and its first visit costs one of them. visits: in
        turn."""
        parts = [*visits]
        none = np.zeros(0, np.int64)
        cost = np.concatenate([none, *(each.cost for each in parts)])
        is_table = np.concatenate([none, *(each.row for each in parts)]) != NO_TABLE
        ends = cost.cumsum()
        spent, wakeups = _spent(ends.tolist(), is_table.tolist(), max(pages_to_scan - 1, 1))
        found = cls(int(wakeups[-1]), int(np.count_nonzero(is_table)), {}, {}, {})
        first = tables = 0
        for each in parts:
            mine = slice(first, first + len(each.cost))
            starts = (ends - cost)[mine][is_table[mine]]
            ended = np.searchsorted(spent, starts, side="right") - 1
            found.before[each.number], first = tables, mine.stop
            found.row[each.number] = each.row[is_table[mine]]
            found.wakeup[each.number] = wakeups[ended] + 1
            tables += len(starts)
        return found

    def until(self, last: Mapping[int, int]) -> tuple[int, int]:
        """How many wakeups and tables it takes until the last of some tables. last: number of a process ->
        the row."""
        number = max(last, key=lambda number: self.before[number])
        place = int(np.searchsorted(self.row[number], last[number]))
        return int(self.wakeup[number][place]), self.before[number] + place + 1


def _spent(
    ends: list[int], is_table: list[bool], most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What is spent in all at the end of wakeups, and after how many; from none on. A table is gone through
    to its end, the others may be left anywhere; of wakeups that are within one of these the last is told."""
    at = wakeup = place = 0
    found = [(0, 0)]
    while at < (ends[-1] if ends else 0):
        place = bisect_left(ends, at + most, place)
        if place == len(ends):
            at, more = ends[-1], 1
        elif is_table[place]:
            at, more = ends[place], 1
        else:
            more = max((ends[place] - at) // most, 1)
            at += more * most
        wakeup += more
        found.append((at, wakeup))
    spent, wakeups = np.array(found, np.int64).T
    return spent, wakeups
