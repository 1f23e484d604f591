# SPDX-License-Identifier: GPL-2.0-or-later
"""The explorers this tree has, by name: the reference, and its compiled twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mthp.explore.compiled import jit
from mthp.explore.compiled.explorer import CompiledExplorer, Speed
from mthp.explore.explore import Explorer, Until
from mthp.explore.outcome import Extent, SearchOutcome
from mthp.explore.tasks import Recipe

Search = Callable[[Recipe], SearchOutcome]


def explorers() -> dict[str, Search]:
    """Each searches a recipe to its end. The compiled twin keeps what it has compiled of a recipe, as the
    other explorers' peers keep theirs: the first search of each is the dear one.
    """
    found: dict[str, Search] = {"reference explorer": lambda recipe: _explored(Explorer, recipe)}
    found["compiled explorer, Python"] = _Kept(Speed.PLAIN)
    if jit.compiled() is not None:
        found["compiled explorer, Numba"] = _Kept(Speed.NUMBA)
    return found


class _Kept:
    """Compiled explorers by what they search."""

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self._explorers: dict[Recipe, CompiledExplorer] = {}

    def __call__(self, recipe: Recipe) -> SearchOutcome:
        explorer = self._explorers.get(recipe)
        if explorer is not None:
            return _exhaustive(explorer.again())
        for _ in range(2):  # the first may find out about a class and begin its automata anew
            explorer = self._explorers[recipe] = CompiledExplorer(
                recipe, until=Until.END, speed=self.speed
            )
            outcome = explorer.explore()
        return _exhaustive(outcome)


def _explored(explorer: Any, recipe: Recipe) -> SearchOutcome:
    return _exhaustive(explorer(recipe, until=Until.END).explore())


def _exhaustive(outcome: SearchOutcome) -> SearchOutcome:
    if outcome.coverage.kind is not Extent.EXHAUSTIVE:
        raise RuntimeError("the search is not exhaustive")
    return outcome
