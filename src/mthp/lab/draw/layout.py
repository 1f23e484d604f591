# SPDX-License-Identifier: GPL-2.0-or-later
"""Where mappings lie, their final advice, and the registration of the processes with khugepaged."""

from __future__ import annotations

from random import Random

from mthp.lab.draw.fill import weighted
from mthp.lab.draw.program_builder import ProgramBuilder, Run
from mthp.lab.geometry import PMD_PAGES, round_up_to_table
from mthp.lab.program.program import Madv, Operation, Verb
from mthp.lab.program.space import DeclaredMapping
from mthp.lab.program.walk import walk
from mthp.words.settings import Enabled

FIRST = PMD_PAGES
"""Mappings start around this page, which leaves room before the first whole table."""


def place(rng: Random, at: int = FIRST, tables: int = 0) -> Run:
    """Draw a range that holds `tables` whole tables (0: draw 1 to 3), often with odd ends.

    at: the first page of the first whole table, a multiple of PMD_PAGES.
    """
    tables = tables or rng.choice([1, 1, 1, 1, 2, 2, 3])
    before = _odd(rng) if rng.random() < 0.35 else 0
    after = _odd(rng) if rng.random() < 0.35 else 0
    return at - before, before + tables * PMD_PAGES + after


def _odd(rng: Random) -> int:
    return rng.choice([1, 2, 4, 16, 37, 256, 511, rng.randint(1, PMD_PAGES - 1)])


def short_place(rng: Random, at: int) -> Run:
    """Draw a range that holds no whole table, or just one."""
    pages = rng.choice([1, 4, 63, 300, 511, 512, 513, 700, rng.randint(1, 1000)])
    return at - rng.randint(0, PMD_PAGES - 1), pages


def map_one(builder: ProgramBuilder, who: str = "s", tables: int = 0) -> None:
    """Map one range for the process."""
    builder.do(Verb.MMAP, *place(builder.rng, tables=tables), who=who)


def start_mapped(builder: ProgramBuilder, tables: int = 0) -> None:
    """Start process s with one mapping, as most families do."""
    builder.start()
    map_one(builder, tables=tables)


def map_many(builder: ProgramBuilder, who: str, number: int) -> None:
    """Map several ranges with at least a page between them; two may lie in one table."""
    rng, low = builder.rng, 0
    for _ in range(number):
        at = round_up_to_table(low + 1) + rng.choice([0, 0, PMD_PAGES])
        run = place(rng, at, 1) if rng.random() < 0.7 else short_place(rng, at + PMD_PAGES)
        start = max(run[0], low + 1)
        run = (start, max(1, sum(run) - start))
        builder.do(Verb.MMAP, *run, who=who)
        low = sum(run)


_ADVICE: dict[Madv | None, float] = {Madv.HUGEPAGE: 60, None: 33, Madv.NOHUGEPAGE: 7}
IDLE = 0.12
"""The share of programs that may leave nothing which khugepaged is allowed to collapse."""


def give_advice(builder: ProgramBuilder, who: str) -> None:
    """Advise the process's mappings, after the drawn settings are written.

    MADV_NOHUGEPAGE comes before MADV_HUGEPAGE: only a change of flags registers a process. Where no
    size is enabled for mappings without advice, nearly all get MADV_HUGEPAGE.
    """
    rng, settings = builder.rng, builder.settings
    idle = rng.random() < IDLE
    inherits_always = settings.orders_inherit and settings.enabled is Enabled.ALWAYS
    needed = not (settings.orders_always or inherits_always or idle)
    for vma in builder.vmas(who):
        advice = weighted(rng, _ADVICE)
        if advice is None and needed:
            advice = Madv.HUGEPAGE
        if advice is Madv.HUGEPAGE:
            builder.finish.append(_advise(who, vma, Madv.NOHUGEPAGE))
        if advice is not None:
            builder.finish.append(_advise(who, vma, advice))


def _advise(who: str, vma: DeclaredMapping, advice: Madv) -> Operation:
    return Operation(Verb.ADVISE, (vma.start, vma.pages, int(advice)), who)


def close(builder: ProgramBuilder) -> None:
    """Advise every process in a random order, and register those that this has not registered."""
    names = list(builder.world.processes)
    builder.rng.shuffle(names)
    for name in names:
        give_advice(builder, name)
    world = walk(builder.draft("", "").program())
    for name in names:
        if not world.process(name).registered or builder.rng.random() < 0.1:
            builder.register(name)
