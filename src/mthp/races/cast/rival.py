# SPDX-License-Identifier: GPL-2.0-or-later
"""What a rival is: a name, what its task does, and what it needs of the stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from mthp.races.stage import Stage

Act = Callable[[Stage], None]


class Spot(Enum):
    """A part of the stage that a rival changes beforehand; two who change one do not get along."""

    FIRST = "the first page"
    HOLE = "the window's empty PTE"
    WINDOW = "the whole window"
    ELSEWHERE = "a page outside the table"
    SWAP = "how the swap device works"


class Who(Enum):
    """For whom a rival works, as far as the process's life is concerned."""

    PROCESS = "a thread of the process, or somebody who holds its mm"
    PAGES = "somebody who comes by its pages, whoever's they are"
    ALONE = "the only one who holds the mm: it has ended, or is not used yet"


@dataclass(frozen=True)
class Rival:
    """An actor. act: what its task does. what: one line about it. vm_flags: the mapping needs them.

    prepare: changes to the stage before the first step. takes: the parts these are about. who: for
    whom it works.
    """

    name: str
    what: str
    act: Act
    vm_flags: int = 0
    prepare: Act = lambda _: None
    takes: frozenset[Spot] = frozenset()
    who: Who = Who.PROCESS

    def gets_along(self, other: Rival) -> bool:
        """Whether both can be in one world. Where the window is not a small page and a hole nobody
        else can be: most rivals count on them.
        """
        taken = self.takes | other.takes
        if self.takes & other.takes or Spot.WINDOW in taken:
            return False
        return Who.ALONE not in (self.who, other.who) or Who.PAGES in (self.who, other.who)


HOLE = frozenset({Spot.HOLE})
FIRST = frozenset({Spot.FIRST})
WINDOW = frozenset({Spot.WINDOW})
ELSEWHERE = frozenset({Spot.ELSEWHERE})
