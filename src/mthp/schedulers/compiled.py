# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiled twin of the reference search (explore.py): the same executions in the same order.

Tasks are turned into automata over integers as far as they have been seen, and the search runs on those
(integers.py). Where it comes to a transition that nobody has seen, the execution is run with the real
tasks to its end, the automata grow, and the search goes on from where it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np

from mthp.schedulers import integers, jit
from mthp.schedulers.automaton import Automata, Ops, Place, Program
from mthp.schedulers.containers import Unrecordable
from mthp.schedulers.dependence import dependent
from mthp.schedulers.explore import Until
from mthp.schedulers.integers import CAP, Code, Phase, State, Status, columns
from mthp.schedulers.outcome import Coverage, Finding, Kind, Outcome, Schedule
from mthp.schedulers.recorded import JUDGE, Recorded
from mthp.schedulers.recording import Memory
from mthp.schedulers.tasks import MAX_STEPS, STOP, Execution, Op, Recipe

MEMORY = Memory()
"""What was found out about the engine's classes, kept for all worlds of this process."""
QUANTUM = 200_000
"""Steps between two questions whether to go on; and before Numba is thought worth its while."""


class Speed(Enum):
    """What runs the search on integers."""

    PLAIN = "Python"
    NUMBA = "Numba, from the start"
    BEST = "Numba where it is installed and the search is long"


class CompiledExplorer:
    """As Explorer. Unrecordable: the world cannot be recorded; use that one.

    replays: executions of the real tasks that were needed.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        until: Until = Until.FIRST,
        most_executions: int | None = None,
        go_on: Callable[[Any], bool] | None = None,
        speed: Speed = Speed.BEST,
    ) -> None:
        self.speed = speed
        self.recipe = recipe
        self.until = until
        self.most_executions = most_executions
        self.go_on = go_on
        self.findings: dict[object, Finding] = {}
        self.replays = 0
        self.ops = Ops(Program())
        self._state: State
        self._recorded: Recorded
        self._missed: tuple[int, list[int]] | None = None
        self._run = jit.Compiled(integers.search, integers.resume)
        self._mirror: jit.Mirror | None = None

    # As of Explorer

    @property
    def executions(self) -> int:
        return int(self._state.at[integers.EXECUTIONS])

    @property
    def pruned(self) -> int:
        return int(self._state.at[integers.PRUNED])

    @property
    def steps(self) -> int:
        return int(self._state.at[integers.STEPS])

    def explore(self) -> Outcome:
        """Search to the end, the first breach or the bound."""
        self._record()
        try:
            self._prepare()
            bound = self._search()
        finally:
            self._recorded.recorder.release()
        too_long = self._state.at[integers.TOO_LONG]
        if too_long and not bound:
            bound = f"{too_long} executions cut off as too long"
        kind = Kind.BOUNDED if bound else Kind.EXHAUSTIVE
        coverage = Coverage(kind, self.executions, self.pruned, self.steps, bound)
        return Outcome(coverage, tuple(self.findings.values()))

    def _prepare(self) -> None:
        tasks = len(self._recorded.background)
        self._state = columns(tasks)
        at = self._state.at
        at[integers.TASKS] = tasks
        at[integers.MOST] = -1 if self.most_executions is None else self.most_executions
        at[integers.FIRST] = int(self.until is Until.FIRST)
        at[integers.MOST_STEPS] = MAX_STEPS
        at[integers.ROOM] = len(self._state.jcell)
        at[integers.QUANTUM] = QUANTUM
        at[integers.CURRENT] = tasks - 1
        if self.speed is Speed.NUMBA:
            self._compile()
        self._replay()

    def _record(self) -> None:
        """A world to be recorded, from the start."""
        self._recorded = Recorded(self.recipe, MEMORY, self.ops)

    # The search

    def _search(self) -> str:
        """Until it is over; what bounds it."""
        while True:
            at = self._state.at
            status = self._run.search(self._code(), self._state)
            if status == Status.DONE:
                return ""
            if status == Status.ENOUGH:
                return f"stopped after {self.executions} executions"
            if status == Status.FOUND:
                self._found()
                if self.until is Until.FIRST:
                    return "stopped at the first breach"
            elif status == Status.ASK:
                at[integers.ASKED] = 0
                if at[integers.QUANTUM] <= 0 and self.speed is Speed.BEST:
                    self._compile()
                self._state.at[integers.QUANTUM] = QUANTUM
                if self.go_on is not None and not self.go_on(self):
                    return f"stopped after {self.executions} executions"
            elif status == Status.FULL:
                at[integers.ROOM] *= 2
                self._make_room()
            elif status == Status.STUCK:
                if not self._judged_as_stuck():
                    self._replay()
            elif not self._learnt():
                self._replay()

    def _compile(self) -> None:
        """Go on in machine code, if there is something that makes it."""
        run = jit.compiled()
        if run is not None and self._mirror is None:
            self._run = run
            self._state = jit.as_arrays(self._state)
            self._mirror = jit.Mirror(self.ops.program, self._recorded.background)

    def _make_room(self) -> None:
        """Columns as long as what they are about."""
        state, at, recorded = self._state, self._state.at, self._recorded
        self._state = state._replace(
            jcell=_longer(state.jcell, at[integers.ROOM], 0),
            jold=_longer(state.jold, at[integers.ROOM], 0),
            cell=_longer(state.cell, recorded.recorder.nr_cells, 0),
            seen=_longer(state.seen, len(recorded.recorder.values) + 1, 0),
            last=_longer(state.last, self.ops.places, -1),
        )

    def _code(self) -> Code:
        if self._mirror is not None:
            return self._mirror.code()
        program = self.ops.program
        program.touched.clear()
        return Code(
            program.kind, program.arg, program.val, program.nxt, program.bval, program.bnode,
            program.bnext, program.place, program.reader, program.waits, program.release,
            self._recorded.background,
        )  # fmt: skip

    def _found(self) -> None:
        """An execution has a verdict that none had before."""
        at = self._state.at
        at[integers.ASKED] = 1
        verdict = self._recorded.recorder.values[self._state.cell[at[integers.BROKEN]]]
        choices = tuple(map(int, self._state.task[: at[integers.DEPTH]]))
        for broken in verdict:
            if broken not in self.findings:
                self.findings[broken] = Finding(broken, Schedule(choices))

    def _judged_as_stuck(self) -> bool:
        """Have the verdict of a deadlock asked for, if this one was ever judged."""
        kinds, args = self.ops.program.kind, self.ops.program.arg
        names = [task.name for task, _ in self._recorded.setup.tasks]
        waiting = tuple(
            (names[task], self.ops.known[args[node]])
            for task, node in enumerate(self._state.node)
            if kinds[node] == integers.STEP
        )
        automata = self._recorded.automata
        place = automata.verdicts.get((self._state.at[integers.CURRENT], waiting))
        if place is None:
            return False
        self._state.at[integers.JUDGE_AT] = automata.root(automata.bit_of(JUDGE), place)
        return True

    # What nobody has seen

    def _learnt(self) -> bool:
        """Whether what was missing is but a matter of calculation."""
        at = self._state.at
        recorder = self._recorded.recorder
        if at[integers.LACKS] < 0:
            return False
        learnt = self._recorded.automata.learn(
            at[integers.LACKS], at[integers.LACKING], recorder
        )
        self._make_room()
        return learnt

    def _replay(self) -> None:
        """Run this execution with the real tasks, and let the automata grow."""
        at = self._state.at
        acting = at[integers.PHASE] == Phase.ACT
        prefix = [int(task) for task in self._state.task[: at[integers.DEPTH] + acting]]
        missed = int(at[integers.PHASE]), prefix
        if missed == self._missed:
            raise Unrecordable("what was recorded does not lead where it led")
        self._missed = missed
        for _ in range(100):
            self.replays += 1
            self._recorded.run(_Onward(self, prefix).choose)
            if not self._recorded.recorder.stale:
                break
            self._recorded.recorder.release()
            self._record()
        else:
            raise Unrecordable("something new is found out without end")
        self._load()

    def _load(self) -> None:
        """The search stands on the automata as they are now."""
        state, automata = self._state, self._recorded.automata
        at = state.at
        recorder = self._recorded.recorder
        if automata.compiled() and self._mirror is not None:
            self._mirror.renewed()
        self._make_room()
        state = self._state
        for task in range(at[integers.TASKS]):
            rest = automata.verdicts.setdefault((task, ()), Place())
            state.rest[task] = automata.root(automata.bit_of(JUDGE), rest)
        at[integers.JUDGE_AT] = state.rest[at[integers.CURRENT]]
        at[integers.BROKEN] = self._recorded.broken.cell
        at[integers.EMPTY] = recorder.number(())
        recorder.first.setdefault(at[integers.BROKEN], at[integers.EMPTY])
        self._at_roots()
        while self._run.resume(self._code(), self._state):
            if not self._learnt():
                raise Unrecordable("what was recorded does not lead where it led")
            self._at_roots()
        if at[integers.PHASE] == Phase.JUDGE and at[integers.FATE] == integers.Fate.STUCK:
            self._judged_as_stuck()

    def _at_roots(self) -> None:
        """Nobody has done anything."""
        state, automata, first = self._state, self._recorded.automata, self._recorded.recorder.first
        state.cell[:] = [first.get(cell, 0) for cell in range(len(state.cell))]
        state.node[:] = [automata.root(1 << n, place) for n, place in enumerate(automata.roots)]


def _longer(column: Any, size: int, fill: int) -> Any:
    """A column of at least this size."""
    if isinstance(column, list):
        column += [fill] * (size - len(column))
        return column
    if len(column) >= size:
        return column
    larger = np.full(2 * size, fill, np.int64)
    larger[: len(column)] = column
    return larger


class _Onward:
    """Chooses for an execution of the real tasks: what is known, then as the search will."""

    def __init__(self, explorer: CompiledExplorer, prefix: list[int]) -> None:
        self.prefix = prefix
        self.state = explorer._state
        self.ops = explorer.ops
        self.steps: list[tuple[int, list[Op | None]]] = []
        self.depth = 0
        self.sleep: set[int] = set()

    def choose(self, execution: Execution) -> int:
        """As Explorer._choose()."""
        depth = self.depth
        if depth < len(self.prefix):
            task = self.prefix[depth]
            if depth == len(self.prefix) - 1:
                mask = self.state.sleep[depth]
                self.sleep = {t for t in range(len(execution.ops)) if mask >> t & 1}
        else:
            awake = [t for t in execution.enabled() if t not in self.sleep]
            if not awake:
                return STOP
            task = execution.current if execution.current in awake else awake[0]
        step = execution.ops[task]
        if depth >= len(self.prefix) - 1 and step is not None:
            ops = execution.ops
            self.sleep = {t for t in self.sleep if (op := ops[t]) and not dependent(op, step)}
        self.depth += 1
        return task


__all__ = ["CAP", "Automata", "CompiledExplorer"]
