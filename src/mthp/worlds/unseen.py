# SPDX-License-Identifier: GPL-2.0-or-later
"""What a capture leaves open of its pages: which are young, and which MADV_FREE still holds.

smaps counts both for a mapping and names none. docs/decisions/0005-what-a-capture-cannot-see.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.image.capture.resident import kib_of
from mthp.image.snapshot import Kpf, ProcessTables, Pte, Snapshot, SnapshotVma
from mthp.worlds.arrays import span

Pages = NDArray[np.bool_]


class Young(StrEnum):
    """What decides which pages are taken to be young."""

    CAPTURED = "captured"
    ALL = "all"
    NONE = "none"


class Leaning(StrEnum):
    """Which way all else that is open is taken: as is likely, or so that the least or the most collapses."""

    LIKELY = "likely"
    LEAST = "least"
    MOST = "most"


@dataclass(frozen=True, eq=False)
class Assumed:
    """What is taken of that which a capture leaves open.

    registered: whether khugepaged has the processes on its list; None: as deduced, and where that is not
    known, it has. marks: pid -> (n, PTRS)
    the pages that are young, in the place of `young`.
    """

    young: Young = Young.CAPTURED
    registered: bool | None = None
    leaning: Leaning = Leaning.LIKELY
    marks: Mapping[int, Pages] = field(default_factory=dict)


LIKELY: Final = Assumed()


class Counted(NamedTuple):
    """Pages of one mapping of which smaps says how many are meant, and not which.

    own: the mapping's entries, of the flattened arrays. pages: indices within it. meant: how many of them.
    """

    vma: SnapshotVma
    own: slice
    pages: NDArray[np.intp]
    meant: int

    @property
    def open(self) -> bool:
        """Whether it is neither none of them nor all."""
        return 0 < self.meant < len(self.pages)


def mapped_pages(process: ProcessTables) -> Pages:
    """Whether each PTE maps memory."""
    here: Pages = (process.pte & (Pte.PRESENT | Pte.ZERO)) == Pte.PRESENT
    return here


def hidden_pins(process: ProcessTables) -> int:
    """Bytes that the process has pinned, and nobody knows where."""
    known = sum(end - start for start, end in process.pins)
    return max(0, (kib_of(process.meta["status"], "VmPin") or 0) - known)


def referenced_pages(process: ProcessTables) -> Pages:
    """Whether each page's folio has PG_referenced, which khugepaged takes as used."""
    seen = process.page_flag(Kpf.REFERENCED)
    here = mapped_pages(process)
    return np.zeros_like(here) if seen is None else here & seen


def counted_young(snapshot: Snapshot, process: ProcessTables) -> Iterator[Counted]:
    """The pages without PG_referenced, and how many of them smaps counts as referenced."""
    referenced = referenced_pages(process)
    others = (mapped_pages(process) & ~referenced).reshape(-1)
    flagged = referenced.reshape(-1)
    shift = snapshot.geometry.page_shift
    for vma in process.vmas:
        if vma.captured:
            own = span(process.table_address, snapshot.geometry, vma.start, vma.end)
            pages = np.flatnonzero(others[own])
            count = (vma.referenced >> shift) - int(np.count_nonzero(flagged[own]))
            yield Counted(vma, own, pages, min(max(0, count), len(pages)))


def counted_lazyfree(snapshot: Snapshot, process: ProcessTables) -> Iterator[Counted]:
    """The pages that MADV_FREE gave up, and how many of them smaps counts as not written since.

    Kernel: fs/proc/task_mmu.c, smaps_account().
    """
    anon, backed, dirty = map(process.page_flag, (Kpf.ANON, Kpf.SWAPBACKED, Kpf.DIRTY))
    if anon is None or backed is None or dirty is None:
        return
    given_up = (mapped_pages(process) & anon & ~backed & ~dirty).reshape(-1)
    if not given_up.any():
        return
    for vma in process.vmas:
        if vma.captured:
            own = span(process.table_address, snapshot.geometry, vma.start, vma.end)
            pages = np.flatnonzero(given_up[own])
            count = vma.lazyfree >> snapshot.geometry.page_shift
            if len(pages):
                yield Counted(vma, own, pages, min(count, len(pages)))


def clean_lazyfree(snapshot: Snapshot, process: ProcessTables, leaning: Leaning) -> Pages:
    """Which pages MADV_FREE gave up and nobody wrote since, as (n, PTRS).

    Where some were written again, those are taken that were used, then others, evenly spread. Leaning,
    as many tables as can be keep one that was not, or as few.
    """
    clean = np.zeros(process.pte.size, np.bool_)
    used = referenced_pages(process).reshape(-1)
    nr = snapshot.geometry.ptrs_per_pte
    for counted in counted_lazyfree(snapshot, process):
        pages = counted.pages + counted.own.start
        if leaning is Leaning.LIKELY:
            written = np.zeros_like(clean)
            more = len(pages) - counted.meant
            for group in (pages[used[pages]], pages[~used[pages]]):
                more -= _spread(more, written, group)
            clean[pages] = ~written[pages]
            continue
        _, first, which, sizes = np.unique(
            pages // nr, return_index=True, return_inverse=True, return_counts=True
        )
        rank = np.arange(len(pages)) - first[which]
        key = rank if leaning is Leaning.LEAST else -sizes[which]
        clean[pages[np.argsort(key, kind="stable")[: counted.meant]]] = True
    return clean.reshape(process.pte.shape)


def young_pages(snapshot: Snapshot, process: ProcessTables, assumed: Assumed) -> Pages:
    """Whether each PTE is taken to be young, as (n, PTRS).

    PG_referenced where it was seen. What smaps counts as referenced beyond that it does not
    name: taken are first the pages that stand alone in tables mostly swapped out, for they
    stayed or came back because they were used, then the mapping's others, and last those that
    MADV_FREE gave up, which made them old; evenly spread.
    """
    shape = process.pte.shape
    if process.pid in assumed.marks:
        return assumed.marks[process.pid]
    if assumed.young is not Young.CAPTURED:
        return np.full(shape, assumed.young is Young.ALL, np.bool_)
    young = referenced_pages(process)
    flat = young.reshape(-1)
    mapped = np.count_nonzero(mapped_pages(process), axis=1)
    mostly = np.count_nonzero(process.pte & Pte.SWAPPED, axis=1) > mapped
    last = clean_lazyfree(snapshot, process, assumed.leaning).reshape(-1)
    alone = np.repeat(mostly, shape[1])
    for counted in counted_young(snapshot, process):
        part, missing = flat[counted.own], counted.meant
        pages = counted.pages
        late = last[counted.own][pages]
        first = alone[counted.own][pages] & ~late
        for group in (pages[first], pages[~first & ~late], pages[late]):
            missing -= _spread(missing, part, group)
    return young


def _spread(count: int, marks: Pages, pages: NDArray[np.intp]) -> int:
    """Mark so many of the pages, evenly spread, or all; returns how many."""
    count = max(0, min(count, len(pages)))
    if count:
        marks[pages[np.arange(count) * len(pages) // count]] = True
    return count
