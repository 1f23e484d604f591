# SPDX-License-Identifier: GPL-2.0-or-later
"""Schedules are values with a text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mthp.explore.outcome import Schedule


@given(st.lists(st.integers(0, 5)))
def test_a_schedule_reads_back(choices: list[int]) -> None:
    schedule = Schedule(tuple(choices))
    assert Schedule.parse(str(schedule)) == schedule
    assert Schedule.of_runs(schedule.runs) == schedule


def test_the_text_is_short() -> None:
    assert str(Schedule((0,) * 12 + (1,) * 3 + (0,))) == "a12b3a1"
    assert str(Schedule()) == "a0"


@pytest.mark.parametrize("text", ["", "a", "12", "a1 b2", "A1", "a1x"])
def test_what_is_no_schedule(text: str) -> None:
    with pytest.raises(ValueError, match="not a schedule"):
        Schedule.parse(text)
