# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether steps that do not depend on one another commute.

A step of an execution is moved over its independent neighbours. The reduced search takes the two
executions for one: so they must end alike, leave the same state, and break the same laws.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from mthp.explore.dependence import dependent
from mthp.explore.ordered import Observed, ObservedExecution
from mthp.explore.outcome import Schedule
from mthp.explore.sample import at_random
from mthp.explore.tasks import Execution, NextStep

_FURTHER = 0.9
"""How likely a step that could be moved further is."""


class Disorder(NamedTuple):
    """A step that was moved from one place of an execution to a later one, and what came of it."""

    step: NextStep
    before: Schedule
    after: Schedule
    what: str

    def __str__(self) -> str:
        where = f"{self.step.access.value} {self.step.where[0]}[{self.step.where[1]}]"
        return f"{where} moved, {self.before} to {self.after}: {self.what}"


@dataclass
class Commuting:
    """Draws executions and moves steps in them. moves: how many were made."""

    observed: Observed
    random: Random
    moves: int = 0

    def draw(self, switch: float, moves: int) -> tuple[ObservedExecution, Disorder | None]:
        """An execution, and the first of so many moves in it that something came of, if any."""
        first = now = self.observed.run(at_random(self.random, switch))
        for _ in range(moves):
            choice = self._choice(now)
            if choice is None:
                break
            at, taken = choice
            before, rebuilt = now, self.observed.rebuilt
            now = self._again(taken)
            if self.observed.rebuilt != rebuilt:
                before = self._again(before.taken)
            self.moves += 1
            what = _difference(before, now, taken)
            if what:
                return first, Disorder(
                    before.ops[at], Schedule(before.taken), Schedule(taken), what
                )
        return first, None

    def _choice(self, execution: ObservedExecution) -> tuple[int, tuple[int, ...]] | None:
        """A step that can be moved, and the tasks in their order after that."""
        taken, ops = list(execution.taken), execution.ops

        def may_move(at: int, over: int) -> bool:
            return taken[at] != taken[over] and not dependent(ops[at], ops[over])

        movable = [at for at in range(len(taken) - 1) if may_move(at, at + 1)]
        if not movable:
            return None
        at = to = self.random.choice(movable)
        while to + 1 < len(taken) and may_move(at, to + 1):
            to += 1
            if self.random.random() > _FURTHER:
                break
        return at, (*taken[:at], *taken[at + 1 : to + 1], taken[at], *taken[to + 1 :])

    def _again(self, taken: tuple[int, ...]) -> ObservedExecution:
        """The execution of these choices, as far as they can be made."""

        def choose(execution: Execution) -> int:
            enabled = execution.enabled()
            at = execution.steps
            return taken[at] if at < len(taken) and taken[at] in enabled else enabled[0]

        return self.observed.run(choose)


def _difference(
    before: ObservedExecution, after: ObservedExecution, wanted: tuple[int, ...]
) -> str:
    """What is not the same, "" if all is."""
    if after.taken != wanted:
        return "a step that could be taken cannot any more"
    if before.ending is not after.ending:
        return f"it ended so: {before.ending.value}; and so now: {after.ending.value}"
    if before.broken != after.broken:
        return "breaks: " + "; ".join(sorted(map(str, before.broken ^ after.broken)))
    for cell in before.state.keys() | after.state.keys():
        begun = before.begun.get(cell, after.begun.get(cell))
        if before.state.get(cell, begun) != after.state.get(cell, begun):
            return f"leaves {before.places[cell]} in another state"
    return ""
