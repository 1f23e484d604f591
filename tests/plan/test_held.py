# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds plans against the engine: that it goes on where it was, and that it sees what is wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mthp.mm.page_alloc import NodeState
from mthp.plan.packed import Counts, Words, tally
from mthp.words.profiles import PROFILES
from mthp.words.units import Geometry
from mthp.worlds.arrays import WorldArrays
from tests.plan.__main__ import COUNTED, DRAINED, ENGINES, campaign, hold, kinds_of, main, one
from tests.plan.draw import Draw
from tests.plan.images import PTRS, always, fill, made_process


def test_what_was_counted_is_not_drawn_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "build" / "kept.jsonl"
    said, found = campaign([7, 8], 12, kept, images=2)
    assert not found
    assert said[COUNTED] >= 12 and said["images"] == 2 * len(kept.read_text().splitlines())
    before = kept.read_bytes()
    assert campaign([7, 8], 12, kept, images=2) == (said, found)
    assert kept.read_bytes() == before
    more, _ = campaign([7, 8], said[COUNTED] + 1, kept, images=2)
    assert more[COUNTED] > said[COUNTED] and kept.read_bytes().startswith(before)


def wrong(pages: Words, starts: np.ndarray[tuple[int], np.dtype[np.intp]], at: Geometry) -> Counts:
    """A tally that loses a window of each order."""
    return np.maximum(tally(pages, starts, at) - 1, 0)


def test_a_plan_that_counts_wrong_differs(capsys: pytest.CaptureFixture[str]) -> None:
    _, differ = hold(one(3, 4), wrong)
    assert "windows: the plan says" in differ[0]
    assert main(["--replay", "3/4"]) == 0
    assert "0  differences" in capsys.readouterr().out


def test_what_only_an_lru_batch_makes_different_is_counted_apart() -> None:
    """As in test_planner_shared.py; a mistake in what is counted beside it still shows."""
    owner = made_process(0, 2)
    fill(owner, 0, slice(0, 16), 4096, used=0)
    fill(owner, 0, slice(100, 101), 5000)
    fill(owner, 1, slice(0, PTRS), 8192)
    owner.tables.kpagecount[1, 31] = 2
    draw = Draw(
        WorldArrays((NodeState(None),), [owner]), always(4, 8, max_ptes_none=0), PROFILES["7.3"]
    )
    said, found = hold(draw)
    assert (said[DRAINED], found) == (1, [])
    counted = made_process(1, 1)
    fill(counted, 0, slice(0, PTRS), 16384)
    said, found = hold(
        replace(draw, arrays=WorldArrays((NodeState(None),), [owner, counted])), wrong
    )
    assert said[DRAINED] == 0 and found


def test_tables_of_every_kind_are_drawn_under_every_profile() -> None:
    draws = [one(5, k) for k in range(20)]
    kinds = Counter(kind.name for draw in draws for _, kind in kinds_of(draw))
    assert {*kinds} == {"HUGE", "ODD", "PLAIN", "REFUSED", "SHARED", "SWAPPED", "TOGETHER"}
    assert min(kinds.values()) >= 5
    assert len({draw.profile.name for draw in draws}) == 3


@pytest.mark.slow
def test_plans_are_what_the_engine_makes_of_drawn_tables() -> None:
    said, found = campaign([1, 2], 2000, None)
    assert not found
    assert said[COUNTED] > said[ENGINES] > 0
