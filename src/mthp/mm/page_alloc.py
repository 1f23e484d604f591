# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical frames: a buddy allocator per node, with a free-list state that can be set.

Kernel: mm/page_alloc.c (__alloc_pages, rmqueue, __free_one_page), mm/compaction.c (compact_zone).

Divergence: a node's zones are one, whose reserve is the sum of their minimum watermarks and of what each
keeps for others; there are the lists of one CPU, and of those only that of the PMD order is refilled by two
and may be full. All blocks are of one migratetype. Reclaim and compaction are one question: with them
allowed, a block exists if enough free frames do, because everything in the way is taken to be movable.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import add, lshift
from typing import Protocol

from mthp.words.units import Order

MAX_PAGE_ORDER = 10
"""Kernel: MAX_PAGE_ORDER on x86-64; larger where one PMD is."""
PAGE_ALLOC_COSTLY_ORDER = 3
"""The highest order for which the kernel rather kills than fails; blocks up to it, and of the PMD
order, are freed to per-CPU lists. Kernel: include/linux/mmzone.h."""


@dataclass(frozen=True)
class NodeState:
    """What a node has free. free_blocks: order -> blocks, or None for as much as is asked for.

    reserve: frames that are never handed out (the kernel's watermark). largest: freed blocks never
    merge beyond this order, because something that stays lies in every larger one, but for those that
    were free. reclaimable: frames of free_blocks that are there only if reclaim may bring them. pcp_high:
    frames from which on a freed block of PMD order does not stay on the per-CPU list; None: it does.
    """

    free_blocks: Mapping[Order, int] | None = None
    reserve: int = 0
    largest: int = 63
    reclaimable: int = 0
    pcp_high: int | None = None


class NewFrames(Protocol):
    """What makes fresh, naturally aligned frames in the mem_map; returns the first."""

    def __call__(self, nid: int, order: Order, nr: int = 1) -> int:
        """As MemMap.new_frames()."""


class Node:
    """The free lists of one NUMA node.

    blocks[order]: first frames of free blocks. unborn[order]: free blocks that were never handed
    out; their frames are made when they are taken, so a large empty node costs nothing. pcp: order
    -> freed blocks on the per-CPU list: they do not merge until it is drained. made: frames that an
    endless node made because no block was free. whole: first frame -> order of blocks above `largest`
    that were handed out, within which freed ones merge.
    """

    __slots__ = (
        "blocks", "endless", "largest", "made", "max_order", "new_frames", "nid", "pcp", "pcp_high",
        "pmd_order", "reclaimable", "reserve", "unborn", "whole",
    )  # fmt: skip

    def __init__(self, nid: int, state: NodeState, pmd_order: int, new_frames: NewFrames) -> None:
        max_order = max(MAX_PAGE_ORDER, pmd_order)
        self.nid = nid
        self.max_order = max_order
        self.largest = min(max_order, state.largest)
        self.reserve = state.reserve
        self.reclaimable = state.reclaimable
        self.pcp_high = state.pcp_high
        self.pmd_order = pmd_order
        self.whole: dict[int, Order] = {}
        self.new_frames = new_frames
        self.endless = state.free_blocks is None
        self.made = 0
        self.blocks: list[dict[int, None]] = [{} for _ in range(max_order + 1)]
        pcp_orders = {*range(PAGE_ALLOC_COSTLY_ORDER + 1), pmd_order}
        self.pcp: dict[Order, array[int]] = {order: array("i") for order in pcp_orders}
        self.unborn = [(state.free_blocks or {}).get(order, 0) for order in range(max_order + 1)]

    def free_frames(self) -> int:
        """Frames on the free lists and the per-CPU lists."""
        per_cpu = sum(len(blocks) << order for order, blocks in self.pcp.items())
        return per_cpu + self.on_lists()

    def on_lists(self) -> int:
        """Frames on the free lists. Kernel: NR_FREE_PAGES."""
        on_lists = map(add, map(len, self.blocks), self.unborn)
        buddy: int = sum(map(lshift, on_lists, range(self.max_order + 1)))
        return buddy

    def watermark_ok(self, order: Order) -> bool:
        """Whether a block may be taken without reclaim: enough stays, and the free lists have one, whatever
        the per-CPU list has. Kernel: __zone_watermark_ok()."""
        if self.on_lists() - (1 << order) < self.reserve + self.reclaimable:
            return False
        return any(
            self.blocks[have] or self.unborn[have] for have in range(order, self.max_order + 1)
        )

    def take(self, order: Order) -> int | None:
        """Take a block from the per-CPU list, else split the smallest that holds `order`; None if
        none does. The list of the PMD order gets one more then. Kernel: rmqueue(), nr_pcp_alloc()."""
        if self.pcp.get(order):
            return self.pcp[order].pop()
        pfn = self._split(order)
        holds = (
            self.pcp_high is None or self.pcp_high > 1 << order
        )  # else the next page freed drives it out
        if order == self.pmd_order and holds and not self.endless and pfn is not None:
            more = self._split(order)
            if more is not None:
                self.pcp[order].append(more)
        return pfn

    def _split(self, order: Order) -> int | None:
        """Take a block from the free lists. Kernel: __rmqueue_smallest()."""
        for have in range(order, self.max_order + 1):
            if self.blocks[have]:
                pfn, _ = self.blocks[have].popitem()
            elif self.unborn[have]:
                self.unborn[have] -= 1
                pfn = self.new_frames(self.nid, have)
                if have > self.largest:
                    self.whole[pfn] = have
            else:
                continue
            while have > order:
                have -= 1
                self.blocks[have][pfn + (1 << have)] = None
            return pfn
        if not self.endless:
            return None
        self.made += 1 << order
        return self.new_frames(self.nid, order)

    def give(self, pfn: int, order: Order) -> None:
        """Free a block, to the per-CPU list if there is one. Kernel: __free_frozen_pages()."""
        if order not in self.pcp:
            self.merge(pfn, order)
            return
        blocks = self.pcp[order]
        blocks.append(pfn)
        high = self.pcp_high if order == self.pmd_order else None
        if high is not None and len(blocks) << order >= high:
            self.merge(blocks.pop(0), order)

    def take_block_of(self, page: int) -> tuple[int, Order] | None:
        """Take out the free block of a page: its first frame and order. None: it is in use."""
        for order, blocks in enumerate(self.blocks):
            first = page & -(1 << order)
            if first in blocks:
                del blocks[first]
                return first, order
        for order, freed in self.pcp.items():
            for first in freed:
                if first <= page < first + (1 << order):
                    freed.remove(first)
                    return first, order
        return None

    def drain(self) -> None:
        """Empty the per-CPU lists. Kernel: drain_all_pages()."""
        for order, blocks in self.pcp.items():
            while blocks:
                self.merge(blocks.pop(), order)

    def merge(self, pfn: int, order: Order) -> None:
        """Free a block and merge it with free buddies. Kernel: __free_one_page()."""
        blocks = self.blocks
        while order < self.max_order:
            size = 1 << order
            buddy = pfn ^ size
            if buddy not in blocks[order]:
                break
            if order >= self.largest and not self._was_whole(pfn, order + 1):
                break
            del blocks[order][buddy]
            pfn &= ~size
            order += 1
        blocks[order][pfn] = None

    def _was_whole(self, pfn: int, order: Order) -> bool:
        """Whether the block of that order around a frame lies in one that was free."""
        orders = range(order, self.max_order + 1)
        return any(self.whole.get(pfn & -(1 << have)) == have for have in orders)

    def compact(self, order: Order) -> int | None:
        """Drain, then gather smaller free blocks into one. Kernel: compact_zone()."""
        self.drain()
        pfn = self.take(order)
        wanted = 1 << order
        if pfn is not None or order == 0:
            return pfn
        if self.free_frames() < wanted:
            return None
        while wanted > 0:
            have = max(o for o in range(order) if self.blocks[o] or self.unborn[o])
            have = min(have, wanted.bit_length() - 1)
            wanted -= self._use_up(have, wanted >> have) << have
        return self.new_frames(self.nid, order)

    def _use_up(self, order: Order, nr: int) -> int:
        """Take up to nr blocks of one order, one at least, for frames that stand elsewhere; how many."""
        blocks = self.blocks[order]
        if blocks:
            nr = min(nr, len(blocks))
            for _ in range(nr):
                blocks.popitem()
        elif self.unborn[order]:
            nr = min(nr, self.unborn[order])
            self.unborn[order] -= nr
            self.new_frames(self.nid, order, nr)
        else:
            self.take(order)
            nr = 1
        return nr


class Allocator:
    """The allocator of all nodes."""

    def __init__(
        self,
        states: Sequence[NodeState],
        new_frames: NewFrames,
        node_of: Callable[[int], int],
        pmd_order: int,
    ) -> None:
        self.node_of = node_of
        self.nodes = [Node(nid, state, pmd_order, new_frames) for nid, state in enumerate(states)]

    def frames_out(self) -> int:
        """Frames handed out and not given back, but for a number that stays the same: two calls tell by
        how much the frames in use changed. Not a step.
        """
        return sum(node.made - node.free_frames() for node in self.nodes)

    def alloc(
        self, order: Order, nid: int, allowed: frozenset[int], direct_compact: bool
    ) -> int | None:
        """Hand out a block of 2**order, from nid first; returns its first frame, or None.

        allowed: nodes to fall back to; empty means every node. direct_compact: reclaim and
        compaction may make the block (GFP_TRANSHUGE); without it a block must be there. No node is
        compacted while another allowed one has a block. Kernel: mm/page_alloc.c, __alloc_pages().
        """
        fallback = [n for n in self.nodes if not allowed or n.nid in allowed or n.nid == nid]
        if len(fallback) > 1:
            fallback.sort(key=lambda node: node.nid != nid)
        enough = []
        for node in fallback:
            if node.endless or node.watermark_ok(order):
                pfn = node.take(order)
                if pfn is not None:
                    return pfn
            if node.endless or node.free_frames() - (1 << order) >= node.reserve:
                enough.append(node)
        for node in enough if direct_compact else ():
            pfn = node.compact(order)
            if pfn is not None:
                return pfn
        return None

    def free(self, pfn: int, order: Order) -> None:
        """Give a block back to its node. Kernel: free_frozen_pages()."""
        self.nodes[self.node_of(pfn)].give(pfn, order)
