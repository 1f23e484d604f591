# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign's account, a scenario that was run, and two event lists side by side."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mthp.compare.paths import PathCount
from mthp.report.fuzz import fuzz_text, rerun_text, side_by_side
from tests.report.samples import golden

ATTEMPT: dict[str, Any] = {"event": "attempt", "address": 0x7E0000200000, "order": 4}
SWAPIN: dict[str, Any] = {
    "event": "mm_collapse_huge_page_swapin",
    "ret": 1,
    "order": 4,
    "swapped_in": 2,
    "referenced": 0,
}
ISOLATE: dict[str, Any] = {
    "event": "mm_collapse_huge_page_isolate",
    "status": "succeeded",
    "order": 4,
    "referenced": 16,
    "none_or_zero": 0,
}
COLLAPSE: dict[str, Any] = {"event": "mm_collapse_huge_page", "status": "succeeded", "order": 4}
SCAN: dict[str, Any] = {
    "event": "mm_khugepaged_scan_pmd",
    "status": "succeeded",
    "referenced": 500,
    "none_or_zero": 12,
    "unmapped": 0,
}
KERNEL = [ATTEMPT, SWAPIN, ISOLATE, COLLAPSE, SCAN]
WRONG = {
    "id": "7-3",
    "pass": 1,
    "where": "events[2]",
    "expected": ISOLATE,
    "got": {**ISOLATE, "status": "page_lru"},
}
CAMPAIGN: dict[str, Any] = {
    "schema_version": 1,
    "seed": 7,
    "kernel": "7.3.4+deb13-cloud-amd64",
    "family": "",
    "number": 40,
    "built": 38,
    "passes": 51,
    "agreed": 50,
    "mismatches": [WRONG],
    "not_built": [
        {"id": "7-11", "reason": "process s: its mappings are [], declared [(0, 512, True)]"},
        {"id": "7-30", "reason": "no free block of order 3 is left before a pass"},
    ],
    "families": {
        "nomem": {"drafts": 9, "passes": 8, "agreed": 8, "not_built": 2},
        "processes": {"drafts": 31, "passes": 43, "agreed": 42, "not_built": 0},
    },
}

ALL_RIGHT = PathCount(51, 51, 51, 9000, 700, nothing_changes=20, within_range=51)
SNAP = {
    **asdict(PathCount(51, 49, 40, 9000, 700, 512, 16, 20, 1, 50, 1)),
    "families": {
        "nomem": asdict(PathCount(8, 7, 6, 4000, 500, 512, 0, 4, 1, 8, 1)),
        "processes": asdict(PathCount(43, 42, 34, 5000, 200, 0, 16, 16, 0, 42)),
    },
    "causes": {
        "nomem": {"kernel: not scanned; predicted: succeeded at order 9": 512},
        "processes": {"one": 8, "two": 6, "three": 2},
    },
    "why_no_prediction": {"mthp snap: process 93 exited": 1},
}
CAMPAIGN["paths"] = {
    "scenario": {**asdict(ALL_RIGHT), "families": {}, "causes": {}, "why_no_prediction": {}},
    "snap": SNAP,
}
COVERAGE = "51 passes\n\nmm_collapse_huge_page  16kB\n  succeeded  4\n\n"
REPLAYED: dict[str, Any] = {
    "id": "a-0",
    "kernel": "7.3.4+deb13-cloud-amd64",
    "displacement": 0,
    "state_differs": [],
    "not_built": "",
    "passes": [{"kernel": {"events": KERNEL}, "engine": KERNEL}],
    "mismatches": [],
}


def test_side_by_side() -> None:
    ours = [ATTEMPT, SWAPIN, {**ISOLATE, "status": "page_lru"}]
    golden("side-by-side.txt", side_by_side(KERNEL, ours))


def test_only_lines_that_differ_are_marked() -> None:
    assert "*" not in side_by_side(KERNEL, KERNEL)
    marked = [line[0] for line in side_by_side(KERNEL[:3], KERNEL[1:]).splitlines()[1:]]
    assert marked == ["*"] * 4
    assert side_by_side([], []).count("\n") == 1


def test_a_campaign() -> None:
    golden("fuzz.txt", fuzz_text(CAMPAIGN, COVERAGE))


def test_a_campaign_with_nothing_to_tell() -> None:
    nothing = {"number": 0, "built": 0, "passes": 0, "agreed": 0, "families": {}, "paths": {}}
    document = {**CAMPAIGN, **nothing, "mismatches": [], "not_built": []}
    golden("fuzz-nothing.txt", fuzz_text(document, "0 passes\n"))


def test_many_disagreements_are_cut_and_said() -> None:
    many = [{**WRONG, "pass": number} for number in range(13)]
    lines = fuzz_text({**CAMPAIGN, "mismatches": many}, COVERAGE).splitlines()
    assert "disagreements (13):" in lines
    assert "  … and 3 more (--json has all)" in lines
    assert sum(line.startswith("  7-3 pass") for line in lines) == 10


def test_a_long_value_is_cut() -> None:
    long = {**WRONG, "expected": "x" * 101, "got": "y" * 100}
    text = fuzz_text({**CAMPAIGN, "mismatches": [long]}, COVERAGE)
    assert f"kernel {'x' * 99}…, engine {'y' * 100}\n" in text


def test_a_scenario_that_agrees() -> None:
    golden("replayed.txt", rerun_text(REPLAYED))


def test_a_scenario_that_differs() -> None:
    document = {
        **REPLAYED,
        "state_differs": ["vma 0: page 3 is -, wanted F0"],
        "passes": [
            {"kernel": {"events": KERNEL, "errno": 0}, "engine": KERNEL},
            {"kernel": {"events": KERNEL[:1], "errno": -11}, "engine": []},
        ],
        "mismatches": [{**WRONG, "id": "a-0", "where": "errno", "expected": -11, "got": 0}],
    }
    golden("replayed-differs.txt", rerun_text(document))


def test_many_differences_of_the_state_are_cut_and_said() -> None:
    many = [f"vmas[0] page {page}: Z PA, not -" for page in range(0, 24, 2)]
    lines = rerun_text({**REPLAYED, "state_differs": many}).splitlines()
    assert lines[10:13] == [
        "  the guest's state differs: vmas[0] page 18: Z PA, not -",
        "  … and 2 more (--json has all)",
        "pass 0",
    ]


def test_a_scenario_that_was_not_built() -> None:
    """Nothing ran: nothing agrees."""
    document = {**REPLAYED, "kernel": "", "not_built": "no such page", "passes": []}
    assert rerun_text(document) == "a-0 on no kernel\n  not built: no such page\n"
