# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans held against the engine, which runs over all tables of the same image to its fixed point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mthp.image.snapshot import Pte
from mthp.plan.planner import Planner
from mthp.plan.records import BulkVerdict
from mthp.predict.outcome import Request, run_world
from mthp.predict.passes import Windows
from mthp.words.events import CollapseHugePage, Event
from mthp.words.profiles import Profile
from mthp.words.results import ScanResult
from mthp.words.settings import Settings
from mthp.worlds.arrays import WorldArrays
from mthp.worlds.build import build_arrays

Facts = dict[str, object]
Place = tuple[int, int]
"""A process, and an address."""


@dataclass(frozen=True)
class EngineRun:
    """What the engine made of an image. tried: tables of which it tried any window. windows: that collapsed.
    last_collapse_ms: after which nothing collapses."""

    facts: Facts
    windows: Windows
    tried: frozenset[Place]
    last_collapse_ms: int | None


def said(plan: BulkVerdict) -> Facts:
    """What a plan claims."""
    return {
        "windows": dict(plan.windows),
        "mapped before": dict(plan.before),
        "mapped at the fixed point": dict(plan.after),
        "memory added, by mapping": dict(plan.added_by_vma),
        "memory added": plan.memory_added,
        "copied": plan.copied_bytes,
        "translations": plan.translations,
    }


def engine(arrays: WorldArrays, settings: Settings, profile: Profile) -> EngineRun:
    """What the engine makes of all tables."""
    tried: set[Place] = set()
    down = settings.geometry.pmd_addr

    def note(event: Event) -> None:
        if isinstance(event, CollapseHugePage):
            tried.add((event.mm, down(event.address)))

    request = Request("", "", "", changes=False, on_event=note)
    outcome = run_world(build_arrays(arrays, settings, profile), request)
    assert outcome.fixed_point
    windows = {
        order: nr
        for (order, status), nr in sorted(outcome.attempts.items())
        if status is ScanResult.SUCCEED
    }
    before, after = Counter[int](), Counter[int]()
    for vma in outcome.vmas:
        before.update(vma.before)
        after.update(vma.after)
    added = {(vma.pid, vma.start): vma.memory_added for vma in outcome.vmas if vma.memory_added}
    zero = sum(vma.zero for vma in outcome.vmas) // settings.geometry.page_size
    zero -= huge_zero_pages(arrays) * (settings.geometry.ptrs_per_pte - 1)
    facts = {
        "windows": windows,
        "mapped before": dict(+before),
        "mapped at the fixed point": dict(+after),
        "memory added, by mapping": added,
        "memory added": outcome.memory_added,
        "copied": outcome.copied_bytes,
        "translations": outcome.tlb_after - zero,
    }
    return EngineRun(facts, request.windows, frozenset(tried), outcome.clock.last_collapse_ms)


def huge_zero_pages(arrays: WorldArrays) -> int:
    """How many PMDs of anonymous mappings map the huge zero page: one translation each."""
    found = 0
    for process in arrays.processes:
        tables = process.tables
        zero = (tables.pte & (Pte.HUGE | Pte.ZERO) == Pte.HUGE | Pte.ZERO).all(axis=1)
        for vma in process.vmas:
            if vma.file is None or vma.anon_vma:
                within = (tables.table_address >= vma.start) & (tables.table_address < vma.end)
                found += int(np.count_nonzero(zero & within))
    return found


def differences(
    planner: Planner, plan: BulkVerdict, run: EngineRun, counted: frozenset[Place] | None = None
) -> list[str]:
    """Where a plan and the engine's run differ, a line each. counted: tables that the plan is known to have
    counted, of which each window is held against the engine's; None: all, if it has counted all."""
    found = [
        f"{name}: the plan says {claim}, the engine {run.facts[name]}"
        for name, claim in said(plan).items()
        if claim != run.facts[name]
    ]
    if (plan.last_collapse_ms is None) != (run.last_collapse_ms is None) or (
        plan.last_collapse_ms or 0
    ) < (run.last_collapse_ms or 0):
        found.append(
            f"the last collapse: the plan says within {plan.last_collapse_ms} ms, the engine "
            f"{run.last_collapse_ms} ms"
        )
    if (counted is None and plan.engine_tables) or plan.all_engine:
        return found
    down = plan.settings.geometry.pmd_addr
    ours, theirs = (
        {
            (pid, *window)
            for pid, windows in each.items()
            for window in windows
            if counted is None or (pid, down(window[0])) in counted
        }
        for each in (planner.windows(plan.settings), run.windows)
    )
    for side, windows in (("plan", ours - theirs), ("engine", theirs - ours)):
        for pid, address, order in sorted(windows)[:3]:
            found.append(
                f"{len(windows)} windows are the {side}'s alone: {pid} {address:#x} of order {order}"
            )
    return found


def compare(
    arrays: WorldArrays, settings: list[Settings], profile: Profile
) -> Iterator[BulkVerdict]:
    """Hold plans under several settings against the engine."""
    arrays = replace(arrays, processes=[*arrays.processes])
    planner = Planner(arrays, profile, settings[0])
    for each in settings:
        plan = planner.plan(each)
        found = differences(planner, plan, engine(arrays, each, profile))
        assert not found, (each, plan.counted_tables, plan.engine_tables, found)
        yield plan
