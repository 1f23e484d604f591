# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists of what shrinkers may free, by node and cgroup. Kernel: mm/list_lru.c."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mthp.machine.step import Access
from mthp.machine.task import Machine
from mthp.words.units import Folio


class Sublist(NamedTuple):
    """Whose list it is: the node, and the number of the cgroup, 0 where there is none."""

    nid: int
    memcg: int


class ListLru:
    """Folios in the order in which they were added. What a method does is one step, as the kernel does
    it under the lock of the list. nr_deferred: what the shrinker did not get to the last time, by list.

    Kernel: struct list_lru, struct list_lru_one; include/linux/shrinker.h, nr_deferred.
    """

    __slots__ = ("lists", "machine", "name", "nr_deferred")

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.name = name
        self.lists: dict[Sublist, dict[Folio, None]] = {}
        self.nr_deferred: dict[Sublist, int] = {}

    def has(self, item: Folio, of: Sublist) -> bool:
        """Whether it is listed, as somebody sees who holds no lock: the item knows, whatever else is listed.
        Kernel: list_empty() of the item.
        """
        return self.machine.data_race(lambda: item in self.lists.get(of, ()))

    def add(self, item: Folio, of: Sublist) -> None:
        """Put it at the end of a list, if it is not there. Kernel: list_lru_add()."""
        self.machine.step(Access.RMW, self)
        self.lists.setdefault(of, {}).setdefault(item)

    def delete(self, item: Folio, of: Sublist) -> bool:
        """Take it off a list; returns whether it was there. Kernel: __list_lru_del()."""
        self.machine.step(Access.RMW, self)
        return self.lists.get(of, {}).pop(item, self) is None

    def count(self, of: Sublist) -> int:
        """How many stand in a list. Kernel: list_lru_count_one()."""
        return len(self.lists.get(of, ()))

    def walk_one(
        self, of: Sublist, nr_to_walk: int, isolate: Callable[[Folio], bool]
    ) -> list[Folio]:
        """Take off the list what isolate says yes to, of so many from the start on; returns it.

        Kernel: list_lru_walk_one().
        """
        self.machine.step(Access.RMW, self)
        first = list(self.lists.get(of, ()))[:nr_to_walk]
        taken = [item for item in first if isolate(item)]
        for item in taken:
            del self.lists[of][item]
        return taken
