# SPDX-License-Identifier: GPL-2.0-or-later
"""One table of a replayed address space is scanned, and its windows collapsed, in the rows of a PageStore.

The clear twin is khugepaged/: collapse_scan_pmd(), mthp_collapse() and what they call. Windows and orders are
chosen by the engine's own walk, and counted by its own counters. Memory is never short, and nobody holds a
lock or a reference here but the LRU batch, which decides outcomes as it does in the kernel.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.khugepaged.control import Caller, CollapseControl
from mthp.khugepaged.limits import (
    collapse_max_ptes_none,
    collapse_max_ptes_shared,
    collapse_max_ptes_swap,
    count_collapse_event,
    exceeded,
)
from mthp.khugepaged.order_walk import attempted, windows
from mthp.life.recorded_pages import BY_PTES, GUARD, OLD, PageStore
from mthp.life.recorded_space import RecordedSpace
from mthp.mm.folio import FOLIO_BATCH_SIZE
from mthp.mm.mm_types import Kernel
from mthp.words.events import OrderWalk
from mthp.words.profiles import FaultUse, ScanCost
from mthp.words.results import Refused, ScanResult


class TableScan(NamedTuple):
    """What a scan of a table came to. cost: of pages_to_scan. dropped: mmap_lock was let go, since the scan
    passed and windows were chosen."""

    result: ScanResult
    cost: int
    dropped: bool


class Remembered(NamedTuple):
    """A table of which nothing came, and nobody but its process maps its pages: as long as it maps the same,
    nothing comes of it again. counted: what counters said of it, besides."""

    folios: bytes
    orders: int
    found: TableScan
    counted: tuple[Counter[tuple[int, str]], Counter[str]]


class View(NamedTuple):
    """A table's entries, as lists. order: of the folio; 0 where there is none."""

    row: int
    folio: list[int]
    order: list[int]
    shared: list[bool]
    referenced: list[bool]


class TableCollapse:
    """Scans tables, and collapses their windows. all_young: every page counts as used.

    collapsed: windows, by order. copied, filled: pages. lacking: windows (row, offset, order) that were
    refused since none of their pages was used, as far as faults show it.
    """

    def __init__(self, pages: PageStore, kernel: Kernel, *, all_young: bool) -> None:
        self.pages = pages
        self.kernel = kernel
        self.all_young = all_young
        self.batch: list[int] = []
        self.collapsed: Counter[int] = Counter()
        self.copied = self.filled = 0
        self.lacking: set[tuple[int, int, int]] = set()
        self._cc = CollapseControl(Caller.KHUGEPAGED)
        self._known: dict[int, Remembered] = {}
        self._marks_faults = kernel.profile.fault_use is FaultUse.REFERENCED
        self._none_guarded = bytes(pages.ptrs)
        self._isolated = 0

    def scan(self, space: RecordedSpace, row: int, orders: int, *, locked: bool) -> TableScan:
        """Scan the table of a row; it may then have other folios. orders: that its mapping may be collapsed
        to (bitmap). locked: the mapping is. Kernel: mm/khugepaged.c, collapse_scan_pmd()."""
        pages = self.pages
        per_pte = self.kernel.profile.progress is ScanCost.PER_PTE
        if pages.how[row] != BY_PTES:
            return TableScan(ScanResult.PMD_MAPPED, int(per_pte), dropped=False)
        alone = not self.batch and pages.guarded[row].tobytes() == self._none_guarded
        folios = pages.folio[row].tobytes() if alone else b""
        known = self._known.get(row)
        stat = self.kernel.vmstat
        if known is not None and alone and known.folios == folios and known.orders == orders:
            stat.mthp.update(known.counted[0])
            stat.events.update(known.counted[1])
            return known.found
        before = stat.mthp.copy(), stat.events.copy(), self.collapsed.total(), self._isolated
        found = self._scan(space, row, orders, locked=locked)
        found = found._replace(cost=found.cost if per_pte else 0)
        if alone and before[2:] == (self.collapsed.total(), self._isolated):
            counted = stat.mthp - before[0], stat.events - before[1]
            self._known[row] = Remembered(folios, orders, found, counted)
        return found

    def drain(self) -> None:
        """Empty the LRU batch. Kernel: lru_add_drain_all()."""
        self.batch.clear()

    def _scan(self, space: RecordedSpace, row: int, orders: int, *, locked: bool) -> TableScan:
        pages, kernel, pmd = self.pages, self.kernel, self.pages.pmd_order
        folio = pages.folio[row]
        there, guards = folio > 0, folio == GUARD
        shared = self._shared(space, row, folio, there)
        referenced = self._referenced(row, folio, there)
        limit = collapse_max_ptes_none(kernel, self._cc, None, pmd)
        if orders != 1 << pmd:
            limit = pages.ptrs - 1
        ends = [
            (_exceeds(~there & ~guards, limit), ScanResult.EXCEED_NONE_PTE),
            (_exceeds(guards, collapse_max_ptes_swap(kernel, self._cc, pmd)), ScanResult.EXCEED_SWAP_PTE),
            (_exceeds(shared, collapse_max_ptes_shared(kernel, self._cc, pmd)), ScanResult.EXCEED_SHARED_PTE),
        ]  # fmt: skip
        if self.batch:
            waiting = np.isin(folio, np.array(self.batch, np.int32)) & there
            ends.append((_exceeds(waiting, 0), ScanResult.PAGE_LRU))
        at, result = min(ends, key=lambda each: each[0])
        if at < pages.ptrs:
            if result is not ScanResult.PAGE_LRU:
                exceeded(kernel, pmd, result)
            return TableScan(result, at + 1, dropped=False)
        used, unmapped = int(np.count_nonzero(referenced)), int(np.count_nonzero(guards))
        if not used or (unmapped and used < pages.ptrs // 2):
            if there.any():
                self.lacking.add((row, 0, pmd))
            return TableScan(ScanResult.LACK_REFERENCED_PAGE, pages.ptrs, dropped=False)
        view = View(
            row,
            folio.tolist(),
            np.where(there, pages.order[folio], 0).tolist(),
            shared.tolist(),
            referenced.tolist(),
        )
        present = int.from_bytes(np.packbits(there, bitorder="little").tobytes(), "little")
        result = self._walk(view, OrderWalk(0, 0, present, unmapped, orders), locked)
        return TableScan(result, pages.ptrs, dropped=True)

    def _shared(
        self,
        space: RecordedSpace,
        row: int,
        folio: NDArray[np.int32],
        there: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Which pages are of folios that other spaces map too. Kernel: folio_maybe_mapped_shared().

        Divergence: a large folio that more than two spaces mapped is nobody's alone in the kernel for longer.
        """
        pages = self.pages
        found = np.zeros(pages.ptrs, np.bool_)
        if not pages.guarded[row].any():
            return found
        each, which, ours = np.unique(folio[there], return_inverse=True, return_counts=True)
        others = pages.mapped[each] > ours
        for k in np.flatnonzero(others).tolist():
            if int(each[k]) in pages.scattered:
                others[k] = pages.mapped[each[k]] > space.maps(int(each[k]), row)
        found[there] = others[which]
        return found

    def _referenced(
        self, row: int, folio: NDArray[np.int32], there: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Which pages are used, as khugepaged counts it. Kernel: folio_pte_referenced()."""
        if self.all_young:
            return there
        young = (self.pages.guarded[row] & OLD) == 0
        if self._marks_faults:
            young |= self.pages.faulted[folio]
        found: NDArray[np.bool_] = there & young
        return found

    def _walk(self, view: View, seen: OrderWalk, locked: bool) -> ScanResult:
        """Attempt windows. Kernel: mm/khugepaged.c, mthp_collapse()."""

        def collapse(offset: int, order: int) -> ScanResult:
            count_collapse_event(self.kernel, order, "thp_collapse_alloc", "collapse_alloc")
            try:
                self._collapse(view, offset, order, seen.unmapped, locked)
            except Refused as refusal:
                return refusal.result
            return ScanResult.SUCCEED

        return attempted(windows(self.kernel, self._cc, seen), collapse)

    def _collapse(self, view: View, offset: int, order: int, unmapped: int, locked: bool) -> None:
        """Collapse a window. Refused: as collapse_huge_page()."""
        if unmapped and GUARD in view.folio[offset : offset + (1 << order)]:
            # __collapse_huge_page_swapin(): a marker cannot be swapped in.
            if order == self.pages.pmd_order:
                raise Refused(ScanResult.FAIL)
            self.kernel.vmstat.count_mthp_stat(order, "collapse_exceed_swap_pte")
            raise Refused(ScanResult.EXCEED_SWAP_PTE)
        window = _Window(self, view, offset, order)
        try:
            window.isolate()
        except Refused:
            taken = view.folio[offset : offset + window.done]
            self._isolated += any(folio > 0 for folio in taken)
            self._put_back(window)
            raise
        for i in range(offset, offset + (1 << order)):
            if view.folio[i] > 0 and not view.order[i]:
                self._add_to_lru(view.folio[i])
        if window.large or not locked:
            self.drain()
        there = self.pages.collapse(view.row, offset, order)
        self.collapsed[order] += 1
        self.copied += there
        self.filled += (1 << order) - there

    def _put_back(self, window: _Window) -> None:
        """Give isolated folios back. Kernel: mm/khugepaged.c, release_pte_pages()."""
        view, first = window.view, window.offset
        for i in range(first + window.done - 1, first - 1, -1):
            if view.folio[i] > 0 and not view.order[i]:
                self._add_to_lru(view.folio[i])
        if window.large:
            self.drain()

    def _add_to_lru(self, folio: int) -> None:
        """A small folio waits for the LRU. Kernel: mm/folio.c, folio_add_lru()."""
        self.batch.append(folio)
        if len(self.batch) >= FOLIO_BATCH_SIZE:
            self.drain()


def _exceeds(which: NDArray[np.bool_], limit: int | None) -> int:
    """Where the first page is with which there are more than limit; beyond the end if there is none."""
    places = np.flatnonzero(which)
    return int(places[limit]) if limit is not None and len(places) > limit else len(which)


class _Window:
    """What __collapse_huge_page_isolate() has taken of a window: of the first `done` PTEs."""

    def __init__(self, table: TableCollapse, view: View, offset: int, order: int) -> None:
        self.table = table
        self.view = view
        self.offset = offset
        self.order = order
        self.done = 0
        self.large: set[int] = set()

    def isolate(self) -> None:
        """Isolate every folio. Refused: EXCEED_NONE_PTE, EXCEED_SHARED_PTE, PTE_MAPPED_HUGEPAGE, PAGE_COUNT,
        LACK_REFERENCED_PAGE. Kernel: mm/khugepaged.c, __collapse_huge_page_isolate()."""
        kernel, cc = self.table.kernel, self.table._cc
        max_none = collapse_max_ptes_none(kernel, cc, None, self.order)
        max_shared = collapse_max_ptes_shared(kernel, cc, self.order)
        none = shared = referenced = 0
        for i in range(self.offset, self.offset + (1 << self.order)):
            if self.view.folio[i] <= 0:
                none += 1
                if max_none is None or none > max_none:
                    raise exceeded(kernel, self.order, ScanResult.EXCEED_NONE_PTE)
            else:
                shared += self.view.shared[i]
                if shared > max_shared:
                    raise exceeded(kernel, self.order, ScanResult.EXCEED_SHARED_PTE)
                self._take(i)
                referenced += self.view.referenced[i]
            self.done += 1
        if not referenced:
            self.table.lacking.add((self.view.row, self.offset, self.order))
            raise Refused(ScanResult.LACK_REFERENCED_PAGE)

    def _take(self, i: int) -> None:
        """Isolate the folio of an entry."""
        folio, order = self.view.folio[i], self.view.order[i]
        if self.order < self.table.pages.pmd_order and order >= self.order:
            raise Refused(ScanResult.PTE_MAPPED_HUGEPAGE)
        if folio in self.large:
            return
        if folio in self.table.batch:
            raise Refused(ScanResult.PAGE_COUNT)
        if order:
            self.large.add(folio)
