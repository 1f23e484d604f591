# SPDX-License-Identifier: GPL-2.0-or-later
"""Message passing: contents, then the word that publishes them, under each memory model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mthp.explore.explore import Explorer, Until
from mthp.explore.outcome import Extent
from mthp.machine.hold import Rank
from mthp.machine.locks import RwSem
from mthp.machine.memory import Words
from mthp.machine.store_buffer import Lane, Model, StoreBuffer
from mthp.machine.task import Task
from tests.litmus.programs import Program

Between = Callable[["Publish"], None]


class Publish(Program):
    """One task writes contents and publishes them, another reads what is published."""

    def __init__(self, model: Model, between: Between) -> None:
        super().__init__([[], []])
        self.contents: Words[int] = Words(self.machine, "contents", "q", 1)
        self.counts: Words[int] = Words(self.machine, "counts", "q", 1)
        self.locks = [RwSem(self.machine, name, Rank.PTE) for name in ("one", "other")]
        writer = Task("writer")
        self.tasks = [
            (writer, lambda: self.write(between)),
            (Task("reader", 1), self.read),
        ]
        if model is not Model.SC:
            writer.buffer = StoreBuffer(self.machine, "writer", model, 1)
            self.contents.lane = Lane.CONTENTS
            self.words.lane = Lane.TABLES
            self.counts.lane = Lane.COUNTS
            drainer = Task("buffer")
            drainer.background = True
            self.tasks.append((drainer, writer.buffer.free[0].drain))

    def write(self, between: Between) -> None:
        self.contents.write(0, 1)
        assert self.contents.read(0) == 1
        between(self)
        self.words.write(0, 1)

    def read(self) -> None:
        published = self.words.read(0)
        self.seen[1] += [published, self.contents.read(0)]


def nothing(_: Publish) -> None:
    """Nothing between contents and mapping."""


def barrier(program: Publish) -> None:
    """smp_wmb()."""
    program.machine.smp_wmb()


def locks(program: Publish) -> None:
    """One lock given back, another taken."""
    program.locks[0].write().release()
    program.locks[1].write().release()


def atomic(program: Publish) -> None:
    """A reference is put."""
    program.counts.add(0, 1)


STALE = {
    nothing: {Model.LKMM, Model.WEAK},
    barrier: set(),
    locks: {Model.WEAK},
    atomic: {Model.WEAK},
}


@pytest.mark.parametrize("model", list(Model))
@pytest.mark.parametrize("between", list(STALE))
def test_stale_contents_are_seen_where_nothing_forbids_it(between: Between, model: Model) -> None:
    outcome = Explorer(lambda: Publish(model, between), until=Until.END).explore()
    assert outcome.coverage.kind is Extent.EXHAUSTIVE
    seen = {finding.broken[0][1] for finding in outcome.findings}
    assert (1, 1) in seen
    assert ((1, 0) in seen) == (model in STALE[between])
