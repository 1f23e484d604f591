# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages and folios of many address spaces as arrays: what a replay of millions of events is made of.

A table is a row: of each page the folio that it maps, or that it maps nothing, the zero page, or a guard;
whether a store to it faults; whether the program ever wrote to it; and whether it was zero when somebody
looked. The clear twin is mm/.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

NONE, ZERO, GUARD = 0, -1, -2
"""What a page maps besides folios, which are numbers from 1 up."""
BY_PTES, BY_PMD, HUGE_ZERO = 0, 1, 2
"""How a table maps: by itself, or, in its place, a huge page or the huge zero page."""
GUARDED, OLD = np.uint8(1), np.uint8(2)
"""Of a page: a store faults, since it may be shared after fork; and it is a child's that has not used it
yet, so that its entry is not young. OLD pages are GUARDED too."""


@dataclass
class Work:
    """What was done: faults that were taken, by the order of the folio that they brought (a fault that
    brought none counts as order 0 of `faults`), pages cleared and copied."""

    faults: int = 0
    brought: dict[int, int] = field(default_factory=dict)
    cleared: int = 0
    copied: int = 0


class PageStore:
    """The rows of all tables, and all folios. rss: pages mapped, of all spaces. frames: pages that folios
    take. huge: order -> folios that are there. looks: whether anybody looks which pages are zero."""

    def __init__(self, pmd_order: int, *, looks: bool = False) -> None:
        self.ptrs = 1 << pmd_order
        self.pmd_order = pmd_order
        self.folio: NDArray[np.int32] = np.zeros((64, self.ptrs), np.int32)
        self.guarded: NDArray[np.uint8] = np.zeros((64, self.ptrs), np.uint8)
        """0, or GUARDED, or GUARDED and OLD."""
        self.written: NDArray[np.bool_] = np.zeros((64, self.ptrs), np.bool_)
        self.seen: NDArray[np.int32] = np.zeros((64 if looks else 0, self.ptrs), np.int32)
        """The last look at each page since it was stored to by a fault: its number from 1 up if the page was
        zero, less than 0 if not; 0 if there was none."""
        self.looks = looks
        self.how: NDArray[np.uint8] = np.zeros(64, np.uint8)
        self._free: list[int] = list(range(63, -1, -1))
        self.order: NDArray[np.int8] = np.zeros(1024, np.int8)
        self.mapped: NDArray[np.int32] = np.zeros(1024, np.int32)
        """Of each folio, how many pages of tables map it, in all spaces."""
        self.faulted: NDArray[np.bool_] = np.zeros(1024, np.bool_)
        """Of each folio, whether a fault brought it, and not a collapse."""
        self.scattered: set[int] = set()
        """Large folios of which mremap() may have left pages in several tables of a space."""
        self.moved: dict[tuple[int, int], tuple[int, int]] = {}
        """Table and page in it -> folio, and which of its pages that is, where mremap() brought it there."""
        self.forked = False
        self._next = 1
        self.rss = 0
        self.frames = 0
        self.huge: dict[int, int] = dict.fromkeys(range(pmd_order + 1), 0)
        self.work = Work()

    # Rows and folios

    def new_row(self) -> int:
        """A table with nothing in it."""
        if not self._free:
            count = len(self.how)
            self._free = list(range(2 * count - 1, count - 1, -1))
            self.folio = np.concatenate([self.folio, np.zeros_like(self.folio)])
            self.guarded = np.concatenate([self.guarded, np.zeros_like(self.guarded)])
            self.written = np.concatenate([self.written, np.zeros_like(self.written)])
            self.seen = np.concatenate([self.seen, np.zeros_like(self.seen)])
            self.how = np.concatenate([self.how, np.zeros_like(self.how)])
        return self._free.pop()

    def drop_row(self, row: int) -> None:
        """Give a table back, of which nothing is mapped any more."""
        self.folio[row] = NONE
        self.guarded[row] = 0
        self.written[row] = False
        self.how[row] = BY_PTES
        self._free.append(row)

    def new_folios(self, count: int, order: int, *, faulted: bool = True) -> int:
        """So many folios of an order, not yet mapped; the first one's number."""
        first = self._next
        self._next += count
        while self._next > len(self.order):
            self.order = np.concatenate([self.order, np.zeros_like(self.order)])
            self.mapped = np.concatenate([self.mapped, np.zeros_like(self.mapped)])
            self.faulted = np.concatenate([self.faulted, np.zeros_like(self.faulted)])
        self.order[first : self._next] = order
        self.faulted[first : self._next] = faulted
        self.frames += count << order
        self.huge[order] += count
        return first

    def unmap(self, folios: NDArray[np.int32]) -> None:
        """Pages of tables map these folios no more; those that nothing maps are freed."""
        if not len(folios):
            return
        each, counts = np.unique(folios, return_counts=True)
        self.rss -= len(folios)
        self.mapped[each] -= counts.astype(np.int32)
        gone = each[self.mapped[each] == 0]
        orders, number = np.unique(self.order[gone], return_counts=True)
        for order, folios_gone in zip(orders.tolist(), number.tolist(), strict=True):
            self.huge[order] -= folios_gone
            self.frames -= folios_gone << order

    def put(
        self,
        rows: NDArray[np.int64],
        at: NDArray[np.int64],
        orders: NDArray[np.uint8],
        folios: NDArray[np.uint64],
    ) -> None:
        """Have pages be there that nobody saw coming. folios: which of them are of one large folio."""
        small = np.flatnonzero(orders == 0)
        first = self.new_folios(len(small), 0)
        self.folio[rows[small], at[small]] = np.arange(first, first + len(small), dtype=np.int32)
        self.mapped[first : first + len(small)] = 1
        for order in np.unique(orders[orders > 0]).tolist():
            chosen = np.flatnonzero(orders == order)
            names, which, counts = np.unique(
                folios[chosen], return_inverse=True, return_counts=True
            )
            first = self.new_folios(len(names), order)
            self.folio[rows[chosen], at[chosen]] = (first + which).astype(np.int32)
            self.mapped[first : first + len(names)] = counts
        self.store(rows, at)
        self.rss += len(rows)

    def store(self, rows: NDArray[np.int64] | int, at: NDArray[np.int64] | int) -> None:
        """Pages of tables are stored to: what was seen of them before says nothing any more."""
        self.written[rows, at] = True
        if self.looks:
            self.seen[rows, at] = 0

    def filled(self, row: int, at: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which pages of a table hold something, as far as it is known: by the last look, or where there was
        none, if the program ever wrote to them."""
        found: NDArray[np.bool_] = self.written[row, at]
        if self.looks:
            seen = self.seen[row, at]
            found = np.where(seen == 0, found, seen < 0)
        return found

    def forget(self, rows: NDArray[np.int64] | int, at: NDArray[np.int64]) -> None:
        """The zero page stands for pages: they are as if nobody had ever written to them."""
        self.folio[rows, at] = ZERO
        self.written[rows, at] = False
        if self.looks:
            self.seen[rows, at] = 0

    # What faults do

    def bring(self, row: int, at: int, order: int) -> None:
        """Map a new folio at the aligned range around a page, of which nothing is mapped. Kernel:
        mm/memory.c, do_anonymous_page(); mm/huge_memory.c, __do_huge_pmd_anonymous_page()."""
        size = 1 << order
        start = at & -size
        folio = self.new_folios(1, order)
        self.folio[row, start : start + size] = folio
        self.guarded[row, start : start + size] = 0
        self.mapped[folio] = size
        self.rss += size
        self.work.cleared += size
        self.work.brought[order] = self.work.brought.get(order, 0) + 1
        if order == self.pmd_order:
            self.how[row] = BY_PMD

    def bring_small(self, rows: NDArray[np.int64], at: NDArray[np.int64]) -> None:
        """Map a new page at each of these places, of which none is there twice and nothing, or the zero
        page, is mapped."""
        count = len(rows)
        first = self.new_folios(count, 0)
        self.folio[rows, at] = np.arange(first, first + count, dtype=np.int32)
        self.guarded[rows, at] = 0
        self.mapped[first : first + count] = 1
        self.rss += count
        self.work.cleared += count
        self.work.brought[0] = self.work.brought.get(0, 0) + count

    def copy_or_reuse(self, row: int, at: int, ours: int) -> None:
        """A store to a page that may be shared. ours: how many pages of the folio its space maps. Kernel:
        mm/memory.c, do_wp_page(), wp_can_reuse_anon_folio(); mm/huge_memory.c, do_huge_pmd_wp_page()."""
        folio = int(self.folio[row, at])
        order, mapped = int(self.order[folio]), int(self.mapped[folio])
        if self.how[row] == BY_PMD:
            if mapped == ours:
                self.guarded[row] = 0
                return
            self.split_pmd(row)
        elif mapped == ours and (order == 0 or mapped > 1):
            self.guarded[row, at] = 0
            return
        new = self.new_folios(1, 0)
        self.unmap(self.folio[row, at : at + 1].copy())
        self.folio[row, at] = new
        self.mapped[new] = 1
        self.rss += 1
        self.guarded[row, at] = 0
        self.work.copied += 1
        self.work.brought[0] = self.work.brought.get(0, 0) + 1

    def split_pmd(self, row: int) -> None:
        """Have a huge page be mapped by PTEs. Kernel: mm/huge_memory.c, __split_huge_pmd_locked()."""
        if self.how[row] == HUGE_ZERO:
            self.folio[row] = ZERO
        self.how[row] = BY_PTES

    # What system calls do

    def zap(self, row: int, start: int, end: int, keep_guards: bool) -> bool:
        """Unmap a range of a table; whether nothing is left in it. Kernel: mm/memory.c, zap_pte_range()."""
        whole = end - start == self.ptrs
        if self.how[row] != BY_PTES and not whole:
            self.split_pmd(row)
        part = self.folio[row, start:end]
        self.unmap(part[part > 0])
        part[(part != GUARD) if keep_guards else slice(None)] = NONE
        self.guarded[row, start:end] = 0
        self.written[row, start:end] = False
        if self.looks:
            self.seen[row, start:end] = 0
        if whole:
            self.how[row] = BY_PTES
        return whole and not np.any(part)

    def copy_row(self, row: int, start: int, end: int, target: int) -> None:
        """Have a range of another table map what this one does, for fork. Kernel: mm/memory.c,
        copy_present_ptes(); mm/huge_memory.c, copy_huge_pmd()."""
        part = self.folio[row, start:end]
        there = part > 0
        self.folio[target, start:end] = part
        self.written[target, start:end] = self.written[row, start:end]
        if self.looks:
            self.seen[target, start:end] = self.seen[row, start:end]
        self.guarded[row, start:end] |= there
        self.guarded[target, start:end] = there * (GUARDED | OLD)
        self.forked = True
        if self.scattered:
            ours = [at for at in range(start, end) if self.folio[row, at] in self.scattered]
            within = {at: (int(self.folio[row, at]), self.within(row, at)) for at in ours}
            self.moved.update({(target, at): found for at, found in within.items()})
        folios, counts = np.unique(part[there], return_counts=True)
        self.mapped[folios] += counts.astype(np.int32)
        self.rss += int(np.count_nonzero(there))

    def within(self, row: int, at: int) -> int:
        """Which page of its folio a page of a table is."""
        folio = int(self.folio[row, at])
        moved = self.moved.get((row, at))
        if moved is not None and moved[0] == folio:
            return moved[1]
        return at & ((1 << int(self.order[folio])) - 1)

    def move(self, row: int, at: int, target: int, to: int, count: int) -> None:
        """Move a range of a table into another one. Kernel: mm/mremap.c, move_ptes()."""
        part = self.folio[row, at : at + count]
        large = np.flatnonzero((part > 0) & (self.order[part] > 0)).tolist()
        within = {to + i: (int(part[i]), self.within(row, at + i)) for i in large}
        self.scattered.update(folio for folio, _ in within.values())
        self.moved.update({(target, place): found for place, found in within.items()})
        states: list[NDArray[Any]] = [self.folio, self.guarded, self.written]
        for state in (*states, *[self.seen] * self.looks):
            state[target, to : to + count] = state[row, at : at + count]
            state[row, at : at + count] = 0

    def split_folio(self, folio: int, row: int, start: int, end: int) -> None:
        """Make small folios of a large one that lies in a range of a table, as far as it is mapped; the zero
        page takes the place of pages that are zero. Kernel:
        mm/huge_memory.c, __folio_split(); mm/migrate.c, try_to_map_unused_to_zeropage()."""
        self.split_pmd(row) if self.how[row] == BY_PMD else None
        places = start + np.flatnonzero(self.folio[row, start:end] == folio)
        filled = self.filled(row, places)
        self.unmap(self.folio[row, places])
        kept = places[filled]
        first = self.new_folios(len(kept), 0, faulted=bool(self.faulted[folio]))
        self.folio[row, kept] = np.arange(first, first + len(kept), dtype=np.int32)
        self.mapped[first : first + len(kept)] = 1
        self.rss += len(kept)
        self.forget(row, places[~filled])

    def collapse(self, row: int, start: int, order: int) -> int:
        """Have one new folio map an aligned range of a table; how many of its pages were there. Kernel:
        mm/khugepaged.c, collapse_huge_page()."""
        size = 1 << order
        part = self.folio[row, start : start + size]
        old = part[part > 0]
        self.unmap(old)
        folio = self.new_folios(1, order, faulted=False)
        part[:] = folio
        self.guarded[row, start : start + size] = 0
        self.mapped[folio] = size
        self.rss += size
        if order == self.pmd_order:
            self.how[row] = BY_PMD
        return len(old)

    def use(self, row: int, at: NDArray[np.int64] | int) -> None:
        """Pages of a table were used: their entries are young. A huge page has one entry."""
        self.guarded[row, slice(None) if self.how[row] == BY_PMD else at] &= GUARDED
