# SPDX-License-Identifier: GPL-2.0-or-later
"""A race's stage after somebody played alone on it, and what stands there then."""

from __future__ import annotations

from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import (
    pmd_pgtable,
)
from mthp.races.stage import START, Size, Stage
from mthp.races.world import RaceWorld


def played(rival: str, size: Size = Size.WINDOW) -> Stage:
    """The stage after the rival's task ran, and nobody else's."""
    stage = RaceWorld(size, "7.3", (rival,))()
    task, body = stage.tasks[1]
    stage.machine.current = task
    body()
    return stage


def after_a_collapse(rival: str, name: str = "pmd") -> Stage:
    """The stage after both tasks ran, one after the other."""
    stage = RaceWorld.parse(name, "7.3", (rival,))()
    for task, body in stage.tasks:
        stage.machine.current = task
        body()
    stage.watch.at_rest([task for task, _ in stage.tasks])
    assert stage.watch.collapsed
    assert stage.broken == []
    return stage


def entry(stage: Stage, index: int) -> int:
    return stage.table.ptes.raw[index]


def at(stage: Stage, address: int) -> int:
    """The PTE of an address."""
    pmd = pmd_ptr(stage.mm, address)
    assert pmd is not None
    table = stage.kernel.tables[pmd_pgtable(pmd.page.pmds.raw[pmd.slot])]
    return table.ptes.raw[stage.kernel.geometry.pte_index(address)]


def pmd(stage: Stage) -> int:
    found = pmd_ptr(stage.mm, START)
    assert found is not None
    return found.page.pmds.raw[found.slot]
