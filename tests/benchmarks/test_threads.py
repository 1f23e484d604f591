# SPDX-License-Identifier: GPL-2.0-or-later
"""The protocol as plain threads: one task after the other, it ends where ours ends."""

from __future__ import annotations

import pytest
from benchmarks.threads.collapse_fault import HUGE, TABLE, World, collapse, lawful, store_and_load

from mthp.explore.outcome import Schedule
from mthp.explore.replay import Replay
from mthp.mm.pgtable_types import pmd_trans_huge
from mthp.races.stage import Stage
from mthp.races.world import RaceWorld


def our_end(schedule: str) -> Stage:
    stages: list[Stage] = []

    def recipe() -> Stage:
        stages.append(RaceWorld.parse("pmd", "7.3", ("fault",))())
        return stages[0]

    assert Replay(recipe, Schedule.parse(schedule)).run() == []
    return stages[0]


@pytest.mark.parametrize(
    ("order", "schedule", "pmd"),
    [((collapse, store_and_load), "a500", HUGE), ((store_and_load, collapse), "b500", TABLE)],
)
def test_one_after_the_other(order: tuple[object, ...], schedule: str, pmd: int) -> None:
    world = World()
    for body in order:
        assert callable(body)
        body(world)
    assert lawful(world)
    assert world.pmd == pmd
    stage = our_end(schedule)
    page = next(iter(stage.mm.pmd_pages.values()))
    mem = stage.kernel.mem
    assert pmd_trans_huge(page.pmds.raw[0]) == (pmd == HUGE)
    assert (world.source.refcount, world.new.refcount) == (
        mem.refcount.raw[1],
        mem.refcount.raw[16],
    )
    assert (world.source.flags, world.new.flags) == (mem.flags.raw[1], mem.flags.raw[16])
    assert world.succeeded == stage.watch.collapsed
