# SPDX-License-Identifier: GPL-2.0-or-later
"""What a collapser changed itself: laws 8 and 11 fire on it, and on nothing that it put back."""

from __future__ import annotations

import pytest

from mthp.laws.trail import Trail
from mthp.mm.page_flags import PG_LOCKED, PG_LRU, PG_UPTODATE
from mthp.mm.pgtable_types import DIRTY, SOFT_DIRTY, UFFD_WP, YOUNG, huge_pmd, mk_pte, table_pmd

USED = YOUNG | DIRTY | SOFT_DIRTY


class Notes:
    """A trail, and the laws it says are broken."""

    def __init__(self) -> None:
        self.laws: list[int] = []
        self.trail = Trail(lambda law, _: self.laws.append(law), "khugepaged")
        self.trail.detach(1)
        self.trail.pmd("mm1.pmd", 0, table_pmd(1), 0)


@pytest.fixture
def notes() -> Notes:
    return Notes()


def test_what_is_put_back_is_not_left(notes: Notes) -> None:
    trail = notes.trail
    trail.flag(5, PG_LRU | PG_UPTODATE, PG_LRU | PG_UPTODATE | PG_LOCKED)
    trail.flag(5, PG_LRU | PG_UPTODATE | PG_LOCKED, PG_UPTODATE | PG_LOCKED)
    trail.flag(5, PG_UPTODATE | PG_LOCKED, PG_UPTODATE)
    trail.pmd("mm1.pmd", 0, 0, table_pmd(1))
    trail.gave_up()
    assert notes.laws == []


def test_a_pmd_that_stays_away_breaks_law_11(notes: Notes) -> None:
    notes.trail.gave_up()
    assert notes.laws == [11]


def test_a_pte_that_stays_changed_breaks_law_11(notes: Notes) -> None:
    notes.trail.pmd("mm1.pmd", 0, 0, table_pmd(1))
    notes.trail.pte(1, 0, mk_pte(5, YOUNG), 0)
    notes.trail.gave_up()
    assert notes.laws == [11]


def test_flags_that_stay_changed_break_law_11(notes: Notes) -> None:
    notes.trail.pmd("mm1.pmd", 0, 0, table_pmd(1))
    notes.trail.flag(5, PG_LRU, PG_LRU | PG_LOCKED)
    notes.trail.gave_up()
    assert notes.laws == [11]


def test_a_folio_that_it_freed_is_of_no_interest(notes: Notes) -> None:
    notes.trail.pmd("mm1.pmd", 0, 0, table_pmd(1))
    notes.trail.flag(16, 0, PG_LOCKED)
    notes.trail.flag(16, PG_LOCKED, 0)
    notes.trail.gave_up()
    assert notes.laws == []


def test_what_came_before_the_table_was_taken_does_not_count() -> None:
    laws: list[int] = []
    trail = Trail(lambda law, _: laws.append(law), "khugepaged")
    trail.pte(1, 0, 0, mk_pte(5, YOUNG))  # swapped in
    trail.flag(5, 0, PG_UPTODATE)
    trail.gave_up()
    assert laws == []


@pytest.mark.parametrize(("flags", "broken"), [(USED, []), (YOUNG | DIRTY, [8])])
def test_a_soft_dirty_mark_must_come_back(notes: Notes, flags: int, broken: list[int]) -> None:
    notes.trail.pte(1, 0, mk_pte(5, USED), 0)
    notes.trail.pte(1, 0, 0, mk_pte(16, flags))
    assert notes.laws == broken


@pytest.mark.parametrize(("flags", "broken"), [(USED, []), (YOUNG | DIRTY, [8])])
def test_a_huge_pmd_must_have_it(notes: Notes, flags: int, broken: list[int]) -> None:
    notes.trail.pte(1, 0, mk_pte(5, USED), 0)
    notes.trail.huge(huge_pmd(16, flags))
    assert notes.laws == broken


def test_write_protection_may_not_be_taken_away(notes: Notes) -> None:
    notes.trail.pte(1, 0, mk_pte(5, USED | UFFD_WP), 0)
    assert notes.laws == [8]
