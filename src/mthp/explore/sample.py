# SPDX-License-Identifier: GPL-2.0-or-later
"""Some executions of a world too large for all: at random, or by random priorities (PCT).

PCT (Burckhardt, Kothari, Musuvathi, Nagarakatte, ASPLOS 2010): each task has a priority, the highest
that can runs, and at d - 1 places the running task's falls below all others. A bug of depth d shows
with a probability of at least 1 / (n k^(d-1)) for n tasks and k steps.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum

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


class Policy(Enum):
    """How the next task is drawn."""

    RANDOM = "random"
    PCT = "pct"


def at_random(draw: random.Random, switch: float) -> Callable[[Execution], int]:
    """Chooses tasks: the running one goes on, but for a switch with this probability to any that can."""

    def choose(execution: Execution) -> int:
        enabled = execution.enabled()
        if execution.current in enabled and draw.random() >= switch:
            return execution.current
        return draw.choice(enabled)

    return choose


class Sampler:
    """Draws executions from a seed. depth: the d of PCT. most_steps: a bound on each."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        seed: int = 0,
        policy: Policy = Policy.PCT,
        depth: int = 3,
        most_steps: int = MAX_STEPS,
    ) -> None:
        self.recipe = recipe
        self.seed = seed
        self.policy = policy
        self.depth = depth
        self.most_steps = most_steps
        self._random = random.Random(seed)
        self._longest = 8  # until one has run
        self._taken: list[int] = []
        self._priorities: list[float] = []
        self._falls: set[int] = set()

    def sample(self, count: int) -> SearchOutcome:
        """`count` executions, or fewer where one breaks something."""
        steps = 0
        findings: dict[object, BrokenSchedule] = {}
        executions = too_long = 0
        results: Results = ()
        while executions < count and not findings:
            execution = Execution(self.recipe(), self._choose, self.most_steps)
            self._begin(len(execution.ops))
            is_cut_off = execution.run() is Ending.TOO_LONG
            too_long += is_cut_off
            executions += 1
            steps += execution.steps
            self._longest = max(self._longest, execution.steps)
            results = added(results, tally(execution.setup.results))
            schedule = Schedule(tuple(self._taken))
            later = gone_on(self.recipe, schedule, self.most_steps) if is_cut_off else ()
            for broken in (*execution.setup.broken, *later):
                findings.setdefault(broken, BrokenSchedule(broken, schedule))
        bound = self.policy.value
        if too_long:
            bound += f"; {too_long} executions cut off after {self.most_steps} steps"
        coverage = Coverage(Extent.SAMPLED, executions, 0, steps, bound, self.seed, results=results)
        return SearchOutcome(coverage, tuple(findings.values()))

    def _begin(self, tasks: int) -> None:
        self._taken = []
        self._priorities = [1 + self._random.random() for _ in range(tasks)]
        self._falls = {self._random.randrange(self._longest) for _ in range(self.depth - 1)}

    def _choose(self, execution: Execution) -> int:
        enabled = execution.enabled()
        if self.policy is Policy.RANDOM:
            task = self._random.choice(enabled)
        else:
            task = max(enabled, key=self._priorities.__getitem__)
            if len(self._taken) in self._falls:
                self._priorities[task] = -float(len(self._taken))
        self._taken.append(task)
        return task
