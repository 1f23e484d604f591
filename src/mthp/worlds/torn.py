# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of a capture that changed while they were read.

The capture reads a table until it comes to rest, and marks those that never did. But tables are read
one after another, so a frame that is freed and used again in between stands in two of them; that shows
only here, where all are seen together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mthp.image.snapshot import Kpf, ProcessTables, Pte, Snapshot
from mthp.image.sparse import kept, picked

ASSUMED_FLAGS = 1 << Kpf.LRU | 1 << Kpf.ANON | 1 << Kpf.SWAPBACKED | 1 << Kpf.UPTODATE
"""The kpageflags of a page of which nothing is known."""
_ORDER_BITS = 6
_MOST_ORDER = (1 << _ORDER_BITS) - 1

_MOST_FRAMES_A_PAGE = 64

Pages = NDArray[np.bool_]
_NONE = np.zeros(0, np.uint64)


def settled(snapshot: Snapshot) -> tuple[Snapshot, frozenset[tuple[int, int]]]:
    """The snapshot with a base page of its own for each page that cannot be as it was read, and the
    tables (pid, address) that are marked, or hold such a page, or one that another table contradicts.
    """
    wrong = [_misfits(process) for process in snapshot.processes]
    torn = [cast(Pages, pages.any(axis=1)) for pages in wrong]
    for index, clash, other in _clashes(snapshot, wrong):
        wrong[index] |= clash
        torn[index] |= (clash | other).any(axis=1)
    frames = (
        int(picked(process, "pfn", _mapped(process)).max(initial=0))
        for process in snapshot.processes
        if kept(process, "pfn") is not None
    )
    fresh = 1 + max(frames, default=0)
    processes, names = [], set()
    for process, pages, rows in zip(snapshot.processes, wrong, torn, strict=True):
        if process.table_torn is not None:
            rows |= process.table_torn != 0
        names |= {(process.pid, int(address)) for address in process.table_address[rows]}
        processes.append(_repaired(process, pages, rows, fresh) if rows.any() else process)
        fresh += process.pte.size
    return replace(snapshot, processes=tuple(processes)), frozenset(names)


def _mapped(process: ProcessTables) -> Pages:
    here: Pages = (process.pte & np.uint16(Pte.PRESENT | Pte.ZERO)) == np.uint16(Pte.PRESENT)
    return here


def _misfits(process: ProcessTables) -> Pages:
    """Pages that are not anonymous, or whose frames nobody maps: no anonymous mapping has such."""
    here = _mapped(process)
    wrong: Pages = here & ((process.pte & np.uint16(Pte.FILE)) != 0)
    anon = process.page_flag(Kpf.ANON)
    if anon is not None:
        wrong |= here & ~anon
    if kept(process, "kpagecount") is not None:
        wrong[here] |= picked(process, "kpagecount", here) == 0
    return wrong


def _keys(process: ProcessTables, pages: Pages) -> NDArray[np.uint64]:
    """A number for the folio of each page: its head frame, then the larger order first."""
    assert process.folio_order is not None
    order = process.folio_order[pages].astype(np.uint64)
    head = picked(process, "pfn", pages) >> order << order
    return head << np.uint64(_ORDER_BITS) | np.uint64(_MOST_ORDER) - order


def _clashes(snapshot: Snapshot, wrong: list[Pages]) -> Iterator[tuple[int, Pages, Pages]]:
    """(process's index, pages, pages): which cannot be so beside others, and which those others are.

    Base pages that are mapped oftener than their count says, and folios within larger ones.
    """
    seen = [
        (index, process, _mapped(process) & ~wrong[index])
        for index, process in enumerate(snapshot.processes)
        if kept(process, "pfn") is not None and process.folio_order is not None
    ]
    if _are_base_pages_mapped_once(seen):
        return
    keys = np.sort(np.concatenate([_keys(process, here) for _, process, here in seen] or [_NONE]))
    first = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    folios = keys[first]
    uses = np.diff(np.flatnonzero(first), append=len(keys))
    heads = folios >> np.uint64(_ORDER_BITS)
    orders = np.uint64(_MOST_ORDER) - (folios & np.uint64(_MOST_ORDER))
    ends = heads + (np.uint64(1) << orders)
    inside, around = np.zeros((2, len(folios)), np.bool_)
    inside[1:] = heads[1:] < np.maximum.accumulate(ends)[:-1]
    around[:-1] = heads[1:] < ends[:-1]
    several = (uses > 1) & (orders == 0)
    if not (inside.any() or several.any()):
        return
    places = [np.searchsorted(folios, _keys(process, here)) for _, process, here in seen]
    if all(kept(process, "kpagecount") is not None for _, process, _ in seen):
        most = np.zeros(len(folios), np.uint32)
        for (_, process, here), at in zip(seen, places, strict=True):
            np.maximum.at(most, at, picked(process, "kpagecount", here))
        inside |= several & (uses > most)
    for (index, _, here), at in zip(seen, places, strict=True):
        clash, other = np.zeros_like(here), np.zeros_like(here)
        clash[here], other[here] = inside[at], around[at]
        yield index, clash, other


def _are_base_pages_mapped_once(seen: list[tuple[int, ProcessTables, Pages]]) -> bool:
    """Whether all pages are base pages of different frames, found without sorting; False where frames lie so
    far apart that marking them takes too much."""
    frames = [_NONE]
    for _, process, here in seen:
        assert process.folio_order is not None
        if process.folio_order.any(where=here):
            return False
        frames.append(picked(process, "pfn", here))
    every = np.concatenate(frames)
    end = int(every.max(initial=0)) + 1
    if end > _MOST_FRAMES_A_PAGE * len(every):
        return False
    there = np.zeros(end, np.bool_)
    there[every] = True
    return int(np.count_nonzero(there)) == len(every)


def _repaired(process: ProcessTables, wrong: Pages, torn: Pages, fresh: int) -> ProcessTables:
    """The process with wrong pages as unknown base pages; fresh: frames from here on are free.

    What a PMD maps in a torn table is taken as mapped by PTEs, unless it is one whole folio.
    """
    pte = process.pte.copy()
    pte[wrong] &= ~np.uint16(Pte.FILE)
    if process.pfn is None or process.kpageflags is None or process.folio_order is None:
        return replace(process, pte=pte)
    nr = pte.shape[1]
    numbers = fresh + np.arange(pte.size, dtype=np.uint64).reshape(pte.shape)
    pfn = np.where(wrong, numbers, process.pfn)
    flags = np.where(wrong, np.uint64(ASSUMED_FLAGS), process.kpageflags)
    order = np.where(wrong, np.uint8(0), process.folio_order)
    counts = process.kpagecount
    if counts is not None:
        counts = np.where(wrong, np.uint32(1), counts)
    heads = pfn - np.arange(nr, dtype=np.uint64)
    whole = (heads == heads[:, :1]).all(axis=1) & (heads[:, 0] % np.uint64(nr) == 0)
    whole &= (order == nr.bit_length() - 1).all(axis=1)
    whole |= ((pte & np.uint16(Pte.ZERO)) != 0).all(axis=1)
    pte[torn & ~whole] &= ~np.uint16(Pte.HUGE)
    process = replace(
        process, pte=pte, pfn=pfn, kpageflags=flags, kpagecount=counts, folio_order=order
    )
    if process.deep is None:
        return process
    once = {"refcount": 1, "folio_mapcount": 1, "folio_state": 0, "mm_ids": 0, "mm_id_mapcounts": 0}
    return replace(
        process,
        **{
            name: np.where(wrong, column.dtype.type(value), column)
            for name, value in once.items()
            if (column := getattr(process, name)) is not None
        },
    )
