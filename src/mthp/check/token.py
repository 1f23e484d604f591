# SPDX-License-Identifier: GPL-2.0-or-later
"""What names one execution: a mutant, a world and a schedule, as one word."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from mthp.explore.outcome import Schedule
from mthp.races.mutants.mutant import Mutant
from mthp.races.mutants.rules import HALVES, MUTANTS
from mthp.races.questions import QUESTIONS, Question
from mthp.races.variant import applied
from mthp.races.world import RaceWorld

NO_MUTANT = "as-is"
NO_TASK = "-"


@dataclass(frozen=True)
class Token:
    """What `mthp replay` needs: mutant, profile, world, rivals, schedule."""

    mutant: str
    world: RaceWorld
    schedule: Schedule

    def __str__(self) -> str:
        rivals = "+".join(self.world.rivals) or NO_TASK
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
        names = () if rivals == NO_TASK else tuple(rivals.split("+"))
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
