# SPDX-License-Identifier: GPL-2.0-or-later
"""One search of a world: explored (on several processes, if it takes long), enumerated or sampled."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

from mthp.races.world import World
from mthp.schedulers.crew import Crew
from mthp.schedulers.enumerate import Enumerator
from mthp.schedulers.explore import Explorer, Stop, Until, outcome
from mthp.schedulers.outcome import Finding, Kind, Outcome
from mthp.schedulers.part import Counts, Key, Part, Parts, Standing
from mthp.schedulers.sample import Sampler
from mthp.schedulers.tasks import MAX_STEPS

ALONE: Final = 2.0
"""Seconds after which a search is split between processes."""
TELL: Final = 0.5
KEEP: Final = 5.0


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
    ) -> None:
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
    world: World, budget: Budget, laws: Collection[int], care: Care | None = None
) -> Outcome:
    """Search a world until a law among `laws` is broken."""
    care = care or Care()
    if budget.sample is not None:
        return Sampler(world, seed=budget.seed, most_steps=budget.steps).sample(budget.sample)
    if budget.preemptions is not None:
        return _enumerate(world, budget, laws, care)
    found = _explore(world, budget, laws, care)
    if of_laws(found.findings, laws) is None or found.coverage.kind is Kind.EXHAUSTIVE:
        return found
    return replace(found, coverage=replace(found.coverage, bound=Stop.FIRST.value))


def of_laws(findings: Collection[Finding], laws: Collection[int]) -> Finding | None:
    """The first finding about one of the laws."""
    return next((each for each in findings if each.broken.law in laws), None)


def _enumerate(world: World, budget: Budget, laws: Collection[int], care: Care) -> Outcome:
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


def _explore(world: World, budget: Budget, laws: Collection[int], care: Care) -> Outcome:
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
    return outcome(stop, counts, tuple(findings.values()), budget.steps)


def _alone(
    world: World, budget: Budget, laws: Collection[int], care: Care, part: Part
) -> tuple[Stop | None, dict[Key, Part]]:
    """In this process: to the end, or until it is time to split the search (None).

    A search that is bounded is never split, so that the bound always means the same executions.
    """
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
    found = of_laws(explorer.findings.values(), laws)
    return (None if is_split and found is None else stop), {Key(): explorer.part()}


def _together(
    world: World, budget: Budget, laws: Collection[int], care: Care, parts: Parts
) -> tuple[Stop, dict[Key, Part]]:
    """On several processes."""

    def go_on(crew: Crew) -> bool:
        if any(of_laws(part.findings, laws) is not None for part in crew.parts.values()):
            return False
        return care.go_on(lambda: crew.parts)

    crew = Crew(world, care.processes, parts, most_steps=budget.steps, go_on=go_on)
    return crew.search(), crew.parts
