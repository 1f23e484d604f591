# SPDX-License-Identifier: GPL-2.0-or-later
"""KSM: equal pages become one, read-only."""

from __future__ import annotations

from mthp.mm.pgtable_types import (
    pte_pfn,
    pte_present,
    pte_write,
)
from mthp.races.stage import Size
from mthp.races.world import RaceWorld
from tests.stages import after_a_collapse, entry, played


def test_ksm_maps_the_page_of_another_process_read_only() -> None:
    stage = played("ksm")
    assert pte_pfn(entry(stage, 0)) == stage.elsewhere
    assert not pte_write(entry(stage, 0))
    assert stage.kernel.mem.mapcount.raw[stage.elsewhere] == 2
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 0


def test_ksm_leaves_a_page_of_other_contents() -> None:
    stage = RaceWorld(Size.WINDOW, "7.3", ("ksm",))()
    stage.kernel.mem.content.raw[stage.pages[0]] = 7
    stage.machine.current = stage.tasks[1][0]
    stage.tasks[1][1]()
    assert pte_pfn(entry(stage, 0)) == stage.pages[0]


def test_ksm_maps_the_zero_page_for_zeroes() -> None:
    assert pte_present(entry(played("ksm-zero"), 0))
    assert pte_pfn(entry(played("ksm-zero"), 0)) == 0


def test_ksm_merges_a_page_of_what_was_huge() -> None:
    stage = after_a_collapse("ksm")
    assert pte_pfn(entry(stage, 0)) == stage.elsewhere
