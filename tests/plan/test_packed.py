# SPDX-License-Identifier: GPL-2.0-or-later
"""Windows of packed pages, against what each is: a look at its pages, one by one."""

from __future__ import annotations

import numpy as np
import pytest

from mthp.plan.packed import (
    Bools,
    compiled,
    count,
    ladder,
    pack,
    pages_of,
    tally,
    unpack,
)
from mthp.words.units import Geometry

GEOMETRIES = [Geometry(12, order) for order in (1, 2, 5, 6, 7, 9, 10, 12, 13)]
NAMES = [f"{geometry.ptrs_per_pte} pages" for geometry in GEOMETRIES]


def tables(seed: int, geometry: Geometry, number: int = 30) -> Bools:
    """Tables with pages missing here and there, or none, or all."""
    rng = np.random.default_rng(seed)
    share = rng.choice([0.0, 0.1, 0.9, 0.99, 0.999, 1.0], (number, 1))
    filled: Bools = rng.random((number, geometry.ptrs_per_pte)) < share
    return filled


def of_windows(filled: Bools, order: int) -> Bools:
    """(n, windows, pages) the pages by windows."""
    return filled.reshape(len(filled), -1, 1 << order)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=NAMES)
def test_packed_windows_are_the_windows(geometry: Geometry) -> None:
    filled = tables(1, geometry)
    pages = pack(filled)
    assert np.array_equal(unpack(pages, geometry), filled)
    full = ladder(pages, geometry.pmd_order, np.bitwise_and, geometry)
    some = ladder(pages, geometry.pmd_order, np.bitwise_or, geometry)
    for order in range(geometry.pmd_order + 1):
        within = of_windows(filled, order)
        for found, want in (
            (full[order], within.all(axis=2)),
            (some[order], within.any(axis=2)),
        ):
            assert np.array_equal(count(found), want.sum(axis=1))
            covered = unpack(pages_of(found, order, geometry), geometry)
            assert np.array_equal(covered, np.repeat(want, 1 << order, axis=1))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=NAMES)
def test_full_windows_are_counted_run_by_run(geometry: Geometry) -> None:
    rng = np.random.default_rng(geometry.pmd_order)
    for number, runs in ((30, 1), (30, 30), (9000 if geometry.pmd_order < 10 else 40, 7)):
        filled = tables(runs, geometry, number)
        starts = np.sort(np.append(0, rng.choice(number - 1, runs - 1, replace=False) + 1))
        for tally_of in (tally, compiled()):
            found = tally_of(pack(filled), starts, geometry)
            for order in geometry.anon_orders:
                full = of_windows(filled, order).all(axis=2).sum(axis=1)
                assert np.array_equal(found[:, order], np.add.reduceat(full, starts)), order


def test_no_tables_are_counted_as_none() -> None:
    geometry, nothing = Geometry(), np.zeros(0, np.intp)
    for tally_of in (tally, compiled()):
        found = tally_of(np.zeros((8, 0), np.uint64), nothing, geometry)
        assert found.shape == (0, 10)
