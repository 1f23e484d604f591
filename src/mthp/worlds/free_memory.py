# SPDX-License-Identifier: GPL-2.0-or-later
"""What a capture says of free memory: each node's blocks, what is kept of it, and what reclaim may bring."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mthp.image.page_types import page_types
from mthp.image.snapshot import Snapshot
from mthp.mm.page_alloc import MAX_PAGE_ORDER, NodeState
from mthp.words.units import human_bytes

_SLACK = 16 << 20
"""Bytes by which buddyinfo and MemFree may differ because they were read one after the other."""


def bytes_free(snapshot: Snapshot) -> int | None:
    """How much memory was free, or is as the user asked; None where the capture does not say."""
    if snapshot.free_memory is not None:
        return snapshot.free_memory
    free: int | None = (snapshot.meta.get("meminfo") or {}).get("MemFree")
    return free


def free_memory(snapshot: Snapshot) -> tuple[tuple[NodeState, ...], str]:
    """What each node has free, and a sentence that says so.

    Where MemFree is more than buddyinfo shows, nobody says how the rest lies. Reclaimable memory is
    added as single frames.
    """
    geometry = snapshot.geometry
    shift, largest = geometry.page_shift, max(MAX_PAGE_ORDER, geometry.pmd_order)
    nodes = free_blocks(snapshot.meta.get("buddyinfo"))
    meminfo: Mapping[str, Any] = snapshot.meta.get("meminfo") or {}
    memfree, spare = int(meminfo.get("MemFree") or 0), 0
    shown = sum(n << order for node in nodes.values() for order, n in node.items()) << shift
    unplaced = 0
    if snapshot.free_memory is not None:
        unplaced, nodes = snapshot.free_memory, {nid: Counter() for nid in nodes}
        said = f"{human_bytes(unplaced)} of memory are free, as asked (--free-memory)"
    elif not shown and not memfree:
        said = "as much memory is free as is asked for: the capture does not say (--free-memory)"
        return (NodeState(),), said
    else:
        spare = max(0, int(meminfo.get("MemAvailable") or 0) - memfree)
        said = f"{human_bytes(shown)} of memory are free, as buddyinfo says"
        if memfree > shown + shown // 8 + _SLACK:
            unplaced = memfree - shown
            block = human_bytes(1 << largest + shift)
            said = (
                f"{human_bytes(memfree)} of memory are free, as MemFree says; buddyinfo shows "
                f"{human_bytes(shown) if shown else 'none'} of it: the rest is taken to lie in blocks "
                f"of {block}"
            )
        elif 0 < memfree < shown - shown // 8 - _SLACK:
            said += f" (MemFree is {human_bytes(memfree)}, a container's perhaps)"
        said += f"; {human_bytes(spare)} more can be reclaimed (--free-memory sets both)"
    if snapshot.free_memory is None and (kept := _take_kept(snapshot, nodes)):
        said += (
            f"; of the free memory {human_bytes(kept << shift)} are kept for atomic allocations or isolated, "
            "and do not count (pagetypeinfo)"
        )
    spare = (spare >> shift) // len(nodes)
    for node in nodes.values():
        pages = (unplaced >> shift) // len(nodes)
        node[largest] += pages >> largest
        node.update({order: 1 for order in range(largest) if pages >> order & 1})
        node[0] += spare
    reserves: Counter[int] = Counter()
    highs: dict[int, int] = {}
    for zone in snapshot.meta.get("zones") or () if snapshot.free_memory is None else ():
        nid = zone["node"]
        if zone["zone"] != _LOWEST:
            reserves[nid] += zone["min"] + zone["kept"]
            highs[nid] = max(highs.get(nid, 0), zone["pcp_high"])
    states = (
        NodeState(nodes.get(nid, {}), reserves[nid], reclaimable=spare, pcp_high=highs.get(nid))
        for nid in range(max(nodes) + 1)
    )
    return tuple(states), said


def _take_kept(snapshot: Snapshot, nodes: Mapping[int, Counter[int]]) -> int:
    """Take off what no movable allocation is given; returns how many pages that is."""
    types = page_types(snapshot.meta.get("pagetypeinfo"))
    kept = 0
    if types is not None:
        for nid, node in nodes.items():
            for order, nr in types.kept(nid).items():
                less = min(nr, node[order])
                node[order] -= less
                kept += less << order
    return kept


def free_blocks(buddyinfo: object) -> dict[int, Counter[int]]:
    """The free blocks of each order that /proc/buddyinfo shows, by node; one node where it shows none.

    The lowest zone is kept for devices. Kernel: mm/page_alloc.c, lowmem_reserve.
    """
    nodes: dict[int, Counter[int]] = {}
    for match in re.finditer(r"Node\s+(\d{1,9}), zone\s+(\S+)((?:\s+\d{1,18}\b)+)", str(buddyinfo)):
        counts = enumerate(map(int, match[3].split()))
        low = match[2] == _LOWEST
        nodes.setdefault(int(match[1]), Counter()).update({} if low else dict(counts))
    return nodes or {0: Counter()}


_LOWEST = "DMA"
"""A zone that is kept for devices."""
