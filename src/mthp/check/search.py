# SPDX-License-Identifier: GPL-2.0-or-later
"""One search of a world: explored (on several processes, if it takes long), enumerated or sampled."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from mthp.explore.compiled.explorer import CompiledExplorer
from mthp.explore.compiled.kinds import Unrecordable
from mthp.explore.crew import Crew
from mthp.explore.enumerate import Enumerator
from mthp.explore.explore import Explorer, Stop, Until, outcome
from mthp.explore.outcome import BrokenSchedule, Extent, SearchOutcome
from mthp.explore.part import Counts, Key, Part, Parts, Standing
from mthp.explore.sample import Sampler
from mthp.explore.tasks import MAX_STEPS
from mthp.races.world import RaceWorld

ALONE: Final = 2.0
"""Seconds after which a search is split between processes."""
TELL: Final = 0.5
KEEP: Final = 5.0
FEW: Final = 150
"""Executions for which it does not pay to compile anything."""


class By(Enum):
    """Which explorer searches: the reference, its compiled twin, or first the one and then the other."""

    BEST = "best"
    REFERENCE = "reference"
    COMPILED = "compiled"


@dataclass(frozen=True)
class Budget:
    """How far a search may go. executions: at most; None for all. sample: draw that many instead, from
    seed. preemptions: only executions with so many, all of them. steps: at most, of each execution.
    """

    executions: int | None = None
    sample: int | None = None
    seed: int = 0
    preemptions: int | None = None
    steps: int = MAX_STEPS

    @property
    def is_resumable(self) -> bool:
        """Whether a search with this budget can be stopped and go on."""
        return self.sample is None and self.preemptions is None


class Care:
    """What goes on beside a search. parts: where it goes on. processes: how many may take part. tell: is
    told every TELL seconds how far it is. keep: is given what is needed to go on, every `every` seconds.
    is_over: asked after each execution; True stops the search.

    by: which explorer; refused: why the compiled one could not.
    rest: what is needed to go on, once the search has stopped before its end; None: it came to the end.
    """

    def __init__(
        self,
        *,
        parts: Parts | None = None,
        processes: int = 1,
        tell: Callable[[Standing], None] | None = None,
        keep: Callable[[Parts], None] | None = None,
        every: float = KEEP,
        is_over: Callable[[], bool] = lambda: False,
        by: By = By.BEST,
    ) -> None:
        self.by = by
        self.refused = ""
        self.parts = parts
        self.processes = processes
        self.tell = tell
        self.keep = keep
        self.every = every
        self.is_over = is_over
        self.rest: Parts | None = None
        self._told = self._kept = time.monotonic()

    def go_on(self, parts: Callable[[], Parts]) -> bool:
        """Do what is due; whether the search goes on."""
        now = time.monotonic()
        if self.tell is not None and now - self._told >= TELL:
            self._told = now
            self.tell(Standing.of(parts()))
        if self.keep is not None and now - self._kept >= self.every:
            self._kept = now
            self.keep(parts())
        return not self.is_over()


def search(
    world: RaceWorld, budget: Budget, laws: Collection[int], care: Care | None = None
) -> SearchOutcome:
    """Search a world until a law among `laws` is broken."""
    care = care or Care()
    if budget.sample is not None:
        return Sampler(world, seed=budget.seed, most_steps=budget.steps).sample(budget.sample)
    if budget.preemptions is not None:
        return _enumerate(world, budget, laws, care)
    found = _explore(world, budget, laws, care)
    if of_laws(found.findings, laws) is None or found.coverage.kind is Extent.EXHAUSTIVE:
        return found
    return replace(found, coverage=replace(found.coverage, bound=Stop.FIRST.value))


def of_laws(findings: Collection[BrokenSchedule], laws: Collection[int]) -> BrokenSchedule | None:
    """The first finding about one of the laws."""
    return next((each for each in findings if each.broken.law in laws), None)


def _enumerate(
    world: RaceWorld, budget: Budget, laws: Collection[int], care: Care
) -> SearchOutcome:
    def go_on(enumerator: Enumerator) -> bool:
        if of_laws(enumerator.findings.values(), laws) is not None:
            return False
        return not care.is_over()

    return Enumerator(
        world,
        preemptions=budget.preemptions,
        most_executions=budget.executions,
        most_steps=budget.steps,
        go_on=go_on,
    ).enumerate()


def _explore(world: RaceWorld, budget: Budget, laws: Collection[int], care: Care) -> SearchOutcome:
    parts = dict(care.parts or {Key(): Part()})
    stop: Stop | None = None
    if len(parts) == 1:
        stop, parts = _alone(world, budget, laws, care, parts[Key()])
    if stop is None:
        stop, parts = _together(world, budget, laws, care, parts)
    findings = {each.broken: each for part in parts.values() for each in part.findings}
    counts = sum((part.counts for part in parts.values()), Counts())
    is_found = of_laws(findings.values(), laws) is not None
    care.rest = None if stop is Stop.END or is_found else parts
    found = outcome(stop, counts, tuple(findings.values()), budget.steps)
    return replace(found, coverage=replace(found.coverage, refused=care.refused))


def _alone(
    world: RaceWorld, budget: Budget, laws: Collection[int], care: Care, part: Part
) -> tuple[Stop | None, dict[Key, Part]]:
    """In this process: to the end, or until it is time to split the search (None).

    A search that is bounded is never split, so that the bound always means the same executions; nor is
    one that the compiled explorer makes, which is faster than the other on all cores.
    """
    if care.by is By.BEST and part.counts.executions < FEW:
        few = min(budget.executions or FEW, FEW)
        stop, parts = _by_reference(world, replace(budget, executions=few), laws, care, part)
        part = parts[Key()]
        is_few = part.counts.executions >= few and few != budget.executions
        if stop is not Stop.ENOUGH or not is_few or _is_found(part, laws) or care.is_over():
            return stop, parts
    if care.by is not By.REFERENCE:
        try:
            return _by_twin(world, budget, laws, care, part)
        except Unrecordable as refused:
            care.refused = str(refused)
    return _by_reference(world, budget, laws, care, part)


def _is_found(part: Part, laws: Collection[int]) -> bool:
    return of_laws(part.findings, laws) is not None


def _by_twin(
    world: RaceWorld, budget: Budget, laws: Collection[int], care: Care, part: Part
) -> tuple[Stop, dict[Key, Part]]:
    """Unrecordable: it cannot."""

    def go_on(explorer: CompiledExplorer) -> bool:
        if of_laws(explorer.findings.values(), laws) is not None:
            return False
        return care.go_on(lambda: {Key(): explorer.part()})

    explorer = CompiledExplorer(
        world,
        until=Until.END,
        most_executions=budget.executions,
        most_steps=budget.steps,
        go_on=go_on,
        part=part,
    )
    return explorer.search(), {Key(): explorer.part()}


def _by_reference(
    world: RaceWorld, budget: Budget, laws: Collection[int], care: Care, part: Part
) -> tuple[Stop | None, dict[Key, Part]]:
    may_split = care.processes > 1 and budget.executions is None
    until = time.monotonic() + ALONE if may_split else float("inf")

    def go_on(explorer: Explorer) -> bool:
        if of_laws(explorer.findings.values(), laws) is not None or time.monotonic() > until:
            return False
        return care.go_on(lambda: {Key(): explorer.part()})

    explorer = Explorer(
        world,
        until=Until.END,
        most_executions=budget.executions,
        most_steps=budget.steps,
        go_on=go_on,
        part=part,
    )
    stop = explorer.search()
    is_split = stop is Stop.ENOUGH and time.monotonic() > until and not care.is_over()
    parts = {Key(): explorer.part()}
    return (None if is_split and not _is_found(parts[Key()], laws) else stop), parts


def _together(
    world: RaceWorld, budget: Budget, laws: Collection[int], care: Care, parts: Parts
) -> tuple[Stop, dict[Key, Part]]:
    """On several processes."""

    def go_on(crew: Crew) -> bool:
        if any(of_laws(part.findings, laws) is not None for part in crew.parts.values()):
            return False
        return care.go_on(lambda: crew.parts)

    crew = Crew(world, care.processes, parts, most_steps=budget.steps, go_on=go_on)
    return crew.search(), crew.parts
