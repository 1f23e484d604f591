# SPDX-License-Identifier: GPL-2.0-or-later
"""The folios of a snapshot: captured frames become frames of a world, many at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from mthp.image.snapshot import Kpf, ProcessTables, Pte, Snapshot
from mthp.mm import page_flags as pg
from mthp.mm.mm_types import Kernel, Mm
from mthp.mm.page_flags import ENTIRELY_MAPPED, PAGE_ANON_EXCLUSIVE
from mthp.mm.rmap import UNKNOWN_MM, share_large_folio
from mthp.mm.swap_table import unplaced_entry

_KPF_TO_PG = {
    Kpf.LOCKED: pg.PG_LOCKED,
    Kpf.REFERENCED: pg.PG_REFERENCED,
    Kpf.DIRTY: pg.PG_DIRTY,
    Kpf.LRU: pg.PG_LRU,
    Kpf.ACTIVE: pg.PG_ACTIVE,
    Kpf.ANON: pg.PG_ANON,
    Kpf.SWAPCACHE: pg.PG_SWAPCACHE,
    Kpf.SWAPBACKED: pg.PG_SWAPBACKED,
    Kpf.UNEVICTABLE: pg.PG_UNEVICTABLE,
    Kpf.MLOCKED: pg.PG_MLOCKED,
    Kpf.KSM: pg.PG_KSM,
}
ASSUMED_FLAGS = pg.PG_LRU | pg.PG_ANON | pg.PG_SWAPBACKED | pg.PG_UPTODATE


class Young(StrEnum):
    """Where a page's being young comes from."""

    CAPTURED = "captured"
    ALL = "all"
    NONE = "none"


@dataclass
class Assumptions:
    """Choices for what a capture cannot see; `said` collects them as sentences."""

    young: Young = Young.CAPTURED
    lru_batches: str = "every folio that was in a per-CPU LRU batch is taken to be on the LRU"
    said: list[str] = field(default_factory=list)


class ImageFrames:
    """Makes the folios that the processes of a snapshot map, each captured frame once.

    heads: captured head frame -> our folio, for folios that may be met again. mappings: large
    folio -> mm number -> mappings met so far.
    """

    def __init__(self, snapshot: Snapshot, kernel: Kernel, assume: Assumptions) -> None:
        self.snapshot = snapshot
        self.kernel = kernel
        self.mem = kernel.mem
        self.assume = assume
        self.heads: dict[int, int] = {}
        self.mappings: dict[int, dict[int, int]] = {}
        self.next_slot = 1

    def frames(self, mm: Mm, process: ProcessTables, rows: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(n, PTRS) the frame each PTE maps, 0 where it maps none or the zero page."""
        here = (process.pte & (Pte.PRESENT | Pte.ZERO)) == Pte.PRESENT
        here &= rows[:, None]
        frames = np.zeros(process.pte.shape, np.int64)
        if process.pfn is None or process.folio_order is None:
            self.frames_unseen(mm, process, here, frames)
            return frames
        pfn = process.pfn[here].astype(np.int64)
        order = process.folio_order[here].astype(np.int64)
        head = pfn >> order << order
        flags = self.page_flags(process, here)
        found = np.empty(len(pfn), np.int64)
        small = order == 0
        found[small] = self.small_frames(mm, process, here, small, pfn, flags)
        large = np.flatnonzero(~small)
        if len(large):
            _, firsts = np.unique(head[large], return_index=True)
            for k in large[firsts].tolist():
                self.large_folio(mm, int(head[k]), int(order[k]), int(flags[k]))
            lookup = {int(h): self.heads[int(h)] for h in np.unique(head[large])}
            ours = np.array([lookup[int(h)] for h in head[large]], np.int64)
            found[large] = ours + (pfn[large] - head[large])
            self.count_large(mm, process, here, large, found)
        frames[here] = found
        return frames

    def page_flags(self, process: ProcessTables, here: NDArray[np.bool_]) -> NDArray[np.int64]:
        """PG_* of each mapped page's folio, from kpageflags, with the assumption on young."""
        assert process.kpageflags is not None
        raw = process.kpageflags[here]
        flags = np.full(len(raw), pg.PG_UPTODATE, np.int64)
        for kpf, flag in _KPF_TO_PG.items():
            flags |= np.where(raw >> np.uint64(kpf) & np.uint64(1), flag, 0)
        # Compound tails carry no LRU flag of their own, and batches are taken to be drained.
        flags |= np.where(flags & pg.PG_ANON, pg.PG_LRU, 0)
        if self.assume.young is Young.NONE:
            flags &= ~pg.PG_REFERENCED
        return flags

    def small_frames(
        self,
        mm: Mm,
        process: ProcessTables,
        here: NDArray[np.bool_],
        small: NDArray[np.bool_],
        pfn: NDArray[np.int64],
        flags: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Folios of order 0: one frame for each distinct PFN, also across processes."""
        assert process.kpagecount is not None
        counts = np.maximum(process.kpagecount[here][small].astype(np.int64), 1)
        wanted = pfn[small]
        distinct, first, inverse, uses = np.unique(
            wanted, return_index=True, return_inverse=True, return_counts=True
        )
        known = np.array([self.heads.get(int(p), 0) for p in distinct], np.int64)
        fresh = np.flatnonzero(known == 0)
        start = self.new_small_folios(
            flags[small][first[fresh]], np.maximum(counts[first], uses)[fresh], mm
        )
        known[fresh] = start + np.arange(len(fresh))
        shared = fresh[counts[first[fresh]] > 1]
        for k in shared.tolist():
            self.heads[int(distinct[k])] = int(known[k])
        return known[inverse]

    def new_small_folios(
        self, flags: NDArray[np.int64], mapcounts: NDArray[np.int64], mm: Mm
    ) -> int:
        """len(flags) order-0 folios in consecutive frames, mapped as often as said."""
        count = len(flags)
        mem = self.mem
        start = mem.append_frames(0, count)
        end = start + count
        mem.head.view()[start:end] = np.arange(start, end)
        mem.flags.view()[start:end] = flags
        mem.mapcount.view()[start:end] = mapcounts
        swapcache = (flags & pg.PG_SWAPCACHE) != 0
        mem.refcount.view()[start:end] = mapcounts + swapcache
        mem.page_flags.view()[start:end] = np.where(mapcounts == 1, PAGE_ANON_EXCLUSIVE, 0)
        mem.content.view()[start:end] = np.arange(start, end) & 0x7FFFFFFF
        mem.anon_vma.view()[start:end] = 0
        for folio in (start + np.flatnonzero(swapcache)).tolist():
            self.kernel.swap.add_to_cache(self.new_slot(), folio, 1)
        if mm.memcg is not None:
            mem.memcg.view()[start:end] = mm.memcg.number
        return start

    def frames_unseen(
        self, mm: Mm, process: ProcessTables, here: NDArray[np.bool_], frames: NDArray[np.int64]
    ) -> None:
        """Without root: each mapped page is taken to be a folio of order 0."""
        bits = process.pte[here]
        flags = np.full(len(bits), ASSUMED_FLAGS, np.int64)
        flags &= np.where(bits & np.uint16(Pte.FILE), ~(pg.PG_ANON | pg.PG_SWAPBACKED), -1)
        if self.snapshot.privilege.exclusive:
            mapcounts = np.where(bits & np.uint16(Pte.EXCLUSIVE), 1, 2).astype(np.int64)
        else:
            mapcounts = np.ones(len(bits), np.int64)
        start = self.new_small_folios(flags, mapcounts, mm)
        frames[here] = start + np.arange(len(bits))

    def large_folio(self, mm: Mm, head: int, order: int, flags: int) -> int:
        """The folio of a captured head frame, made when it is met first, charged where mm is."""
        if head not in self.heads:
            mem = self.mem
            ours = mem.new_frames(0, order)
            mem.prep_folio(ours, order)
            mem.refcount.raw[ours] = 0
            mem.flags.raw[ours] = flags
            if mm.memcg is not None:
                mem.memcg.raw[ours] = mm.memcg.number
            mem.content.view()[ours : ours + (1 << order)] = (
                np.arange(ours, ours + (1 << order)) & 0x7FFFFFFF
            )
            self.heads[head] = ours
            self.mappings[ours] = {}
        return self.heads[head]

    def count_large(
        self,
        mm: Mm,
        process: ProcessTables,
        here: NDArray[np.bool_],
        large: NDArray[np.intp],
        found: NDArray[np.int64],
    ) -> None:
        """Mapcounts of the pages of large folios that this process maps by PTEs."""
        assert process.kpagecount is not None
        counts = process.kpagecount[here][large].astype(np.int64)
        pages = found[large]
        mem = self.mem
        mem.mapcount.view()[pages] = np.maximum(mem.mapcount.view()[pages], np.maximum(counts, 1))
        mem.page_flags.view()[pages] = np.where(counts <= 1, PAGE_ANON_EXCLUSIVE, 0)
        heads, uses = np.unique(mem.head.view()[pages], return_counts=True)
        for head, use in zip(heads.tolist(), uses.tolist(), strict=True):
            mine = self.mappings[head]
            mine[mm.number] = mine.get(mm.number, 0) + use

    def finish_large(self) -> None:
        """References, totals and sharing of every large folio."""
        mem = self.mem
        for head, mappings in self.mappings.items():
            nr = mem.folio_nr_pages(head)
            counts = mem.mapcount.view()[head : head + nr]
            entire = mem.entire_mapcount.raw[head]
            ptes = int(counts.sum())
            mapped = int(np.count_nonzero(counts))
            outside = ptes + entire - sum(mappings.values())
            mem.large_mapcount.raw[head] = ptes + entire
            mem.nr_pages_mapped.raw[head] = mapped + (ENTIRELY_MAPPED if entire else 0)
            swapcache = mem.flags.raw[head] & pg.PG_SWAPCACHE
            mem.refcount.raw[head] = ptes + entire + (nr if swapcache else 0)
            if outside > 0:
                mappings[UNKNOWN_MM] = outside
            if len(mappings) > 1:
                share_large_folio(mem, head, mappings)
            elif 0 < mapped < nr and not entire:
                mem.flags.raw[head] |= pg.PG_PARTIALLY_MAPPED
            if swapcache:
                self.kernel.swap.add_to_cache(unplaced_entry(0, self.next_slot + 1), head, nr)
                self.next_slot += nr

    def new_slot(self) -> int:
        """A swap slot nobody has."""
        self.next_slot += 1
        return unplaced_entry(0, self.next_slot)
