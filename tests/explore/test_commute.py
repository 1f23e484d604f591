# SPDX-License-Identifier: GPL-2.0-or-later
"""A step is moved over its neighbours, and what comes of it is compared."""

from __future__ import annotations

from random import Random

import pytest

from mthp.explore.commute import Commuting, Disorder
from mthp.explore.ordered import Observed
from tests.explore.worlds import Body, World, after_word


def drawn(first: Body, second: Body, executions: int = 30) -> tuple[int, list[Disorder]]:
    """How many moves were made in some executions, and those that something came of."""
    observed = Observed(lambda: World(first, second))
    commuting = Commuting(observed, Random(2))
    found = [commuting.draw(0.5, 4)[1] for _ in range(executions)]
    observed.close()
    return commuting.moves, [each for each in found if each is not None]


def nothing(world: World) -> None:
    pass


def one_more(world: World) -> None:
    world.counts["a"] += 1


def item(number: int) -> Body:
    return lambda world: world.items.append(number)


def breaks(number: int) -> Body:
    def act(world: World) -> None:
        if not world.broken:
            world.broken.append(number)

    return act


def ends(world: World) -> None:
    if world.items:
        world.words.write(0, 5)


@pytest.mark.parametrize("act", [nothing, one_more])
def test_nothing_comes_of_what_commutes(act: Body) -> None:
    moves, found = drawn(after_word(0, act), after_word(1, act))
    assert moves > 50 and not found


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        (item(1), item(2), "leaves World.items in another state"),
        (breaks(1), breaks(2), "breaks: 1; 2"),
        (item(1), ends, "a step that could be taken cannot any more"),
    ],
)
def test_what_does_not_commute_is_told(first: Body, second: Body, text: str) -> None:
    _, found = drawn(after_word(0, first), after_word(1, second))
    assert text in {each.what for each in found}
    assert str(found[0]).endswith(found[0].what)
    assert str(found[0].before) != str(found[0].after)
