# SPDX-License-Identifier: GPL-2.0-or-later
"""The Promela model is the same protocol: it ends in the same states, and breaks where ours breaks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from benchmarks.spin_peer import MUTANTS, WORLDS, build, observed, search

from mthp.check.check import check_world
from mthp.check.search import Budget
from mthp.explore.explore import Explorer, Until
from mthp.explore.outcome import Extent
from mthp.races.world import RaceWorld

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(shutil.which(each) is None for each in ("spin", "gcc")), reason="needs spin and gcc"
    ),
]


@pytest.mark.parametrize(("size", "rivals"), WORLDS)
def test_both_searches_end_in_the_same_states(
    size: str, rivals: tuple[str, ...], tmp_path: Path
) -> None:
    theirs = search(build(tmp_path, (*WORLDS[size, rivals], "OBSERVE")))
    ours: set[str] = set()
    recipe = observed(RaceWorld.parse(size, "7.3", rivals), ours)
    outcome = Explorer(recipe, until=Until.END).explore()
    assert outcome.coverage.kind is Extent.EXHAUSTIVE
    assert (theirs.broken, outcome.findings) == ("", ())
    assert len(ours) > 2
    assert theirs.finals == ours


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize(("size", "rivals"), [key for key in WORLDS if len(key[1]) == 1])
def test_both_break_where_the_same_rule_is_taken_away(
    size: str, rivals: tuple[str, ...], mutant: str, tmp_path: Path
) -> None:
    ours = check_world(RaceWorld.parse(size, "7.3", rivals), Budget(), mutant)
    names = (*WORLDS[size, rivals], f"MUTANT_{MUTANTS[mutant]}")
    assert bool(search(build(tmp_path, names)).broken) == (not ours.clean)
    assert ours.clean == (mutant not in ("A7", "A13"))
