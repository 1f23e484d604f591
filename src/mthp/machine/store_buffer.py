# SPDX-License-Identifier: GPL-2.0-or-later
"""Stores to page contents that others see late, and what makes them wait for one another.

What matters to the collapse is whether a page's contents can be overtaken by the store that maps the
page. So contents go through a store buffer, and everything else is seen at once; a barrier, or
whatever orders like one, waits until what is in the buffer has been seen. Each place in the buffer
is emptied by a task of its own, so that contents overtake one another too.
Kernel: Documentation/memory-barriers.txt, tools/memory-model/.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

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


class Lane(Enum):
    """How stores to a row of words reach the other tasks."""

    CONTENTS = "late"
    TABLES = "maps contents"
    COUNTS = "changed by atomics that return a value"


class Row(Protocol):
    """A row of words that is stored to late."""

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
    """One place of a store buffer, used once."""

    __slots__ = ("filled", "index", "row", "seen", "value")

    def __init__(self, machine: Stepping, name: str) -> None:
        self.filled = Completion(machine, f"{name}.filled")
        self.seen = Completion(machine, f"{name}.seen")
        self.row: Row
        self.index = self.value = 0

    def drain(self) -> None:
        """Do what the slot's task does: let the store out, some time after it was made."""
        self.filled.wait()
        self.row.write(self.index, self.value)
        self.seen.happen()


class StoreBuffer:
    """The store buffer of one CPU. released: a lock was given back since the last store."""

    __slots__ = ("free", "model", "released", "waiting")

    def __init__(self, machine: Stepping, name: str, model: Model, slots: int) -> None:
        self.model = model
        self.free = [Slot(machine, f"{name}.slot{n}") for n in range(slots)]
        self.waiting: list[Slot] = []
        self.released = False

    def store(self, row: Row, index: int, value: int) -> bool:
        """Keep a store for later; False: no room, and it is seen at once."""
        if not self.free:
            return False
        slot = self.free.pop(0)
        slot.row, slot.index, slot.value = row, index, value
        self.waiting.append(slot)
        self.released = False
        slot.filled.happen()
        return True

    def forwarded(self, row: Row, index: int) -> int | None:
        """What the CPU itself reads of a word that others do not see yet."""
        for slot in reversed(self.waiting):
            if slot.row is row and slot.index == index:
                return slot.value
        return None

    def wait_until_seen(self) -> None:
        """Do what a barrier does: store nothing further until all tasks see what was stored."""
        while self.waiting:
            self.waiting[0].seen.wait()
            del self.waiting[0]

    def before_table_store(self) -> None:
        """Prepare for a store that maps something."""
        if self.model is Model.TSO:
            self.wait_until_seen()

    def before_atomic(self) -> None:
        """Prepare for an atomic that returns a value: a full barrier, says the LKMM."""
        if self.model is not Model.WEAK:
            self.wait_until_seen()

    def before_silent_atomic(self) -> None:
        """Prepare for an atomic that returns nothing: it orders on x86 alone."""
        if self.model is Model.TSO:
            self.wait_until_seen()

    def after_release(self) -> None:
        """Take note that a lock was given back."""
        self.released = True

    def after_acquire(self) -> None:
        """Take note that a lock was taken."""
        if self.model is Model.LKMM and self.released:
            self.wait_until_seen()
