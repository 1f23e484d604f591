# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans from a capture made in a guest, and holds the plan against what the guest's khugepaged did."""

from __future__ import annotations

from collections import Counter

import numpy as np

from mthp.compare.forecast import Mapped, codes
from mthp.compare.records import PlanBeside
from mthp.image.snapshot import Snapshot
from mthp.lab.session.pace import PACE, PacedRun
from mthp.plan.planner import Planner
from mthp.predict.outcome import Request, run_world
from mthp.words.profiles import profile_for_release
from mthp.words.settings import Settings
from mthp.words.units import Geometry
from mthp.worlds.build import arrays_of, build_world
from mthp.worlds.unseen import Assumed, Young


def plan_beside(
    before: Snapshot, after: Snapshot, settings: Settings, paced: PacedRun, young: Young
) -> PlanBeside:
    """Plan what khugepaged makes of `before` under the settings in it, at the pace of `settings`, and put
    beside it what it made in the guest. There no other process that the capture counts is on its list.
    """
    pace = {name: getattr(settings, name) for name in PACE}
    captured = Settings.from_sysfs(before.sysfs, before.geometry).replace(**pace)
    arrays, profile = arrays_of(before, Assumed(young)), profile_for_release(before.kernel)
    sizes, pmds = sizes_of(after)
    world = build_world(before, profile, captured, Assumed(young))
    outcome = run_world(world, Request("", "", "", changes=False))
    return PlanBeside(
        plan=Planner(arrays, profile, captured).plan(captured),
        windows=dict(sorted(paced.windows.items())),
        after=sizes,
        pmds=pmds,
        memory_added=paced.anonymous[1] - paced.anonymous[0],
        last_collapse_ms=paced.last_collapse_ms,
        engine_ms=outcome.clock.last_collapse_ms,
    )


def sizes_of(snapshot: Snapshot) -> tuple[dict[int, int], int]:
    """Bytes that all processes map, by the order of the folio behind them; and how many PMDs map one."""
    found: Counter[int] = Counter()
    pmds = 0
    geometry: Geometry = snapshot.geometry
    for process in snapshot.processes:
        values, numbers = np.unique(codes(process), return_counts=True)
        for code, number in zip(values.tolist(), numbers.tolist(), strict=True):
            if code == Mapped.PMD:
                pmds += number >> geometry.pmd_order
            if code >= 0:
                found[min(code, geometry.pmd_order)] += number << geometry.page_shift
    return dict(sorted(found.items())), pmds
