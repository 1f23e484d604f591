# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiled twin of the reference search (explore.py): the same executions in the same order.

Tasks are turned into automata over integers as far as they have been seen, and the search runs on those
(integers.py). Where it comes to a transition that is new, the execution is run with the real
tasks to its end, the automata grow, and the search goes on from where it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from itertools import islice
from typing import Any, Final

import numpy as np

from mthp.explore.compiled import integers as at_
from mthp.explore.compiled import jit
from mthp.explore.compiled.automaton import STEP, Ops, Program, SegmentPoint
from mthp.explore.compiled.cells import Memory
from mthp.explore.compiled.integers import Code, SearchState
from mthp.explore.compiled.kinds import Unrecordable
from mthp.explore.compiled.recorded import JUDGE, Recorded
from mthp.explore.dependence import dependent
from mthp.explore.explore import Stop, Until, outcome
from mthp.explore.outcome import BrokenSchedule, Results, Schedule, SearchOutcome, added, tally
from mthp.explore.part import NO_TASK, BranchPoint, Counts, Key, NotThisSearch, Part, Race
from mthp.explore.replay import Replay, gone_on
from mthp.explore.tasks import MAX_STEPS, STOP, Execution, NextStep, Recipe

MEMORY: Final = Memory()
"""What was found out about the engine's classes, kept for all worlds of this process."""
QUANTUM: Final = 20_000
"""Steps between two questions whether to go on, in Python; Numba takes SLOWER times as many."""
SLOWER: Final = 20
LONG: Final = 1_000_000
"""Steps after which Numba is thought worth its while."""
LONGEST: Final = 200_000
"""Steps of an execution; there would be no room for more."""


class Speed(Enum):
    """What runs the search on integers."""

    PLAIN = "Python"
    NUMBA = "Numba, from the start"
    BEST = "Numba where it is installed and the search is long"


class CompiledExplorer:
    """Searches as Explorer does. replays: how many executions of the real tasks were needed.

    Unrecordable, from explore(), search() and search_part(): the world cannot be recorded; use Explorer.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        until: Until = Until.FIRST,
        most_executions: int | None = None,
        most_steps: int = MAX_STEPS,
        may_continue: Callable[[CompiledExplorer], bool] | None = None,
        part: Part | None = None,
        speed: Speed = Speed.BEST,
    ) -> None:
        self.recipe = recipe
        self.until = until
        self.most_executions = most_executions
        self.most_steps = most_steps
        self.may_continue = may_continue
        self.start = part or Part()
        self.speed = speed
        self.elsewhere: dict[Key, Part | None] = {}
        self.findings: dict[object, BrokenSchedule] = {}
        self.replays = 0
        self.ops = Ops(Program())
        self._state: SearchState
        self._recorded: Recorded
        self._missed: tuple[int, list[int]] | None = None
        self._loaded = 0
        self._results: Results = ()
        self._run = jit.PLAIN
        self._mirror: jit.Mirror | None = None

    # What Explorer has too

    @property
    def counts(self) -> Counts:
        """The numbers of executions and steps."""
        at = self._state.at
        names = at_.EXECUTIONS, at_.PRUNED, at_.STEPS, at_.TOO_LONG
        results = added(self._results, self._new_results())
        executions, pruned, steps, too_long = (int(at[name]) for name in names)
        return Counts(executions, pruned, steps, too_long, results)

    def _new_results(self) -> Results:
        """What executions came to since the automata were begun."""
        values, often = self._recorded.recorder.values, self._state.tally
        return added(*(
            tuple((what, times * int(often[number])) for what, times in tally(values[number]))
            for number in np.flatnonzero(often)
        ))  # fmt: skip

    @property
    def executions(self) -> int:
        """Complete ones so far."""
        return int(self._state.at[at_.EXECUTIONS])

    def explore(self) -> SearchOutcome:
        """Search to the end, the first breach or a bound."""
        stop = self.search()
        return outcome(stop, self.counts, tuple(self.findings.values()), self.most_steps)

    def search(self) -> Stop:
        """Search as explore() does; why the search stopped."""
        self.open()
        try:
            return self.search_part(self.start, {})
        finally:
            self.close()

    def open(self) -> None:
        """Begin a world's automata, for search_part()."""
        if self.most_steps > LONGEST:
            raise Unrecordable("executions too long to be kept")
        self._record()
        tasks = len(self._recorded.background)
        self._state = at_.columns(tasks, self.most_steps)
        at = self._state.at
        at[at_.MOST] = -1 if self.most_executions is None else self.most_executions
        at[at_.FIRST] = int(self.until is Until.FIRST)
        at[at_.ROOM] = len(self._state.jcell)
        at[at_.QUANTUM] = QUANTUM
        at[at_.GOES_ON] = int(self.most_steps >= MAX_STEPS)
        if self.speed is Speed.NUMBA:
            self._compile()

    def search_part(self, part: Part, elsewhere: Mapping[Key, Part | None]) -> Stop:
        """Go on with a part, and keep the automata for others of this world. elsewhere: parts that the
        part offers and that other processes search; None for one that is not searched yet.
        """
        self._stand_at(part)
        self.elsewhere = dict(elsewhere)
        for key in elsewhere:
            self._state.border[len(key.choices) - 1] = 1
        return self._go()

    def close(self) -> None:
        """The automata stay as they are, and the world is given back."""
        self._recorded.close()

    def again(self) -> SearchOutcome:
        """The whole search once more, with the automata there are. What benchmarks measure.

        Unrecordable where the search began them anew; another CompiledExplorer of the world will not.
        """
        self._stand_at(Part())
        return outcome(self._go(), self.counts, tuple(self.findings.values()), self.most_steps)

    def part(self) -> Part:
        """How far the search has come; between two executions."""
        state = self._state
        at = state.at
        own, places = int(at[at_.OWN]), int(at[at_.DEPTH] + (at[at_.PHASE] == at_.AGAIN))
        marks = tuple(
            BranchPoint(
                NO_TASK if own <= depth == places - 1 else int(state.task[depth]),
                _tasks(state.todo[depth]),
                _tasks(state.sleep[depth]),
            )
            for depth in range(places)
        )
        noted = islice(zip(state.noted[::2], state.noted[1::2], strict=True), at[at_.NOTED])
        races = tuple(Race(int(depth), _tasks(mask)) for depth, mask in noted)
        findings = tuple(self.findings.values())
        return Part(marks, own, self.counts, findings, races, places <= own)

    @property
    def is_at_full_speed(self) -> bool:
        """Whether it will not become faster than it is."""
        return self.speed is not Speed.BEST or bool(self._state.at[at_.STEPS] > LONG)

    # Beginning

    def _record(self) -> None:
        """A world to be recorded, from the start."""
        self._recorded = Recorded(self.recipe, MEMORY, self.ops, self.most_steps)

    def _stand_at(self, part: Part) -> None:
        """Come to where a part begins; the steps that lead to where it had come are taken next."""
        at = self._state.at
        if any(place.task >= at[at_.TASKS] for place in part.places):
            raise NotThisSearch(f"it has more tasks than {at[at_.TASKS]}")
        self._run.rewind(self._state)
        at[at_.OWN], at[at_.LEAD] = part.own, len(part.places)
        self.findings = {each.broken: each for each in part.findings}
        self._missed = None
        self._count(part.counts)
        self._make_room()
        state = self._state
        for depth, place in enumerate(part.places):
            state.task[depth] = place.task
            state.todo[depth], state.sleep[depth] = _mask(place.todo), _mask(place.sleep)
        self._reverse(part.races)
        if self.replays:
            self._resume()
        else:
            self._replay([])

    def _count(self, counts: Counts) -> None:
        at = self._state.at
        at[at_.EXECUTIONS], at[at_.PRUNED] = counts.executions, counts.pruned
        at[at_.STEPS], at[at_.TOO_LONG] = counts.steps, counts.too_long
        self._results = counts.results
        self._state.tally[:] = [0] * len(self._state.tally)

    def _compile(self) -> None:
        """Go on in machine code, if there is something that makes it."""
        run = jit.compiled()
        if run is not None and self._mirror is None:
            self._run = run
            self._state = jit.as_arrays(self._state)
            self._mirror = jit.Mirror(self.ops.program, self._recorded.background)

    # The search

    def _go(self) -> Stop:
        while True:
            status = self._run.search(self._code(), self._state)
            if status == at_.DONE:
                return Stop.END
            if status == at_.ENOUGH:
                return Stop.ENOUGH
            if status == at_.FOUND:
                self._found()
                if self.until is Until.FIRST:
                    return Stop.FIRST
            elif status == at_.ASK:
                self._next_quantum()
                if self.may_continue is not None and not self.may_continue(self):
                    return Stop.ENOUGH
            elif status == at_.FULL:
                self._more_journal()
            elif status == at_.LOST:
                raise NotThisSearch(f"it has no such step {self._state.at[at_.DEPTH]}")
            elif status == at_.BORDER:
                if self._waits_for_another():
                    return Stop.ELSEWHERE
            elif status == at_.STUCK:
                if not self._judged_as_stuck():
                    self._replay(self._choices())
            elif not self._learnt():
                self._replay(self._choices())

    def _waits_for_another(self) -> bool:
        """Whether another process still searches what is next; what it has found is taken over, as if it
        had been found here and now.
        """
        state, at = self._state, self._state.at
        depth = int(at[at_.DEPTH])
        state.border[depth] = 0
        left = state.todo[depth] & ~state.sleep[depth]
        if not left:
            return False
        task = at_.lowest(left)
        key = Key((*map(int, state.task[:depth]), task), _tasks(state.sleep[depth]))
        if key not in self.elsewhere:
            return False
        part = self.elsewhere[key]
        if part is None:
            return True
        self._count(self.counts + part.counts)
        for finding in part.findings:
            self.findings.setdefault(finding.broken, finding)
        self._reverse(part.races)
        state.sleep[depth] |= 1 << task
        at[at_.PHASE] = at_.AGAIN if state.todo[depth] & ~state.sleep[depth] else at_.BACK
        return False

    def _reverse(self, races: Sequence[Race]) -> None:
        """Note races that a part has with steps above it. See Explorer._reverse()."""
        size = 2 * (self._state.at[at_.NOTED] + len(races))
        self._state = self._state._replace(noted=_longer(self._state.noted, size, 0))
        for race in races:
            self._run.reverse(self._state, race.depth, _mask(race.initials))

    def _next_quantum(self) -> None:
        if self._state.at[at_.STEPS] > LONG and self.speed is Speed.BEST:
            self._compile()
        at = self._state.at
        at[at_.ASKED] = 0
        at[at_.QUANTUM] = QUANTUM * (1 if self._mirror is None else SLOWER)

    def _code(self) -> Code:
        if self._mirror is not None:
            return self._mirror.code()
        program = self.ops.program
        program.touched.clear()
        return Code(
            program.kind, program.arg, program.val, program.nxt, program.bval, program.bnode,
            program.bnext, program.place, program.way, program.waits, program.release, program.holds,
            program.dependent, self._recorded.background,
        )  # fmt: skip

    def _choices(self) -> list[int]:
        """The task of each step so far, and the one that is about to take the next."""
        at = self._state.at
        steps = at[at_.DEPTH] + (at[at_.PHASE] == at_.ACT)
        return [int(task) for task in self._state.task[:steps]]

    def _found(self) -> None:
        """An execution has a verdict that none had before, or was cut off."""
        at = self._state.at
        at[at_.ASKED] = 1
        verdict = self._recorded.recorder.values[self._state.cell[at[at_.BROKEN]]]
        schedule = Schedule(tuple(map(int, self._state.task[: at[at_.DEPTH]])))
        new = [broken for broken in verdict if broken not in self.findings]
        really = Replay(self.recipe, schedule).run() if new else []
        for broken in new:
            if broken not in really:
                raise Unrecordable(f"what is found is not so: {broken}")
            self.findings[broken] = BrokenSchedule(broken, schedule)
        if at[at_.FATE] == at_.F_TOO_LONG:
            for broken in gone_on(self.recipe, schedule, self.most_steps):
                self.findings.setdefault(broken, BrokenSchedule(broken, schedule))

    def _judged_as_stuck(self) -> bool:
        """Have the verdict of a deadlock asked for, if this one was ever judged."""
        kinds, args = self.ops.program.kind, self.ops.program.arg
        names = [task.name for task, _ in self._recorded.setup.tasks]
        waiting = tuple(
            (names[task], self.ops.known[args[node]])
            for task, node in enumerate(self._state.node)
            if kinds[node] == STEP
        )
        automata = self._recorded.automata
        place = automata.verdicts.get((int(self._state.at[at_.CURRENT]), waiting))
        if place is None:
            return False
        self._state.at[at_.JUDGE_AT] = automata.root(automata.bit_of(JUDGE), place)
        return True

    def _more_journal(self) -> None:
        self._state.at[at_.ROOM] *= 2
        self._make_room()

    def _make_room(self) -> None:
        """Columns as long as what they are about."""
        state, at, recorded = self._state, self._state.at, self._recorded
        self._state = state._replace(
            jcell=_longer(state.jcell, at[at_.ROOM], 0),
            jold=_longer(state.jold, at[at_.ROOM], 0),
            cell=_longer(state.cell, recorded.recorder.nr_cells, 0),
            seen=_longer(state.seen, len(recorded.recorder.values) + 1, 0),
            tally=_longer(state.tally, len(recorded.recorder.values) + 1, 0),
            last=_longer(state.last, self.ops.places, -1),
            noted=_longer(state.noted, self._room_for_races(), 0),
        )

    def _room_for_races(self) -> int:
        """For those that one more step, or the end of an execution, may have with steps above the part."""
        at = self._state.at
        return 4 * (at[at_.NOTED] + at[at_.CAP] * at[at_.TASKS]) if at[at_.OWN] else 0

    # What is new

    def _learnt(self) -> bool:
        """Whether what was missing is but a matter of calculation."""
        at = self._state.at
        if at[at_.LACKS] < 0:
            return False
        node, number = int(at[at_.LACKS]), int(at[at_.LACKING])
        learnt = self._recorded.automata.learn(node, number, self._recorded.recorder)
        self._make_room()
        return learnt

    def _replay(self, choices: list[int]) -> None:
        """Run this execution with the real tasks, and let the automata grow."""
        if not self._recorded.is_open:
            raise Unrecordable("the automata are not complete")
        missed = int(self._state.at[at_.PHASE]), choices
        if missed == self._missed:
            raise Unrecordable("what was recorded does not lead where it led")
        self._missed = missed
        known, stand = self._known(choices)
        while True:
            self.replays += 1
            self._recorded.run(_Onward(self._state, choices, self.ops.known).choose, known, stand)
            if not self._recorded.recorder.stale:
                break
            self._count(self.counts)
            self.close()
            self._record()
            self._state.seen[:] = [0] * len(self._state.seen)
            known, stand = 0, []
        self._load()

    def _known(self, choices: list[int]) -> tuple[int, list[SegmentPoint | None]]:
        """How many steps of an execution are known, and where the tasks stand then."""
        if self.replays == 0:
            return 0, []
        acting = self._state.at[at_.PHASE] == at_.ACT
        place_at = self._recorded.automata.place_at
        return len(choices) - acting, [place_at(int(node)) for node in self._state.node]

    def _load(self) -> None:
        """The search stands on the automata as they are now."""
        automata, recorder = self._recorded.automata, self._recorded.recorder
        renumbered = automata.compiled()
        if renumbered and self._mirror is not None:
            self._mirror.renewed()
        self._make_room()
        state, at = self._state, self._state.at
        for task in range(at[at_.TASKS]):
            rest = automata.verdicts.setdefault((task, ()), SegmentPoint())
            state.rest[task] = automata.root(automata.bit_of(JUDGE), rest)
        at[at_.JUDGE_AT] = state.rest[at[at_.CURRENT]]
        at[at_.BROKEN] = self._recorded.broken.cell
        at[at_.EMPTY] = recorder.number(())
        at[at_.RESULTS] = self._recorded.results.cell
        recorder.first.setdefault(self._recorded.results.cell, recorder.number(()))
        recorder.first.setdefault(self._recorded.broken.cell, recorder.number(()))
        self._first_values(0 if renumbered else self._loaded)
        if renumbered:
            self._resume()
        if at[at_.PHASE] == at_.JUDGE and at[at_.FATE] == at_.F_STUCK:
            self._judged_as_stuck()

    def _first_values(self, known: int) -> None:
        """Set the cells to what was in them at first; the first `known` of them are set."""
        first = self._recorded.recorder.first
        for cell, number in islice(first.items(), known, None):
            self._state.cell[cell] = number
        self._loaded = len(first)

    def _resume(self) -> None:
        """From the roots to where the search stands."""
        automata, at = self._recorded.automata, self._state.at
        self._state.node[:] = [
            automata.root(1 << n, place) for n, place in enumerate(automata.roots)
        ]
        at[at_.REACHED] = at[at_.JOURNAL] = 0
        while status := self._run.resume(self._code(), self._state):
            if status == -2:
                self._more_journal()
            elif not self._learnt():
                raise Unrecordable("what was recorded does not lead where it led")


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


def _mask(tasks: Iterable[int]) -> int:
    return sum(1 << task for task in tasks)


def _tasks(mask: int) -> frozenset[int]:
    return frozenset(task for task in range(int(mask).bit_length()) if mask >> task & 1)


class _Onward:
    """Chooses for an execution of the real tasks: what is known, then as the search will."""

    def __init__(self, state: SearchState, prefix: list[int], known: list[NextStep]) -> None:
        self.prefix = prefix
        self.did = [known[state.op[depth]] for depth in range(len(prefix) - 1)]
        self.depth = 0
        self.sleep: set[int] = set()
        self.slept = _tasks(state.sleep[len(prefix) - 1]) if prefix else frozenset()

    def choose(self, execution: Execution) -> int:
        """See Explorer._choose()."""
        last = len(self.prefix) - 1
        if self.depth <= last:
            task = self.prefix[self.depth]
            if self.depth < last and execution.ops[task] != self.did[self.depth]:
                raise Unrecordable("a task does something else than it did before")
            if self.depth == last:
                self.sleep = set(self.slept)
        else:
            awake = [t for t in execution.enabled() if t not in self.sleep]
            if not awake:
                return STOP
            task = execution.current if execution.current in awake else awake[0]
        step = execution.ops[task]
        if step is not None:
            self.sleep = {t for t in self.sleep if _sleeps_on(execution.ops[t], step)}
        self.depth += 1
        return task


def _sleeps_on(op: NextStep | None, step: NextStep) -> bool:
    return op is not None and not dependent(op, step)
