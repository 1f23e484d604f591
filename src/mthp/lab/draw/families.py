# SPDX-License-Identifier: GPL-2.0-or-later
"""Families of drawn programs: each puts its weight on one part of what khugepaged looks at."""

from __future__ import annotations

from collections.abc import Callable

from mthp.image.scenario import Action
from mthp.lab.draw.author import Author
from mthp.lab.draw.fill import (
    LOOKS,
    Look,
    cool_all,
    cool_some,
    drop_some,
    fill,
    fill_one_order,
    huge_tables,
    plan_segments,
    put,
    share_some,
    swap_some,
    weather,
    weighted,
)
from mthp.lab.draw.knobs import ORDERS
from mthp.lab.draw.layout import close, map_many, map_one
from mthp.lab.program import Target, Verb
from mthp.lab.space import Page


def plain(author: Author) -> None:
    """One mapping in any look, and the usual things that become of pages."""
    author.start()
    map_one(author)
    fill(author, "s")
    weather(author, "s")
    if author.rng.random() < 0.08:
        cool_all(author, "s")
    close(author)


def many_vmas(author: Author) -> None:
    """Two to five mappings, at odd places, advised in different ways."""
    author.start()
    map_many(author, "s", author.rng.randint(2, 5))
    if author.rng.random() < 0.2:
        share_some(author, "s")
    fill_rest(author, "s")
    weather(author, "s", 0.3)
    close(author)


def fill_rest(author: Author, who: str, looks: dict[Look, float] | None = None) -> None:
    """fill(), for what is still empty."""
    segments = []
    for start, pages in author.free_runs(who, Page.ABSENT):
        look = weighted(author.rng, looks or LOOKS)
        segments += plan_segments(author.rng, start, pages, look)
    put(author, who, segments)


def swap(author: Author) -> None:
    """Swapped pages around the limits, read back, and within windows of every size."""
    author.start()
    map_one(author)
    fill(author, "s", looks={Look.FULL: 4, Look.LARGE: 2, Look.MOSTLY: 2})
    swap_some(author, "s", 4, author.rng.choice([2, 8, 64, 512]))
    if author.rng.random() < 0.3:
        cool_some(author, "s")
    if author.rng.random() < 0.3:
        drop_some(author, "s", 2)
    close(author)


def large(author: Author) -> None:
    """Large folios of every order, whole and in part, and whole tables."""
    rng = author.rng
    author.start()
    map_one(author)
    style = rng.random()
    if style < 0.4:
        huge_tables(author, "s")
        fill_rest(author, "s", {Look.LARGE: 3, Look.MIXED: 2, Look.SPARSE: 1})
    elif style < 0.7:
        vma = author.space("s").vmas[0]
        fill_one_order(author, "s", (vma.start, vma.pages), rng.choice(ORDERS))
    else:
        fill(author, "s", looks={Look.LARGE: 3, Look.MIXED: 1})
    drop_some(author, "s", 4)
    weather(author, "s", 0.2)
    close(author)


def shared(author: Author) -> None:
    """Pages shared with children, in part, and copied again by writes."""
    rng = author.rng
    author.start()
    map_one(author)
    if rng.random() < 0.5:
        share_some(author, "s", 4)
        fill_rest(author, "s", {Look.FULL: 3, Look.MOSTLY: 2, Look.LARGE: 2})
    else:
        fill(author, "s", looks={Look.FULL: 2, Look.LARGE: 3, Look.MOSTLY: 1})
        author.do(Verb.FORK, 1, who="s")
        for run in author.pieces("s", (Page.WRITTEN,), rng.randint(1, 5), 512):
            author.do(Verb.WRITE, *run, who="s")
    weather(author, "s", 0.25)
    if rng.random() < 0.1:
        author.do(Verb.END_FORK, who="s")
    close(author)


def madvise(author: Author) -> None:
    """MADV_COLLAPSE, by the process itself or from another one."""
    rng = author.rng
    author.start()
    map_many(author, "s", 2) if rng.random() < 0.4 else map_one(author)
    if rng.random() < 0.35:
        share_some(author, "s")
    if rng.random() < 0.3:
        huge_tables(author, "s")
    fill_rest(author, "s")
    weather(author, "s", 0.4)
    close(author)
    collapse(author)


def collapse(author: Author) -> None:
    """Make MADV_COLLAPSE the action, over one of the mappings."""
    rng = author.rng
    names = list(author.world.processes)
    who = rng.choice(names)
    by = who
    if rng.random() < 0.3:
        others = [name for name in names if name != who]
        by = rng.choice(others) if others else "t"
        if not others:
            author.start(by)
    vma = rng.choice(author.space(who).vmas)
    author.action = Action.MADVISE_COLLAPSE
    author.target = Target(who, vma.start, by)


FAMILIES: dict[str, tuple[float, Callable[[Author], None]]] = {
    "plain": (4, plain),
    "many_vmas": (4, many_vmas),
    "swap": (3, swap),
    "large": (4, large),
    "shared": (3, shared),
    "madvise": (3, madvise),
}
"""Name -> how often it is drawn, and what draws it."""
