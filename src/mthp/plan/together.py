# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables that share small pages with each other: which of them collapse, one after another.

The clear twin is the engine. A table is scanned when no more of its pages are mapped elsewhere too than
max_ptes_shared, and each that collapses leaves its pages to the others, so that they may be scanned then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.image.snapshot import Pte
from mthp.plan.packed import Bools, Counts
from mthp.worlds.arrays import ImageProcess

Tables = NDArray[np.intp]
"""Numbers of tables, counted through all processes of an image."""


class Together(NamedTuple):
    """What becomes of some tables. collapsed: which of all do. freed: of each of all, how many of its shared
    pages are free after it, since it was the last. full_scans: after which none of them collapses."""

    collapsed: Bools
    freed: Counts
    full_scans: int


class Joint(NamedTuple):
    """What becomes of tables that share pages with others of an image. counted: of each process, those of
    which that is known and that are scanned; freed: how many shared pages each was the last to give up.
    full_scans: as Together's. Empty where there are no such tables.
    """

    counted: Sequence[Bools] = ()
    freed: Sequence[Counts] = ()
    full_scans: int = 0


class Sharing(NamedTuple):
    """Entries that map small pages which others map too. tables: of all processes. table, page: of each
    entry, its table's number, and its page's; sorted by table. mapped: of each page, how often."""

    tables: int
    table: Tables
    page: NDArray[np.intp]
    mapped: Counts

    @classmethod
    def of(cls, processes: Sequence[ImageProcess]) -> Sharing:
        """That of an image."""
        tables, frames, counts = [], [], []
        first = 0
        for process in processes:
            each = process.tables
            here = (each.pte & np.uint16(Pte.PRESENT | Pte.ZERO)) == np.uint16(Pte.PRESENT)
            row, column = np.nonzero(here & (each.folio_order == 0) & (each.kpagecount > 1))
            tables.append(first + row)
            frames.append(each.pfn[row, column])
            counts.append(each.kpagecount[row, column])
            first += len(each.pte)
        _, place, page = np.unique(np.concatenate(frames), return_index=True, return_inverse=True)
        mapped = np.concatenate(counts)[place].astype(np.int64)
        return cls(first, np.concatenate(tables), page, mapped)

    def touched(self, tables: Bools) -> Bools:
        """Which tables share a page with some, and those themselves."""
        pages = np.zeros(len(self.mapped), np.bool_)
        pages[self.page[tables[self.table]]] = True
        found = tables.copy()
        found[self.table[pages[self.page]]] = True
        return found

    def reached(self, engines: Bools, whole: Bools, lower: Bools) -> Bools:
        """The engine's tables, and those that are not counted since they share pages with them. whole: are
        tried as a whole. lower: have smaller windows tried, of one size; what these make of shared pages is
        known where nobody copies them meanwhile."""
        found = engines
        if np.any(whole) and np.any(lower):
            found = found | (lower & self.touched(whole))
        more = found
        while np.any(more):
            more = (whole | lower) & self.touched(found) & ~found
            found = found | more
        return found

    def shared_after(self, collapsed: Bools) -> Counts:
        """Of each table, how many of its pages are mapped elsewhere too once some have collapsed."""
        left = self.mapped - np.bincount(
            self.page[collapsed[self.table]], minlength=len(self.mapped)
        )
        return np.bincount(self.table[left[self.page] > 1], minlength=self.tables)

    def one_by_one(self, tables: Tables, limit: int) -> Together:
        """Let tables collapse, in this order, full scan by full scan, where no more than limit of their pages
        are mapped elsewhere too.

        The pages that one of them has copied are put into the CPU's batch, which the new folio empties: it is
        large. So they do not hold up the next.
        """
        found = Together(np.zeros(self.tables, np.bool_), np.zeros(self.tables, np.int64), 0)
        left = self.mapped.copy()
        starts, ends = (np.searchsorted(self.table, tables, side) for side in ("left", "right"))
        waiting = [
            (number, self.page[start:end])
            for number, start, end in zip(
                tables.tolist(), starts.tolist(), ends.tolist(), strict=True
            )
        ]
        full_scans = 0
        while waiting:
            full_scans, before = full_scans + 1, waiting
            waiting = []
            for number, pages in before:
                here = left[pages]
                if np.count_nonzero(here > 1) > limit:
                    waiting.append((number, pages))
                    continue
                left[pages] -= 1
                found.collapsed[number] = True
                found.freed[number] = np.count_nonzero(here == 1)
            if len(waiting) == len(before):
                full_scans -= 1
                break
        return found._replace(full_scans=full_scans)
