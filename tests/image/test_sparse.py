# SPDX-License-Identifier: GPL-2.0-or-later
"""Columns that are kept as the few values in them: the same as whole ones, and small."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from mthp.image import sparse
from mthp.image.capture.pagemap import EXCLUSIVE, PRESENT, SWAPPED
from mthp.image.snapshot import Kpf, Snapshot, load
from mthp.image.sparse import SparseColumn, kept, picked
from mthp.plan.planner import Planner
from mthp.plan.records import BulkVerdict
from mthp.words.profiles import PROFILES
from mthp.words.settings import Enabled, Settings
from mthp.worlds.build import arrays_of
from tests.image.made import ANON, BASE, FRAME, made

PTRS, PMD = 512, 2 << 20


def a_page_in_each(path: Path, tables: int) -> Path:
    """A capture of one process with a page or two in each of so many tables, some of them swapped out."""
    it, rnd = made(), Random(tables)
    del it.meta["processes"][1]
    it.meta["pmd_size"] = PMD
    it.meta["sysfs"]["hpage_pmd_size"] = f"{PMD}"
    (vma, _) = it.meta["processes"][0]["vmas"]
    vma["end"] = BASE + tables * PMD
    it.meta["processes"][0]["vmas"] = [vma]
    arrays = it.arrays
    for name, column in arrays.items():
        shape = (tables, PTRS) if column.ndim == 2 else (tables,)
        arrays[name] = np.zeros(shape, column.dtype)
    arrays["table_address"][:] = BASE + np.arange(tables) * PMD
    for row in range(tables):
        for at in rnd.sample(range(PTRS), rnd.choice((1, 1, 2))):
            if rnd.random() < 0.1:
                arrays["pte"][row, at], arrays["pfn"][row, at] = SWAPPED, (1 + row * PTRS + at) << 5
                continue
            arrays["pte"][row, at] = PRESENT | EXCLUSIVE
            arrays["pfn"][row, at] = FRAME + row * PTRS + at
            arrays["kpageflags"][row, at] = ANON | rnd.choice((0, 1 << Kpf.REFERENCED))
            arrays["kpagecount"][row, at] = rnd.choice((1, 1, 1, 2))
    path.write_bytes(it.packed())
    return path


def plans(snapshot: Snapshot) -> list[BulkVerdict]:
    tried = [
        Settings(enabled=Enabled.ALWAYS, max_ptes_none=none, max_ptes_swap=swap)
        for none in (0, 511)
        for swap in (0, 64)
    ]
    planner = Planner(arrays_of(snapshot), PROFILES["7.3"], tried[0], snapshot)
    assert planner.partly_mapped.folios == 0
    return [planner.plan(each) for each in tried]


def test_a_column_is_what_it_is_made_of() -> None:
    dice = np.random.default_rng(1)
    for shape in ((0, 4), (7, 4), (50, 512)):
        whole = np.where(dice.random(shape) < 0.05, dice.integers(1, 99, shape), 0).astype(
            np.uint32
        )
        column = SparseColumn.of(np.array_split(whole, 3), shape[1], np.uint32)
        assert column.shape == shape and column.values.dtype == np.uint32
        assert np.array_equal(column.dense(), whole)
        for rows in (slice(0, 3), slice(2, 2), slice(2, None), slice(40, 70)):
            assert np.array_equal(column[rows], whole[rows])
            assert np.array_equal(column.part(rows).dense(), whole[rows])
        for some in (dice.integers(0, 7, 9) % max(shape[0], 1), np.zeros(0, np.intp)):
            if shape[0]:
                assert np.array_equal(column[some], whole[some])
        mask = dice.random(shape[0]) < 0.5
        assert np.array_equal(column[mask], whole[mask])
        places = np.flatnonzero(dice.random(shape) < 0.3)
        assert np.array_equal(column.at(places), whole.reshape(-1)[places])


def test_a_sparse_image_is_planned_as_if_it_were_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = a_page_in_each(tmp_path / "sparse.npz", 300)
    few = load(path)
    (process,) = few.processes
    assert isinstance(kept(process, "pfn"), SparseColumn)
    found = plans(few)
    monkeypatch.setattr(sparse, "SPARSE", 1 << 30)
    whole = load(path)
    assert type(kept(whole.processes[0], "pfn")) is np.ndarray
    for name in ("pfn", "kpageflags", "kpagecount"):
        assert np.array_equal(getattr(process, name), getattr(whole.processes[0], name))
    assert plans(whole) == found
    assert max(plan.windows.get(9, 0) for plan in found) > 100
    mask = process.pte == PRESENT | EXCLUSIVE
    assert np.array_equal(picked(process, "pfn", mask), process.pfn[mask])  # type: ignore[index]
    copy = replace(process, name="other")
    assert np.array_equal(copy.pfn, process.pfn)  # type: ignore[arg-type]


def test_a_page_in_each_table_takes_a_third_of_its_columns(tmp_path: Path) -> None:
    """Of 19 bytes for each entry, 3 are kept whole."""
    tables = 1024
    path = a_page_in_each(tmp_path / "sparse.npz", tables)
    tracemalloc.start()
    snapshot = load(path)
    now, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert snapshot.processes[0].pte.shape == (tables, PTRS)
    assert now < 5 * PTRS * tables
