# SPDX-License-Identifier: GPL-2.0-or-later
"""What a recorder sees of attributes, containers and the ints in them."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mthp.explore.compiled.cells import Memory
from mthp.explore.compiled.kinds import Unrecordable
from mthp.explore.compiled.recording import Recorder
from mthp.explore.compiled.segment import Segment


class World:
    """Everything a world may hold."""

    def __init__(self) -> None:
        self.row = array("i", [5, 6, 7])
        self.items: list[Any] = [1]
        self.names = {"a": 1}
        self.counts: Counter[str] = Counter(a=1)
        self.sets: defaultdict[str, set[int]] = defaultdict(set)
        self.lists: dict[str, list[int]] = {}
        self.number = 3


class Recorded:
    """A world and its recorder, which knows already what is ever written."""

    def __init__(self) -> None:
        memory = Memory()
        memory.written.add((World, "number"))
        memory.changing |= {
            f"World.{each}" for each in ("row", "items", "names", "counts", "sets", "lists")
        }
        self.recorder = Recorder(memory)
        self.world: World = self.recorder.share(World(), "the world")
        self.recorder.built()

    @contextmanager
    def segment(self) -> Iterator[Segment]:
        self.recorder.begin(0)
        segment = self.recorder.segment
        assert segment is not None
        yield segment
        assert self.recorder.end() is segment


def questions(segment: Segment) -> list[str]:
    return [question[1] for _, question, _ in segment.reads]


def test_a_comparison_is_all_that_is_learnt() -> None:
    recorded = Recorded()
    with recorded.segment() as segment:
        assert recorded.world.row[1] > 5
    assert [(q, a) for _, q, a in segment.reads] == [(((), "gt", 5), 1)]


def test_what_is_calculated_and_put_back_is_not_looked_at() -> None:
    recorded = Recorded()
    with recorded.segment() as segment:
        recorded.world.row[1] += 2
        recorded.world.row[1] |= 16
    assert segment.reads == []
    assert list(segment.changed.values()) == [(("add", 2), ("or", 16))]
    assert recorded.world.row[1] == 8 | 16


def test_a_value_kept_beyond_the_segment_is_looked_at() -> None:
    recorded = Recorded()
    with recorded.segment() as segment:
        kept = recorded.world.row[0]
    assert questions(segment) == [""]
    with recorded.segment() as later:
        assert kept == 5
    assert later.reads == []


def test_a_value_that_waits_in_an_unfinished_expression_is_looked_at() -> None:
    recorded = Recorded()

    def task() -> Generator[None, int, None]:
        assert recorded.world.row[0] + (yield) == 6

    with recorded.segment() as segment:
        running = task()
        next(running)
    assert questions(segment) == [""]
    with pytest.raises(StopIteration), recorded.segment():
        running.send(1)


def test_a_value_that_an_error_carries_is_looked_at() -> None:
    recorded = Recorded()
    with recorded.segment() as segment:
        try:
            raise ValueError(recorded.world.row[0])
        except ValueError as error:
            kept = error
    assert questions(segment) == [""]
    assert kept.args == (5,)


def test_an_old_value_of_a_word_that_was_overwritten_still_matters() -> None:
    recorded = Recorded()
    with recorded.segment() as segment:
        old = recorded.world.row[0]
        recorded.world.row[0] = 9
        assert old & 4
        del old
    assert [(q, a) for _, q, a in segment.reads] == [(((("and", 4),), "ne", 0), 1)]


def test_methods_of_ints_look_at_it() -> None:
    recorded = Recorded()
    with recorded.segment() as segment:
        assert recorded.world.row[2].bit_count() == 3
    assert questions(segment) == [""]


def test_one_key_of_a_dict_is_one_cell() -> None:
    recorded = Recorded()
    with recorded.segment() as segment:
        assert recorded.world.names["a"] == 1
        recorded.world.names["a"] = 2
    assert len({cell for cell, _, _ in segment.reads} | segment.written.keys()) == 1
    with recorded.segment() as segment:
        recorded.world.names["b"] = 2
    assert len(segment.written) == 2  # and which keys there are


def test_a_container_that_is_put_somewhere_is_taken_in() -> None:
    recorded = Recorded()
    with recorded.segment():
        recorded.world.sets["x"].add(3)
        recorded.world.lists["l"] = []
    with recorded.segment() as segment:
        assert 3 in recorded.world.sets["x"]
        recorded.world.lists.setdefault("l", []).append(1)
    assert segment.written


def test_everything_is_undone() -> None:
    recorded = Recorded()
    world = recorded.world
    with recorded.segment():
        world.row[0:2] = array("i", [1, 2])
        world.items.append(2)
        del world.names["a"]
        world.counts["b"] += 1
        world.sets["x"].add(3)
        world.number += 1
    recorded.recorder.undo()
    assert list(world.row) == [5, 6, 7]
    assert list(world.items) == [1]
    assert dict(world.names) == {"a": 1}
    assert dict(world.counts) == {"a": 1}
    assert not world.sets
    assert world.number == 3


def test_a_write_nobody_expected_makes_all_worthless() -> None:
    recorder = Recorder(Memory())
    world = recorder.share(World(), "the world")
    recorder.built()
    recorder.begin(0)
    world.number = 3
    assert not recorder.stale
    world.number = 4
    recorder.end()
    assert recorder.stale
    assert (World, "number") in recorder.memory.written


def test_what_a_list_cannot_do_is_refused_and_not_missed() -> None:
    recorded = Recorded()
    with pytest.raises(Unrecordable, match="has no sort"):
        recorded.world.items.sort()


class Many(list[int]):
    """A list that is written in Python, so that its class could be taken for an object's."""


def test_a_container_with_a_class_of_its_own_is_refused() -> None:
    recorded = Recorded()
    with pytest.raises(Unrecordable, match="Many"):
        recorded.world.items.append(Many())


def test_objects_are_given_back() -> None:
    recorded = Recorded()
    recorded.recorder.release()
    assert type(recorded.world) is World
