# SPDX-License-Identifier: GPL-2.0-or-later
"""An address space of a recorded process: its mappings, and its tables in a PageStore.

Addresses are in pages. Kernel: mm/vma.c, mm/mmap.c, mm/memory.c.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import count
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mthp.image.record.attached import ZERO_PAGE
from mthp.life.recorded_pages import BY_PMD, BY_PTES, GUARD, HUGE_ZERO, NONE, ZERO, PageStore
from mthp.words.settings import Enabled, Settings


class Backing(IntEnum):
    """What a mapping's pages are. FILE: a private one, whose written pages are small and anonymous.
    OTHER: shared, or special; none of its pages is anonymous."""

    ANON = 0
    FILE = 1
    OTHER = 2


class HugeAdvice(IntEnum):
    """MADV_HUGEPAGE, MADV_NOHUGEPAGE, or neither."""

    NONE = 0
    HUGEPAGE = 1
    NOHUGEPAGE = 2


@dataclass(frozen=True)
class SpanTraits:
    """What two mappings must have alike to become one. Kernel: mm/vma.c, is_mergeable_vma()."""

    backing: Backing
    prot: int
    name: str = ""
    advice: HugeAdvice = HugeAdvice.NONE
    reserved: bool = False
    accounted: bool = False
    grows: bool = False
    locked: bool = False
    forked: bool = True
    wiped: bool = False


@dataclass(slots=True)
class Span:
    """A mapping. shift: how far its pages' offsets lie from their addresses. anon: which anon_vma it has;
    0 if none. inherited: fork made it of one that had one. Kernel: vma_is_fork_child()."""

    start: int
    end: int
    traits: SpanTraits
    shift: int = 0
    anon: int = 0
    inherited: bool = False


def _joins(one: Span, other: Span) -> bool:
    """Whether the anon_vmas of two mappings let them be one. Kernel: mm/vma.c, is_mergeable_anon_vma()."""
    if one.anon and other.anon:
        return one.anon == other.anon
    return not (one.inherited or other.inherited)


class Registers(Protocol):
    """What is told of mappings that may be collapsed, and of spaces that end: khugepaged. by_any_call: of
    those that MADV_HUGEPAGE is said of, too, before they change."""

    by_any_call: bool

    def enter_vma(self, space: RecordedSpace, span: Span) -> None:
        """Kernel: khugepaged_enter_vma()."""

    def enter(self, space: RecordedSpace) -> None:
        """Kernel: __khugepaged_enter()."""

    def exit(self, space: RecordedSpace) -> None:
        """Kernel: __khugepaged_exit()."""


PROT, PROT_WRITE = 7, 2
TABLES_SEEN = 256
"""Tables that are looked at together."""
_ANON = count(1)
MERGED = frozenset({Backing.ANON})
"""What becomes one mapping with its neighbours: of others nothing depends on it."""


class RecordedSpace:
    """One address space. vmas_known: whether the mappings that it began with are. registered: on khugepaged's
    list. ended: nobody uses it any more."""

    def __init__(
        self,
        pages: PageStore,
        settings: Settings,
        vmas_known: bool,
        khugepaged: Registers | None = None,
    ) -> None:
        self.pages = pages
        self.tables: dict[int, int] = {}
        self.spans: list[Span] = []
        self.starts: list[int] = []
        self.brk = 0
        self.tasks = 0
        self.anon = 0
        self.peak = 0
        self.vmas_known = vmas_known
        self.registered = self.ended = False
        self.khugepaged = khugepaged
        self._settings = settings
        self._orders: dict[SpanTraits, int] = {}
        self._bits = pages.pmd_order

    # Mappings

    def at(self, page: int) -> int:
        """The index of the mapping that holds a page; -1 where there is none."""
        index = bisect_right(self.starts, page) - 1
        return index if index >= 0 and page < self.spans[index].end else -1

    def after(self, page: int) -> int:
        """The index of the mapping that holds a page, or of the next one. Kernel: find_vma()."""
        index = bisect_right(self.starts, page) - 1
        return index if index >= 0 and page < self.spans[index].end else index + 1

    def maps(self, folio: int, row: int) -> int:
        """How many pages of a folio it maps, one of them in the table of this row."""
        pages = self.pages
        if not pages.order[folio]:
            return 1
        rows = [*self.tables.values()] if folio in pages.scattered else row
        return int(np.count_nonzero(pages.folio[rows] == folio))

    def enter(self, span: Span) -> None:
        """Tell khugepaged of a mapping that it may be able to collapse."""
        if self.khugepaged is not None:
            self.khugepaged.enter_vma(self, span)

    def advised_huge(self, start: int, end: int) -> None:
        """MADV_HUGEPAGE is about to be said of a range. Kernel: mm/khugepaged.c, hugepage_madvise()."""
        if self.khugepaged is not None and self.khugepaged.by_any_call:
            for low, _ in self.mapped(start, end):
                whole = self.spans[self.at(low)]
                traits = replace(whole.traits, advice=HugeAdvice.HUGEPAGE)
                self.enter(replace(whole, traits=traits))

    def find(self, page: int) -> Span | None:
        """The mapping that holds a page, which a stack may come to do by growing. Kernel: mm/mmap.c,
        expand_stack()."""
        index = bisect_right(self.starts, page) - 1
        if index >= 0 and page < self.spans[index].end:
            return self.spans[index]
        if index + 1 < len(self.spans) and self.spans[index + 1].traits.grows:
            self.starts[index + 1] = self.spans[index + 1].start = page
            return self.spans[index + 1]
        return None

    def orders(self, span: Span) -> int:
        """The orders that a fault in it may bring, besides 0, as a bitmap. Kernel: mm/huge_memory.c,
        __thp_vma_allowable_orders()."""
        traits = span.traits
        found = self._orders.get(traits)
        if found is None:
            found = self._orders[traits] = self._allowed(traits)
        return found

    def _allowed(self, traits: SpanTraits) -> int:
        settings = self._settings
        if traits.backing is not Backing.ANON or traits.advice is HugeAdvice.NOHUGEPAGE:
            return 0
        mask = settings.orders_always
        advised = traits.advice is HugeAdvice.HUGEPAGE
        if advised:
            mask |= settings.orders_madvise
        if settings.enabled is Enabled.ALWAYS or (advised and settings.enabled is Enabled.MADVISE):
            mask |= settings.orders_inherit
        return mask & settings.geometry.anon_orders_mask

    def map(
        self, start: int, end: int, traits: SpanTraits, shift: int = 0, moved: Span | None = None
    ) -> None:
        """Map a range anew. moved: the mapping whose pages come there. Kernel: mm/vma.c, mmap_region(),
        copy_vma()."""
        self.unmap(start, end)
        of = (moved.anon, moved.inherited) if moved is not None else (0, False)
        self._insert(Span(start, end, traits, shift, *of))
        self._merge(start, end)

    def _insert(self, span: Span) -> None:
        index = bisect_right(self.starts, span.start)
        self.spans.insert(index, span)
        self.starts.insert(index, span.start)

    def _split(self, page: int) -> None:
        """Cut a mapping at a page; a huge page there is mapped by PTEs from now on. Kernel: mm/vma.c,
        __split_vma(); mm/huge_memory.c, vma_adjust_trans_huge()."""
        index = self.at(page)
        if index >= 0 and self.spans[index].start < page:
            row = self.tables.get(page >> self._bits)
            if row is not None and page & (self.pages.ptrs - 1):
                self.pages.split_pmd(row)
            span = self.spans[index]
            self._insert(replace(span, start=page))
            span.end = page

    def cut(self, start: int, end: int) -> list[Span]:
        """The mappings of a range, cut at its ends."""
        self._split(start)
        self._split(end)
        first = bisect_right(self.starts, start - 1)
        last = bisect_right(self.starts, end - 1)
        return self.spans[first:last]

    def mapped(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of a range that are mapped, each in one mapping."""
        found = []
        while start < end:
            index = bisect_right(self.starts, start) - 1
            if index < 0 or self.spans[index].end <= start:
                index += 1
            if index == len(self.spans) or self.spans[index].start >= end:
                break
            span = self.spans[index]
            found.append((max(start, span.start), min(end, span.end)))
            start = span.end
        return found

    def _merge(self, start: int, end: int) -> None:
        """Join the mappings in and around a range that are alike. Kernel: mm/vma.c, vma_merge_*()."""
        merged = None
        index = max(bisect_right(self.starts, start - 1) - 1, 0)
        while index + 1 < len(self.spans) and self.spans[index].end <= end:
            one, other = self.spans[index], self.spans[index + 1]
            if (
                one.end == other.start
                and one.traits == other.traits
                and one.shift == other.shift
                and one.traits.backing in MERGED
                and _joins(one, other)
            ):
                one.end, one.anon = other.end, one.anon or other.anon
                one.inherited |= other.inherited
                del self.spans[index + 1], self.starts[index + 1]
                merged = one
            else:
                index += 1

        if merged is not None:
            self.enter(merged)

    def change(self, start: int, end: int, **traits: Any) -> None:
        """Change traits of a range. Kernel: mm/madvise.c, madvise_update_vma()."""
        self._alter(start, end, lambda old: replace(old, **traits))

    def protect(self, start: int, end: int, prot: int) -> None:
        """Change what may be done with a range. Kernel: mm/mprotect.c, mprotect_fixup()."""

        def wanted(old: SpanTraits) -> SpanTraits:
            newly = prot & PROT_WRITE and not old.prot & PROT_WRITE and not old.reserved
            return replace(old, prot=prot, accounted=old.accounted or bool(newly))

        self._alter(start, end, wanted)

    def _alter(self, start: int, end: int, wanted: Callable[[SpanTraits], SpanTraits]) -> None:
        """Change mappings, each as far as it lies in a range and is not so yet. Kernel: mm/vma.c,
        vma_modify_flags()."""
        for low, high in self.mapped(start, end):
            old = self.spans[self.at(low)].traits
            new = wanted(old)
            if new == old:
                continue
            (span,) = self.cut(low, high)
            span.traits = new
            self._merge(low, high)
            if new.advice is HugeAdvice.HUGEPAGE and old.advice is not new.advice:
                self.enter(self.spans[self.at(low)])

    def unmap(self, start: int, end: int) -> None:
        """Unmap a range, and free the tables that no mapping needs any more. Kernel: mm/vma.c,
        do_vmi_align_munmap(); mm/memory.c, free_pgtables()."""
        gone = self.cut(start, end)
        if not gone:
            return
        first = bisect_right(self.starts, start - 1)
        del self.spans[first : first + len(gone)], self.starts[first : first + len(gone)]
        self.zap(start, end, keep_guards=False, free=False)
        floor = self.spans[first - 1].end if first else 0
        ceiling = self.spans[first].start if first < len(self.spans) else 1 << 62
        for table in self._tables(start, end):
            if table << self._bits >= floor and (table + 1) << self._bits <= ceiling:
                self.pages.drop_row(self.tables.pop(table))

    def _tables(self, start: int, end: int) -> list[int]:
        """The tables that are there for a range."""
        first, last = start >> self._bits, (end - 1) >> self._bits
        if last - first < len(self.tables):
            return [table for table in range(first, last + 1) if table in self.tables]
        return sorted(table for table in self.tables if first <= table <= last)

    def parts(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(table, row, first, end in the table) of each table that is there for a range."""
        for table in self._tables(start, end):
            base = table << self._bits
            yield (
                table,
                self.tables[table],
                max(start - base, 0),
                min(end - base, self.pages.ptrs),
            )

    def zap(self, start: int, end: int, *, keep_guards: bool = True, free: bool = True) -> None:
        """Unmap the pages of a range. free: tables that are then empty are freed. Kernel: mm/memory.c,
        zap_page_range_single(); mm/pt_reclaim.c."""
        before = self.pages.rss
        for table, row, low, high in list(self.parts(start, end)):
            if self.pages.zap(row, low, high, keep_guards) and free:
                self.pages.drop_row(self.tables.pop(table))
        self.anon += self.pages.rss - before

    def end(self) -> None:
        """Give all of it back."""
        for row in self.tables.values():
            self.pages.zap(row, 0, self.pages.ptrs, keep_guards=False)
            self.pages.drop_row(row)
        self.ended = True
        if self.khugepaged is not None:
            self.khugepaged.exit(self)
        self.tables.clear()
        self.spans.clear()
        self.starts.clear()
        self.anon = 0

    # Faults

    def row(self, table: int) -> int:
        """The row of a table, which is made where it is not there. Kernel: pte_alloc()."""
        row = self.tables.get(table)
        if row is None:
            row = self.tables[table] = self.pages.new_row()
        return row

    def prepare(self, span: Span) -> None:
        """Have a mapping that is written to an anon_vma. Kernel: mm/vma.c, find_mergeable_anon_vma()."""
        if span.anon:
            return
        index = self.at(span.start)
        for near in (index + 1, index - 1):
            if not 0 <= near < len(self.spans):
                continue
            other = self.spans[near]
            if other.anon and not other.inherited:
                touching = span.end == other.start or other.end == span.start
                alike = replace(
                    other.traits, prot=span.traits.prot, accounted=span.traits.accounted
                )
                if touching and alike == span.traits and other.shift == span.shift:
                    span.anon = other.anon
                    return
        span.anon = next(_ANON)

    def touch(self, span: Span, page: int, write: bool) -> bool:
        """A fault at a page of a mapping; whether there is one. Kernel: mm/memory.c, handle_pte_fault()."""
        pages, table, at = self.pages, page >> self._bits, page & (self.pages.ptrs - 1)
        if write:
            self.prepare(span)
        row = self.tables.get(table, -1)
        state = int(pages.folio[row, at]) if row >= 0 else NONE
        if state > 0 and not (write and pages.guarded[row, at]):
            if write:
                pages.store(row, at)
            pages.use(row, at)
            return False
        if state == GUARD or (state == ZERO and not write):
            return False
        before = pages.rss
        if state > 0:
            pages.copy_or_reuse(row, at, self.maps(state, row))
        elif span.traits.backing is Backing.FILE:
            if not write:
                return False
            pages.bring(self.row(table), at, 0)
        elif write:
            self._write(span, page, row, state)
        else:
            self._read(span, page, row)
        self.anon += pages.rss - before
        if write:
            pages.store(self.tables[table], at)
        return True

    def _read(self, span: Span, page: int, row: int) -> None:
        """The first load from a page. Kernel: do_anonymous_page(), do_huge_pmd_anonymous_page()."""
        pages, table = self.pages, page >> self._bits
        if row < 0 and self._huge_suits(span, table):
            self.prepare(span)
            self.enter(span)
            row = self.row(table)
            if self._settings.use_zero_page:
                pages.how[row] = HUGE_ZERO
                pages.folio[row] = ZERO
            else:
                pages.bring(row, 0, pages.pmd_order)
        else:
            pages.folio[self.row(table), page & (pages.ptrs - 1)] = ZERO

    def _huge_suits(self, span: Span, table: int) -> bool:
        start = table << self._bits
        allowed = self.orders(span) >> self._bits & 1
        return bool(allowed) and span.start <= start and start + self.pages.ptrs <= span.end

    def _write(self, span: Span, page: int, row: int, state: int) -> None:
        """The first store to a page. Kernel: do_anonymous_page(), alloc_anon_folio(); do_wp_page() of the
        zero page; do_huge_pmd_anonymous_page(), do_huge_zero_wp_pmd()."""
        pages, table, at = self.pages, page >> self._bits, page & (self.pages.ptrs - 1)
        if row < 0 and self._huge_suits(span, table):
            self.enter(span)
            pages.bring(self.row(table), at, pages.pmd_order)
            return
        if row >= 0 and pages.how[row] == HUGE_ZERO:
            if self._huge_suits(span, table):
                pages.folio[row] = NONE
                pages.bring(row, at, pages.pmd_order)
                return
            pages.split_pmd(row)
        row = self.row(table)
        order = self._order(span, page, row) if state == NONE else 0
        pages.bring(row, at, order)

    def _order(self, span: Span, page: int, row: int) -> int:
        """The largest order that suits, and whose range is empty."""
        orders = self.orders(span) & ~(1 << self._bits)
        folio = self.pages.folio
        while orders:
            order = orders.bit_length() - 1
            start = page & -(1 << order)
            if span.start <= start and start + (1 << order) <= span.end:
                at = start & (self.pages.ptrs - 1)
                if not folio[row, at : at + (1 << order)].any():
                    return order
            orders &= ~(1 << order)
        return 0

    def populate(self, start: int, end: int) -> None:
        """Bring in each page of a range, as MAP_POPULATE and mlock() do. Kernel: mm/gup.c,
        populate_vma_page_range()."""
        page = start
        while page < end:
            span = self.find(page)
            if span is None:
                return
            if span.traits.prot and span.traits.backing is not Backing.OTHER:
                for each in range(page, min(end, span.end)):
                    self.touch(span, each, bool(span.traits.prot & PROT_WRITE))
            page = span.end

    def have(
        self, pages: NDArray[np.int64], orders: NDArray[np.uint8], folios: NDArray[np.uint64]
    ) -> None:
        """Have these pages from the start. A table that one huge page fills is mapped by it."""
        tables, which = np.unique(pages >> self._bits, return_inverse=True)
        rows = np.array([self.row(table) for table in tables.tolist()], np.int64)
        zero = orders == ZERO_PAGE
        low = pages & (self.pages.ptrs - 1)
        self.pages.folio[rows[which[zero]], low[zero]] = ZERO
        self.pages.put(rows[which[~zero]], low[~zero], orders[~zero], folios[~zero])
        first = self.pages.folio[rows, 0]
        whole = (self.pages.folio[rows] == first[:, None]).all(axis=1) & (first > 0)
        self.pages.how[rows[whole]] = BY_PMD
        self.anon += int(np.count_nonzero(~zero))
        for span in self.spans:
            self.prepare(span)

    def give(self, stack: Span, page: int) -> None:
        """Have what exec was given be on the stack: small pages, for it is not yet in its place then.
        Kernel: fs/exec.c, copy_strings(); mm/huge_memory.c, vma_is_temporary_stack()."""
        self.prepare(stack)
        for each in range(page, stack.end):
            row, at = self.row(each >> self._bits), each & (self.pages.ptrs - 1)
            self.pages.bring(row, at, 0)
            self.pages.store(row, at)
            self.anon += 1

    def see(
        self,
        look: int,
        first: NDArray[np.int64],
        end: NDArray[np.int64],
        zero: NDArray[np.bool_],
    ) -> None:
        """Note what a look says of the pages that are there. look: its number, from 1 up. first, end, zero:
        of each run of pages that it saw, ascending."""
        pages = self.pages
        tables = np.array(self._tables(int(first[0]), int(end[-1])), np.int64)
        for some in np.array_split(tables, 1 + len(tables) // TABLES_SEEN):
            rows = np.array([self.tables[table] for table in some.tolist()], np.int64)
            at = (some[:, None] << self._bits) + np.arange(pages.ptrs)
            run = np.searchsorted(first, at, side="right") - 1
            place, low = np.nonzero((run >= 0) & (at < end[run]) & (pages.folio[rows] > 0))
            said = np.where(zero[run[place, low]], look, -look)
            pages.seen[rows[place], low] = said

    # Fork and move

    def fork(self, settings: Settings) -> RecordedSpace:
        """The copy that a child gets. Kernel: kernel/fork.c, dup_mmap(); mm/memory.c, copy_page_range()."""
        child = RecordedSpace(self.pages, settings, self.vmas_known, self.khugepaged)
        child.brk = self.brk
        if self.registered and self.khugepaged is not None:
            self.khugepaged.enter(child)
        before = self.pages.rss
        for span in self.spans:
            if not span.traits.forked:
                continue
            anon = 0 if span.traits.wiped else span.anon
            # The child's has an anon_vma of its own, which keeps it from others' ranges.
            child._insert(replace(span, anon=next(_ANON) if anon else 0, inherited=bool(anon)))
            if not anon:
                continue
            for table, row, low, high in self.parts(span.start, span.end):
                new = child.row(table)
                if self.pages.how[row] != BY_PTES:
                    child.pages.how[new] = self.pages.how[row]
                self.pages.copy_row(row, low, high, new)
        child.anon = self.pages.rss - before
        return child

    def move(self, start: int, count: int, to: int) -> None:
        """Move the pages of a range. Kernel: mm/mremap.c, move_page_tables()."""
        pages, ptrs = self.pages, self.pages.ptrs
        whole = not (start | to) & (ptrs - 1)
        for table, row, low, high in list(self.parts(start, start + count)):
            at = (table << self._bits) + low - start + to
            if whole and high - low == ptrs and at >> self._bits not in self.tables:
                self.tables[at >> self._bits] = self.tables.pop(table)
                continue
            if pages.how[row] != BY_PTES:
                pages.split_pmd(row)
            left, here = high - low, low
            while left:
                size = min(left, ptrs - (at & (ptrs - 1)))
                pages.move(row, here, self.row(at >> self._bits), at & (ptrs - 1), size)
                at, here, left = at + size, here + size, left - size
