# SPDX-License-Identifier: GPL-2.0-or-later
"""Counters under the names that sysfs and /proc/vmstat give them.

Kernel: mm/huge_memory.c (hugepages-<size>kB/stats), mm/vmstat.c (vmstat_text).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from mthp.words.units import Order


@dataclass(slots=True)
class VmStat:
    """The counters. mthp: (order, name) as in hugepages-*kB/stats; events: name as in /proc/vmstat.

    Gauges (nr_anon, nr_anon_partially_mapped) count from zero at the world's start, so they may
    be negative: they are changes.
    """

    COMMUTES: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("mthp", "events"), "counts are added to, and read when no task works"
    )
    mthp: Counter[tuple[int, str]] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)

    def count_mthp_stat(self, order: Order, name: str, amount: int = 1) -> None:
        """Count, but not of orders 0 and 1. Kernel: include/linux/huge_mm.h, mod_mthp_stat()."""
        if order > 1:
            self.mthp[order, name] += amount

    def count_vm_event(self, name: str, amount: int = 1) -> None:
        """Count an event. Kernel: include/linux/vmstat.h, count_vm_events()."""
        self.events[name] += amount
