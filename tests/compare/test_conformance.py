# SPDX-License-Identifier: GPL-2.0-or-later
"""Every recorded pass of a real 7.3.4 kernel is reproduced in full; the comparer would notice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mthp.compare.conformance import (
    ENDLESS_PAGES_TO_SCAN,
    compare,
    run_conformance,
    run_pass,
    run_scenario,
)
from mthp.compare.records import Conformance, Mismatch, MismatchKind
from mthp.image.runs import PageKind, PagesState
from mthp.image.scenario import RecordedPass, Scenario, load
from mthp.image.scenario_values import Action
from mthp.laws.broken import Kind
from mthp.laws.census import Census
from mthp.laws.watch import check_collapse, check_quiescent
from mthp.words.profiles import V7_3, profile_for_release
from mthp.worlds.build import build_world

DATA = Path(__file__).parent.parent / "data"
FILES = sorted(path.name for path in DATA.glob("l[ai][bn]*7.3.4*.jsonl.xz"))


@cache
def scenarios(name: str) -> tuple[Scenario, ...]:
    return tuple(load(DATA / name))


def everything() -> Iterator[Scenario]:
    for name in FILES:
        yield from scenarios(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_recorded_pass_agrees(name: str) -> None:
    score = run_conformance(scenarios(name), V7_3)
    assert [mismatch.to_json() for mismatch in score.mismatches[:3]] == []
    assert score.agreed == score.passes > 0


def test_an_older_kernels_passes_agree() -> None:
    """Of 6.18: slots that several PTEs name, swapped in; processes that khugepaged does not know."""
    older = list(load(DATA / "lab-6.18.15.jsonl.xz"))
    assert {scenario.registered for scenario in older} >= {(), (False,)}
    score = run_conformance(older, profile_for_release(older[0].kernel))
    assert [mismatch.to_json() for mismatch in score.mismatches[:3]] == []
    assert score.agreed == score.passes == 12
    assert run_conformance(older, V7_3).agreed < score.agreed


KNOWN = {"lab-mm-ids-7.3.4.jsonl.xz": (6, 4), "lab-6.18.15.jsonl.xz": (3, 3)}
"""File -> passes of states whose large folios say which processes they know, and those which that decides."""


@pytest.mark.parametrize("name", KNOWN)
def test_which_processes_a_large_folio_knows_decides(name: str) -> None:
    """The two that it knew have ended: it counts as shared although one process alone maps it. Without the
    field that would not be so."""
    known = [each for each in scenarios(name) if each.mm_ids]
    profile = profile_for_release(known[0].kernel)
    score = run_conformance(known, profile)
    assert [mismatch.to_json() for mismatch in score.mismatches[:3]] == []
    unknown = run_conformance([dataclasses.replace(each, mm_ids={}) for each in known], profile)
    assert (score.passes, score.passes - unknown.agreed) == KNOWN[name]


def test_what_waits_in_the_swap_cache_decides_how_often_is_read() -> None:
    """Folios that a disk was given come back whole, those of which a part is mapped too."""
    swapped = scenarios("lab-swap-cache-7.3.4.jsonl.xz")
    assert any(each.folio is not None for scenario in swapped for each in scenario.swap_cache)
    score = run_conformance(swapped, V7_3)
    assert [mismatch.to_json() for mismatch in score.mismatches[:3]] == []
    assert score.agreed == score.passes == 12
    empty = [dataclasses.replace(each, swap_cache=()) for each in swapped]
    assert run_conformance(empty, V7_3).agreed == 5


def test_how_many_free_blocks_there_are_of_each_order_decides() -> None:
    """The last ones of an order, larger ones split, the per-CPU list of the PMD order, the watermark."""
    scarce = scenarios("lab-fragmented-7.3.4.jsonl.xz")
    score = run_conformance(scarce, V7_3)
    assert [mismatch.to_json() for mismatch in score.mismatches[:3]] == []
    assert score.agreed == score.passes == 8
    assert score.outcomes["mm_collapse_huge_page", "alloc_huge_page_failed"] == 54
    others = (
        [dataclasses.replace(each, free_blocks=None) for each in scarce],
        [dataclasses.replace(each, free_blocks={each.largest_block: 1000}) for each in scarce],
        [dataclasses.replace(each, reserve=12_000) for each in scarce],
    )
    for other in others:
        assert run_conformance(other, V7_3).agreed < 4


def on_one_node(scenario: Scenario) -> Scenario:
    """The same as older records had it."""

    def without(state: PagesState) -> PagesState:
        return dataclasses.replace(state, nodes=())

    vmas = [dataclasses.replace(vma, initial=without(vma.initial)) for vma in scenario.vmas]
    passes = [
        dataclasses.replace(each, final=tuple(map(without, each.final))) for each in scenario.passes
    ]
    return dataclasses.replace(scenario, vmas=tuple(vmas), passes=tuple(passes), distances=())


def test_which_node_each_page_lies_on_decides() -> None:
    """Tables on nodes too far apart, and on which node the new folio lies."""
    spread = scenarios("lab-nodes-7.3.4.jsonl.xz")
    score = run_conformance(spread, V7_3)
    assert [mismatch.to_json() for mismatch in score.mismatches[:3]] == []
    assert score.agreed == score.passes == 14
    assert score.outcomes["mm_khugepaged_scan_pmd", "scan_aborted"] > 5
    near = [dataclasses.replace(each, distances=((10, 30), (30, 10))) for each in spread]
    assert run_conformance(near, V7_3).agreed < 10
    alone = run_conformance(list(map(on_one_node, spread)), V7_3)
    assert alone.passes - alone.agreed > 5
    swapped = [
        dataclasses.replace(
            scenario,
            passes=tuple(
                dataclasses.replace(each, final=tuple(map(on_the_other, each.final)))
                for each in scenario.passes
            ),
        )
        for scenario in spread
    ]
    kinds = {mismatch.kind for mismatch in run_conformance(swapped, V7_3).mismatches}
    assert kinds == {MismatchKind.NODES}


def on_the_other(state: PagesState) -> PagesState:
    """What lies on node 0 lies on node 1, and the reverse."""
    nodes = tuple((pages, node if node is None else 1 - node) for pages, node in state.nodes)
    return dataclasses.replace(state, nodes=nodes)


def alone(states: Iterable[PagesState]) -> int:
    """Small pages that nobody else maps."""
    return sum(
        pages
        for state in states
        for pages, token in state.folios
        if token.kind is PageKind.FOLIO and not token.order and token.mapcount == 1
    )


def frames_are_plain(scenario: Scenario) -> bool:
    """Whether its state tells each frame: nothing in swap or its cache, no small page mapped twice."""
    return not any(
        token.kind is PageKind.SWAP
        or "C" in token.flags
        or (not token.order and token.folio is not None)
        for vma in scenario.vmas
        for _, token in vma.initial.folios
    )


def check_frames(recordings: Iterable[Scenario]) -> int:
    """Hold the change of the frames in use against recordings, pass by pass; how many changed some.

    The kernel counts large folios as long as they live, mapped in part or by others too (nr_anon);
    the small ones are those of the recorded state.
    """
    changed = 0
    for scenario in filter(frames_are_plain, recordings):
        settings = scenario.settings.replace(pages_to_scan=ENDLESS_PAGES_TO_SCAN)
        world = build_world(scenario, V7_3, settings)
        allocator = world.kernel.mem.allocator
        first, small, expected = allocator.frames_out(), alone(v.initial for v in scenario.vmas), 0
        for recorded in scenario.passes:
            run_pass(world, scenario)
            stats = recorded.counters.get("stats", {})
            expected += sum(each.get("nr_anon", 0) << int(order) for order, each in stats.items())
            expected += alone(recorded.final) - small
            small = alone(recorded.final)
            assert allocator.frames_out() - first == expected, scenario.id
            changed += expected != 0
    return changed


def test_frames_in_use_change_as_the_kernel_counted() -> None:
    assert check_frames(scenarios("lab-fuzz-7.3.4.jsonl.xz")[::4]) > 2


@pytest.mark.slow
def test_frames_in_use_change_in_every_recording_as_the_kernel_counted() -> None:
    assert check_frames(everything()) > 100


def test_all_records_are_here() -> None:
    assert (
        sum(len(scenario.passes) for scenario in everything())
        == 875 + 29 + 160 + 6 + 14 + 14 + 12 + 8
    )


LOSES_SOFT_DIRTY = {"hand:softdirty-ro-16k"}
"""Linux 7.3.4 itself does: below PMD order, in a mapping that may not be written."""


@pytest.mark.slow
def test_recorded_worlds_keep_the_laws() -> None:
    """Every fourth record: sound when built, and after each pass."""
    for scenario in list(everything())[::4]:
        world = build_world(scenario, V7_3)
        world.kernel.settings = scenario.settings.replace(pages_to_scan=ENDLESS_PAGES_TO_SCAN)
        before = Census(world.kernel)
        outside = before.outside
        assert check_quiescent(world.kernel, world.khugepaged, outside) == [], scenario.id
        for _ in scenario.passes:
            run_pass(world, scenario)
            broken = check_quiescent(world.kernel, world.khugepaged, outside)
            assert broken == [], scenario.id
            lost = check_collapse(before, world.kernel)
            assert lost == [] or scenario.id in LOSES_SOFT_DIRTY, scenario.id
            assert {each.object.kind for each in lost} <= {Kind.SOFT_DIRTY_MARK}


# The comparer


def find(action: Action) -> Scenario:
    """A record with events and an outcome worth changing."""
    for scenario in everything():
        recorded = scenario.passes[0]
        if scenario.action is action and recorded.events and recorded.counters:
            return scenario
    raise AssertionError


def differences(scenario: Scenario, **changed: Any) -> list[Mismatch]:
    """What is found if the first recorded pass had been another."""
    recorded = dataclasses.replace(scenario.passes[0], **changed)
    score = Conformance()
    run_scenario(dataclasses.replace(scenario, passes=(recorded,)), V7_3, score)
    assert score.passes == 1
    assert score.agreed == (not score.mismatches)
    return score.mismatches


@pytest.fixture(scope="module")
def scan() -> Scenario:
    return find(Action.KHUGEPAGED)


def events_of(recorded: RecordedPass) -> list[dict[str, Any]]:
    return [dict(event) for event in recorded.events]


def test_the_records_as_they_are(scan: Scenario) -> None:
    assert differences(scan) == []


def test_a_changed_event_is_noticed(scan: Scenario) -> None:
    events = events_of(scan.passes[0])
    for i, event in enumerate(events[:12]):
        for key, value in event.items():
            wrong = [*events]
            wrong[i] = {**event, key: f"{value}!" if isinstance(value, str) else value + 1}
            (found,) = differences(scan, events=tuple(wrong))
            assert found.where == f"events[{i}]"
            assert (found.expected, found.got) == (wrong[i], event)
            assert found.to_json()["pass"] == 0


def test_a_missing_an_extra_and_a_swapped_event_are_noticed(scan: Scenario) -> None:
    events = events_of(scan.passes[0])
    (missing,) = differences(scan, events=tuple(events[:-1]))
    assert (missing.where, missing.expected) == (f"events[{len(events) - 1}]", None)
    (extra,) = differences(scan, events=(*events, events[0]))
    assert (extra.where, extra.got) == (f"events[{len(events)}]", None)
    (swapped,) = differences(scan, events=(events[-1], *events[:-1]))
    assert swapped.where == "events[0]"


def test_a_changed_counter_is_noticed(scan: Scenario) -> None:
    counters = {kind: dict(values) for kind, values in scan.passes[0].counters.items()}
    for wrong in (
        {},
        {**counters, "khugepaged": {**counters.get("khugepaged", {}), "full_scans": 2}},
        {**counters, "vmstat": {"thp_collapse_alloc_failed": 1}},
        {**counters, "stats": {"9": {"collapse_alloc_failed": 1}}},
    ):
        assert [each.where for each in differences(scan, counters=wrong)] == ["counters"]


def test_a_changed_errno_is_noticed() -> None:
    madvise = find(Action.MADVISE_COLLAPSE)
    right = madvise.passes[0].errno
    assert right is not None
    (found,) = differences(madvise, errno=-11 if right == 0 else 0)
    assert (found.where, found.got) == ("errno", right)


def test_a_changed_final_state_is_noticed(scan: Scenario) -> None:
    final = scan.passes[0].final
    state = final[0]
    (count, token), *rest = state.folios
    marked = dataclasses.replace(token, flags=token.flags + "I")
    changed = dataclasses.replace(state, folios=((count, marked), *rest))
    found = differences(scan, final=(changed, *final[1:]))
    assert [each.where for each in found] == ["final[0].folios"]
    assert state.ptes is not None
    (count, entry), *more = state.ptes
    flipped = entry.letters.replace("D", "") if "D" in entry.letters else entry.letters + "D"
    ptes = ((count, dataclasses.replace(entry, letters=flipped)), *more)
    found = differences(scan, final=(dataclasses.replace(state, ptes=ptes), *final[1:]))
    assert [each.where for each in found] == ["final[0].ptes"]


def test_events_and_state_are_both_reported() -> None:
    scenario = find(Action.KHUGEPAGED)
    world = build_world(scenario, V7_3)
    world.kernel.settings = scenario.settings.replace(pages_to_scan=ENDLESS_PAGES_TO_SCAN)
    result = run_pass(world, scenario)
    assert list(compare(scenario, 0, result)) == []
    worse = dataclasses.replace(result, events=[], counters={}, errno=-1)
    assert [each.where for each in compare(scenario, 0, worse)] == [
        "events[0]",
        "counters",
        "errno",
    ]
