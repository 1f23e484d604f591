# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory cgroups: a limit and a charge, in pages. Kernel: mm/memcontrol.c."""

from __future__ import annotations

from mthp.machine.memory import Cell
from mthp.machine.step import Machine


class MemCgroup:
    """limit: pages it may hold, or None. reclaimable: pages that reclaim can take when it is full.

    defer: folio_memcg_alloc_deferred() fails for its folios. Kernel: struct mem_cgroup.
    """

    __slots__ = ("defer", "limit", "name", "number", "reclaimable", "usage")

    def __init__(
        self, machine: Machine, number: int, name: str, limit: int | None = None, usage: int = 0
    ) -> None:
        self.number = number
        self.name = name
        self.limit = limit
        self.reclaimable = 0
        self.defer = False
        self.usage = Cell(machine, f"memcg.{name}.usage", usage)

    def charge(self, pages: int) -> bool:
        """Charge pages, reclaiming what can be; False where the limit stands in the way.

        Kernel: mm/memcontrol.c, mem_cgroup_charge(), try_charge_memcg().
        """
        usage: int = self.usage.read()
        if self.limit is not None and usage + pages > self.limit:
            missing = usage + pages - self.limit
            if missing > self.reclaimable:
                return False
            self.reclaimable -= missing
            usage -= missing
        self.usage.write(usage + pages)
        return True

    def uncharge(self, pages: int) -> None:
        """Kernel: mm/memcontrol.c, mem_cgroup_uncharge()."""
        self.usage.write(self.usage.read() - pages)
