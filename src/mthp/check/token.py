# SPDX-License-Identifier: GPL-2.0-or-later
"""What names one execution: a mutant or a protocol file, a world and a schedule, as one word of a shell."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from mthp.explore.outcome import Schedule
from mthp.races.mutants.mutant import Mutant
from mthp.races.mutants.rules import HALVES, MUTANTS
from mthp.races.protocol import in_force
from mthp.races.questions import QUESTIONS, Question
from mthp.races.variant import applied
from mthp.races.world import RaceWorld

NO_MUTANT = "as-is"
NO_TASK = "-"


def protocol_in_force() -> tuple[str, str]:
    """The protocol file in force, and its hash; ("", "") where there is none."""
    found = in_force()
    return (found.file, found.digest) if found is not None else ("", "")


@dataclass(frozen=True)
class Token:
    """What `mthp replay` needs: mutant, profile, world, rivals, schedule; and which protocol file must be
    in force, by its name and hash.
    """

    mutant: str
    world: RaceWorld
    schedule: Schedule
    protocol: tuple[str, str] = field(default_factory=protocol_in_force)

    def __str__(self) -> str:
        rivals = "+".join(self.world.rivals) or NO_TASK
        world = self.world
        file, digest = self.protocol
        what = f"{self.mutant}@{quote(file)}@{digest}" if digest else self.mutant
        return f"{what}:{world.profile}:{world.name}:{rivals}:{self.schedule}"

    @staticmethod
    def parse(text: str) -> Token:
        """The token printed as text; ValueError where it is none, or of another protocol than is in
        force.
        """
        parts = text.split(":")
        if len(parts) != 5:
            raise ValueError(f"not a token: {text[:60]!r} (MUTANT:PROFILE:WORLD:RIVALS:SCHEDULE)")
        what, profile, name, rivals, schedule = parts
        mutant, _, of = what.partition("@")
        file, _, digest = of.partition("@")
        now = protocol_in_force()
        if digest != now[1]:
            wanted = f"the protocol {unquote(file)} ({digest})" if digest else "no protocol file"
            given = f"--protocol {now[0]} ({now[1]})" if now[1] else "no --protocol"
            raise ValueError(f"the token is of {wanted}, and {given} was given")
        if mutant != NO_MUTANT and not known(mutant):
            raise ValueError(f"no mutant {mutant!r}; there are {', '.join(MUTANTS)}")
        names = () if rivals == NO_TASK else tuple(rivals.split("+"))
        world = RaceWorld.parse(name, profile, names)
        parsed = Schedule.parse(schedule)
        if any(task >= len(world.tasks) for task in parsed.choices):
            raise ValueError(f"the schedule names a task that is not there: {schedule[:60]}")
        return Token(mutant, world, parsed, (unquote(file), digest))


def known(mutant: str) -> Mutant | Question | None:
    """The mutant, half of one, or question of an id."""
    return MUTANTS.get(mutant) or HALVES.get(mutant) or QUESTIONS.get(mutant)


def as_mutant(mutant: str) -> AbstractContextManager[None]:
    """The engine without the mutant's rule; as it is, for NO_MUTANT."""
    found = known(mutant)
    return applied(found.edits) if found is not None else nullcontext()
