# SPDX-License-Identifier: GPL-2.0-or-later
"""Filling mappings: holes, zero pages, small pages and large folios, and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import TypeVar

from mthp.lab.draw.author import ProgramBuilder, Run, cuts
from mthp.lab.draw.knobs import ORDERS, PMD_ORDER
from mthp.lab.program.processes import PMD_PAGES
from mthp.lab.program.program import Madv, Verb
from mthp.lab.program.space import PageMark


class Appearance(Enum):
    """What most of a mapping looks like."""

    FULL = "small pages throughout"
    MOSTLY = "small pages with some holes and zero pages"
    LARGE = "folios of one or two orders"
    MIXED = "a bit of everything"
    SPARSE = "mostly holes"


T = TypeVar("T")

LOOKS = {
    Appearance.FULL: 3.0,
    Appearance.MOSTLY: 3.0,
    Appearance.LARGE: 2.0,
    Appearance.MIXED: 3.0,
    Appearance.SPARSE: 1.0,
}
"""How often each look is drawn."""

SMALL_ORDERS = ORDERS[:-1]
"""A fault of the PMD order registers the process: after that its children would be scanned."""

HOLE, ZERO, SMALL = "hole", "zero", "small"
_KINDS: dict[Appearance, dict[str, float]] = {
    Appearance.FULL: {SMALL: 1},
    Appearance.MOSTLY: {SMALL: 8, HOLE: 1, ZERO: 1},
    Appearance.LARGE: {SMALL: 2, "large": 8},
    Appearance.MIXED: {SMALL: 4, "large": 4, HOLE: 1, ZERO: 1.5},
    Appearance.SPARSE: {SMALL: 2, "large": 1, HOLE: 5, ZERO: 1},
}
_PARTS = {
    Appearance.FULL: 1,
    Appearance.MOSTLY: 6,
    Appearance.LARGE: 4,
    Appearance.MIXED: 9,
    Appearance.SPARSE: 7,
}


@dataclass(frozen=True)
class Stretch:
    """Some pages and what is to be put there: the order of the folios, or a kind of page."""

    start: int
    pages: int
    kind: str
    order: int = 0


def weighted(rng: Random, table: dict[T, float]) -> T:
    """A key of the table, by its weight."""
    return rng.choices(list(table), list(table.values()))[0]


def plan_segments(
    rng: Random, start: int, pages: int, look: Appearance, orders: tuple[int, ...] = ORDERS
) -> list[Stretch]:
    """Cut a mapping up and choose what goes where. orders: what large folios may be of."""
    parts = rng.randint(1, 2 * _PARTS[look] - 1)
    grain = rng.choice([1, 4, 8, 16, 64, 128])
    large = rng.sample(orders, rng.randint(1, 2))
    segments = []
    for at, length in cuts(rng, start, start + pages, parts, grain):
        kind = weighted(rng, _KINDS[look])
        order = rng.choice(large) if kind == "large" else 0
        segments.append(Stretch(at, length, kind, order))
    return segments


def put(author: ProgramBuilder, who: str, segments: list[Stretch]) -> None:
    """Fault the segments in: large folios first, the largest before the others."""
    for order in sorted({each.order for each in segments if each.order}, reverse=True):
        with author.with_order(order):
            for each in segments:
                if each.order == order:
                    author.do(Verb.WRITE, each.start, each.pages, who=who)
    verbs = {SMALL: Verb.WRITE, ZERO: Verb.READ}
    for each in segments:
        if each.kind in verbs:
            author.do(verbs[each.kind], each.start, each.pages, who=who)


def fill(
    author: ProgramBuilder,
    who: str,
    *,
    looks: dict[Appearance, float] | None = None,
    orders: tuple[int, ...] = ORDERS,
) -> None:
    """Fill the empty pages of the process's mappings, each run of them in a look of its own.

    Where there are several tables, one may stay empty.
    """
    rng = author.rng
    tables = whole_tables(author, who)
    skipped = rng.choice(tables) if len(tables) > 1 and rng.random() < 0.12 else -1
    segments = []
    for start, pages in author.free_runs(who, PageMark.ABSENT):
        for at, length in _around(start, pages, skipped):
            look = weighted(rng, looks or LOOKS)
            segments += plan_segments(rng, at, length, look, orders)
    put(author, who, segments)


def _around(start: int, pages: int, skipped: int) -> list[Run]:
    """A run without the table that begins at page `skipped`."""
    end = start + pages
    if skipped < 0 or end <= skipped or skipped + PMD_PAGES <= start:
        return [(start, pages)]
    parts = [(start, skipped - start), (skipped + PMD_PAGES, end - skipped - PMD_PAGES)]
    return [(at, length) for at, length in parts if length > 0]


def fill_one_order(author: ProgramBuilder, who: str, run: Run, order: int) -> None:
    """Folios of one order over a run of pages."""
    with author.with_order(order):
        author.do(Verb.WRITE, *run, who=who)


# --- what becomes of pages ------------------------------------------------------------------


def drop_some(author: ProgramBuilder, who: str, most: int = 3) -> None:
    """Holes, also within large folios: those are then mapped in part."""
    for run in author.pieces(who, (PageMark.WRITTEN,), author.rng.randint(1, most), 32):
        author.advise(who, *run, Madv.DONTNEED)


def pepper(author: ProgramBuilder, who: str, most: int = 12) -> None:
    """Single holes, or zero pages, all over."""
    rng = author.rng
    runs = author.free_runs(who, PageMark.WRITTEN)
    for _ in range(rng.randint(2, most) if runs else 0):
        start, pages = rng.choice(runs)
        page = start + rng.randrange(pages)
        author.advise(who, page, 1, Madv.DONTNEED)
        vma = author.space(who).over(page, page + 1)[0]
        if rng.random() < 0.2 and not vma.traits.uffd:
            author.do(Verb.READ, page, 1, who=who)


def cool_some(author: ProgramBuilder, who: str, most: int = 3) -> None:
    """Old pages; some are touched again."""
    rng = author.rng
    for start, pages in author.pieces(who, (PageMark.WRITTEN,), rng.randint(1, most), 512):
        author.advise(who, start, pages, Madv.COLD)
        if rng.random() < 0.3:
            author.do(Verb.READ, start + rng.randrange(pages), 1, who=who)


def cool_all(author: ProgramBuilder, who: str) -> None:
    """Every mapping is old, but for a page or two."""
    for vma in [each for each in author.vmas(who) if not each.traits.mlocked]:
        author.advise(who, vma.start, vma.pages, Madv.COLD)
    for start, _ in author.pieces(who, (PageMark.WRITTEN,), author.rng.randint(0, 2)):
        author.do(Verb.READ, start, 1, who=who)


def swap_some(author: ProgramBuilder, who: str, most: int = 3, length: int = 64) -> None:
    """Pages swapped out; some are read back (clean, in the swap cache), some written back."""
    rng = author.rng
    for start, pages in author.pieces(who, (PageMark.WRITTEN,), rng.randint(1, most), length):
        author.advise(who, start, pages, Madv.PAGEOUT)
        style = rng.random()
        if style < 0.2:
            author.do(Verb.READ, start, rng.randint(1, pages), who=who)
        elif style < 0.35:
            author.do(Verb.WRITE, start, rng.randint(1, pages), who=who)


def free_some(author: ProgramBuilder, who: str, most: int = 2) -> None:
    """Lazily freed pages; some are written again."""
    rng = author.rng
    for start, pages in author.pieces(who, (PageMark.WRITTEN,), rng.randint(1, most), 16):
        author.advise(who, start, pages, Madv.FREE)
        if rng.random() < 0.4:
            author.do(Verb.WRITE, start, rng.randint(1, pages), who=who)


def clear_refs(author: ProgramBuilder, who: str) -> None:
    """Everything old at once (1), or soft-dirty bits cleared and pages write-protected (4)."""
    author.do(Verb.CLEAR_REFS, author.rng.choice([1, 4]), who=who)


def weather(author: ProgramBuilder, who: str, chance: float = 0.35) -> None:
    """Each of the usual things that become of pages, with a chance of its own."""
    rng = author.rng
    for happen, weight in (
        (drop_some, 1.0),
        (pepper, 0.5),
        (cool_some, 0.8),
        (swap_some, 0.6),
        (free_some, 0.25),
        (clear_refs, 0.12),
    ):
        if rng.random() < chance * weight:
            happen(author, who)


def share_some(author: ProgramBuilder, who: str, most: int = 3) -> None:
    """Some pages, shared with sleeping children; a part of them copied again by a write.

    Before anything registers the process.
    """
    rng = author.rng
    runs = author.pieces(who, (PageMark.ABSENT,), rng.randint(1, most), 512)
    order = rng.choice([0, 0, 0, *SMALL_ORDERS])
    if order:
        with author.with_order(order):
            for run in runs:
                author.do(Verb.WRITE, *run, who=who)
    else:
        for run in runs:
            author.do(Verb.WRITE, *run, who=who)
    author.do(Verb.FORK, rng.choice([1, 1, 1, 2, 3]), who=who)
    for run in runs:
        if rng.random() < 0.3:
            author.do(Verb.WRITE, *author.piece(run, 32), who=who)


def whole_tables(author: ProgramBuilder, who: str) -> list[int]:
    """The first pages of the tables that one mapping covers from end to end."""
    base = author.world.process(who).base or 0
    skew = base // 4096 % PMD_PAGES
    found: list[int] = []
    for vma in author.vmas(who):
        first = -(-(vma.start + skew) // PMD_PAGES) * PMD_PAGES - skew
        found += range(first, vma.end - PMD_PAGES + 1, PMD_PAGES)
    return found


def huge_tables(author: ProgramBuilder, who: str, chance: float = 0.5) -> None:
    """Some empty whole tables become one folio each, mapped by the PMD; reads the zero folio."""
    rng = author.rng
    chosen = [table for table in whole_tables(author, who) if rng.random() < chance]
    if not chosen:
        return
    with author.with_order(PMD_ORDER):
        for table in chosen:
            verb = Verb.READ if rng.random() < 0.15 else Verb.WRITE
            author.do(verb, table + rng.randrange(PMD_PAGES), 1, who=who)
