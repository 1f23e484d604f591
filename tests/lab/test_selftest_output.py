# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs of the kernel's test on a real 7.3.4 printed, as values."""

from __future__ import annotations

from pathlib import Path

import pytest

from mthp.lab.session.selftest import CaseResult, CaseVerdict, Context, Output, parse_output

SAVED = Path(__file__).parent.parent / "data/selftest"


def saved(name: str) -> Output:
    return parse_output((SAVED / f"linux-7.3.4-{name}.txt").read_text())


def test_the_default_run() -> None:
    output = saved("default")
    assert output.passed
    assert (output.planned, len(output.cases), output.bail_out) == (26, 26, "")
    assert [case.number for case in output.cases] == list(range(1, 27))
    first, second, third, *_, last = output.cases
    assert first == CaseResult(1, "allocate on fault and split", CaseVerdict.OK)
    assert second == CaseResult(2, "collapse_full", CaseVerdict.OK, "khugepaged", "anon")
    assert (third.name, third.context) == ("collapse_full", "madvise")
    assert (last.name, last.context) == ("madvise_collapse_existing_thps", "madvise")


def test_a_child_that_gave_up_is_told_though_the_case_is_ok() -> None:
    (complaint,) = saved("default").complaints
    assert complaint == "collapse_max_ptes_shared: Bail out! Unexpected huge page"


def test_one_size() -> None:
    output = saved("mthp-4")
    assert output.passed and output.complaints == ()
    assert [(case.name, case.context) for case in output.cases[1:]] == [
        (name, Context.MTHP.value)
        for name in ("collapse_full", "collapse_empty", "collapse_single_mthp")
    ]


def test_a_run_that_gave_up() -> None:
    """A guest of 1 GiB has no room for 512 huge pages."""
    output = saved("1gib")
    assert not output.passed
    assert (output.planned, output.bail_out) == (26, "Failed to allocate huge page")
    assert len(output.cases) == 15
    assert {case.verdict for case in output.cases[:14]} == {CaseVerdict.OK}
    last = output.cases[-1]
    assert (last.name, last.context) == ("collapse_compound_extreme", "madvise")
    assert last.verdict is CaseVerdict.NOT_OK
    assert output.complaints[-1] == "ended early: Failed to allocate huge page"


@pytest.mark.parametrize(
    ("line", "verdict", "name"),
    [
        ("ok 1 collapse_full", CaseVerdict.OK, "collapse_full"),
        ("not ok 1 collapse_full", CaseVerdict.NOT_OK, "collapse_full"),
        ("ok 1 # SKIP collapse_full", CaseVerdict.SKIP, "collapse_full"),
        ("ok 1 collapse_full # SKIP", CaseVerdict.SKIP, "collapse_full"),
        ("ok 1 - collapse_full", CaseVerdict.OK, "collapse_full"),
    ],
)
def test_a_result(line: str, verdict: CaseVerdict, name: str) -> None:
    (case,) = parse_output(f"TAP version 13\n1..1\n{line}\n").cases
    assert (case.verdict, case.name) == (verdict, name)


def test_what_failed_within_a_case() -> None:
    text = (
        "1..1\n# Run test: collapse_full (madvise:anon)\n"
        "# Collapse multiple... \x1b[31mFail: Bad return value\x1b[0m\nnot ok 1 collapse_full\n"
    )
    output = parse_output(text)
    assert not output.passed
    assert output.complaints == ("collapse_full: Collapse multiple... Fail: Bad return value",)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it printed nothing"),
        ("/tmp/khugepaged: Exec format error\n", "/tmp/khugepaged: Exec format error"),
        ("TAP version 13\n1..0 # SKIP Transparent Hugepages not available\n",
         "Transparent Hugepages not available"),
        ("1..2\nok 1 collapse_full\nBail out! mmap()\n", "mmap()"),
    ],
)  # fmt: skip
def test_a_run_that_says_nothing_passes_nothing(text: str, why: str) -> None:
    output = parse_output(text)
    assert not output.passed
    assert output.bail_out == why
