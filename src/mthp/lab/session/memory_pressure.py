# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory pressure: a guest that has no free block of an order or above, and stays so.

A process of the agent's holds and locks one page of every block of that order that has free pages.
What is freed later then never makes a block of the order, and smaller blocks abound. Which frames are
free does not matter, only of which order.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Collection, Mapping
from errno import EBUSY
from typing import Any

from mthp.image.capture.host import zones
from mthp.image.page_types import TAKEN, page_types
from mthp.lab.geometry import PMD_ORDER, PMD_PAGES
from mthp.lab.program.program import BASE, Madv, size_folder
from mthp.lab.vm.channel import Channel, CommandFailed
from mthp.words.settings import Enabled

DRAIN = "w /proc/sys/vm/drop_caches 1"
"""Empties the LRU batches of every CPU, and there is no page cache to drop.
Kernel: fs/drop_caches.c, drop_caches_sysctl_handler() begins with lru_add_drain_all()."""
PATIENCE_MS = 30000
"""How long the agent waits for a thread of the kernel to sleep, in milliseconds."""
BALLAST = "/proc/sys/vm/nr_hugepages"
"""hugetlb pages hold what is too much, and are not cleared."""
REGIONS, REGION_PAGES = 6, 1024
"""How many regions of so many pages stay whole, for leave()."""
POOL = 12288 + REGIONS * REGION_PAGES
"""Free pages that are fragmented: far more than the high watermark and a program need."""
LEFT_FREE = 2048
"""Pages left free while the pool is taken page by page."""
LEAST_KB = 1024
"""min_free_kbytes meanwhile; any write to a switch raises it again.
Kernel: mm/khugepaged.c, set_recommended_min_free_kbytes()."""
FOLIOS_AT, TABLES, ROUNDS = 1 << 20, 256, 4
"""Where the process's large folios lie, in pages from BASE, how many tables it fills in one round at
most, and how many rounds it tries."""
SCRATCH_AT, SCRATCH = FOLIOS_AT - 1024, 512
"""Where it maps pages for a moment, and how many: far more than stay on a CPU's list."""
SWAPPINESS = "/proc/sys/vm/swappiness"


def switch_file(order: int) -> str:
    """The file in sysfs that enables a folio size."""
    return f"{size_folder(order)}/enabled"


def free_blocks_of(pagetypeinfo: str, kinds: Collection[str] = TAKEN) -> dict[int, int]:
    """Free blocks by order, for a movable allocation, from the text of /proc/pagetypeinfo. kinds: of these
    migratetypes alone.

    Zone DMA is kept for others by lowmem_reserve_ratio, and reserves have types of their own.
    """
    totals = Counter[int]()
    types = page_types(pagetypeinfo)
    for (_, kind), blocks in types.free.items() if types else ():
        if kind in kinds:
            totals += blocks
    return dict(totals)


class MemoryPressure:
    """The process that takes blocks. orders: those that have a switch of their own in this kernel."""

    def __init__(self, channel: Channel, orders: list[int]) -> None:
        self._channel = channel
        self._orders = orders
        self._rounds = 0
        self._active = False
        self._thinned = 0, 0
        self._left = False

    def end(self) -> None:
        """Give everything back."""
        if not self._active:
            return
        self._active = False
        for command in ("end pressure", f"w {BALLAST} 0", f"w {SWAPPINESS} 60"):
            with contextlib.suppress(CommandFailed):
                self._channel.ask(command)

    def begin(self, order: int) -> None:
        """Leave no free block of this order or above until end(), yet plenty of smaller ones.

        What is too much is held as folios of 2 MiB first; the rest is taken page by page, and all
        but one locked page of each block given back.
        """
        self._active = True
        self._channel.ask_all(["new pressure", f"pressure base {BASE}"])
        self._write(BALLAST, max(0, (self._free_pages() - POOL) // PMD_PAGES))
        self._write(SWAPPINESS, 0)
        self._write("/proc/sys/vm/min_free_kbytes", LEAST_KB)
        taken = self._free_pages() - LEFT_FREE
        self._channel.ask_all(
            [
                f"pressure mmap 0 {taken}",
                f"pressure adv 0 {taken} {int(Madv.NOHUGEPAGE)}",
                f"pressure mlock 0 {taken}",
                f"pressure thin 0 {taken} {order} {REGIONS}",
            ]
        )
        self._rounds = 0
        self._thinned = taken, order
        self._left = False
        self.renew(order)

    def leave(self, order: int, count: int) -> None:
        """Free so many blocks of an order, at most as many as begin() kept. What has become free since then
        is taken before the first."""
        taken, thinned = self._thinned
        if not self._left:
            self.renew(thinned)
            self._left = True
        before = self._pages_from(thinned)
        found = int(self._channel.ask(f"pressure leave 0 {taken} {order} {count}"))
        # What was freed waits in batches, and then on the CPU's list until so many others have been.
        through = f"{SCRATCH_AT} {SCRATCH}"
        self._channel.ask_all(
            [
                DRAIN,
                f"pressure mmap {through}",
                f"pressure adv {through} {int(Madv.NOHUGEPAGE)}",
                f"pressure wr {through}",
                f"pressure munmap {through}",
                DRAIN,
            ]
        )
        freed = self._pages_from(thinned) - before
        if freed < found << order:
            raise CommandFailed(
                "leave", EBUSY, f"{freed} pages came free in blocks, not {found << order}"
            )

    def _pages_from(self, order: int) -> int:
        """How many pages are free in blocks of the order or above."""
        return sum(n << each for each, n in self.free_blocks().items() if each >= order)

    def renew(self, order: int) -> None:
        """Take the blocks of the order and above that have become free since begin()."""
        for _ in range(ROUNDS):
            self._rounds += 1
            self._take_blocks(FOLIOS_AT + self._rounds * (TABLES + 1) * PMD_PAGES, TABLES, order)
            self._channel.ask(DRAIN)
            pid = int(self._channel.ask("pidof kswapd0"))
            self._channel.ask(f"wait /proc/{pid}/stat 2 S {PATIENCE_MS}")
            if not any(n for k, n in self.free_blocks().items() if k >= order):
                break

    def _take_blocks(self, at: int, tables: int, order: int) -> None:
        """Take as many free blocks as there are tables, the largest first, none below the order."""
        modes = self._modes()
        wanted = {k: Enabled.MADVISE if k >= order else Enabled.NEVER for k in modes}
        self._set_modes(wanted, PMD_ORDER)
        pages = tables * PMD_PAGES
        self._channel.ask_all(
            [
                f"pressure mmap {at} {pages}",
                f"pressure adv {at} {pages} {int(Madv.HUGEPAGE)}",
                f"pressure fill_tables {at} {tables}",
                f"pressure adv {at} {pages} {int(Madv.NOHUGEPAGE)}",
            ]
        )
        own = (k for k, mode in modes.items() if mode in (Enabled.ALWAYS, Enabled.MADVISE))
        self._set_modes(modes, max(own, default=PMD_ORDER))

    def _free_pages(self) -> int:
        return sum(count << order for order, count in self.free_blocks().items())

    def free_blocks(self, kinds: Collection[str] = TAKEN) -> dict[int, int]:
        """Free blocks by order that a movable allocation can get; of some migratetypes alone."""
        return free_blocks_of(self._channel.ask("r /proc/pagetypeinfo").decode(), kinds)

    def zones(self) -> list[dict[str, Any]]:
        """What /proc/zoneinfo says of the zones but the lowest."""
        found = zones(self._channel.ask("r /proc/zoneinfo").decode())
        return [zone for zone in found if zone["zone"] != "DMA"]

    def _modes(self) -> dict[int, Enabled]:
        """The position of each size's switch."""
        answers = self._channel.ask_all([f"r {switch_file(k)}" for k in self._orders])
        chosen = (re.search(r"\[(\w+)\]", text.decode()) for text in answers)
        pairs = zip(self._orders, chosen, strict=True)
        return {k: Enabled(found[1]) for k, found in pairs if found}

    def _set_modes(self, modes: Mapping[int, Enabled], last: int) -> None:
        """Write the switches so that khugepaged's thread stays alive: the switch of order `last`
        comes first where it is turned on, and last where it is turned off."""
        if not modes:
            return
        first = [last] if modes[last] is not Enabled.NEVER else []
        order = [*first, *(k for k in modes if k != last), *([] if first else [last])]
        self._channel.ask_all([f"w {switch_file(k)} {modes[k]}" for k in order])

    def _write(self, path: str, value: int) -> None:
        self._channel.ask(f"w {path} {value}")
