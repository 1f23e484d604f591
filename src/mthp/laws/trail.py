# SPDX-License-Identifier: GPL-2.0-or-later
"""What a collapser changed by its own hand in an attempt, from the first PTE or PMD that it changed.

Others may change words meanwhile as they are allowed to; what is looked at here is the collapser's
own share alone, so that a verdict means the same whichever other tasks run. A page that was swapped
in for the collapse stays: such a change is none of the attempt's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from mthp.laws.broken import Broken, Kind, Thing
from mthp.mm.page_flags import PG_ACTIVE, PG_LOCKED, PG_LRU, PG_UNEVICTABLE
from mthp.mm.pgtable_types import NO_ACCESS, SOFT_DIRTY, UFFD_WP, Leaf, leaf_kind, pte_present

MARKS: Final = SOFT_DIRTY | UFFD_WP
"""Bits of an entry that must not be lost with it."""
_BY_BATCHES: Final = PG_LRU | PG_ACTIVE | PG_UNEVICTABLE
"""Flags that differ while a folio that was put back waits in a batch, or once the batch was moved."""


class Trail:
    """The changes of one collapser. ptes, pmds, flags: the bits its changes of a word come to, all
    together.

    marks: (table, PTE) -> those of MARKS that it took away with the entry. in_flight: (table, PTE)
    -> the migration entry that it put there last: the page is on its way, and the slot the
    collapser's, for as long as that entry stands. detached: the table that it took out of its PMD.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.ptes: defaultdict[tuple[int, int], int] = defaultdict(int)
        self.pmds: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.flags: defaultdict[int, int] = defaultdict(int)
        self.marks: dict[tuple[int, int], int] = {}
        self.in_flight: dict[tuple[int, int], int] = {}
        self.detached: int | None = None
        self.has_begun = False

    def begin(self) -> None:
        """The first change. What was done to folios before counts if they are still locked for it."""
        if not self.has_begun:
            self.has_begun = True
            for folio in [each for each, bits in self.flags.items() if not bits & PG_LOCKED]:
                del self.flags[folio]

    def forget(self) -> None:
        """An attempt is over."""
        for each in (self.ptes, self.pmds, self.flags, self.marks, self.in_flight):
            each.clear()
        self.detached = None
        self.has_begun = False

    def change_pte(self, table: int, index: int, old: int, new: int) -> None:
        """It changed a PTE."""
        if is_swap_in(old, new):
            return
        self.begin()
        place = table, index
        self.ptes[place] ^= old ^ new
        if pte_present(new):
            self.marks.pop(place, None)
        elif pte_present(old):
            self.marks[place] = old & MARKS
        if is_in_flight(new):
            self.in_flight[place] = new
        else:
            self.in_flight.pop(place, None)

    def change_pmd(self, name: str, slot: int, old: int, new: int) -> None:
        """It changed a PMD."""
        self.begin()
        self.pmds[name, slot] ^= old ^ new

    def change_flags(self, folio: int, old: int, new: int) -> None:
        """It changed a folio's flags; a folio that it frees is of no interest any more."""
        if not new:
            self.flags.pop(folio, None)
            return
        if not self.has_begun and new & ~old & PG_LOCKED:
            self.flags.pop(folio, None)
        self.flags[folio] ^= old ^ new


def is_swap_in(old: int, new: int) -> bool:
    """A swap entry becomes the page that was read."""
    return pte_present(new) and not pte_present(old) and leaf_kind(old) is Leaf.SWAP


def is_in_flight(pte: int) -> bool:
    """A migration entry."""
    return not pte_present(pte) and leaf_kind(pte) is Leaf.MIGRATION


def law_11_nothing_of_it_is_left(trail: Trail) -> Iterator[Broken]:
    """An attempt that did not succeed leaves no change of its own.

    An entry of a page in flight may be gone by then, or be left: that is for the end to show. A NUMA
    hint may be lost: the next one comes.
    """
    if not trail.has_begun:
        return
    left = f"{trail.name} gave up and leaves"
    for (table, index), bits in trail.ptes.items():
        if bits & ~NO_ACCESS and (table, index) not in trail.in_flight:
            name = f"{index} of table {table}"
            yield Broken(11, Thing(Kind.PTE, name), f"{left} PTE {name} changed")
    for (name, slot), bits in trail.pmds.items():
        if bits:
            text = f"{left} slot {slot} of {name} changed"
            yield Broken(11, Thing(Kind.PMD, f"{name}[{slot}]"), text)
    for folio, bits in trail.flags.items():
        if bits & ~_BY_BATCHES:
            yield Broken(11, Thing(Kind.FOLIO, folio), f"{left} flags of folio {folio} changed")
