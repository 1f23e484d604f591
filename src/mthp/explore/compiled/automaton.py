# SPDX-License-Identifier: GPL-2.0-or-later
"""Tasks as automata over integers, grown from what recorded executions did.

Between two schedule points a task is a function of what it reads. So a task is a tree: at a read it
branches by the value found, at the end of a segment it has effects and stands before its next step. As
numbers (`Program`) it leaves out reads of what no other task writes, and effects that no other task reads.
"""

from __future__ import annotations

from typing import Any, Final

from mthp.explore.compiled.kinds import Unrecordable
from mthp.explore.compiled.recording import Recorder
from mthp.explore.compiled.segment import VALUE, Chain, Question, Segment, answer, calculate
from mthp.explore.dependence import dependent, waits
from mthp.explore.explore import HOLDS_NOTHING
from mthp.explore.tasks import NextStep
from mthp.machine.step import Access

HOLE, READ, WRITE, CHANGE, STEP, END = range(6)
"""Kinds of nodes. HOLE: no execution has been there."""
NOWHERE: Final = 0
YES: Final = 1
NO: Final = 2
"""Nodes that are there from the start; YES is also the end of a task."""
ALWAYS: Final = -1
"""The guard of a step that never waits."""


Effects = tuple[tuple[int, int | Chain], ...]


class Read:
    """A branch by the answer to a question about what is in a cell. node: its number, 0 while it has
    none.
    """

    __slots__ = ("branches", "cell", "node", "question")

    def __init__(self, cell: int, question: Question) -> None:
        self.cell = cell
        self.question = question
        self.branches: dict[int, Read | SegmentEnd] = {}
        self.node = 0


class SegmentPoint:
    """A point between two segments of a task. body: the segment that begins here."""

    __slots__ = ("body", "guard", "node", "op")

    def __init__(self, op: int = -1, guard: SegmentPoint | None = None) -> None:
        self.op = op
        self.guard = guard
        self.body: Read | SegmentEnd | None = None
        self.node = 0


class SegmentEnd:
    """The end of a segment. effects: cell, and the number written or what is calculated.

    then: where the task stands; None at its end. answer: of a guard, YES or NO.
    """

    __slots__ = ("answer", "effects", "then")

    def __init__(self, effects: Effects, then: SegmentPoint | None, answer: int = YES) -> None:
        self.effects = effects
        self.then = then
        self.answer = answer


class Program:
    """All automata as columns of numbers.

    kind, arg, val, nxt of a node: READ (cell, -, first branch), WRITE (cell, number, next), CHANGE (cell,
    table, next), STEP (op, guard's node, segment's first node). bval, bnode, bnext: branches of reads,
    by the numbers of values; and tables of calculations, from number to number.
    place, way, waits, release, holds: of an op; way: what else than its word its dependence rests on.
    dependent: whether two ops at one word are; for each way those of itself and of the ways before it.
    touched: nodes whose nxt was changed since a copy was made.
    """

    def __init__(self) -> None:
        self.kind = [HOLE, END, END]
        self.arg = [0, 0, 0]
        self.val = [0, 1, 0]
        self.nxt = [0, 0, 0]
        self.bval: list[int] = []
        self.bnode: list[int] = []
        self.bnext: list[int] = []
        self.place: list[int] = []
        self.way: list[int] = []
        self.waits: list[int] = []
        self.release: list[int] = []
        self.holds: list[int] = []
        self.dependent: list[int] = []
        self.touched: list[int] = []

    def forget(self) -> None:
        """All nodes but the first three; ops stay."""
        for column in (self.kind, self.arg, self.val, self.nxt):
            del column[3:]
        for column in (self.bval, self.bnode, self.bnext, self.touched):
            column.clear()

    def node(self, kind: int, arg: int, val: int, nxt: int) -> int:
        """A new node's number."""
        self.kind.append(kind)
        self.arg.append(arg)
        self.val.append(val)
        self.nxt.append(nxt)
        return len(self.kind) - 1

    def branch(self, node: int, value: int, to: int) -> None:
        """One more branch of a read."""
        self.bval.append(value)
        self.bnode.append(to)
        self.bnext.append(self.nxt[node])
        self.nxt[node] = len(self.bval) - 1
        self.touched.append(node)


class Ops:
    """Numbers of steps, and of the words they are at."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.known: list[NextStep] = []
        self._numbers: dict[NextStep, int] = {}
        self._places: dict[tuple[str, int], int] = {}
        self._ways: dict[NextStep, int] = {}

    @property
    def places(self) -> int:
        """How many words."""
        return len(self._places)

    def number(self, op: NextStep) -> int:
        """The number of a step."""
        found = self._numbers.get(op)
        if found is None:
            found = self._numbers[op] = len(self.known)
            self.known.append(op)
            program = self.program
            program.place.append(self._places.setdefault(op.where, len(self._places)))
            program.way.append(self._way(op))
            program.waits.append(int(waits(op)))
            program.release.append(int(op.access is Access.RELEASE))
            program.holds.append(int(op.access not in HOLDS_NOTHING))
        return found

    def _way(self, op: NextStep) -> int:
        somewhere = op._replace(where=("", 0))
        found = self._ways.get(somewhere)
        if found is None:
            found = self._ways[somewhere] = len(self._ways)
            self.program.dependent += (int(dependent(somewhere, other)) for other in self._ways)
        return found


class Automata:
    """The trees of all tasks, of the verdicts and of the guards, and their Program.

    roots: of the tasks. verdicts: what is judged in the end -> tree; the key () is at rest.
    """

    def __init__(self, tasks: int, ops: Ops) -> None:
        self.ops = ops
        self.program = ops.program
        self.program.forget()
        self.roots = [SegmentPoint() for _ in range(tasks)]
        self.verdicts: dict[object, SegmentPoint] = {}
        self.guards: dict[object, SegmentPoint] = {}
        self._judge, self._scheduler = 1 << tasks, 2 << tasks
        self._readers: dict[int, int] = {}
        self._writers: dict[int, int] = {}
        self._stale = True
        self._at_node: dict[int, SegmentPoint] = {}
        self._asked: dict[int, tuple[Question, dict[int, int]]] = {}
        self._tables: dict[Chain, int] = {}
        self._chains: dict[int, Chain] = {}
        self._todo: list[tuple[int, SegmentPoint | Read, int, Read | SegmentEnd]] = []

    # Growing

    def grow(
        self,
        who: int,
        place: SegmentPoint,
        segment: Segment,
        effects: Any,
        op: NextStep | None,
        guard: SegmentPoint | None,
    ) -> SegmentPoint | None:
        """A segment was seen that begins at `place`; where the task stands afterwards."""
        leaf = self._find(who, place, segment)
        if leaf is None:
            for cell, _ in effects:
                self._note(self._writers, cell, who)
            then = None if op is None else SegmentPoint(self.ops.number(op), guard)
            self._add(who, place, segment, SegmentEnd(effects, then))
            return then
        found = None if leaf.then is None else self.ops.known[leaf.then.op]
        if leaf.effects != effects or found != op:
            raise Unrecordable(f"the same is read and something else done: {found}, {op}")
        return leaf.then

    def answer(self, place: SegmentPoint, segment: Segment, free: bool) -> None:
        """A guard was asked."""
        answer = YES if free else NO
        leaf = self._find(self._scheduler, place, segment)
        if leaf is None:
            self._add(self._scheduler, place, segment, SegmentEnd((), None, answer))
        elif leaf.answer != answer:
            raise Unrecordable("whether a step can be taken depends on what is not recorded")

    def bit_of(self, task: int) -> int:
        """The bit that stands for a task, or for the laws (-1)."""
        return 1 << task if task >= 0 else self._judge

    def is_looked_at(self, cell: int) -> None:
        """The search itself reads a cell."""
        self._readers[cell] = self._scheduler

    def _find(self, who: int, place: SegmentPoint, segment: Segment) -> SegmentEnd | None:
        at: Read | SegmentEnd | None = place.body
        for cell, question, value in segment.reads:
            if not isinstance(at, Read):
                if at is None:
                    return None
                raise Unrecordable("a task reads more than it did before")
            if at.cell != cell or at.question != question:
                raise Unrecordable("a task reads something else than it did before")
            at = at.branches.get(value)
        if isinstance(at, Read):
            raise Unrecordable("a task reads less than it did before")
        return at

    def _add(self, who: int, place: SegmentPoint, segment: Segment, leaf: SegmentEnd) -> None:
        for cell, _, _ in segment.reads:
            self._note(self._readers, cell, who)
        parent: Read | None = None
        at = place.body
        value = 0
        new: tuple[Read | None, int, Read | SegmentEnd] | None = None
        for cell, question, number in segment.reads:
            if at is None:
                at = Read(cell, question)
                new = new or (parent, value, at)
                _hang(place, parent, value, at)
            assert isinstance(at, Read)
            parent, value, at = at, number, at.branches.get(number)
        _hang(place, parent, value, leaf)
        if self._stale:
            return
        above, value, what = new or (parent, value, leaf)
        if above is None:
            self._body(who, place)
        elif above.node:
            self._todo.append((who, above, value, what))
            self._work()
        else:
            self._stale = True  # it seemed that no other task wrote it

    def _note(self, mine: dict[int, int], cell: int, who: int) -> None:
        """`who` reads (or writes) the cell; it may be shared from now on."""
        old = mine.get(cell, 0)
        if not old & who:
            was = self._is_shared(cell)
            mine[cell] = old | who
            self._stale |= self._is_shared(cell) != was

    def _is_shared(self, cell: int) -> bool:
        """Whether one task writes it and another one reads it."""
        readers, writers = self._readers.get(cell, 0), self._writers.get(cell, 0)
        all_of_them = readers | writers
        return bool(readers and writers and all_of_them & (all_of_them - 1))

    # As numbers

    def compiled(self) -> bool:
        """Bring the program up to date; whether its nodes have other numbers now."""
        if not self._stale:
            return False
        self._stale = False
        self.program.forget()
        for known in (self._asked, self._tables, self._chains, self._at_node):
            known.clear()
        for places in (self.guards.values(), self.verdicts.values(), self.roots):
            for place in places:
                place.node = 0
        for place in self.guards.values():
            self._place(self._scheduler, place)
        for place in self.verdicts.values():
            self._place(self._judge, place)
        for task, place in enumerate(self.roots):
            self._place(1 << task, place)
        self._work()
        return True

    def root(self, who: int, place: SegmentPoint) -> int:
        """The node of a place that something begins at."""
        if not place.node:
            self._place(who, place)
            self._work()
        return place.node

    def _place(self, who: int, place: SegmentPoint) -> int:
        guard = ALWAYS if place.guard is None else self._guard(place.guard)
        place.node = self.program.node(STEP, place.op, guard, NOWHERE)
        self._at_node[place.node] = place
        if place.body is not None:
            self._todo.append((who, place, 0, place.body))
        return place.node

    def place_at(self, node: int) -> SegmentPoint | None:
        """The point where a task stands; None at its end."""
        return self._at_node.get(node)

    def _guard(self, guard: SegmentPoint) -> int:
        return guard.node or self._place(self._scheduler, guard)

    def _body(self, who: int, place: SegmentPoint) -> None:
        if place.body is not None and place.node:
            self._todo.append((who, place, 0, place.body))
            self._work()

    def _work(self) -> None:
        """Make nodes of everything that waits for some."""
        program = self.program
        while self._todo:
            who, above, value, what = self._todo.pop()
            node = self._compile(who, what)
            if isinstance(above, Read):
                if above.question == VALUE:
                    program.branch(above.node, value, node)
                else:
                    self._asked[above.node][1][value] = node
            else:
                program.nxt[above.node] = node
                program.touched.append(above.node)

    def _compile(self, who: int, at: Read | SegmentEnd) -> int:
        """The node a tree begins at; what it branches to is left to do."""
        program = self.program
        while isinstance(at, Read) and not self._is_shared(at.cell):
            if len(at.branches) != 1:
                raise Unrecordable("a cell changes that no task writes")
            at.node = 0
            at = next(iter(at.branches.values()))
        if isinstance(at, Read):
            at.node = program.node(READ, at.cell, 0, -1)
            if at.question != VALUE:
                self._asked[at.node] = at.question, {}
            self._todo += ((who, at, value, then) for value, then in at.branches.items())
            return at.node
        last = at.answer if at.then is None else self._place(who, at.then)
        for cell, what in at.effects:
            if not self._is_shared(cell):
                continue
            if isinstance(what, int):
                last = program.node(WRITE, cell, what, last)
            else:
                last = program.node(CHANGE, cell, self._table(what), last)
        return last

    def _table(self, chain: Chain) -> int:
        """The node that a calculation's table hangs on."""
        node = self._tables.get(chain)
        if node is None:
            node = self._tables[chain] = self.program.node(READ, 0, 0, -1)
            self._chains[node] = chain
        return node

    def learn(self, node: int, number: int, recorder: Recorder) -> bool:
        """Whether what is missing at a node for the value of a number is but a matter of calculation;
        it is there then.
        """
        program = self.program
        if program.kind[node] == CHANGE:
            table = program.val[node]
            value = calculate(self._chains[table], recorder.values[number])
            program.branch(table, number, recorder.number(value))
            return True
        asked = self._asked.get(node)
        if asked is None:
            return False
        question, nodes = asked
        to = nodes.get(int(answer(question, recorder.values[number])))
        if to is not None:
            program.branch(node, number, to)
        return to is not None


def _hang(place: SegmentPoint, parent: Read | None, value: int, what: Read | SegmentEnd) -> None:
    if parent is None:
        place.body = what
    else:
        parent.branches[value] = what
