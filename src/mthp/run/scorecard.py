# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything at once: every profile against every rival, and every mutant, on all cores."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from mthp.profiles import PROFILES, Orders
from mthp.races.cast import LAWFUL, Start, get_along
from mthp.races.mutants import HALVES, MUTANTS, Half, Mutant
from mthp.races.stage import Size
from mthp.races.world import Hook, World
from mthp.run.check import Budget, check_world, hunt, hunt_half
from mthp.run.check_records import MutantResult, WorldResult

Result = WorldResult | MutantResult


@dataclass(frozen=True)
class Job:
    """One row of the scorecard. what: a world, a mutant or half of one."""

    what: World | Mutant | Half
    budget: Budget

    def run(self) -> Result:
        """Search."""
        if isinstance(self.what, World):
            return check_world(self.what, budget_for(self.what, self.budget))
        if isinstance(self.what, Mutant):
            return hunt(self.what, self.budget)
        return hunt_half(self.what)

    @property
    def key(self) -> str:
        """Names the row and how far it goes."""
        if isinstance(self.what, World):
            name = f"{self.what.profile}:{self.what.name}:{'+'.join(self.what.rivals)}"
        else:
            name = self.what.id
        return f"{name} {self.budget}"


LARGE = 1000
"""Executions of a world that is known to have too many; its coverage then says "bounded"."""
_MANY = frozenset({"swap-in-store", "slot-reuse"})
_SLOTS = ("exit", "fork", "fork-fails", "remap", "mremap", "exec-shift", "uffd-register")
"""Rivals that meet khugepaged at its list of mms, or at whole mappings."""


def budget_for(world: World, budget: Budget) -> Budget:
    """The budget asked for; where none was, a bound on the two worlds that would take minutes.

    Two tasks that swap in one page at a time meet at its folio's flags and count again and again;
    swap-in and swapoff do so too, and are exhausted.
    """
    unlimited = budget.executions is None and budget.sample is None
    large = world.size is Size.PMD and not _MANY.isdisjoint(world.rivals)
    return replace(budget, executions=LARGE) if unlimited and large else budget


def sizes_of(profile: str) -> tuple[Size, ...]:
    """What a kernel of the profile collapses."""
    return (Size.PMD,) if PROFILES[profile].orders is Orders.PMD_ONLY else tuple(Size)


def default_worlds(profile: str) -> list[World]:
    """The collapse alone, and against each rival alone, at each size; some with the whole daemon."""
    casts: list[tuple[str, ...]] = [(), *((name,) for name in LAWFUL)]
    sizes = sizes_of(profile)
    worlds = [World(size, profile, cast) for size in sizes for cast in casts]
    daemons = [
        World(size, profile, (name,), start=Start.DAEMON) for size in sizes for name in _SLOTS
    ]
    return [*worlds, *daemons]


def scorecard_jobs(budget: Budget) -> list[Job]:
    """Every profile in its default worlds, below PMD order with the walking hook too; every mutant
    and every half of one."""
    worlds = [world for profile in PROFILES for world in default_worlds(profile)]
    worlds += [
        World(Size.WINDOW, profile, world.rivals, Hook.WALKS)
        for profile in ("v16", "7.3")
        for world in default_worlds(profile)
        if world.size is Size.WINDOW and world.start is Start.COLLAPSE
    ]
    return [
        *(Job(mutant, budget) for mutant in MUTANTS.values()),
        *(Job(half, budget) for half in HALVES),
        *(Job(world, budget) for world in worlds),
    ]


def pair_jobs(budget: Budget) -> list[Job]:
    """Every pair of rivals that get along, in the smallest world of each profile that has windows."""
    return [
        Job(World(Size.PMD, profile, pair), budget)
        for profile in ("v16", "7.3")
        for pair in combinations(LAWFUL, 2)
        if get_along(*pair)
    ]


def run_jobs(
    jobs: Sequence[Job], processes: int | None = None, resume: Path | None = None
) -> Iterator[Result]:
    """The results, as they come. resume: a file that keeps finished rows; they are not run again.

    OSError: the file cannot be used.
    """
    done = _read(resume)
    left = []
    for job in jobs:
        if job.key in done:
            yield done[job.key]
        else:
            left.append(job)
    if not left:
        return
    keep = _keeper(resume)
    processes = min(processes or os.cpu_count() or 1, len(left))
    if processes == 1:
        for job in left:
            result = job.run()
            keep(job.key, result)
            yield result
        return
    with ProcessPoolExecutor(processes) as pool:
        futures = {pool.submit(job.run): job for job in left}
        for future in as_completed(futures):
            keep(futures[future].key, future.result())
            yield future.result()


def _read(resume: Path | None) -> dict[str, Result]:
    """Finished rows. The file is the user's own, written by this command before."""
    done: dict[str, Result] = {}
    if resume is None or not resume.exists():
        return done
    with resume.open("rb") as file:
        while True:
            try:
                key, result = pickle.load(file)
            except EOFError:
                return done
            done[key] = result


def _keeper(resume: Path | None) -> Callable[[str, Result], None]:
    if resume is None:
        return lambda _key, _result: None
    resume.touch()

    def keep(key: str, result: Result) -> None:
        with resume.open("ab") as file:
            pickle.dump((key, result), file)

    return keep
