# SPDX-License-Identifier: GPL-2.0-or-later
"""A program under construction: each operation is walked through when added, so the next can be legal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from mthp.image.scenario_values import Action
from mthp.lab.geometry import PAGE_SIZE, PMD_PAGES
from mthp.lab.program.processes import Subjects
from mthp.lab.program.program import (
    ALL_OFF,
    BASE,
    Draft,
    Madv,
    Operation,
    Target,
    Verb,
    registration,
    spans,
    switch,
    switches,
)
from mthp.lab.program.space import DeclaredMapping, PageMark, Space
from mthp.lab.program.walk import do
from mthp.words.settings import Enabled, Settings

DECOY = 1 << 21
"""Where decoy mappings lie, in pages from the base: far from all others."""


@dataclass
class ProgramBuilder:
    """A program being drawn.

    world: what its operations have made so far. settings: the final ones; while the operations run,
    every switch is off. finish: operations for after the final settings are written, which are not
    walked through yet. nodes: the NUMA nodes of the guest.
    """

    rng: Random
    settings: Settings
    world: Subjects = field(default_factory=Subjects)
    ops: list[Operation] = field(default_factory=list)
    finish: list[Operation] = field(default_factory=list)
    action: Action = Action.KHUGEPAGED
    target: Target | None = None
    passes: int = 1
    nodes: int = 1

    def __post_init__(self) -> None:
        for each in switches(ALL_OFF):
            do(self.world, each)

    # --- adding operations ----------------------------------------------------------------------------

    def do(self, verb: Verb, *args: int | str, who: str = "") -> None:
        """Add one operation and walk through it. ProgramError: it is not legal here."""
        self.add(Operation(verb, args, who))

    def add(self, each: Operation) -> None:
        """Do what do() does with an operation that exists already."""
        do(self.world, each)
        self.ops.append(each)

    def advise(self, who: str, start: int, pages: int, advice: Madv) -> None:
        """Add one madvise()."""
        self.do(Verb.ADVISE, start, pages, int(advice), who=who)

    @contextmanager
    def with_order(self, order: int) -> Iterator[None]:
        """While this context lasts, faults make folios of the order."""
        self.add(switch(order, Enabled.ALWAYS))
        yield
        self.add(switch(order, Enabled.NEVER))

    def start(self, who: str = "s") -> None:
        """Add a new process and its base address, which is sometimes not aligned to a table."""
        base = BASE
        if self.rng.random() < 0.08:
            base += self.rng.choice([1, 37, 511, PMD_PAGES, 5 * PMD_PAGES]) * PAGE_SIZE
        self.do(Verb.NEW, *(() if who == "s" else (who,)))
        self.do(Verb.BASE, base, who=who)

    # --- the state so far ----------------------------------------------------------------------------

    def space(self, who: str = "s") -> Space:
        """The address space of a process."""
        return self.world.space(who)

    def vmas(self, who: str) -> tuple[DeclaredMapping, ...]:
        """A copy of the list of its mappings, which stays the same while operations are added."""
        return tuple(self.space(who).vmas)

    def free_runs(self, who: str, *kinds: PageMark) -> list[Run]:
        """The runs of writable pages of some kinds that are not pinned, locked or write-protected.

        Each lies within one VMA.
        """
        space = self.space(who)
        held = space.pinned | space.wp
        found: list[Run] = []
        for vma in space.vmas:
            if vma.traits.writable and not vma.traits.mlocked:
                pages = range(vma.start, vma.end)
                found += spans(p for p in pages if space.page(p) in kinds and p not in held)
        return found

    def piece(self, run: Run, most: int = 64) -> Run:
        """A random part of a run of at most `most` pages, often aligned to its length."""
        start, pages = run
        length = min(pages, self.rng.choice([1, 1, 2, 3, 4, 8, 16, 32, 64]), most)
        at = start + self.rng.randint(0, pages - length)
        if self.rng.random() < 0.5:
            rounded = at // length * length
            at = rounded if rounded >= start else at
        return at, length

    def pieces(
        self, who: str, kinds: tuple[PageMark, ...], most: int, length: int = 64
    ) -> list[Run]:
        """Random parts of up to `most` free runs of some kinds; no two overlap."""
        runs = self.free_runs(who, *kinds)
        chosen = self.rng.sample(runs, min(most, len(runs)))
        return [self.piece(run, length) for run in chosen]

    # --- finishing ----------------------------------------------------------------------------

    def register(self, who: str) -> None:
        """Make sure that khugepaged knows the process, whatever its VMAs are advised."""
        if not self.world.process(who).registered:
            for each in registration(who, DECOY):
                self.add(each)

    def draft(self, name: str, family: str) -> Draft:
        """The program as it stands, under that name."""
        return Draft(
            id=name,
            family=family,
            ops=tuple(self.ops),
            finish=tuple(self.finish),
            settings=self.settings,
            action=self.action,
            target=self.target,
            passes=self.passes,
        )


Run = tuple[int, int]
"""First page and number of pages."""


def cuts(rng: Random, start: int, end: int, parts: int, grain: int) -> Iterator[Run]:
    """Cut [start, end) into about `parts` runs, most of whose edges are multiples of `grain`."""
    edges = {start, end}
    for _ in range(parts - 1):
        at = rng.randint(start, end)
        if rng.random() < 0.8:
            at = at // grain * grain
        if start < at < end:
            edges.add(at)
    marks = sorted(edges)
    for low, high in pairwise(marks):
        yield low, high - low
