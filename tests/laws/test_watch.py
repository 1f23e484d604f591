# SPDX-License-Identifier: GPL-2.0-or-later
"""Who takes a step, and what is said to commute."""

from __future__ import annotations

import pytest

from mthp.machine.step import Access
from mthp.machine.store_buffer import Slot
from mthp.machine.task import Task
from mthp.races.world import RaceWorld


def test_what_is_said_to_commute_is_there() -> None:
    stage = RaceWorld.parse("pmd", "7.3", ("fault",))()
    kernel, watch = stage.kernel, stage.watch
    for each in (watch, watch.ghost, watch.ghost.observations, kernel.mem.vmstat):
        assert each.COMMUTES
        for attribute in each.COMMUTES:
            assert hasattr(each, attribute), (each, attribute)


@pytest.mark.parametrize("of_collapser", [True, False])
def test_a_late_store_is_its_tasks_and_a_late_copy_may_outlive_its_page(of_collapser: bool) -> None:
    stage = RaceWorld.parse("pmd", "7.3", ("fault",))()
    machine, mem = stage.machine, stage.kernel.mem
    drain = Task("drain")
    drain.drains = Slot(machine, "slot")
    drain.drains.by = stage.tasks[0 if of_collapser else 1][0].name
    machine.current = drain
    page = next(page for page in range(1, len(mem.head.raw)) if not mem.head.raw[page])
    stage.watch.before(Access.WRITE, mem.content, page)
    assert [each.law for each in stage.broken] == ([] if of_collapser else [1])
    assert all(each.text.startswith(drain.drains.by) for each in stage.broken)
