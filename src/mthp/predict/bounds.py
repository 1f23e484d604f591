# SPDX-License-Identifier: GPL-2.0-or-later
"""Between what an answer lies where a capture leaves open which pages are meant: both ends are run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.image.snapshot import ProcessTables, Pte, Snapshot
from mthp.predict.outcome import Request, run_world
from mthp.predict.passes import Windows
from mthp.predict.records import Bounds, Outcome, Unknown
from mthp.words.results import ScanResult
from mthp.worlds.arrays import span
from mthp.worlds.build import BuiltWorld
from mthp.worlds.deduced import enabled_later
from mthp.worlds.unseen import (
    Assumed,
    Counted,
    Leaning,
    Pages,
    Young,
    counted_lazyfree,
    counted_young,
    held_apart,
    hidden_runs,
    referenced_pages,
    surely_young,
)

Prepare = Callable[[Assumed], tuple[BuiltWorld, Request]]
Choose = Callable[[ProcessTables, Counted], NDArray[np.intp]]
"""Of the pages of one mapping those that are young, as indices among them."""


def unknowns(snapshot: Snapshot, assumed: Assumed) -> Iterator[Unknown]:
    """What a snapshot leaves open, so that more or less may collapse. That a process which is taken to be on
    khugepaged's list may not be there is not among it."""
    processes = () if snapshot.privilege.deep else snapshot.processes
    if assumed.registered is None and any(enabled_later(snapshot, each) for each in processes):
        yield Unknown.REGISTERED
    if assumed.young is Young.CAPTURED and any(
        any(counted_young(snapshot, process)) for process in processes
    ):
        yield Unknown.YOUNG
    if any(
        counted.open for process in processes for counted in counted_lazyfree(snapshot, process)
    ):
        yield Unknown.LAZYFREE
    if any(hidden_runs(process, snapshot.geometry.page_shift) for process in processes):
        yield Unknown.PINNED
    if any(process.forked and _has_large(process) for process in processes):
        yield Unknown.SHARED


def _has_large(process: ProcessTables) -> bool:
    return process.folio_order is not None and bool(process.folio_order.any())


def with_unknowns(outcome: Outcome, snapshot: Snapshot, assumed: Assumed) -> Outcome:
    """The outcome with what its capture leaves open, of which neither end was run."""
    unknown = tuple(unknowns(snapshot, assumed))
    if not unknown or outcome.highest_order is None or not outcome.complete:
        return outcome
    return replace(outcome, bounds=Bounds(unknown, None))


def with_bounds(
    outcome: Outcome,
    windows: Windows,
    snapshot: Snapshot,
    assumed: Assumed,
    prepare: Prepare,
    on_table: Callable[[], None] | None = None,
) -> Outcome:
    """The outcome with its bounds, where the capture leaves open what decides it.

    windows: that collapsed, as Tally has them. assumed: what the outcome rests on. prepare: makes a world
    of the snapshot, and the request to run on it. An Interrupted that on_table raises leaves the
    outcome without bounds.
    """
    bounds = with_unknowns(outcome, snapshot, assumed).bounds
    if bounds is None:
        return outcome
    unknown = bounds.unknown

    def end(leaning: Leaning, choose: Choose, where: Windows) -> tuple[Outcome, Windows]:
        """The outcome with what is open taken in one way, and what collapses; choose: of the pages that
        may be young; where: what hidden pins keep from collapsing."""
        marks = {}
        if Unknown.YOUNG in unknown:
            marks = {
                process.pid: _marked(snapshot, process, choose) for process in snapshot.processes
            }
        held = {
            each.pid: held_apart(each, snapshot.geometry, where.get(each.pid, ()))
            for each in snapshot.processes
            if Unknown.PINNED in unknown
        }
        all_on = Unknown.REGISTERED in unknown and leaning is Leaning.MOST
        registered = True if all_on else assumed.registered
        world, request = prepare(
            replace(assumed, registered=registered, leaning=leaning, marks=marks, held=held)
        )
        request.changes, request.on_table = False, on_table
        return run_world(world, request), request.windows

    ends = [outcome]
    if unknown != (Unknown.YOUNG,) or _refuses_old(outcome):
        most, windows = end(Leaning.MOST, lambda _, counted: np.arange(len(counted.pages)), {})
        ends.append(most)
    units = {
        process.pid: _units(snapshot, process, windows.get(process.pid, ()))
        for process in snapshot.processes
    }
    parts = [
        (units[process.pid], counted)
        for process in snapshot.processes
        for counted in counted_young(snapshot, process)
    ]
    if not all(unit.may_all_pass(counted) for unit, counted in parts):
        most, _ = end(Leaning.MOST, lambda process, counted: units[process.pid].most(counted), {})
        ends = [outcome, most]
    if unknown != (Unknown.YOUNG,) or any(unit.may_fail(counted) for unit, counted in parts):
        least, _ = end(
            Leaning.LEAST, lambda process, counted: units[process.pid].least(counted), windows
        )
        ends.append(least)
    if not all(each.complete for each in ends):
        return outcome

    sizes = [each.collapsed_bytes for each in ends]
    return replace(outcome, bounds=Bounds(unknown, (min(sizes), max(sizes))))


def _refuses_old(outcome: Outcome) -> bool:
    """Whether anything was refused because it was not used lately; else no more can collapse if it was."""
    lack = ScanResult.LACK_REFERENCED_PAGE
    return any(status is lack for _, status in outcome.attempts) or any(
        refusal.status is lack for refusal in outcome.refusals
    )


def _marked(snapshot: Snapshot, process: ProcessTables, choose: Choose) -> Pages:
    """The pages that are young, as (n, PTRS): those known to be, and those chosen where that is open."""
    young = surely_young(snapshot, process)
    flat = young.reshape(-1)
    for counted in counted_young(snapshot, process):
        flat[counted.pages[choose(process, counted)] + counted.own.start] = True
    return young


class _Units(NamedTuple):
    """What collapses of one process if all is young that may be, in units that pass or do not.

    of: each PTE's unit, 0 for none. lacking, size: by unit, the young pages that it needs beyond those
    known, and its pages.
    """

    of: NDArray[np.intp]
    lacking: NDArray[np.intp]
    size: NDArray[np.intp]

    def _placed(self, counted: Counted) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The unit of each page that may be young, and its rank among those of the unit."""
        unit = self.of[counted.pages + counted.own.start]
        order = np.argsort(unit, kind="stable")
        first = np.searchsorted(unit[order], unit)
        rank = np.empty_like(unit)
        rank[order] = np.arange(len(unit))
        return unit, rank - first

    def may_all_pass(self, counted: Counted) -> bool:
        """Whether so many young pages are enough for every unit of the mapping."""
        unit, rank = self._placed(counted)
        return int(np.count_nonzero(rank < self.lacking[unit])) <= counted.meant

    def may_fail(self, counted: Counted) -> bool:
        """Whether so few young pages may leave a unit of the mapping without those that it needs."""
        unit, _ = self._placed(counted)
        room = np.bincount(unit, minlength=len(self.size))
        old = len(unit) - counted.meant
        return bool(((room > 0) & (self.lacking > 0) & (room - self.lacking < old)).any())

    def most(self, counted: Counted) -> NDArray[np.intp]:
        """So many pages that as much passes as can: what each unit needs, first those that need the
        fewest for their size."""
        unit, rank = self._placed(counted)
        spare = rank >= self.lacking[unit]
        price = self.lacking / np.maximum(self.size, 1)
        return np.lexsort((rank, unit, price[unit], spare))[: counted.meant]

    def least(self, counted: Counted) -> NDArray[np.intp]:
        """So many pages that as little passes as can: first those that let nothing more pass, then
        whole units, first those that take the most of them for their size. What is left over goes to
        the smallest that takes it."""
        unit, rank = self._placed(counted)
        lacking = self.lacking[unit]
        dear = (lacking > 0) & (rank >= lacking - 1)
        room = np.bincount(unit[dear], minlength=len(self.size))
        order = np.lexsort((rank, unit, -(room / np.maximum(self.size, 1))[unit], dear))
        chosen = order[: counted.meant]
        last = unit[chosen[-1]]
        left = np.count_nonzero(dear[chosen] & (unit[chosen] == last))
        room[unit[chosen]] = 0
        fits = np.flatnonzero(room >= left)
        if (
            left
            and len(fits)
            and (best := fits[self.size[fits].argmin()])
            and (self.size[best] < self.size[last])
        ):
            chosen[-left:] = np.flatnonzero(dear & (unit == best))[:left]
        return chosen


def _units(
    snapshot: Snapshot, process: ProcessTables, windows: Iterable[tuple[int, int]]
) -> _Units:
    """The units of windows (address, order): each by itself, but for tables that would be read in from
    swap, of which half must be young.

    Kernel: mm/khugepaged.c, collapse_scan_pmd().
    """
    geometry = snapshot.geometry
    nr = geometry.ptrs_per_pte
    of = np.zeros(process.pte.size, np.intp)
    swapped = ((process.pte & np.uint16(Pte.SWAPPED)) != 0).any(axis=1)
    needs = [0]
    for address, order in sorted(windows, key=lambda window: window[1]):
        own = span(process.table_address, geometry, address, address + geometry.order_bytes(order))
        row = own.start // nr
        if row < len(swapped) and swapped[row]:
            own = slice(row * nr, (row + 1) * nr)
        of[own] = len(needs)
        needs.append(nr // 2 if own.stop - own.start == nr and swapped[row] else 1)
    known = np.bincount(of[referenced_pages(process).reshape(-1)], minlength=len(needs))
    lacking = np.maximum(np.array(needs) - known, 0)
    return _Units(of, lacking, np.bincount(of, minlength=len(needs)))
