# SPDX-License-Identifier: GPL-2.0-or-later
"""The account of results: held against everything that real kernels were recorded to report."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from mthp.compare.coverage import (
    Chance,
    CountedOutcome,
    OutcomeCounts,
    OutcomeKind,
    every_outcome,
    expectation,
    outcomes,
    table,
)
from mthp.image.scenario import load
from mthp.words.events import Attempt, CollapseHugePage, Isolate, ScanPmd, Swapin
from mthp.words.results import FILE_ONLY, ScanResult

DATA = Path(__file__).parent.parent / "data"


@cache
def recorded() -> OutcomeCounts:
    coverage = OutcomeCounts()
    for name in ("linux-7.3.4.jsonl.xz", "linux-7.3.4-many-vmas.jsonl.xz"):
        for scenario in load(DATA / name):
            for each in scenario.passes:
                coverage.add_pass(each.events, each.errno)
    return coverage


def test_nothing_was_ever_recorded_that_is_said_to_be_out_of_reach() -> None:
    for chance in set(Chance) - {Chance.YES}:
        assert recorded().seen(chance) == []


def test_the_records_have_reached_much_of_it() -> None:
    """So that the reachable set is not only small enough but also large enough to be of use."""
    document = recorded().to_json()
    assert document["passes"] == recorded().passes > 800
    assert 0.8 < document["reached"] / document["reachable"] < 1
    assert recorded().counts[CountedOutcome(OutcomeKind.ISOLATE, "succeeded", 9)] > 100
    assert recorded().counts[CountedOutcome(OutcomeKind.SWAPIN, "failed", 9)] > 0
    assert recorded().counts[CountedOutcome(OutcomeKind.ERRNO, "EBUSY")] > 0


def test_typed_events_and_records_count_alike() -> None:
    result = ScanResult.EXCEED_SWAP_PTE
    pairs: list[tuple[object, dict[str, object]]] = [
        (
            ScanPmd(1, 0, 5, 1, 0, ScanResult.PMD_MAPPED, 0),
            {"event": "mm_khugepaged_scan_pmd", "status": "page_pmd_mapped"},
        ),
        (
            CollapseHugePage(1, 0, 0, result, 4),
            {"event": "mm_collapse_huge_page", "status": result.string, "order": 4},
        ),
        (
            Isolate(1, 0, 5, 0, 0, ScanResult.PAGE_COUNT, 3),
            {
                "event": "mm_collapse_huge_page_isolate",
                "status": "not_suitable_page_count",
                "order": 3,
            },
        ),
        (
            Swapin(1, 0, 0, 0, result, 4),
            {"event": "mm_collapse_huge_page_swapin", "ret": int(result), "order": 4},
        ),
        (Attempt(1, 0, 4), {"event": "attempt", "address": 0, "order": 4}),
    ]
    typed, plain = OutcomeCounts(), OutcomeCounts()
    typed.add_pass([each for each, _ in pairs], -22)  # type: ignore[misc]
    plain.add_pass([each for _, each in pairs], -22)
    assert typed.counts == plain.counts
    assert sum(typed.counts.values()) == 5
    assert not list(outcomes(Attempt(1, 0, 4)))


def test_accounts_add_up_and_go_through_json() -> None:
    document = json.loads(json.dumps(recorded().to_json()))
    again = OutcomeCounts.from_json(document)
    assert (again.passes, again.counts) == (recorded().passes, recorded().counts)
    again.add(recorded())
    assert again.passes == 2 * recorded().passes
    assert all(again.counts[each] == 2 * n for each, n in recorded().counts.items())


def test_every_result_that_was_never_seen_has_its_reason() -> None:
    unseen = OutcomeCounts().unseen()
    assert [each.outcome for each in unseen] == list(every_outcome())
    for each in unseen:
        assert bool(each.reason) is (each.chance is not Chance.YES)
    files = {each.outcome.result for each in unseen if each.chance is Chance.FILE}
    assert files == {result.string for result in FILE_ONLY}


@pytest.mark.parametrize(
    ("outcome", "chance"),
    [
        (CountedOutcome(OutcomeKind.SCAN, "page_lazyfree"), Chance.YES),
        (CountedOutcome(OutcomeKind.ISOLATE, "page_lazyfree", 4), Chance.RACE),
        (CountedOutcome(OutcomeKind.ATTEMPT, "page_lazyfree", 4), Chance.RACE),
        (CountedOutcome(OutcomeKind.SWAPIN, "page_lazyfree", 4), Chance.NEVER),
        (CountedOutcome(OutcomeKind.ISOLATE, "pte_mapped_hugepage", 8), Chance.YES),
        (CountedOutcome(OutcomeKind.ISOLATE, "pte_mapped_hugepage", 9), Chance.NEVER),
        (CountedOutcome(OutcomeKind.ATTEMPT, "pte_mapped_hugepage", 9), Chance.NEVER),
        (CountedOutcome(OutcomeKind.SWAPIN, "exceed_swap_pte", 9), Chance.NEVER),
        (CountedOutcome(OutcomeKind.ATTEMPT, "failed", 9), Chance.YES),
        (CountedOutcome(OutcomeKind.ATTEMPT, "failed", 4), Chance.NEVER),
        (CountedOutcome(OutcomeKind.ATTEMPT, "alloc_huge_page_failed", 2), Chance.YES),
        (CountedOutcome(OutcomeKind.ATTEMPT, "copy_poisoned_page", 2), Chance.RACE),
        (CountedOutcome(OutcomeKind.SCAN, "page_filled"), Chance.FILE),
        (CountedOutcome(OutcomeKind.ERRNO, "EAGAIN"), Chance.YES),
        (CountedOutcome(OutcomeKind.ERRNO, "EPERM"), Chance.NEVER),
    ],
)
def test_chances(outcome: CountedOutcome, chance: Chance) -> None:
    assert expectation(outcome)[0] is chance


def test_the_table_shows_counts_gaps_and_reasons() -> None:
    lines = table(recorded()).splitlines()
    attempts = lines[lines.index("") + 1 :]
    assert attempts[0].split() == [
        "mm_collapse_huge_page",
        *("16kB", "32kB", "64kB", "128kB", "256kB", "512kB", "1024kB", "2048kB"),
    ]
    succeeded = recorded().counts[CountedOutcome(OutcomeKind.ATTEMPT, "succeeded", 9)]
    assert attempts[2].split()[0] == "succeeded"
    assert attempts[2].split()[-1] == str(succeeded)
    assert "  alloc_huge_page_failed" + " " * 8 + "       ." * 8 in lines
    assert "never seen: page_filled: of files and shmem alone" in lines
    assert "never seen: ccgroup_charge_failed: reachable, but not drawn so far" in lines
