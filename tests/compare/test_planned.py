# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans held against what a guest's khugepaged did at its own pace."""

from __future__ import annotations

import dataclasses

import pytest

from mthp.compare.planned import plan_beside, sizes_of
from mthp.compare.records import PlanBeside
from mthp.image.snapshot import Snapshot
from mthp.lab.session.pace import PacedRun
from mthp.report.measured import good_plan
from mthp.words.settings import Settings
from mthp.worlds.unseen import Young
from tests.compare.test_forecast import as_snapshot, before, predicted  # noqa: F401

PACE = Settings(pages_to_scan=1000, scan_sleep_millisecs=500)


@pytest.fixture
def beside(before: Snapshot, predicted: object) -> PlanBeside:  # noqa: F811
    """A plan beside a guest in which all went as planned."""
    after = as_snapshot(before, predicted)  # type: ignore[arg-type]
    plan = plan_beside(before, after, PACE, PacedRun((), (0, 0), 1), Young.CAPTURED).plan
    assert plan.last_collapse_ms is not None
    collapses = [(0, order) for order, number in plan.windows.items() for _ in range(number)]
    collapses[-1] = plan.last_collapse_ms - 500, collapses[-1][1]
    paced = PacedRun(tuple(collapses), (4096, 4096 + plan.memory_added), 2)
    return plan_beside(before, after, PACE, paced, Young.CAPTURED)


def test_as_planned(beside: PlanBeside) -> None:
    assert beside.folios_exact and good_plan(beside)
    assert (beside.plan.settings.pages_to_scan, beside.plan.settings.max_ptes_none) == (1000, 0)
    bound = beside.plan.last_collapse_ms
    assert bound is not None and beside.engine_ms is not None and beside.engine_ms <= bound
    assert beside.memory_error == 0 < beside.time_error(bound) < 0.1
    assert sum(beside.after.values()) == beside.plan.mapped


def test_otherwise_than_planned(beside: PlanBeside) -> None:
    plan = beside.plan
    fewer = dict(beside.windows) | {9: beside.windows[9] - 1}
    for off in ({"windows": fewer}, {"after": {0: 4096}}, {"pmds": beside.pmds + 1}):
        other = dataclasses.replace(beside, **off)
        assert not other.folios_exact and not good_plan(other)
    more = dataclasses.replace(
        beside, plan=dataclasses.replace(plan, memory_added=2020), memory_added=2000
    )
    assert more.memory_error == 0.01 and good_plan(more)
    assert not good_plan(dataclasses.replace(more, memory_added=1900))
    assert dataclasses.replace(more, memory_added=0).memory_error == 1
    assert dataclasses.replace(beside, last_collapse_ms=None).time_error(1) == 1


def test_sizes_are_what_ptes_map(before: Snapshot) -> None:  # noqa: F811
    sizes, pmds = sizes_of(before)
    assert (set(sizes), pmds) == ({0}, 0)
