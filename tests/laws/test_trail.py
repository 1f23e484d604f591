# SPDX-License-Identifier: GPL-2.0-or-later
"""What a collapser changed itself: laws 8 and 11 fire on it, and on nothing that it put back."""

from __future__ import annotations

import pytest

from mthp.laws.ghost import Step
from mthp.laws.steps import law_8_pmds, law_8_ptes
from mthp.laws.trail import law_11_nothing_of_it_is_left
from mthp.machine.step import Access
from mthp.mm.page_flags import PG_LOCKED, PG_LRU, PG_UPTODATE
from mthp.mm.pgtable_types import (
    DIRTY,
    NO_ACCESS,
    SOFT_DIRTY,
    UFFD_WP,
    YOUNG,
    Leaf,
    huge_pmd,
    leaf_pte,
    mk_pte,
    table_pmd,
)
from mthp.races.stage import Size
from mthp.races.world import RaceWorld

USED = YOUNG | DIRTY | SOFT_DIRTY


class Notes:
    """A trail, and the laws that its changes break."""

    def __init__(self) -> None:
        self.laws: list[int] = []
        self.stage = RaceWorld(Size.PMD, "7.3", ())()
        self.ghost = self.stage.watch.ghost
        self.trail = self.ghost.trails["khugepaged"]
        self.table = self.stage.table

    def detach(self) -> None:
        self.trail.detached = self.table.number
        self.trail.change_pmd("mm1.pmd", 0, table_pmd(self.table.number), 0)

    def attach(self) -> None:
        self.trail.change_pmd("mm1.pmd", 0, 0, table_pmd(self.table.number))

    def pte(self, index: int, old: int, new: int) -> None:
        step = Step(self.stage.tasks[0][0], Access.WRITE, self.table.ptes, index, old, new)
        self.laws += [each.law for each in law_8_ptes(self.ghost, step)]
        self.trail.change_pte(self.table.number, index, old, new)

    def huge(self, flags: int) -> None:
        """A huge page is mapped in the table's place."""
        (page,) = self.stage.mm.pmd_pages.values()
        task = self.stage.tasks[0][0]
        step = Step(task, Access.WRITE, page.pmds, 0, 0, huge_pmd(16, flags))
        self.laws += [each.law for each in law_8_pmds(self.ghost, step)]

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
    notes.attach()
    notes.gave_up()
    assert notes.laws == []


def test_a_pmd_that_stays_away_breaks_law_11(notes: Notes) -> None:
    notes.gave_up()
    assert notes.laws == [11]


def test_a_pte_that_stays_changed_breaks_law_11(notes: Notes) -> None:
    notes.attach()
    notes.pte(0, mk_pte(5, YOUNG), 0)
    notes.gave_up()
    assert notes.laws == [11]


def test_flags_that_stay_changed_break_law_11(notes: Notes) -> None:
    notes.attach()
    notes.trail.change_flags(5, PG_LRU, PG_LRU | PG_LOCKED)
    notes.gave_up()
    assert notes.laws == [11]


def test_a_folio_that_it_freed_is_of_no_interest(notes: Notes) -> None:
    notes.attach()
    notes.trail.change_flags(16, 0, PG_LOCKED)
    notes.trail.change_flags(16, PG_LOCKED, 0)
    notes.gave_up()
    assert notes.laws == []


def test_what_came_before_the_table_was_taken_does_not_count() -> None:
    notes = Notes()
    notes.pte(0, leaf_pte(Leaf.SWAP, 3), mk_pte(5, YOUNG))
    notes.trail.change_flags(5, 0, PG_UPTODATE)
    notes.gave_up()
    assert notes.laws == []


@pytest.mark.parametrize(("flags", "broken"), [(USED, []), (YOUNG | DIRTY, [8])])
def test_a_soft_dirty_mark_must_come_back(notes: Notes, flags: int, broken: list[int]) -> None:
    notes.pte(0, mk_pte(5, USED), 0)
    notes.pte(0, 0, mk_pte(16, flags))
    assert notes.laws == broken


@pytest.mark.parametrize(("flags", "broken"), [(USED, []), (YOUNG | DIRTY, [8])])
def test_a_huge_pmd_must_have_it(notes: Notes, flags: int, broken: list[int]) -> None:
    notes.pte(0, mk_pte(5, USED), 0)
    notes.huge(flags)
    assert notes.laws == broken


@pytest.mark.parametrize(("flags", "broken"), [(USED | UFFD_WP, []), (USED, [8])])
def test_write_protection_must_come_back(notes: Notes, flags: int, broken: list[int]) -> None:
    notes.pte(0, mk_pte(5, USED | UFFD_WP), 0)
    notes.pte(0, 0, mk_pte(16, flags))
    assert notes.laws == broken
    notes.laws.clear()
    notes.pte(1, mk_pte(6, USED | UFFD_WP), 0)
    notes.huge(flags)
    assert notes.laws == broken


def test_an_attempt_that_is_over_is_forgotten(notes: Notes) -> None:
    """Nothing of it is held against the next one, nor against what comes before that."""
    trail = notes.trail
    notes.pte(0, mk_pte(5, USED), 0)
    trail.change_flags(5, PG_LRU, PG_LRU | PG_LOCKED)
    trail.forget()
    notes.gave_up()
    notes.pte(0, 0, mk_pte(16, YOUNG))
    notes.huge(YOUNG)
    assert notes.laws == []
    trail.forget()
    notes.detach()
    notes.huge(YOUNG)
    assert notes.laws == []


ENTRY = leaf_pte(Leaf.MIGRATION, 5, USED)


def test_it_begins_with_the_first_pte_and_not_with_the_table() -> None:
    notes = Notes()
    notes.pte(0, mk_pte(5, USED), 0)
    notes.gave_up()
    assert notes.laws == [11]


def test_a_page_that_came_in_is_none_of_its_changes_and_one_that_is_locked_for_it_is() -> None:
    notes = Notes()
    notes.pte(0, leaf_pte(Leaf.SWAP, 3, SOFT_DIRTY), mk_pte(5, YOUNG | SOFT_DIRTY))
    notes.trail.change_flags(5, 0, PG_LOCKED)
    notes.trail.change_flags(5, PG_LOCKED, PG_LOCKED | PG_UPTODATE)
    notes.trail.change_flags(5, PG_LOCKED | PG_UPTODATE, PG_UPTODATE)
    notes.trail.change_flags(6, PG_UPTODATE, PG_UPTODATE | PG_LOCKED)
    notes.pte(1, mk_pte(6, USED), leaf_pte(Leaf.MIGRATION, 6, USED))
    notes.gave_up()
    assert notes.laws == [11]  # of the folio that stays locked
    notes.laws.clear()
    notes.trail.change_flags(6, PG_UPTODATE | PG_LOCKED, PG_UPTODATE)
    notes.gave_up()
    assert notes.laws == []


@pytest.mark.parametrize(
    ("now", "restored", "broken"),
    [
        (ENTRY, mk_pte(5, USED), []),
        (ENTRY, mk_pte(5, YOUNG | DIRTY), [8, 11]),
        (ENTRY & ~SOFT_DIRTY, mk_pte(5, YOUNG | DIRTY), []),  # others have cleared the mark
        (0, mk_pte(5, USED), [11]),  # others have zapped it
        (ENTRY, None, []),  # whether it stays for ever is law 4's
        (ENTRY, mk_pte(16, USED), [11]),
    ],
)
def test_an_entry_in_flight(now: int, restored: int | None, broken: list[int]) -> None:
    """It is put in a PTE's place; now: what stands there when the collapse gives up."""
    notes = Notes()
    notes.pte(0, mk_pte(5, USED), ENTRY)
    if restored is not None:
        notes.pte(0, now, restored)
    notes.gave_up()
    assert notes.laws == broken


def test_a_numa_hint_may_be_lost() -> None:
    notes = Notes()
    notes.pte(0, mk_pte(5, USED | NO_ACCESS), ENTRY)
    notes.pte(0, ENTRY, mk_pte(5, USED))
    notes.gave_up()
    assert notes.laws == []
