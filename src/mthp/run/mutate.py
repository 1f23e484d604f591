# SPDX-License-Identifier: GPL-2.0-or-later
"""Which mutations of a module break a law, against which rivals: a bounded search for each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from mthp.machine.store_buffer import Model
from mthp.races.cast import LAWFUL
from mthp.races.findings import tolerated
from mthp.races.mutations import Mutation
from mthp.races.stage import Size
from mthp.races.variant import replaced
from mthp.races.world import World
from mthp.run.check import ALL_LAWS
from mthp.run.search import Budget, search

EXECUTIONS = 200
"""At most so many in each world."""
_TELLING = ("", "poisoned", "large", "large-poisoned", "gup-large", "gup", "store", "fault")
"""Casts that most mutations show against; they are tried first."""


@dataclass(frozen=True)
class Tried:
    """A mutation, the laws it breaks (none: not caught), and the world in which that was seen."""

    mutation: Mutation
    laws: tuple[int, ...]
    world: str


def worlds() -> Iterator[World]:
    """Where a mutation is looked for, the most telling first."""
    others = (name for name in LAWFUL if name not in _TELLING)
    for name in (*_TELLING, *others, "gup+zap"):
        rivals = tuple(name.split("+")) if name else ()
        for profile in ("7.3", "v16"):
            for size in Size:
                yield World(size, profile, rivals)
                if name == "load":
                    yield World(size, profile, rivals, memory=Model.WEAK)


def try_mutation(mutation: Mutation) -> Tried:
    """Until a law breaks, or every world was looked at."""
    with replaced({mutation.module: mutation.text}):
        for world in worlds():
            looked_at = ALL_LAWS - tolerated(world)
            outcome = search(world, Budget(EXECUTIONS), looked_at)
            laws = tuple(sorted({each.broken.law for each in outcome.findings} & looked_at))
            if laws:
                name = f"{world.profile}, {world.name}, {'+'.join(world.rivals) or 'alone'}"
                return Tried(mutation, laws, name)
    return Tried(mutation, (), "")


def try_mutations(mutations: Sequence[Mutation], processes: int | None = None) -> Iterator[Tried]:
    """All of them in turn, on several cores."""
    with ProcessPoolExecutor(processes or os.cpu_count() or 1) as pool:
        yield from pool.map(try_mutation, mutations)
