# SPDX-License-Identifier: GPL-2.0-or-later
"""How the new folio is published, as litmus tests: each once as C for herd7 and the kernel's memory
model, and once as two tasks over our words and store buffer. One pattern makes both.

Kernel: tools/memory-model/, Documentation/litmus-tests/.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from mthp.machine.hold import Rank
from mthp.machine.locks import SpinLock
from mthp.machine.memory import Words
from mthp.machine.step import Access
from mthp.machine.store_buffer import Lane, Model, StoreBuffer
from mthp.machine.task import Machine, Task

EMPTY = 7
"""What the reader gets where it finds nothing mapped yet."""


class Observation(StrEnum):
    """Whether the reader sees contents that were not there yet, over all executions."""

    ALWAYS = "Always"
    SOMETIMES = "Sometimes"
    NEVER = "Never"

    @staticmethod
    def of(stale: Sequence[bool]) -> Observation:
        """In which of the outcomes it does."""
        if all(stale):
            return Observation.ALWAYS
        return Observation.SOMETIMES if any(stale) else Observation.NEVER


@dataclass(frozen=True)
class Pattern:
    """A way to publish. what: between or around the two stores. expected: of the memory model.

    takes: what P0 needs besides contents and mapping, as C. before, after: its lines before and
    after the store that maps, as C. run: the same lines on our machine, the store among them.
    """

    name: str
    what: str
    expected: Observation
    run: Callable[[Publish], None]
    takes: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The litmus test, for herd7."""
        takes = "".join(f", {each}" for each in self.takes)
        lines = ["WRITE_ONCE(*contents, 1);", *self.before, "WRITE_ONCE(*pmd, contents);"]
        body = "".join(f"\t{line}\n" for line in (*lines, *self.after))
        return _TEXT.format(
            name=self.name, what=self.what, expected=self.expected.value, takes=takes, body=body
        )


_TEXT = """\
C {name}

(*
 * SPDX-License-Identifier: GPL-2.0-or-later
 * Result: {expected}
 * P0 copies a page and maps it; P1 is a page table walk and the load through it.
 * Between the two stores: {what}.
 *)

{{
	int contents = 0;
	int empty = 7;
	int *pmd = &empty;
}}

P0(int *contents, int **pmd{takes})
{{
{body}}}

P1(int *contents, int **pmd)
{{
	int *r0;
	int r1;

	r0 = READ_ONCE(*pmd);
	r1 = READ_ONCE(*r0);
}}

exists (1:r1=0)
"""


class Publish:
    """The two tasks as schedulers want them. broken: what the reader got, its only "breach": two
    searches that saw the same breaches saw the same behaviours.
    """

    def __init__(self, model: Model, pattern: Pattern) -> None:
        self.machine = Machine()
        self.contents: Words[int] = Words(self.machine, "contents", "q", 1)
        self.mapping: Words[int] = Words(self.machine, "mapping", "q", 1)
        self.counts: Words[int] = Words(self.machine, "counts", "q", 1)
        self.ptl = SpinLock(self.machine, "ptl", Rank.PTE)
        self.pml = SpinLock(self.machine, "pml", Rank.PMD)
        self.broken: list[Any] = []
        self.results: list[str] = []
        self.got = EMPTY
        writer = Task("writer")
        self.tasks = [(writer, lambda: self._write(pattern)), (Task("reader", 1), self._read)]
        if model is Model.SC:
            return
        writer.buffer = StoreBuffer(self.machine, writer.name, model, 1)
        self.contents.lane, self.mapping.lane = Lane.CONTENTS, Lane.TABLES
        self.counts.lane = Lane.COUNTS
        drainer = Task("buffer")
        drainer.background = True
        self.tasks.append((drainer, partial(writer.buffer.drain, 0, drainer)))

    def _write(self, pattern: Pattern) -> None:
        self.contents.write(0, 1)
        pattern.run(self)

    def _read(self) -> None:
        if self.mapping.read(0):
            self.got = self.contents.read(0)

    def map(self) -> None:
        """The store that makes the contents reachable."""
        self.mapping.write(0, 1)

    def before(self, access: Access, word: Any, index: int) -> None:
        """Nothing is looked at here."""

    def after(self, access: Access, word: Any, index: int) -> None:
        """Nothing is looked at here either."""

    def raised(self, task: Task, error: BaseException) -> None:
        """No task of a pattern fails."""
        raise error

    def stuck(self, waiting: Sequence[Any]) -> None:
        """No task of a pattern waits for ever."""
        raise AssertionError(waiting)

    def at_rest(self) -> None:
        """The behaviour."""
        self.broken.append(self.got)


def _behind_a_barrier(publish: Publish) -> None:
    publish.machine.smp_wmb()
    publish.map()


def _behind_two_locks(publish: Publish) -> None:
    publish.ptl.lock().release()
    with publish.pml.lock():
        publish.map()


def _after_a_lock(publish: Publish) -> None:
    publish.ptl.lock().release()
    publish.map()


def _under_a_lock(publish: Publish) -> None:
    with publish.pml.lock():
        publish.map()


def _behind_an_atomic(publish: Publish) -> None:
    publish.counts.add(0, -1)
    publish.map()


def _after_a_get(publish: Publish) -> None:
    publish.counts.take(0, 1)
    publish.map()


_PTL, _PML = "spinlock_t *ptl", "spinlock_t *pml"
_PTL_ONCE = ("spin_lock(ptl);", "spin_unlock(ptl);")
_PML_TAKEN, _PML_GIVEN = ("spin_lock(pml);",), ("spin_unlock(pml);",)

# fmt: off
_PATTERNS = (
    Pattern("publish-wmb", "__folio_mark_uptodate() as it is", Observation.NEVER, _behind_a_barrier,
        before=("smp_wmb();",)),
    Pattern("publish-no-wmb", "X3: the barrier is gone, and nothing else orders", Observation.SOMETIMES,
        Publish.map),
    Pattern("publish-locks", "no barrier: the PTE lock is given back and the pmd lock taken",
        Observation.NEVER, _behind_two_locks, (_PTL, _PML), (*_PTL_ONCE, *_PML_TAKEN), _PML_GIVEN),
    Pattern("publish-unlock", "no barrier: a lock is given back, none is taken", Observation.SOMETIMES,
        _after_a_lock, (_PTL,), _PTL_ONCE),
    Pattern("publish-lock", "no barrier: the pmd lock is taken, none was given back",
        Observation.SOMETIMES, _under_a_lock, (_PML,), _PML_TAKEN, _PML_GIVEN),
    Pattern("publish-atomic",
        "no barrier: a source's reference is put by an atomic that returns a value", Observation.NEVER,
        _behind_an_atomic, ("atomic_t *count",), ("int r0 = atomic_dec_return(count);",)),
    Pattern("publish-get", "no barrier: a reference is taken by an atomic that returns nothing",
        Observation.SOMETIMES, _after_a_get, ("atomic_t *count",), ("atomic_inc(count);",)),
    Pattern("ptes-wmb",
        "v16's smp_wmb(), where the contents are the PTEs and what maps them is the PMD",
        Observation.NEVER, _behind_a_barrier, before=("smp_wmb();",)),
    Pattern("ptes-no-wmb", "v16 without it: the pmd lock is held over both stores, and orders neither",
        Observation.SOMETIMES, Publish.map),
)
# fmt: on
PATTERNS = {each.name: each for each in _PATTERNS}
