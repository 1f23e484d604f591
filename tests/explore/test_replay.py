# SPDX-License-Identifier: GPL-2.0-or-later
"""A schedule runs again, and a shorter one that shows the same is found."""

from __future__ import annotations

from typing import Any

from mthp.explore.outcome import Schedule
from mthp.explore.replay import Replay, shrink
from tests.litmus.programs import Line, recipe

A: list[Line] = [("read", 2), ("read", 2), ("read", 0), ("write", 0)]
B: list[Line] = [("read", 2), ("read", 0), ("write", 0), ("read", 2)]


def lost_update(broken: list[Any]) -> bool:
    """Both read the 0 that was there first."""
    first, second = broken[0][0]
    return bool(first[-1] == second[1] == 0)


def test_a_schedule_without_choices_runs_one_after_the_other() -> None:
    replay = Replay(recipe(A, B), Schedule())
    assert not lost_update(replay.run())
    assert replay.taken == [0] * 4 + [1] * 4


def test_shrinking_keeps_what_matters() -> None:
    noisy = Schedule((1, 0, 1, 0, 0, 1, 0, 1))
    assert lost_update(Replay(recipe(A, B), noisy).run())
    short = shrink(recipe(A, B), noisy, lost_update)
    assert lost_update(Replay(recipe(A, B), short).run())
    assert str(short) in ("a3b1", "b2a1", "a3b2", "b2a3")
