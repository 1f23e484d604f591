# SPDX-License-Identifier: GPL-2.0-or-later
"""Shrinkers give back what can be done without, when memory is short or drop_caches asks for it.

Kernel: mm/shrinker.c, mm/vmscan.c (drop_slab).
"""

from __future__ import annotations

from typing import Final

from mthp.mm.huge_memory_split import deferred_split_scan
from mthp.mm.list_lru import Sublist
from mthp.mm.mm_types import Kernel

SHRINK_BATCH: Final = 128
"""Objects that one call of a shrinker looks at. Kernel: mm/shrinker.c, SHRINK_BATCH."""
DEFAULT_SEEKS: Final = 2
"""Kernel: include/linux/shrinker.h, DEFAULT_SEEKS."""


def drop_slab(kernel: Kernel) -> None:
    """Let shrinkers look at all they have, again and again while that frees much, as a 2 written to
    drop_caches does.

    Divergence: of all shrinkers only that of huge pages is there, so that a folio which cannot be split
    may be tried less often.
    Kernel: mm/vmscan.c, drop_slab(), drop_slab_node(); fs/drop_caches.c.
    """
    shift = 0
    while True:
        nodes = range(len(kernel.mem.allocator.nodes))
        cgroups = range(len(kernel.memcgs) + 1)
        freed = sum(
            do_shrink_slab(kernel, Sublist(nid, memcg), 0) for nid in nodes for memcg in cgroups
        )
        if freed >> shift <= 1:
            return
        shift += 1


def do_shrink_slab(kernel: Kernel, of: Sublist, priority: int) -> int:
    """Let the shrinker of huge pages look at a part of one queue, the larger the lower the priority is
    in number; returns how many it split. What is too little for a call is kept for the next time.

    Kernel: mm/shrinker.c, do_shrink_slab().
    """
    lists = kernel.mem.deferred_split
    freeable = lists.count(of)
    if not freeable:
        return 0
    deferred = lists.nr_deferred.pop(of, 0)
    delta = (freeable >> priority) * 4 // DEFAULT_SEEKS
    total_scan = min((deferred >> priority) + delta, 2 * freeable)
    freed = scanned = 0
    while total_scan >= min(SHRINK_BATCH, freeable):
        nr_to_scan = min(SHRINK_BATCH, total_scan)
        split = deferred_split_scan(kernel, of, nr_to_scan)
        if split is None:
            break
        freed += split
        total_scan -= nr_to_scan
        scanned += nr_to_scan
    left = min(max(deferred + delta - scanned, 0), 2 * freeable)
    if left:
        lists.nr_deferred[of] = left
    return freed
