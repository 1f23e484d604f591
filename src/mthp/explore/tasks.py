# SPDX-License-Identifier: GPL-2.0-or-later
"""One execution: tasks take turns at their steps, as a chooser says.

The only file that knows the carrier (greenlet). A task stops before each of its steps; what it is
about to do (`NextStep`) is known then, and the act happens when the task is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from time import monotonic, process_time
from typing import Any, Final, NamedTuple, Protocol

from greenlet import getcurrent, greenlet

from mthp.machine.clock import ticking
from mthp.machine.step import ALL_BITS, Access
from mthp.machine.task import Endless, Machine, Task


class NextStep(NamedTuple):
    """What a task is about to do. where: the word's name and its index (0 for a lock).

    mode: of a lock, 1 for writing and 0 for reading. bits: those of the word that it is about.
    """

    access: Access
    where: tuple[str, int]
    mode: int
    bits: int = ALL_BITS


WAITING: Final = frozenset({Access.ACQUIRE, Access.IPI, Access.WAIT})
"""Steps that cannot be taken at all times."""
_OF_LOCKS: Final = frozenset({Access.ACQUIRE, Access.TRY, Access.RELEASE, Access.IPI})


class Setup(Protocol):
    """A fresh world with the tasks that will run in it, built anew for each execution.

    Nothing here may step.
    """

    @property
    def machine(self) -> Machine:
        """Where the tasks run."""

    @property
    def tasks(self) -> Sequence[tuple[Task, Callable[[], object]]]:
        """The tasks and what each does."""

    @property
    def broken(self) -> Sequence[Any]:
        """What was found broken so far: values that compare and hash."""

    @property
    def results(self) -> Sequence[str]:
        """What this execution came to, once it is stuck or at rest."""

    def before(self, access: Access, word: Any, index: int) -> None:
        """The running task is about to do this, and no other task comes between."""

    def after(self, access: Access, word: Any, index: int) -> None:
        """The running task has just done this."""

    def raised(self, task: Task, error: Exception | Endless) -> None:
        """A task ended with an error, or was ended."""

    def stuck(self, waiting: Sequence[tuple[Task, NextStep]]) -> None:
        """No task can go on, and these have not ended."""

    def at_rest(self) -> None:
        """Every task has ended."""


Recipe = Callable[[], Setup]
STOP = -1
"""A chooser's answer: give this execution up."""


class NotTheSame(Exception):
    """What tasks do depends on more than their world: nothing can be said of all executions."""


class Ending(Enum):
    """How an execution ended."""

    FINISHED = "every task ended"
    STUCK = "nobody can go on"
    GIVEN_UP = "given up"
    TOO_LONG = "too many steps"


class _Abandoned(BaseException):
    """Unwinds the tasks of an execution that was given up."""


MAX_STEPS = 5000
STILL: Final = 0.5
"""Seconds of CPU time without a step after which a task is ended."""
ASLEEP: Final = 3.0
"""Seconds by the clock after which one is that takes hardly any."""


class Execution:
    """Runs a Setup. `choose(execution)` is asked before every step: a task's number or STOP.

    It is cut off after most_steps.

    ops: what each task is about to do, None once it has ended. current: who took the last step, or
    -1 before the first.
    """

    __slots__ = (
        "_acting", "_carriers", "_main", "_started", "_still", "_words", "choose", "current", "ending",
        "most_steps", "ops", "setup", "steps",
    )  # fmt: skip

    def __init__(
        self, setup: Setup, choose: Callable[[Execution], int], most_steps: int = MAX_STEPS
    ) -> None:
        self.setup = setup
        self.choose = choose
        self.most_steps = most_steps
        self.current = 0
        self.steps = 0
        self.ops: list[NextStep | None] = [None] * len(setup.tasks)
        self.ending = Ending.FINISHED
        self._words: list[Any] = [None] * len(setup.tasks)
        self._acting: tuple[Access, Any, int] | None = None
        self._started = False
        self._still = -1, 0.0, 0.0
        self._main = getcurrent()
        self._carriers: list[greenlet] = []

    def enabled(self) -> list[int]:
        """The tasks that could take their step now."""
        return [n for n, op in enumerate(self.ops) if op is not None and self.may_go(n, op)]

    def _any_enabled(self) -> bool:
        """Whether any task could take its step now."""
        for task, op in enumerate(self.ops):  # noqa: SIM110 (a generator is slower, for every step)
            if op is not None and self.may_go(task, op):
                return True
        return False

    def may_go(self, task: int, op: NextStep) -> bool:
        """Whether a task could take its step now. Waiting is the only thing that stops one."""
        if op.access in WAITING:
            free: bool = self._words[task].may_take(op.mode)
            return free
        return True

    def run(self) -> Ending:
        """Run it to its end, or until it is given up. Tasks that have not ended are discarded."""
        with ticking(self._tick):
            return self._run()

    def _run(self) -> Ending:
        machine = self.setup.machine
        machine.on_step = self._on_step
        for number, (task, body) in enumerate(self.setup.tasks):
            machine.current = task
            self.current = number
            self._carriers.append(greenlet(self._body(number, task, body), self._main))
            self._carriers[number].switch()
        self._started = True
        self.current = -1
        try:
            while (chosen := self._next()) != STOP:
                self._carriers[chosen].switch()
            machine.on_step = None
            if self.ending is Ending.FINISHED:
                self._at_rest()
        finally:
            self._abandon()
        return self.ending

    def _at_rest(self) -> None:
        self.setup.at_rest()

    def _stuck(self, waiting: list[tuple[Task, NextStep]]) -> None:
        self.setup.stuck(waiting)

    def _body(self, number: int, task: Task, body: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            try:
                body()
            except _Abandoned:
                return
            except (Exception, Endless) as error:
                if self.setup.machine.abandoned:
                    return
                self.setup.raised(task, error)
            self._acted()
            self.ops[number] = None

        return run

    def _acted(self) -> None:
        """Report what was done, before any other task does anything."""
        acted = self._acting
        if acted is not None:
            self._acting = None
            self.setup.after(*acted)

    def _next(self) -> int:
        """The task that takes the next step, or STOP."""
        if self.ending is not Ending.FINISHED or not any(self.ops):
            return STOP
        if self.steps >= self.most_steps:
            self.ending = Ending.TOO_LONG
            return STOP
        tasks = self.setup.tasks
        if not self._any_enabled():
            if all(op is None or tasks[n][0].background for n, op in enumerate(self.ops)):
                return STOP
            self.ending = Ending.STUCK
            self._stuck([(tasks[n][0], op) for n, op in enumerate(self.ops) if op])
            return STOP
        chosen = self.choose(self)
        if chosen == STOP:
            self.ending = Ending.GIVEN_UP
            return STOP
        self.steps += 1
        self.current = chosen
        self.setup.machine.current = self.setup.tasks[chosen][0]
        return chosen

    def _on_step(self, access: Access, word: Any, index: int, bits: int) -> None:
        """The schedule point: control may go elsewhere before the act."""
        machine = self.setup.machine
        if access is Access.BARRIER:
            return
        self._acted()
        me = self.current
        self._words[me] = word
        self.ops[me] = NextStep(
            access, (word.name, 0 if access in _OF_LOCKS else index), index, bits
        )
        if not self._started:
            self._main.switch()
        else:
            chosen = self._next()
            if chosen == STOP:
                self._main.switch()
            elif chosen != me:
                self._carriers[chosen].switch()
        if machine.abandoned:
            raise _Abandoned
        self._acting = access, word, index
        self.setup.before(access, word, index)

    def _tick(self) -> None:
        """Called now and then, in the middle of anything: end a task that takes no step."""
        steps, computed, began = self._still
        now, clock = process_time(), monotonic()
        if steps != self.steps or getcurrent() is self._main:
            self._still = self.steps, now, clock
            return
        is_asleep = clock - began > ASLEEP and now - computed < STILL / 10
        if is_asleep or now - computed > STILL:
            self._still = -1, now, clock
            how = f"{ASLEEP} s: it sleeps" if is_asleep else f"{STILL} s of CPU time"
            raise Endless(f"it takes no step, for {how}")

    def _abandon(self) -> None:
        """Unwind what has not ended; nothing it does on its way out means anything any more."""
        self.setup.machine.abandoned = True
        for carrier in self._carriers:
            if not carrier.dead:
                carrier.throw(_Abandoned)
