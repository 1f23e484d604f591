# SPDX-License-Identifier: GPL-2.0-or-later
"""Executions in which every access to what tasks share is seen, and whether steps order it.

The reduced search takes two executions for one where they differ in the order of steps that do not
depend on one another. That is right only if whatever a task touches between two of its steps is touched
by no other task meanwhile, unless a chain of dependent steps says which of them is first. Two accesses to
one place, one of them a write, that nothing orders are reported here as `Unordered`.

Additions to one count commute, and so do changes of different bits of a word, and the keys of a dict that
come and go. Of the word that a step is at, its task touches the step's bits alone. Where two steps at one
word do not depend on one another, `dependence` says why what they do there commutes, and `commute` tries
it: that is about the word, and after IPIs about the rest too, for flushes only forget, and one of the own
CPU rides on the IPI to another. Everything else that commutes says so in its class: COMMUTES, attribute ->
why.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from mthp.explore.compiled.cells import Memory
from mthp.explore.compiled.containers import SharedArray, SharedDict
from mthp.explore.compiled.recording import Recorder
from mthp.explore.compiled.segment import Chain, Question, Segment, Symbol
from mthp.explore.dependence import dependent
from mthp.explore.tasks import MAX_STEPS, Ending, Execution, NextStep, Recipe
from mthp.machine.step import ALL_BITS, Access
from mthp.machine.task import Machine, Task

Chooser = Callable[[Execution], int]

NOWHERE: Final = -1


class Touch(NamedTuple):
    """What a task did to a place between two steps: bits that it read and wrote, and whether it added to
    it without looking."""

    read: int
    written: int
    added: bool

    def conflicts(self, other: Touch) -> bool:
        """Whether the order of the two may matter."""
        mine, theirs = self._changed(), other._changed()
        return bool(self.read & theirs or other.read & mine or self.written & theirs
                    or other.written & mine)  # fmt: skip

    def _changed(self) -> int:
        return ALL_BITS if self.added else self.written


class Unordered(NamedTuple):
    """Two accesses to one place by different tasks, a write among them, that no chain of dependent steps
    orders. Of each: the task's name, and the step that it had just taken.
    """

    place: str
    first: tuple[str, NextStep]
    second: tuple[str, NextStep]

    def __str__(self) -> str:
        a, b = (f"{task} after {op.access.value} {op.where[0]}[{op.where[1]}]"
                for task, op in (self.first, self.second))  # fmt: skip
        return f"{self.place}: touched by {a} and by {b}, and nothing orders the two"


class _Touches(Segment):
    """What one task touches between two steps. cells: cell -> [bits read, bits written, added]."""

    __slots__ = ("cells",)

    def __init__(self, number: Callable[[Any], int]) -> None:
        super().__init__(number)
        self.cells: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0, 0])

    def is_read(self, cell: int, bits: int) -> None:
        """What the task itself has written is nothing new to it."""
        touch = self.cells[cell]
        touch[0] |= bits & ~touch[1]

    def ask(self, cell: int, question: Question, answer: bool) -> None:
        """See Segment.ask()."""
        self.is_read(cell, _bits(question[0]))

    def look_at(self, cell: int, chain: Chain = ()) -> None:
        """See Segment.look_at()."""
        self.is_read(cell, _bits(chain))


def _bits(chain: Chain) -> int:
    """The bits of a value that what is calculated from it depends on."""
    return chain[0][1] if chain and chain[0][0] == "and" else ALL_BITS


def _change(chain: Chain) -> tuple[int, bool]:
    """The bits of a value that a calculation changes, and whether it only adds."""
    if all(name == "add" for name, _ in chain):
        return 0, True
    if len(chain) == 1 and chain[0][0] in ("or", "and"):
        name, bits = chain[0]
        return (bits if name == "or" else ~bits), False
    return ALL_BITS, False


class _AccessRecorder(Recorder):
    """Sees each access, where the other recorder sees the first. begun, last: cell -> what was in it when
    it was first touched, and what was written to it last.
    """

    segment: _Touches | None

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.begun: dict[int, Any] = {}
        self.last: dict[int, Any] = {}

    def _recorded(self, of: type, kind: str) -> type:
        """See Recorder._recorded(). What is said to be a race that does not matter is not looked at."""
        recorded: Any = super()._recorded(of, kind)
        if issubclass(of, Machine):

            def data_race(machine: Machine, read: Callable[..., Any], *args: Any) -> Any:
                segment, self.segment = self.segment, None
                try:
                    return read(*args)
                finally:
                    self.segment = segment

            recorded.data_race = data_race
        return recorded  # type: ignore[no-any-return]

    def begin(self, who: Any) -> None:
        """See Recorder.begin()."""
        self.segment = _Touches(self.number)
        self._who = who

    def read(self, cell: int, value: Any) -> None:
        """See Cells.read()."""
        if self.segment is not None:
            self.segment.is_read(cell, ALL_BITS)

    def wrote(self, cell: int, value: Any, old: Any) -> None:
        """See Cells.wrote()."""
        if self.segment is not None:
            self.segment.cells[cell][1] = ALL_BITS
        self._is_now(cell, value, old)

    def _is_now(self, cell: int, value: Any, old: Any) -> None:
        self.begun.setdefault(cell, old)
        self.last[cell] = value

    def keys_changed(self, cell: int, before: tuple[Any, ...], now: tuple[Any, ...]) -> None:
        """See Cells.keys_changed()."""
        if self.segment is not None:
            self.segment.cells[cell][2] = True
        self._is_now(cell, frozenset(now), frozenset(before))

    def found_any(self, cell: int, value: Any) -> Any:
        """See Cells.found_any()."""
        if type(value) is int:
            return self.found(cell, value)
        self.read(cell, value)
        return value

    def found(self, cell: int, value: int) -> Any:
        """See Cells.found()."""
        if self.segment is None:
            return value
        self.begun.setdefault(cell, value)
        return self.segment.symbol(cell, value, ())

    def changes(self, cell: int, value: Any) -> bool:
        """See Cells.changes()."""
        if type(value) is not Symbol or value.cell != cell or not value.is_open():
            return False
        assert isinstance(value.segment, _Touches)
        bits, adds = _change(value.chain)
        touch = value.segment.cells[cell]
        touch[1] |= bits
        touch[2] |= adds
        self.last[cell] = value.value
        return True

    def undo(self) -> None:
        """See Recorder.undo()."""
        super().undo()
        self.last.clear()

    # Places

    def cell_of(self, word: Any, index: int) -> int:
        """The cell of the word that a step is at, if it has one."""
        row = getattr(word, "raw", None)
        if isinstance(row, SharedArray):
            return row.first + index
        word = getattr(word, "word", word)
        name = self._names.get(id(word))
        return self.cell(name, "value") if name is not None and hasattr(word, "value") else NOWHERE

    def places(self) -> dict[int, tuple[str, str]]:
        """Cell -> the attribute it belongs to, and what it is called."""
        found = {cell: self._place(*name) for name, cell in self._cells.items()}
        for thing in (*self._built, *self._made):
            row = getattr(thing, "raw", None)
            if isinstance(row, SharedArray):
                for i in range(len(row)):
                    found[row.first + i] = thing.name, f"{thing.name}[{i}]"
        return found

    def _place(self, name: Any, key: Any) -> tuple[str, str]:
        while isinstance(name[0], tuple):  # made by a task, with what never changes of it
            name = name[0]
        kind, _, of = str(name[1]).rpartition(":")
        if not kind:
            attribute = f"{of.rpartition('.')[2]}.{key}"
            return attribute, attribute
        if isinstance(key, tuple):
            return kind, f"{kind}[{self.values[key[0]]}]"
        return kind, f"{kind}'s keys" if of == SharedDict.__name__ else kind

    def commuting(self) -> frozenset[str]:
        """Attributes that are said to commute."""
        return frozenset(
            f"{of.__name__}.{attribute}"
            for of in self._classes
            for attribute in getattr(of, "COMMUTES", ())
        )


@dataclass(frozen=True)
class ObservedExecution:
    """One execution. state, begun: cell -> the number of what was written to it last, and of what it held
    before. places: what cells are called.
    """

    taken: tuple[int, ...]
    ops: tuple[NextStep, ...]
    ending: Ending
    broken: frozenset[Hashable]
    state: Mapping[int, int]
    begun: Mapping[int, int]
    places: Mapping[int, str]
    unordered: frozenset[Unordered]


class Observed:
    """One world, run again and again. rebuilt: how often it had to be built anew, because more was found
    out about what tasks change; cells mean something else then.

    Unrecordable: something in it cannot be recorded.
    """

    def __init__(self, recipe: Recipe, memory: Memory | None = None) -> None:
        self.recipe = recipe
        self.memory = memory or Memory()
        self.rebuilt = 0
        self._build()

    def _build(self) -> None:
        self._recorder = _AccessRecorder(self.memory)
        self._setup: Any = self._recorder.share(self.recipe(), "the world")
        self._recorder.built()

    def close(self) -> None:
        """The world is given back."""
        self._recorder.release()

    def run(self, choose: Chooser, most_steps: int = MAX_STEPS) -> ObservedExecution:
        """One execution, and the world is as before."""
        while True:
            execution = _OrderedExecution(self._recorder, self._setup, choose, most_steps)
            try:
                execution.run()
                observation = None if self._recorder.stale else execution.observation()
            finally:
                if not self._setup.machine.abandoned:
                    execution._abandon()
                self._recorder.undo()
                self._setup.machine.on_step, self._setup.machine.abandoned = None, False
            if observation is not None:
                return observation
            self.close()
            self._build()
            self.rebuilt += 1


class _Taken(NamedTuple):
    """A step that a task took: its number among the task's, and the cell of the word that it is at."""

    task: int
    op: NextStep
    number: int
    cell: int


def _said_to_commute(cell: int, a: _Taken, b: _Taken) -> bool:
    is_the_word = a.op.where == b.op.where and cell == a.cell == b.cell
    return is_the_word or a.op.access is b.op.access is Access.IPI


class _OrderedExecution(Execution):
    """An execution with vector clocks. A task's first segment comes before every step, always."""

    __slots__ = ("_clocks", "_done", "_recorder", "_steps", "_taken", "_touched", "_unordered")

    def __init__(
        self, recorder: _AccessRecorder, setup: Any, choose: Chooser, most_steps: int
    ) -> None:
        count = len(setup.tasks)
        self._recorder = recorder
        self._clocks = [[0] * count for _ in range(count)]
        self._steps: defaultdict[Any, list[tuple[_Taken, list[int]]]] = defaultdict(list)
        self._touched: defaultdict[int, dict[tuple[int, Touch], _Taken]] = defaultdict(dict)
        self._unordered: list[tuple[int, _Taken, _Taken]] = []
        self._taken: _Taken | None = None
        self._done: list[tuple[int, NextStep]] = []
        super().__init__(setup, choose, most_steps)

    def _next(self) -> int:
        self._end()
        chosen = super()._next()
        if chosen >= 0:
            self._begin(chosen)
        return chosen

    def _begin(self, task: int) -> None:
        """A task takes its step and goes on to the next."""
        op = self.ops[task]
        assert op is not None
        clock = self._clocks[task]
        for other, known in self._steps[op.where]:
            if other.task != task and dependent(other.op, op):
                clock = [max(pair) for pair in zip(clock, known, strict=True)]
        number = self._clocks[task][task] + 1
        clock = self._clocks[task] = [*clock[:task], number, *clock[task + 1 :]]
        cell = self._recorder.cell_of(self._words[task], op.where[1])
        self._taken = _Taken(task, op, number, cell)
        self._steps[op.where].append((self._taken, clock))
        self._done.append((task, op))
        self._recorder.begin(task)

    def _end(self) -> None:
        taken, self._taken = self._taken, None
        if taken is None:
            return
        touches = self._recorder.end()
        assert isinstance(touches, _Touches)
        clock = self._clocks[taken.task]
        for cell, (read, written, added) in touches.cells.items():
            if cell == taken.cell:
                read, written = read & taken.op.bits, written & taken.op.bits
            touch = Touch(read, written, bool(added))
            past = self._touched[cell]
            for (task, earlier), other in past.items():
                if task == taken.task or other.number <= clock[task]:
                    continue
                if touch.conflicts(earlier) and not _said_to_commute(cell, other, taken):
                    self._unordered.append((cell, other, taken))
            past[taken.task, touch] = taken

    def _body(self, number: int, task: Task, body: Callable[[], object]) -> Callable[[], None]:
        def seen() -> None:
            if not self._started:
                self._recorder._who = number  # whose things are made
            body()

        return super()._body(number, task, seen)

    def _at_rest(self) -> None:
        self._end()
        self._recorder._who = NOWHERE
        super()._at_rest()

    def observation(self) -> ObservedExecution:
        """What was seen; the world still stands as it was left."""
        recorder, setup = self._recorder, self.setup
        names = [task.name for task, _ in setup.tasks]
        places, commuting = recorder.places(), recorder.commuting()
        unordered = frozenset(
            Unordered(places[cell][1], *((names[each.task], each.op) for each in both))
            for cell, *both in self._unordered
            if places[cell][0] not in commuting
        )
        state = {
            cell: recorder.number(value)
            for cell, value in recorder.last.items()
            if places[cell][0] not in commuting
        }
        begun = {cell: recorder.number(recorder.begun[cell]) for cell in state}
        taken, ops = zip(*self._done, strict=True) if self._done else ((), ())
        return ObservedExecution(
            taken,
            ops,
            self.ending,
            frozenset(setup.broken),
            state,
            begun,
            {cell: places[cell][1] for cell in state},
            unordered,
        )
