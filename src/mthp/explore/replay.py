# SPDX-License-Identifier: GPL-2.0-or-later
"""Run one schedule, and make a schedule that breaks something shorter."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mthp.explore.outcome import Schedule
from mthp.explore.tasks import MAX_STEPS, Ending, Execution, Recipe
from mthp.machine.task import Endless


class Replay:
    """Follow a schedule; where it has ended, or names a task that cannot go, the running task goes
    on while it can. taken: what was chosen in the end.

    After MAX_STEPS every task has its turn. A task that goes on for MAX_STEPS of these does so for ever.
    """

    def __init__(self, recipe: Recipe, schedule: Schedule) -> None:
        self.schedule = schedule
        self.taken: list[int] = []
        self._chosen = max(MAX_STEPS, len(schedule.choices))
        self.execution = Execution(recipe(), self._choose, self._chosen + MAX_STEPS)

    def run(self) -> list[object]:
        """What was broken."""
        setup = self.execution.setup
        if self.execution.run() is Ending.TOO_LONG:
            for number in sorted({*self.taken[self._chosen :]}):
                task, _ = setup.tasks[number]
                if self.execution.ops[number] is not None and not task.background:
                    setup.raised(
                        task, Endless("livelock, it goes on while all others have their turns")
                    )
        return list(setup.broken)

    def _choose(self, execution: Execution) -> int:
        enabled = execution.enabled()
        at = len(self.taken)
        if at >= self._chosen:
            wanted = min(enabled, key=lambda task: (task <= self.taken[-1], task))
        elif at < len(self.schedule.choices) and self.schedule.choices[at] in enabled:
            wanted = self.schedule.choices[at]
        else:
            wanted = execution.current if execution.current in enabled else enabled[0]
        self.taken.append(wanted)
        return wanted


def gone_on(recipe: Recipe, schedule: Schedule, most_steps: int) -> list[object]:
    """What is broken where an execution goes on that was cut off after most_steps. Fewer than MAX_STEPS
    are a bound of the user's, after which any execution would go on.
    """
    return Replay(recipe, schedule).run() if most_steps >= MAX_STEPS else []


def shrink(recipe: Recipe, schedule: Schedule, still: Callable[[list[object]], bool]) -> Schedule:
    """A schedule with as few switches and steps as can be found, after which `still` holds.

    Runs are taken out, joined and shortened one at a time, until nothing helps.
    """

    def holds(candidate: Schedule) -> bool:
        return still(Replay(recipe, candidate).run())

    best = Schedule() if holds(Schedule()) else schedule
    progress = True
    while progress:
        progress = False
        for candidate in _simpler(best):
            if _cost(candidate) < _cost(best) and holds(candidate):
                best = candidate
                progress = True
                break
    return best


def _cost(schedule: Schedule) -> tuple[int, int]:
    return len(schedule.runs), len(schedule.choices)


def _simpler(schedule: Schedule) -> Iterator[Schedule]:
    """Schedules with a run less, or a shorter run; the boldest first."""
    runs = schedule.runs
    for at in range(len(runs), -1, -1):
        yield Schedule.of_runs(runs[:at])
    for at in range(len(runs)):
        yield Schedule.of_runs(runs[:at] + runs[at + 1 :])
    for at in range(len(runs) - 2):
        (task, steps), middle, (_, more) = runs[at : at + 3]
        yield Schedule.of_runs([*runs[:at], (task, steps + more), middle, *runs[at + 3 :]])
        yield Schedule.of_runs([*runs[:at], middle, (task, steps + more), *runs[at + 3 :]])
    for at, (task, steps) in enumerate(runs):
        for fewer in (steps // 2, steps - 1):
            if 0 < fewer < steps:
                yield Schedule.of_runs([*runs[:at], (task, fewer), *runs[at + 1 :]])
