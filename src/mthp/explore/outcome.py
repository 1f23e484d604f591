# SPDX-License-Identifier: GPL-2.0-or-later
"""What a search did, as values: schedules, findings, and what exactly was covered."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Any

_RUN = re.compile(r"([a-z])([0-9]+)")
MOST_CHOICES = 100_000
"""Steps of a schedule: twenty times those after which an execution is cut off."""


@dataclass(frozen=True)
class Schedule:
    """Who takes each step, by task number. After its end the running task goes on while it can,
    then the first that can."""

    choices: tuple[int, ...] = ()

    def __str__(self) -> str:
        runs = ((chr(ord("a") + task), len(list(steps))) for task, steps in groupby(self.choices))
        return "".join(f"{task}{count}" for task, count in runs) or "a0"

    @staticmethod
    def parse(text: str) -> Schedule:
        """The schedule printed as text; ValueError where it is none."""
        runs = _RUN.findall(text)
        if not runs or "".join(map("".join, runs)) != text:
            raise ValueError(f"not a schedule: {text[:60]!r} (runs of steps such as a12b3)")
        if any(len(count) > 8 for _, count in runs) or sum(int(n) for _, n in runs) > MOST_CHOICES:
            raise ValueError(f"a schedule of more than {MOST_CHOICES} steps")
        return Schedule(
            tuple(ord(task) - ord("a") for task, count in runs for _ in range(int(count)))
        )

    @property
    def runs(self) -> list[tuple[int, int]]:
        """(task, steps) in turn."""
        return [(task, len(list(steps))) for task, steps in groupby(self.choices)]

    @staticmethod
    def of_runs(runs: Iterable[tuple[int, int]]) -> Schedule:
        """The inverse of runs."""
        return Schedule(tuple(task for task, steps in runs for _ in range(steps)))


class Extent(StrEnum):
    """How much of all executions a search has seen."""

    EXHAUSTIVE = "exhaustive"
    BOUNDED = "bounded"
    SAMPLED = "sampled"


Results = tuple[tuple[str, int], ...]
"""What the executions came to, as their Setup says, and how often; by name."""


def tally(results: Sequence[str]) -> Results:
    """How often each result is there."""
    return tuple(sorted(Counter(results).items())) if results else ()


def added(*tallies: Results) -> Results:
    """What several searches came to."""
    some = [each for each in tallies if each]
    if len(some) < 2:
        return some[0] if some else ()
    total: Counter[str] = Counter()
    for each in some:
        total.update(dict(each))
    return tuple(sorted(total.items()))


@dataclass(frozen=True)
class Coverage:
    """What was covered. executions: complete ones; pruned: given up as another's equals. results: what
    the complete ones came to.

    bound: what limited the search, "" if nothing. seed: of a sample. refused: why the compiled explorer
    could not search, "" if it was not asked or could.
    """

    kind: Extent
    executions: int
    pruned: int = 0
    steps: int = 0
    bound: str = ""
    seed: int | None = None
    refused: str = ""
    results: Results = ()


@dataclass(frozen=True)
class BrokenSchedule:
    """What was broken, and the schedule that breaks it."""

    broken: Any
    schedule: Schedule


@dataclass(frozen=True)
class SearchOutcome:
    """All that a search found, each kind of breach once."""

    coverage: Coverage
    findings: tuple[BrokenSchedule, ...] = ()
