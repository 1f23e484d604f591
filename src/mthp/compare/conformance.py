# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs recorded scenarios on the engine and compares every event, counter and page with the kernel's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from mthp.compare.records import Conformance, Mismatch, MismatchKind
from mthp.image.runs import PagesState, encode_runs
from mthp.image.scenario import Scenario
from mthp.image.scenario_values import (
    MTHP_GAUGES,
    MTHP_STATS,
    RECORDED_EVENTS,
    VMSTAT_COUNTERS,
    Action,
    changed,
)
from mthp.khugepaged.daemon import Khugepaged
from mthp.khugepaged.madvise import madvise_collapse
from mthp.mm.folio import lru_add_drain_all
from mthp.mm.mm_types import Vma
from mthp.words.events import TRACEPOINTS, Attempt, Event
from mthp.words.profiles import Orders, Profile
from mthp.worlds.build import BuiltWorld, build_world
from mthp.worlds.render import canonical, render_state

ENDLESS_PAGES_TO_SCAN = 2**32 - 1
"""The lab's pages_to_scan, with which one wakeup is one full scan."""


@dataclass(frozen=True)
class PassResult:
    """What one pass of the engine did, in the terms of a recording. trace: the events themselves. killed: it
    asked the OOM killer, who in the engine spares everyone."""

    trace: list[Event]
    events: list[dict[str, Any]]
    counters: dict[str, Any]
    final: list[PagesState]
    errno: int | None
    killed: bool


def recorded_event(event: Event) -> dict[str, Any] | None:
    """An event with exactly the fields that a recording has; None for events that are not recorded."""
    name = "attempt" if isinstance(event, Attempt) else TRACEPOINTS.get(type(event), "")
    if name not in RECORDED_EVENTS:
        return None
    values = ((key, getattr(event, key)) for key in RECORDED_EVENTS[name])
    return {
        "event": name,
        **{key: value.string if key == "status" else int(value) for key, value in values},
    }


def run_pass(
    world: BuiltWorld, scenario: Scenario, vmas: Sequence[Vma] | None = None
) -> PassResult:
    """One full scan, or one MADV_COLLAPSE over the target, from drained LRU batches.

    vmas: the scenario's mappings in this world, if it has others too.
    """
    kernel, daemon = world.kernel, world.khugepaged
    own = list(world.vmas if vmas is None else vmas)
    events: list[Event] = []
    kernel.trace = events.append
    lru_add_drain_all(kernel.mem, kernel.cpus)
    mthp, vmstat = kernel.vmstat.mthp.copy(), kernel.vmstat.events.copy()
    before = _khugepaged_counters(daemon)
    warned = len(kernel.warnings)
    errno = None
    if scenario.action is Action.MADVISE_COLLAPSE:
        vma = own[scenario.target]
        errno = madvise_collapse(vma, vma.vm_start, vma.vm_end)
    else:
        daemon.khugepaged_do_scan()
    lru_add_drain_all(kernel.mem, kernel.cpus)
    stats: dict[str, dict[str, int]] = {}
    shown = MTHP_GAUGES if kernel.profile.orders is Orders.PMD_ONLY else MTHP_STATS
    for (order, name), change in changed(kernel.vmstat.mthp, mthp).items():
        if name in shown:
            stats.setdefault(str(order), {})[name] = change
    events_counted = changed(kernel.vmstat.events, vmstat)
    counters = {
        "stats": stats,
        "vmstat": {name: n for name, n in events_counted.items() if name in VMSTAT_COUNTERS},
        "khugepaged": changed(_khugepaged_counters(daemon), before),
    }
    recorded = [record for event in events if (record := recorded_event(event)) is not None]
    return PassResult(
        events,
        recorded,
        {kind: values for kind, values in counters.items() if values},
        render_state(kernel, own),
        errno,
        any(site.startswith("mem_cgroup_oom") for site in list(kernel.warnings)[warned:]),
    )


def _khugepaged_counters(daemon: Khugepaged) -> dict[str, int]:
    return {"full_scans": daemon.full_scans, "pages_collapsed": daemon.pages_collapsed}


def run_scenario(scenario: Scenario, profile: Profile, score: Conformance) -> list[PassResult]:
    """Run every recorded pass of a scenario, each from where the last one ended."""
    settings = scenario.settings.replace(pages_to_scan=ENDLESS_PAGES_TO_SCAN)
    world = build_world(scenario, profile, settings)
    results = []
    for number, recorded in enumerate(scenario.passes):
        result = run_pass(world, scenario)
        results.append(result)
        wrong = list(compare(scenario, number, result))
        score.passes += 1
        score.agreed += not wrong
        score.mismatches += wrong
        for event in recorded.events:
            key = str(event["event"]), str(event.get("status", event.get("ret", "")))
            score.outcomes[key] = score.outcomes.get(key, 0) + 1
    return results


def compare(scenario: Scenario, number: int, result: PassResult) -> Iterable[Mismatch]:
    """Every difference between a pass and its recording; of the events only the first.

    Where a process was killed, there are only the events until then to compare: what the kernel charges
    to a full cgroup beside folios, and kills for, is not in a record.
    """
    recorded = scenario.passes[number]

    def mismatch(kind: MismatchKind, expected: Any, got: Any, index: int | None = None) -> Mismatch:
        return Mismatch(scenario.id, number, kind, expected, got, index)

    got_events = result.events[: len(recorded.events)] if recorded.killed else result.events
    for i, (want, got) in enumerate(zip_longest(map(dict, recorded.events), got_events)):
        if want != got:
            yield mismatch(MismatchKind.EVENTS, want, got, i)
            break
    if recorded.killed:
        return
    if result.killed:
        yield mismatch(MismatchKind.KILLED, False, True)
    counters = _without_empty(recorded.counters)
    if scenario.registered and not any(scenario.registered):
        # The recording kernel had another process to scan, for its thread to stay alive.
        counters.pop("khugepaged", None)
    if counters != result.counters:
        yield mismatch(MismatchKind.COUNTERS, counters, result.counters)
    if recorded.errno != result.errno:
        yield mismatch(MismatchKind.ERRNO, recorded.errno, result.errno)
    pairs = zip(canonical(list(recorded.final)), canonical(result.final), strict=True)
    for i, (want_state, got_state) in enumerate(pairs):
        # Runs may be cut where they need not be: if they differ, pages are compared.
        if want_state.folios != got_state.folios and list(want_state.folio_pages()) != list(
            got_state.folio_pages()
        ):
            folios = encode_runs(want_state.folios), encode_runs(got_state.folios)
            yield mismatch(MismatchKind.FOLIOS, *folios, i)
        if want_state.ptes not in (None, got_state.ptes) and list(want_state.pte_pages()) != list(
            got_state.pte_pages()
        ):
            assert got_state.ptes is not None
            ptes = encode_runs(want_state.ptes), encode_runs(got_state.ptes)
            yield mismatch(MismatchKind.PTES, *ptes, i)
        if want_state.nodes != got_state.nodes:
            nodes = want_state.nodes_text(), got_state.nodes_text()
            yield mismatch(MismatchKind.NODES, *nodes, i)


def _without_empty(counters: Mapping[str, Any]) -> dict[str, Any]:
    return {kind: dict(values) for kind, values in counters.items() if values}


def run_conformance(scenarios: Iterable[Scenario], profile: Profile) -> Conformance:
    """Run all scenarios in order; the score over them."""
    score = Conformance()
    for scenario in scenarios:
        run_scenario(scenario, profile, score)
    return score
