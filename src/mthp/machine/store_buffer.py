# SPDX-License-Identifier: GPL-2.0-or-later
"""Stores that others see late, and what makes them wait for one another.

What matters to the collapse is whether a page's contents can be overtaken by the store that maps the
page; so contents go through a store buffer, and in some worlds PTEs and folio flags that are stored to
plainly. Everything else is seen at once. Each place in a buffer is emptied by a task of its own, so that
stores overtake one another too. Who takes a lock that was held for writing, or sends an IPI, waits for
the late stores of who gave it back, or was interrupted. A barrier, and whatever orders like one, waits
until what is in the buffer has been seen: more than a barrier does, so that loads do not come before it.
Kernel: Documentation/memory-barriers.txt, tools/memory-model/.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Protocol

from mthp.machine.hold import Hold
from mthp.machine.step import Access, Stepping


class Model(Enum):
    """What keeps a mapping store behind the contents written before it.

    SC: nothing is late. TSO: every store is behind earlier ones (x86). LKMM: smp_wmb(), a lock given
    back before another is taken, and atomics that return a value (a put reference). WEAK: smp_wmb()
    alone, so as to see what each barrier is for.
    """

    SC = "sc"
    TSO = "tso"
    LKMM = "lkmm"
    WEAK = "weak"


class Late(Enum):
    """What else is late than the contents that the first task's CPU stores."""

    PTES = "ptes"
    FLAGS = "flags"
    EACH = "each"
    """The same of every task's CPU."""


class Lane(Enum):
    """How a row of words is stored to."""

    CONTENTS = "late"
    LATE = "late, but seen by who takes the lock next in any model"
    TABLES = "maps contents"
    COUNTS = "changed by atomics that return a value"


STORED_LATE: Final = frozenset({Lane.CONTENTS, Lane.LATE})
USES: Final = 16
"""How often each place of a buffer is used; afterwards stores are seen at once."""


class Row(Protocol):
    """A row of words that is stored to late."""

    lane: Lane | None

    def write(self, index: int, value: int) -> None:
        """Store to one of its words, at once if the store cannot be late."""


class Completion:
    """Something that happens once, and that tasks wait for."""

    __slots__ = ("happened", "machine", "name")

    def __init__(self, machine: Stepping, name: str) -> None:
        self.machine = machine
        self.name = name
        self.happened = False

    def may_take(self, index: int) -> bool:
        """Whether it has happened. Not a step."""
        return self.happened

    def happen(self) -> None:
        """Let whatever waits go on: one step."""
        self.machine.step(Access.RELEASE, self, 1)
        self.happened = True

    def wait(self) -> None:
        """Wait until it has happened: one step."""
        self.machine.step(Access.WAIT, self, 0)


class Slot:
    """One use of a place in a store buffer. after: stores to be seen before it. by, held: who stored, and
    the locks it held. uses: what is left of the place.
    """

    __slots__ = ("after", "by", "filled", "held", "index", "row", "seen", "uses", "value")

    def __init__(self, machine: Stepping, name: str) -> None:
        self.filled = Completion(machine, f"{name}.filled")
        self.seen = Completion(machine, f"{name}.seen")
        self.row: Row
        self.index = self.value = 0
        self.after: tuple[Slot, ...] = ()
        self.by = ""
        self.held: tuple[Hold, ...] = ()
        self.uses: list[Slot] = []

    def drain(self) -> None:
        """Let the store out, some time after it was made."""
        self.filled.wait()
        for each in self.after:
            each.seen.wait()
        self.row.write(self.index, self.value)
        self.seen.happen()


class Storing(Protocol):
    """A task that stores, or lets late stores out."""

    name: str
    held: list[Hold]
    drains: Slot | None


class StoreBuffer:
    """One CPU's. places: the slots of each, one after the other. released: a lock was given back since
    the last store.
    """

    __slots__ = ("free", "model", "places", "released", "waiting")

    def __init__(self, machine: Stepping, name: str, model: Model, places: int) -> None:
        self.model = model
        self.places = [
            [Slot(machine, f"{name}.slot{n}.{use}") for use in range(USES)] for n in range(places)
        ]
        self.free = [[*slots] for slots in self.places]
        self.waiting: list[Slot] = []
        self.released = False

    def drain(self, place: int, task: Storing) -> None:
        """What the task of a place does."""
        for slot in self.places[place]:
            task.drains = slot
            slot.drain()

    def store(self, row: Row, index: int, value: int, by: Storing) -> bool:
        """Keep a store for later; False: no place is free, and it is seen at once."""
        if not self.free:
            self.before_store(row, index)
        if not self.free:
            return False
        uses = self.free.pop(0)
        slot = uses.pop(0)
        slot.row, slot.index, slot.value = row, index, value
        slot.after = tuple(self._before(row, index))
        slot.by, slot.held, slot.uses = by.name, tuple(by.held), uses
        self.waiting.append(slot)
        self.released = False
        slot.filled.happen()
        return True

    def _before(self, row: Row, index: int) -> list[Slot]:
        """The late stores that one to this word may not overtake."""
        if self.model is Model.TSO:
            return [*self.waiting]
        return [slot for slot in self.waiting if slot.row is row and slot.index == index]

    def _wait_for(self, slot: Slot) -> None:
        slot.seen.wait()
        self.waiting.remove(slot)
        if slot.uses:
            self.free.append(slot.uses)

    def forwarded(self, row: Row, index: int) -> int | None:
        """What the CPU itself reads of a word that others do not see yet."""
        for slot in reversed(self.waiting):
            if slot.row is row and slot.index == index:
                return slot.value
        return None

    def wait_until_seen(self) -> None:
        """A barrier: nothing further is stored until everybody sees what was."""
        while self.waiting:
            self._wait_for(self.waiting[0])

    def before_store(self, row: Row, index: int) -> None:
        """A store that is not late is about to be made."""
        for slot in self._before(row, index):
            self._wait_for(slot)

    def before_atomic(self, row: Row, index: int) -> None:
        """An atomic that returns a value is about to be done: a full barrier, says the LKMM."""
        if self.model is Model.WEAK:
            self.before_store(row, index)
        else:
            self.wait_until_seen()

    def before_release(self) -> None:
        """A lock for reading, or a mark, is about to be given back: whoever is next sees all there is."""
        for slot in self.unseen():
            self._wait_for(slot)

    def unseen(self) -> tuple[Slot, ...]:
        """What whoever takes the lock waits for that is given back now; in the weakest model contents
        are none of it.
        """
        self.released = True
        if self.model is not Model.WEAK:
            return tuple(self.waiting)
        return tuple(slot for slot in self.waiting if slot.row.lane is Lane.LATE)

    def after_acquire(self) -> None:
        """A lock was taken."""
        if self.model is Model.LKMM and self.released:
            self.wait_until_seen()
