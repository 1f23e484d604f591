# SPDX-License-Identifier: GPL-2.0-or-later
"""What a protocol declares of the states that its objects pass through.

Three states are seen from what a task does, whichever protocol it follows. A folio is *frozen* from
folio_ref_freeze() on: its reference count is 0, and it is not freed. A page is *in flight* while the
migration entry stands that a collapser put in its PTE's place. A table is *detached* from when a task took
it out of its PMD until it is linked, deposited or given up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mthp.machine.hold import Rank


@dataclass(frozen=True)
class Declares:
    """Who may change what meanwhile, as far as that is for the protocol to choose.

    detached_under: of these locks, one that is held for writing lets the task that has detached a table
    change its entries without the table's own lock. collapsers: tasks that follow the protocol, too.
    """

    detached_under: frozenset[Rank] = frozenset({Rank.MMAP})
    collapsers: frozenset[str] = frozenset()


DECLARED: Final = Declares()
"""What the protocol in force declares."""
