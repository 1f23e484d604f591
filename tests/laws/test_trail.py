# SPDX-License-Identifier: GPL-2.0-or-later
"""What a collapser changed itself: laws 8 and 11 fire on it, and on nothing that it put back."""

from __future__ import annotations

import pytest

from mthp.laws.trail import (
    Trail,
    law_11_nothing_of_it_is_left,
    lost_pte_marks,
    lost_table_marks,
)
from mthp.mm.page_flags import PG_LOCKED, PG_LRU, PG_UPTODATE
from mthp.mm.pgtable_types import DIRTY, SOFT_DIRTY, UFFD_WP, YOUNG, huge_pmd, mk_pte, table_pmd

USED = YOUNG | DIRTY | SOFT_DIRTY


class Notes:
    """A trail, and the laws that its changes break."""

    def __init__(self) -> None:
        self.laws: list[int] = []
        self.trail = Trail("khugepaged")

    def detach(self) -> None:
        self.trail.detach(1)
        self.trail.change_pmd("mm1.pmd", 0, table_pmd(1), 0)

    def pte(self, table: int, index: int, old: int, new: int) -> None:
        self.laws += [each.law for each in lost_pte_marks(self.trail, table, index, old, new)]
        self.trail.change_pte(table, index, old, new)

    def gave_up(self) -> None:
        self.laws += [each.law for each in law_11_nothing_of_it_is_left(self.trail)]


@pytest.fixture
def notes() -> Notes:
    notes = Notes()
    notes.detach()
    return notes


def test_what_is_put_back_is_not_left(notes: Notes) -> None:
    trail = notes.trail
    trail.change_flags(5, PG_LRU | PG_UPTODATE, PG_LRU | PG_UPTODATE | PG_LOCKED)
    trail.change_flags(5, PG_LRU | PG_UPTODATE | PG_LOCKED, PG_UPTODATE | PG_LOCKED)
    trail.change_flags(5, PG_UPTODATE | PG_LOCKED, PG_UPTODATE)
    trail.change_pmd("mm1.pmd", 0, 0, table_pmd(1))
    notes.gave_up()
    assert notes.laws == []


def test_a_pmd_that_stays_away_breaks_law_11(notes: Notes) -> None:
    notes.gave_up()
    assert notes.laws == [11]


def test_a_pte_that_stays_changed_breaks_law_11(notes: Notes) -> None:
    notes.trail.change_pmd("mm1.pmd", 0, 0, table_pmd(1))
    notes.pte(1, 0, mk_pte(5, YOUNG), 0)
    notes.gave_up()
    assert notes.laws == [11]


def test_flags_that_stay_changed_break_law_11(notes: Notes) -> None:
    notes.trail.change_pmd("mm1.pmd", 0, 0, table_pmd(1))
    notes.trail.change_flags(5, PG_LRU, PG_LRU | PG_LOCKED)
    notes.gave_up()
    assert notes.laws == [11]


def test_a_folio_that_it_freed_is_of_no_interest(notes: Notes) -> None:
    notes.trail.change_pmd("mm1.pmd", 0, 0, table_pmd(1))
    notes.trail.change_flags(16, 0, PG_LOCKED)
    notes.trail.change_flags(16, PG_LOCKED, 0)
    notes.gave_up()
    assert notes.laws == []


def test_what_came_before_the_table_was_taken_does_not_count() -> None:
    notes = Notes()
    notes.pte(1, 0, 0, mk_pte(5, YOUNG))  # swapped in
    notes.trail.change_flags(5, 0, PG_UPTODATE)
    notes.gave_up()
    assert notes.laws == []


@pytest.mark.parametrize(("flags", "broken"), [(USED, []), (YOUNG | DIRTY, [8])])
def test_a_soft_dirty_mark_must_come_back(notes: Notes, flags: int, broken: list[int]) -> None:
    notes.pte(1, 0, mk_pte(5, USED), 0)
    notes.pte(1, 0, 0, mk_pte(16, flags))
    assert notes.laws == broken


@pytest.mark.parametrize(("flags", "broken"), [(USED, []), (YOUNG | DIRTY, [8])])
def test_a_huge_pmd_must_have_it(notes: Notes, flags: int, broken: list[int]) -> None:
    notes.pte(1, 0, mk_pte(5, USED), 0)
    lost = lost_table_marks(notes.trail, huge_pmd(16, flags))
    assert [each.law for each in lost] == broken


def test_write_protection_may_not_be_taken_away(notes: Notes) -> None:
    notes.pte(1, 0, mk_pte(5, USED | UFFD_WP), 0)
    assert notes.laws == [8]


def test_an_attempt_that_is_over_is_forgotten(notes: Notes) -> None:
    """Nothing of it is held against the next one, nor against what comes before that."""
    trail = notes.trail
    notes.pte(1, 0, mk_pte(5, USED), 0)
    trail.change_flags(5, PG_LRU, PG_LRU | PG_LOCKED)
    trail.forget()
    notes.gave_up()
    notes.pte(1, 0, mk_pte(5, USED | UFFD_WP), 0)
    notes.pte(1, 0, 0, mk_pte(16, YOUNG))
    notes.laws += [each.law for each in lost_table_marks(trail, huge_pmd(16, YOUNG))]
    notes.gave_up()
    assert notes.laws == []
    notes.detach()
    notes.laws += [each.law for each in lost_table_marks(trail, huge_pmd(16, YOUNG))]
    assert notes.laws == []
