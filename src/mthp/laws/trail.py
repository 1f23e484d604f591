# SPDX-License-Identifier: GPL-2.0-or-later
"""What a collapser changed by its own hand since it took a table out of its PMD.

Others may change words meanwhile as they are allowed to; what is looked at here is the collapser's
own share alone, so that a verdict means the same whoever else works.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Final

from mthp.mm.page_flags import PG_ACTIVE, PG_LRU, PG_UNEVICTABLE
from mthp.mm.pgtable_types import SOFT_DIRTY, UFFD_WP, pte_none, pte_present

Say = Callable[[int, str], None]

_BY_BATCHES: Final = PG_LRU | PG_ACTIVE | PG_UNEVICTABLE
"""Flags that differ while a folio that was put back waits in a batch, or once the batch was moved."""


class Trail:
    """Of one collapser. ptes, pmds, flags: the bits its changes of a word come to, all together.

    marks: (table, PTE) -> soft-dirty bits it took away with the entry.
    """

    def __init__(self, say: Say, name: str) -> None:
        self.say = say
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

    # Changes

    def pte(self, table: int, index: int, old: int, new: int) -> None:
        """It changed a PTE."""
        if self.detached is None:
            return
        self.ptes[table, index] ^= old ^ new
        if pte_present(old) and pte_none(new):
            if old & UFFD_WP:
                self.say(8, f"{self.name} takes away an entry that is write-protected")
            if old & SOFT_DIRTY:
                self.marks.add((table, index))
        elif pte_present(new) and not new & SOFT_DIRTY and (table, index) in self.marks:
            self.say(8, f"{self.name} loses the soft-dirty mark of PTE {index} of table {table}")

    def pmd(self, name: str, slot: int, old: int, new: int) -> None:
        """It changed a PMD."""
        self.pmds[name, slot] ^= old ^ new

    def huge(self, new: int) -> None:
        """It mapped by a huge PMD what the table held."""
        if not new & SOFT_DIRTY and any(table == self.detached for table, _ in self.marks):
            self.say(8, f"{self.name} loses the soft-dirty marks of table {self.detached}")

    def flag(self, folio: int, old: int, new: int) -> None:
        """It changed a folio's flags; a folio that it frees is of no interest any more."""
        if self.detached is None:
            return
        if new:
            self.flags[folio] ^= old ^ new
        else:
            self.flags.pop(folio, None)

    # In the end

    def gave_up(self) -> None:
        """The attempt did not succeed: nothing of it may be left."""
        for (table, index), bits in self.ptes.items():
            if bits:
                self.say(11, f"{self.name} gave up and leaves PTE {index} of table {table} changed")
        for (name, slot), bits in self.pmds.items():
            if bits:
                self.say(11, f"{self.name} gave up and leaves slot {slot} of {name} changed")
        for folio, bits in self.flags.items():
            if bits & ~_BY_BATCHES:
                self.say(11, f"{self.name} gave up and leaves flags of folio {folio} changed")
        self.forget()
