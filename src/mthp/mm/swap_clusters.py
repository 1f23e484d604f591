# SPDX-License-Identifier: GPL-2.0-or-later
"""Which slots of a swap area are given out next: clusters, one size of folio each. Kernel: mm/swapfile.c."""

from __future__ import annotations

from typing import Final

from mthp.words.units import Order

SWAPFILE_CLUSTER: Final = 512
"""Slots of a cluster. Kernel: mm/swap_table.h, SWAPFILE_CLUSTER."""

Clusters = dict[int, None]
"""Numbers of clusters, in an order: a list of the kernel."""


class SwapClusters:
    """The slots of one area on a solid-state device, and one CPU that takes of them.

    The first slot is the area's header. used: cluster -> which of its slots are taken. order: of what a
    cluster holds. on: the list that a cluster is on; None of one that is being searched. next: order ->
    where the CPU goes on. Kernel: struct swap_info_struct, struct swap_cluster_info, struct
    percpu_swap_cluster.
    """

    def __init__(self, slots: int, pmd_order: Order) -> None:
        nr = slots // SWAPFILE_CLUSTER
        self.pmd_order = pmd_order
        self.used = [bytearray(SWAPFILE_CLUSTER) for _ in range(nr)]
        self.count = [0] * nr
        self.order = [0] * nr
        self.free: Clusters = dict.fromkeys(range(1, nr))
        self.nonfull: list[Clusters] = [{} for _ in range(pmd_order + 1)]
        self.frag: list[Clusters] = [{} for _ in range(pmd_order + 1)]
        self.full: Clusters = {}
        self.on: list[Clusters | None] = [self.free] * nr
        self.next: dict[Order, int] = {}
        if nr:
            self.used[0][0] = self.count[0] = 1
            self.on[0] = None
            self._move(0, self.nonfull[0])

    def alloc(self, order: Order) -> int | None:
        """Take aligned slots for a folio of an order, and return the first; None where there are none.

        Kernel: mm/swapfile.c, swap_alloc_fast(), cluster_alloc_swap_entry().
        """
        offset = self.next.get(order)
        if offset is not None and self._is_usable(offset // SWAPFILE_CLUSTER, order):
            found = self._scan_cluster(*divmod(offset, SWAPFILE_CLUSTER), order)
            if found is not None:
                return found
        lists = [(self.free, False)]
        if order < self.pmd_order:
            lists = [(self.nonfull[order], True), *lists, (self.frag[order], False)]
        if not order:
            for other in range(1, self.pmd_order + 1):
                lists += [(self.frag[other], True), (self.nonfull[other], True)]
        for clusters, scan_all in lists:
            found = self._scan_list(clusters, order, scan_all=scan_all)
            if found is not None:
                return found
        return None

    def _scan_list(self, clusters: Clusters, order: Order, *, scan_all: bool) -> int | None:
        """Kernel: mm/swapfile.c, alloc_swap_scan_list(), isolate_lock_cluster()."""
        found = None
        for number in list(clusters)[: None if scan_all else 1]:
            del clusters[number]
            self.on[number] = None
            found = self._scan_cluster(number, 0, order)
            if found is not None:
                break
        return found

    def _is_usable(self, number: int, order: Order) -> bool:
        """Kernel: mm/swapfile.c, cluster_is_usable(); a free cluster has no table."""
        if self.on[number] is self.full or self.on[number] is self.free:
            return False
        return not order or self.order[number] == order

    def _scan_cluster(self, number: int, start: int, order: Order) -> int | None:
        """Kernel: mm/swapfile.c, alloc_swap_scan_cluster()."""
        nr, used = 1 << order, self.used[number]
        found = None
        self.next.pop(order, None)
        if self.count[number] + nr <= SWAPFILE_CLUSTER:
            for at in range(start, SWAPFILE_CLUSTER - nr + 1, nr):
                if not any(used[at : at + nr]):
                    found = number * SWAPFILE_CLUSTER + at
                    break
        if found is not None:
            if not self.count[number]:
                self.order[number] = order
            at = found % SWAPFILE_CLUSTER
            used[at : at + nr] = b"\1" * nr
            self.count[number] += nr
            if self.count[number] < SWAPFILE_CLUSTER and at + 2 * nr <= SWAPFILE_CLUSTER:
                self.next[order] = found + nr
        self._relocate_cluster(number)
        return found

    def _relocate_cluster(self, number: int) -> None:
        """Kernel: mm/swapfile.c, relocate_cluster()."""
        count = self.count[number]
        if not count:
            self._move(number, self.free)
        elif count < SWAPFILE_CLUSTER:
            self._move(number, self.frag[self.order[number]])
        else:
            self._move(number, self.full)

    def _move(self, number: int, clusters: Clusters) -> None:
        """Put a cluster at the end of a list, if it is not on it. Kernel: move_cluster()."""
        on = self.on[number]
        if on is not clusters:
            if on is not None:
                del on[number]
            clusters[number] = None
            self.on[number] = clusters

    def put(self, entry: int) -> None:
        """Give a slot back. Kernel: mm/swapfile.c, __swap_cluster_free_entries()."""
        number, at = divmod(entry, SWAPFILE_CLUSTER)
        self.used[number][at] = 0
        self.count[number] -= 1
        if self.count[number]:
            self._move(number, self.nonfull[self.order[number]])
        else:
            self._move(number, self.free)
            self.order[number] = 0
