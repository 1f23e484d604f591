# SPDX-License-Identifier: GPL-2.0-or-later
"""The explorers this tree has, by name: the reference, and its compiled twin where there is one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from mthp.schedulers.explore import Explorer, Until
from mthp.schedulers.outcome import Kind, Outcome
from mthp.schedulers.tasks import Recipe

Search = Callable[[Recipe], Outcome]


def explorers() -> dict[str, Search]:
    """Each searches a recipe to its end."""
    found: dict[str, Search] = {"reference explorer": lambda recipe: _explored(Explorer, recipe)}
    try:
        compiled = importlib.import_module("mthp.schedulers.compiled").CompiledExplorer
    except ImportError:
        return found
    found["compiled explorer"] = lambda recipe: _explored(compiled, recipe)
    return found


def _explored(explorer: Any, recipe: Recipe) -> Outcome:
    outcome: Outcome = explorer(recipe, until=Until.END).explore()
    if outcome.coverage.kind is not Kind.EXHAUSTIVE:
        raise RuntimeError("the search is not exhaustive")
    return outcome
