# SPDX-License-Identifier: GPL-2.0-or-later
"""The scorecard's rows."""

from __future__ import annotations

from itertools import combinations

from mthp.check.scorecard import default_worlds, pair_jobs, scorecard_jobs
from mthp.check.search import Budget
from mthp.races.cast.all import LAWFUL, get_along
from mthp.races.cast.collapsers import Start
from mthp.races.mutants.rules import MUTANTS


def test_every_profile_meets_every_rival_alone() -> None:
    for profile, sizes in (("v16", 2), ("7.3", 2), ("pmd-only", 1)):
        worlds = [each for each in default_worlds(profile) if each.start is Start.COLLAPSE]
        assert len(worlds) == sizes * (len(LAWFUL) + 1)
        assert all(len(world.rivals) <= 1 for world in worlds)
    keys = [job.key for job in scorecard_jobs(Budget())]
    assert len(set(keys)) == len(keys)
    assert {key.partition(" ")[0].partition(":")[0] for key in keys} >= MUTANTS.keys()


def test_the_whole_daemon_meets_those_who_come_and_go() -> None:
    worlds = [each for each in default_worlds("7.3") if each.start is Start.DAEMON]
    assert {"exit", "fork", "exec-shift"} <= {each.rivals[0] for each in worlds}


def test_every_pair_is_there() -> None:
    pairs = sum(get_along(a, b) for a, b in combinations(LAWFUL, 2))
    assert pairs > 300
    assert len(pair_jobs(Budget())) == 2 * pairs
