# SPDX-License-Identifier: GPL-2.0-or-later
"""The family `swapin`: folios swapped out whole, which swap-in may bring back at once, and obstacles."""

from __future__ import annotations

from dataclasses import replace

from mthp.lab.draw.fill import (
    Appearance,
    drop_some,
    fill_one_order,
    plan_segments,
    put,
    weighted,
    whole_tables,
)
from mthp.lab.draw.knobs import MAX_LIMIT
from mthp.lab.draw.layout import close, map_one
from mthp.lab.draw.program_builder import ProgramBuilder, Run
from mthp.lab.draw.special import collapse
from mthp.lab.geometry import ORDERS, PMD_ORDER, PMD_PAGES, SMALL_ORDERS
from mthp.lab.program.program import Madv, Verb
from mthp.lab.program.space import PageMark, Uffd
from mthp.words.settings import Enabled


def enable_swapin(builder: ProgramBuilder) -> None:
    """Enable the PMD size, and sizes below it for swap-in; the limits mostly let swap-in happen."""
    rng = builder.rng
    on = rng.choice([Enabled.ALWAYS, Enabled.MADVISE, Enabled.INHERIT])
    sizes = dict.fromkeys(rng.sample(ORDERS, rng.randint(1, len(ORDERS))), on) | {PMD_ORDER: on}
    builder.settings = replace(
        builder.settings,
        enabled=rng.choice([Enabled.ALWAYS, Enabled.MADVISE]),
        sizes=dict.fromkeys(ORDERS, Enabled.NEVER) | sizes,
        max_ptes_none=rng.choice([0, MAX_LIMIT, MAX_LIMIT, MAX_LIMIT]),
        max_ptes_swap=rng.choice([64, 256, MAX_LIMIT, MAX_LIMIT]),
    )


def swap_folios(builder: ProgramBuilder, who: str) -> None:
    """Fill whole tables with folios of one order or of several, and swap runs of them out."""
    rng = builder.rng
    for table in whole_tables(builder, who):
        style = rng.random()
        if style < 0.5:
            order = rng.choice([0, *SMALL_ORDERS])
            fill_one_order(builder, who, [(table, PMD_PAGES)], order)
        else:
            look = weighted(rng, {Appearance.LARGE: 4, Appearance.MIXED: 2})
            put(builder, who, plan_segments(rng, table, PMD_PAGES, look))
    if rng.random() < 0.3:
        drop_some(builder, who, 2)
    if rng.random() < 0.2:
        builder.do(Verb.CLEAR_REFS, 4, who=who)
    for run in builder.pieces(who, (PageMark.WRITTEN,), rng.randint(1, 6), PMD_PAGES):
        builder.advise(who, *_rounded(builder, run), Madv.PAGEOUT)


def _rounded(builder: ProgramBuilder, run: Run) -> Run:
    """An aligned range around the run's start if one VMA holds it, else the run."""
    size = builder.rng.choice([1, 4, 8, 16, 32, 64, 128, 240])
    start = run[0] // size * size
    inside = any(vma.start <= start and start + size <= vma.end for vma in builder.space().vmas)
    return (start, size) if inside else run


def disturb_swapped(builder: ProgramBuilder, who: str) -> None:
    """Change swapped pages: read or write them back, drop them, clear soft-dirty bits, protect them."""
    rng = builder.rng
    alone = len(builder.world.processes) == 1 and not builder.world.process(who).children
    for _ in range(rng.randint(0, 3)):
        runs = builder.pieces(who, (PageMark.OUT,), 1, 16)
        style = rng.random()
        if style < 0.1:
            builder.do(Verb.CLEAR_REFS, 4, who=who)
        if not runs:
            continue
        if style < 0.3:
            builder.do(Verb.READ, *runs[0], who=who)
        elif style < 0.4 and alone:
            builder.do(Verb.WRITE, *runs[0], who=who)
        elif style < 0.55:
            builder.advise(who, *runs[0], Madv.DONTNEED)
        elif style < 0.65:
            start, pages = runs[0]
            vma = builder.space(who).over(start, start + pages)[0]
            if not vma.traits.uffd and vma.traits.writable:
                builder.do(Verb.UFFD, vma.start, vma.pages, Uffd.WP.value, who=who)
                builder.do(Verb.UFFD_WP, start, pages, 1, who=who)


def share_slots(builder: ProgramBuilder) -> None:
    """Fork after swapping out, to a recorded process or to a sleeping one; both may read pages back.

    Neither writes: a folio of which every page has been copied stays in the swap cache, where nothing
    shows it.
    """
    rng = builder.rng
    names = ["s"]
    if rng.random() < 0.7:
        builder.do(Verb.FORK_TO, "t", who="s")
        names.append("t")
    else:
        builder.do(Verb.FORK, 1, who="s")
    for who in names:
        for run in builder.pieces(who, (PageMark.OUT,), rng.randint(0, 2), 16):
            order = rng.choice(SMALL_ORDERS)
            with builder.with_order(order):
                builder.do(Verb.READ, *run, who=who)


def swapin(builder: ProgramBuilder) -> None:
    """Whole folios swapped out and brought back at once, shared slots, and swap cache hits."""
    builder.start()
    enable_swapin(builder)
    map_one(builder)
    swap_folios(builder, "s")
    if builder.rng.random() < 0.35 and not builder.world.process("s").registered:
        share_slots(builder)
    for who in list(builder.world.processes):
        disturb_swapped(builder, who)
    if builder.rng.random() < 0.1:
        vma = builder.space("s").vmas[0]
        if vma.traits.writable:
            builder.do(Verb.MPROTECT, vma.start, vma.pages, 1, who="s")
    close(builder)
    if builder.rng.random() < 0.25:
        collapse(builder)
