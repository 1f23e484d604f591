# SPDX-License-Identifier: GPL-2.0-or-later
"""For how much of what a plan needs a free block is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mthp.mm.page_alloc import NodeState
from mthp.plan.records import BulkVerdict


def has_blocks_for(plan: BulkVerdict, nodes: Iterable[NodeState]) -> int | None:
    """Bytes of a plan's new folios for which a block of their size is free, as captured, the largest first;
    for the others memory has to be compacted or come free. None where memory is without end."""
    free, found = Counter[int](), 0
    for node in nodes:
        if node.free_blocks is None:
            return None
        free.update(node.free_blocks)
    for order, wanted in sorted(plan.windows.items(), reverse=True):
        left = sum(nr << each for each, nr in free.items() if each >= order) - found
        found += min(wanted, left >> order) << order
    return found << plan.settings.geometry.page_shift
