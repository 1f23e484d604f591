# SPDX-License-Identifier: GPL-2.0-or-later
"""Every execution, without any reduction: what the reduced search is compared with in tests, and
what a bound on preemptions is searched with.
"""

from __future__ import annotations

from collections.abc import Callable

from mthp.explore.outcome import (
    BrokenSchedule,
    Coverage,
    Extent,
    Results,
    Schedule,
    SearchOutcome,
    added,
    tally,
)
from mthp.explore.replay import gone_on
from mthp.explore.tasks import MAX_STEPS, Ending, Execution, Recipe


class Enumerator:
    """Depth first over every choice. preemptions: the most there may be, or None. most_executions,
    most_steps: bounds, the latter of each execution. may_continue: asked after each, and False stops.

    A preemption is a switch away from a task that could have gone on.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        preemptions: int | None = None,
        most_executions: int | None = None,
        most_steps: int = MAX_STEPS,
        may_continue: Callable[[Enumerator], bool] = lambda _: True,
    ) -> None:
        self.recipe = recipe
        self.preemptions = preemptions
        self.most_executions = most_executions
        self.most_steps = most_steps
        self.may_continue = may_continue
        self.findings: dict[object, BrokenSchedule] = {}
        self._path: list[tuple[int, list[int]]] = []
        self._depth = self._spent = 0

    def enumerate(self) -> SearchOutcome:
        """Run them all."""
        executions = steps = too_long = 0
        results: Results = ()
        bounds = [] if self.preemptions is None else [f"{self.preemptions} preemptions"]
        while True:
            self._depth = self._spent = 0
            execution = Execution(self.recipe(), self._choose, self.most_steps)
            is_cut_off = execution.run() is Ending.TOO_LONG
            too_long += is_cut_off
            executions += 1
            steps += execution.steps
            results = added(results, tally(execution.setup.results))
            schedule = Schedule(tuple(task for task, _ in self._path))
            later = gone_on(self.recipe, schedule, self.most_steps) if is_cut_off else ()
            for broken in (*execution.setup.broken, *later):
                self.findings.setdefault(broken, BrokenSchedule(broken, schedule))
            if not self._next_path():
                break
            if executions == self.most_executions or not self.may_continue(self):
                bounds.append(f"stopped after {executions} executions")
                break
        if too_long:
            bounds.append(f"{too_long} executions cut off after {self.most_steps} steps")
        kind = Extent.BOUNDED if bounds else Extent.EXHAUSTIVE
        coverage = Coverage(kind, executions, 0, steps, "; ".join(bounds), results=results)
        return SearchOutcome(coverage, tuple(self.findings.values()))

    def _choose(self, execution: Execution) -> int:
        depth = self._depth
        self._depth += 1
        if depth < len(self._path):
            task = self._path[depth][0]
            enabled = None
        else:
            enabled = execution.enabled()
            current = execution.current
            if current in enabled:
                enabled.remove(current)
                spare = self.preemptions is None or self._spent < self.preemptions
                enabled = [current, *enabled] if spare else [current]
            task = enabled[0]
            self._path.append((task, enabled[1:]))
        last = execution.current
        if task != last and last in execution.enabled():
            self._spent += 1
        return task

    def _next_path(self) -> bool:
        while self._path:
            _, others = self._path.pop()
            if others:
                self._path.append((others[0], others[1:]))
                return True
        return False
