# SPDX-License-Identifier: GPL-2.0-or-later
"""The form in which every image reaches the builder: processes as arrays of page-table entries.

A snapshot has most of it as it was read, and its assumptions fill in the rest; a scenario expands
to it and leaves nothing open. What only a scenario can know is a field with a default, and the
default is what is assumed of a snapshot.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.image.scenario_values import ScenarioVma
from mthp.image.sparse import Packing, kept
from mthp.mm.page_alloc import NodeState
from mthp.words.units import Geometry


@dataclass(frozen=True, eq=False)
class TableArrays(Packing):
    """The populated tables of one process, ascending. Arrays but table_address are (n, PTRS).

    table_address: (n,) first address of each table's range. pte: bits of image.snapshot.Pte, where
    EXCLUSIVE of a swap entry says that no other page table names its slot. bits: WRITE, YOUNG and
    DIRTY of present entries. pfn: the image's own number of the frame, such that a folio's frames
    are aligned and in a row; of a swap entry its type and offset << 5, where offset 0 is an unknown
    one. kpageflags: bits of Kpf. kpagecount: the page's mapcount. folio_order: log2 of pages.

    Of each page's folio, where the image has it: references: those beyond mappings and swap cache.
    mm_ids, mm_id_mapcounts: as the kernel keeps two of each in a word, ids being those of ImageProcess.
    node: NUMA node. young: whether it has PG_young. queued: whether it is on the deferred-split queue.

    zero_filled: whether the page holds nothing but zeros; where the image does not tell, none does.
    """

    table_address: NDArray[np.uint64]
    pte: NDArray[np.uint16]
    bits: NDArray[np.uint8]
    pfn: NDArray[np.uint64]
    kpageflags: NDArray[np.uint64]
    kpagecount: NDArray[np.uint32]
    folio_order: NDArray[np.uint8]
    references: NDArray[np.int64] | None = None
    mm_ids: NDArray[np.uint64] | None = None
    mm_id_mapcounts: NDArray[np.uint64] | None = None
    node: NDArray[np.uint8] | None = None
    young: NDArray[np.bool_] | None = None
    queued: NDArray[np.bool_] | None = None
    zero_filled: NDArray[np.bool_] | None = None

    @classmethod
    def blank(cls, table_address: NDArray[np.uint64], geometry: Geometry) -> TableArrays:
        """Tables that map nothing, to be filled in."""
        shape = len(table_address), geometry.ptrs_per_pte
        types = np.uint16, np.uint8, np.uint64, np.uint64, np.uint32, np.uint8
        return cls(table_address, *(np.zeros(shape, each) for each in types))

    def rows(self, which: slice | NDArray[np.intp]) -> TableArrays:
        """Some of the tables."""
        arrays = {name: kept(self, name) for name in TableArrays.__dataclass_fields__}
        some = {name: array[which] for name, array in arrays.items() if array is not None}
        return TableArrays(**some)


def span(table_address: NDArray[np.uint64], geometry: Geometry, start: int, end: int) -> slice:
    """The entries of [start, end), in bytes, as a slice of the flattened arrays."""
    places = []
    addresses = table_address.data  # of which Python's search takes a tenth of NumPy's time
    for address in (start, min(end, 2**64 - geometry.page_size)):
        base = geometry.pmd_addr(address)
        row = bisect_left(addresses, base)
        known = row < len(addresses) and addresses[row] == base
        places.append(row * geometry.ptrs_per_pte + known * geometry.pte_index(address))
    return slice(*places)


def spans(
    table_address: NDArray[np.uint64], geometry: Geometry, ranges: Iterable[tuple[int, int]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The entries of many ranges (start, end), as span() has each: where they begin, and where they end."""
    last = 2**64 - geometry.page_size
    starts_and_ends = np.fromiter(map(min, chain.from_iterable(ranges), repeat(last)), np.uint64)
    addresses = starts_and_ends.reshape(-1, 2).T.reshape(-1)
    bases = addresses & ~np.uint64(geometry.pmd_size - 1)
    rows = np.searchsorted(table_address, bases)
    known = np.append(table_address, np.uint64(1))[rows] == bases
    index = addresses >> np.uint64(geometry.page_shift) & np.uint64(geometry.ptrs_per_pte - 1)
    places = rows * geometry.ptrs_per_pte + known * index.astype(np.int64)
    return places[: len(places) // 2], places[len(places) // 2 :]


_MOST_OF_SMALL = 64
"""Entries of a range that it does not pay to look at by itself."""


def painted(
    size: int, starts: NDArray[np.int64], ends: NDArray[np.int64], values: NDArray[Any]
) -> NDArray[Any]:
    """So many entries, each with the value of the one range that it is in, or 0."""
    entries = np.zeros(size, values.dtype)
    large = ends - starts > _MOST_OF_SMALL
    for start, end, value in zip(starts[large], ends[large], values[large], strict=True):
        entries[start:end] = value
    first, sizes = starts[~large], (ends - starts)[~large]
    before = sizes.cumsum() - sizes
    entries[np.repeat(first - before, sizes) + np.arange(sizes.sum())] = np.repeat(
        values[~large], sizes
    )
    return entries


class ImageVma(NamedTuple):
    """One mapping, in bytes. place: where it stands among all mappings of the built world. known:
    what says which pages are pinned, referenced, locked, isolated or poisoned; None for a snapshot.
    """

    start: int
    end: int
    vm_flags: int
    anon_vma: bool
    name: str = ""
    file: str | None = None
    place: int = 0
    known: ScenarioVma | None = None


@dataclass(frozen=True)
class ImageMemcg:
    """A memory cgroup, in pages. reclaimable: what it could give back at its limit."""

    name: str
    limit: int
    usage: int
    reclaimable: int = 0


@dataclass(frozen=True, eq=False)
class ImageProcess:
    """One address space. mm_flags: MMF_* bits. memcg: index into the image's cgroups. pins: (start, end)
    in bytes of pinned memory.

    age: the lower, the sooner it mapped what several map. lost: large folios that it alone maps still
    count as shared, since they had come to know two other mms. place: on khugepaged's list, None where it
    is not there; equals stand in the image's order. mm_id: by which large folios know it. empty_tables:
    first addresses of the ranges of tables that are there with nothing in them.
    """

    pid: int
    name: str
    mm_flags: int
    memcg: int | None
    vmas: tuple[ImageVma, ...]
    tables: TableArrays
    pins: tuple[tuple[int, int], ...] = ()
    age: int = 0
    lost: bool = False
    place: int | None = 0
    mm_id: int | None = None
    empty_tables: tuple[int, ...] = ()


class ImageCached(NamedTuple):
    """A folio in the swap cache. entry: the slot of its first page. kpageflags: bits of Kpf. pfn: the image's
    number of its first frame, None where nobody maps a page of it."""

    entry: int
    order: int
    kpageflags: int
    pfn: int | None


@dataclass(frozen=True, eq=False)
class WorldArrays:
    """All that a world is built from. processes may be made one by one, as they are asked for.

    synchronous: swap is read without readahead (zram). outside: slot -> page tables outside the
    image that name it. torn: tables (pid, address) that changed while they were read. assumptions:
    sentences on what the image could not say. cursor: the place on its list, and the address, where
    khugepaged goes on; None where it begins. distances: of nodes from each other, none: all alike.
    node_reclaim: vm.zone_reclaim_mode is set. swap_cache: those known to stand for slots that entries name.
    """

    nodes: tuple[NodeState, ...]
    processes: Iterable[ImageProcess]
    memcgs: tuple[ImageMemcg, ...] = ()
    nr_cpus: int = 1
    synchronous: bool = True
    outside: Mapping[int, int] = field(default_factory=dict)
    torn: frozenset[tuple[int, int]] = frozenset()
    assumptions: tuple[str, ...] = ()
    cursor: tuple[int, int] | None = None
    distances: tuple[tuple[int, ...], ...] = ()
    node_reclaim: bool = False
    swap_cache: tuple[ImageCached, ...] = ()
