# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical frames: a buddy allocator per node, with a free-list state that can be set.

Kernel: mm/page_alloc.c (__alloc_pages, rmqueue, __free_one_page), mm/compaction.c.

Divergence: no zones, no per-CPU lists, no watermarks but one reserve. Reclaim and compaction are one
question: with them allowed, a block exists if enough free frames do, because everything in the way
is taken to be movable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MAX_PAGE_ORDER = 10
"""Kernel: MAX_PAGE_ORDER on x86-64; larger where one PMD is."""


@dataclass(frozen=True)
class NodeState:
    """What a node has free. free_blocks: order -> blocks, or None for as much as is asked for.

    reserve: frames that are never handed out (the kernel's watermark).
    """

    free_blocks: Mapping[int, int] | None = None
    reserve: int = 0


class Node:
    """The free lists of one NUMA node.

    blocks[order]: first frames of free blocks. unborn[order]: free blocks that nobody has had yet;
    their frames are made when they are taken, so a large empty node costs nothing.
    """

    __slots__ = ("blocks", "endless", "max_order", "new_frames", "nid", "reserve", "unborn")

    def __init__(
        self, nid: int, state: NodeState, max_order: int, new_frames: Callable[[int, int], int]
    ) -> None:
        self.nid = nid
        self.max_order = max_order
        self.reserve = state.reserve
        self.new_frames = new_frames
        self.endless = state.free_blocks is None
        self.blocks: list[dict[int, None]] = [{} for _ in range(max_order + 1)]
        self.unborn = [(state.free_blocks or {}).get(order, 0) for order in range(max_order + 1)]

    def free_frames(self) -> int:
        """Frames on the free lists."""
        return sum(
            (len(blocks) + unborn) << order
            for order, (blocks, unborn) in enumerate(zip(self.blocks, self.unborn, strict=True))
        )

    def take(self, order: int) -> int | None:
        """Split the smallest block that holds `order`; None if no block does. Kernel: rmqueue()."""
        for have in range(order, self.max_order + 1):
            if self.blocks[have]:
                pfn, _ = self.blocks[have].popitem()
                while have > order:
                    have -= 1
                    self.blocks[have][pfn + (1 << have)] = None
                return pfn
            if self.unborn[have]:
                self.unborn[have] -= 1
                for half in range(order, have):
                    self.unborn[half] += 1
                return self.new_frames(self.nid, order)
        return self.new_frames(self.nid, order) if self.endless else None

    def give(self, pfn: int, order: int) -> None:
        """Free a block and merge it with free buddies. Kernel: __free_one_page()."""
        blocks = self.blocks
        while order < self.max_order:
            size = 1 << order
            buddy = pfn ^ size
            if buddy not in blocks[order]:
                break
            del blocks[order][buddy]
            pfn &= ~size
            order += 1
        blocks[order][pfn] = None

    def give_small(self, pfns: Sequence[int]) -> None:
        """The fast twin of give() for single frames in turn."""
        singles, pairs = self.blocks[0], self.blocks[1]
        for pfn in pfns:
            if pfn ^ 1 not in singles:
                singles[pfn] = None
                continue
            del singles[pfn ^ 1]
            pair = pfn & ~1
            if pair ^ 2 in pairs:
                self.give(pair, 1)
            else:
                pairs[pair] = None

    def compact(self, order: int) -> int | None:
        """Gather smaller free blocks into one. Kernel: mm/compaction.c, compact_zone()."""
        wanted = 1 << order
        if self.free_frames() < wanted:
            return None
        while wanted > 0:
            have = max(o for o in range(order) if self.blocks[o] or self.unborn[o])
            have = min(have, wanted.bit_length() - 1)
            self.take(have)
            wanted -= 1 << have
        return self.new_frames(self.nid, order)


class Allocator:
    """All nodes. `new_frames(nid, order)` makes fresh, naturally aligned frames in the mem_map."""

    def __init__(
        self,
        states: Sequence[NodeState],
        new_frames: Callable[[int, int], int],
        node_of: Callable[[int], int],
        pmd_order: int,
    ) -> None:
        max_order = max(MAX_PAGE_ORDER, pmd_order)
        self.node_of = node_of
        self.nodes = [Node(nid, state, max_order, new_frames) for nid, state in enumerate(states)]

    def alloc(
        self, order: int, nid: int, allowed: frozenset[int], direct_compact: bool
    ) -> int | None:
        """First frame of a block of 2**order, from nid first, or None.

        allowed: nodes to fall back to; empty means every node. direct_compact: reclaim and
        compaction may make the block (GFP_TRANSHUGE); without it a block must be there.
        Kernel: mm/page_alloc.c, __alloc_pages().
        """
        fallback = [n for n in self.nodes if not allowed or n.nid in allowed or n.nid == nid]
        if len(fallback) > 1:
            fallback.sort(key=lambda node: node.nid != nid)
        for node in fallback:
            if not node.endless and node.free_frames() - (1 << order) < node.reserve:
                continue
            pfn = node.take(order)
            if pfn is None and direct_compact and order > 0:
                pfn = node.compact(order)
            if pfn is not None:
                return pfn
        return None

    def free(self, pfn: int, order: int) -> None:
        """Give a block back to its node. Kernel: free_frozen_pages()."""
        self.nodes[self.node_of(pfn)].give(pfn, order)

    def free_small(self, pfns: Sequence[int]) -> None:
        """Give single frames back in turn."""
        if len(self.nodes) == 1:
            self.nodes[0].give_small(pfns)
            return
        for pfn in pfns:
            self.free(pfn, 0)
