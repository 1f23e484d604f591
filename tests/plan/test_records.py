# SPDX-License-Identifier: GPL-2.0-or-later
"""TLB entries of a plan, against what the engine measures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mthp.image.snapshot import load
from mthp.plan.planner import Planner
from mthp.plan.records import TLB_ENTRIES, BulkVerdict, Spent, TlbKind
from mthp.predict.measure import TlbModel
from mthp.predict.outcome import Request, run_world
from mthp.words.costs import PUBLISHED, Cost, CostTable
from mthp.words.profiles import PROFILES
from mthp.worlds.arrays import WorldArrays
from mthp.worlds.build import arrays_of, build_arrays
from tests.plan.images import always

REDIS = Path(__file__).parents[2] / "src/mthp/data/redis.npz"


@pytest.fixture(scope="module")
def redis() -> WorldArrays:
    """The example, to be planned more than once."""
    arrays = arrays_of(load(REDIS))
    return replace(arrays, processes=[*arrays.processes])


def plan_of(arrays: WorldArrays, orders: tuple[int, ...], none: int) -> BulkVerdict:
    settings = always(*orders, max_ptes_none=none)
    return Planner(arrays, PROFILES["7.3"], settings).plan(settings)


@pytest.mark.parametrize("orders", [(4,), (4, 9), (6, 9)])
@pytest.mark.parametrize("none", [0, 511])
def test_entries_of_whole_folios_are_those_that_the_engine_measures(
    redis: WorldArrays, orders: tuple[int, ...], none: int
) -> None:
    plan = plan_of(redis, orders, none)
    outcomes = [
        run_world(
            build_arrays(redis, plan.settings, PROFILES["7.3"]),
            Request("", "", "", changes=False, tlb=model),
        )
        for model in (TlbModel.PLAIN, TlbModel.CONTPTE)
    ]
    zero = sum(vma.zero for vma in outcomes[0].vmas) >> 12
    for outcome, kind in zip(outcomes, (TlbKind.X86, TlbKind.ARM64), strict=True):
        assert sum(plan.entries(kind).values()) == outcome.tlb_after - zero
    assert sum(plan.entries(TlbKind.X86).values()) == plan.translations


def test_coalesced_runs_are_of_the_folios_that_are_large_enough(redis: WorldArrays) -> None:
    plan = plan_of(redis, (2, 3, 5), 0)
    size = plan.settings.geometry.order_bytes
    amd = plan.entries(TlbKind.AMD)
    assert amd[2] == plan.after[2] // size(2)
    assert amd[3] == (plan.after[3] + plan.after[5]) // size(3)
    assert amd[0] == plan.after[0] // size(0)
    assert [*amd] == sorted(amd, reverse=True)


def test_the_largest_entries_reach_first(redis: WorldArrays) -> None:
    plan = plan_of(redis, (4, 9), 0)
    pmds = plan.entries(TlbKind.X86)[9]
    assert plan.reached(TlbKind.X86, pmds) == pmds << 21
    assert plan.reached(TlbKind.X86, pmds + 3) == (pmds << 21) + 3 * 4096
    assert plan.reached(TlbKind.X86, 1 << 40) == plan.mapped
    assert plan.reached(TlbKind.ARM64) > plan.reached(TlbKind.X86, TLB_ENTRIES)


def test_time_is_the_costs_so_many_times(redis: WorldArrays) -> None:
    plan = plan_of(redis, (4, 9), 511)
    names = ("allocate", "stop", "copy_page", "clear_page", "scan_pte")
    ns = dict(zip(names, (1e9, 1e6, 1e3, 10.0, 1.0), strict=True))
    costs = CostTable({name: Cost(value, "made up") for name, value in ns.items()})
    pages = plan.collapsed_bytes >> 12
    copied = plan.copied_bytes >> 12
    assert 0 < copied < pages
    spent = Spent.of(plan, costs)
    assert spent.collapsing == (
        plan.windows[9] * ns["allocate"]
        + sum(plan.windows.values()) * ns["stop"]
        + copied * ns["copy_page"]
        + (pages - copied) * ns["clear_page"]
    )
    assert spent.scanning == plan.scanned_ptes >= 512 * plan.counted_tables
    assert spent.longest == ns["stop"] + 512 * ns["copy_page"]
    assert spent.mean is not None and spent.collapsing is not None
    stopped = spent.mean * plan.flushes + plan.windows[9] * ns["allocate"]
    assert stopped == pytest.approx(spent.collapsing)
    assert ns["stop"] < spent.mean <= spent.longest
    small = Spent.of(plan_of(redis, (4,), 0), costs)
    assert small.longest == ns["stop"] + 16 * ns["copy_page"]
    nothing = Spent.of(plan_of(redis, (), 0), costs)
    assert nothing == (0, 0, None, 0)


def test_what_no_cost_is_known_of_is_not_said(redis: WorldArrays) -> None:
    plan = plan_of(redis, (4, 9), 0)
    spent = Spent.of(plan, PUBLISHED)
    assert spent.scanning is None
    assert spent.collapsing is not None
    assert Spent.of(plan, CostTable({})) == (None, None, None, None)
