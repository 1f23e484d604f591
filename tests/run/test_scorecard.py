# SPDX-License-Identifier: GPL-2.0-or-later
"""The scorecard's rows, and that finished ones are kept."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from mthp.races.cast import LAWFUL, get_along
from mthp.races.mutants import MUTANTS
from mthp.races.stage import Size
from mthp.races.world import World
from mthp.run.check import Budget
from mthp.run.check_records import WorldResult
from mthp.run.scorecard import Job, default_worlds, pair_jobs, run_jobs, scorecard_jobs


def test_every_profile_meets_every_rival_alone() -> None:
    for profile, sizes in (("v16", 2), ("7.3", 2), ("pmd-only", 1)):
        worlds = default_worlds(profile)
        assert len(worlds) == sizes * (len(LAWFUL) + 1)
        assert all(len(world.rivals) <= 1 for world in worlds)
    keys = [job.key for job in scorecard_jobs(Budget())]
    assert len(set(keys)) == len(keys)
    assert {key.partition(" ")[0] for key in keys} >= MUTANTS.keys()


def test_every_pair_is_there() -> None:
    pairs = sum(get_along(a, b) for a, b in combinations(LAWFUL, 2))
    assert pairs > 300
    assert len(pair_jobs(Budget())) == 2 * pairs


def test_finished_rows_are_not_run_again(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    jobs = [Job(World(Size.PMD, "7.3", (rival,)), Budget()) for rival in ("gup", "zap")]
    first = list(run_jobs(jobs[:1], 1, file))
    again = list(run_jobs(jobs, 2, file))
    assert again[0] == first[0]
    assert isinstance(again[1], WorldResult)
    assert [each.tasks[1] for each in again if isinstance(each, WorldResult)] == ["gup", "zap"]
    assert list(run_jobs(jobs, 1, file)) == again
