# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether what an exhaustive search claims is so, seen on executions drawn at random.

Three things must hold. Whatever tasks do to one place is ordered by steps (`explore/ordered.py`). Steps
that do not depend on one another commute (`explore/commute.py`). And no law that a drawn execution breaks
is one that the search does not find broken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from random import Random

from mthp.check.scorecard import default_worlds
from mthp.check.search import Budget, of_laws, search
from mthp.check.token import NO_MUTANT, NO_TASK
from mthp.explore.commute import Commuting
from mthp.explore.compiled.cells import Memory
from mthp.explore.compiled.kinds import Unrecordable
from mthp.explore.ordered import Observed
from mthp.explore.sample import SWITCHES
from mthp.laws.broken import Broken
from mthp.races.cast.all import LAWFUL, get_along
from mthp.races.findings import findings_of
from mthp.races.mutants.mutant import Mutant
from mthp.races.mutants.rules import MUTANTS
from mthp.races.stage import Size
from mthp.races.variant import applied
from mthp.races.world import RaceWorld


@dataclass(frozen=True)
class Subject:
    """A world, as it is or without a mutant's rule."""

    world: RaceWorld
    mutant: Mutant | None = None

    @property
    def name(self) -> str:
        """As the scorecard's rows are called."""
        rivals = "+".join(self.world.rivals) or NO_TASK
        mutant = self.mutant.id if self.mutant is not None else NO_MUTANT
        return f"{mutant}:{self.world.profile}:{self.world.name}:{rivals}"


def subjects() -> list[Subject]:
    """Every default world of the profiles with windows, and every mutant."""
    worlds = [world for profile in ("7.3", "v16") for world in default_worlds(profile)]
    return [*map(Subject, worlds), *(Subject(each.world, each) for each in MUTANTS.values())]


def pairs() -> list[Subject]:
    """Every pair of rivals that get along."""
    worlds = [
        RaceWorld(size, "7.3", pair)
        for size in Size
        for pair in combinations(LAWFUL, 2)
        if get_along(*pair)
    ]
    return [Subject(world) for world in worlds if world.is_possible]


def broken_laws(world: RaceWorld, broken: Iterable[Broken]) -> set[int]:
    """The laws of breaches that are no finding which is expected of the world."""
    known = findings_of(world)
    return {each.law for each in broken if not any(finding.is_it(each) for finding in known)}


def missed(world: RaceWorld, laws: Iterable[int]) -> Iterator[str]:
    """Those laws, seen broken, that the search does not find broken."""
    for law in sorted(laws):
        outcome = search(world, Budget(), {law})
        if of_laws(outcome.findings, {law}) is None:
            yield f"law {law} is broken, and the search does not find it"


@dataclass
class SelfCheck:
    """What was looked at so far. defects: what must not be, each once, with where it was seen."""

    random: Random
    memory: Memory = field(default_factory=Memory)
    worlds: int = 0
    executions: int = 0
    moves: int = 0
    defects: dict[str, str] = field(default_factory=dict)
    _searched: set[tuple[Subject, int]] = field(default_factory=set)

    def look_at(self, subject: Subject, executions: int = 1, moves: int = 1) -> None:
        """Draw executions, and move so many steps in each."""
        self.worlds += 1
        with applied(subject.mutant.edits if subject.mutant is not None else ()):
            try:
                self._look_at(subject, executions, moves)
            except Unrecordable as refused:
                self.defects.setdefault(f"cannot be looked at: {refused}", subject.name)

    def _look_at(self, subject: Subject, executions: int, moves: int) -> None:
        observed = Observed(subject.world, self.memory)
        commuting = Commuting(observed, self.random)
        try:
            for _ in range(executions):
                self._draw(subject, commuting, moves)
        finally:
            observed.close()
            self.moves += commuting.moves

    def _draw(self, subject: Subject, commuting: Commuting, moves: int) -> None:
        switch = SWITCHES[self.executions % len(SWITCHES)]
        self.executions += 1
        seen, moved = commuting.draw(switch, moves)
        found = [*map(str, seen.unordered), *([] if moved is None else [str(moved)])]
        broken = [each for each in seen.broken if isinstance(each, Broken)]
        laws = {(subject, law) for law in broken_laws(subject.world, broken)} - self._searched
        self._searched |= laws
        for what in (*found, *missed(subject.world, (law for _, law in laws))):
            self.defects.setdefault(what, subject.name)
