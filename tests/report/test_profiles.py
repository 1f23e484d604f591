# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp diff: the points with their reasons, and what they come to on one target."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import pytest

from mthp.predict.records import Clock, Effort, OrderUse, Outcome
from mthp.report.profiles import (
    differences_document,
    render_differences,
    render_outcome_diff,
)
from mthp.words.profiles import PMD_ONLY, PROFILES, V7_3, V16, Profile, differences
from mthp.words.results import ScanResult
from tests.report.samples import MIB, OUTCOME, REFUSALS, VMAS, console, golden, printed, raising

V16_BASIS = replace(OUTCOME.basis, profile="v16")

OTHER = replace(
    OUTCOME,
    basis=V16_BASIS,
    orders_after={**OUTCOME.orders_after, 4: OrderUse(16, MIB), 5: OrderUse(1, 128 * 1024)},
    memory_added=6 * MIB,
    successes=Effort(24, 48 * MIB, 24, 17_000, 48 * MIB),
    attempts={**OUTCOME.attempts, (4, ScanResult.SUCCEED): 0, (4, ScanResult.EXCEED_NONE_PTE): 2},
    clock=Clock(full_scans=3, wakeups=7, scan_sleep_ms=70_000, alloc_sleep_ms=0),
    refusals=REFUSALS[1:],
    vmas=(*VMAS[:1], VMAS[1]._replace(after={0: MIB}), *VMAS[2:]),
    counters={"khugepaged": {"full_scans": 3}},
)


@pytest.mark.parametrize(("a", "b"), list(product(PROFILES.values(), repeat=2)))
def test_points_are_printed_with_both_sides_and_the_reason(a: Profile, b: Profile) -> None:
    page = console(1000)
    render_differences(a, b, page)
    text = printed(page)
    for point, in_a, in_b, reason in differences(a, b):
        for words in (point, in_a.value, in_b.value, reason):
            assert words in text
    assert ("No difference between these profiles." in text) == (a is b)


def test_v16_and_what_was_merged() -> None:
    page = console()
    render_differences(V16, V7_3, page)
    golden("diff-v16-7.3.txt", printed(page))


def diff(a: Outcome, b: Outcome, width: int = 100) -> str:
    page = console(width)
    render_outcome_diff(a, b, page)
    return printed(page)


def test_on_a_target() -> None:
    golden("diff-target.txt", diff(OTHER, OUTCOME))


def test_the_same_on_a_target() -> None:
    same = replace(OUTCOME, basis=replace(V16_BASIS, profile_reason="asked for"), seconds=9.0)
    assert "No difference on this target." in diff(same, OUTCOME)


def test_what_differs_below_the_totals_is_no_sameness() -> None:
    moved = replace(OUTCOME, vmas=(VMAS[0]._replace(after={2: 132 * 1024}), *VMAS[1:]))
    assert "1 mapping ends" in diff(moved, OUTCOME)
    worded = replace(
        OUTCOME, refusals=(REFUSALS[0]._replace(change=raising("max_ptes_none", 5)), *REFUSALS[1:])
    )
    text = diff(worded, OUTCOME)
    assert "1 range is refused otherwise" in text
    assert "are missing; raise max_ptes_none to 5" in diff(worded, OUTCOME, 200)
    warned = diff(replace(OUTCOME, basis=V16_BASIS, warnings=("a WARN",)), OUTCOME)
    assert "Warnings under v16 alone\n  • a WARN" in warned
    assert "Warnings under 7.3 alone\n  • 3 pages" in warned
    assert "No difference" not in text + diff(moved, OUTCOME)


def test_an_interrupted_run_is_marked() -> None:
    text = diff(replace(OUTCOME, basis=V16_BASIS, complete=False), OUTCOME)
    assert "INCOMPLETE under v16" in text


def test_document() -> None:
    document = differences_document(PMD_ONLY, V7_3)
    assert json.loads(json.dumps(document)) == document
    assert document["profiles"] == ["pmd-only", "7.3"]
    assert document["points"][0]["point"] == "orders"
    assert document["points"][0]["a"]["name"] == "PMD_ONLY"
    assert "differs" not in document
    document = differences_document(V16, V7_3, (OTHER, OUTCOME))
    assert json.loads(json.dumps(document)) == document
    assert not document["same"]
    assert document["mappings_changed"] == document["refusals_changed"] == 1
    assert {"section": "orders_after", "key": "4.folios", "a": 16, "b": 64} in document["differs"]
    assert differences_document(V7_3, V7_3, (OUTCOME, OUTCOME))["same"]
