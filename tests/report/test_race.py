# SPDX-License-Identifier: GPL-2.0-or-later
"""Races as kernel lists draw them."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import pytest

from mthp.check.check import hunt
from mthp.check.cone import MOST_LINES
from mthp.check.drawing import replay
from mthp.check.records import DrawnRace, RaceStep, Violation, WordKind
from mthp.races.mutants.rules import MUTANTS
from mthp.report.check import full_violation_lines, violation_lines
from mthp.report.race import change_of, function_of, headline, race_lines, rows
from tests.report.samples import golden

RACES = ("A16", "A2", "A14b", "clean")

QUICK = ("A2", "A3", "A14b", "A16", "V3", "X5")
SOME = [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in MUTANTS]
"""Every mutant; most of them are hunted by tests/races/test_mutants.py anyway."""


@cache
def race(name: str) -> Violation:
    """A mutant's race, or an execution without one."""
    if name == "clean":
        return replay("as-is:7.3:pmd:-:a0")
    violation = hunt(MUTANTS[name]).violation
    assert violation is not None
    return violation


@pytest.mark.parametrize("name", ["A16", "A2", "A14b"])
def test_a_race(name: str) -> None:
    golden(f"race-{name}.txt", "\n".join(violation_lines(race(name), 80)) + "\n")


def test_all_of_a_race() -> None:
    """As it was drawn before there was a short drawing."""
    golden("race-A16-full.txt", "\n".join(full_violation_lines(race("A16"), 100)) + "\n")


def test_nothing_to_tell() -> None:
    assert race_lines(race("clean"), 80)[:3] == ["no law is broken", "", "CPU0 khugepaged"]


@pytest.mark.parametrize("mutant", SOME)
def test_every_known_race_has_few_lines(mutant: str) -> None:
    violation = race(mutant)
    lines = race_lines(violation, 80)
    above = lines.index("") + 2
    assert 6 <= len(lines) <= above + MOST_LINES
    assert max(map(len, lines)) <= 80
    for number in re.findall(r"CPU(\d)", headline(violation)):
        assert any(f"CPU{number} {violation.tasks[int(number)]}" in line for line in lines)
    sentence = " ".join(" ".join(lines[: lines.index("")]).split())
    assert sentence == headline(violation)


@pytest.mark.parametrize("name", RACES)
def test_the_rows_are_all_steps_in_their_order(name: str) -> None:
    whole = race(name).race
    steps = [step for row in rows(whole) for step in row.steps]
    assert steps == list(whole.steps[: len(steps)])
    assert all(not step.drawn for step in whole.steps[len(steps) :])
    for row in rows(whole):
        assert (row.drawn is None) == bool(row.folded)
        assert row.folded == Counter(step.cpu for step in row.steps if not step.drawn)


# One step


def step(kind: WordKind, access: str, word: str, old: str, new: str, of: str = "") -> RaceStep:
    return RaceStep(1, 0, 0, (), "f()", access, kind, word, of, old, new, (), True)


@pytest.mark.parametrize(
    ("drawn", "function", "change"),
    [
        (step(WordKind.ENTRY, "read", "PTE 1", "none", "none"), "f()", "PTE 1 is none"),
        (step(WordKind.ENTRY, "write", "PTE 1", "none", "none"), "f()", "writes PTE 1: none"),
        (
            step(WordKind.ENTRY, "write", "PMD", "table 1", "none", "0x44000"),
            "f()",
            "PMD of 0x44000: table 1 -> none",
        ),
        (step(WordKind.LOCK, "acquire", "mmap_lock", "", "write"), "mmap_write_lock()", ""),
        (
            step(WordKind.LOCK, "release", "mmap_lock", "read", "", "mm 2"),
            "mmap_read_unlock(mm 2)",
            "",
        ),
        (step(WordKind.LOCK, "try", "VMA lock", "read", "read"), "vma_start_read()", "fails"),
        (step(WordKind.LOCK, "try", "pmd lock", "", "write"), "spin_trylock(pmd_ptl)", ""),
        (step(WordKind.LOCK, "release", "anon_vma", "read", ""), "anon_vma_unlock_read()", ""),
        (step(WordKind.CPU, "ipi", "CPU1", "", ""), "f()", "IPI to CPU1"),
        (
            step(WordKind.FLAG, "read-modify-write", "folio 3", "0x30", "freed"),
            "f()",
            "frees folio 3",
        ),
    ],
)
def test_a_step(drawn: RaceStep, function: str, change: str) -> None:
    assert (function_of(drawn), change_of(drawn)) == (function, change)


def test_a_line_that_has_no_room_is_two() -> None:
    wide = step(WordKind.ENTRY, "write", "a" * 30, "none", "b" * 30)
    whole = DrawnRace((wide,), (), (1,), 0)
    violation = Violation(("khugepaged",), (), whole, (), (), 1, 0, "token")
    assert race_lines(violation, 80)[-1] == f"f(): {'a' * 30}: none -> {'b' * 30}"
    assert race_lines(violation, 60)[-3:] == ["f()", f"  {'a' * 30}: none ->", f"    {'b' * 30}"]
