# SPDX-License-Identifier: GPL-2.0-or-later
"""Two tasks that share words, and things that no step is about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from mthp.explore.tasks import NextStep
from mthp.machine.hold import Rank
from mthp.machine.locks import SpinLock
from mthp.machine.memory import Words
from mthp.machine.step import Access
from mthp.machine.task import Machine, Task

Body = Callable[["World"], object]


class World:
    """A Setup. number, items, names, counts: shared, whatever step is taken; said: the same, and it is
    said to commute."""

    COMMUTES: ClassVar[Mapping[str, str]] = {"said": "it is only said so"}

    def __init__(self, *bodies: Body) -> None:
        self.machine = Machine()
        self.words: Words[int] = Words(self.machine, "word", "q", 4)
        self.lock = SpinLock(self.machine, "lock", Rank.PTE)
        self.number = 0
        self.said = 0
        self.items: list[int] = []
        self.names: dict[str, int] = {}
        self.counts: Counter[str] = Counter(a=0)
        self.results: list[str] = []
        self.broken: list[Any] = []
        self.tasks = [
            (Task(f"t{n}"), lambda body=body: body(self)) for n, body in enumerate(bodies)
        ]

    def before(self, access: Access, word: Any, index: int) -> None:
        """Nothing is looked at here."""

    def after(self, access: Access, word: Any, index: int) -> None:
        """Nor here."""

    def raised(self, task: Task, error: BaseException) -> None:
        """No task fails."""
        raise error

    def stuck(self, waiting: Sequence[tuple[Task, NextStep]]) -> None:
        """Nor waits for ever."""
        raise AssertionError(waiting)

    def endless(self, task: Task, why: str) -> None:
        """Nor runs for ever."""
        raise AssertionError(task)

    def at_rest(self) -> None:
        """Nothing is broken."""


def after_word(word: int, act: Body) -> Body:
    """Something that is done after a step at a word, and before the next at another."""

    def body(world: World) -> None:
        world.words.write(word, 1)
        act(world)
        world.words.read(word + 2)

    return body
