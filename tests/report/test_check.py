# SPDX-License-Identifier: GPL-2.0-or-later
"""What is printed of worlds: bounded beside clean is never the same, and reasons are told."""

from __future__ import annotations

import dataclasses

from mthp.check.records import (
    DrawnRace,
    MutantResult,
    MutantVerdict,
    RanLines,
    Violation,
    WorldResult,
)
from mthp.explore.outcome import Coverage, Extent, Results
from mthp.report.check import (
    never_ran_lines,
    scorecard_tests,
    totals_lines,
    world_line,
    world_test,
    worlds_document,
)
from mthp.report.ktap import KtapVerdict, ktap_lines
from tests.report.strict_ktap import read_ktap


def row(rival: str, kind: Extent, results: Results, replacing: int = 0) -> WorldResult:
    covered = Coverage(kind, 3, bound="" if kind is Extent.EXHAUSTIVE else "…", results=results)
    ran = RanLines("own.py", 0b11110110, 0b10010, replacing)
    return WorldResult("7.3", "", "pmd", ("khugepaged", rival), covered, None, "", 0.04, (ran,))


CLEAN = row("gup", Extent.EXHAUSTIVE, (("page_locked", 1), ("succeeded", 1_002)))
BOUNDED = row("zap", Extent.BOUNDED, (("succeeded", 3),))
REFUSED = row("fault", Extent.EXHAUSTIVE, (("failed", 2), ("page_locked", 1)))
NOTHING = row("exit", Extent.EXHAUSTIVE, ())
NOT_RUN = row("load", Extent.EXHAUSTIVE, (("succeeded", 3),), 0b100)


def test_a_line_says_what_was_explored() -> None:
    lines = [world_line(each)[53:] for each in (CLEAN, BOUNDED, REFUSED, NOTHING, NOT_RUN)]
    exhaustive = "exhaustive in this world with these tasks: 3 executions"
    assert lines == [
        f"clean              {exhaustive}; collapses: 1,002 succeeded, 1 page_locked, 0.0 s",
        "no breach found    bounded: 3 executions; …; collapses: 3 succeeded, 0.0 s",
        f"vacuous            {exhaustive}; every collapse ended with failed, page_locked, 0.0 s",
        f"vacuous            {exhaustive}; no collapse ended, 0.0 s",
        f"not run            {exhaustive}; nothing that was replaced is called, 0.0 s",
    ]


def test_totals_tell_clean_from_bounded_and_why_some_say_nothing() -> None:
    assert totals_lines([CLEAN, CLEAN, BOUNDED, REFUSED, REFUSED, NOTHING]) == [
        "6 worlds",
        "     2 clean, explored exhaustively",
        "     1 no breach found, but bounded",
        "     3 vacuous",
        "           2 every collapse ended with failed, page_locked",
        "           1 no collapse ended",
    ]


def test_lines_that_never_ran_in_any_world() -> None:
    other = RanLines("own.py", 0b11110110, 0b1000000, 0)
    untouched = RanLines("copy.py", 0b110, 0, 0)
    assert never_ran_lines([CLEAN.ran, (other, untouched)]) == [
        "lines of the protocol: 8; 5 of them never ran:",
        "    own.py 2, 5, 7; all of copy.py",
    ]
    assert never_ran_lines([(RanLines("own.py", 2, 2, 0),)]) == [
        "lines of the protocol: 1; all of them ran"
    ]


def test_documents_say_it_too() -> None:
    document = worlds_document([CLEAN, REFUSED])
    clean, refused = document["profiles"]
    assert (clean["verdict"], clean["reason"]) == ("clean", None)
    assert clean["coverage"]["results"] == {"page_locked": 1, "succeeded": 1_002}
    assert (refused["verdict"], refused["clean"]) == ("vacuous", True)
    assert refused["reason"] == "every collapse ended with failed, page_locked"
    assert document["never_ran"] == {"own.py": "2, 5-7"}


def test_what_a_search_covered_is_in_its_test_and_no_reason_to_believe_is_a_skip() -> None:
    tests = [world_test(each) for each in (CLEAN, BOUNDED, REFUSED, NOT_RUN)]
    clean, bounded, refused, not_run = read_ktap("".join(f"{line}\n" for line in ktap_lines(tests)))
    assert clean.notes == ["exhaustive in this world with these tasks: 3 executions"]
    assert bounded.passed and bounded.notes[0].startswith("bounded: ")
    assert refused.directive == not_run.directive == "SKIP"
    assert refused.data == "every collapse ended with failed, page_locked"
    race = Violation(("khugepaged",), (), DrawnRace((), (), (), 0), (), (), 1, 0, "token")
    known = dataclasses.replace(CLEAN, violation=race, expected_finding="F1")
    assert (world_test(known).verdict, world_test(known).reason) == (KtapVerdict.XFAIL, "F1")


def test_a_rule_is_ok_where_its_loss_is_noticed() -> None:
    caught = MutantResult(
        "A1", "collapse.py", "the lock is taken", MutantVerdict.CAUGHT, (4,), (4,), CLEAN.covered,
        None, "", 1.0,
    )  # fmt: skip
    masked = dataclasses.replace(caught, verdict=MutantVerdict.MASKED, masked_by="A2 does it too")
    missed = dataclasses.replace(caught, verdict=MutantVerdict.MISSED)
    worlds, mutants = scorecard_tests([CLEAN], [caught, masked, missed])
    assert [part.verdict for part in mutants.parts] == [
        KtapVerdict.OK, KtapVerdict.SKIP, KtapVerdict.NOT_OK,
    ]  # fmt: skip
    assert (worlds.verdict, mutants.verdict) == (KtapVerdict.OK, KtapVerdict.NOT_OK)
