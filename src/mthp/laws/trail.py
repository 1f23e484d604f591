# SPDX-License-Identifier: GPL-2.0-or-later
"""What a collapser changed by its own hand since it took a table out of its PMD.

Others may change words meanwhile as they are allowed to; what is looked at here is the collapser's
own share alone, so that a verdict means the same whichever other tasks run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from mthp.laws.broken import Broken, Kind, Thing
from mthp.mm.page_flags import PG_ACTIVE, PG_LRU, PG_UNEVICTABLE
from mthp.mm.pgtable_types import SOFT_DIRTY, pte_none, pte_present

_BY_BATCHES: Final = PG_LRU | PG_ACTIVE | PG_UNEVICTABLE
"""Flags that differ while a folio that was put back waits in a batch, or once the batch was moved."""


class Trail:
    """Of one collapser. ptes, pmds, flags: the bits its changes of a word come to, all together.

    marks: (table, PTE) whose soft-dirty bits it took away with the entry.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.ptes: defaultdict[tuple[int, int], int] = defaultdict(int)
        self.pmds: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.flags: defaultdict[int, int] = defaultdict(int)
        self.marks: set[tuple[int, int]] = set()
        self.detached: int | None = None

    def detach(self, table: int) -> None:
        """The table was taken out of its PMD: changes count from here on."""
        self.forget()
        self.detached = table

    def forget(self) -> None:
        """An attempt is over."""
        self.ptes.clear()
        self.pmds.clear()
        self.flags.clear()
        self.marks.clear()
        self.detached = None

    def change_pte(self, table: int, index: int, old: int, new: int) -> None:
        """It changed a PTE."""
        if self.detached is None:
            return
        self.ptes[table, index] ^= old ^ new
        if pte_present(old) and pte_none(new) and old & SOFT_DIRTY:
            self.marks.add((table, index))

    def change_pmd(self, name: str, slot: int, old: int, new: int) -> None:
        """It changed a PMD."""
        self.pmds[name, slot] ^= old ^ new

    def change_flags(self, folio: int, old: int, new: int) -> None:
        """It changed a folio's flags; a folio that it frees is of no interest any more."""
        if self.detached is None:
            return
        if new:
            self.flags[folio] ^= old ^ new
        else:
            self.flags.pop(folio, None)


def law_11_nothing_of_it_is_left(trail: Trail) -> Iterator[Broken]:
    """An attempt that did not succeed leaves no change of its own."""
    left = f"{trail.name} gave up and leaves"
    for (table, index), bits in trail.ptes.items():
        if bits:
            name = f"{index} of table {table}"
            yield Broken(11, Thing(Kind.PTE, name), f"{left} PTE {name} changed")
    for (name, slot), bits in trail.pmds.items():
        if bits:
            text = f"{left} slot {slot} of {name} changed"
            yield Broken(11, Thing(Kind.PMD, f"{name}[{slot}]"), text)
    for folio, bits in trail.flags.items():
        if bits & ~_BY_BATCHES:
            yield Broken(11, Thing(Kind.FOLIO, folio), f"{left} flags of folio {folio} changed")
