# SPDX-License-Identifier: GPL-2.0-or-later
"""A prediction held against a later snapshot."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mthp.compare.forecast import (
    UNEXPLAINED,
    Mapped,
    Orders,
    compare,
    orders_of_snapshot,
    orders_of_world,
)
from mthp.image.capture.command import main as capture
from mthp.image.snapshot import Pte, Snapshot, load
from mthp.predict.passes import Tally, run_full_scans
from mthp.words.profiles import profile_for_release
from mthp.words.settings import Settings
from mthp.worlds.build import build_world
from mthp.worlds.unseen import Young

REDIS = Path(__file__).parents[2] / "src/mthp/data/redis.npz"


@pytest.fixture(scope="module")
def before() -> Snapshot:
    """Redis as captured, with every size enabled."""
    image = load(REDIS)
    settings = Settings(sizes=dict.fromkeys(range(2, 10), "always"), max_ptes_none=0)  # type: ignore[arg-type]
    meta = {**image.meta, "sysfs": settings.to_sysfs()}
    (process,) = image.processes
    vmas = tuple(vma._replace(thp_eligible=True) for vma in process.vmas)
    processes = (dataclasses.replace(process, vmas=vmas),)
    return dataclasses.replace(image, meta=meta, kernel="7.3.4", processes=processes)


@pytest.fixture(scope="module")
def predicted(before: Snapshot) -> Orders:
    settings = Settings.from_sysfs(before.sysfs, before.geometry)
    world = build_world(before, profile_for_release(before.kernel), settings)
    run_full_scans(world.kernel, world.khugepaged, Tally(world.kernel), None)
    return orders_of_world(world)


def as_snapshot(image: Snapshot, orders: Orders) -> Snapshot:
    """The snapshot with its tables in another state."""
    process = image.processes[0]
    keys = sorted(orders)
    codes = np.array([orders[key] for key in keys])
    pte = np.where(codes == Mapped.NONE, 0, int(Pte.PRESENT | Pte.EXCLUSIVE)).astype(np.uint16)
    pte[codes == Mapped.PMD] |= np.uint16(Pte.HUGE)
    pte[codes == Mapped.ZERO] = np.uint16(Pte.PRESENT | Pte.ZERO)
    pte[codes == Mapped.SWAPPED] = np.uint16(Pte.SWAPPED)
    order = np.where(codes == Mapped.PMD, 9, np.maximum(codes, 0)).astype(np.uint8)
    address = np.array([at for _, at in keys], np.uint64)
    changed = dataclasses.replace(process, table_address=address, pte=pte, folio_order=order)
    return dataclasses.replace(image, processes=(changed,))


def test_a_world_before_it_runs_is_its_snapshot(before: Snapshot) -> None:
    settings = Settings.from_sysfs(before.sysfs, before.geometry)
    world = build_world(before, profile_for_release(before.kernel), settings)
    theirs, ours = orders_of_snapshot(before), orders_of_world(world)
    assert theirs.keys() == ours.keys()
    for key, row in theirs.items():
        assert (row == ours[key]).all()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees folios")
def test_private_copies_of_a_file_s_pages_are_in_both(tmp_path: Path) -> None:
    code = "import time; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE) as kid:
        assert kid.stdout is not None and kid.stdout.readline()
        assert capture(["--pid", str(kid.pid), "--quiet", "-o", str(tmp_path / "s.npz")]) == 0
        kid.kill()
    image = load(tmp_path / "s.npz")
    assert any(vma.captured and not vma.anonymous for vma in image.processes[0].vmas)
    test_a_world_before_it_runs_is_its_snapshot(image)


def test_all_as_predicted(before: Snapshot, predicted: Orders) -> None:
    forecast = compare("redis", before, as_snapshot(before, predicted), 2, Young.CAPTURED)
    assert forecast.right == forecast.ptes > 10_000
    assert 0 < forecast.changed == forecast.right_changed
    assert forecast.baseline == 1 - forecast.changed / forecast.ptes < 0.7
    assert (forecast.misses, forecast.real_full_scans) == ((), 2)


def test_nothing_changes(before: Snapshot, predicted: Orders) -> None:
    forecast = compare("redis", before, before, 1, Young.CAPTURED)
    told = orders_of_snapshot(before)
    wrong = sum(int((row != told[key]).sum()) for key, row in predicted.items() if key in told)
    assert (forecast.changed, forecast.share_changed, forecast.baseline) == (0, 1.0, 1.0)
    assert forecast.ptes - forecast.right == wrong > 0
    assert sum(miss.ptes for miss in forecast.misses) == wrong


def test_a_miss_is_named(before: Snapshot, predicted: Orders) -> None:
    told = orders_of_snapshot(before)
    key = next(key for key, row in predicted.items() if (row == Mapped.PMD).all())
    real = {**predicted, key: predicted[key].copy()}
    real[key][:16] = 4
    forecast = compare("redis", before, as_snapshot(before, real), 2, Young.CAPTURED)
    assert forecast.ptes - forecast.right == 16
    assert {(each.predicted, each.real, each.cause) for each in forecast.misses} == {
        ("pmd", "4", UNEXPLAINED)
    }
    assert {int(told[key][0]), int(Mapped.PMD)} != {4}
    assert forecast.misses[0].first == key[1]


def test_a_table_that_is_gone_counts(before: Snapshot, predicted: Orders) -> None:
    told = orders_of_snapshot(before)
    key = next(iter(told))
    mapped = int((told[key] != Mapped.NONE).sum())
    real = {other: row for other, row in predicted.items() if other != key}
    forecast = compare("redis", before, as_snapshot(before, real), 2, Young.CAPTURED)
    assert forecast.ptes - forecast.right >= mapped > 0


def test_without_folios_nothing_can_be_compared(before: Snapshot) -> None:
    process = dataclasses.replace(before.processes[0], folio_order=None)
    blind = dataclasses.replace(before, processes=(process,))
    with pytest.raises(ValueError, match="not root"):
        compare("redis", before, blind, 1, Young.CAPTURED)
