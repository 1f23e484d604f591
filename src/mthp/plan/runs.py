# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of one process as a planner asks about them: plain ones in runs of like ones, and the odd ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.plan.bulk import Shape, SharedTables, SwappedTables, Tables, TogetherTables
from mthp.plan.occupancy import Occupancy, Plain, TableKind
from mthp.plan.packed import Bools, Counts, Tally, count
from mthp.words.settings import Settings
from mthp.words.units import Geometry
from mthp.worlds.arrays import ImageProcess


class Runs(NamedTuple):
    """Plain tables of one process, sorted into runs. row, vma: as Plain's. run_vma: of each run."""

    row: NDArray[np.intp]
    vma: NDArray[np.intp]
    tables: Tables
    run_vma: NDArray[np.intp]

    @classmethod
    def of(cls, found: Plain, make: Callable[..., Tables], *alike: NDArray[Any]) -> Runs:
        """In runs of the same mapping, of as many pages, and of what else is alike. make: of the tables and
        starts of runs, and of each run its pages and the rest."""
        columns = found.vma, count(found.pages.mapped), *alike
        place = np.lexsort(columns[::-1])
        found, columns = found.rows(place), tuple(column[place] for column in columns)
        differ = [np.diff(column) != 0 for column in columns]
        starts = np.flatnonzero(np.append(True, np.any(differ, axis=0))[: len(place)])
        of_runs = [column[starts] for column in columns]
        return cls(found.row, found.vma, make(found, starts, *of_runs[1:]), of_runs[0])


class OddTables(NamedTuple):
    """Odd tables of one process; the columns as Occupancy's."""

    row: NDArray[np.intp]
    vma: NDArray[np.intp]
    shared: Counts
    swapped: Counts
    in_use: Counts
    holes: Counts

    def scanned(self, orders: NDArray[np.int64], settings: Settings) -> tuple[Bools, Bools]:
        """Which scans may come to their end, and which only if fewer pages are shared than now. orders: of
        each mapping. Kernel: collapse_scan_pmd()."""
        half, whole = settings.geometry.ptrs_per_pte // 2, 1 << settings.geometry.pmd_order
        which: Bools = np.not_equal(orders[self.vma], 0)
        which &= (orders[self.vma] != whole) | (self.holes <= settings.max_ptes_none)
        which &= self.swapped <= settings.max_ptes_swap
        which &= (self.swapped == 0) | (self.in_use >= half)
        few: Bools = self.shared <= settings.max_ptes_shared
        return which & few, which & ~few


class Walk(NamedTuple):
    """What khugepaged walks over in one process. spanned: by mapping, tables that it spans whole. row, vma,
    holes: of each of those that have entries to be looked at, by address, as Occupancy's."""

    spanned: Counts
    row: NDArray[np.intp]
    vma: NDArray[np.intp]
    holes: Counts

    @classmethod
    def of(cls, process: ImageProcess, found: Occupancy, geometry: Geometry) -> Walk:
        """That of a process."""
        spans = [
            (geometry.pmd_align_up(vma.start), geometry.pmd_addr(vma.end)) for vma in process.vmas
        ]
        spanned = [max(end - start, 0) >> geometry.pmd_shift for start, end in spans]
        filled = found.kind != TableKind.HUGE
        tables = found.row[filled], found.vma[filled], found.holes[filled]
        return cls(np.array(spanned, np.int64), *tables)


def runs_of(found: Occupancy, geometry: Geometry, tally: Tally) -> list[Runs]:
    """Those that are counted whatever becomes of others, by what is asked about them."""

    def simple(plain: Plain, starts: NDArray[np.intp], present: Counts) -> Tables:
        return Shape(plain.pages, starts, present, geometry, rows=plain.row, tally=tally)

    def others(plain: Plain, starts: NDArray[np.intp], present: Counts) -> Tables:
        return Tables(plain.pages, starts, present, geometry, rows=plain.row)

    def shared(plain: Plain, starts: NDArray[np.intp], present: Counts, many: Counts) -> Tables:
        return SharedTables(
            plain.pages, starts, present, geometry,
            rows=plain.row, shared=plain.shared, nr_shared=many,
        )  # fmt: skip

    def swapped(
        plain: Plain, starts: NDArray[np.intp], present: Counts, many: Counts, enough: Bools
    ) -> Tables:
        return SwappedTables(
            plain.pages, starts, present, geometry,
            rows=plain.row, swapped=plain.swapped, nr_swapped=many, enough=enough,
        )  # fmt: skip

    swap = found.with_swap
    enough = count(swap.pages.in_use) >= geometry.ptrs_per_pte // 2
    runs = (
        Runs.of(found.simple, simple),
        Runs.of(found.others, others),
        Runs.of(found.with_shared, shared, count(found.with_shared.shared)),
        Runs.of(swap, swapped, count(swap.swapped), enough),
    )
    return [each for each in runs if len(each.row)]


def together_of(found: Plain, geometry: Geometry) -> Runs:
    """Those that share pages with others of the image, each a run of its own."""
    tables = TogetherTables(
        found.pages, np.arange(len(found.row)), count(found.pages.mapped), geometry,
        rows=found.row, shared=found.shared, nr_shared=count(found.shared),
    )  # fmt: skip
    return Runs(found.row, found.vma, tables, found.vma)
