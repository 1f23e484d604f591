# SPDX-License-Identifier: GPL-2.0-or-later
"""Write down an execution as kernel lists draw races: which function each task is in, and under
which locks.

The engine is not touched: at each step the interpreter's stack tells which kernel function runs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from itertools import pairwise
from traceback import walk_tb
from types import FrameType
from typing import Any, Final, NamedTuple

from mthp.check.cone import Taken, race_of
from mthp.check.naming import LOCKS, STORE_BUFFER, Named, Names
from mthp.check.records import Breach, Call, RaceStep, Violation, WordKind
from mthp.check.token import Token, as_mutant, known
from mthp.explore.outcome import BrokenSchedule
from mthp.explore.replay import Replay, shrink
from mthp.explore.tasks import Execution, NextStep
from mthp.laws.broken import Broken
from mthp.laws.table import LAWS
from mthp.machine.hold import Hold, Rank
from mthp.machine.memory import Words
from mthp.machine.step import Access
from mthp.machine.task import Endless, Task
from mthp.mm.mem_map import Unlocked
from mthp.mm.mm_types import PageTable, PmdPage
from mthp.races.protocol import OWN_MODULE
from mthp.races.stage import Stage
from mthp.races.world import RaceWorld


class _Open(NamedTuple):
    """A step that is being taken. old: the value of its word before."""

    task: int
    locks: tuple[str, ...]
    function: str
    access: Access
    op: NextStep
    word: Any
    at: int
    old: Any


class Drawing:
    """Listens to an execution. steps: each that was taken, and errors that ended tasks; taken: the same
    for the search for conflicts. broken: what breaks in it.
    """

    def __init__(self, stage: Stage, execution: Execution, broken: Collection[Broken]) -> None:
        self.stage = stage
        self.execution = execution
        self.calls: list[Call] = []
        self.steps: list[RaceStep] = []
        self.taken: list[Taken] = []
        self._open: _Open | None = None
        self._noted = 0
        self._names = Names(stage, broken)
        self._numbers = {task.name: number for number, (task, _) in enumerate(stage.tasks)}
        self._before, self._after, self._raised = stage.before, stage.after, stage.raised
        stage.before, stage.after, stage.raised = self.before, self.after, self.raised

    def before(self, access: Access, word: Any, index: int) -> None:
        """Write down who is about to do what, then let the laws look at it."""
        task = self.stage.machine.current
        number = self._numbers[task.name]
        function, drawn, locks = STORE_BUFFER, "", tuple(_name(hold) for hold in task.held)
        if not task.background:
            function = kernel_function(callers(sys._getframe(1)), access)
            drawn = _label(function, access, word) + _what(access, word, index)
        elif access is Access.WRITE:
            drawn = f"seen: the store to page {index}"
        if drawn and self.calls[-1:] != [call := Call(number, drawn, locks)]:
            self.calls.append(call)
        op = self.execution.ops[number]
        assert op is not None
        word = word.flags if isinstance(word, Unlocked) else word
        self._open = _Open(number, locks, function, access, op, word, index, _value(word, index))
        self._before(access, word, index)

    def after(self, access: Access, word: Any, index: int) -> None:
        """Let the laws look at what was done, and write it down."""
        self._after(access, word, index)
        self._close()

    def raised(self, task: Task, error: Exception | Endless) -> None:
        """Write down that an error ended a task after its last step."""
        self._close()
        self._raised(task, error)
        frames = [frame for frame, _ in walk_tb(error.__traceback__)]
        number = self._numbers[task.name]
        last = next((step.function for step in reversed(self.steps) if step.task == number), "")
        function = kernel_function(reversed(frames), Access.WRITE) or last
        op = NextStep(Access.BARRIER, (f"{task.name} raises", 0), 0)
        self._add(number, (), function, "raise", _ERROR, op, ())

    def _close(self) -> None:
        if self._open is None:
            return
        task, locks, function, access, op, word, at, old = self._open
        self._open = None
        new = _value(word, at)
        touched = self._names.touched(word, at, (old, new))
        named = self._names.named(function, op, word, at, old, new)
        self._add(task, locks, function, access.value, named, op, touched)

    def _add(
        self,
        task: int,
        locks: tuple[str, ...],
        function: str,
        access: str,
        named: Named,
        op: NextStep,
        touched: Iterable[str],
    ) -> None:
        self.taken.append(Taken(task, op, frozenset(touched)))
        breaks = tuple(each.law for each in self.stage.broken[self._noted :])
        self._noted = len(self.stage.broken)
        number, cpu = len(self.taken), self.stage.tasks[task][0].cpu
        step = RaceStep(number, task, cpu, locks, function, access, *named, breaks)
        self.steps.append(step)


_ERROR: Final = Named(WordKind.OTHER, "", "", "", "")


def _value(word: Any, index: int) -> Any:
    """Read a word without a step; of a lock, how it is held."""
    if isinstance(word, Words):
        return word.raw[index]
    return getattr(getattr(word, "word", word), "value", None)


# The kernel functions on the stack

_STORES = {"store": "store to user memory", "load": "load from user memory"}
_ENGINE = ("mthp.khugepaged.", "mthp.mm.", "mthp.races.")


def _label(function: str, access: Access, word: Any) -> str:
    """The kernel function a step belongs to; a lock's own name where it is taken or given back."""
    rank = getattr(word, "rank", None)
    if rank is not None:
        done = {Access.RELEASE: "unlock", Access.TRY: "trylock"}.get(access, "lock")
        return f"{LOCKS[rank]}: {done}"
    return function or f"{access.value} {word.name}"


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and those that called it, innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def kernel_function(frames: Iterable[FrameType], access: Access) -> str:
    """Return the first of the kernel's functions on a stack, innermost first, or "". A read
    belongs to a function of a .c file: headers hold what every function reads by.
    """
    for frame in frames:
        name, module = frame.f_code.co_name, frame.f_globals.get("__name__", "")
        if name in _STORES and module == "mthp.mm.mmu":
            return _STORES[name]
        if module == OWN_MODULE and name.isidentifier():
            return f"{name}()"
        if module.startswith(_ENGINE):
            cited, file = _cited(name, _docstring(frame), frame.f_globals.get("__doc__") or "")
            if cited and (file.endswith(".c") or access is not Access.READ):
                return f"{cited}()"
    return ""


def _docstring(frame: FrameType) -> str:
    constants = frame.f_code.co_consts
    return constants[0] if constants and isinstance(constants[0], str) else ""


@cache
def _cited(name: str, docstring: str, module_docstring: str) -> tuple[str, str]:
    """The kernel's function that a docstring cites, that of the same name before others, and the file
    it is in, which may be the module's.
    """
    found: dict[str, tuple[str, str]] = {}
    file = "".join(re.findall(r"Kernel: ([\w/-]+\.[chS])\b", module_docstring)[:1])
    for text in re.findall(r"Kernel: (.*?)(?:\n\s*\n|\Z)", docstring, re.DOTALL):
        for path, function in re.findall(r"([\w/-]+\.[chS]\b)|(\w+)\(\)", text):
            file = path or file
            if function:
                found.setdefault(function.lstrip("_"), (function, file))
    return found.get(name.lstrip("_")) or next(iter(found.values()), ("", ""))


_VERBS = {Access.READ: "reads", Access.WRITE: "writes", Access.RMW: "changes"}


def _what(access: Access, word: Any, index: int) -> str:
    """What is done to the words that races are about."""
    if access is Access.IPI:
        return f": IPI to {word.name.partition('.')[0]}"
    if access not in _VERBS or not isinstance(word, Words):
        return ""
    if isinstance(word.owner, PmdPage):
        return f": {_VERBS[access]} the PMD"
    if isinstance(word.owner, PageTable):
        return f": {_VERBS[access]} PTE {index}"
    return f": {_VERBS[access]} page {index}" if word.name == "content" else ""


def _name(hold: Hold) -> str:
    name = LOCKS[hold.lock.rank]
    return name if hold.lock.rank >= Rank.PMD else f"{name} ({hold.mode.value})"


# Drawing an execution


def violation_of(
    mutant: str, world: RaceWorld, finding: BrokenSchedule, laws: Collection[int]
) -> Violation:
    """The finding's execution, made as short as can be. The mutant is in force."""

    def still(broken: list[Any]) -> bool:
        return any(each.law in laws for each in broken)

    return draw(Token(mutant, world, shrink(world, finding.schedule, still)))


def draw(token: Token) -> Violation:
    """Run a token's schedule and write down who called what. The mutant is in force."""
    broken: list[Any] = Replay(token.world, token.schedule).run()
    stage = token.world()
    replay = Replay(lambda: stage, token.schedule)
    drawing = Drawing(stage, replay.execution, broken)
    replay.run()
    return Violation(
        token.world.tasks,
        tuple(_rounds(drawing.calls)),
        race_of(drawing.steps, drawing.taken, broken, getattr(known(token.mutant), "laws", ())),
        breaches(broken),
        tuple(stage.kernel.warnings.values()),
        len(replay.taken),
        sum(a != b for a, b in pairwise(replay.taken)),
        str(token),
        token.protocol[0],
    )


_ROUND: Final = 40
"""Calls at most, of those that a task that goes on for ever makes again and again."""
_OFTEN: Final = 20


def _rounds(calls: list[Call]) -> Iterator[Call]:
    """The calls; some in a row that are made again and again are there once."""
    at = 0
    while at < len(calls):
        first = calls[at]
        for size in range(1, _ROUND):
            end = at + size
            while end < len(calls) and calls[end] == calls[end - size]:
                end += 1
            rounds = (end - at) // size
            if rounds > _OFTEN:
                yield from calls[at : at + size]
                yield Call(first.task, f"… the same {rounds - 1:,} times more", first.locks)
                at += rounds * size
                break
        else:
            yield first
            at += 1


def breaches(broken: Iterable[Broken]) -> tuple[Breach, ...]:
    """What was broken, each with the law's sentence."""
    return tuple(
        Breach(each.law, LAWS[each.law].sentence, " ".join(map(str, each.object)), each.text)
        for each in broken
    )


def replay(text: str) -> Violation:
    """Run a token; ValueError where it is none."""
    token = Token.parse(text)
    with as_mutant(token.mutant):
        return draw(token)
