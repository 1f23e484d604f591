# SPDX-License-Identifier: GPL-2.0-or-later
"""Operations that fill mappings with pages and folios, and the usual ones that change them afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import TypeVar

from mthp.lab.draw.program_builder import ProgramBuilder, Run, cuts
from mthp.lab.geometry import ORDERS, PMD_ORDER, PMD_PAGES, SMALL_ORDERS, round_up_to_table
from mthp.lab.program.program import Madv, Verb
from mthp.lab.program.space import PageMark

T = TypeVar("T")

HOLE, ZERO, SMALL, FOLIOS = "hole", "zero", "small", "folios"


class Appearance(Enum):
    """What a mapping is filled with.

    often: how often it is drawn. parts: into how many stretches it is cut on average. kinds: the
    kinds of pages of a stretch, by weight.
    """

    FULL = 3.0, 1, {SMALL: 1.0}
    MOSTLY = 3.0, 6, {SMALL: 8.0, HOLE: 1.0, ZERO: 1.0}
    LARGE = 2.0, 4, {SMALL: 2.0, FOLIOS: 8.0}
    MIXED = 3.0, 9, {SMALL: 4.0, FOLIOS: 4.0, HOLE: 1.0, ZERO: 1.5}
    SPARSE = 1.0, 7, {SMALL: 2.0, FOLIOS: 1.0, HOLE: 5.0, ZERO: 1.0}

    def __init__(self, often: float, parts: int, kinds: dict[str, float]) -> None:
        self.often = often
        self.parts = parts
        self.kinds = kinds


LOOKS = {look: look.often for look in Appearance}
"""Appearance -> how often it is drawn."""
SMALL_LOOKS = {look: often for look, often in LOOKS.items() if FOLIOS not in look.kinds}
"""Those without large folios."""


@dataclass(frozen=True)
class Stretch:
    """A run of pages to be filled alike: with a kind of page, or with folios of an order."""

    start: int
    pages: int
    kind: str
    order: int = 0


def weighted(rng: Random, table: dict[T, float]) -> T:
    """Draw a key of the table by its weight."""
    return rng.choices(list(table), list(table.values()))[0]


def plan_segments(
    rng: Random, start: int, pages: int, look: Appearance, orders: tuple[int, ...] = ORDERS
) -> list[Stretch]:
    """Cut a run of pages into stretches. orders: those that large folios may have."""
    parts = rng.randint(1, 2 * look.parts - 1)
    grain = rng.choice([1, 4, 8, 16, 64, 128])
    large = rng.sample(orders, rng.randint(1, 2))
    segments = []
    for at, length in cuts(rng, start, start + pages, parts, grain):
        kind = weighted(rng, look.kinds)
        order = rng.choice(large) if kind == FOLIOS else 0
        segments.append(Stretch(at, length, kind, order))
    return segments


def put(builder: ProgramBuilder, who: str, segments: list[Stretch]) -> None:
    """Fault the stretches in: large folios first, in descending order."""
    for order in sorted({each.order for each in segments if each.order}, reverse=True):
        runs = [(each.start, each.pages) for each in segments if each.order == order]
        fill_one_order(builder, who, runs, order)
    verbs = {SMALL: Verb.WRITE, ZERO: Verb.READ}
    for each in segments:
        if each.kind in verbs:
            builder.do(verbs[each.kind], each.start, each.pages, who=who)


def fill(
    builder: ProgramBuilder,
    who: str,
    *,
    looks: dict[Appearance, float] | None = None,
    orders: tuple[int, ...] = ORDERS,
) -> None:
    """Fill the empty pages of the process's mappings, each run of them in an appearance of its own.

    Where there are several whole tables, one of them may be left empty.
    """
    rng = builder.rng
    tables = whole_tables(builder, who)
    skipped = rng.choice(tables) if len(tables) > 1 and rng.random() < 0.12 else -1
    segments = []
    for start, pages in builder.free_runs(who, PageMark.ABSENT):
        for at, length in _around(start, pages, skipped):
            look = weighted(rng, looks or LOOKS)
            segments += plan_segments(rng, at, length, look, orders)
    put(builder, who, segments)


def _around(start: int, pages: int, skipped: int) -> list[Run]:
    """Cut the table that begins at page `skipped` (negative: none) out of a run."""
    end = start + pages
    if skipped < 0 or end <= skipped or skipped + PMD_PAGES <= start:
        return [(start, pages)]
    parts = [(start, skipped - start), (skipped + PMD_PAGES, end - skipped - PMD_PAGES)]
    return [(at, length) for at, length in parts if length > 0]


def fill_one_order(builder: ProgramBuilder, who: str, runs: Iterable[Run], order: int) -> None:
    """Fill runs of pages with folios of one order; 0: with small pages."""
    with builder.with_order(order) if order else nullcontext():
        for run in runs:
            builder.do(Verb.WRITE, *run, who=who)


# --- changes to filled pages ----------------------------------------------------------------


def drop_some(builder: ProgramBuilder, who: str, most: int = 3) -> None:
    """Drop runs of pages, also within large folios, which are then mapped in part."""
    for run in builder.pieces(who, (PageMark.WRITTEN,), builder.rng.randint(1, most), 32):
        builder.advise(who, *run, Madv.DONTNEED)


def scatter_holes(builder: ProgramBuilder, who: str) -> None:
    """Drop single pages in random places; some of them become zero pages."""
    rng = builder.rng
    runs = builder.free_runs(who, PageMark.WRITTEN)
    for _ in range(rng.randint(2, 12) if runs else 0):
        start, pages = rng.choice(runs)
        page = start + rng.randrange(pages)
        builder.advise(who, page, 1, Madv.DONTNEED)
        vma = builder.space(who).over(page, page + 1)[0]
        if rng.random() < 0.2 and not vma.traits.uffd:
            builder.do(Verb.READ, page, 1, who=who)


def cool_some(builder: ProgramBuilder, who: str) -> None:
    """Make pages old (MADV_COLD); some are read again."""
    rng = builder.rng
    for start, pages in builder.pieces(who, (PageMark.WRITTEN,), rng.randint(1, 3), 512):
        builder.advise(who, start, pages, Madv.COLD)
        if rng.random() < 0.3:
            builder.do(Verb.READ, start + rng.randrange(pages), 1, who=who)


def cool_all(builder: ProgramBuilder, who: str) -> None:
    """Make every mapping old, and read up to two pages again."""
    for vma in [each for each in builder.vmas(who) if not each.traits.mlocked]:
        builder.advise(who, vma.start, vma.pages, Madv.COLD)
    for start, _ in builder.pieces(who, (PageMark.WRITTEN,), builder.rng.randint(0, 2)):
        builder.do(Verb.READ, start, 1, who=who)


def swap_some(builder: ProgramBuilder, who: str, most: int = 3, length: int = 64) -> None:
    """Swap pages out; some are read back (clean, in the swap cache), some written again."""
    rng = builder.rng
    for start, pages in builder.pieces(who, (PageMark.WRITTEN,), rng.randint(1, most), length):
        builder.advise(who, start, pages, Madv.PAGEOUT)
        style = rng.random()
        if style < 0.2:
            builder.do(Verb.READ, start, rng.randint(1, pages), who=who)
        elif style < 0.35:
            builder.do(Verb.WRITE, start, rng.randint(1, pages), who=who)


def free_some(builder: ProgramBuilder, who: str) -> None:
    """Free pages lazily (MADV_FREE); some are written again."""
    rng = builder.rng
    for start, pages in builder.pieces(who, (PageMark.WRITTEN,), rng.randint(1, 2), 16):
        builder.advise(who, start, pages, Madv.FREE)
        if rng.random() < 0.4:
            builder.do(Verb.WRITE, start, rng.randint(1, pages), who=who)


def clear_refs(builder: ProgramBuilder, who: str) -> None:
    """Write clear_refs: 1 makes all pages old, 4 clears soft-dirty bits and write-protects pages."""
    builder.do(Verb.CLEAR_REFS, builder.rng.choice([1, 4]), who=who)


def disturb_some(builder: ProgramBuilder, who: str, chance: float = 0.35) -> None:
    """Apply each of the usual changes with a chance of its own, times `chance`."""
    rng = builder.rng
    for change, weight in (
        (drop_some, 1.0),
        (scatter_holes, 0.5),
        (cool_some, 0.8),
        (swap_some, 0.6),
        (free_some, 0.25),
        (clear_refs, 0.12),
    ):
        if rng.random() < chance * weight:
            change(builder, who)


def share_some(builder: ProgramBuilder, who: str, most: int = 3) -> None:
    """Fill some pages and share them with sleeping children; writes copy a part of them again.

    The process must not be registered yet: its children would be registered too.
    """
    rng = builder.rng
    runs = builder.pieces(who, (PageMark.ABSENT,), rng.randint(1, most), 512)
    fill_one_order(builder, who, runs, rng.choice([0, 0, 0, *SMALL_ORDERS]))
    builder.do(Verb.FORK, rng.choice([1, 1, 1, 2, 3]), who=who)
    for run in runs:
        if rng.random() < 0.3:
            builder.do(Verb.WRITE, *builder.piece(run, 32), who=who)


def whole_tables(builder: ProgramBuilder, who: str) -> list[int]:
    """The first page of each table whose whole range lies in one mapping."""
    skew = builder.world.process(who).skew % PMD_PAGES
    found: list[int] = []
    for vma in builder.vmas(who):
        first = round_up_to_table(vma.start + skew) - skew
        found += range(first, vma.end - PMD_PAGES + 1, PMD_PAGES)
    return found


def huge_tables(builder: ProgramBuilder, who: str) -> None:
    """Map some empty whole tables by a PMD: a write makes one folio, a read maps the huge zero folio."""
    rng = builder.rng
    chosen = [table for table in whole_tables(builder, who) if rng.random() < 0.5]
    if not chosen:
        return
    with builder.with_order(PMD_ORDER):
        for table in chosen:
            verb = Verb.READ if rng.random() < 0.15 else Verb.WRITE
            builder.do(verb, table + rng.randrange(PMD_PAGES), 1, who=who)
