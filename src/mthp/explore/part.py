# SPDX-License-Identifier: GPL-2.0-or-later
"""A search as plain values: the branch it is on, and what is left to be tried beside it.

A part of a search is everything below one choice. It depends on the steps before it and on who sleeps
there, on nothing else; what it tells the rest is its counts, its findings and its races with the steps
before it. So parts may be searched at any time and in any process: put together in the order of the
search from one end to the other, they give the same counts and the same findings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mthp.explore.outcome import BrokenSchedule, Results, Schedule, added

NO_TASK: Final = -1
"""Stands where a task's number would, before the task is chosen."""
MOST_TASKS: Final = 63
"""A set of tasks is a word."""


class NotThisSearch(ValueError):
    """A part that leads through steps which this world does not have."""


@dataclass(frozen=True)
class BranchPoint:
    """The state before a step. task: whose step is being tried; NO_TASK where it is yet to be chosen.
    todo: tasks tried or to be tried there. sleep: tasks whose step there leads to nothing new.
    """

    task: int
    todo: frozenset[int]
    sleep: frozenset[int]

    @property
    def left(self) -> frozenset[int]:
        """Tasks to be tried after this one."""
        return self.todo - self.sleep - {self.task}


@dataclass(frozen=True)
class Key:
    """Which part: everything below these choices, if these tasks sleep where the last is made."""

    choices: tuple[int, ...] = ()
    sleep: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Race:
    """A step at a depth above the part could come later: one of `initials` is to be tried there."""

    depth: int
    initials: frozenset[int]


@dataclass(frozen=True)
class Counts:
    """Numbers of executions: the complete ones, those given up, their steps, and those cut off. results:
    what the complete ones came to.
    """

    executions: int = 0
    pruned: int = 0
    steps: int = 0
    too_long: int = 0
    results: Results = ()

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.executions + other.executions,
            self.pruned + other.pruned,
            self.steps + other.steps,
            self.too_long + other.too_long,
            added(self.results, other.results),
        )


@dataclass(frozen=True)
class Part:
    """How far the search of one part has come. places: from the first step on; those from the own-th on
    are the part's. done: nothing is left.
    """

    places: tuple[BranchPoint, ...] = ()
    own: int = 0
    counts: Counts = field(default_factory=Counts)
    findings: tuple[BrokenSchedule, ...] = ()
    races: tuple[Race, ...] = ()
    done: bool = False

    @property
    def key(self) -> Key:
        """Which part this is."""
        above = self.places[: self.own]
        return Key(tuple(place.task for place in above), above[-1].sleep if above else frozenset())

    @property
    def next(self) -> Key:
        """Which part is next, at the last place."""
        last = self.places[-1]
        choices = (*(place.task for place in self.places[:-1]), min(last.left))
        return Key(choices, last.sleep)

    def offers(self, key: Key) -> bool:
        """Whether `key` is what comes next at one of the part's places, as far as is known."""
        depth = len(key.choices) - 1
        if not self.own <= depth < len(self.places):
            return False
        place = self.places[depth]
        above = tuple(each.task for each in self.places[:depth])
        sleep = place.sleep | ({place.task} - {NO_TASK})
        return (*above, min(place.left, default=NO_TASK)) == key.choices and sleep == key.sleep

    def alternative(self, depth: int) -> Part:
        """What comes next at one of the part's places, as a part of its own, not begun."""
        place = self.places[depth]
        sleep = place.sleep | {place.task}
        task = min(place.left)
        above = (*self.places[:depth], BranchPoint(task, frozenset({task}), sleep))
        return Part(above, depth + 1)

    def alternatives(self) -> list[int]:
        """The depths of the part's places with something left, but for the last, which is next."""
        own = range(self.own, len(self.places) - 1)
        return [depth for depth in own if self.places[depth].left]

    def fraction(self, others: Mapping[Key, Part]) -> float:
        """An estimate of how much of it was searched, from 0 to 1: at each place every task known to be
        tried there has the same share. others: parts of it that are searched elsewhere.

        After Knuth: "Estimating the efficiency of backtrack programs" (1975).
        """
        if self.done:
            return 1.0
        found, share = 0.0, 1.0
        for depth in range(self.own, len(self.places)):
            place = self.places[depth]
            tried = (place.todo & place.sleep) - {place.task}
            share /= len(place.todo)
            found += share * len(tried)
            if place.left and place.task != NO_TASK:
                other = others.get(self.alternative(depth).key)
                found += share * other.fraction(others) if other is not None else 0.0
        return min(found, 1.0)


Parts = Mapping[Key, Part]
"""A search: the part with the empty key, and those of its parts that are searched on their own."""


@dataclass(frozen=True)
class Standing:
    """How far a search is. fraction: an estimate of the share that was searched. depth: of the branch it
    is on. left: choices known and not tried yet.
    """

    executions: int
    fraction: float
    depth: int
    left: int

    @property
    def total(self) -> float:
        """An estimate of all executions."""
        return self.executions / self.fraction if self.fraction else float("inf")

    @staticmethod
    def of(parts: Parts) -> Standing:
        """Where a search is."""
        whole = parts[Key()]
        return Standing(
            sum(part.counts.executions for part in parts.values()),
            whole.fraction(parts),
            len(whole.places),
            sum(len(place.left) for part in parts.values() for place in part.places[part.own :]),
        )


# As documents


def part_document(part: Part, breach: Callable[[Any], Any]) -> dict[str, Any]:
    """The document of a part, for a file. breach: a function from what is broken to its document."""
    return {
        "places": [[p.task, sorted(p.todo), sorted(p.sleep)] for p in part.places],
        "own": part.own,
        "counts": [
            part.counts.executions,
            part.counts.pruned,
            part.counts.steps,
            part.counts.too_long,
        ],
        "results": dict(part.counts.results),
        "findings": [[breach(each.broken), str(each.schedule)] for each in part.findings],
        "races": [[race.depth, sorted(race.initials)] for race in part.races],
        "done": part.done,
    }


def part_of(document: Any, breach: Callable[[Any], Any]) -> Part:
    """The part that a document describes; ValueError, TypeError or KeyError where it is none."""
    return Part(
        tuple(
            BranchPoint(_task(task), frozenset(map(_task, todo)), frozenset(map(_task, sleep)))
            for task, todo, sleep in document["places"]
        ),
        int(document["own"]),
        _counts(document["counts"], document["results"]),
        tuple(
            BrokenSchedule(breach(broken), Schedule.parse(schedule))
            for broken, schedule in document["findings"]
        ),
        tuple(Race(int(depth), frozenset(map(int, who))) for depth, who in document["races"]),
        bool(document["done"]),
    )


def _counts(counts: Any, results: Any) -> Counts:
    executions, pruned, steps, too_long = map(int, counts)
    came_to = sorted((str(what), int(often)) for what, often in results.items())
    if not all(what.isprintable() for what, _ in came_to):
        raise ValueError("control characters")
    return Counts(executions, pruned, steps, too_long, tuple(came_to))


def _task(number: Any) -> int:
    task = int(number)
    if not NO_TASK <= task < MOST_TASKS:
        raise ValueError(f"no task {task}")
    return task
