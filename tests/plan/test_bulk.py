# SPDX-License-Identifier: GPL-2.0-or-later
"""Simple tables: counting their windows says what looking at their pages does, for any limits."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mthp.plan.bulk import Below, Collapsed, Limits, PackedPages, Shape, Tables
from mthp.plan.packed import Bools, compiled, count, pack, tally
from mthp.words.units import Geometry
from tests.plan.test_packed import tables

GEOMETRY = Geometry()
MOST = GEOMETRY.ptrs_per_pte - 1


def walked(filled: Bools, limits: Limits) -> list[int]:
    """The windows of each order that a walk over one table collapses, as mthp_collapse() goes."""
    found = [0] * (GEOMETRY.pmd_order + 1)
    todo = [(0, GEOMETRY.pmd_order)]
    while todo:
        at, order = todo.pop()
        below = {Below.NEVER: -1, Below.FULL: 0, Below.ANY: (1 << order) - 1}[limits.below]
        most = limits.pmd if order == GEOMETRY.pmd_order else below
        pages = filled[at : at + (1 << order)]
        if limits.orders >> order & 1 and len(pages) - pages.sum() <= most:
            found[order] += 1
        elif order:
            todo += [(at, order - 1), (at + (1 << order - 1), order - 1)]
    return found


def said(found: Iterable[Collapsed]) -> list[object]:
    """What is claimed, in values that compare."""
    return [(*each[:5], None if each.added is None else each.added.tolist()) for each in found]


def test_counting_says_what_a_walk_over_the_windows_does() -> None:
    rng = np.random.default_rng(3)
    filled = tables(5, GEOMETRY, 24)
    filled = filled[filled.any(axis=1)]
    filled = filled[np.argsort(filled.sum(axis=1))]
    pages = pack(filled)
    present = count(pages)
    starts = np.flatnonzero(np.append(True, np.diff(present)))
    of = PackedPages(pages, {0: pages}), starts, present[starts], GEOMETRY
    looked = Tables(*of)
    shapes = [Shape(*of, tally=each) for each in (tally, compiled())]
    holes = {Below.FULL: [0, 0, 30, 200, 409], Below.ANY: [MOST], Below.NEVER: [0, 30, MOST]}
    for _ in range(20):
        below = Below(int(rng.integers(3)))
        orders = int(rng.integers(1 << 10)) & GEOMETRY.anon_orders_mask
        limits = Limits(orders, int(rng.choice(holes[below])), below)
        which = rng.random(len(starts)) < 0.8
        answer = [*looked.collapsed(which, limits)]
        for shape in shapes:
            assert said(shape.collapsed(which, limits)) == said(answer)
        windows = np.zeros(10, np.int64)
        for each in answer:
            windows[each.order] = each.windows
        mine = filled[np.repeat(which, looked.tables)]
        assert windows.tolist() == np.sum([walked(each, limits) for each in mine], axis=0).tolist()
