# SPDX-License-Identifier: GPL-2.0-or-later
"""Which mutations of a module break a law, against which rivals: a bounded search for each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mthp.check.check import ALL_LAWS
from mthp.check.search import Budget, search
from mthp.explore.outcome import Extent
from mthp.machine.store_buffer import Model
from mthp.races.cast.all import LAWFUL
from mthp.races.findings import tolerated
from mthp.races.mutants.automatic import Mutation
from mthp.races.stage import Size
from mthp.races.variant import replaced
from mthp.races.world import RaceWorld
from mthp.words.processes import workers

EXECUTIONS = 200
"""At most so many in each world; nearly all worlds of one rival have fewer."""
_TELLING = ("", "poisoned", "large", "large-poisoned", "gup-large", "gup", "store", "fault")
"""Casts that most mutations show against; they are tried first."""


@dataclass(frozen=True)
class Tried:
    """A mutation, the laws it breaks (none: not caught), and the world in which that was seen.

    worlds, executions: how many were looked at. bounded: the worlds that were not exhausted.
    """

    mutation: Mutation
    laws: tuple[int, ...]
    world: str
    worlds: int
    executions: int
    bounded: tuple[str, ...]


def worlds() -> Iterator[RaceWorld]:
    """Where a mutation is looked for, the most telling first."""
    others = (name for name in LAWFUL if name not in _TELLING)
    for name in (*_TELLING, *others, "gup+zap"):
        rivals = tuple(name.split("+")) if name else ()
        for profile in ("7.3", "v16"):
            for size in Size:
                yield RaceWorld(size, profile, rivals)
                if name == "load":
                    yield RaceWorld(size, profile, rivals, memory=Model.WEAK)


def try_mutation(mutation: Mutation) -> Tried:
    """Until a law breaks, or every world was looked at."""
    executions = number = 0
    bounded = []
    with replaced({mutation.module: mutation.text}):
        for number, world in enumerate(worlds(), 1):
            name = f"{world.profile}, {world.name}, {'+'.join(world.rivals) or 'alone'}"
            looked_at = ALL_LAWS - tolerated(world)
            outcome = search(world, Budget(EXECUTIONS), looked_at)
            executions += outcome.coverage.executions
            laws = tuple(sorted({each.broken.law for each in outcome.findings} & looked_at))
            if laws:
                return Tried(mutation, laws, name, number, executions, ())
            if outcome.coverage.kind is not Extent.EXHAUSTIVE:
                bounded.append(name)
    return Tried(mutation, (), "", number, executions, tuple(bounded))


def try_mutations(mutations: Sequence[Mutation], processes: int | None = None) -> Iterator[Tried]:
    """All of them in turn, on several cores."""
    count = processes or os.cpu_count() or 1
    with workers(count) as pool:
        yield from pool.map(try_mutation, mutations)
