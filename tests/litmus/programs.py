# SPDX-License-Identifier: GPL-2.0-or-later
"""Tiny tasks over a few words and locks, for litmus tests of the schedulers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mthp.explore.tasks import NextStep
from mthp.machine.cpu import Busy
from mthp.machine.hold import Hold, Rank
from mthp.machine.locks import RwSem
from mthp.machine.memory import Words
from mthp.machine.step import Access
from mthp.machine.task import Machine, Task
from mthp.words.results import KernelBug, Rule

Line = tuple[str, int]
"""("read" | "write" | "add", word), ("lock" | "rlock" | "try" | "unlock", lock),
("test" | "set" | "clear" | "await", flag): one bit of two words of flags, ("take" | "try take" | "put",
count), or ("busy" | "idle" | "ipi", 0).
"""

WORDS, LOCKS, FLAGS, COUNTS = 3, 2, 4, 2
MANY = 9
FEW = 2
"""What the counts begin with: no program puts MANY references; FEW may all be put."""


class Clear:
    """What "await" waits for: the flags without one bit."""

    def __init__(self, flags: Words[int], mask: int) -> None:
        self.name = flags.name
        self.flags = flags
        self.mask = mask

    def may_take(self, index: int) -> bool:
        """Whether the bit is clear."""
        return not self.flags.raw[index] & self.mask


class Program:
    """A Setup that runs lines. What each task read, and the words at the end, are its "breach":
    two searches that have seen the same breaches have seen the same behaviours.
    """

    def __init__(self, lines: Sequence[Sequence[Line]]) -> None:
        self.machine = Machine()
        self.words: Words[int] = Words(self.machine, "word", "q", WORDS)
        self.flags: Words[int] = Words(self.machine, "flags", "I", 2)
        self.counts: Words[int] = Words(self.machine, "counts", "q", COUNTS)
        self.counts.raw[0] = MANY
        self.counts.raw[1] = FEW
        self.cpu = Busy(self.machine, "cpu", False)
        self.locks = [RwSem(self.machine, f"lock{n}", Rank.PTE) for n in range(LOCKS)]
        self.seen: list[list[Any]] = [[] for _ in lines]
        self.broken: list[Any] = []
        self.results: list[str] = []
        self.tasks = [(Task(f"t{n}"), self.body(n, each)) for n, each in enumerate(lines)]

    @property
    def others(self) -> dict[str, Callable[[int, list[Any]], Any]]:
        """Verbs about flags, counts and the CPU: what they do, and note in `seen`."""
        flags, counts, cpu = self.flags, self.counts, self.cpu
        return {
            "test": lambda n, seen: seen.append(flags.test_bits(n // 2, 1 << n % 2)),
            "set": lambda n, seen: seen.append(flags.set_bits(n // 2, 1 << n % 2)),
            "clear": lambda n, seen: seen.append(flags.clear_bits(n // 2, 1 << n % 2)),
            "await": lambda n, _: self.wait_for(n // 2, 1 << n % 2),
            "take": lambda n, _: self.take(n),
            "try take": lambda n, seen: seen.append(counts.add_unless_zero(n, 1)),
            "put": lambda n, seen: seen.append(counts.add(n, -1) <= 0),
            "busy": lambda _, __: cpu.enter(),
            "idle": lambda _, __: self.idle(),
            "ipi": lambda _, __: cpu.wait(),
        }

    def idle(self) -> None:
        """Only who is busy becomes idle."""
        if self.cpu.value:
            self.cpu.leave()

    def take(self, count: int) -> None:
        """A reference; KernelBug where there was none, as folio_get()."""
        if not self.counts.take(count, 1):
            raise KernelBug(Rule.COUNTS, "no reference to take another from")

    def wait_for(self, word: int, mask: int) -> None:
        """Until a flag is clear."""
        self.machine.step(Access.WAIT, Clear(self.flags, mask), word, mask)

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
                elif verb in self.others:
                    self.others[verb](what, seen)
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

    def raised(self, task: Task, error: BaseException) -> None:
        """A behaviour like any other."""
        self.broken.append((task.name, str(error)))

    def stuck(self, waiting: Sequence[tuple[Task, NextStep]]) -> None:
        """A deadlock: who waits for what."""
        self.at_rest()
        self.broken[-1] += (tuple((task.name, op.where) for task, op in waiting),)

    def at_rest(self) -> None:
        """The behaviour."""
        raw = (*self.words.raw, *self.flags.raw, *self.counts.raw)
        self.results.extend(map(str, raw))
        self.broken.append((tuple(map(tuple, self.seen)), raw))


def recipe(*lines: Sequence[Line]) -> Callable[[], Program]:
    """A recipe for the explorers."""
    return lambda: Program(lines)
