# SPDX-License-Identifier: GPL-2.0-or-later
"""The account of results: held against everything that real kernels were recorded to report."""

from __future__ import annotations

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
)
from mthp.image.scenario import load
from mthp.report.coverage import coverage_table
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
    assert [each for each in recorded().counts if expectation(each)[0] is not Chance.YES] == []


def test_the_records_have_reached_much_of_it() -> None:
    """So that the reachable set is not only small enough but also large enough to be of use."""
    document = recorded().to_json()
    assert document["passes"] == recorded().passes > 800
    assert 0.8 < document["reached"] / document["reachable"] < 1
    assert recorded().counts[CountedOutcome(OutcomeKind.ISOLATE, "succeeded", 9)] > 100
    assert recorded().counts[CountedOutcome(OutcomeKind.SWAPIN, "failed", 9)] > 0
    assert recorded().counts[CountedOutcome(OutcomeKind.ERRNO, "EBUSY")] > 0


def test_events_without_a_result_count_nothing() -> None:
    coverage = OutcomeCounts()
    coverage.add_pass([{"event": "attempt", "address": 0, "order": 4}])
    assert (coverage.passes, coverage.counts) == (1, {})


def test_one_pass_counts_every_event_and_its_errno() -> None:
    result = ScanResult.EXCEED_SWAP_PTE
    coverage = OutcomeCounts()
    coverage.add_pass(
        [
            {"event": "mm_khugepaged_scan_pmd", "status": "page_pmd_mapped"},
            {"event": "mm_collapse_huge_page", "status": result.string, "order": 4},
            {"event": "mm_collapse_huge_page_swapin", "ret": int(result), "order": 4},
        ],
        -22,
    )
    assert coverage.counts == {
        CountedOutcome(OutcomeKind.SCAN, "page_pmd_mapped"): 1,
        CountedOutcome(OutcomeKind.ATTEMPT, result.string, 4): 1,
        CountedOutcome(OutcomeKind.SWAPIN, result.string, 4): 1,
        CountedOutcome(OutcomeKind.ERRNO, "EINVAL"): 1,
    }


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
    lines = coverage_table(recorded()).splitlines()
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
