# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything at once: every profile against every rival, and every mutant, as rows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from mthp.check.check import check_world, hunt
from mthp.check.rows import Result
from mthp.check.search import Budget, SearchControl
from mthp.check.token import NO_MUTANT, NO_TASK
from mthp.races.cast.all import LAWFUL, get_along
from mthp.races.cast.collapsers import Start
from mthp.races.mutants.mutant import Mutant
from mthp.races.mutants.rules import HALVES, MUTANTS
from mthp.races.stage import Size
from mthp.races.world import Hook, RaceWorld
from mthp.words.profiles import PROFILES, Orders


@dataclass(frozen=True)
class ScorecardRow:
    """One row. what: a world, a mutant or half of one. mutant: whose rule is missing in a world."""

    what: RaceWorld | Mutant
    budget: Budget
    mutant: str = NO_MUTANT

    def run(self, control: SearchControl | None = None) -> Result:
        """Search."""
        if isinstance(self.what, RaceWorld):
            return check_world(self.what, self.budget, self.mutant, control)
        return hunt(self.what, self.budget, control)

    @property
    def name(self) -> str:
        """Which row."""
        if isinstance(self.what, RaceWorld):
            rivals = "+".join(self.what.rivals) or NO_TASK
            return f"{self.mutant}:{self.what.profile}:{self.what.name}:{rivals}"
        return f"{self.what.id}:{self.what.world.profile}"

    @property
    def key(self) -> str:
        """Names the row and how it is searched. A number of executions is where it stops, no more."""
        return f"{self.name} {self.budget.steps if self.budget.is_resumable else self.budget}"


_SLOTS = ("exit", "fork", "fork-fails", "remap", "mremap", "shrink", "exec-shift", "uffd-register")
"""Rivals that meet khugepaged at its list of mms, or at whole mappings."""


def default_worlds(profile: str) -> list[RaceWorld]:
    """The collapse alone, and against each rival alone, at each size that a kernel of the profile
    collapses; some with the whole daemon.
    """
    casts: list[tuple[str, ...]] = [(), *((name,) for name in LAWFUL)]
    sizes = [Size.PMD] if PROFILES[profile].orders is Orders.PMD_ONLY else list(Size)
    worlds = [RaceWorld(size, profile, cast) for size in sizes for cast in casts]
    daemons = [
        RaceWorld(size, profile, (name,), start=Start.DAEMON) for size in sizes for name in _SLOTS
    ]
    return [*worlds, *daemons]


def scorecard_jobs(budget: Budget) -> list[ScorecardRow]:
    """Every profile in its default worlds, below PMD order with the walking hook too; every mutant
    and every half of one."""
    worlds = [world for profile in PROFILES for world in default_worlds(profile)]
    worlds += [
        RaceWorld(Size.WINDOW, profile, world.rivals, Hook.WALKS)
        for profile in ("v16", "7.3")
        for world in default_worlds(profile)
        if world.size is Size.WINDOW and world.start is Start.COLLAPSE
    ]
    return [
        *(ScorecardRow(mutant, budget) for mutant in MUTANTS.values()),
        *(ScorecardRow(half, budget) for half in HALVES.values()),
        *(ScorecardRow(world, budget) for world in worlds),
    ]


def pair_jobs(budget: Budget) -> list[ScorecardRow]:
    """Every pair of rivals that get along, in the smallest world of each profile that has windows."""
    return [
        ScorecardRow(RaceWorld(Size.PMD, profile, pair), budget)
        for profile in ("v16", "7.3")
        for pair in combinations(LAWFUL, 2)
        if get_along(*pair)
    ]
