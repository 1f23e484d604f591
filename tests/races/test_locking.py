# SPDX-License-Identifier: GPL-2.0-or-later
"""Deadlocks, and locks taken in the wrong order, are found and said."""

from __future__ import annotations

import pytest

from mthp.check.check import check_world
from mthp.check.records import WorldResult
from mthp.races.edits import Edit
from mthp.races.stage import Size
from mthp.races.variant import applied
from mthp.races.world import RaceWorld

WAIT_FOR_FOLIO = Edit(
    "khugepaged.isolate",
    "lock_and_isolate",
    "if not mem.folio_trylock(folio): ...",
    "mem.folio_wait_locked(folio)\n_",
)
"""Why the folio is only tried: its holder may be waiting for anon_vma, which is held here."""
PTE_LOCK_FIRST = Edit(
    "khugepaged.install",
    "install_ptes",
    "with pmd_lock(pmd): ...",
    "with pte.table.ptl.lock():\n _",
)


def explored(world: RaceWorld, edit: Edit) -> WorldResult:
    assert check_world(world).clean
    with applied((edit,)):
        return check_world(world)


def texts(result: WorldResult) -> list[str]:
    assert result.violation is not None
    return [each.text for each in result.violation.breaches if each.law == 9]


def test_a_deadlock_is_found() -> None:
    """khugepaged waits for a folio whose holder waits for the anon_vma that khugepaged holds."""
    result = explored(RaceWorld(Size.WINDOW, "7.3", ("migrate",)), WAIT_FOR_FOLIO)
    assert "deadlock: khugepaged for flags, migrate for anon_vma0" in texts(result)


@pytest.mark.parametrize("profile", ["v16", "7.3"])
def test_a_lock_out_of_order_is_found_without_a_deadlock(profile: str) -> None:
    """Nobody else is there: the order alone is what is wrong."""
    result = explored(RaceWorld(Size.WINDOW, profile, ()), PTE_LOCK_FIRST)
    assert any(
        "lock order: mm1.pmd4.ptl is taken under table1.ptl" in text for text in texts(result)
    )
