# SPDX-License-Identifier: GPL-2.0-or-later
"""Executions of the real tasks that are written down as automata while they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter

from mthp.explore.compiled.automaton import Automata, Effects, Ops, SegmentPoint
from mthp.explore.compiled.cells import Memory
from mthp.explore.compiled.containers import SharedList
from mthp.explore.compiled.kinds import Unrecordable
from mthp.explore.compiled.recording import Recorder
from mthp.explore.compiled.segment import VALUE, Chain, Segment
from mthp.explore.tasks import WAITING, Execution, NextStep, Recipe
from mthp.machine.task import Task

JUDGE = -1
"""Stands for a task's number while the laws are asked."""
_SCHEDULER = -2

Chooser = Callable[[Execution], int]


class Recorded:
    """One world, run again and again, and the automata of its tasks.

    Unrecordable: something in it cannot be recorded.
    """

    def __init__(self, recipe: Recipe, memory: Memory, ops: Ops, most_steps: int) -> None:
        self.most_steps = most_steps
        self.is_open = True
        self.recorder = Recorder(memory)
        self.setup = self.recorder.share(recipe(), "the world")
        self.recorder.built()
        self.automata = Automata(len(self.setup.tasks), ops)
        broken = self.setup.broken
        if not isinstance(broken, SharedList):
            raise Unrecordable(f"what is broken is a {type(broken).__name__}")
        self.broken = broken
        results = self.setup.results
        if not isinstance(results, SharedList):
            raise Unrecordable(f"what it came to is a {type(results).__name__}")
        self.results = results
        self.background = [int(task.background) for task, _ in self.setup.tasks]
        self.automata.is_looked_at(broken.cell)
        self.automata.is_looked_at(results.cell)

    def run(
        self, choose: Chooser, known: int = 0, stand: Sequence[SegmentPoint | None] = ()
    ) -> None:
        """One execution of the real tasks, and the world is as before.

        known: so many steps are known already, and after them each task stands at its place in `stand`.
        """
        execution = _RecordedExecution(self, choose, known, stand)
        try:
            execution.run()
            if self.setup.broken is not self.broken:
                raise Unrecordable("what is broken is another list in the end")
            if self.setup.results is not self.results:
                raise Unrecordable("what it came to is another list in the end")
        finally:
            if not self.setup.machine.abandoned:
                execution._abandon()
            self.recorder.undo()
            machine = self.setup.machine
            machine.on_step, machine.abandoned = None, False

    def close(self) -> None:
        """The world is given back; nothing is recorded any more."""
        self.is_open = False
        self.recorder.release()

    def effects(self, segment: Segment) -> Effects:
        """What a segment left, as numbers and calculations."""
        found = {cell: value for cell, question, value in segment.reads if question == VALUE}
        number = self.recorder.number
        effects: list[tuple[int, int | Chain]] = []
        for cell, value in segment.written.items():
            what = number(value)
            if found.get(cell) != what:
                effects.append((cell, what))
        effects += ((cell, chain) for cell, chain in segment.changed.items() if chain)
        return tuple(sorted(effects, key=itemgetter(0)))


class _RecordedExecution(Execution):
    """An execution whose segments grow the automata."""

    __slots__ = ("_at", "_known", "_last", "_recorded", "_stand", "_who")

    def __init__(
        self,
        recorded: Recorded,
        choose: Chooser,
        known: int,
        stand: Sequence[SegmentPoint | None],
    ) -> None:
        self._recorded = recorded
        self._who = JUDGE
        self._at: list[SegmentPoint | None] = list(recorded.automata.roots)
        self._last = JUDGE
        self._stand = stand
        self._known = known if stand else -1
        super().__init__(recorded.setup, choose, recorded.most_steps)

    def _body(self, number: int, task: Task, body: Callable[[], object]) -> Callable[[], None]:
        def recorded() -> None:
            self._begin(number)
            body()

        return super()._body(number, task, recorded)

    def _stuck(self, waiting: list[tuple[Task, NextStep]]) -> None:
        self._begin(JUDGE)
        super()._stuck(waiting)
        self._judged(tuple((task.name, op) for task, op in waiting))

    def _at_rest(self) -> None:
        self._begin(JUDGE)
        super()._at_rest()
        self._judged(())

    def _begin(self, who: int) -> None:
        """`who` runs from here on."""
        self._end()
        if who != JUDGE:
            self._last = who
        self._who = who
        recorder = self._recorded.recorder
        recorder.judging = who == JUDGE
        if self._known >= 0:
            recorder.begin_known(who)
        else:
            recorder.begin(who)

    def _end(self) -> None:
        """A task has come to its next step, or to its end."""
        recorder = self._recorded.recorder
        if recorder.segment is None:
            return
        segment = recorder.end()
        who, automata = self._who, self._recorded.automata
        place = self._at[who]
        op = self.ops[who]
        if place is None:
            raise Unrecordable("a task goes on after its end")
        effects = self._recorded.effects(segment)
        guard = None
        if op is not None and op.access in WAITING:
            guard = self._guard(who, op)
        if not recorder.stale:
            self._at[who] = automata.grow(1 << who, place, segment, effects, op, guard)

    def _judged(self, how: object) -> None:
        recorder, automata = self._recorded.recorder, self._recorded.automata
        segment = recorder.end()
        if not recorder.stale:
            place = automata.verdicts.setdefault((self._last, how), SegmentPoint())
            effects = self._recorded.effects(segment)
            automata.grow(automata.bit_of(JUDGE), place, segment, effects, None, None)

    def _next(self) -> int:
        self._end()
        if self._known >= 0:
            self._known -= 1
            if self._known < 0:
                self._come()
        if self._known < 0:
            self.enabled()
        chosen = super()._next()
        if chosen >= 0:
            self._begin(chosen)
        return chosen

    def _come(self) -> None:
        """What is known ends here."""
        known = self._recorded.automata.ops.known
        for task, place in enumerate(self._stand):
            if self.ops[task] != (None if place is None else known[place.op]):
                raise Unrecordable("what was recorded does not lead where it led")
        self._at = list(self._stand)

    def may_go(self, task: int, op: NextStep) -> bool:
        """Whether a task could take its step now; what that depends on is written down."""
        if op.access not in WAITING:
            return True
        if self._known >= 0:
            return super().may_go(task, op)
        free, segment = self._ask(task, op)
        place = self._at[task]
        if not self._recorded.recorder.stale and place is not None:
            assert place.guard is not None
            self._recorded.automata.answer(place.guard, segment, free)
        return free

    def _ask(self, task: int, op: NextStep) -> tuple[bool, Segment]:
        recorder = self._recorded.recorder
        recorder.judging = True
        recorder.begin(_SCHEDULER)
        free = super().may_go(task, op)
        segment = recorder.end()
        if segment.written or segment.changed:
            raise Unrecordable(f"{op.where[0]}: to ask whether it is free changes something")
        return free, segment

    def _guard(self, task: int, op: NextStep) -> SegmentPoint:
        """The guard of a step: one for all steps that are the same and look at the same first."""
        free, segment = self._ask(task, op)
        first = segment.reads[0][0] if segment.reads else free
        guards = self._recorded.automata.guards
        return guards.setdefault((op, type(self._words[task]).__name__, first), SegmentPoint())
