# SPDX-License-Identifier: GPL-2.0-or-later
"""Folios: the mem_map as rows of words, one word per frame and property.

A folio is the number of its first frame. What belongs to the folio stands at that frame (flags,
refcount, order); what belongs to a page stands at its own frame (mapcount, exclusive, contents).
Mapcounts start at 0, not at -1 as in the kernel.
Kernel: include/linux/mm.h, include/linux/mm_types.h (struct folio), include/linux/page-flags.h
(page_folio, folio_test_lazyfree), mm/page_alloc.c (__folio_alloc).
"""

from __future__ import annotations

from array import array
from functools import cache
from typing import Final

from mthp.machine.memory import Words
from mthp.machine.step import Access
from mthp.machine.task import Machine
from mthp.mm.list_lru import ListLru, Sublist
from mthp.mm.page_alloc import Allocator, NodeState
from mthp.mm.page_counter import MemCgroup
from mthp.mm.page_flags import (
    PAGE_HWPOISON,
    PG_ANON,
    PG_DIRTY,
    PG_LOCKED,
    PG_MAPPED_SHARED,
    PG_PARTIALLY_MAPPED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
)
from mthp.mm.vmstat import VmStat
from mthp.words.results import KernelBug, Rule
from mthp.words.units import Folio, Order, Pfn

_ROWS: Final = {
    "head": "i", "order": "b", "flags": "I", "refcount": "i", "mapcount": "i",
    "large_mapcount": "i", "entire_mapcount": "i", "nr_pages_mapped": "i", "page_flags": "B",
    "nid": "B", "memcg": "H", "anon_vma": "i", "index": "q", "content": "i",
}  # fmt: skip
_ROOM: Final = 32
_MOST_ROOM: Final = 1 << 14
_ROOM_SHIFT: Final = 4
"""How many frames rows grow ahead: 32 and a sixteenth of what is there, within bounds."""
_OF_FOLIO: Final = (
    "flags", "large_mapcount", "entire_mapcount", "nr_pages_mapped", "memcg", "anon_vma", "index",
)  # fmt: skip
_OF_PAGE: Final = ("mapcount", "page_flags")
"""Rows that a free folio has zeroes in: at its first frame, and at each of its frames."""


@cache
def _zeroes(typecode: str, nr: int) -> array[int]:
    """So many words of zero, to be copied from."""
    return array(typecode, [0]) * nr


class Unlocked:
    """What folio_wait_locked() waits for: the flags word of a folio without its lock bit."""

    __slots__ = ("flags", "name")

    def __init__(self, flags: Words[int]) -> None:
        self.flags = flags
        self.name = flags.name

    def may_take(self, index: int) -> bool:
        """Whether folio `index` is unlocked. Not a step."""
        return not self.flags.raw[index] & PG_LOCKED


class MemMap:
    """Every frame of the world, and what happens to a folio's references.

    Raises KernelBug where a reference count would go below zero.
    """

    head: Words[Folio]
    order: Words[Order]
    flags: Words[int]
    refcount: Words[int]
    mapcount: Words[int]
    large_mapcount: Words[int]
    entire_mapcount: Words[int]
    nr_pages_mapped: Words[int]
    page_flags: Words[int]
    nid: Words[int]
    memcg: Words[int]
    anon_vma: Words[int]
    index: Words[int]
    content: Words[int]

    def __init__(
        self,
        machine: Machine,
        vmstat: VmStat,
        memcgs: list[MemCgroup],
        nodes: tuple[NodeState, ...],
        pmd_order: int,
    ) -> None:
        self.machine = machine
        self.vmstat = vmstat
        self.memcgs = memcgs
        self.mm_mapcounts: dict[Folio, dict[int, int]] = {}
        """Large folios that more than one mm has mapped: folio -> mm number -> mappings, of the two that
        it knows. Kernel: struct folio, _mm_id and _mm_id_mapcount."""
        self.deferred_split = ListLru(machine, "deferred_split")
        for name, typecode in _ROWS.items():
            setattr(self, name, Words(machine, name, typecode, 1))
        self._of_folio: list[Words[int]] = [getattr(self, name) for name in _OF_FOLIO]
        self._of_page: list[Words[int]] = [getattr(self, name) for name in _OF_PAGE]
        self.nr_frames = 1
        self.pmd_order = pmd_order
        self.allocator = Allocator(nodes, self.new_frames, self.folio_nid, pmd_order)

    def new_frames(self, nid: int, order: Order, nr: int = 1) -> int:
        """Append nr blocks of 2**order frames of node nid, naturally aligned; returns the first frame."""
        first = -(-self.nr_frames >> order) << order
        self._grow(first + (nr << order))
        if nid:
            self.nid.raw[first : self.nr_frames] = array("B", [nid]) * (nr << order)
        return first

    def append_frames(self, nid: int, count: int) -> int:
        """Append any number of frames of node nid; returns the first."""
        first = self.nr_frames
        self._grow(first + count)
        if nid:
            self.nid.raw[first : self.nr_frames] = array("B", [nid]) * count
        return first

    def make_room(self, count: int) -> None:
        """Let rows grow at once for so many frames that are to come: step by step leaves holes behind."""
        for name in _ROWS:
            getattr(self, name).grow(self.nr_frames + count)

    def _grow(self, end: int) -> None:
        if end > len(self.head.raw):
            # Some frames ahead: growing is dear, and folios are mostly small.
            ahead = min(end >> _ROOM_SHIFT, _MOST_ROOM) + _ROOM
            self.make_room(end + ahead - self.nr_frames)
        self.nr_frames = end

    # Allocating and freeing

    def folio_alloc(
        self,
        order: Order,
        nid: int = 0,
        allowed: frozenset[int] = frozenset(),
        *,
        compact: bool = True,
    ) -> Folio | None:
        """Allocate a folio of an order, with one reference, or None. Kernel: __folio_alloc()."""
        pfn = self.allocator.alloc(order, nid, allowed, compact)
        return None if pfn is None else self.prep_folio(pfn, order)

    def prep_folio(self, pfn: int, order: Order) -> Folio:
        """Make frames that no task knows a folio with one reference. Not a step."""
        nr = 1 << order
        self.head.raw[pfn : pfn + nr] = array("i", [pfn]) * nr
        self.order.raw[pfn] = order
        self.refcount.raw[pfn] = 1
        return self.head.raw[pfn]

    def folio_get(self, folio: Folio) -> None:
        """Take a reference. Kernel: include/linux/mm.h, folio_get()."""
        if not self.refcount.take(folio, 1):
            raise KernelBug(
                Rule.COUNTS, f"folio {folio} is referenced after it was freed, or while frozen"
            )

    def folio_try_get(self, folio: Folio) -> bool:
        """A reference, unless it is being freed. Kernel: include/linux/page_ref.h,
        folio_try_get()."""
        return self.refcount.add_unless_zero(folio, 1)

    def folio_ref_add(self, folio: Folio, nr: int) -> None:
        """Take so many references. Kernel: include/linux/page_ref.h, folio_ref_add()."""
        self.refcount.take(folio, nr)

    def folio_ref_freeze(self, folio: Folio, refs: int) -> bool:
        """If these are all references to the folio, keep others from taking any; whether they are.

        Kernel: include/linux/page_ref.h, folio_ref_freeze().
        """
        return self.refcount.freeze(folio, refs)

    def folio_ref_unfreeze(self, folio: Folio, refs: int) -> None:
        """Kernel: include/linux/page_ref.h, folio_ref_unfreeze()."""
        self.refcount.write(folio, refs)

    def is_free(self, folio: int) -> bool:
        """Whether it was freed: freeing leaves no flags. A frozen folio keeps its own. Not a step."""
        return not self.refcount.raw[folio] and not self.flags.raw[folio]

    def folio_put(self, folio: Folio, refs: int = 1) -> None:
        """Drop references; the last one frees. Kernel: folio_put(), folio_put_refs()."""
        left = self.refcount.add(folio, -refs)
        if left == 0:
            self.free_folio(folio)
        elif left < 0:
            raise KernelBug(Rule.COUNTS, f"folio {folio}: reference count {left}")

    def free_folio(self, folio: Folio) -> None:
        """Free a folio without references. Kernel: mm/folio.c, __folio_put()."""
        flags = self.flags.raw[folio]
        order = self.order.raw[folio]
        nr = 1 << order
        if flags & PG_LOCKED:
            raise KernelBug(Rule.COUNTS, f"folio {folio} is freed while locked")
        if self.folio_mapcount(folio) != 0:
            raise KernelBug(Rule.COUNTS, f"folio {folio} is freed while mapped")
        self.folio_unqueue_deferred_split(folio)
        memcg = self.memcg.raw[folio]
        if memcg:
            self.memcgs[memcg - 1].uncharge(nr)
        if flags & PG_ANON:
            self.vmstat.count_mthp_stat(order, "nr_anon", -1)
        pages = range(folio, folio + nr)
        if self.machine.on_step is not None:
            # Steps at the words that anybody who still used the pages would use.
            self.flags.free(folio)
            self.flags.raw[folio] = 0
            for page in pages:
                self.content.free(page)
                self.page_flags.free(page)
        failed: list[int] = []
        if any(self.page_flags.raw[folio : folio + nr]):
            failed = [page for page in pages if self.page_flags.raw[page] & PAGE_HWPOISON]
        for row in self._of_folio:
            row.raw[folio] = 0
        for row in self._of_page:
            row.raw[folio : folio + nr] = _zeroes(row.raw.typecode, nr)
        self.mm_mapcounts.pop(folio, None)
        if failed:
            self._free_healthy_pages(folio, order, failed)
        else:
            self.allocator.free(folio, order)

    def _free_healthy_pages(self, pfn: Pfn, order: Order, failed: list[int]) -> None:
        """Free the pages between those that failed, in blocks as large as can be. No allocator gets
        the failed ones again.

        Kernel: mm/page_alloc.c, free_pages_prepare(), free_has_hwpoisoned().
        """
        if not (failed and any(pfn <= page < pfn + (1 << order) for page in failed)):
            self.allocator.free(pfn, order)
        elif order:
            self._free_healthy_pages(pfn, order - 1, failed)
            self._free_healthy_pages(Pfn(pfn + (1 << order - 1)), order - 1, failed)
        else:
            self.head.raw[pfn], self.order.raw[pfn] = pfn, 0
            self.page_flags.raw[pfn] = PAGE_HWPOISON

    def take_page_off_buddy(self, page: Pfn) -> None:
        """Keep a free page that failed from being handed out; what is left of its block stays free.

        Divergence: on a per-CPU list it is found too, where the kernel empties those lists first.
        Kernel: mm/page_alloc.c, take_page_off_buddy().
        """
        block = self.allocator.nodes[self.folio_nid(page)].take_block_of(page)
        if block is not None:
            self._free_healthy_pages(Pfn(block[0]), block[1], [page])

    # Flags

    def test(self, folio: Folio, flag: int) -> bool:
        """Whether the folio has a flag. Kernel: folio_test_*()."""
        return self.flags.test_bits(folio, flag) != 0

    def set(self, folio: Folio, flag: int) -> bool:
        """Set a flag; returns whether it was set before. Kernel: folio_test_set_*()."""
        return self.flags.set_bits(folio, flag) != 0

    def clear(self, folio: Folio, flag: int) -> bool:
        """Clear a flag; returns whether it was set before. Kernel: folio_test_clear_*()."""
        return self.flags.clear_bits(folio, flag) != 0

    def folio_trylock(self, folio: Folio) -> bool:
        """Lock the folio, unless it is locked. Kernel: include/linux/pagemap.h, folio_trylock()."""
        return not self.flags.set_bits(folio, PG_LOCKED)

    def folio_unlock(self, folio: Folio) -> None:
        """Unlock the folio; KernelBug if it is not locked. Kernel: mm/filemap.c, folio_unlock()."""
        if not self.flags.clear_bits(folio, PG_LOCKED):
            raise KernelBug(Rule.LOCKS, f"folio {folio} is unlocked and was not locked")

    def folio_wait_locked(self, folio: Folio) -> None:
        """Wait until the folio is unlocked, if there is a scheduler who may run its holder.

        Kernel: include/linux/pagemap.h, folio_wait_locked().
        """
        self.machine.step(Access.WAIT, Unlocked(self.flags), folio, PG_LOCKED)

    def folio_mark_dirty(self, folio: Folio) -> None:
        """Set its dirty flag, if it is not set. Caller holds the folio lock, as all do who clear it.

        Kernel: mm/page-writeback.c, folio_mark_dirty(), noop_dirty_folio().
        """
        if not self.flags.raw[folio] & PG_DIRTY:
            self.set(folio, PG_DIRTY)

    def folio_test_lazyfree(self, folio: Folio) -> bool:
        """Whether MADV_FREE gave the folio up. Kernel: folio_test_lazyfree()."""
        return self.flags.test_bits(folio, PG_ANON | PG_SWAPBACKED) == PG_ANON

    # Shape and counts

    def page_folio(self, pfn: Pfn) -> Folio:
        """The folio a frame belongs to. Kernel: page_folio()."""
        return self.head.raw[pfn]

    def folio_order(self, folio: Folio) -> Order:
        return self.order.read(folio)

    def folio_nr_pages(self, folio: Folio) -> int:
        return 1 << self.order.raw[folio]

    def folio_test_large(self, folio: Folio) -> bool:
        return self.order.raw[folio] != 0

    def folio_nid(self, pfn: int) -> int:
        """The NUMA node a frame belongs to."""
        return self.nid.raw[pfn]

    def folio_ref_count(self, folio: Folio) -> int:
        return self.refcount.read(folio)

    def folio_mapcount(self, folio: Folio) -> int:
        """How often page tables map the folio. Kernel: include/linux/mm.h, folio_mapcount()."""
        return (self.large_mapcount if self.order.raw[folio] else self.mapcount).read(folio)

    def folio_expected_ref_count(self, folio: Folio) -> int:
        """References that mappings and the swap cache explain.

        Kernel: include/linux/mm.h, folio_expected_ref_count().
        """
        swapcache = self.test(folio, PG_SWAPCACHE)
        return (swapcache << self.order.raw[folio]) + self.folio_mapcount(folio)

    def folio_maybe_mapped_shared(self, folio: Folio) -> bool:
        """Whether several processes may map it. Kernel: folio_maybe_mapped_shared()."""
        mapcount = self.folio_mapcount(folio)
        if mapcount <= 1 or not self.order.raw[folio]:
            return mapcount > 1
        return self.test(folio, PG_MAPPED_SHARED)

    # Deferred split

    def sublist_of(self, folio: Folio) -> Sublist:
        """The list that a folio is queued in."""
        return Sublist(self.nid.raw[folio], self.memcg.raw[folio])

    def deferred_split_folio(self, folio: Folio, *, partially_mapped: bool) -> None:
        """Queue a folio for the shrinker: one that is partially mapped, to be split, or a whole one, to
        be split if it proves to be underused. Of these the caller asks first whether shrink_underused
        is set.

        Kernel: mm/huge_memory.c, deferred_split_folio().
        """
        order = self.order.raw[folio]
        if order <= 1 or self.flags.raw[folio] & PG_SWAPCACHE:
            return
        if partially_mapped and not self.set(folio, PG_PARTIALLY_MAPPED):
            if order >= self.pmd_order:
                self.vmstat.count_vm_event("thp_deferred_split_page")
            self.vmstat.count_mthp_stat(order, "split_deferred")
            self.vmstat.count_mthp_stat(order, "nr_anon_partially_mapped")
        self.deferred_split.add(folio, self.sublist_of(folio))

    def folio_unqueue_deferred_split(self, folio: Folio) -> None:
        """Take it off that queue. Kernel: mm/internal.h, folio_unqueue_deferred_split()."""
        order = self.order.raw[folio]
        if order > 1 and self.deferred_split.has(folio, self.sublist_of(folio)):
            self.deferred_split.delete(folio, self.sublist_of(folio))
        if self.clear(folio, PG_PARTIALLY_MAPPED):
            self.vmstat.count_mthp_stat(order, "nr_anon_partially_mapped", -1)
