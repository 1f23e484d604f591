# SPDX-License-Identifier: GPL-2.0-or-later
"""What a capture leaves open of its pages: which are young, which MADV_FREE still holds, which are pinned.

smaps counts the first two for a mapping and names none. docs/decisions/0005-what-a-capture-cannot-see.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.image.capture.resident import kib_of
from mthp.image.snapshot import Kpf, ProcessTables, Pte, Snapshot, SnapshotVma
from mthp.words.units import Geometry
from mthp.worlds.arrays import painted, span, spans

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

    registered: whether khugepaged has the processes on its list; None: as deduced (is_taken_on()).
    marks: pid -> (n, PTRS) the pages that are young, in the place of `young`. held: the same of pages that
    others hold, in the place of what is likely. places: pid -> the place on that list, in the place of the
    order of start.
    """

    young: Young = Young.CAPTURED
    registered: bool | None = None
    leaning: Leaning = Leaning.LIKELY
    marks: Mapping[int, Pages] = field(default_factory=dict)
    held: Mapping[int, Pages] = field(default_factory=dict)
    places: Mapping[int, int] = field(default_factory=dict)


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
    here: Pages = (process.pte & np.uint16(Pte.PRESENT | Pte.ZERO)) == np.uint16(Pte.PRESENT)
    return here


def hidden_pins(process: ProcessTables) -> int:
    """Bytes that the process has pinned, and nobody knows where."""
    known = sum(end - start for start, end in process.pins)
    return max(0, (kib_of(process.meta["status"], "VmPin") or 0) - known)


def hidden_runs(process: ProcessTables, page_shift: int) -> list[int]:
    """The pages of each run that is held, and nobody knows where: what it pinned, and by pipe."""
    runs = (hidden_pins(process), *process.piped)
    return [-(-run >> page_shift) for run in runs if run]


def held_pages(process: ProcessTables, assumed: Assumed, geometry: Geometry) -> Pages:
    """Which pages of hidden runs others are taken to hold, as (n, PTRS).

    A buffer lies together: each run takes tables of its own, the fullest first, of those without known
    pins. So as few tables as can be are refused, and some are.
    """
    if process.pid in assumed.held:
        return assumed.held[process.pid]
    held = np.zeros(process.pte.shape, np.bool_)
    runs = hidden_runs(process, geometry.page_shift)
    if not runs:
        return held
    mapped = mapped_pages(process)
    for pin in process.pins:
        own = span(process.table_address, geometry, *pin)
        mapped[own.start // mapped.shape[1] : -(-own.stop // mapped.shape[1])] = False
    counts = np.count_nonzero(mapped, axis=1)
    rows = iter(np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist())
    for run in runs:
        while run > 0 and (row := next(rows, None)) is not None:
            pages = np.flatnonzero(mapped[row])[:run]
            held[row, pages] = True
            run -= len(pages)
    return held


def held_apart(
    process: ProcessTables, geometry: Geometry, windows: Iterable[tuple[int, int]]
) -> Pages:
    """The same where as little as can be collapses of windows (address, order): each page in a table of
    its own, first where the most would."""
    nr = geometry.ptrs_per_pte
    sizes: Counter[int] = Counter()
    first: dict[int, int] = {}
    mapped = mapped_pages(process).reshape(-1)
    for address, order in sorted(windows):
        own = span(process.table_address, geometry, address, address + geometry.order_bytes(order))
        pages = np.flatnonzero(mapped[own])
        if len(pages):
            row = own.start // nr
            sizes[row] += 1 << order
            first.setdefault(row, own.start + int(pages[0]))
    held = np.zeros(len(mapped), np.bool_)
    most = sum(hidden_runs(process, geometry.page_shift))
    held[[first[row] for row, _ in sizes.most_common(most)]] = True
    return held.reshape(process.pte.shape)


def referenced_pages(process: ProcessTables) -> Pages:
    """Whether each page's folio has PG_referenced, which khugepaged takes as used."""
    seen = process.page_flag(Kpf.REFERENCED)
    here = mapped_pages(process)
    return np.zeros_like(here) if seen is None else here & seen


class _Mappings(NamedTuple):
    """The captured mappings that have some pages of a kind: where their entries begin and end, and how many
    they have.
    """

    vmas: list[SnapshotVma]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    pages: NDArray[np.int64]

    @classmethod
    def with_pages(cls, snapshot: Snapshot, process: ProcessTables, which: Pages) -> _Mappings:
        vmas = [vma for vma in process.vmas if vma.captured]
        ranges = ((vma.start, vma.end) for vma in vmas)
        starts, ends = spans(process.table_address, snapshot.geometry, ranges)
        pages = _between(which, starts, ends)
        some = pages.nonzero()[0]
        return cls([vmas[k] for k in some.tolist()], starts[some], ends[some], pages[some])


def _between(which: Pages, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many are marked of the entries of each range."""
    places = np.flatnonzero(which)
    counts: NDArray[np.int64] = np.searchsorted(places, ends) - np.searchsorted(places, starts)
    return counts


def _young_in_mappings(
    snapshot: Snapshot, process: ProcessTables
) -> tuple[Pages, Pages, _Mappings, NDArray[np.int64]]:
    """The pages with PG_referenced, those without, the mappings of these, and how many of each smaps counts
    as referenced.
    """
    referenced = referenced_pages(process)
    others = mapped_pages(process) & ~referenced
    mappings = _Mappings.with_pages(snapshot, process, others)
    counts = np.array([vma.referenced for vma in mappings.vmas], np.int64)
    counts >>= snapshot.geometry.page_shift
    counts -= _between(referenced, mappings.starts, mappings.ends)
    return referenced, others, mappings, counts.clip(0, mappings.pages)


def surely_young(snapshot: Snapshot, process: ProcessTables) -> Pages:
    """The pages with PG_referenced, and all of mappings in which smaps counts every one as referenced."""
    referenced, others, mappings, counts = _young_in_mappings(snapshot, process)
    whole = counts == mappings.pages
    all_of_it = painted(others.size, mappings.starts, mappings.ends, whole)
    young: Pages = referenced | (others & all_of_it.reshape(others.shape))
    return young


def counted_young(snapshot: Snapshot, process: ProcessTables) -> Iterator[Counted]:
    """The pages without PG_referenced, and how many of them smaps counts as referenced, where that is
    neither none nor all.
    """
    _, others, mappings, counts = _young_in_mappings(snapshot, process)
    flat = others.reshape(-1)
    for k in ((counts > 0) & (counts < mappings.pages)).nonzero()[0].tolist():
        own = slice(int(mappings.starts[k]), int(mappings.ends[k]))
        yield Counted(mappings.vmas[k], own, np.flatnonzero(flat[own]), int(counts[k]))


def given_up_pages(process: ProcessTables) -> Pages:
    """The pages that MADV_FREE gave up, whether written since or not."""
    anon, backed, dirty = map(process.page_flag, (Kpf.ANON, Kpf.SWAPBACKED, Kpf.DIRTY))
    here = mapped_pages(process)
    if anon is None or backed is None or dirty is None:
        return np.zeros_like(here)
    return here & anon & ~backed & ~dirty


def counted_lazyfree(snapshot: Snapshot, process: ProcessTables) -> Iterator[Counted]:
    """The pages that MADV_FREE gave up, and how many of them smaps counts as not written since.

    Kernel: fs/proc/task_mmu.c, smaps_account().
    """
    given_up = given_up_pages(process)
    if not given_up.any():
        return
    for vma, start, end, _ in zip(*_Mappings.with_pages(snapshot, process, given_up), strict=True):
        own = slice(int(start), int(end))
        pages = np.flatnonzero(given_up.reshape(-1)[own])
        count = vma.lazyfree >> snapshot.geometry.page_shift
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
    young = surely_young(snapshot, process)
    flat = young.reshape(-1)
    mapped = np.count_nonzero(mapped_pages(process), axis=1)
    mostly = np.count_nonzero(process.pte & np.uint16(Pte.SWAPPED), axis=1) > mapped
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
