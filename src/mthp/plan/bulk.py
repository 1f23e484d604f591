# SPDX-License-Identifier: GPL-2.0-or-later
"""The windows that khugepaged collapses in plain tables, for all of them at once.

The clear twin is mthp_collapse() (khugepaged/order_walk.py) with what __collapse_huge_page_isolate() makes
of each window. A window is refused for its holes, or since no page in it is in use, and then smaller ones are
tried at the same place (of the latter in vain); or for a folio as large as itself, and then it is passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.plan.occupancy import FOLIO, IN_USE, Bools, Counts, Pages
from mthp.words.units import Geometry


class Below(Enum):
    """What a window below the PMD order needs to be tried: it never is, or all of its pages, or any."""

    NEVER = "never"
    FULL = "full"
    ANY = "any"


@dataclass(frozen=True)
class Limits:
    """What windows are tried. orders: enabled ones, a bitmap. pmd: holes that one of the PMD order may
    have."""

    orders: int
    pmd: int
    below: Below

    def holes(self, order: int, pmd_order: int) -> int:
        """The most holes that a window of an enabled order may have; -1: it is never tried."""
        if order == pmd_order:
            return self.pmd
        return {Below.NEVER: -1, Below.FULL: 0, Below.ANY: (1 << order) - 1}[self.below]


class Collapsed(NamedTuple):
    """What becomes of some tables. windows: (n, orders) of each order. copied: pages of each table. freed:
    frames of each table that are not needed any more, those of pages that no PTE maps among them.
    """

    windows: Counts
    copied: Counts
    freed: Counts


def choose(pages: Pages, limits: Limits, geometry: Geometry) -> dict[int, Bools]:
    """The windows that collapse: order -> (n, windows of that order in a table)."""
    number = len(pages)
    folio, in_use = pages & FOLIO, pages & IN_USE > 0
    chosen: dict[int, Bools] = {}
    asked, last = np.ones((number, 1), np.bool_), geometry.pmd_order
    for order in range(geometry.pmd_order, -1, -1):
        if not limits.orders >> order & 1:
            continue
        asked, last = np.repeat(asked, 1 << last - order, axis=1), order
        shape = number, geometry.ptrs_per_pte >> order, 1 << order
        within, used = folio.reshape(shape), in_use.reshape(shape)
        holes = (within == 0).sum(axis=2)
        tried = asked & (holes <= limits.holes(order, geometry.pmd_order))
        passed = np.zeros_like(tried)
        if order != geometry.pmd_order:
            passed = tried & (within.max(axis=2, initial=0) > order)
        chosen[order] = tried & ~passed & used.any(axis=2)
        asked = asked & ~tried
    return chosen


def collapsed(
    pages: Pages, chosen: dict[int, Bools], geometry: Geometry
) -> tuple[Collapsed, Pages]:
    """What becomes of tables whose windows are chosen, and their pages afterwards."""
    number = len(pages)
    windows = np.zeros((number, geometry.pmd_order + 1), np.int64)
    after, within = pages.copy(), np.zeros(pages.shape, np.bool_)
    for order, of_order in chosen.items():
        windows[:, order] = of_order.sum(axis=1)
        covered = np.repeat(of_order, 1 << order, axis=1)
        after[covered] = 1 + order | IN_USE
        within |= covered
    copied = ((pages & FOLIO > 0) & within).sum(axis=1)
    freed = np.zeros(number, np.int64)
    taken = np.where(within, pages & FOLIO, 0)
    for each in np.unique(taken[taken > 0]).tolist():
        # A folio of which a window takes a page lies in it as a whole.
        folios = (taken == each).reshape(number, -1, 1 << each - 1).any(axis=2)
        freed += folios.sum(axis=1) << each - 1
    return Collapsed(windows, copied, freed), after


class Shape(NamedTuple):
    """What decides about tables of small pages alone, from which any limits are answered by counting.

    present: (n,) pages of a table. Of so many tables that are alike in this, added up: tables: how many.
    full, some: (n, orders) aligned windows of each order that have all of their pages, and that have any.
    """

    present: Counts
    tables: Counts
    full: Counts
    some: Counts

    def of(self, which: Bools) -> Shape:
        """Choose some of the rows."""
        return Shape(*(column[which] for column in self))


def shape_of(pages: Pages, geometry: Geometry) -> Shape:
    """Count the windows of tables of small pages, a row a table."""
    orders = geometry.pmd_order + 1
    full, some = (np.zeros((len(pages), orders), np.int64) for _ in range(2))
    every = any_ = pages & FOLIO > 0
    for order in range(orders):
        if order:
            every, any_ = every[:, ::2] & every[:, 1::2], any_[:, ::2] | any_[:, 1::2]
        full[:, order], some[:, order] = every.sum(axis=1), any_.sum(axis=1)
    return Shape(some[:, 0], np.ones(len(pages), np.int64), full, some)


def alike(shape: Shape, *keys: NDArray[Any]) -> tuple[Shape, list[NDArray[np.int64]]]:
    """The rows that have the same keys, and tables as full, added up; and the keys of what is left."""
    names = np.stack([*keys, shape.present]).astype(np.int64)
    distinct, which = np.unique(names, axis=1, return_inverse=True)
    sums = []
    for column in shape[1:]:
        summed = np.zeros((distinct.shape[1], *column.shape[1:]), np.int64)
        np.add.at(summed, which.reshape(-1), column)
        sums.append(summed)
    return Shape(distinct[-1], *sums), [*distinct[:-1]]


def counted(shape: Shape, limits: Limits, geometry: Geometry) -> Collapsed:
    """As collapsed() of choose(), for tables of small pages with one in use wherever there are any, without
    looking at the pages again."""
    pmd = geometry.pmd_order
    windows = np.zeros((len(shape.present), pmd + 1), np.int64)
    present = shape.present * shape.tables
    lower = [order for order in range(pmd - 1, -1, -1) if limits.orders >> order & 1]
    copied = np.zeros(len(windows), np.int64)
    if limits.below is Below.FULL:
        for order in lower:
            # Of what is full at this order, less what a full window of a higher one has already.
            pages = shape.full[:, order] << order
            windows[:, order] = pages - copied >> order
            copied = pages
    elif limits.below is Below.ANY and lower:
        windows[:, lower[0]] = shape.some[:, lower[0]]
        copied = present
    if limits.orders >> pmd & 1:
        whole = (shape.present > 0) & (geometry.ptrs_per_pte - shape.present <= limits.pmd)
        windows[whole] = 0
        windows[whole, pmd] = shape.tables[whole]
        copied = np.where(whole, present, copied)
    return Collapsed(windows, copied, copied)
