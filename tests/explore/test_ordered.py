# SPDX-License-Identifier: GPL-2.0-or-later
"""Two accesses to one place that nothing orders are reported, and nothing else is."""

from __future__ import annotations

from random import Random

import pytest

from mthp.explore.ordered import Observed
from mthp.explore.sample import at_random
from mthp.machine.step import Access
from tests.explore.worlds import Body, World, after_word


def places(first: Body, second: Body, executions: int = 12) -> set[str]:
    """What the executions of two tasks touch without order."""
    observed, draw = Observed(lambda: World(first, second)), Random(1)
    runs = [observed.run(at_random(draw, 0.5)) for _ in range(executions)]
    observed.close()
    assert len({run.taken for run in runs}) > 1
    return {each.place for run in runs for each in run.unordered}


def write(world: World) -> None:
    world.number = 7


def read(world: World) -> None:
    assert world.number in (0, 7)


def raw(world: World) -> None:
    world.words.raw[3] = 9


def one_more(world: World) -> None:
    world.counts["a"] += 1


def count(world: World) -> None:
    assert world.counts["a"] <= 2


def name(text: str) -> Body:
    return lambda world: world.names.__setitem__(text, 1)


def names(world: World) -> None:
    assert len(list(world.names)) <= 1


def item(world: World) -> None:
    world.items.append(1)


def say(world: World) -> None:
    world.said = world.said * 2 + 1


def race(world: World) -> None:
    assert world.machine.data_race(lambda: world.number) in (0, 7)


def bits(mask: int) -> Body:
    return lambda world: world.words.set_bits(1, mask)


def raw_bit(mask: int) -> Body:
    def act(world: World) -> None:
        if world.words.raw[1] & mask:
            world.words.raw[1] |= mask

    return act


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        (write, read, {"World.number"}),
        (write, write, {"World.number"}),
        (read, read, set()),
        (raw, raw, {"word[3]"}),
        (one_more, one_more, set()),
        (one_more, count, {"World.counts[a]"}),
        (name("a"), name("b"), set()),
        (name("a"), name("a"), {"World.names[a]"}),
        (name("a"), names, {"World.names's keys"}),
        (item, item, {"World.items"}),
        (say, say, set()),
        (write, race, set()),
    ],
)
def test_what_nothing_orders_is_reported(first: Body, second: Body, found: set[str]) -> None:
    assert places(after_word(0, first), after_word(1, second)) >= found
    assert places(after_word(0, first), after_word(1, second)) <= found | {
        f"{place.partition('[')[0]}'s keys" for place in found
    }


@pytest.mark.parametrize("act", [write, raw, item, say, one_more])
def test_a_lock_orders(act: Body) -> None:
    def body(world: World) -> None:
        with world.lock.lock():
            act(world)

    assert places(body, body) == set()


@pytest.mark.parametrize("act", [write, raw, item])
def test_so_do_steps_at_one_word_but_not_reads_of_it(act: Body) -> None:
    assert places(after_word(0, act), after_word(0, act)) == set()

    def body(world: World) -> None:
        world.words.read(0)
        act(world)
        world.words.read(1)

    assert len(places(body, body)) == 1


def test_bits_of_a_word() -> None:
    assert places(bits(1), bits(2)) == set()
    assert places(bits(1), after_word(0, raw_bit(2))) == set()
    assert places(bits(1), after_word(0, raw_bit(3))) == {"word[1]"}


def test_what_is_reported_says_who_and_after_which_step() -> None:
    observed = Observed(lambda: World(after_word(0, write), after_word(1, read)))
    run = observed.run(lambda execution: execution.enabled()[-1])
    observed.close()
    (found,) = run.unordered
    assert found.first[0] == "t1" and found.second[0] == "t0"
    assert found.first[1].access is Access.WRITE and found.first[1].where == ("word", 1)
    assert str(found) == (
        "World.number: touched by t1 after write word[1] and by t0 after write word[0], and nothing "
        "orders the two"
    )
