# SPDX-License-Identifier: GPL-2.0-or-later
"""The windows that khugepaged collapses in plain tables, for all of them at once.

The clear twin is mthp_collapse() (khugepaged/order_walk.py) with what __collapse_huge_page_isolate() makes
of each window. A window is refused for its holes, or since no page in it is in use, and then smaller ones are
tried at the same place (of the latter in vain); or for a folio as large as itself, and then it is passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.plan.packed import (
    Bools,
    Counts,
    Tally,
    Words,
    count,
    ladder,
    pages_of,
    parted,
    steps_of,
    tally,
)
from mthp.words.units import Geometry


class PackedPages(NamedTuple):
    """The pages of n tables. in_use: those that are young or referenced. of_order: order of folio -> the
    pages that map one of it, where any do; small pages always."""

    in_use: Words
    of_order: dict[int, Words]

    @property
    def mapped(self) -> Words:
        """All of them."""
        return self.at_least(0)

    def at_least(self, order: int) -> Words:
        """Those of folios of an order or more."""
        some = [words for each, words in self.of_order.items() if each >= order]
        return np.bitwise_or.reduce(some) if len(some) != 1 else some[0]

    def rows(self, which: NDArray[np.intp]) -> PackedPages:
        """Some of the tables."""
        orders = {order: words.take(which, axis=1) for order, words in self.of_order.items()}
        return PackedPages(self.in_use.take(which, axis=1), orders)

    @classmethod
    def of_all(cls, parts: Iterable[PackedPages]) -> PackedPages:
        """The tables of several, in their order. There must be one at least."""
        parts = [*parts]
        return cls(
            np.hstack([part.in_use for part in parts]),
            {
                order: np.hstack(
                    [part.of_order.get(order, np.zeros_like(part.in_use)) for part in parts]
                )
                for order in sorted({order for part in parts for order in part.of_order})
            },
        )


class Below(IntEnum):
    """What a window below the PMD order needs to be tried: it never is, or all of its pages, or any."""

    NEVER = 0
    FULL = 1
    ANY = 2


@dataclass(frozen=True)
class Limits:
    """What windows are tried. orders: enabled ones, a bitmap. pmd: holes that one of the PMD order may
    have. shared, swap: pages that others map too, and swapped entries, which a table may have."""

    orders: int
    pmd: int
    below: Below
    shared: int = 0
    swap: int = 0

    def lower(self, pmd_order: int) -> list[int]:
        """The orders below the PMD's of which windows are tried."""
        if self.below is Below.NEVER:
            return []
        return [order for order in range(pmd_order) if self.orders >> order & 1]


class Asked(NamedTuple):
    """A question: which windows of an order collapse. above: the next order that is tried; None if there is
    none. Of those further up there is no more to know: where a window of theirs has what it needs, so has
    each within it. below: what it takes to be tried.
    """

    order: int
    above: int | None
    below: Below


class Answer(NamedTuple):
    """What is collapsed to one order, by run. added: frames of the new folios less those that are not needed
    any more. sums: (3 + orders, runs) windows; frames that tables need more than they free; pages that are
    read from swap; and pages that a PTE mapped, by the order of their folio.
    """

    added: Counts
    sums: Counts


class Collapsed(NamedTuple):
    """What some runs are collapsed to of one order. windows: how many. need: frames that tables need more
    than they free. copied: pages. change: of the pages that are mapped, by the order of their folio. last:
    the row of the last table of those runs that have any window. added: as Answer's, or None.
    """

    order: int
    windows: int
    need: int
    copied: int
    change: dict[int, int]
    last: int
    added: Counts | None


@dataclass(frozen=True, eq=False)
class Tables:
    """Plain tables, in runs of some that follow each other. starts: where each run begins. present: how many
    pages each table of a run has, which matters to limits of the PMD order that are neither 0 nor all. rows:
    where each table stands among its process's; None where they are all of these.
    """

    pages: PackedPages
    starts: NDArray[np.intp]
    present: Counts
    geometry: Geometry
    rows: NDArray[np.intp] | None = field(default=None, kw_only=True)
    answers: dict[Asked, Answer] = field(default_factory=dict, init=False)
    known: dict[tuple[Asked, bytes], Collapsed] = field(default_factory=dict, init=False)

    def collapsed(self, which: Bools, limits: Limits) -> Iterator[Collapsed]:
        """What becomes of some of the runs, order by order."""
        of_which = which.tobytes()
        for asked, runs in self.asked(limits):
            mine = which if runs is self.every else which & runs
            key = asked, of_which if runs is self.every else mine.tobytes()
            if key not in self.known:
                answer = self.answer(asked)
                added = answer.added * mine
                windows, need, read, *taken = (answer.sums @ mine).tolist()
                change = {order: -pages for order, pages in enumerate(taken) if pages}
                change[asked.order] = change.get(asked.order, 0) + (windows << asked.order)
                more = added if np.any(added) else None
                last = int(self.last_rows.max(initial=-1, where=mine & (answer.sums[0] > 0)))
                found = Collapsed(asked.order, windows, need, read + sum(taken), change, last, more)
                self.known[key] = found
            yield self.known[key]

    def asked(self, limits: Limits) -> Iterator[tuple[Asked, Bools]]:
        """What settings ask of tables, and of which runs."""
        pmd, most = self.geometry.pmd_order, self.geometry.ptrs_per_pte - 1
        tried = limits.lower(pmd)
        below, rest = limits.below, self.every
        if limits.orders >> pmd & 1:
            as_below = {0: Below.FULL, most: Below.ANY}.get(limits.pmd)
            if as_below and (as_below is below or not tried):
                tried, below = [*tried, pmd], as_below
            else:
                whole = self.geometry.ptrs_per_pte - self.present <= limits.pmd
                yield Asked(pmd, None, Below.ANY), whole
                rest = ~whole
        for order, above in zip(tried, [*tried[1:], None], strict=False):
            yield Asked(order, above, below), rest

    def undecided(self, limits: Limits) -> Bools | None:
        """Of which runs occupancy does not say all under these limits; None where of none."""
        return None

    def windows(self, limits: Limits) -> dict[int, Words]:
        """The windows that collapse, of each order."""
        return {
            asked.order: np.where(np.repeat(runs, self.tables), self.chosen(asked), np.uint64(0))
            for asked, runs in self.asked(limits)
        }

    @cached_property
    def every(self) -> Bools:
        """Each run."""
        return np.ones(len(self.starts), np.bool_)

    @cached_property
    def tables(self) -> Counts:
        """How many each run has."""
        return np.diff(self.starts, append=self.pages.in_use.shape[1])

    @cached_property
    def last_rows(self) -> Counts:
        """That of the last table of each run."""
        if self.rows is None:
            return self.starts + self.tables - 1
        return np.maximum.reduceat(self.rows, self.starts) if len(self.rows) else self.rows

    def answer(self, asked: Asked) -> Answer:
        """The answer. The tables are looked at once for each question."""
        if asked not in self.answers:
            self.answers[asked] = self._answer_to(asked)
        return self.answers[asked]

    def _answer_to(self, asked: Asked) -> Answer:
        order = asked.order
        chosen = self.chosen(asked)
        within = pages_of(chosen, order, self.geometry)
        sums = np.zeros((4 + self.geometry.pmd_order, within.shape[1]), np.int64)
        sums[0], sums[2] = count(chosen), self.read_from_swap(within)
        added = sums[0] << order
        for each, words in self.pages.of_order.items():
            taken = words & within
            sums[3 + each] = count(taken)
            # A folio of which a window takes a page lies in it as a whole, with pages that no PTE maps.
            added -= count(self._any(taken, each)) << each
        added += self.left_behind(within)
        sums[1] = np.maximum(added, 0)
        return Answer(
            *(np.add.reduceat(columns, self.starts, axis=-1) for columns in (added, sums))
        )

    def left_behind(self, within: Words) -> Counts | int:
        """How many small pages of those that are copied stay, since others map them too."""
        return 0

    def read_from_swap(self, within: Words) -> Counts | int:
        """How many entries of those are swapped out."""
        return 0

    def chosen(self, asked: Asked) -> Words:
        """The windows that answer() is about."""
        order, above, below = asked
        met = self.full if below is Below.FULL else self.some
        found = met[order] & self.in_use[order]
        if above is not None:
            within = met[above]
            for step in reversed(steps_of(self.geometry.pmd_order)[order:above]):
                within = parted(within, step)
            found &= ~within
        if order < self.geometry.pmd_order and order in self.large:
            found &= ~self.large[order]
        return found

    def _any(self, pages: Words, order: int) -> Words:
        return ladder(pages, order, np.bitwise_or, self.geometry)[order]

    @cached_property
    def full(self) -> list[Words]:
        """The windows of each order that have all of their pages."""
        return ladder(self.pages.mapped, self.geometry.pmd_order, np.bitwise_and, self.geometry)

    @cached_property
    def some(self) -> list[Words]:
        """Those that have any."""
        return ladder(self.pages.mapped, self.geometry.pmd_order, np.bitwise_or, self.geometry)

    @cached_property
    def in_use(self) -> list[Words]:
        """Those that have one in use."""
        return ladder(self.pages.in_use, self.geometry.pmd_order, np.bitwise_or, self.geometry)

    @cached_property
    def large(self) -> dict[int, Words]:
        """Those that have one of a folio as large as themselves, of each order of which there may be any."""
        orders = range(1, max(self.pages.of_order) + 1)
        return {order: self._any(self.pages.at_least(order), order) for order in orders}


@dataclass(frozen=True, eq=False)
class Shape(Tables):
    """Tables of small pages, with one in use in every window that has any: how many windows are full, or
    empty, says all, and the pages are looked at once for each."""

    tally: Tally = tally

    @cached_property
    def full_windows(self) -> Counts:
        """(runs, orders) those that have all of their pages."""
        return self.tally(self.pages.mapped, self.starts, self.geometry)

    @cached_property
    def some_windows(self) -> Counts:
        """(runs, orders) those that have any."""
        orders = self.geometry.pmd_order - np.arange(self.geometry.pmd_order + 1)
        empty = self.tally(~self.pages.mapped, self.starts, self.geometry)
        return (self.tables[:, np.newaxis] << orders) - empty

    def _answer_to(self, asked: Asked) -> Answer:
        order, above, below = asked
        if below is Below.FULL:
            windows = self.full_windows[:, order]
            if above is not None:
                windows = windows - (self.full_windows[:, above] << above - order)
            copied = windows << order
        else:
            copied = self.present * self.tables if above is None else np.zeros_like(self.present)
            if above is not None:
                windows = copied
            elif order == self.geometry.pmd_order:
                windows = self.tables * (self.present > 0)
            else:
                windows = self.some_windows[:, order]
        added = (windows << order) - copied
        return Answer(added, np.stack([windows, added, np.zeros_like(added), copied]))


@dataclass(frozen=True, eq=False)
class SharedTables(Tables):
    """Tables with small pages that others map too, who are not in the image. shared: these pages; nr_shared:
    how many each table of a run has.

    One window of the PMD order has them all, and what the scan let pass is let pass there too. A smaller one
    with any of them is refused in its middle, and what came before it waits in an LRU batch, so that nothing
    is said of windows that are smaller still.
    """

    shared: Words = field(kw_only=True)
    nr_shared: Counts = field(kw_only=True)

    def asked(self, limits: Limits) -> Iterator[tuple[Asked, Bools]]:
        """What settings ask, of those that the scan lets pass."""
        pmd = self.geometry.pmd_order
        scanned, whole = self._scanned(limits), self._whole(limits)
        yield Asked(pmd, None, Below.ANY), scanned & whole
        lower = limits.lower(pmd)
        if len(lower) == 1:
            yield Asked(lower[0], None, limits.below), scanned & ~whole

    def undecided(self, limits: Limits) -> Bools | None:
        """Those with smaller windows of several orders."""
        if len(limits.lower(self.geometry.pmd_order)) < 2:
            return None
        return self._scanned(limits) & ~self._whole(limits)

    def chosen(self, asked: Asked) -> Words:
        """The windows that answer() is about; below the PMD order without any such page."""
        found = super().chosen(asked)
        if asked.order < self.geometry.pmd_order:
            found &= ~self._any(self.shared, asked.order)
        return found

    def left_behind(self, within: Words) -> Counts | int:
        """Those pages, where they are copied."""
        return count(self.shared & within)

    def _scanned(self, limits: Limits) -> Bools:
        few: Bools = self.nr_shared <= limits.shared
        if limits.orders == 1 << self.geometry.pmd_order:
            few &= self._whole(limits)
        return few

    def _whole(self, limits: Limits) -> Bools:
        """Where the window of the PMD order is tried."""
        enabled = limits.orders >> self.geometry.pmd_order & 1
        found: Bools = (self.geometry.ptrs_per_pte - self.present <= limits.pmd) & bool(enabled)
        return found


@dataclass(frozen=True, eq=False)
class TogetherTables(SharedTables):
    """Tables that share small pages with each other, a run each. Which are scanned before the end depends on
    what becomes of the others: only those are to be asked about."""

    def _scanned(self, limits: Limits) -> Bools:
        few = np.ones(len(self.starts), np.bool_)
        return few if limits.orders != 1 << self.geometry.pmd_order else few & self._whole(limits)


@dataclass(frozen=True, eq=False)
class SwappedTables(Tables):
    """Tables with entries in swap slots that nothing else names. nr_swapped: how many each table of a run
    has; enough: whether half of its pages are in use, without which none is read.

    A window of the PMD order has them read; a smaller one with any of them is refused before anything is
    done, so that still smaller ones are tried at the same place.
    """

    swapped: Words = field(kw_only=True)
    nr_swapped: Counts = field(kw_only=True)
    enough: Bools = field(kw_only=True)

    def asked(self, limits: Limits) -> Iterator[tuple[Asked, Bools]]:
        """What settings ask, of those that the scan lets pass."""
        pmd = self.geometry.pmd_order
        scanned = (self.nr_swapped <= limits.swap) & self.enough
        holes = self.geometry.ptrs_per_pte - self.present - self.nr_swapped
        whole = (holes <= limits.pmd) & bool(limits.orders >> pmd & 1)
        yield Asked(pmd, None, Below.ANY), scanned & whole
        tried = limits.lower(pmd)
        for order, above in zip(tried, [*tried[1:], None], strict=False):
            yield Asked(order, above, limits.below), scanned & ~whole

    @cached_property
    def some(self) -> list[Words]:
        """The windows of each order that have any page and, below the PMD order, nothing in swap."""
        pmd = self.geometry.pmd_order
        found = ladder(self.pages.mapped, pmd, np.bitwise_or, self.geometry)
        gone = ladder(self.swapped, pmd, np.bitwise_or, self.geometry)
        return [*(here & ~out for here, out in zip(found[:pmd], gone, strict=False)), found[pmd]]

    def read_from_swap(self, within: Words) -> Counts | int:
        """Those entries, where they are in a window."""
        return count(self.swapped & within)
