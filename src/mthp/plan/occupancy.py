# SPDX-License-Identifier: GPL-2.0-or-later
"""An image's page tables, sorted by what decides about them.

Each table that one anonymous mapping spans whole is of one TableKind. The others are never scanned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.image.runs import SPECIAL_SWAP_TYPE
from mthp.image.snapshot import Kpf, Pte
from mthp.image.sparse import picked
from mthp.mm.pgtable_types import DIRTY, YOUNG
from mthp.mm.swap_table import swp_offset, swp_type
from mthp.mm.vm_flags import VM_DROPPABLE, VM_LOCKED, VM_UFFD_MISSING, VM_UFFD_RWP, VM_UFFD_WP
from mthp.plan.bulk import PackedPages
from mthp.plan.packed import Bools, Counts, Words, ladder, pack
from mthp.predict.records import PartlyMapped
from mthp.words.profiles import Lazyfree, Profile
from mthp.words.units import Geometry
from mthp.worlds.arrays import (
    ImageCached,
    ImageProcess,
    ImageVma,
    TableArrays,
    painted,
    span,
    spans,
)

_Entries = NDArray[np.uint8]
"""(n, PTRS) a byte for each PTE of n tables. _FOLIO: none of these bits where it maps no page, else 1 + the
order of its folio. _IN_USE: the page is young or referenced. _SHARED: it is small, and others map it too."""

_FOLIO, _IN_USE, _SHARED = np.uint8(63), np.uint8(64), np.uint8(128)
_TABLES_AT_ONCE = 1024
_ODD_VMA = VM_DROPPABLE | VM_LOCKED | VM_UFFD_MISSING | VM_UFFD_RWP | VM_UFFD_WP
_NEEDED = np.uint64(1 << Kpf.ANON | 1 << Kpf.LRU | 1 << Kpf.SWAPBACKED)
_LOOKED_AT = _NEEDED | np.uint64(
    sum(
        1 << kpf
        for kpf in (Kpf.LOCKED, Kpf.SWAPCACHE, Kpf.UNEVICTABLE, Kpf.HWPOISON, Kpf.KSM, Kpf.MLOCKED)
    )
)
_WANTED = np.uint64(1 << Kpf.ANON | 1 << Kpf.LRU)
_OF_A_SCAN = _WANTED | np.uint64(1 << Kpf.LOCKED)
_ODD_ENTRY = ~np.uint16(Pte.PRESENT | Pte.ZERO | Pte.SOFT_DIRTY | Pte.EXCLUSIVE)
_SWAP_TYPE_BITS = 5
_SWAP_TYPES = np.uint64((1 << _SWAP_TYPE_BITS) - 1)
"""The bits of the type of a swap entry. Kernel: fs/proc/task_mmu.c, pte_to_pagemap_entry()."""


class TableKind(IntEnum):
    """What decides about a table.

    HUGE: a PMD maps it; nothing is to be done. REFUSED: its scan ends before any window whatever is set,
    since no page in it is in use, or for what one of its entries is. PLAIN: every entry is none, or of the
    zero page, or maps a page that it alone maps and nothing else refers to, so that occupancy decides,
    and the orders of folios. SHARED: the same, but that tables which are not in the image map some of the
    small pages too. TOGETHER: the same as SHARED, but that other tables of the image are among them. SWAPPED:
    as PLAIN, but that some entries are in swap slots that nothing else names. ODD: all others; the engine
    decides.
    """

    ODD = 0
    PLAIN = 1
    REFUSED = 2
    HUGE = 3
    SHARED = 4
    TOGETHER = 5
    SWAPPED = 6


_COUNTED = (TableKind.PLAIN, TableKind.SHARED, TableKind.TOGETHER, TableKind.SWAPPED)


class Plain(NamedTuple):
    """Plain tables of one process. row, vma: as Occupancy's. shared: pages that others map too. swapped:
    entries that are swapped out."""

    row: NDArray[np.intp]
    vma: NDArray[np.intp]
    pages: PackedPages
    shared: Words
    swapped: Words

    def rows(self, which: NDArray[np.intp]) -> Plain:
        """Some of the tables."""
        words = (each.take(which, axis=1) for each in (self.shared, self.swapped))
        return Plain(self.row[which], self.vma[which], self.pages.rows(which), *words)


@dataclass(frozen=True, eq=False)
class Occupancy:
    """The tables of one process that may be scanned, by address.

    row: of the process's tables. vma: the place of the mapping among the process's. kind: a TableKind.
    shared, swapped, in_use, holes: entries that map a small page which others map too; that are swapped out,
    or such; of pages in use; that are none or of the zero page. simple: the plain tables of small pages alone
    of which every aligned window that a folio may be made of has one in use, if it has any. others: the other
    plain ones. with_shared, together, with_swap: those that are SHARED, TOGETHER and SWAPPED.
    """

    row: NDArray[np.intp]
    vma: NDArray[np.intp]
    kind: NDArray[np.uint8]
    shared: Counts
    swapped: Counts
    in_use: Counts
    holes: Counts
    simple: Plain
    others: Plain
    with_shared: Plain
    together: Plain
    with_swap: Plain


def occupancy_of(
    process: ImageProcess,
    tied: Bools,
    profile: Profile,
    geometry: Geometry,
    again: NDArray[np.uint64],
) -> Occupancy:
    """Sort the tables of a process. tied: those that entangled() found, with all whose swap entries are not
    like those of a SWAPPED one. again: frames that mapped_again() found."""
    rows, vmas = _spanned(process, geometry)
    kinds = np.zeros(len(rows), np.uint8)
    counts = np.zeros((4, len(rows)), np.int64)
    special = _special_tables(process, geometry)[rows]
    none = _packed(np.zeros((0, geometry.ptrs_per_pte), np.uint8))
    empty = Plain(rows[:0], vmas[:0], none, none.in_use, none.in_use)
    parts: list[list[Plain]] = [[empty] for _ in range(5)]
    for first in range(0, len(rows), _TABLES_AT_ONCE):
        some = slice(first, first + _TABLES_AT_ONCE)
        tables = process.tables.rows(rows[some])
        found, is_plain = _plain(tables, geometry)
        is_plain &= ~(special | tied[rows])[some]
        if process.lost or tables.mm_ids is not None:
            is_plain &= (found & _FOLIO <= 1).all(axis=1)
        swapped: Bools = np.not_equal(tables.pte & np.uint16(Pte.SWAPPED), 0)
        kinds[some] = _kinds(found, is_plain, swapped, tables, again, geometry)
        kinds[some][_refused(tables, found, profile) & ~special[some]] = TableKind.REFUSED
        kinds[some][(tables.pte & np.uint16(Pte.HUGE) != 0).all(axis=1)] = TableKind.HUGE
        counts[:, some] = _counts(tables, found)
        of_kind = [np.flatnonzero(kinds[some] == kind) for kind in _COUNTED]
        alone = _is_simple(_packed(found[of_kind[0]]), geometry)
        of_kind[:1] = of_kind[0][alone], of_kind[0][~alone]
        for into, which in zip(parts, of_kind, strict=True):
            words = [_packed_if_any(each[which]) for each in (found & _SHARED != 0, swapped)]
            into.append(Plain(rows[some][which], vmas[some][which], _packed(found[which]), *words))
    return Occupancy(rows, vmas, kinds, *counts, *map(_all_of, parts))


def _kinds(
    found: _Entries,
    is_plain: Bools,
    swapped: Bools,
    tables: TableArrays,
    again: NDArray[np.uint64],
    geometry: Geometry,
) -> NDArray[np.uint8]:
    """Of some tables whether they are of a kind that is counted, or ODD. again: as occupancy_of() has it."""
    kinds = np.zeros(len(found), np.uint8)
    kinds[is_plain] = TableKind.PLAIN
    swaps: Bools = np.any(swapped, axis=1)
    shares = np.flatnonzero(np.any(found & _SHARED != 0, axis=1) & is_plain)
    swap = np.flatnonzero(swaps & is_plain)
    # What is read before a window of the PMD order is refused for a folio as large stays there.
    is_huge = np.any((found[swap] & _FOLIO) > geometry.pmd_order, axis=1)
    kinds[swap] = np.where(is_huge, TableKind.ODD, TableKind.SWAPPED)
    if len(shares):
        row, column = np.nonzero(found[shares] & _SHARED)
        frames = tables.pfn[shares[row], column]
        here = np.isin(frames, again)
        kinds[shares] = TableKind.SHARED
        kinds[shares[row[here]]] = TableKind.TOGETHER
        by_frame = np.lexsort((frames, row))
        twice = (np.diff(row[by_frame]) == 0) & (np.diff(frames[by_frame]) == 0)
        kinds[shares[row[by_frame][1:][twice]]] = TableKind.ODD
        kinds[shares[swaps[shares]]] = TableKind.ODD
    return kinds


def _all_of(parts: Sequence[Plain]) -> Plain:
    row, vma, pages, shared, swapped = zip(*parts, strict=True)
    joined = PackedPages.of_all(pages)
    return Plain(
        np.concatenate(row), np.concatenate(vma), joined, *map(np.hstack, (shared, swapped))
    )


def _is_simple(pages: PackedPages, geometry: Geometry) -> Bools:
    """Whether tables belong to Occupancy's simple ones."""
    order = min(geometry.anon_orders)
    some, used = (
        ladder(each, order, np.bitwise_or, geometry)[order] for each in (pages.mapped, pages.in_use)
    )
    found: Bools = np.all(some & ~used == 0, axis=0)
    found &= np.all(pages.mapped == pages.of_order[0], axis=0)
    return found


def _packed_if_any(bools: Bools) -> Words:
    return (
        pack(bools) if bools.any() else np.zeros((-(-bools.shape[1] // 64), len(bools)), np.uint64)
    )


def _packed(entries: _Entries) -> PackedPages:
    folio = entries & _FOLIO
    of_order = {
        order: pack(folio == 1 + order)
        for order, nr in enumerate(np.bincount(folio.reshape(-1), minlength=2)[1:].tolist())
        if nr or order == 0
    }
    return PackedPages(pack(entries & _IN_USE > 0), of_order)


def _spanned(
    process: ImageProcess, geometry: Geometry
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The rows that lie whole within an anonymous mapping, and the places of these mappings."""
    address = process.tables.table_address
    rows, vmas = [np.zeros(0, np.intp)], [np.zeros(0, np.intp)]
    for k, vma in enumerate(process.vmas):
        start, end = geometry.pmd_align_up(vma.start), geometry.pmd_addr(vma.end)
        if vma.file is None and start < end:
            first, last = np.searchsorted(address, np.array([start, end], np.uint64)).tolist()
            rows.append(np.arange(first, last))
            vmas.append(np.full(last - first, k))
    return np.concatenate(rows), np.concatenate(vmas)


def _special_tables(process: ImageProcess, geometry: Geometry) -> Bools:
    """The tables about which more decides than their arrays say: by what their mapping is, what a scenario
    knows of it, or since memory in them is pinned."""
    tables = process.tables
    odd: Bools = np.zeros(tables.pte.shape, np.bool_)
    pieces = [(vma.start, vma.end) for vma in process.vmas if _is_odd(vma)]
    for start, end in (*pieces, *process.pins):
        odd.reshape(-1)[span(tables.table_address, geometry, start, end)] = True
    found: Bools = np.any(odd, axis=1)
    return found


def _is_odd(vma: ImageVma) -> bool:
    return _is_known(vma) or bool(vma.vm_flags & _ODD_VMA)


def _is_known(vma: ImageVma) -> bool:
    known = vma.known
    return known is not None and any(
        (known.pins, known.extra_refs, known.locked, known.off_lru, known.poisoned)
    )


def _plain(tables: TableArrays, geometry: Geometry) -> tuple[_Entries, Bools]:
    """The pages of each table, and whether its entries are those of a plain one, or of one that is but for
    pages that others map too and for swap entries."""
    mapped = _mapped(tables)
    alone = tables.kpageflags & _LOOKED_AT == _NEEDED
    if tables.references is not None:
        alone &= tables.references == 0
    shared = mapped & (tables.kpagecount > 1)
    if shared.any():
        alone &= ~shared | (tables.folio_order == 0)
    plain: Bools = np.all(~mapped | alone, axis=1)
    plain &= np.all(
        (tables.pte & _ODD_ENTRY == 0) | (tables.pte & np.uint16(Pte.SWAPPED) != 0), axis=1
    )
    in_use = tables.bits & YOUNG != 0
    in_use |= tables.kpageflags & np.uint64(1 << Kpf.REFERENCED) != 0
    if tables.young is not None:
        in_use |= tables.young
    pages = np.where(mapped, 1 + tables.folio_order | np.where(in_use, _IN_USE, 0), 0)
    pages = pages.astype(np.uint8)
    pages[shared & (tables.folio_order == 0)] |= _SHARED
    large = np.flatnonzero((pages & _FOLIO > 1).any(axis=1))
    if len(large):
        plain[large] &= _large_in_place(tables.rows(large), pages[large], geometry)
    return pages, plain


def _mapped(tables: TableArrays) -> Bools:
    """Whether each entry maps memory."""
    here: Bools = (tables.pte & np.uint16(Pte.PRESENT | Pte.ZERO)) == np.uint16(Pte.PRESENT)
    return here


def _refused(tables: TableArrays, pages: _Entries, profile: Profile) -> Bools:
    """Whether each table's scan ends before any window whatever is set, in a mapping that is not special.

    Kernel: mm/khugepaged.c, collapse_scan_pmd().
    """
    flags = tables.kpageflags
    bad: Bools = (flags & _OF_A_SCAN != _WANTED) | (tables.pte & np.uint16(Pte.UFFD_WP) != 0)
    if profile.lazyfree is Lazyfree.REFUSE:
        bad |= (flags & np.uint64(1 << Kpf.SWAPBACKED) == 0) & (tables.bits & DIRTY == 0)
    if tables.references is not None:
        bad |= tables.references > 0
    bad &= _mapped(tables)
    bad |= tables.pte & np.uint16(Pte.SWAPPED | Pte.UFFD_WP) == Pte.SWAPPED | Pte.UFFD_WP
    found: Bools = np.any(bad, axis=1) | ~np.any(pages & _IN_USE, axis=1)
    return found


def _counts(tables: TableArrays, pages: _Entries) -> NDArray[np.int64]:
    """shared, swapped, in_use and holes of each table."""
    shared = (pages & _FOLIO == 1) & (tables.kpagecount > 1)
    swapped = tables.pte & np.uint16(Pte.SWAPPED) != 0
    holes = ~swapped & ~_mapped(tables)
    return np.stack([each.sum(axis=1) for each in (shared, swapped, pages & _IN_USE > 0, holes)])


def _large_in_place(tables: TableArrays, pages: _Entries, geometry: Geometry) -> Bools:
    """Whether each table maps all of its large folios where they lie aligned, and has them alone."""
    order = np.where(pages & _FOLIO > 0, tables.folio_order, 0)
    column = np.arange(geometry.ptrs_per_pte, dtype=np.uint64)
    size = np.uint64(1) << order.astype(np.uint64)
    in_place = ((column ^ tables.pfn) & (size - np.uint64(1)) == 0) | (pages & _FOLIO == 0)
    heads = tables.pfn & ~(size - np.uint64(1))
    for each in np.unique(order[order > 0]).tolist():
        # Windows of this order, and the folio of this order that is mapped in each, if any is.
        shape = (len(pages), -1, 1 << each)
        mine = (order == each).reshape(shape)
        head = np.where(mine, heads.reshape(shape), 0).max(axis=2, keepdims=True)
        alike = (~mine | (heads.reshape(shape) == head)).all(axis=2)
        in_place &= np.repeat(alike, 1 << each, axis=1)
    found: Bools = np.all(in_place, axis=1)
    return found


def entangled(
    processes: Sequence[ImageProcess],
    geometry: Geometry,
    cached: Sequence[ImageCached] = (),
    *,
    outside: bool = False,
) -> list[Bools]:
    """Of each process, the tables that hang together with others: by swap entries that are not in slots of
    their own, by a large folio that is mapped more than once or in several windows, or by a small page of
    which one of several mappings says that it is pinned or the like. An image's processes come together.
    (Else a small page's mapcount says all there is to say of those who share it.) cached: folios in the swap
    cache, which have their slots too. outside: others may name any slot.
    """
    found = []
    named = np.concatenate([_named_again(processes), _slots_of(cached)])
    heads, places = [np.zeros(0, np.uint64)], [np.zeros((3, 0), np.int64)]
    for number, process in enumerate(processes):
        tables = process.tables
        large = tables.folio_order > 0
        large[large] = picked(tables, "kpagecount", large) > 1
        swapped = tables.pte & np.uint16(Pte.SWAPPED) != 0
        row, column = np.nonzero(swapped)
        if not outside:
            swapped[row, column] = ~_in_slots_of_their_own(tables, row, column, named)
        found.append(np.any(np.logical_or(swapped, large), axis=1))
        head, row, window = _large_folios(tables)
        heads.append(head)
        places.append(np.stack([np.full(len(row), number), row, window]))
    head, place = np.concatenate(heads), np.hstack(places)
    by_head = np.argsort(head, kind="stable")
    apart = np.any(np.diff(place[:, by_head], axis=1) != 0, axis=0)
    again = head[by_head][1:][apart & (np.diff(head[by_head]) == 0)]
    for number, row in place[:2, np.isin(head, again)].T.tolist():
        found[number][row] = True
    told = np.concatenate(
        [np.zeros(0, np.uint64), *(_told_of(process, geometry) for process in processes)]
    )
    for process, tied in zip(processes, found, strict=True):
        if len(told):
            tied |= np.any(np.isin(process.tables.pfn, told) & _mapped(process.tables), axis=1)
    return found


def _named_again(processes: Sequence[ImageProcess]) -> NDArray[np.uint64]:
    """The swap entries, as captured, that several entries of the image name."""
    named = [
        picked(each.tables, "pfn", each.tables.pte & np.uint16(Pte.SWAPPED) != 0)
        for each in processes
    ]
    known, times = np.unique(np.concatenate([np.zeros(0, np.uint64), *named]), return_counts=True)
    found: NDArray[np.uint64] = known[times > 1]
    return found


def _slots_of(cached: Sequence[ImageCached]) -> NDArray[np.uint64]:
    """The swap entries, as captured, of folios in the swap cache."""
    slots = (
        entry for each in cached for entry in range(each.entry, each.entry + (1 << each.order))
    )
    found = [swp_type(entry) | (swp_offset(entry) or 0) << _SWAP_TYPE_BITS for entry in slots]
    return np.array(found, np.uint64)


def _in_slots_of_their_own(
    tables: TableArrays, row: NDArray[np.intp], column: NDArray[np.intp], named: NDArray[np.uint64]
) -> Bools:
    """Of some swap entries, whether nothing else is in their slot, in a device, as far as is known. An entry
    without an offset is in one of its own (see worlds/build.py). named: entries, as captured, in whose slots
    something is."""
    pte, slots = tables.pte[row, column], picked(tables, "pfn", row, column)
    found: Bools = pte & ~np.uint16(Pte.SOFT_DIRTY) == Pte.SWAPPED | Pte.EXCLUSIVE
    found &= slots & _SWAP_TYPES < SPECIAL_SWAP_TYPE
    found &= (slots <= _SWAP_TYPES) | ~np.isin(slots, named)
    return found


def _large_folios(
    tables: TableArrays,
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Where large folios are mapped, a run of entries that follow each other once: the frame of the folio's
    head, the row, and the window of the folio's size."""
    whole = (tables.pte & np.uint16(Pte.HUGE) != 0).all(axis=1)
    some = np.flatnonzero(np.any(tables.folio_order > 0, axis=1) & ~whole)
    here = (tables.folio_order[some] > 0) & (tables.pte[some] & np.uint16(Pte.PRESENT) != 0)
    which, column = np.nonzero(here)
    row = np.concatenate([np.flatnonzero(whole & (tables.folio_order[:, 0] > 0)), some[which]])
    column = np.concatenate([np.zeros(len(row) - len(column), np.intp), column])
    order = tables.folio_order[row, column]
    head, window = picked(tables, "pfn", row, column) >> order << order, column >> order
    begins = [np.diff(each, prepend=each[:1] + 1) != 0 for each in (head, row, window)]
    first = np.any(begins, axis=0)
    return head[first], row[first], window[first]


def mapped_again(processes: Sequence[ImageProcess]) -> NDArray[np.uint64]:
    """The frames of small pages that several entries of the image map."""
    frames = [np.zeros(0, np.uint64)]
    for process in processes:
        tables = process.tables
        small = _mapped(tables) & (tables.folio_order == 0)
        shared = picked(tables, "kpagecount", small) > 1
        frames.append(picked(tables, "pfn", small)[shared])
    known, times = np.unique(np.concatenate(frames), return_counts=True)
    found: NDArray[np.uint64] = known[times > 1]
    return found


def _told_of(process: ImageProcess, geometry: Geometry) -> NDArray[np.uint64]:
    """The frames of shared pages of which more is known where the process maps them."""
    tables = process.tables
    pieces = [(vma.start, vma.end) for vma in process.vmas if _is_known(vma)]
    at = [
        np.arange(each.start, each.stop)
        for each in (
            span(tables.table_address, geometry, *piece) for piece in (*pieces, *process.pins)
        )
    ]
    which = np.divmod(np.concatenate([*at, np.zeros(0, np.intp)]), geometry.ptrs_per_pte)
    shared = picked(tables, "kpagecount", *which) > 1
    shared &= tables.pte[which] & np.uint16(Pte.PRESENT | Pte.ZERO) == np.uint16(Pte.PRESENT)
    return picked(tables, "pfn", *which)[shared]


def anonymous_pages(process: ImageProcess, geometry: Geometry) -> Bools:
    """Which entries of a process map memory, in mappings that may have anonymous pages."""
    tables = process.tables
    ranges = [(vma.start, vma.end) for vma in process.vmas if vma.file is None or vma.anon_vma]
    ends = spans(tables.table_address, geometry, ranges)
    ours = painted(tables.pte.size, *ends, np.ones(len(ranges), np.bool_))
    found: Bools = _mapped(tables) & ours.reshape(tables.pte.shape)
    return found


def partly_mapped_of(processes: Sequence[ImageProcess], geometry: Geometry) -> PartlyMapped:
    """As measure.partly_mapped() has it of the world that is built of them: what the large folios hold of
    which not every page is mapped."""
    columns, whole = [np.zeros((4, 0), np.int64)], [np.zeros(0, np.uint64)]
    for process in processes:
        tables = process.tables
        large = anonymous_pages(process, geometry) & (tables.folio_order > 0)
        huge = (tables.pte & np.uint16(Pte.HUGE) != 0).all(axis=1)
        first = np.flatnonzero(huge & large[:, 0])
        whole.append(picked(tables, "pfn", first, np.zeros_like(first)))
        large[huge] = False
        row, place = np.nonzero(large)
        columns.append(
            np.stack(
                [
                    picked(tables, "pfn", row, place).astype(np.int64),
                    tables.folio_order[row, place],
                    picked(tables, "kpagecount", row, place),
                    tables.pte[row, place] & np.uint16(Pte.HUGE) != 0,
                ]
            ).astype(np.int64)
        )
        swapcache = picked(tables, "kpageflags", row, place) & np.uint64(1 << Kpf.SWAPCACHE) != 0
        columns[-1][3] |= swapcache * 2
    frame, order, count, how = np.hstack(columns)
    pages, first, times = np.unique(frame, return_index=True, return_counts=True)
    heads, begins = np.unique(pages >> order[first] << order[first], return_index=True)
    if not len(heads):
        return PartlyMapped()
    by_pmd, cached = (
        np.isin(heads, np.unique((frame >> order << order)[how & bit != 0])) for bit in (1, 2)
    )
    mapped = np.diff(begins, append=len(pages))
    missing = (np.int64(1) << order[first][begins]) - mapped
    outside = np.add.reduceat(np.maximum(count[first] - times, 0), begins)
    partly = (missing > 0) & ~by_pmd & ~np.isin(heads, np.concatenate(whole))
    held = missing << geometry.page_shift
    return PartlyMapped(
        int(np.count_nonzero(partly)),
        int(held[partly].sum()),
        int(held[partly & (outside == 0) & ~cached].sum()),
    )


def zeros_of(processes: Sequence[ImageProcess], geometry: Geometry) -> Counts | None:
    """How many pages hold nothing but zeros, of each huge folio that waits on the deferred-split queue with
    all of its pages mapped; None where the image does not tell.

    Kernel: mm/huge_memory.c, deferred_split_scan().
    """
    columns = [np.zeros((2, 0), np.int64)]
    for process in processes:
        tables = process.tables
        if tables.zero_filled is None or tables.queued is None:
            return None
        here = anonymous_pages(process, geometry) & tables.queued
        here &= tables.folio_order == geometry.pmd_order
        columns.append(np.stack([tables.pfn[here].astype(np.int64), tables.zero_filled[here]]))
    frame, filled = np.hstack(columns)
    pages, first = np.unique(frame, return_index=True)
    heads, begins = np.unique(pages >> geometry.pmd_order, return_index=True)
    if not len(heads):
        return np.zeros(0, np.int64)
    mapped = np.diff(begins, append=len(pages))
    found: Counts = np.add.reduceat(filled[first], begins)[mapped == geometry.ptrs_per_pte]
    return found
