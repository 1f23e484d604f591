# SPDX-License-Identifier: GPL-2.0-or-later
"""What a memory cgroup may use: a limit, a charge and the stock of this CPU, in pages.

Kernel: mm/page_counter.c, mm/memcontrol.c (struct mem_cgroup, try_charge_memcg()).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

from mthp.machine.memory import Cell
from mthp.machine.task import Machine
from mthp.mm.page_alloc import PAGE_ALLOC_COSTLY_ORDER
from mthp.words.units import Order

CHARGE_BATCH: Final = 64
"""Pages charged at a time, and the most that the stock holds. Kernel: MEMCG_CHARGE_BATCH."""


class Gfp(Enum):
    """What an allocation may do to succeed. Kernel: include/linux/gfp_types.h."""

    TRANSHUGE = "reclaim and compact"
    TRANSHUGE_LIGHT = "fail at once"


class MemCgroup:
    """A memory cgroup. limit: pages it may hold, or None. usage counts the stock: pages charged
    ahead for this CPU.

    reclaimable: pages that reclaim can take when it is full. defer: folio_memcg_alloc_deferred()
    fails for its folios. Kernel: struct mem_cgroup, struct memcg_stock_pcp.
    Divergence: one stock, not one for each CPU.
    """

    __slots__ = ("defer", "limit", "name", "number", "reclaimable", "stock", "usage")

    def __init__(
        self, machine: Machine, number: int, name: str, limit: int | None, usage: int
    ) -> None:
        self.number = number
        self.name = name
        self.limit = limit
        self.reclaimable = 0
        self.stock = 0
        self.defer = False
        self.usage = Cell(machine, f"memcg.{name}.usage", usage)

    @property
    def charged(self) -> int:
        """Pages of its folios, and whatever else was charged: the usage without the stock."""
        usage: int = self.usage.value
        return usage - self.stock

    def charge(
        self, pages: int, gfp: Gfp = Gfp.TRANSHUGE, relieve: Callable[[], None] | None = None
    ) -> bool:
        """Charge pages, reclaiming what can be if gfp allows; False where the limit is in the way.

        relieve: what else reclaim does, before it looks for pages.
        Divergence: no process is killed (see kills()); reclaim splits no partially mapped folios.
        Kernel: mm/memcontrol.c, mem_cgroup_charge(), try_charge_memcg().
        """
        if self._consume_stock(pages):
            return True
        if gfp is Gfp.TRANSHUGE_LIGHT:
            # Without __GFP_RECLAIM it may not spin, and then nothing is charged ahead either.
            return self._try_charge(pages)
        if self._charge_ahead(pages):
            return True
        if relieve is not None:
            relieve()
        self._reclaim(pages)
        if not self._fits(pages):
            self._drain_stock()
        return self._try_charge(pages)

    @staticmethod
    def kills(order: Order, gfp: Gfp) -> bool:
        """Whether the OOM killer is asked before such a charge fails, on behalf of khugepaged too.

        Kernel: mm/memcontrol.c, mem_cgroup_oom(); neither __GFP_NORETRY nor __GFP_RETRY_MAYFAIL is in
        GFP_TRANSHUGE.
        """
        return gfp is Gfp.TRANSHUGE and order <= PAGE_ALLOC_COSTLY_ORDER

    def uncharge(self, pages: int) -> None:
        """Uncharge past the stock. Kernel: mm/memcontrol.c, mem_cgroup_uncharge(),
        memcg_uncharge()."""
        self.usage.update(lambda usage: usage - pages)

    def _fits(self, pages: int) -> bool:
        return self.limit is None or self.usage.read() + pages <= self.limit

    def _try_charge(self, pages: int) -> bool:
        """Charge if the limit allows it. Kernel: mm/page_counter.c, page_counter_try_charge()."""
        usage = self.usage.update(lambda usage: usage + pages) + pages
        if self.limit is None or usage <= self.limit:
            return True
        self.uncharge(pages)
        return False

    def _charge_ahead(self, pages: int) -> bool:
        """Charge a whole batch if there is room, and put the rest in the stock, which was smaller
        than `pages` and so never gets too large. Kernel: mm/memcontrol.c, refill_stock()."""
        if pages < CHARGE_BATCH and self._try_charge(CHARGE_BATCH):
            self.stock += CHARGE_BATCH - pages
            return True
        return self._try_charge(pages)

    def _consume_stock(self, pages: int) -> bool:
        """Take pages from the stock, if it has them. Kernel: mm/memcontrol.c, consume_stock()."""
        if pages > self.stock:
            return False
        self.stock -= pages
        return True

    def _drain_stock(self) -> None:
        """Give the stock back. Kernel: mm/memcontrol.c, drain_stock()."""
        if self.stock:
            self.uncharge(self.stock)
            self.stock = 0

    def _reclaim(self, pages: int) -> None:
        """Reclaim what is missing. Kernel: mm/vmscan.c, try_to_free_mem_cgroup_pages()."""
        if self.limit is None or not self.reclaimable:
            return
        missing = self.usage.read() + pages - self.limit
        if 0 < missing <= self.reclaimable:
            self.reclaimable -= missing
            self.uncharge(missing)
