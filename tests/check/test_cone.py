# SPDX-License-Identifier: GPL-2.0-or-later
"""Which steps made a law break: conflicts, their cone, and what of it is drawn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mthp.check.check import hunt
from mthp.check.cone import Taken, accesses, cone, conflicts, race_of
from mthp.check.drawing import replay
from mthp.check.records import DrawnRace, RaceStep, WordKind
from mthp.explore.dependence import dependent
from mthp.explore.tasks import NextStep
from mthp.laws.broken import Broken, Kind, Thing
from mthp.machine.step import Access
from mthp.races.mutants.rules import MUTANTS

READ, WRITE = Access.READ, Access.WRITE
ACCESSES = (READ, WRITE, Access.RMW, Access.TAKE, Access.ACQUIRE, Access.TRY, Access.RELEASE)

QUICK = ("A2", "A3", "A14b", "A16", "V3", "X5")
SOME = [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in MUTANTS]
"""Every mutant; most of them are hunted by tests/races/test_mutants.py anyway."""


def taken(task: int, access: Access, word: str, *touched: str, mode: int = 1) -> Taken:
    return Taken(task, NextStep(access, (word, 0), mode), frozenset(touched))


programs = st.lists(
    st.builds(
        taken,
        st.integers(0, 2),
        st.sampled_from(ACCESSES),
        st.sampled_from("abc"),
        mode=st.integers(0, 1),
    ),
    max_size=14,
)


@given(programs, st.integers(0, 13))
def test_the_cone_is_what_happens_before(steps: list[Taken], end: int) -> None:
    """Against its definition: every chain of steps of one task, and of dependent steps."""
    if end >= len(steps):
        return
    before = {end}
    for at in reversed(range(end)):
        earlier = steps[at]
        if any(
            earlier.task == steps[n].task or dependent(earlier.op, steps[n].op)
            for n in before
            if n > at
        ):
            before.add(at)
    assert cone(steps, [end]) == before


@given(programs)
def test_conflicts_are_of_two_tasks_and_nothing_is_between(steps: list[Taken]) -> None:
    pairs = conflicts(steps)
    for i, j in pairs:
        assert i < j
        assert steps[i].task != steps[j].task
        assert dependent(steps[i].op, steps[j].op)
    for i, later in enumerate(steps):
        for j in range(i + 1, len(steps)):
            if steps[j].task != later.task and dependent(later.op, steps[j].op):
                assert (i, j) in pairs or i in cone(steps, [j]) - {j}


def test_a_read_conflicts_with_the_last_write_before_it_and_the_first_after_it() -> None:
    steps = [
        taken(0, WRITE, "pmd"),
        taken(0, WRITE, "pmd"),
        taken(1, READ, "pmd"),
        taken(1, READ, "pmd"),
        taken(0, WRITE, "pmd"),
        taken(0, WRITE, "pmd"),
    ]
    assert conflicts(steps) == [(1, 2), (3, 4)]


def test_an_object_is_reached_by_the_words_that_lead_to_it() -> None:
    steps = [
        taken(0, READ, "pmd", "table 1"),
        taken(0, READ, "pte", "page 7", "in table 1"),
        taken(1, READ, "other", "page 8", "in table 2"),
        taken(1, WRITE, "refcount", "page 7"),
    ]
    assert accesses(steps, "page 7") == {0, 1, 3}
    assert accesses(steps, "page 9") == set()


# What is drawn


def step(number: int, each: Taken, breaks: tuple[int, ...] = ()) -> RaceStep:
    kind = WordKind.ENTRY
    new = "none" if each.op.access is WRITE else "table 1"
    word = each.op.where[0]
    return RaceStep(
        number,
        each.task,
        each.task,
        (),
        "f()",
        each.op.access.value,
        kind,
        word,
        "",
        "table 1",
        new,
        breaks,
    )


def drawn(race: DrawnRace) -> list[int]:
    return [each.number for each in race.steps if each.drawn]


def test_only_the_cone_is_drawn() -> None:
    """What others do to other words, before or after, is folded."""
    steps = [
        taken(1, WRITE, "elsewhere"),
        taken(0, READ, "PMD"),
        taken(2, READ, "elsewhere"),
        taken(1, WRITE, "PMD"),
        taken(0, READ, "PMD"),
        taken(2, WRITE, "PMD"),
    ]
    broken = [Broken(6, Thing(Kind.TABLE, 1), "walks what is gone")]
    race = race_of(
        [step(n + 1, each, (6,) * (n == 4)) for n, each in enumerate(steps)], steps, broken
    )
    assert drawn(race) == [2, 4, 5, 6]
    assert race.conflicts == ((2, 4), (4, 5), (5, 6))
    assert race.told == (2, 4, 5, 6)


def test_at_rest_the_object_ends_the_cone() -> None:
    steps = [
        taken(0, WRITE, "PMD", "table 1"),
        taken(1, WRITE, "PTE 0", "page 7", "in table 1"),
        taken(1, READ, "PMD", "table 1"),
        taken(0, WRITE, "PTE 1", "page 8", "in table 2"),
        taken(1, READ, "PTE 1", "page 8", "in table 2"),
    ]
    broken = [
        Broken(5, Thing(Kind.COUNTER, "MM_ANONPAGES"), "nobody knows where"),
        Broken(4, Thing(Kind.PAGE, 7), "stranded"),
    ]
    race = race_of([step(n + 1, each) for n, each in enumerate(steps)], steps, broken)
    assert race.breach == 1
    assert drawn(race) == [1, 2, 3]


@pytest.mark.parametrize("mutant", SOME)
def test_every_known_race_is_told_by_few_steps(mutant: str) -> None:
    violation = hunt(MUTANTS[mutant]).violation
    assert violation is not None
    race = violation.race
    steps = {each.number: each for each in race.steps}
    assert [each.number for each in race.steps] == list(range(1, len(steps) + 1))
    shown = drawn(race)
    breaking = [each.number for each in race.steps if each.breaks]
    assert set(breaking[:1]) <= set(shown)
    assert 1 <= len(shown) <= 12
    assert set(race.told) <= set(shown)
    assert list(race.told) == sorted(race.told)
    for pair in race.conflicts:
        earlier, later = (steps[each] for each in pair)
        assert set(pair) <= set(shown)
        assert earlier.task != later.task
        assert (earlier.word, earlier.of) == (later.word, later.of) or earlier.kind is later.kind


def test_an_error_is_where_its_task_ended() -> None:
    race = replay("A14a:7.3:pmd:swap-read:a0").race
    assert [each.breaks for each in race.steps if each.breaks] == [(9,)]
    last = race.steps[-1]
    assert (last.access, last.function, last.breaks) == ("raise", "collapse_huge_page()", (9,))
    assert last.drawn


def test_a_late_store_is_drawn_after_the_load_that_missed_it() -> None:
    race = replay("X3:7.3:pmd+weak:load:a0").race
    load = next(each for each in race.steps if each.breaks)
    late = race.steps[drawn(race)[-1] - 1]
    assert (late.word, late.new) == (load.word, "100")
    assert late.number > load.number
    assert late.cpu == 0
