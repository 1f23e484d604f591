# SPDX-License-Identifier: GPL-2.0-or-later
"""What /proc/pagetypeinfo says: of which kind of pageblock the free blocks are.

Anonymous memory is movable. For it the kernel takes blocks from movable pageblocks first and from CMA's;
then, for want of these, from reclaimable and unmovable ones, which become movable as a whole where the block
is as large as one, or where at least half of the pageblock is free or movable; else the block alone is taken.
Never those that are kept for atomic allocations or isolated.
Kernel: mm/page_alloc.c, __rmqueue(), fallbacks, __rmqueue_claim(), try_to_claim_block(), __rmqueue_steal().
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

MOVABLE: Final = ("Movable", "CMA")
"""What compaction empties, too. Kernel: mm/compaction.c, suitable_migration_target()."""
CLAIMED: Final = ("Reclaimable", "Unmovable")
TAKEN: Final = (*MOVABLE, *CLAIMED)
"""Whose blocks a movable allocation is given."""
_FREE = re.compile(r"Node +(\d{1,4}), zone +(\S{1,40}), type +(\w{1,40})((?: +>?\d{1,15}){1,64}) *")
_TYPES = re.compile(r"Number of blocks type +((?:\w{1,40} *){1,16})")
_BLOCKS = re.compile(r"Node +(\d{1,4}), zone +(\S{1,40})((?: +\d{1,15}){1,16}) *")
_ORDER = re.compile(r"Page block order: +(\d{1,2})")


@dataclass(frozen=True)
class PageTypes:
    """block_order: log2 of the pages of a pageblock. free: (node, type) -> order -> blocks, without zone DMA,
    which is kept for devices; the kernel counts no further than 100,000 of one kind. pageblocks: type -> how
    many.

    Kernel: mm/vmstat.c, pagetypeinfo_show().
    """

    block_order: int
    free: Mapping[tuple[int, str], Counter[int]]
    pageblocks: Mapping[str, int]

    def kept(self, node: int) -> Counter[int]:
        """Of a node, by order, the free blocks that are no movable allocation's."""
        found = Counter[int]()
        for (each, kind), blocks in self.free.items():
            if each == node and kind not in TAKEN:
                found += blocks
        return found

    def blocks(self, order: int) -> dict[str, int]:
        """The free blocks of an order by type, those that larger ones split into with them."""
        found = Counter[str]()
        for (_, kind), blocks in self.free.items():
            found[kind] += sum(nr << each - order for each, nr in blocks.items() if each >= order)
        return dict(found)


def page_types(text: str | None) -> PageTypes | None:
    """What the file's text says; None where it says nothing. ValueError with the line that is none of it."""
    free: dict[tuple[int, str], Counter[int]] = {}
    pageblocks = Counter[str]()
    order = 0
    types: list[str] = []
    for line in _lines(text or ""):
        if found := _ORDER.fullmatch(line):
            order = int(found[1])
        elif found := _FREE.fullmatch(line):
            counts = (int(each.lstrip(">")) for each in found[4].split())
            if found[2] != "DMA":
                blocks = {each: nr for each, nr in enumerate(counts) if nr}
                free.setdefault((int(found[1]), found[3]), Counter()).update(blocks)
        elif line.startswith("Number of "):
            # Those that are mixed, too, follow under CONFIG_PAGE_OWNER.
            named = _TYPES.fullmatch(line)
            types = named[1].split() if named else []
        elif found := _BLOCKS.fullmatch(line):
            if found[2] != "DMA":
                pageblocks.update(dict(zip(types, map(int, found[3].split()), strict=False)))
        elif line.startswith("Node"):
            raise ValueError(line)
    return PageTypes(order, free, pageblocks) if free else None


def _lines(text: str) -> Iterator[str]:
    return (line.strip() for line in text.splitlines())
