# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest short of large free blocks, and sure to stay so: the eater.

A process holds and locks one page of every block of an order that has free pages. What is freed
later, by whomever, then never makes a block of that order, and what is smaller abounds: which frames
are free does not matter, only of which order.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping

from mthp.lab.program.program import BASE, SYSFS
from mthp.lab.vm.channel import Channel, CommandFailed

__all__ = ["DRAIN", "ORDERS", "THP", "MemoryPressure", "free_blocks_of", "size_kb", "switch"]

THP = SYSFS
ORDERS = range(2, 10)
DRAIN = "parked adv 1 1 20"
"""Empties this CPU's LRU batches. Kernel: mm/madvise.c, madvise_cold() drains them first."""
PATIENCE_MS = 30000
PMD_PAGES = 512
BALLAST = "/proc/sys/vm/nr_hugepages"
"""hugetlb: holds what is too much, and does not clear it."""
POOL = 12288
"""Pages that are fragmented: far more than the high watermark and a program need."""
UNEATEN = 2048
"""Pages left while that is done."""
LEAST_KB = 1024
"""min_free_kbytes while that is done; any write to a switch raises it again.
Kernel: mm/khugepaged.c, set_recommended_min_free_kbytes()."""
MEALS_AT, MEAL, MEALS = 1 << 20, 256, 4
"""Where, in pages from BASE, the eater's large folios lie, how many it takes at a time at most, and
how often it tries."""
SWAPPINESS = "/proc/sys/vm/swappiness"

_FREE = re.compile(
    r"Node +\d+, zone +(?!DMA,)\w+, type +(?:Unmovable|Movable|Reclaimable)((?: +>?\d+)+) *"
)
"""A line of pagetypeinfo with free blocks by order."""


def size_kb(order: int) -> int:
    """A size's number in sysfs, KiB of 4 KiB pages."""
    return 4 << order


def switch(order: int) -> str:
    """The file that enables a size."""
    return f"{THP}/hugepages-{size_kb(order)}kB/enabled"


def free_blocks_of(pagetypeinfo: str) -> dict[str, int]:
    """Free blocks by order, for a movable allocation, from the text of /proc/pagetypeinfo.

    Zone DMA is kept for others by lowmem_reserve_ratio, and reserves have types of their own.
    """
    totals: dict[str, int] = {}
    for line in pagetypeinfo.splitlines():
        found = _FREE.fullmatch(line)
        for order, count in enumerate(found[1].split() if found else ()):
            totals[str(order)] = totals.get(str(order), 0) + int(count.lstrip(">"))
    return totals


class MemoryPressure:
    """The process that eats. orders: those that have a switch of their own in this kernel."""

    def __init__(self, channel: Channel, orders: list[int]) -> None:
        self._channel = channel
        self._orders = orders
        self._meals = 0
        self._eats = False

    def end(self) -> None:
        """Everything is given back."""
        if not self._eats:
            return
        self._eats = False
        for command in ("end eater", f"w {BALLAST} 0", f"w {SWAPPINESS} 60"):
            with contextlib.suppress(CommandFailed):
                self._channel.ask(command)

    def eat(self, order: int) -> None:
        """Leave no free block of this order or above for as long as the eater lives, yet plenty of
        smaller ones: each block of the order that has free pages has one that is held and locked.

        What is too much is held as folios of 2 MiB first; the rest is taken page by page, and all
        but one page of each block given back.
        """
        self._eats = True
        self._channel.ask_all(["new eater", f"eater base {BASE}"])
        self._write(BALLAST, str(max(0, (self.free_pages() - POOL) // PMD_PAGES)))
        self._write(SWAPPINESS, "0")
        self._write("/proc/sys/vm/min_free_kbytes", str(LEAST_KB))
        taken = self.free_pages() - UNEATEN
        self._channel.ask_all(
            [
                f"eater mmap 0 {taken}",
                f"eater adv 0 {taken} 15",
                f"eater mlock 0 {taken}",
                f"eater thin 0 {taken} {order}",
            ]
        )
        self._meals = 0
        self.starve(order)

    def starve(self, order: int) -> None:
        """Take what blocks of the order and above there are, outside the eaten ones."""
        for _ in range(MEALS):
            self._meals += 1
            self._gorge(MEALS_AT + self._meals * (MEAL + 1) * PMD_PAGES, MEAL, order)
            self._channel.ask(DRAIN)
            pid = int(self._channel.ask("pidof kswapd0"))
            self._channel.ask(f"wait /proc/{pid}/stat 2 S {PATIENCE_MS}")
            if not any(n for k, n in self.free_blocks().items() if int(k) >= order):
                break

    def _gorge(self, at: int, windows: int, order: int) -> None:
        """The eater takes so many free blocks, the largest first, none below the order."""
        modes = self._modes()
        wanted = {k: "madvise" if k >= order else "never" for k in modes}
        self._set_modes(wanted, ORDERS[-1])
        pages = windows * PMD_PAGES
        self._channel.ask_all(
            [
                f"eater mmap {at} {pages}",
                f"eater adv {at} {pages} 14",
                f"eater gorge {at} {windows}",
                f"eater adv {at} {pages} 15",
            ]
        )
        own = (k for k, mode in modes.items() if mode in ("always", "madvise"))
        self._set_modes(modes, max(own, default=ORDERS[-1]))

    def free_pages(self) -> int:
        """The pages of free_blocks()."""
        return sum(count << int(order) for order, count in self.free_blocks().items())

    def free_blocks(self) -> dict[str, int]:
        """Free blocks by order that a movable allocation can get."""
        return free_blocks_of(self._channel.ask("r /proc/pagetypeinfo").decode())

    def _modes(self) -> dict[int, str]:
        """What each size's switch stands at."""
        answers = self._channel.ask_all([f"r {switch(k)}" for k in self._orders])
        chosen = (re.search(r"\[(\w+)\]", text.decode()) for text in answers)
        return {k: found[1] for k, found in zip(self._orders, chosen, strict=True) if found}

    def _set_modes(self, modes: Mapping[int, str], last: int) -> None:
        if not modes:
            return
        first = [last] if modes[last] != "never" else []
        order = [*first, *(k for k in modes if k != last), *([] if first else [last])]
        self._channel.ask_all([f"w {switch(k)} {modes[k]}" for k in order])

    def _write(self, path: str, value: str) -> None:
        self._channel.ask(f"w {path} {value}")
