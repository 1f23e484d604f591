# SPDX-License-Identifier: GPL-2.0-or-later
"""Places in a recorded world as numbers, and what the running task reads and writes there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from mthp.explore.compiled.kinds import ABSENT
from mthp.explore.compiled.segment import IS_INT, IS_THERE, VALUE, Segment, Symbol


class Memory:
    """What was found out about classes, for all recorders of a process.

    written: (class, attribute) that some task writes. changing: kinds of containers that are written.
    Finding out more makes what was recorded before worthless.
    """

    def __init__(self) -> None:
        self.written: set[tuple[type, str]] = set()
        self.changing: set[str] = set()


class Cells(ABC):
    """The cells of a world. segment: what the running task does, or None where it is not recorded.

    first: cell -> the number of what it held before the first step. building: the world is not
    complete yet. judging: it is a law that reads, and it knows values. epoch: of which execution the
    journal is. stale: something was found out, and everything recorded so far must be thrown away.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.building = True
        self.judging = False
        self.stale = False
        self.epoch = 0
        self.segment: Segment | None = None
        self.journal: list[tuple[Callable[[Any, Any], None], Any, Any]] = []
        self.first: dict[int, int] = {}
        self.nr_cells = 0
        self._cells: dict[Any, int] = {}

    @abstractmethod
    def number(self, value: Any) -> int:
        """The number of a value; equal values have one number."""

    @abstractmethod
    def share(self, value: Any, kind: str) -> Any:
        """The value, or what stands for it, where others will see it."""

    def cell(self, name: Any, key: Any, size: int = 1) -> int:
        """The number of a place, or of the first of several places in a row."""
        found = self._cells.get((name, key))
        if found is None:
            found = self._cells[name, key] = self.nr_cells
            self.nr_cells += size
        return found

    def read(self, cell: int, value: Any) -> None:
        """The running task looked at a cell, where `value` is now."""
        segment = self.segment
        if segment is None or cell in segment.known:
            return
        if cell in segment.changed:
            segment.look_at(cell)
            return
        segment.known.add(cell)
        segment.looked.add(cell)
        number = self.number(value)
        self.first.setdefault(cell, number)
        segment.reads.append((cell, VALUE, number))

    def wrote(self, cell: int, value: Any, old: Any) -> None:
        """The running task changed a cell."""
        segment = self.segment
        if segment is None:
            return
        if cell not in self.first:
            self.first[cell] = self.number(old)
        segment.known.add(cell)
        segment.changed.pop(cell, None)
        segment.written[cell] = value

    def keys_changed(self, cell: int, before: tuple[Any, ...], now: tuple[Any, ...]) -> None:
        """The running task added a key to a dict or took one out; `cell` is what keys there are."""
        self.read(cell, before)
        self.wrote(cell, now, before)

    def is_there(self, cell: int, value: Any) -> bool:
        """Whether anything is in a cell, and no more."""
        segment = self.segment
        there = value is not ABSENT
        if segment is not None and cell not in segment.known and cell not in segment.changed:
            self.first.setdefault(cell, self.number(value))
            segment.ask(cell, IS_THERE, there)
        return there

    def found_any(self, cell: int, value: Any) -> Any:
        """What is in a cell, an int or something else."""
        segment = self.segment
        is_int = type(value) is int
        if segment is not None and cell not in segment.known and not self.judging:
            segment.ask(cell, IS_INT, is_int)
        if is_int:
            return self.found(cell, value)
        self.read(cell, value)
        return value

    def found(self, cell: int, value: int) -> Any:
        """An int that is in a cell; what matters about it is still to be seen."""
        segment = self.segment
        if segment is None or cell in segment.known:
            return value
        if self.judging:
            self.read(cell, value)
            return value
        chain = segment.changed.get(cell)
        if chain is None:
            segment.found[cell] = value
            if cell not in self.first:
                self.first[cell] = self.number(value)
            chain = ()
        return segment.symbol(cell, value, chain)

    def changes(self, cell: int, value: Any) -> bool:
        """Whether writing `value` is to calculate with what is in the cell; it is noted then."""
        if type(value) is not Symbol or value.cell != cell or not value.is_open():
            return False
        if cell in value.segment.known:
            return False
        value.segment.changed[cell] = value.chain
        return True
