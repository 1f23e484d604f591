# SPDX-License-Identifier: GPL-2.0-or-later
"""Predicts from one snapshot and compares with a later one, captured after real khugepaged had finished."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from mthp.compare.page_orders import Mapped, Orders, orders_of_snapshot, orders_of_world
from mthp.compare.records import Forecast, Misprediction
from mthp.image.snapshot import Snapshot
from mthp.predict.passes import RunEnd, Tally, run_full_scans
from mthp.words.profiles import profile_for_release
from mthp.words.settings import Settings
from mthp.worlds.build import build_world
from mthp.worlds.from_snapshot import Young

YOUNG_BITS = "young bits: a capture cannot see which pages were used lately"
UNEXPLAINED = "not explained"


def compare(
    target: str, before: Snapshot, after: Snapshot, real_full_scans: int, young: Young
) -> Forecast:
    """Predict the fixed point from `before` with the settings in it, and compare it with `after`.

    ValueError: a snapshot shows no folios, or its settings or its state are impossible.
    """
    settings = Settings.from_sysfs(before.sysfs, before.geometry)
    predicted, run, assumptions = _predict(before, settings, young)
    start, real = orders_of_snapshot(before), orders_of_snapshot(after)
    tables = _Tables(start, predicted, real, before.geometry.ptrs_per_pte)
    return Forecast(
        target=target,
        kernel=before.kernel,
        settings=settings,
        processes=len(before.processes),
        ptes=int(tables.mapped.sum()),
        changed=int(tables.changed.sum()),
        right=int((tables.mapped & ~tables.wrong).sum()),
        right_changed=int((tables.changed & ~tables.wrong).sum()),
        full_scans=run.full_scans,
        real_full_scans=real_full_scans,
        misses=_misses(tables, before, settings, young) if tables.wrong.any() else (),
        assumptions=assumptions,
    )


def _predict(
    image: Snapshot, settings: Settings, young: Young
) -> tuple[Orders, RunEnd, tuple[str, ...]]:
    world = build_world(image, profile_for_release(image.kernel), settings, young)
    run = run_full_scans(world.kernel, world.khugepaged, Tally(world.kernel), None)
    return orders_of_world(world), run, world.assumptions


class _Tables:
    """Three states of the same tables, with one row for each table; boolean arrays over all PTEs.

    mapped: something is mapped before or after, really or as predicted.
    """

    def __init__(self, start: Orders, predicted: Orders, real: Orders, nr: int) -> None:
        self.keys = sorted({*start, *predicted, *real})
        self.nr = nr
        self.start, self.predicted, self.real = map(self.stack, (start, predicted, real))
        none = Mapped.NONE
        self.mapped = (self.start != none) | (self.predicted != none) | (self.real != none)
        self.changed = self.mapped & (self.start != self.real)
        self.wrong = self.mapped & (self.predicted != self.real)

    def stack(self, orders: Orders) -> NDArray[np.int8]:
        """The (tables, PTRS) array of one state; a table that does not exist maps nothing."""
        empty = np.full(self.nr, Mapped.NONE, np.int8)
        rows = [orders.get(key, empty) for key in self.keys]
        return np.array(rows, np.int8).reshape(len(rows), self.nr)


def _misses(
    tables: _Tables, before: Snapshot, settings: Settings, young: Young
) -> tuple[Misprediction, ...]:
    """The wrong PTEs by kind and cause: the young bits, if another assumption about them is right."""
    by_youth = np.zeros_like(tables.wrong)
    for other in Young:
        if other is not young:
            orders, *_ = _predict(before, settings, other)
            by_youth |= tables.wrong & (tables.stack(orders) == tables.real)
    counts: Counter[tuple[int, int, int, bool]] = Counter()
    first: dict[tuple[int, int, int, bool], int] = {}
    page = before.geometry.page_size
    for row, column in np.argwhere(tables.wrong).tolist():
        states = (tables.start, tables.predicted, tables.real)
        a, b, c = (int(state[row, column]) for state in states)
        kind = (a, b, c, bool(by_youth[row, column]))
        counts[kind] += 1
        first.setdefault(kind, tables.keys[row][1] + column * page)
    return tuple(
        Misprediction(
            before=_name(kind[0]),
            predicted=_name(kind[1]),
            real=_name(kind[2]),
            ptes=count,
            cause=YOUNG_BITS if kind[3] else UNEXPLAINED,
            first=first[kind],
        )
        for kind, count in counts.most_common()
    )


def _name(code: int) -> str:
    return str(code) if 0 <= code < Mapped.PMD else Mapped(code).name.lower()
