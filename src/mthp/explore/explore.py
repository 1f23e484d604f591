# SPDX-License-Identifier: GPL-2.0-or-later
"""Every execution that can differ, each once: stateless source-set DPOR with sleep sets.

After Abdulla, Aronis, Jonsson, Sagonas: "Optimal dynamic partial order reduction" (POPL 2014),
algorithm 1. The world is built anew for each execution and the known beginning is replayed; beyond
it tasks run as they like, and each step is compared with the earlier ones it depends on. Where two
could have come the other way round, the other way is noted at the place of the first, to be tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Final

from mthp.explore.dependence import dependent, waits
from mthp.explore.outcome import (
    BrokenSchedule,
    Coverage,
    Extent,
    Schedule,
    SearchOutcome,
    tally,
)
from mthp.explore.part import NO_TASK, BranchPoint, Counts, Key, NotThisSearch, Part, Race
from mthp.explore.replay import gone_on
from mthp.explore.tasks import MAX_STEPS, STOP, Ending, Execution, NextStep, NotTheSame, Recipe
from mthp.machine.step import Access

Clock = list[int]
"""Task -> how many of its steps happen before, or are, the step that carries the clock."""


HOLDS_NOTHING: Final = frozenset({Access.RELEASE, Access.IPI, Access.WAIT})
"""Steps after which no task has to wait."""


class Until(Enum):
    """When to stop."""

    FIRST = "the first breach"
    END = "every execution was seen"


class Stop(Enum):
    """Why a search stopped."""

    END = "every execution was seen"
    FIRST = "stopped at the first breach"
    ENOUGH = "stopped"
    ELSEWHERE = "what is next is searched elsewhere"


class TakenStep:
    """A step that was taken. depth: its place among all; number: among its task's, from 1."""

    __slots__ = ("clock", "depth", "number", "op", "task")

    def __init__(self, task: int, op: NextStep, depth: int, number: int, clock: Clock) -> None:
        self.task = task
        self.op = op
        self.depth = depth
        self.number = number
        self.clock = clock

    def before(self, clock: Clock) -> bool:
        """Whether it happens before what has this clock."""
        return clock[self.task] >= self.number


class Branch:
    """The state before a step, and the step taken there (event).

    ops: what each task was about to do. enabled: tasks that could go. todo: tasks to try here.
    sleep: tasks whose step here leads to nothing new, with that step.
    """

    __slots__ = ("enabled", "event", "ops", "sleep", "todo")

    def __init__(
        self,
        ops: list[NextStep | None],
        enabled: list[int],
        sleep: dict[int, NextStep],
        todo: Iterable[int],
    ) -> None:
        self.ops = ops
        self.enabled = enabled
        self.sleep = sleep
        self.todo = set(todo)
        self.event: TakenStep

    def left(self) -> set[int]:
        """Tasks still to be tried."""
        return self.todo - self.sleep.keys()


class Explorer:
    """The search. most_executions: a bound; most_steps: a bound of each execution.

    may_continue: it is asked after each execution, and False stops the search. part: where the search
    begins. elsewhere: parts that other processes search; None for one that is not searched yet.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        until: Until = Until.FIRST,
        most_executions: int | None = None,
        most_steps: int = MAX_STEPS,
        may_continue: Callable[[Explorer], bool] | None = None,
        part: Part | None = None,
        elsewhere: Mapping[Key, Part | None] | None = None,
    ) -> None:
        self.recipe = recipe
        self.until = until
        self.most_executions = most_executions
        self.most_steps = most_steps
        self.may_continue = may_continue
        self.start = part or Part()
        self.own = self.start.own
        self.elsewhere = elsewhere or {}
        self.counts = self.start.counts
        self.findings: dict[object, BrokenSchedule] = {
            each.broken: each for each in self.start.findings
        }
        self.races: dict[Race, None] = dict.fromkeys(self.start.races)
        self.nodes: list[Branch] = []
        self._places: dict[tuple[str, int], list[TakenStep]] = {}
        self._of_task: list[list[TakenStep]] = []
        self._replaying = self._depth = 0
        self._is_same = True

    @property
    def executions(self) -> int:
        """Complete ones so far."""
        return self.counts.executions

    def explore(self) -> SearchOutcome:
        """Search to the end, the first breach or a bound."""
        stop = self.search()
        return outcome(stop, self.counts, tuple(self.findings.values()), self.most_steps)

    def search(self) -> Stop:
        """Search as explore() does; why the search stopped."""
        stop = self._resume()
        while stop is None:
            self._execute()
            stop = self._why_stop()
        return stop

    def _why_stop(self) -> Stop | None:
        if self.findings and self.until is Until.FIRST:
            return Stop.FIRST
        self._undo()
        stop = self._find_next()
        if stop is None and self.most_executions is not None:
            stop = Stop.ENOUGH if self.executions >= self.most_executions else None
        if stop is None and self.may_continue is not None:
            stop = None if self.may_continue(self) else Stop.ENOUGH
        return stop

    # As a part

    def part(self) -> Part:
        """How far the search has come. To be called between two executions."""
        last = len(self.nodes) - 1
        places = tuple(
            BranchPoint(
                NO_TASK if depth == last and depth >= self.own else node.event.task,
                frozenset(node.todo),
                frozenset(node.sleep),
            )
            for depth, node in enumerate(self.nodes)
        )
        findings, races = tuple(self.findings.values()), tuple(self.races)
        done = len(places) <= self.own
        return Part(places, self.own, self.counts, findings, races, done)

    def _resume(self) -> Stop | None:
        """Take the steps that lead to where the part had come."""
        if not self.start.places:
            return None
        Execution(self.recipe(), self._lead).run()
        if len(self.nodes) < len(self.start.places):
            raise NotThisSearch(f"it ends at step {len(self.nodes)}")
        self._replaying = self.own
        return self._find_next() if len(self.nodes) > self.own else None

    def _lead(self, execution: Execution) -> int:
        depth = len(self.nodes)
        if depth == len(self.start.places):
            return STOP
        if not depth:
            self._of_task = [[] for _ in execution.ops]
        place = self.start.places[depth]
        sleep = {task: op for task in place.sleep if (op := execution.ops[task]) is not None}
        node = Branch(list(execution.ops), execution.enabled(), sleep, place.todo)
        self.nodes.append(node)
        if place.task == NO_TASK:
            return STOP
        if place.task not in node.enabled:
            raise NotThisSearch(f"task {place.task} has no step {depth}")
        self._take(node, place.task, depth)
        return place.task

    def _absorb(self, part: Part) -> None:
        """What was found elsewhere, as if it had been found here and now."""
        self.counts += part.counts
        for finding in part.findings:
            self.findings.setdefault(finding.broken, finding)
        for race in part.races:
            self._reverse(race.depth, race.initials)

    # One execution

    def _execute(self) -> None:
        self._depth = 0
        execution = Execution(self.recipe(), self._choose, self.most_steps)
        if not self._of_task:
            self._of_task = [[] for _ in execution.ops]
        ending = execution.run()
        if not self._is_same or self._depth < self._replaying:
            raise NotTheSame(
                f"step {self._depth} of an execution is another one when it is run again"
            )
        if ending is Ending.STUCK or ending is Ending.GIVEN_UP:
            self._races_of_the_waiting(execution)
        if ending is Ending.GIVEN_UP and not execution.setup.broken:
            self.counts += Counts(0, 1, execution.steps)
            return
        setup, is_cut_off = execution.setup, ending is Ending.TOO_LONG
        self.counts += Counts(1, 0, execution.steps, is_cut_off, tally(setup.results))
        if not setup.broken and not is_cut_off:
            return
        schedule = Schedule(tuple(node.event.task for node in self.nodes))
        later = gone_on(self.recipe, schedule, self.most_steps) if is_cut_off else ()
        for broken in (*setup.broken, *later):
            self.findings.setdefault(broken, BrokenSchedule(broken, schedule))

    def _choose(self, execution: Execution) -> int:
        depth = self._depth
        self._depth += 1
        if depth < len(self.nodes):
            node = self.nodes[depth]
            is_known = depth < self._replaying
            task = node.event.task if is_known else min(node.left())
            self._is_same = execution.ops[task] == node.ops[task]
            if is_known or not self._is_same:
                return task if self._is_same else STOP
        else:
            if self.until is Until.FIRST and execution.setup.broken:
                return STOP
            sleep = self._inherited_sleep()
            enabled = execution.enabled()
            awake = [task for task in enabled if task not in sleep]
            if not awake:
                return STOP
            task = execution.current if execution.current in awake else awake[0]
            node = Branch(list(execution.ops), enabled, sleep, {task})
            self.nodes.append(node)
        self._take(node, task, depth)
        return task

    def _inherited_sleep(self) -> dict[int, NextStep]:
        """The tasks that slept before the last step and do not depend on it."""
        if not self.nodes:
            return {}
        last = self.nodes[-1]
        step = last.event.op
        return {task: op for task, op in last.sleep.items() if not dependent(op, step)}

    def _take(self, node: Branch, task: int, depth: int) -> None:
        """Record a step: its clock, and the earlier steps it could have come before."""
        op = node.ops[task]
        assert op is not None
        event = self._event(task, op, depth)
        node.event = event
        self._of_task[task].append(event)
        self._places.setdefault(op.where, []).append(event)

    def _event(self, task: int, op: NextStep, depth: int) -> TakenStep:
        mine = self._of_task[task]
        known = list(mine[-1].clock) if mine else [0] * len(self._of_task)
        others = [
            other
            for other in reversed(self._places.get(op.where, ()))
            if other.task != task and dependent(other.op, op)
        ]
        racing = _races(op, known, others)
        for other in others:
            _join(known, other.clock)
        known[task] = len(mine) + 1
        event = TakenStep(task, op, depth, len(mine) + 1, known)
        for other in racing:
            self._note_race(other, event)
        return event

    def _races_of_the_waiting(self, execution: Execution) -> None:
        """Look at steps that never came for want of a lock: they could have been first."""
        for task, op in enumerate(execution.ops):
            if op is not None and not execution.may_go(task, op):
                self._event(task, op, len(self.nodes))

    # Backtracking

    def _note_race(self, first: TakenStep, second: TakenStep) -> None:
        """A task that leads to `second` without `first` is to be tried where `first` was taken."""
        self._reverse(first.depth, frozenset(self._initials(first, second)))

    def _reverse(self, depth: int, initials: frozenset[int]) -> None:
        """One of `initials` is to be tried at a depth, here or in the part above this one."""
        if depth < self.own:
            self.races[Race(depth, initials)] = None
            return
        place = self.nodes[depth]
        if place.todo & initials:
            return
        usable = [task for task in place.enabled if task in initials]
        place.todo.update(usable[:1] or place.enabled)

    def _initials(self, first: TakenStep, second: TakenStep) -> set[int]:
        """Tasks that may begin the sequence of what does not happen after `first`, then `second`."""
        later = [node.event for node in self.nodes[first.depth + 1 : second.depth]]
        later = [event for event in later if not first.before(event.clock)]
        clock = second.clock
        if waits(second.op):
            later, clock = self._without_holders(first, second, later)
        begun: dict[int, int] = {}
        initials = set()
        for event in later:
            if event.task not in begun:
                if not any(event.clock[task] >= number for task, number in begun.items()):
                    initials.add(event.task)
                begun[event.task] = event.number
        if second.task not in begun and not any(clock[t] >= n for t, n in begun.items()):
            initials.add(second.task)
        return initials

    def _without_holders(
        self, first: TakenStep, second: TakenStep, later: list[TakenStep]
    ) -> tuple[list[TakenStep], Clock]:
        """That sequence without what would keep `second` waiting for ever, and without what follows
        from that; with the clock `second` has then.
        """
        place = second.op.where
        released = {  # task -> the place of its last release
            e.task: e.depth for e in later if e.op.where == place and e.op.access is Access.RELEASE
        }
        kept: list[TakenStep] = []
        dropped: list[TakenStep] = []
        for event in later:
            holds = event.op.where == place and event.op.access not in HOLDS_NOTHING
            for_ever = holds and released.get(event.task, -1) < event.depth
            gone = any(each.before(event.clock) for each in dropped)
            if gone or (for_ever and dependent(event.op, second.op)):
                dropped.append(event)
            else:
                kept.append(event)
        mine = self._of_task[second.task]
        own = mine[second.number - 2].clock if second.number > 1 else [0] * len(self._of_task)
        clock = list(own)
        there = [e for e in self._places.get(place, ()) if e.depth < first.depth]
        for event in (*there, *(e for e in kept if e.op.where == place)):
            if event.task != second.task and dependent(event.op, second.op):
                _join(clock, event.clock)
        return kept, clock

    def _undo(self) -> None:
        """Take the part's last step back."""
        if len(self.nodes) <= self.own:
            return
        node = self.nodes[-1]
        event = node.event
        self._of_task[event.task].pop()
        self._places[event.op.where].pop()
        node.sleep[event.task] = event.op

    def _find_next(self) -> Stop | None:
        """Go back to the deepest place of this part with something left to try here."""
        while len(self.nodes) > self.own:
            node = self.nodes[-1]
            while left := node.left():
                task = min(left)
                key = self._key(node, task) if self.elsewhere else Key()
                if key not in self.elsewhere:
                    self._replaying = len(self.nodes) - 1
                    return None
                part = self.elsewhere[key]
                if part is None:
                    return Stop.ELSEWHERE
                self._absorb(part)
                op = node.ops[task]
                assert op is not None
                node.sleep[task] = op
            self.nodes.pop()
            self._undo()
        return Stop.END

    def _key(self, node: Branch, task: int) -> Key:
        above = (each.event.task for each in self.nodes[:-1])
        return Key((*above, task), frozenset(node.sleep))


def outcome(
    stop: Stop, counts: Counts, findings: tuple[BrokenSchedule, ...], most_steps: int = MAX_STEPS
) -> SearchOutcome:
    """What a search that stopped has found, and how much it covered."""
    bound = {Stop.END: "", Stop.ENOUGH: f"stopped after {counts.executions} executions"}
    text = bound.get(stop, stop.value)
    if not text and counts.too_long:
        text = f"{counts.too_long} executions cut off after {most_steps} steps"
    kind = Extent.BOUNDED if text else Extent.EXHAUSTIVE
    coverage = Coverage(
        kind, counts.executions, counts.pruned, counts.steps, text, results=counts.results
    )
    return SearchOutcome(coverage, findings)


def _races(op: NextStep, known: Clock, others: list[TakenStep]) -> list[TakenStep]:
    """Those earlier steps, of the ones it depends on (latest first), that could have come after it."""
    clock = list(known)
    found: list[TakenStep] = []
    for other in others:
        if waits(op):
            # The task that holds the lock now is in the way; a hold that ended before another began is
            # met again when that one is reversed.
            if other.op.access is not Access.RELEASE:
                if not other.before(clock):
                    found.append(other)
            elif any(other.before(holder.clock) for holder in found):
                _join(clock, other.clock)
            continue
        if not other.before(clock):
            found.append(other)
        _join(clock, other.clock)
    return found


def _join(clock: Clock, other: Clock) -> None:
    for task, number in enumerate(other):
        if clock[task] < number:
            clock[task] = number
