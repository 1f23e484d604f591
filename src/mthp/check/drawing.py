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
from types import FrameType
from typing import Any, Final

from mthp.check.records import Breach, Call, Violation
from mthp.check.token import Token, as_mutant
from mthp.explore.outcome import BrokenSchedule
from mthp.explore.replay import Replay, shrink
from mthp.laws.broken import Broken
from mthp.laws.table import LAWS
from mthp.machine.hold import Hold, Rank
from mthp.machine.memory import Words
from mthp.machine.step import Access
from mthp.mm.mm_types import PageTable, PmdPage
from mthp.races.protocol import OWN_MODULE
from mthp.races.stage import Stage
from mthp.races.world import RaceWorld

_LOCKS = {
    Rank.MMAP: "mmap_lock",
    Rank.VMA: "VMA lock",
    Rank.MM_LIST: "mm_list",
    Rank.ANON_VMA: "anon_vma",
    Rank.PMD: "pmd lock",
    Rank.PTE: "PTE lock",
}


class Drawing:
    """Listens to a stage. calls: one for each stretch of steps of one task in one function."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.calls: list[Call] = []
        self._numbers = {task.name: number for number, (task, _) in enumerate(stage.tasks)}
        self._before = stage.before
        stage.before = self.before

    def before(self, access: Access, word: Any, index: int) -> None:
        """Draw the step, then let the laws look at it."""
        task = self.stage.machine.current
        if task.background:
            if access is Access.WRITE:
                self._draw(Call(self._numbers[task.name], f"seen: the store to page {index}", ()))
        else:
            name = _function_of(sys._getframe(1), access, word) + _what(access, word, index)
            locks = tuple(_name(hold) for hold in task.held)
            self._draw(Call(self._numbers[task.name], name, locks))
        self._before(access, word, index)

    def _draw(self, call: Call) -> None:
        if not self.calls or self.calls[-1] != call:
            self.calls.append(call)


# The kernel functions on the stack

_STORES = {"store": "store to user memory", "load": "load from user memory"}
_ENGINE = ("mthp.khugepaged.", "mthp.mm.", "mthp.races.")


def _function_of(frame: FrameType | None, access: Access, word: Any) -> str:
    """The kernel function a step belongs to; a lock's own name where it is taken or given back."""
    rank = getattr(word, "rank", None)
    if rank is not None:
        done = {Access.RELEASE: "unlock", Access.TRY: "trylock"}.get(access, "lock")
        return f"{_LOCKS[rank]}: {done}"
    return kernel_function(frame, access) or f"{access.value} {word.name}"


def kernel_function(frame: FrameType | None, access: Access) -> str:
    """The innermost of the kernel's functions on the stack, "" where there is none. A read belongs to
    a function of a .c file: headers hold what every function reads by.
    """
    while frame is not None:
        name, module = frame.f_code.co_name, frame.f_globals.get("__name__", "")
        if name in _STORES and module == "mthp.mm.mmu":
            return _STORES[name]
        if module == OWN_MODULE and name.isidentifier():
            return f"{name}()"
        if module.startswith(_ENGINE):
            cited, file = _cited(name, _docstring(frame), frame.f_globals.get("__doc__") or "")
            if cited and (file.endswith(".c") or access is not Access.READ):
                return f"{cited}()"
        frame = frame.f_back
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
    name = _LOCKS[hold.lock.rank]
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
    stage = token.world()
    drawing = Drawing(stage)
    replay = Replay(lambda: stage, token.schedule)
    broken: list[Any] = replay.run()
    return Violation(
        token.world.tasks,
        tuple(_rounds(drawing.calls)),
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
