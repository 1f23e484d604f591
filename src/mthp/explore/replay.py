# SPDX-License-Identifier: GPL-2.0-or-later
"""Run one schedule, and make a schedule that breaks something shorter."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mthp.explore.outcome import Schedule
from mthp.explore.tasks import Execution, Recipe


class Replay:
    """Follow a schedule; where it has ended, or names a task that cannot go, the running task goes
    on while it can. taken: what was chosen in the end.
    """

    def __init__(self, recipe: Recipe, schedule: Schedule) -> None:
        self.schedule = schedule
        self.taken: list[int] = []
        self.execution = Execution(recipe(), self._choose)

    def run(self) -> list[object]:
        """What was broken."""
        self.execution.run()
        return list(self.execution.setup.broken)

    def _choose(self, execution: Execution) -> int:
        enabled = execution.enabled()
        at = len(self.taken)
        wanted = self.schedule.choices[at] if at < len(self.schedule.choices) else -1
        if wanted not in enabled:
            wanted = execution.current if execution.current in enabled else enabled[0]
        self.taken.append(wanted)
        return wanted


def shrink(recipe: Recipe, schedule: Schedule, still: Callable[[list[object]], bool]) -> Schedule:
    """A schedule with as few switches and steps as can be found, after which `still` holds.

    Runs are taken out, joined and shortened one at a time, until nothing helps.
    """

    def holds(candidate: Schedule) -> bool:
        return still(Replay(recipe, candidate).run())

    best = schedule
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
