# SPDX-License-Identifier: GPL-2.0-or-later
"""Worlds in which PTEs and folio flags are late too, and every CPU has a store buffer."""

from __future__ import annotations

import pytest

from mthp.check.check import check_world
from mthp.check.search import Budget
from mthp.explore.outcome import Extent
from mthp.machine.store_buffer import Late, Model
from mthp.races.cast.all import LAWFUL
from mthp.races.stage import Size
from mthp.races.world import RaceWorld

EVERYTHING = frozenset(Late)
WORLDS = ["pmd+lkmm+ptes+flags+each", "window+lkmm+ptes+flags+each", "window+tso+ptes+flags+each"]


def is_as_expected(name: str, rival: str, most: int | None) -> None:
    result = check_world(RaceWorld.parse(name, "7.3", (rival,)), Budget(most))
    assert result.violation is None or result.expected_finding, result.violation
    assert most or result.covered.kind is Extent.EXHAUSTIVE


@pytest.mark.parametrize("rival", ["store", "fault", "zap", "migrate", "swap-out", "mremap"])
@pytest.mark.parametrize("name", WORLDS)
def test_the_kernel_as_it_is_stands_late_stores(name: str, rival: str) -> None:
    is_as_expected(name, rival, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*WORLDS, "window+weak+ptes+flags"])
@pytest.mark.parametrize("rival", LAWFUL)
def test_all_rivals_stand_late_stores(name: str, rival: str) -> None:
    if RaceWorld.parse(name, "7.3", (rival,)).is_for_all:
        is_as_expected(name, rival, 3000)


@pytest.mark.parametrize("rival", ["swap-in-store", "slot-reuse"])
def test_what_is_swapped_in_is_seen_before_it_is_mapped(rival: str) -> None:
    """Without a barrier in between, a law broke within 15 executions."""
    is_as_expected("pmd+weak", rival, 40)


def test_late_stores_are_really_late() -> None:
    """There are executions that no world with stores at once has."""
    late = check_world(RaceWorld.parse(WORLDS[1], "7.3", ("fault",)))
    at_once = check_world(RaceWorld.parse("window", "7.3", ("fault",)))
    assert late.covered.executions > at_once.covered.executions


def test_what_is_late_is_a_part_of_the_name() -> None:
    world = RaceWorld.parse("window+lkmm+each+flags+ptes", "7.3", ("fault", "zap"))
    assert world == RaceWorld(
        Size.WINDOW, "7.3", ("fault", "zap"), memory=Model.LKMM, late=EVERYTHING
    )
    assert world.name == WORLDS[1]
    assert len(world().tasks) == len(world.tasks) == 3 * 3
    assert len(RaceWorld.parse("window+lkmm+ptes", "7.3", ("fault",)).tasks) == 4


@pytest.mark.parametrize("name", ["pmd+ptes", "window+flags", "pmd+each", "pmd+weak+each"])
def test_nothing_is_late_without_a_model_and_rivals_need_more_than_barriers(name: str) -> None:
    with pytest.raises(ValueError, match="do not go together"):
        RaceWorld.parse(name, "7.3", ("fault",))
