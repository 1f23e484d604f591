# SPDX-License-Identifier: GPL-2.0-or-later
"""Explore worlds, hunt mutants, replay tokens: the race checker's answers as records."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mthp.check.check_records import (
    Breach,
    Covered,
    MutantResult,
    MutantVerdict,
    Violation,
    WorldResult,
)
from mthp.check.drawing import Drawing
from mthp.check.search import Budget, Care, of_laws, search
from mthp.explore.outcome import BrokenSchedule, Coverage, Schedule
from mthp.explore.replay import Replay, shrink
from mthp.laws.broken import Broken
from mthp.laws.table import LAWS
from mthp.races.findings import findings_of, tolerated
from mthp.races.mutants.mutant import Mutant
from mthp.races.mutants.rules import HALVES, MUTANTS
from mthp.races.questions import QUESTIONS, Question
from mthp.races.variant import applied
from mthp.races.world import RaceWorld

NO_MUTANT = "as-is"
NOBODY = "-"
ALL_LAWS = frozenset(LAWS)


@dataclass(frozen=True)
class Token:
    """What `mthp replay` needs: mutant, profile, world, rivals, schedule."""

    mutant: str
    world: RaceWorld
    schedule: Schedule

    def __str__(self) -> str:
        rivals = "+".join(self.world.rivals) or NOBODY
        world = self.world
        return f"{self.mutant}:{world.profile}:{world.name}:{rivals}:{self.schedule}"

    @staticmethod
    def parse(text: str) -> Token:
        """The token printed as text; ValueError where it is none."""
        parts = text.split(":")
        if len(parts) != 5:
            raise ValueError(f"not a token: {text!r} (MUTANT:PROFILE:WORLD:RIVALS:SCHEDULE)")
        mutant, profile, name, rivals, schedule = parts
        if mutant != NO_MUTANT and not known(mutant):
            raise ValueError(f"no mutant {mutant!r}; there are {', '.join(MUTANTS)}")
        names = () if rivals == NOBODY else tuple(rivals.split("+"))
        world = RaceWorld.parse(name, profile, names)
        parsed = Schedule.parse(schedule)
        if any(task >= len(world.tasks) for task in parsed.choices):
            raise ValueError(f"the schedule names a task that is not there: {schedule}")
        return Token(mutant, world, parsed)


def known(mutant: str) -> Mutant | Question | None:
    """The mutant, half of one, or question of an id."""
    return MUTANTS.get(mutant) or HALVES.get(mutant) or QUESTIONS.get(mutant)


def as_mutant(mutant: str) -> AbstractContextManager[None]:
    """The engine without the mutant's rule; as it is, for NO_MUTANT."""
    found = known(mutant)
    return applied(found.edits) if found is not None else nullcontext()


# Searching


def _covered(coverage: Coverage) -> Covered:
    return Covered(
        coverage.kind.value,
        coverage.executions,
        coverage.pruned,
        coverage.steps,
        coverage.bound,
        coverage.seed,
        coverage.refused,
    )


def check_world(
    world: RaceWorld,
    budget: Budget | None = None,
    mutant: str = NO_MUTANT,
    care: Care | None = None,
) -> WorldResult:
    """One world, as it is or without a mutant's rule."""
    began = time.perf_counter()
    with as_mutant(mutant):
        return _check(world, budget or Budget(), mutant, began, care)


def _check(
    world: RaceWorld, budget: Budget, mutant: str, began: float, care: Care | None
) -> WorldResult:
    laws = ALL_LAWS - tolerated(world)
    outcome = search(world, budget, laws, care)
    known = findings_of(world)
    seen = [each for each in known if any(each.is_it(one.broken) for one in outcome.findings)]
    unknown = [
        each for each in outcome.findings if not any(one.is_it(each.broken) for one in known)
    ]
    as_is = outcome.findings if mutant == NO_MUTANT else ()
    finding = next(iter(unknown or as_is), None)
    violation = None
    if finding is not None:
        violation = violation_of(mutant, world, finding, frozenset({finding.broken.law}))
    return WorldResult(
        world.profile,
        world.hook.value,
        world.name,
        world.tasks,
        _covered(outcome.coverage),
        violation,
        ", ".join(each.id for each in seen) if finding is not None and not unknown else "",
        time.perf_counter() - began,
    )


def hunt(mutant: Mutant, budget: Budget | None = None, care: Care | None = None) -> MutantResult:
    """Look for the breach a mutant is listed with; where it is masked, for any, in everything."""
    began = time.perf_counter()
    laws = ALL_LAWS if mutant.masked_by else frozenset(mutant.laws)
    with applied(mutant.edits):
        everything = Budget() if mutant.masked_by else budget or Budget()
        outcome = search(mutant.world, everything, laws, care)
        seconds = time.perf_counter() - began
        finding = of_laws(outcome.findings, laws)
        violation = None
        if finding is not None:
            violation = violation_of(mutant.id, mutant.world, finding, laws)
    verdict = MutantVerdict.MASKED if mutant.masked_by else MutantVerdict.MISSED
    return MutantResult(
        mutant.id,
        mutant.where,
        mutant.rule,
        verdict if violation is None else MutantVerdict.CAUGHT,
        tuple(sorted({each.law for each in violation.breaches})) if violation is not None else (),
        mutant.laws,
        _covered(outcome.coverage),
        violation,
        mutant.masked_by,
        seconds,
    )


# Showing


def violation_of(
    mutant: str, world: RaceWorld, finding: BrokenSchedule, laws: Collection[int]
) -> Violation:
    """The finding's execution, made as short as can be. The mutant is in force."""

    def still(broken: list[Any]) -> bool:
        return any(each.law in laws for each in broken)

    return draw(Token(mutant, world, shrink(world, finding.schedule, still)))


def draw(token: Token) -> Violation:
    """Run a token's schedule and write down who called what. The mutant is in force."""
    drawings: list[Drawing] = []

    def recipe() -> Any:
        stage = token.world()
        drawings.append(Drawing(stage))
        return stage

    replay = Replay(recipe, token.schedule)
    broken: list[Any] = replay.run()
    return Violation(
        token.world.tasks,
        tuple(drawings[0].calls),
        breaches(broken),
        tuple(drawings[0].stage.kernel.warnings.values()),
        len(replay.taken),
        _switches(replay.taken),
        str(token),
    )


def breaches(broken: Iterable[Broken]) -> tuple[Breach, ...]:
    """What was broken, each with the law's sentence."""
    return tuple(
        Breach(each.law, LAWS[each.law].sentence, " ".join(map(str, each.object)), each.text)
        for each in broken
    )


def _switches(taken: list[int]) -> int:
    return sum(a != b for a, b in pairwise(taken))


def replay(text: str) -> Violation:
    """Run a token; ValueError where it is none."""
    token = Token.parse(text)
    with as_mutant(token.mutant):
        return draw(token)
