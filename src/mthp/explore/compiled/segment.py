# SPDX-License-Identifier: GPL-2.0-or-later
"""What was recorded of one task between two schedule points, and what is remembered of classes."""

from __future__ import annotations

from typing import Any, Final

from mthp.explore.compiled.symbols import Chain, Question, Symbol


class Memory:
    """What was found out about classes, for all recorders of a process.

    written: (class, attribute) that some task writes. changing: kinds of containers that are written.
    Finding out more makes what was recorded before worthless.
    """

    def __init__(self) -> None:
        self.written: set[tuple[type, str]] = set()
        self.changing: set[str] = set()


VALUE: Final = ((), "", 0)
"""The question what a value is."""


class Segment:
    """What one task did between two schedule points.

    reads: (cell, question, number of the answer) about what it found there, in its order. found: cell ->
    the int that was in it. looked: cells of which it knows what was in them; known: of which it knows
    what is. written: cell -> what it left. changed: cell -> what it calculated there, without looking.
    symbols: what it read.
    """

    __slots__ = ("_asked", "changed", "found", "known", "looked", "reads", "symbols", "written")

    def __init__(self) -> None:
        self.reads: list[tuple[int, Question, int]] = []
        self.looked: set[int] = set()
        self.known: set[int] = set()
        self.written: dict[int, Any] = {}
        self.found: dict[int, int] = {}
        self.changed: dict[int, Chain] = {}
        self.symbols: list[Symbol] = []
        self._asked: set[tuple[int, Question]] = set()

    def ask(self, cell: int, question: Question, answer: bool) -> None:
        """Note a question that was not asked before."""
        if (cell, question) not in self._asked:
            self._asked.add((cell, question))
            self.reads.append((cell, question, int(answer)))
