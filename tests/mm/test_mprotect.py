# SPDX-License-Identifier: GPL-2.0-or-later
"""Rights taken away: mprotect() and NUMA hints."""

from __future__ import annotations

from mthp.mm.mmu import store
from mthp.mm.mprotect import task_numa_work
from mthp.mm.pgtable_types import (
    pte_protnone,
    pte_write,
)
from mthp.races.stage import START, Size
from mthp.races.world import RaceWorld
from tests.stages import entry, played


def test_a_numa_hint_is_hit_once() -> None:
    stage = RaceWorld(Size.WINDOW, "7.3", ("numa-hint",))()
    task_numa_work(stage.mm, START, stage.end)
    assert pte_protnone(entry(stage, 0)) and pte_protnone(entry(stage, 2))
    stage = played("numa-hint")
    assert not pte_protnone(entry(stage, 0)) and pte_write(entry(stage, 0))
    assert stage.kernel.mem.content.raw[stage.pages[0]] == 200


def test_mprotect_lets_nobody_store() -> None:
    stage = played("mprotect")
    assert not pte_write(entry(stage, 0))
    assert not store(stage.mm, START, 200)
