# SPDX-License-Identifier: GPL-2.0-or-later
"""Finished records of the race checker. No engine objects in here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class Covered:
    """What a search covered. kind: exhaustive, bounded or sampled; bound and seed say how far.

    executions: complete ones. pruned: given up as equal to another's. steps: all taken.
    """

    kind: str
    executions: int
    pruned: int
    steps: int
    bound: str
    seed: int | None


@dataclass(frozen=True)
class Call:
    """One line of a drawing: a task's call, and the locks it holds while in it."""

    task: int
    function: str
    locks: tuple[str, ...]


@dataclass(frozen=True)
class Breach:
    """A law that was broken. law, sentence: which. text: what was seen."""

    law: int
    sentence: str
    text: str


@dataclass(frozen=True)
class Violation:
    """One execution that breaks laws, as short as it could be made. replay: its token."""

    tasks: tuple[str, ...]
    calls: tuple[Call, ...]
    breaches: tuple[Breach, ...]
    warnings: tuple[str, ...]
    steps: int
    switches: int
    replay: str


@dataclass(frozen=True)
class WorldResult:
    """One world of one profile, explored. expected_finding: a mutant's id, "" if none is expected.

    violation: the first found, or None.
    """

    profile: str
    hook: str
    world: str
    tasks: tuple[str, ...]
    covered: Covered
    violation: Violation | None
    expected_finding: str
    seconds: float

    @property
    def clean(self) -> bool:
        """No law was broken."""
        return self.violation is None


class Verdict(StrEnum):
    """What became of a rule taken away."""

    CAUGHT = "caught"
    MASKED = "masked"
    MISSED = "missed"


@dataclass(frozen=True)
class MutantResult:
    """A mutant, hunted. laws: those found broken; listed: those that count. masked_by: why nothing
    shows. seconds: until it was caught, or given up.
    """

    id: str
    where: str
    rule: str
    verdict: Verdict
    laws: tuple[int, ...]
    listed: tuple[int, ...]
    covered: Covered
    violation: Violation | None
    masked_by: str
    seconds: float
