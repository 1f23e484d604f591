# SPDX-License-Identifier: GPL-2.0-or-later
"""A search that was stopped anywhere, or split anywhere, ends with the same counts and findings."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping

import pytest

from mthp.explore.explore import Explorer, Stop, Until
from mthp.explore.part import Key, Part, part_document, part_of
from mthp.explore.tasks import Recipe
from tests.litmus.programs import Line, recipe
from tests.litmus.test_explore import finer_program, random_program

WIDE: list[list[Line]] = [[("write", 0), ("read", 1), ("write", 2)]] * 3
TALL: list[list[Line]] = [[("write", 0)] * 6] * 2


def explorer(program: Recipe, part: Part | None = None, most: int | None = None) -> Explorer:
    return Explorer(program, until=Until.END, most_executions=most, part=part)


def whole(program: Recipe) -> Part:
    search = explorer(program)
    assert search.search() is Stop.END
    return search.part()


def through_a_file(part: Part) -> Part:
    text = json.dumps(part_document(part, repr))
    return part_of(json.loads(text), eval)


@pytest.mark.parametrize("seed", range(60))
def test_a_search_goes_on_where_it_was_stopped(seed: int) -> None:
    source = random.Random(seed)
    program = recipe(*(random_program if seed % 2 else finer_program)(source))
    expected = whole(program)
    part = Part()
    while not part.done:
        search = explorer(program, part, part.counts.executions + source.randint(1, 9))
        stop = search.search()
        part = through_a_file(search.part())
        assert part.done == (stop is Stop.END)
    assert (part.counts, part.findings) == (expected.counts, expected.findings)


def split(
    search_part: Callable[[Part, Mapping[Key, Part | None], int], Part], source: random.Random
) -> Part:
    """The whole search by parts, in any order: each for a few executions at a time, its other choices
    made parts at random, and its own as far as they are not elsewhere."""
    parts: dict[Key, Part] = {Key(): Part()}
    while not parts[Key()].done:
        key = source.choice([key for key, part in parts.items() if not part.done])
        part = parts[key]
        if source.random() < 0.6:
            for depth in part.alternatives():
                if source.random() < 0.5:
                    other = part.alternative(depth)
                    parts.setdefault(other.key, other)
        others = {k: p if p.done else None for k, p in parts.items() if part.offers(k)}
        parts[key] = search_part(through_a_file(part), others, source.randint(1, 5))
    return parts[Key()]


@pytest.mark.parametrize("seed", range(60))
def test_a_search_in_parts_is_the_same_search(seed: int) -> None:
    source = random.Random(seed)
    program = recipe(*(WIDE, random_program(source), finer_program(source))[seed % 3])
    expected = whole(program)

    def search_part(part: Part, elsewhere: Mapping[Key, Part | None], more: int) -> Part:
        most = part.counts.executions + more
        search = Explorer(
            program, until=Until.END, part=part, elsewhere=elsewhere, most_executions=most
        )
        search.search()
        return search.part()

    found = split(search_part, source)
    assert (found.counts, found.findings) == (expected.counts, expected.findings)


def test_parts_are_really_split() -> None:
    """At least one part that is not the whole has executions of its own, and they are counted once."""
    program = recipe(*TALL)
    search = explorer(program, most=5)
    search.search()
    part = search.part()
    other = explorer(program, part.alternative(part.alternatives()[0]))
    assert other.search() is Stop.END
    done = other.part()
    assert done.counts.executions > 10
    stopped = Explorer(program, until=Until.END, part=part, elsewhere={done.key: None})
    assert stopped.search() is Stop.ELSEWHERE
    before = stopped.part()
    assert before.counts.executions < whole(program).counts.executions
    rest = Explorer(program, until=Until.END, part=before, elsewhere={done.key: done})
    assert rest.search() is Stop.END
    assert rest.part().counts == whole(program).counts


def test_what_was_searched_is_estimated() -> None:
    program = recipe(*[[("write", 0)]] * 5)
    total = whole(program).counts.executions
    seen = []
    part = Part()
    assert part.fraction({}) == 0
    while not part.done:
        search = explorer(program, part, part.counts.executions + 10)
        search.search()
        part = search.part()
        seen.append((part.counts.executions / total, part.fraction({})))
    assert seen[-1] == (1, 1)
    assert sorted(guess for _, guess in seen) == [guess for _, guess in seen]
    assert all(abs(guess - truth) < 0.25 for truth, guess in seen)


def test_what_is_searched_elsewhere_counts() -> None:
    program = recipe(*WIDE)
    search = explorer(program, most=5)
    search.search()
    part = search.part()
    other = part.alternative(part.alternatives()[0])
    ahead = explorer(program, other)
    ahead.search()
    assert part.fraction({other.key: ahead.part()}) > part.fraction({other.key: other})
    assert part.fraction({other.key: other}) == part.fraction({})


FORGED = {**part_document(Part(), list), "results": {"\x1b]0;x\x07": 1}}


@pytest.mark.parametrize(
    "document", [{}, {"places": [[1]]}, [], {"places": [["a", [], []]]}, FORGED]
)
def test_what_is_no_part(document: object) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        part_of(document, eval)
