# SPDX-License-Identifier: GPL-2.0-or-later
"""Counters: by order for sizes that sysfs has, and by name."""

from __future__ import annotations

from mthp.mm.vmstat import VmStat


def test_sizes_that_are_no_mthp_are_not_counted() -> None:
    stat = VmStat()
    for order in range(5):
        stat.count_mthp_stat(order, "nr_anon", 3)
        stat.count_mthp_stat(order, "nr_anon", -1)
        stat.count_mthp_stat(order, "split")
    assert stat.mthp == {
        (order, name): n for order in (2, 3, 4) for name, n in (("nr_anon", 2), ("split", 1))
    }


def test_events_are_counted_by_name() -> None:
    stat = VmStat()
    stat.count_vm_event("thp_fault_alloc")
    stat.count_vm_event("thp_fault_alloc", 2)
    stat.count_vm_event("thp_split_pmd")
    assert stat.events == {"thp_fault_alloc": 3, "thp_split_pmd": 1}
