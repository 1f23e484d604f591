# SPDX-License-Identifier: GPL-2.0-or-later
"""Draws what a plan is held against the engine for: images with tables of every kind, a profile, settings.

Each draw is that of its seed alone, so that a number is enough to see it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random

import numpy as np

from mthp.image.snapshot import Kpf, Pte
from mthp.mm.page_alloc import NodeState
from mthp.mm.pgtable_types import DIRTY, WRITE, YOUNG
from mthp.words.profiles import Profile
from mthp.words.settings import Enabled, Settings
from mthp.worlds.arrays import ImageMemcg, ImageProcess, ImageVma, TableArrays, WorldArrays
from tests.plan.images import (
    ANON,
    BASE,
    GEOMETRY,
    PAGE,
    PTRS,
    SIZE,
    Frames,
    fill_by_runs,
    random_flags,
    random_profile,
    swap_out,
)

SPOILS = (
    "off the LRU", "lazyfree", "lazyfree, dirty", "references", "uffd", "uffd, swapped out", "locked",
    "KSM", "swap cache", "unevictable", "mlocked", "of a file",
)  # fmt: skip
"""What may be wrong with one page, so that the scan or the window or nobody refuses it."""


@dataclass(frozen=True)
class Draw:
    """What was drawn."""

    arrays: WorldArrays
    settings: Settings
    profile: Profile


def drawn(rnd: Random) -> Draw:
    """Settings first, so that tables can be drawn at their limits."""
    settings = _settings(rnd)
    frames = Frames()
    number = rnd.choice((1, 1, 1, 1, 2, 3))
    rows = rnd.randint(4, 40 // number)
    shape = rows, PTRS
    references, young = rnd.random() < 0.3, rnd.random() < 0.3
    calm = rnd.random() < 0.85
    owners = []
    for _ in range(number):
        address = np.uint64(BASE) + np.arange(rows, dtype=np.uint64) * np.uint64(SIZE)
        tables = replace(
            TableArrays.blank(address, GEOMETRY),
            references=np.zeros(shape, np.int64) if references else None,
            young=np.zeros(shape, np.bool_) if young else None,
        )
        for row in range(rows):
            _table(rnd, tables, row, frames, settings, calm=calm)
        owners.append(tables)
    forked = number > 1 and rnd.random() < 0.8
    if forked:
        _fork(rnd, owners, settings)
    _count_mappings(rnd, owners, settings, outside=rnd.choice((0.0, 0.0, 0.1, 0.5)))
    processes = []
    for each, tables in enumerate(owners):
        process = ImageProcess(
            100 + each, "drawn", 0, None, _mappings(rnd, tables), tables,
            age=each, place=None if rnd.random() < 0.05 else each,
        )  # fmt: skip
        if rnd.random() < 0.08:
            at = BASE + rnd.randrange(rows * PTRS) * PAGE
            process = replace(process, pins=((at, at + rnd.choice((1, 1, 9, 600)) * PAGE),))
        for row in range(rows):
            if rnd.random() < 0.12:
                _swap_some(rnd, process, row, frames, settings)
        processes.append(process)
    return Draw(_image(rnd, processes, rows), settings, random_profile(rnd))


def _settings(rnd: Random) -> Settings:
    """Any mask of sizes, and numbers at their ends, near them, and anywhere."""

    def limit() -> int:
        return rnd.choice((0, 0, 511, 511, 1, 510, 64, 255, 256, 409, rnd.randrange(PTRS)))

    # The smallest sizes cost the engine most, and are drawn less often.
    any_of, one = rnd.randrange(256), 1 << rnd.choice((0, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6))
    mask = rnd.choice((any_of, any_of & ~3, one, 128, 128, 128 | one))
    sizes = {
        order: rnd.choice((Enabled.ALWAYS,) * 6 + (Enabled.MADVISE, Enabled.INHERIT))
        if mask << 2 >> order & 1
        else Enabled.NEVER
        for order in GEOMETRY.anon_orders
    }
    return Settings(
        sizes=sizes,
        enabled=rnd.choice((Enabled.ALWAYS,) * 4 + (Enabled.MADVISE, Enabled.NEVER)),
        max_ptes_none=limit(),
        max_ptes_swap=limit(),
        max_ptes_shared=limit(),
        defrag=rnd.random() < 0.8,
        pages_to_scan=rnd.choice((1, 511, 700, 4096, 4096, 100_000)),
    )


def _image(rnd: Random, processes: list[ImageProcess], rows: int) -> WorldArrays:
    """The machine around the processes: mostly with memory without end."""
    nodes = (NodeState(None),)
    if rnd.random() < 0.04:
        nodes = (NodeState({0: 400, 3: 40, 9: rnd.choice((2, 200))}, reserve=rnd.choice((0, 20))),)
    memcgs: tuple[ImageMemcg, ...] = ()
    if rnd.random() < 0.04:
        memcgs = (ImageMemcg("a", 1 << 20, rnd.choice((100, (1 << 20) - 600))),)
        processes[0] = replace(processes[0], memcg=0)
    cursor = None
    if rnd.random() < 0.2:
        cursor = rnd.randrange(len(processes)), BASE + rnd.randrange(rows) * SIZE
    return WorldArrays(nodes, processes, memcgs, synchronous=rnd.random() < 0.7, cursor=cursor)


def _mappings(rnd: Random, tables: TableArrays) -> tuple[ImageVma, ...]:
    """Mappings side by side, which may meet within a table, and may be apart."""
    rows = len(tables.pte)
    huge = (tables.pte & Pte.HUGE != 0).any(axis=1)
    cuts = {0, rows * PTRS}
    for _ in range(rnd.choice((0, 0, 1, 3))):
        cut = rnd.choice((rnd.randrange(rows * PTRS), rnd.randrange(rows) * PTRS))
        if cut and not (cut % PTRS and huge[cut // PTRS]):
            cuts.add(cut)
    return tuple(
        ImageVma(
            BASE + start * PAGE, BASE + end * PAGE, random_flags(rnd), rnd.random() < 0.97, place=k
        )
        for k, (start, end) in enumerate(pairwise(sorted(cuts)))
    )


def _table(
    rnd: Random, tables: TableArrays, row: int, frames: Frames, settings: Settings, *, calm: bool
) -> None:
    """Fill one table by one of several recipes, and spoil a page of some."""
    recipe = rnd.choice(
        (
            "runs",
            "runs",
            "pages",
            "pages",
            "buddies",
            "buddies",
            "few",
            "limit",
            "limit",
            "large",
            "huge",
        )
    )
    if recipe == "runs":
        fill_by_runs(rnd, tables, row, frames, [], odd=0.0)
    elif recipe == "huge":
        tables.pte[row] = Pte.HUGE | Pte.PRESENT
        if rnd.random() < 0.3:
            tables.pte[row] |= np.uint16(Pte.ZERO)
        else:
            _map(rnd, tables, row, np.arange(PTRS), frames.take(9), 9)
    else:
        _map_small(rnd, tables, row, _occupied(rnd, recipe, settings), frames)
        if recipe == "large":
            _large(rnd, tables, row, frames)
    if recipe != "huge" and rnd.random() < (0.003 if calm else 0.1):
        mapped = np.flatnonzero((tables.pte[row] & (Pte.PRESENT | Pte.ZERO)) == Pte.PRESENT)
        if len(mapped):
            for at in rnd.sample(mapped.tolist(), min(len(mapped), rnd.choice((1, 1, 3)))):
                _spoil(rnd.choice(SPOILS), tables, row, at)


def _occupied(
    rnd: Random, recipe: str, settings: Settings
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which entries of a table map something."""
    dice = np.random.default_rng(rnd.getrandbits(32))
    pages = np.ones(PTRS, np.bool_)
    if recipe == "pages":
        pages = dice.random(PTRS) < rnd.choice((0.001, 0.01, 0.1, 0.5, 0.9, 0.97, 0.998, 1.0))
    elif recipe == "few":
        pages[:] = False
        pages[rnd.sample(range(PTRS), rnd.choice((0, 1, 1, 2, 5)))] = True
    elif recipe == "limit":
        holes = min(max(settings.max_ptes_none + rnd.choice((-1, 0, 0, 1)), 0), PTRS)
        pages[rnd.sample(range(PTRS), holes)] = False
    elif recipe == "buddies":
        # Windows of any order that are there, or not, or as their halves have it.
        for order in range(9, -1, -1):
            some = dice.random(PTRS >> order)
            share = rnd.choice((0.0, 0.1, 0.4))
            grid = pages.reshape(-1, 1 << order)
            grid[some < share / 2] = False
            grid[some > 1 - share / 4] = True
    return pages


def _map(
    rnd: Random, tables: TableArrays, row: int, at: np.ndarray[tuple[int], np.dtype[np.intp]],
    first: int, order: int,
) -> None:  # fmt: skip
    """Map the frames from first on at some places of a row, which nobody else maps."""
    tables.pte[row, at] |= np.uint16(Pte.PRESENT | Pte.EXCLUSIVE)
    tables.pfn[row, at] = np.uint64(first) + np.arange(len(at), dtype=np.uint64)
    tables.kpagecount[row, at] = 1
    tables.folio_order[row, at] = order
    tables.kpageflags[row, at] = ANON
    tables.bits[row, at] = WRITE | DIRTY
    if rnd.random() < 0.7:
        tables.bits[row, at] |= np.uint8(YOUNG)
    if rnd.random() < 0.2:
        tables.kpageflags[row, at] |= np.uint64(1 << Kpf.REFERENCED)
    if tables.young is not None and rnd.random() < 0.3:
        tables.young[row, at] = True


def _map_small(
    rnd: Random, tables: TableArrays, row: int,
    pages: np.ndarray[tuple[int], np.dtype[np.bool_]], frames: Frames,
) -> None:  # fmt: skip
    """Map small pages where there are to be some; of them as many are in use as may be."""
    dice = np.random.default_rng(rnd.getrandbits(32))
    at = np.flatnonzero(pages)
    _map(rnd, tables, row, at, frames.take(0, max(len(at), 1)), 0)
    used = dice.random(len(at)) < rnd.choice((0.0, 0.002, 0.05, 0.5, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0))
    tables.bits[row, at] = np.where(used, WRITE | DIRTY | YOUNG, WRITE | DIRTY)
    if rnd.random() < 0.2:
        zero = np.flatnonzero(~pages & (dice.random(PTRS) < rnd.choice((0.1, 0.9))))
        tables.pte[row, zero] = Pte.PRESENT | Pte.ZERO


def _large(rnd: Random, tables: TableArrays, row: int, frames: Frames) -> None:
    """Map large folios in the place of small pages: whole, in part, moved, or at two places."""
    for _ in range(rnd.choice((1, 1, 3, 8))):
        order = rnd.randint(1, 8)
        nr = 1 << order
        at = rnd.randrange(PTRS >> order) << order
        how = rnd.choice(("whole", "whole", "whole", "part", "part", "moved", "holes"))
        start, end = (0, nr) if how in ("whole", "holes") else sorted(rnd.sample(range(nr + 1), 2))
        shift = rnd.choice((nr >> 1, nr, 1)) if how == "moved" else 0
        if at + shift + end > PTRS:
            continue
        places = np.arange(at + shift + start, at + shift + end)
        if (tables.folio_order[row, places] > 0).any():
            continue
        kept = np.ones(len(places), np.bool_)
        if how == "holes":
            kept = np.random.default_rng(rnd.getrandbits(32)).random(len(places)) < 0.8
            for column in (
                tables.pte,
                tables.bits,
                tables.kpageflags,
                tables.kpagecount,
                tables.pfn,
            ):
                column[row, places] = 0
        first = frames.take(order)
        for place in places[kept].tolist():
            tables.pte[row, place] = 0
        _map(rnd, tables, row, places[kept], first, order)
        tables.pfn[row, places[kept]] = first + start + np.flatnonzero(kept).astype(np.uint64)


def _spoil(what: str, tables: TableArrays, row: int, at: int) -> None:
    """Make something of one page."""
    order = int(tables.folio_order[row, at])
    # A flag is the folio's.
    folio = tables.pfn >> np.uint64(order) == tables.pfn[row, at] >> np.uint64(order)
    folio &= (tables.folio_order == order) & (tables.kpageflags != 0)

    def flag(kpf: Kpf, *, on: bool) -> None:
        bit = np.uint64(1 << kpf)
        tables.kpageflags[folio] = (
            (tables.kpageflags[folio] | bit) if on else tables.kpageflags[folio] & ~bit
        )

    if what == "off the LRU":
        flag(Kpf.LRU, on=False)
    elif what.startswith("lazyfree"):
        flag(Kpf.SWAPBACKED, on=False)
        if "dirty" not in what:
            tables.bits[row, at] &= ~np.uint8(DIRTY)
    elif what == "references" and tables.references is not None:
        tables.references[folio] = 1
    elif what == "uffd":
        tables.pte[row, at] |= np.uint16(Pte.UFFD_WP)
    elif what == "uffd, swapped out":
        swap_out_one(tables, row, at)
        tables.pte[row, at] |= np.uint16(Pte.UFFD_WP)
    elif what == "of a file" and not order:
        flag(Kpf.ANON, on=False)
    elif what == "KSM" and not order:
        flag(Kpf.KSM, on=True)
    elif what in ("locked", "unevictable", "mlocked"):
        flag(Kpf[what.upper()], on=True)


def swap_out_one(tables: TableArrays, row: int, at: int) -> None:
    """Have an entry name a slot of its own, in the place of what is there."""
    tables.pte[row, at] = Pte.SWAPPED | Pte.EXCLUSIVE
    tables.pfn[row, at] = (tables.pfn[row, at] + np.uint64(1)) << np.uint64(5)
    for column in (tables.bits, tables.kpageflags, tables.kpagecount, tables.folio_order):
        column[row, at] = 0


def _swap_some(
    rnd: Random, owner: ImageProcess, row: int, frames: Frames, settings: Settings
) -> None:
    """Swap out so many of a row's small pages that nobody else maps; once in a while in slots that are known
    to no one, or to several."""
    tables = owner.tables
    mine = (tables.pte[row] & (Pte.PRESENT | Pte.ZERO | Pte.HUGE)) == Pte.PRESENT
    mine &= (tables.folio_order[row] == 0) & (tables.kpagecount[row] == 1)
    places = np.flatnonzero(mine).tolist()
    near = settings.max_ptes_swap + rnd.choice((-1, 0, 1))
    nr = min(max(rnd.choice((1, 3, 64, near, near, rnd.randrange(PTRS))), 0), len(places))
    how = rnd.choice((*("own",) * 9, "unknown", "shared"))
    for at in rnd.sample(places, nr):
        slot = 0 if how == "unknown" else frames.take() if how == "own" else 7
        swap_out(owner, row, at, slot, exclusive=how != "shared")


def _fork(rnd: Random, owners: Sequence[TableArrays], settings: Settings) -> None:
    """Have later processes map pages of the first at the same places, as after fork() and some stores."""
    first = owners[0]
    columns = ("pte", "pfn", "kpageflags", "folio_order")
    for row in range(len(first.pte)):
        small = (first.pte[row] & (Pte.PRESENT | Pte.ZERO | Pte.HUGE)) == Pte.PRESENT
        if rnd.random() < 0.97:
            small &= first.folio_order[row] == 0
        near = settings.max_ptes_shared + rnd.choice((-1, 0, 0, 1))
        for later in owners[1:]:
            if (later.pte[row] & Pte.HUGE).any() or rnd.random() < 0.3:
                continue
            nr = max(rnd.choice((1, 5, near, near, PTRS, PTRS, rnd.randrange(PTRS))), 0)
            places = np.flatnonzero(small & (later.folio_order[row] == 0)).tolist()
            taken = np.array(sorted(rnd.sample(places, min(nr, len(places)))), np.intp)
            if rnd.random() < 0.5:
                later.pte[row] = 0
                for name in (*columns[1:], "bits", "kpagecount"):
                    getattr(later, name)[row] = 0
            for name in columns:
                getattr(later, name)[row, taken] = getattr(first, name)[row, taken]
            for tables in (first, later):
                tables.pte[row, taken] &= ~np.uint16(Pte.EXCLUSIVE)
                tables.bits[row, taken] &= ~np.uint8(WRITE)
            later.bits[row, taken] = DIRTY | (YOUNG if rnd.random() < 0.7 else 0)
            for extra in ("references", "young"):
                if getattr(first, extra) is not None:
                    getattr(later, extra)[row, taken] = getattr(first, extra)[row, taken]


def _count_mappings(
    rnd: Random, owners: Sequence[TableArrays], settings: Settings, *, outside: float
) -> None:
    """Count how often each page is mapped; small ones of some tables by others outside the image as well."""
    frames = np.concatenate(
        [each.pfn[(each.pte & (Pte.PRESENT | Pte.ZERO)) == Pte.PRESENT] for each in owners]
    )
    known, mapped = np.unique(frames, return_counts=True)
    more = np.zeros(len(known), np.int64)
    for tables in owners:
        for row in range(len(tables.pte)):
            if rnd.random() < outside:
                small = (tables.pte[row] & (Pte.PRESENT | Pte.ZERO)) == Pte.PRESENT
                places = np.flatnonzero(small & (tables.folio_order[row] == 0)).tolist()
                near = max(settings.max_ptes_shared + rnd.choice((-1, 0, 1)), 0)
                nr = rnd.choice((1, 2, near, near, rnd.randrange(PTRS), PTRS))
                taken = rnd.sample(places, min(nr, len(places)))
                more[np.searchsorted(known, tables.pfn[row, taken])] = rnd.choice((1, 1, 2))
                tables.pte[row, taken] &= ~np.uint16(Pte.EXCLUSIVE)
    for tables in owners:
        here = (tables.pte & (Pte.PRESENT | Pte.ZERO)) == Pte.PRESENT
        place = np.searchsorted(known, tables.pfn[here])
        tables.kpagecount[here] = (mapped + more)[place]
