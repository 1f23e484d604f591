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
from mthp.races.stage import Layout, Size
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


_TABLES = (
    "remap-last",
    "shrink-last",
    "remap",
    "remap-file",
    "zap",
    "fault",
    "fork",
    "exit",
    "migrate",
    "huge-fault",
    "table-fault",
)
"""Rivals that meet MADV_COLLAPSE of a mapping of several tables."""
_LAYOUTS = {
    Layout.SECOND: ("store-both", "fault", "gup", "zap-page", "migrate", "migrate-neighbour", "swap-out",
        "swap-out-neighbour", "store-neighbour", "uffd-wp", "fork", "remap-tail", "madv-collapse",
        "large-fault-beside", "split-beside"),
    Layout.BOTH: ("store-both", "fault", "gup", "zap", "migrate", "migrate-neighbour", "swap-out-neighbour",
        "shrink", "madv-collapse-pmd", "large-fault", "deferred-split"),
    Layout.TWO_VMAS: ("store", "fault", "store-neighbour", "gup", "zap", "migrate", "migrate-neighbour",
        "swap-out-neighbour", "shrink", "remap", "mremap", "fork", "exit", "any-fault"),
    Layout.FILE: ("store", "fault", "gup", "zap", "migrate", "remap", "fork"),
    Layout.MEMCG: ("zap", "migrate", "swap-out", "hwpoison", "fork", "exit", "split",
        "madv-collapse", "large-fault-beside", "deferred-split"),
    Layout.LOCKED: ("fault", "migrate", "move-pages", "swap-out", "referenced", "hwpoison", "fork",
        "split", "ksm", "remap", "exit", "huge-fault", "large-fault-beside", "reuse"),
    Layout.READ_ONLY: ("store", "load", "gup", "zap", "migrate", "mremap", "ksm", "fork", "fork-store"),
    Layout.HUGE: ("store", "gup", "zap", "zap-page", "move-pages", "split", "mremap", "mremap-ptes",
        "shrink", "remap-tail", "fork", "madv-collapse", "huge-zero-fault", "fork-store", "reuse",
        "lazyfree", "cold-page", "pageout"),
}  # fmt: skip
"""Rivals for which it matters how a world is laid out."""
_PAIRS = {
    Size.PMD: (("gup", "zap"), ("get", "zap-vma"), ("huge-fault", "move-pages"), ("hwpoison", "zap-vma"),
        ("huge-zero-fault", "zap-vma")),
    Size.WINDOW: (("large-fault-beside", "madv-collapse-pmd"), ("large-fault", "zap-vma")),
}  # fmt: skip


def default_worlds(profile: str) -> list[RaceWorld]:
    """The collapse alone, and against each rival alone that finds its work there, at each size that a
    kernel of the profile collapses; some with another layout, some with the whole daemon or with
    MADV_COLLAPSE of several tables, and some with two rivals.
    """
    casts: list[tuple[str, ...]] = [(), *((name,) for name in LAWFUL)]
    sizes = [Size.PMD] if PROFILES[profile].orders is Orders.PMD_ONLY else list(Size)
    worlds = [RaceWorld(size, profile, cast) for size in sizes for cast in casts]
    worlds += [
        RaceWorld(size, profile, cast, layout=layout)
        for size in sizes
        for layout, names in _LAYOUTS.items()
        for cast in ((), *((name,) for name in names))
    ]
    worlds += [
        RaceWorld(size, profile, (name,), start=Start.DAEMON) for size in sizes for name in _SLOTS
    ]
    worlds += [RaceWorld(Size.PMD, profile, (name,), start=Start.MADVISE) for name in _TABLES]
    worlds += [RaceWorld(size, profile, pair) for size in sizes for pair in _PAIRS[size]]
    return [world for world in worlds if world.is_possible and world.is_for_all]


def scorecard_jobs(budget: Budget) -> list[ScorecardRow]:
    """Every profile in its default worlds, below PMD order with the walking hook too; every mutant
    and every half of one."""
    worlds = [world for profile in PROFILES for world in default_worlds(profile)]
    worlds += [
        RaceWorld(Size.WINDOW, profile, world.rivals, Hook.WALKS)
        for profile in ("v16", "7.3")
        for world in default_worlds(profile)
        if (world.size, world.start, world.layout) == (Size.WINDOW, Start.COLLAPSE, Layout.PLAIN)
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
        if get_along(*pair) and RaceWorld(Size.PMD, profile, pair).is_for_all
    ]
