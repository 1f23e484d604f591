# SPDX-License-Identifier: GPL-2.0-or-later
"""Message passing: contents, then the word that publishes them, under each memory model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest

from mthp.explore.explore import Explorer, Until
from mthp.explore.outcome import Extent
from mthp.machine.hold import Rank
from mthp.machine.locks import RwSem
from mthp.machine.memory import Words
from mthp.machine.store_buffer import USES, Lane, Model, StoreBuffer
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
            self.tasks.append((drainer, partial(writer.buffer.drain, 0, drainer)))

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


class Buffered(Program):
    """Tasks that do as they are told, each on a CPU with a buffer of two places. x, y: rows that are
    stored to late, z: one that is not.
    """

    def __init__(self, model: Model, *bodies: Callable[[Buffered, list[int]], None]) -> None:
        super().__init__([[] for _ in bodies])
        self.x, self.y, self.z = (Words[int](self.machine, name, "q", 1) for name in "xyz")
        self.x.lane = self.y.lane = Lane.LATE
        self.z.lane = Lane.COUNTS
        cpus = [Task(f"t{n}", n) for n in range(len(bodies))]
        self.tasks = [
            (task, partial(body, self, seen))
            for task, body, seen in zip(cpus, bodies, self.seen, strict=True)
        ]
        for cpu in cpus if model is not Model.SC else []:
            cpu.buffer = StoreBuffer(self.machine, cpu.name, model, 2)
            for place in range(2):
                drain = Task(f"{cpu.name}.{place}", cpu.cpu)
                drain.background = True
                self.tasks.append((drain, partial(cpu.buffer.drain, place, drain)))

    def at_rest(self) -> None:
        """What each task read, and what is there in the end."""
        self.broken.append((*map(tuple, self.seen), self.x.raw[0], self.y.raw[0], self.z.raw[0]))


def behaviours(model: Model, *bodies: Callable[[Buffered, list[int]], None]) -> set[Any]:
    outcome = Explorer(lambda: Buffered(model, *bodies), until=Until.END).explore()
    assert outcome.coverage.kind is Extent.EXHAUSTIVE
    return {finding.broken[:2] for finding in outcome.findings}


MODELS = list(Model)
LATE = [Model.TSO, Model.LKMM, Model.WEAK]


@pytest.mark.parametrize("model", MODELS)
def test_both_of_two_cpus_may_miss_the_others_store(model: Model) -> None:
    def first(program: Buffered, seen: list[int]) -> None:
        program.x.write(0, 1)
        seen.append(program.y.read(0))

    def second(program: Buffered, seen: list[int]) -> None:
        program.y.write(0, 1)
        seen.append(program.x.read(0))

    seen = behaviours(model, first, second)
    assert (((0,), (0,)) in seen) == (model in LATE)
    assert {((0,), (1,)), ((1,), (0,)), ((1,), (1,))} <= seen


@pytest.mark.parametrize("model", MODELS)
def test_stores_of_one_cpu_come_in_their_order_on_x86(model: Model) -> None:
    def writer(program: Buffered, _: list[int]) -> None:
        program.x.write(0, 1)
        program.y.write(0, 1)
        program.z.write(0, 1)

    def reader(program: Buffered, seen: list[int]) -> None:
        seen += [program.z.read(0), program.y.read(0), program.x.read(0)]

    overtaken = {(0, 1, 0), (1, 0, 0), (1, 0, 1), (1, 1, 0)}
    seen = {found[1] for found in behaviours(model, writer, reader)}
    assert (1, 1, 1) in seen
    assert seen & overtaken == (set() if model in (Model.SC, Model.TSO) else overtaken)


@pytest.mark.parametrize("model", MODELS)
def test_stores_to_one_word_never_change_places(model: Model) -> None:
    def writer(program: Buffered, seen: list[int]) -> None:
        for value in (1, 2):
            program.x.write(0, value)
        seen += [program.x.add(0, 2), program.x.read(0)]
        program.x.store_bits(0, 8)

    def reader(program: Buffered, seen: list[int]) -> None:
        seen += [program.x.read(0), program.x.read(0)]

    for wrote, read in behaviours(model, writer, reader):
        assert wrote == (4, 4)
        assert list(read) == sorted(read)
        assert {*read} <= {0, 1, 2, 4, 12}


@pytest.mark.parametrize("locked", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_who_takes_the_lock_sees_what_was_stored_under_it(model: Model, locked: bool) -> None:
    def writer(program: Buffered, _: list[int]) -> None:
        with program.locks[0].write():
            program.x.write(0, 1)
            program.z.write(0, 1)

    def reader(program: Buffered, seen: list[int]) -> None:
        with program.locks[0].read() if locked else nullcontext():
            seen += [program.z.read(0), program.x.read(0)]

    seen = {found[1] for found in behaviours(model, writer, reader)}
    assert {(0, 0), (1, 1)} <= seen
    assert ((1, 0) in seen) == (not locked and model in (Model.LKMM, Model.WEAK))


@pytest.mark.parametrize("model", MODELS)
def test_an_ipi_waits_for_what_the_cpu_had_stored(model: Model) -> None:
    def user(program: Buffered, _: list[int]) -> None:
        program.cpu.enter()
        program.x.write(0, 1)
        program.z.raw[0] = 1  # in the same instruction, and no step
        program.cpu.leave()

    def kernel(program: Buffered, seen: list[int]) -> None:
        program.cpu.wait()
        program.cpu.settle()
        seen += [program.z.raw[0], program.x.read(0)]

    seen = {found[1] for found in behaviours(model, user, kernel)}
    assert (1, 1) in seen
    assert (1, 0) not in seen


def test_a_place_is_used_again_once_a_barrier_has_seen_it_empty() -> None:
    program = Buffered(Model.WEAK, lambda program, seen: None)
    machine, buffer = program.machine, StoreBuffer(program.machine, "buffer", Model.WEAK, 2)
    machine.on_step = lambda access, word, index, bits: None
    machine.current.buffer = buffer
    for use in range(USES):
        program.x.write(0, use)
        program.y.write(0, use)
        assert [slot.filled.name for slot in buffer.waiting] == [
            f"buffer.slot{place}.{use}.filled" for place in range(2)
        ]
        program.z.write(0, use)
        machine.smp_wmb()
    program.x.write(0, 99)
    assert program.x.raw[0] == 99
