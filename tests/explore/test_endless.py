# SPDX-License-Identifier: GPL-2.0-or-later
"""Tasks that go on for ever: every search finds them, in a time that is limited, and no others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mthp.explore import tasks
from mthp.explore.compiled.explorer import CompiledExplorer, Speed
from mthp.explore.enumerate import Enumerator
from mthp.explore.explore import Explorer, Until
from mthp.explore.outcome import SearchOutcome
from mthp.explore.replay import Replay, shrink
from mthp.explore.sample import Policy, Sampler
from mthp.explore.tasks import MAX_STEPS, STILL, Ending, Execution
from tests.litmus.programs import Program


class Livelock(Program):
    """Its first task waits, step after step, for what the others never do."""

    wanted = 2

    def __init__(self) -> None:
        super().__init__([[], [("write", 1), ("write", 0)]])

    def body(self, number: int, lines: Any) -> Callable[[], None]:
        return self.waits if number == 0 else super().body(number, lines)

    def waits(self) -> None:
        """For a word to change, without a step that waits."""
        while self.words.read(0) != self.wanted:
            pass


class Patient(Livelock):
    """The same, and the other task does it, once it has a turn."""

    wanted = 101 + 100


class Still(Livelock):
    """Its first task takes no step, and holds on to errors as if they were its own."""

    def waits(self) -> None:
        """Nothing, for ever."""
        self.words.read(2)
        while True:
            try:
                sum(range(10))
            except Exception:
                continue


class Asleep(Livelock):
    """Its first task waits in the operating system."""

    def waits(self) -> None:
        """For what nobody does."""
        self.words.read(2)
        threading.Event().wait()


SEARCHES: dict[str, Callable[[Any], SearchOutcome]] = {
    "reference": lambda it: Explorer(it, until=Until.FIRST, most_executions=3).explore(),
    "compiled": lambda it: CompiledExplorer(it, until=Until.FIRST, most_executions=3).explore(),
    "machine code": lambda it: CompiledExplorer(
        it, until=Until.FIRST, most_executions=3, speed=Speed.NUMBA
    ).explore(),
    "plain": lambda it: Enumerator(it, most_executions=3).enumerate(),
    "random": lambda it: Sampler(it, policy=Policy.WALK).sample(3),
}


def said(outcome: SearchOutcome) -> list[str]:
    """What was said of tasks, not of behaviours."""
    return [each.broken[1] for each in outcome.findings if isinstance(each.broken[0], str)]


SOME = [
    pytest.param(each, marks=pytest.mark.slow) if each == "compiled" else each for each in SEARCHES
]
"""A livelock takes the compiled explorer seconds: a check of a protocol meets one by default."""


@pytest.mark.parametrize("search", SOME)
def test_a_livelock_is_found(search: str) -> None:
    outcome = SEARCHES[search](Livelock)
    (text,) = set(said(outcome))
    assert text == "livelock, it goes on while all others have their turns"
    schedule = outcome.findings[0].schedule
    assert ("t0", text) in Replay(Livelock, schedule).run()
    assert not shrink(Livelock, schedule, lambda broken: ("t0", text) in broken).choices


@pytest.mark.parametrize("search", [name for name in SOME if name != "random"])
def test_who_only_waits_for_a_turn_is_none(search: str) -> None:
    outcome = SEARCHES[search](Patient)
    assert not said(outcome)
    assert len(outcome.findings[0].schedule.choices) == MAX_STEPS  # cut off, and it came to its end


def test_a_lower_bound_is_a_bound_and_no_more() -> None:
    for explorer in (Explorer, CompiledExplorer):
        outcome = explorer(Livelock, until=Until.END, most_executions=9, most_steps=50).explore()
        assert not outcome.findings
    sampled = Sampler(Livelock, most_steps=50).sample(4).coverage
    assert sampled.bound == "random walks and PCT in turn; 4 executions cut off after 50 steps"


@pytest.mark.parametrize(
    "explorer", [Explorer, pytest.param(CompiledExplorer, marks=pytest.mark.slow)]
)
def test_a_task_that_takes_no_step_is_ended(explorer: Any) -> None:
    began = time.process_time()
    outcome = explorer(Still, until=Until.FIRST).explore()
    assert STILL <= time.process_time() - began < 10 * STILL
    assert "it takes no step, for 0.5 s of CPU time" in said(outcome)


@pytest.mark.parametrize(
    "explorer", [Explorer, pytest.param(CompiledExplorer, marks=pytest.mark.slow)]
)
def test_a_task_that_sleeps_is_ended(explorer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "ASLEEP", 0.5)
    outcome = explorer(Asleep, until=Until.FIRST).explore()
    assert "it takes no step, for 0.5 s: it sleeps" in said(outcome)


def test_elsewhere_nothing_is_ended_and_nothing_hangs() -> None:
    """Python looks at signals in the main thread alone; the others go without."""
    endings: list[Ending] = []
    first: Callable[[Execution], int] = lambda execution: execution.enabled()[0]  # noqa: E731

    def run() -> None:
        endings.append(Execution(Patient(), first, 100).run())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert endings == [Ending.TOO_LONG]
