# SPDX-License-Identifier: GPL-2.0-or-later
"""Some executions of a world too large for all, by random walks and by random priorities (PCT) in turn.

PCT (Burckhardt, Kothari, Musuvathi, Nagarakatte, ASPLOS 2010): each task has a priority, the highest
that can runs, and at d - 1 places the running task's falls below all others. A bug of depth d shows
with a probability of at least 1 / (n k^(d-1)) for n tasks and k steps.

Here k is some hundred steps, of which few are at words that another task is at too, and a change of
priorities between two steps that matter is rare. A walk, which goes over to another task every few
steps, meets such places in each execution, but seldom lets one task do all it has to do meanwhile.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum
from typing import Final

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

    WALK = "random walks"
    PCT = "PCT"
    BOTH = "random walks and PCT in turn"


SWITCHES: Final = (0.05, 0.2, 0.5)
"""How likely a walk goes over to another task at a step: one of these for each in turn."""


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
        policy: Policy = Policy.BOTH,
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
        self._drawn = 0

    def sample(self, count: int) -> SearchOutcome:
        """`count` executions, or fewer where one breaks something."""
        steps = 0
        findings: dict[object, BrokenSchedule] = {}
        executions = too_long = 0
        results: Results = ()
        while executions < count and not findings:
            choose = self._next()
            execution = Execution(self.recipe(), choose, self.most_steps)
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

    def _next(self) -> Callable[[Execution], int]:
        """How the next execution is drawn."""
        number = self._drawn
        self._drawn += 1
        if self.policy is Policy.BOTH:
            number, is_walk = divmod(number, 2)
        else:
            is_walk = int(self.policy is Policy.WALK)
        if not is_walk:
            return self._by_priorities
        walk = at_random(self._random, SWITCHES[number % len(SWITCHES)])

        def choose(execution: Execution) -> int:
            self._taken.append(walk(execution))
            return self._taken[-1]

        return choose

    def _begin(self, tasks: int) -> None:
        self._taken = []
        self._priorities = [1 + self._random.random() for _ in range(tasks)]
        self._falls = {self._random.randrange(self._longest) for _ in range(self.depth - 1)}

    def _by_priorities(self, execution: Execution) -> int:
        task = max(execution.enabled(), key=self._priorities.__getitem__)
        if len(self._taken) in self._falls:
            self._priorities[task] = -float(len(self._taken))
        self._taken.append(task)
        return task
