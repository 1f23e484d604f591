# SPDX-License-Identifier: GPL-2.0-or-later
"""The less usual changes to mappings: pins, protection, guard markers, poison, KSM, locks, moves."""

from __future__ import annotations

from mthp.image.scenario_values import Action
from mthp.lab.draw.fill import whole_tables
from mthp.lab.draw.program_builder import ProgramBuilder, Run
from mthp.lab.geometry import PMD_ORDER, PMD_PAGES, round_up_to_table
from mthp.lab.program.processes import OUT_OF_REACH
from mthp.lab.program.program import PROCESSES, Madv, Target, Verb
from mthp.lab.program.space import DeclaredMapping, PageMark, Uffd
from mthp.words.settings import Enabled

MOST_VMSPLICED = 8
"""Pages for vmsplice: half of the sixteen that a pipe takes."""


def pin_some(builder: ProgramBuilder, who: str, most: int = 3) -> None:
    """Hold pages for long: by io_uring (FOLL_PIN) or by vmsplice (a plain reference)."""
    rng = builder.rng
    for run in builder.pieces(who, (PageMark.WRITTEN,), rng.randint(1, most), 16):
        start, pages = run
        if not builder.space(who).over(start, start + pages)[0].traits.writable:
            continue
        if rng.random() < 0.5:
            builder.do(Verb.PIN_URING, start, pages, who=who)
        else:
            builder.do(Verb.PIN_VMSPLICE, start, min(pages, MOST_VMSPLICED), who=who)


def register_uffd_some(builder: ProgramBuilder, who: str) -> None:
    """Register mappings with userfaultfd, whole or in part, and protect some pages."""
    rng = builder.rng
    for vma in builder.vmas(who):
        if vma.traits.droppable or not vma.traits.writable or rng.random() < 0.25:
            continue
        mode = rng.choices([Uffd.WP, Uffd.MISSING, Uffd.WP | Uffd.MISSING], [8, 1, 1])[0]
        start, pages = _most_of(builder, vma)
        builder.do(Verb.UFFD, start, pages, mode.value, who=who)
        if mode & Uffd.WP and rng.random() < 0.6:
            _protect_some(builder, who, (start, pages))


def _most_of(builder: ProgramBuilder, vma: DeclaredMapping) -> Run:
    """The range of a mapping, or one time in four a part of it, which will split it."""
    rng = builder.rng
    if rng.random() < 0.75 or vma.pages < 2:
        return vma.start, vma.pages
    at = rng.randint(0, vma.pages - 1)
    return vma.start + at, rng.randint(1, vma.pages - at)


def _protect_some(builder: ProgramBuilder, who: str, within: Run) -> None:
    """Write-protect some pages; some of these are swapped out, and some unprotected again."""
    rng = builder.rng
    inside = range(within[0], sum(within))
    for start, pages in builder.pieces(
        who, (PageMark.WRITTEN, PageMark.OUT), rng.randint(1, 3), 32
    ):
        if start not in inside or start + pages - 1 not in inside:
            continue
        builder.do(Verb.UFFD_WP, start, pages, 1, who=who)
        style = rng.random()
        if style < 0.3 and builder.space(who).page(start) is PageMark.WRITTEN:
            builder.advise(who, start, pages, Madv.PAGEOUT)
            if rng.random() < 0.4:
                builder.do(Verb.READ, start, rng.randint(1, pages), who=who)
        elif style < 0.5:
            builder.do(Verb.UFFD_WP, start, rng.randint(1, pages), 0, who=who)


def guard_some(builder: ProgramBuilder, who: str) -> None:
    """Install guard markers over pages of any kind, and remove some again."""
    rng = builder.rng
    kinds = (PageMark.WRITTEN, PageMark.ABSENT, PageMark.ZERO)
    for start, pages in builder.pieces(who, kinds, rng.randint(1, 3), 32):
        builder.advise(who, start, pages, Madv.GUARD_INSTALL)
        if rng.random() < 0.25:
            builder.advise(who, start, rng.randint(1, pages), Madv.GUARD_REMOVE)


def poison_some(builder: ProgramBuilder, who: str) -> None:
    """Poison one or two pages."""
    for run in builder.pieces(who, (PageMark.WRITTEN,), 1, 2):
        builder.advise(who, *run, Madv.HWPOISON)


def merge_same(builder: ProgramBuilder, who: str) -> None:
    """Write equal pages in mergeable mappings, for ksmd to merge."""
    rng = builder.rng
    for vma in builder.vmas(who):
        if not vma.traits.droppable:
            builder.advise(who, vma.start, vma.pages, Madv.MERGEABLE)
    runs = builder.pieces(who, (PageMark.WRITTEN, PageMark.ABSENT), rng.randint(1, 4), 32)
    for run in runs:
        builder.do(Verb.SAME, *run, who=who)


def scan_same(builder: ProgramBuilder) -> None:
    """Let ksmd scan often enough to merge equal pages."""
    builder.do(Verb.KSM, builder.rng.choice([3, 3, 4]))


def write_some(builder: ProgramBuilder, who: str, kind: PageMark, most: int = 2) -> None:
    """Write some pages of a kind again; a shared one is copied."""
    for run in builder.pieces(who, (kind,), builder.rng.randint(0, most), 8):
        builder.do(Verb.WRITE, *run, who=who)


def lock_some(builder: ProgramBuilder, who: str) -> None:
    """Lock most mappings with mlock2, whole or in part."""
    for vma in builder.vmas(who):
        if not vma.traits.droppable and builder.rng.random() < 0.7:
            builder.do(Verb.MLOCK2, *_most_of(builder, vma), who=who)


def protect_some(builder: ProgramBuilder, who: str) -> None:
    """Make most mappings read-only, whole or in part, and some of that writable again."""
    rng = builder.rng
    for vma in builder.vmas(who):
        if rng.random() < 0.8:
            start, pages = _most_of(builder, vma)
            builder.do(Verb.MPROTECT, start, pages, 1, who=who)
            if rng.random() < 0.2:
                builder.do(Verb.MPROTECT, start, rng.randint(1, pages), 3, who=who)


def unmap_some(builder: ProgramBuilder, who: str) -> None:
    """Unmap parts of mappings, also through the middle of large folios."""
    rng = builder.rng
    for _ in range(rng.randint(1, 2)):
        vma = rng.choice(builder.vmas(who))
        if vma.pages > PMD_PAGES // 2 and not builder.space(who).pinned:
            edge = rng.choice([vma.start, vma.end])
            pages = rng.choice([1, 3, 16, 37, 200])
            inner = vma.start + rng.randint(0, vma.pages - 1)
            start = rng.choice([inner, edge])
            start = max(vma.start, min(start, vma.end - pages))
            builder.do(Verb.MUNMAP, start, pages, who=who)


def move_some(builder: ProgramBuilder, who: str, to: int) -> None:
    """Move parts by mremap to a place from page `to` on; folios then lie across their natural boundaries."""
    rng = builder.rng
    for _ in range(rng.randint(1, 2)):
        space = builder.space(who)
        vmas = [
            vma
            for vma in space.vmas
            if vma.end <= to and not (vma.traits.mlocked or vma.traits.droppable or vma.traits.uffd)
        ]
        if not vmas:
            return
        vma = rng.choice(vmas)
        start = vma.start + rng.choice([0, 0, 1, 5, 64, rng.randint(0, vma.pages - 1)])
        start = min(start, vma.end - 1)
        pages = rng.choice([vma.end - start, rng.randint(1, vma.end - start)])
        place = to + rng.choice([0, 1, 2, 3, 8, 37, 256, 500, start % PMD_PAGES])
        builder.do(Verb.MREMAP, start, pages, place, who=who)
        to = round_up_to_table(place + pages + 1)


def collapse_some(builder: ProgramBuilder, who: str) -> None:
    """Call MADV_COLLAPSE on a whole table that it is likely to collapse, before the final settings."""
    tables = [table for table in whole_tables(builder, who) if _collapses(builder, who, table)]
    if tables:
        builder.advise(who, builder.rng.choice(tables), PMD_PAGES, Madv.COLLAPSE)


def _collapses(builder: ProgramBuilder, who: str, table: int) -> bool:
    found = {builder.space(who).page(page) for page in range(table, table + PMD_PAGES)}
    return PageMark.WRITTEN in found and found.isdisjoint(OUT_OF_REACH)


def collapse(builder: ProgramBuilder) -> None:
    """Make MADV_COLLAPSE of a random mapping the action, called by its process or by another one."""
    rng = builder.rng
    names = list(builder.world.processes)
    who = rng.choice(names)
    by = who
    if rng.random() < 0.3:
        others = [name for name in names if name != who]
        by = rng.choice(others) if others else next(each for each in PROCESSES[1:] if each != who)
        if not others:
            builder.start(by)
    vmas = builder.vmas(who)
    if not vmas:
        return
    vma = rng.choice(vmas)
    builder.action = Action.MADVISE_COLLAPSE
    builder.target = Target(who, vma.start, by)


def edge_limits(builder: ProgramBuilder, who: str) -> None:
    """Set a limit to what one table has, or to one more or one less."""
    rng = builder.rng
    tables = whole_tables(builder, who)
    if not tables:
        return
    table = rng.choice(tables)
    pages = [builder.space(who).page(page) for page in range(table, table + PMD_PAGES)]
    empty = sum(page in (PageMark.ABSENT, PageMark.ZERO) for page in pages)
    out = sum(page is PageMark.OUT for page in pages)
    by_one = rng.choice([-1, 0, 0, 1])
    limit = min(PMD_PAGES - 1, max(0, (out if out else empty) + by_one))
    name = "max_ptes_swap" if out else "max_ptes_none"
    sizes = dict(builder.settings.sizes)
    if rng.random() < 0.5:
        sizes = dict.fromkeys(sizes, Enabled.NEVER)
    sizes[PMD_ORDER] = rng.choice([Enabled.ALWAYS, Enabled.MADVISE])
    builder.settings = builder.settings.replace(sizes=sizes, **{name: limit})
