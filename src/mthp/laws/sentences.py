# SPDX-License-Identifier: GPL-2.0-or-later
"""The laws, one sentence each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

LAWS: Mapping[int, str] = MappingProxyType(
    {
        1: "nobody uses a page, table, lock, VMA, anon_vma or mm that was freed",
        2: "before the copy, no CPU and no secondary MMU can still write a source, and a TLB never "
        "holds small and huge entries of one address, nor a right that was taken",
        3: "a load sees the last store, and an exclusively pinned page stays the mapped page",
        4: "mapcounts are the mappings that exist, and no migration entry outlives its migration",
        5: "reference counts are explained by mappings, swap cache, batches and pins, and counters "
        "move as what they count",
        6: "a table is linked, deposited, detached by one task, or being freed; never two of them",
        7: "a PMD that is not none is never overwritten, and nothing is mapped twice",
        8: "userfaultfd and soft-dirty marks survive",
        9: "locks, RCU and PTE maps balance, nobody waits for ever, and what a lock guards is not "
        "changed without it",
        10: "what was learnt under a lock is not used after the lock was let go",
        11: "a collapse that gives up leaves everything as it was",
        12: "a completed zap stays zapped",
        13: "khugepaged touches only mms and mappings that are fully built and alive",
    }
)
