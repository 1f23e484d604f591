# SPDX-License-Identifier: GPL-2.0-or-later
"""Tiny tasks over a few words and locks, for litmus tests of the schedulers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mthp.machine.locks import Hold, Rank, RwSem
from mthp.machine.memory import Words
from mthp.machine.step import Access, Machine, Task
from mthp.schedulers.tasks import Op

Line = tuple[str, int]
"""("read" | "write" | "add", word) or ("lock" | "rlock" | "try" | "unlock", lock)."""

WORDS, LOCKS = 3, 2


class Program:
    """A Setup that runs lines. What each task read, and the words at the end, are its "breach":
    two searches that have seen the same breaches have seen the same behaviours.
    """

    def __init__(self, lines: Sequence[Sequence[Line]]) -> None:
        self.machine = Machine()
        self.words = Words(self.machine, "word", "q", WORDS)
        self.locks = [RwSem(self.machine, f"lock{n}", Rank.PTE) for n in range(LOCKS)]
        self.seen: list[list[Any]] = [[] for _ in lines]
        self.broken: list[Any] = []
        self.tasks = [(Task(f"t{n}"), self.body(n, each)) for n, each in enumerate(lines)]

    def body(self, number: int, lines: Sequence[Line]) -> Callable[[], None]:
        def run() -> None:
            seen = self.seen[number]
            holds: list[list[Hold]] = [[] for _ in range(LOCKS)]
            for at, (verb, what) in enumerate(lines):
                if verb == "read":
                    seen.append(self.words.read(what))
                elif verb == "write":
                    self.words.write(what, 100 * (number + 1) + at)
                elif verb == "add":
                    seen.append(self.words.add(what, 1))
                elif verb == "lock":
                    holds[what].append(self.locks[what].write())
                elif verb == "rlock":
                    holds[what].append(self.locks[what].read())
                elif verb == "try":
                    hold = self.locks[what].try_read()
                    seen.append(hold is not None)
                    if hold is not None:
                        holds[what].append(hold)
                elif holds[what]:
                    holds[what].pop().release()

        return run

    def before(self, access: Access, word: Any, index: int) -> None:
        """Nothing is looked at here."""

    def after(self, access: Access, word: Any, index: int) -> None:
        """Nor here."""

    def raised(self, task: Task, error: Exception) -> None:
        """A behaviour like any other."""
        self.broken.append((task.name, str(error)))

    def stuck(self, waiting: Sequence[tuple[Task, Op]]) -> None:
        """A deadlock: who waits for what."""
        self.at_rest()
        self.broken[-1] += (tuple((task.name, op.where) for task, op in waiting),)

    def at_rest(self) -> None:
        """The behaviour."""
        self.broken.append((tuple(map(tuple, self.seen)), tuple(self.words.raw)))


def recipe(*lines: Sequence[Line]) -> Callable[[], Program]:
    """A recipe for the explorers."""
    return lambda: Program(lines)
