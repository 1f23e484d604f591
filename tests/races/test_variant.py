# SPDX-License-Identifier: GPL-2.0-or-later
"""Edits and a user's own protocol: in force in their block, and gone after it."""

from __future__ import annotations

import pytest

from mthp.check.check import check_world, hunt
from mthp.khugepaged.isolate import Isolation
from mthp.machine.store_buffer import Model
from mthp.races.edits import Edit
from mthp.races.mutants.rules import MUTANTS, NO_BARRIER, NO_SEED_BARRIER
from mthp.races.stage import Size
from mthp.races.variant import applied
from mthp.races.world import RaceWorld


def test_methods_are_replaced_and_classes_stay() -> None:
    method = Isolation.take_page
    with applied(MUTANTS["A9"].edits):
        assert Isolation.take_page is not method
    assert Isolation.take_page is method


def test_edits_of_two_modules_see_one_another() -> None:
    clean = check_world(RaceWorld(Size.PMD, "7.3", ()), mutant="no-pmd-lock")
    assert clean.clean


MEMORY = [
    # (profile, size, edits, models in which stale contents are seen)
    ("7.3", Size.PMD, (), set()),
    ("7.3", Size.PMD, (NO_BARRIER,), {Model.WEAK}),
    ("7.3", Size.WINDOW, (NO_BARRIER,), {Model.WEAK}),
    ("v16", Size.WINDOW, (), set()),
    ("v16", Size.WINDOW, (NO_BARRIER,), set()),
    ("v16", Size.WINDOW, (NO_SEED_BARRIER,), set()),
    ("v16", Size.WINDOW, (NO_BARRIER, NO_SEED_BARRIER), {Model.WEAK}),
]


@pytest.mark.parametrize(("profile", "size", "edits", "stale"), MEMORY)
def test_which_barrier_is_for_what(
    profile: str, size: Size, edits: tuple[Edit, ...], stale: set[Model]
) -> None:
    found = set()
    for model in Model:
        with applied(edits):
            result = check_world(RaceWorld(size, profile, ("load",), memory=model))
        assert result.violation is not None or result.covered.kind == "exhaustive"
        if not result.clean:
            found.add(model)
    assert found == stale


def test_x3_needs_the_weak_machine() -> None:
    assert MUTANTS["X3"].world.memory is Model.WEAK
    assert hunt(MUTANTS["X3"]).laws == (3,)
