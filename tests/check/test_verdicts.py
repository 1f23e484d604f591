# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said of a world tells what was explored; each verdict is shown on something real."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from mthp.check.check import check_world, hunt
from mthp.check.jobs import Jobs
from mthp.check.records import Verdict, WorldResult, is_not_run
from mthp.check.scorecard import ScorecardRow
from mthp.check.search import Budget, By, SearchControl
from mthp.khugepaged import collapse
from mthp.races.edits import source_of
from mthp.races.mutants.rules import MUTANTS
from mthp.races.protocol import protocol
from mthp.races.stage import Size
from mthp.races.world import RaceWorld

GUP = RaceWorld(Size.PMD, "7.3", ("gup",))
MIGRATE = RaceWorld(Size.PMD, "7.3", ("migrate",))
HEAD = "def collapse_huge_page(mm, start_addr, referenced, unmapped, cc, order):\n"
FAILS = f"from mthp.words.results import ScanResult\n{HEAD}    return ScanResult.FAIL\n"
LIVELOCK = f"{HEAD}    while True:\n        with mm.mmap_read_lock():\n            pass\n"
STILL = f"{HEAD}    while True:\n        pass\n"
UNCALLED = "def madvise_collapse_locked(vma, start, end, mmap_lock):\n    return 0\n"

Own = Callable[[str], AbstractContextManager[object]]


def checked(world: RaceWorld = GUP, by: By = By.BEST, executions: int | None = None) -> WorldResult:
    """The world's result, without what it took."""
    result = check_world(world, Budget(executions), control=SearchControl(by=by))
    return replace(result, seconds=0.0)


EVERY = [By.BEST, *(pytest.param(by, marks=pytest.mark.slow) for by in By if by is not By.BEST)]


@pytest.mark.parametrize("by", EVERY)
def test_clean_says_what_the_collapses_came_to(by: By) -> None:
    result = checked(by=by)
    assert (result.verdict, result.reason) == (Verdict.CLEAN, "")
    assert dict(result.covered.results) == {"succeeded": 4, "not_suitable_page_count": 1}
    assert sum(often for _, often in result.covered.results) == result.covered.executions
    assert result == checked()


@pytest.mark.parametrize("by", EVERY)
def test_what_was_bounded_is_not_clean(by: By) -> None:
    result = checked(MIGRATE, by, executions=7)
    assert result.verdict is Verdict.NO_BREACH
    assert sum(often for _, often in result.covered.results) == 7


@pytest.mark.parametrize("by", EVERY)
def test_a_protocol_that_always_fails_is_vacuous(own: Own, by: By) -> None:
    with own(FAILS):
        result = checked(by=by)
    assert (result.verdict, result.reason) == (Verdict.VACUOUS, "every collapse ended with failed")
    assert result.covered.kind == "exhaustive"


def test_a_world_can_be_vacuous_by_itself() -> None:
    result = checked(RaceWorld.parse("window+two-vmas", "7.3", ("fault",)))
    assert result.verdict is Verdict.VACUOUS
    assert result.reason == "a table of which another mapping has a part is left alone"


@pytest.mark.parametrize("by", [By.REFERENCE, pytest.param(By.COMPILED, marks=pytest.mark.slow)])
def test_a_livelock_breaks_law_9(own: Own, by: By) -> None:
    with own(LIVELOCK):
        result = checked(by=by)
    assert result.verdict is Verdict.BROKEN
    assert result.violation is not None
    (breach,) = result.violation.breaches
    assert breach.law == 9
    assert "livelock" in breach.text
    assert len(result.violation.calls) < 60
    assert any("times more" in call.function for call in result.violation.calls)


def test_a_task_that_takes_no_step_breaks_law_9(own: Own) -> None:
    with own(STILL):
        result = checked()
    assert result.violation is not None
    assert (9, "khugepaged: it takes no step, for 0.5 s of CPU time") in {
        (breach.law, breach.text) for breach in result.violation.breaches
    }


@pytest.mark.parametrize("by", EVERY)
def test_what_is_never_called_is_not_run(own: Own, by: By) -> None:
    with own(UNCALLED):
        result = checked(by=by)
        assert result.verdict is Verdict.NOT_RUN
        assert result.reason == "nothing that was replaced is called"
        assert checked(RaceWorld.parse("pmd+madvise", "7.3", ()), by).verdict is not Verdict.NOT_RUN


def test_a_mutant_whose_rule_is_never_asked_for_is_not_run() -> None:
    mutant = MUTANTS["A16"]
    assert not is_not_run(hunt(mutant).ran)
    elsewhere = replace(mutant, edits=MUTANTS["A21"].edits)
    result = hunt(elsewhere, Budget(5))
    assert is_not_run(result.ran)
    assert check_world(GUP, mutant="A21").verdict is Verdict.NOT_RUN


def test_an_expected_finding() -> None:
    assert checked(RaceWorld.parse("window+hook", "v16", ())).verdict is Verdict.EXPECTED


# Which lines ran


def never_ran(result: WorldResult, file: str) -> list[int]:
    """The lines of a file that did not run."""
    (lines,) = (each for each in result.ran if each.file == file)
    return lines.never_ran


def places(module: str, text: str) -> list[int]:
    """The lines of a module that contain a text."""
    lines = source_of(module).splitlines()
    return [number for number, line in enumerate(lines, 1) if text in line]


@pytest.mark.parametrize("by", EVERY)
def test_lines_that_ran_in_any_execution_are_known(by: By) -> None:
    (refused,) = places("khugepaged.isolate", "raise Refused(ScanResult.PTE_UFFD)")
    (swapin,) = places("khugepaged.collapse", "__collapse_huge_page_swapin(")
    with_gup, with_swap = checked(by=by), checked(RaceWorld(Size.PMD, "7.3", ("swap-in",)), by)
    assert refused in never_ran(with_gup, "isolate.py")
    assert swapin in never_ran(with_gup, "collapse.py")
    assert swapin not in never_ran(with_swap, "collapse.py")
    (count,) = places("khugepaged.isolate", "raise Refused(ScanResult.PAGE_COUNT)")
    assert count not in never_ran(with_gup, "isolate.py")


def test_lines_of_a_protocol_are_its_own(own: Own) -> None:
    text = f"{HEAD}    if order > 9:\n        return None\n    return helper(\n        mm)\n"
    text += "\n\ndef helper(mm):\n    def never():\n        return 1\n\n    return None\n"
    with own(text):
        result = checked()
    (lines,) = result.ran
    assert (lines.file, lines.never_ran) == ("own.py", [3, 10])
    assert lines.lines == sum(1 << line for line in (2, 3, 4, 9, 10, 12))


def test_two_processes_say_the_same_as_one() -> None:
    jobs = [ScorecardRow(world, Budget()) for world in (GUP, MIGRATE)]
    for by in (By.BEST, By.REFERENCE):
        found = [
            replace(row, seconds=0.0) for _, row in Jobs(jobs, processes=2, turn=0.0, by=by).run()
        ]
        assert found == [checked(GUP), checked(MIGRATE)]


def test_the_engine_is_as_it_was() -> None:
    before = collapse.collapse_huge_page.__code__
    checked()
    assert collapse.collapse_huge_page.__code__ is before
    assert "__ran__" not in vars(collapse)


@pytest.fixture(name="own")
def _own(tmp_path: Path) -> Own:
    """A protocol file of a text, in force."""

    def put(text: str) -> AbstractContextManager[object]:
        file = tmp_path / "own.py"
        file.write_text(text, encoding="utf-8")
        return protocol(file)

    return put
