# SPDX-License-Identifier: GPL-2.0-or-later
"""What a rival is: a name, what its task does, and what it needs of the stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from mthp.races.stage import Stage

OnStage = Callable[[Stage], object]
"""Does something with a stage."""


class StagePart(Enum):
    """A part of the stage that a rival changes beforehand; two that change one do not get along."""

    FIRST = "the first page"
    HOLE = "the window's empty PTE"
    WINDOW = "the whole window"
    TABLE = "the whole table"
    BESIDE = "what stands beside the window"
    ELSEWHERE = "a page outside the table"
    SWAP = "how the swap device works"


class Place(Enum):
    """What not every world has; whoever needs it does nothing in the others."""

    BESIDE = "a table that is larger than the window"
    TABLES = "more tables than the window's"


class Reach(Enum):
    """How a rival comes by the process's memory, as far as the process's life is concerned."""

    PROCESS = "as a thread of the process, or by holding its mm"
    PAGES = "by its pages, whichever process they belong to"
    ALONE = "as the only one who holds the mm: it has ended, or is not used yet"


def nothing(stage: Stage) -> None:
    """What the task of a rival does that is special by its mapping alone."""


@dataclass(frozen=True)
class Rival:
    """An actor. what: one line about it. run: what its task does. vm_flags: the mapping needs them.

    prepare: changes to the stage before the first step. takes: the parts these are about. needs: what
    it works on, where not every world has it. never_collapses, never_below_pmd: why no collapse can
    succeed in its worlds, or below PMD order; empty where one can.
    """

    name: str
    what: str
    run: OnStage = nothing
    prepare: OnStage = nothing
    takes: frozenset[StagePart] = frozenset()
    vm_flags: int = 0
    reach: Reach = Reach.PROCESS
    needs: Place | None = None
    never_collapses: str = ""
    never_below_pmd: str = ""

    def gets_along(self, other: Rival) -> bool:
        """Whether both can be in one world. Where the window is not a small page and a hole no other
        rival can be: most count on them.
        """
        taken = self.takes | other.takes
        if self.takes & other.takes or StagePart.WINDOW in taken:
            return False
        reaches = {self.reach, other.reach}
        return Reach.ALONE not in reaches or Reach.PAGES in reaches


HOLE = frozenset({StagePart.HOLE})
FIRST = frozenset({StagePart.FIRST})
WINDOW = frozenset({StagePart.WINDOW})
BESIDE_WINDOW = frozenset({StagePart.BESIDE})
TABLE = WINDOW | {StagePart.TABLE}
ELSEWHERE = frozenset({StagePart.ELSEWHERE})
BESIDE, TABLES = Place.BESIDE, Place.TABLES
PAGES = Reach.PAGES
IS_LARGE = "a folio as large as the window is left alone"
