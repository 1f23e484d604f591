# SPDX-License-Identifier: GPL-2.0-or-later
"""A walk of page tables without locks, as perf does it."""

from __future__ import annotations

from mthp.mm.pgtable_types import (
    pmd_trans_huge,
)
from mthp.races.lockless_walker import perf_get_page_size
from mthp.races.stage import START, Size
from mthp.races.world import RaceWorld
from tests.stages import after_a_collapse, pmd


def test_perf_sees_what_there_is() -> None:
    stage = RaceWorld(Size.WINDOW, "7.3", ("perf",))()
    sizes = [perf_get_page_size(stage.mm, stage.address(i)) for i in range(4)]
    assert sizes == [4096, 0, 4096, 0]
    assert not stage.kernel.cpus[0].irqs_off.value


def test_a_huge_page_is_there() -> None:
    stage = after_a_collapse("load")
    assert pmd_trans_huge(pmd(stage))
    assert perf_get_page_size(stage.mm, START) == stage.kernel.geometry.pmd_size
