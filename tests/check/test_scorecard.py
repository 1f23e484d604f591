# SPDX-License-Identifier: GPL-2.0-or-later
"""The scorecard's rows."""

from __future__ import annotations

from itertools import combinations

import pytest

from mthp.check.scorecard import default_worlds, pair_jobs, scorecard_jobs
from mthp.check.search import Budget
from mthp.races.cast.all import LAWFUL, RIVALS, get_along
from mthp.races.cast.collapsers import Start
from mthp.races.cast.rival import Place
from mthp.races.mutants.rules import MUTANTS
from mthp.races.stage import Layout


def test_every_profile_meets_every_rival_alone() -> None:
    for profile, sizes in (("v16", 2), ("7.3", 2), ("pmd-only", 1)):
        plain = Start.COLLAPSE, Layout.PLAIN
        worlds = [each for each in default_worlds(profile) if (each.start, each.layout) == plain]
        alone = {world.rivals for world in worlds if len(world.rivals) <= 1}
        assert len([world for world in worlds if len(world.rivals) <= 1]) <= sizes * (
            len(LAWFUL) + 1
        )
        somewhere = [RIVALS[name].needs for name in LAWFUL if (name,) not in alone]
        assert () in alone and set(somewhere) <= (
            {Place.TABLES, Place.BESIDE} if sizes == 1 else {Place.TABLES}
        )
    keys = [job.key for job in scorecard_jobs(Budget())]
    assert len(set(keys)) == len(keys)
    assert {key.partition(" ")[0].partition(":")[0] for key in keys} >= MUTANTS.keys()


def test_the_whole_daemon_meets_those_who_come_and_go() -> None:
    worlds = [each for each in default_worlds("7.3") if each.start is Start.DAEMON]
    assert {"exit", "fork", "exec-shift"} <= {each.rivals[0] for each in worlds}


def test_every_pair_is_there() -> None:
    lawful = [name for name in LAWFUL if RIVALS[name].needs is None]
    pairs = sum(get_along(a, b) for a, b in combinations(lawful, 2))
    assert pairs > 300
    assert len(pair_jobs(Budget())) == 2 * pairs


@pytest.mark.parametrize("profile", ["v16", "7.3"])
def test_layouts_several_tables_and_pairs_are_among_the_worlds(profile: str) -> None:
    worlds = default_worlds(profile)
    assert {world.layout for world in worlds} == {*Layout}
    assert {("remap-last",), ("shrink-last",)} <= {
        world.rivals for world in worlds if world.start is Start.MADVISE
    }
    assert {("gup", "zap"), ("huge-fault", "move-pages")} <= {world.rivals for world in worlds}
