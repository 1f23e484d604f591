# SPDX-License-Identifier: GPL-2.0-or-later
"""What a world's anonymous memory is made of: folios, bytes and translations by order."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby, pairwise
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.mm.mm_types import Kernel, Mm, Vma
from mthp.mm.page_flags import ENTIRELY_MAPPED, PG_PARTIALLY_MAPPED
from mthp.mm.pgtable_types import (
    HUGE,
    KIND_MASK,
    KIND_SHIFT,
    PFN_SHIFT,
    PRESENT,
    SPECIAL,
    Leaf,
    pmd_is_table,
    pmd_pgtable,
)
from mthp.predict.records import OrderUse, PartlyMapped
from mthp.worlds.build import mapped_frame


class TlbModel(StrEnum):
    """How many translations memory needs."""

    PLAIN = "plain"
    """One for each PMD mapping, else one for each PTE."""
    CONTPTE = "contpte"
    """Like plain, but 16 aligned PTEs of one folio share one (arm64, 4K pages)."""


_PTES_AT_ONCE = 1 << 16
"""TableEntries that are looked at together."""
CONTPTES = 16
"""PTEs behind one contiguous translation. Kernel: arch/arm64/include/asm/pgtable-hwdef.h."""


@dataclass(frozen=True)
class Measured:
    """What some mappings use, as arrays of a value each: mapped bytes by folio order, of the zero page, and
    of what is swapped out; and the large folios, each beside the number of a mapping that maps it. In all:
    folios, where a page or folio that several map counts once, and the translations that reach all of it.
    """

    bytes: Mapping[int, NDArray[np.int64]]
    zero: NDArray[np.int64]
    swapped: NDArray[np.int64]
    large: tuple[NDArray[np.int64], NDArray[np.int64]]
    orders: dict[int, OrderUse]
    partly_mapped: PartlyMapped
    translations: int

    def by_mapping(self) -> list[dict[int, int]]:
        """The mapped bytes of each mapping by folio order, the lowest first."""
        each: list[dict[int, int]] = [{} for _ in self.zero]
        for order, sizes in sorted(self.bytes.items()):
            there = np.flatnonzero(sizes)
            for k, size in zip(there.tolist(), sizes[there].tolist(), strict=True):
                each[k][order] = size
        return each


def measure(kernel: Kernel, vmas: Sequence[Vma], tlb: TlbModel) -> Measured:
    """What these mappings hold now. Not a step."""
    mapped = np.zeros(kernel.mem.nr_frames, np.bool_)
    page_size, nr = kernel.geometry.page_size, len(vmas)
    zero, swapped = np.zeros(nr, np.int64), np.zeros(nr, np.int64)
    pages: dict[int, NDArray[np.int64]] = {}
    large = [np.zeros(0, np.int64)]
    reached = 0
    for entries in entries_of(kernel, vmas):
        owners, frames = entries.owners, entries.pfns != 0
        mapped[entries.pfns[frames]] = True
        is_zero = (entries.words & PRESENT != 0) & ~frames
        zero += np.bincount(owners[is_zero], minlength=nr)
        swapped += np.bincount(owners[_swapped(entries.words)], minlength=nr)
        for order in np.flatnonzero(np.bincount(entries.orders[frames])).tolist():
            of_order = owners[frames & (entries.orders == order)]
            pages[order] = pages.get(order, 0) + np.bincount(of_order, minlength=nr)
        is_large = frames & (entries.orders > 0)
        large.append(np.unique(owners[is_large] * len(mapped) + entries.heads[is_large]))
        huge = entries.huge.some(entries.huge.pmds & PRESENT != 0)
        folios = huge.pmds >> PFN_SHIFT
        is_folio = folios != 0
        np.add.at(zero, huge.owners[~is_folio], huge.counts[~is_folio])
        if is_folio.any():
            some = huge.some(is_folio)
            of_pmds = pages.setdefault(kernel.geometry.pmd_order, np.zeros(nr, np.int64))
            np.add.at(of_pmds, some.owners, some.counts)
            large.append(some.owners * len(mapped) + folios[is_folio])
            for k, first in enumerate((folios[is_folio] + some.indices).tolist()):
                mapped[first : first + some.counts[k]] = True
        reached += translations_of(entries, tlb)
    numbers, heads = np.divmod(np.unique(np.concatenate(large)), len(mapped))
    return Measured(
        bytes={order: count * page_size for order, count in pages.items()},
        zero=zero * page_size,
        swapped=swapped * page_size,
        large=(numbers, heads),
        orders=_orders(kernel, mapped),
        partly_mapped=partly_mapped(kernel, np.unique(heads).tolist()),
        translations=reached,
    )


def _swapped(words: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which entries are of pages in swap."""
    swap: NDArray[np.bool_] = (words != 0) & (
        words & (PRESENT | KIND_MASK) == Leaf.SWAP << KIND_SHIFT
    )
    return swap


def translations_of(entries: TableEntries, tlb: TlbModel) -> int:
    """How many translations reach all of some entries."""
    reached = int(np.count_nonzero(entries.words & PRESENT))
    reached += int(np.count_nonzero(entries.huge.pmds & PRESENT))
    if tlb is TlbModel.CONTPTE:
        reached -= _whole_blocks(entries) * (CONTPTES - 1)
    return reached


def _orders(kernel: Kernel, mapped: NDArray[np.bool_]) -> dict[int, OrderUse]:
    """The folios of each order of which some frame is mapped."""
    mem, page_size = kernel.mem, kernel.geometry.page_size
    pages, folios = (np.zeros(mem.order.view().max() + 1, np.int64) for _ in range(2))
    last = 0
    for at in range(0, mem.nr_frames, _PTES_AT_ONCE):
        some = slice(at, at + _PTES_AT_ONCE)
        heads = mem.head.view()[: mem.nr_frames][some][mapped[some]]
        orders = mem.order.view()[heads]
        pages += np.bincount(orders, minlength=len(pages))
        is_first = np.diff(heads, prepend=last) != 0  # a folio's frames stand in a row
        folios += np.bincount(orders[is_first], minlength=len(pages))
        last = heads[-1] if len(heads) else last
    return {
        order: OrderUse(count, size * page_size)
        for order, (count, size) in enumerate(zip(folios.tolist(), pages.tolist(), strict=True))
        if count
    }


def partly_mapped(kernel: Kernel, large: Iterable[int]) -> PartlyMapped:
    """What those of some large folios hold, of which not every page is mapped. Not a step.

    Of a folio that others map as well, which this world does not have, the pages that they alone map
    are taken to be unmapped; reclaim is not said to get them back.
    """
    mem, page_size = kernel.mem, kernel.geometry.page_size
    folios = held = reclaimable = 0
    for folio in large:
        unmapped = (1 << mem.order.raw[folio]) - (mem.nr_pages_mapped.raw[folio] & ~ENTIRELY_MAPPED)
        if unmapped > 0 and not mem.entire_mapcount.raw[folio]:
            folios += 1
            held += unmapped * page_size
            if mem.flags.raw[folio] & PG_PARTIALLY_MAPPED:
                reclaimable += unmapped * page_size
    return PartlyMapped(folios, held, reclaimable)


class TablePart(NamedTuple):
    """The part of one table's range that belongs to a mapping; nr PTEs from the first on.

    pmd: the value of its slot.
    """

    address: int
    first: int
    nr: int
    pmd: int


def populated_parts(vma: Vma) -> Iterator[TablePart]:
    """Every part of a mapping whose PMD is not none, in order. Not a step."""
    mm = vma.vm_mm
    geometry = mm.geometry
    nr = geometry.ptrs_per_pte
    page_span = geometry.pmd_shift + geometry.pmd_order
    first_page = bisect_left(mm.pmd_numbers, vma.vm_start >> page_span)
    last_page = bisect_right(mm.pmd_numbers, vma.vm_end - 1 >> page_span)
    for number in mm.pmd_numbers[first_page:last_page]:
        page = mm.pmd_pages[number]
        first = number << page_span
        low = max(0, (vma.vm_start - first) >> geometry.pmd_shift)
        high = min(nr, -(-(vma.vm_end - first) >> geometry.pmd_shift))
        there = page.pmds.view()[low:high].nonzero()[0].tolist() if high - low > 1 else [0]
        for slot in (low + each for each in there):
            pmd = page.pmds.raw[slot]
            base = first + (slot << geometry.pmd_shift)
            start = max(base, vma.vm_start)
            count = (min(base + geometry.pmd_size, vma.vm_end) - start) >> geometry.page_shift
            if pmd:
                yield TablePart(start, geometry.pte_index(start), count, pmd)


class Parts(NamedTuple):
    """Parts of some mappings' tables as arrays, one value of each a part: the number of the mapping that it
    belongs to, and the fields of TablePart.
    """

    owners: NDArray[Any]
    addresses: NDArray[Any]
    indices: NDArray[Any]
    counts: NDArray[Any]
    pmds: NDArray[Any]

    def some(self, which: slice | NDArray[np.bool_]) -> Parts:
        """Some of them."""
        return Parts(*(column[which] for column in self))

    def each(self) -> Iterator[tuple[int, TablePart]]:
        """Each by itself, and its mapping's number."""
        for owner, *fields in zip(*(column.tolist() for column in self), strict=True):
            yield owner, TablePart(*fields)


def parts_of(vmas: Iterable[Vma]) -> Parts:
    """What populated_parts() gives of each of some mappings, all at once. Not a step."""
    found, nr = [_NO_PARTS], 0
    for mm, alike in groupby(vmas, attrgetter("vm_mm")):
        own = list(alike)
        found.append(_parts_of(mm, own, nr))
        nr += len(own)
    return Parts(*map(np.concatenate, zip(*found, strict=True)))


def _parts_of(mm: Mm, vmas: list[Vma], nr_before: int) -> Parts:
    geometry = mm.geometry
    size, page_shift = np.uint64(geometry.pmd_size), np.uint64(geometry.page_shift)
    shift, nr = np.uint64(geometry.pmd_shift), geometry.ptrs_per_pte
    starts = np.array([vma.vm_start for vma in vmas], np.uint64)
    ends = np.array([vma.vm_end for vma in vmas], np.uint64)
    slots, pmds = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    first_page, last_page = (
        int(at) // nr >> geometry.pmd_shift for at in (starts.min(), ends.max())
    )
    pages = mm.pmd_numbers
    for number in pages[bisect_left(pages, first_page) : bisect_right(pages, last_page)]:
        words = mm.pmd_pages[number].pmds.view()
        there = words.nonzero()[0]
        slots.append((there + number * nr).astype(np.uint64) << shift)
        pmds.append(words[there])
    bases, values = np.concatenate(slots), np.concatenate(pmds)
    low = np.searchsorted(bases, starts & ~(size - np.uint64(1)))
    high = np.searchsorted(bases, ends)
    tables = high - low
    own = np.repeat(np.arange(len(vmas)), tables)
    slot = np.arange(tables.sum()) - np.repeat(tables.cumsum() - tables - low, tables)
    bases, first = bases[slot], np.maximum(bases[slot], starts[own])
    pages_each = (np.minimum(bases + size, ends[own]) - first) >> page_shift
    return Parts(
        own + nr_before,
        first,
        ((first - bases) >> page_shift).astype(np.int64),
        pages_each.astype(np.int64),
        values[slot],
    )


_NO_PARTS = Parts(
    np.zeros(0, np.intp),
    np.zeros(0, np.uint64),
    *(np.zeros(0, np.int64) for _ in range(3)),
)


@dataclass(frozen=True, slots=True)
class TableEntries:
    """Parts of some mappings' tables.

    huge: those that a PMD maps. parts: the others, whose words follow one another from starts on;
    owners: the mapping's number of each word; pfns: 0 where it is no page; orders: of the folio behind.
    """

    huge: Parts
    parts: Parts
    starts: NDArray[np.intp]
    owners: NDArray[np.intp]
    words: NDArray[np.int64]
    pfns: NDArray[np.int64]
    heads: NDArray[np.int64]
    orders: NDArray[np.int8]


def entries_of(kernel: Kernel, vmas: Iterable[Vma]) -> Iterator[TableEntries]:
    """All populated parts of some mappings, so many at once that no mapping is too small for NumPy, and no
    more tables than have so many entries. Not a step.
    """
    parts = parts_of(vmas)
    other = np.diff(parts.pmds, prepend=0) != 0
    piece = (other * kernel.geometry.ptrs_per_pte).cumsum() // _PTES_AT_ONCE
    borders = np.flatnonzero(np.diff(piece, prepend=-1, append=-1)).tolist()
    for first, end in pairwise(borders):
        yield _entries(kernel, parts.some(slice(first, end)))


def _entries(kernel: Kernel, parts: Parts) -> TableEntries:
    are_tables = parts.pmds & (PRESENT | SPECIAL | HUGE) == PRESENT
    tables = parts.some(are_tables)
    counts = tables.counts
    starts = counts.cumsum() - counts
    distinct, inverse = np.unique(tables.pmds, return_inverse=True)
    there = [kernel.tables[pmd_pgtable(pmd)].ptes.view() for pmd in distinct.tolist()]
    first = inverse * kernel.geometry.ptrs_per_pte + tables.indices
    at = np.repeat(first - starts, counts) + np.arange(counts.sum())
    words = np.concatenate([np.zeros(0, np.int64), *there])[at]
    pfns = np.where(words & PRESENT, words >> PFN_SHIFT, 0)
    heads = kernel.mem.head.view()[pfns]
    return TableEntries(
        huge=parts.some(~are_tables),
        parts=tables,
        starts=starts,
        owners=np.repeat(tables.owners, counts),
        words=words,
        pfns=pfns,
        heads=heads,
        orders=kernel.mem.order.view()[heads],
    )


def _whole_blocks(entries: TableEntries) -> int:
    """How many blocks of PTEs there are of which one contiguous translation may stand for each."""
    frames = entries.pfns != 0
    sizes = np.diff(entries.starts, append=len(entries.words))
    before = entries.parts.indices - entries.starts
    index = (np.arange(len(entries.words)) + np.repeat(before, sizes))[frames]
    number = np.repeat(np.arange(len(sizes)), sizes)[frames] * len(entries.words)
    pfns, heads = entries.pfns[frames], entries.heads[frames]
    blocks, first, inverse, pages = np.unique(
        number + index // CONTPTES, return_index=True, return_inverse=True, return_counts=True
    )
    follows = (np.diff(inverse) == 0) & (np.diff(heads) == 0) & (np.diff(pfns) == 1)
    steps = np.bincount(inverse[1:][follows], minlength=len(blocks))
    whole = (pages == CONTPTES) & (steps == CONTPTES - 1) & (pfns[first] % CONTPTES == 0)
    return int(np.count_nonzero(whole))


def held_in_tables(kernel: Kernel, vmas: Iterable[Vma], tables: frozenset[tuple[int, int]]) -> int:
    """Bytes of the entries that hold something in the tables (mm, address). Not a step."""
    held = 0
    for vma in vmas if tables else ():
        for part in populated_parts(vma):
            if (vma.vm_mm.number, kernel.geometry.pmd_addr(part.address)) not in tables:
                continue
            if not pmd_is_table(part.pmd):
                held += part.nr
                continue
            ptes = kernel.tables[pmd_pgtable(part.pmd)].ptes.view()
            held += int(np.count_nonzero(ptes[part.first : part.first + part.nr]))
    return held * kernel.geometry.page_size


def frames_in_use(kernel: Kernel) -> int:
    """As Allocator.frames_out(), less the folios that nothing but an LRU batch still holds. Not a step."""
    held = Counter(
        folio
        for cpu in kernel.cpus
        for folio in (
            *cpu.lru_add.value,
            *cpu.lru_lazyfree.value,
            *(folio for folio, _ in cpu.mlock.value),
        )
    )
    refcount = kernel.mem.refcount.raw
    waiting = sum(
        kernel.mem.folio_nr_pages(folio) for folio, n in held.items() if refcount[folio] == n
    )
    return kernel.mem.allocator.frames_out() - waiting


def folios_of(kernel: Kernel, vma: Vma) -> Iterator[tuple[int, int, int]]:
    """(address, order, pages) of each folio a mapping maps: where it begins there, and how many of its
    pages are mapped in that table. Not a step.
    """
    page_size = kernel.geometry.page_size
    for part in populated_parts(vma):
        if not pmd_is_table(part.pmd):
            if part.pmd & PRESENT and part.pmd >> PFN_SHIFT:
                yield part.address, kernel.geometry.pmd_order, part.nr
            continue
        table = kernel.tables[pmd_pgtable(part.pmd)].ptes.view()
        ptes = table[part.first : part.first + part.nr]
        at = np.flatnonzero((ptes & PRESENT != 0) & (ptes >> PFN_SHIFT != 0))
        heads = kernel.mem.head.view()[ptes[at] >> PFN_SHIFT]
        begins = np.flatnonzero(np.diff(heads, prepend=-1))
        pages = np.diff(begins, append=len(heads))
        orders = kernel.mem.order.view()[heads[begins]]
        for i, order, count in zip(
            at[begins].tolist(), orders.tolist(), pages.tolist(), strict=True
        ):
            yield part.address + i * page_size, order, count


def page_order(vma: Vma, address: int) -> int | None:
    """The order of the folio that address maps, None where it maps none. Not a step."""
    mem = vma.vm_mm.kernel.mem
    pfn = mapped_frame(vma.vm_mm, address)
    return mem.order.raw[mem.head.raw[pfn]] if pfn else None
