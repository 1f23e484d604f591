# SPDX-License-Identifier: GPL-2.0-or-later
"""One search of a world: explored (on several processes, if it takes long), enumerated or sampled."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from mthp.check.records import Ran
from mthp.explore.compiled.explorer import CompiledExplorer
from mthp.explore.compiled.kinds import Unrecordable
from mthp.explore.enumerate import Enumerator
from mthp.explore.explore import Explorer, Stop, Until, outcome
from mthp.explore.outcome import BrokenSchedule, Extent, SearchOutcome
from mthp.explore.parallel import ParallelExplorer, SearchPart, by_reference, by_twin
from mthp.explore.part import Counts, Key, Part, Parts, Standing
from mthp.explore.sample import Sampler
from mthp.explore.tasks import MAX_STEPS, NotTheSame
from mthp.races.protocol import in_force
from mthp.races.variant import VariantError
from mthp.races.world import RaceWorld

SPLIT_AFTER: Final = 2.0
"""Seconds after which a search is split between processes."""
TELL_EVERY: Final = 0.5
KEEP_EVERY: Final = 5.0
SWITCH_AT: Final = 300
"""Executions that the reference makes before the compiled twin takes over; measured in decision 0010."""


MayContinue = Callable[[Explorer | CompiledExplorer], bool]


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


@dataclass(kw_only=True)
class SearchControl:
    """What a search reports to, and what may stop it.

    parts: where it begins. processes: how many may take part. tell: it is called with how far the search
    is, every TELL_EVERY seconds. keep: it is called with what is needed to resume the search, every
    `every` seconds. is_over: it is asked after each execution, and True stops the search.

    by: which explorer searches; refused: why the compiled one could not. ran: what of the protocol has
    run so far.
    rest: what is needed to resume, once the search has stopped before its end; None: it came to the end.
    """

    parts: Parts | None = None
    processes: int = 1
    tell: Callable[[Standing], None] | None = None
    keep: Callable[[Parts], None] | None = None
    every: float = KEEP_EVERY
    is_over: Callable[[], bool] = lambda: False
    by: By = By.BEST
    ran: Callable[[], Ran] = field(default=lambda: (), init=False)
    refused: str = field(default="", init=False)
    rest: Parts | None = field(default=None, init=False)
    _told: float = field(default_factory=time.monotonic, init=False)
    _kept: float = field(default_factory=time.monotonic, init=False)

    def may_continue(self, parts: Callable[[], Parts]) -> bool:
        """Report what is due; whether the search may continue."""
        now = time.monotonic()
        if self.tell is not None and now - self._told >= TELL_EVERY:
            self._told = now
            self.tell(Standing.of(parts()))
        if self.keep is not None and now - self._kept >= self.every:
            self._kept = now
            self.keep(parts())
        return not self.is_over()


def search(
    world: RaceWorld,
    budget: Budget,
    laws: Collection[int],
    control: SearchControl | None = None,
) -> SearchOutcome:
    """Search a world until a law among `laws` is broken. VariantError: the protocol file in force does not
    do the same again.
    """
    control = control or SearchControl()
    if budget.sample is not None:
        return Sampler(world, seed=budget.seed, most_steps=budget.steps).sample(budget.sample)
    one = _Search(world, budget, laws, control)
    try:
        return one.enumerate() if budget.preemptions is not None else one.explore()
    except NotTheSame as error:
        if in_force() is None:
            raise
        raise VariantError(f"{error}: it must keep nothing from one to the next") from None


def of_laws(findings: Iterable[BrokenSchedule], laws: Collection[int]) -> BrokenSchedule | None:
    """The first finding about one of the laws."""
    return next((each for each in findings if each.broken.law in laws), None)


@dataclass(frozen=True)
class _Search:
    """One search: which explorers it takes, one after the other."""

    world: RaceWorld
    budget: Budget
    laws: Collection[int]
    control: SearchControl

    def enumerate(self) -> SearchOutcome:
        """Every execution with so many preemptions."""
        return Enumerator(
            self.world,
            preemptions=self.budget.preemptions,
            most_executions=self.budget.executions,
            most_steps=self.budget.steps,
            may_continue=lambda enumerator: (
                not self._has_found(enumerator.findings.values()) and not self.control.is_over()
            ),
        ).enumerate()

    def explore(self) -> SearchOutcome:
        """Every execution that can differ."""
        control = self.control
        parts = dict(control.parts or {Key(): Part()})
        stop = self._by_the_best(parts)
        findings = {each.broken: each for part in parts.values() for each in part.findings}
        counts = sum((part.counts for part in parts.values()), Counts())
        has_found = self._has_found(findings.values())
        control.rest = None if stop is Stop.END or has_found else parts
        found = outcome(stop, counts, tuple(findings.values()), self.budget.steps)
        coverage = replace(found.coverage, refused=control.refused)
        if has_found and coverage.kind is not Extent.EXHAUSTIVE:
            coverage = replace(coverage, bound=Stop.FIRST.value)
        return replace(found, coverage=coverage)

    def _has_found(self, findings: Iterable[BrokenSchedule]) -> bool:
        return of_laws(findings, self.laws) is not None

    def _may_continue(self, explorer: Explorer | CompiledExplorer) -> bool:
        if self._has_found(explorer.findings.values()):
            return False
        return self.control.may_continue(lambda: {Key(): explorer.part()})

    def _by_the_best(self, parts: dict[Key, Part]) -> Stop:
        """One explorer after the other, as control.by says."""
        control, most = self.control, self.budget.executions
        whole = parts[Key()]
        if control.by is By.BEST and len(parts) == 1 and whole.counts.executions < SWITCH_AT:
            few = min(most or SWITCH_AT, SWITCH_AT)
            stop = self._by_reference(few, parts)
            whole = parts[Key()]
            is_stopped = self._has_found(whole.findings) or control.is_over()
            is_next = whole.counts.executions >= few and few != most
            if stop is not Stop.ENOUGH or is_stopped or not is_next:
                return stop
        if control.by is not By.REFERENCE:
            try:
                return self._by_twin(most, parts)
            except Unrecordable as refused:
                control.refused = str(refused)
        return self._by_reference(most, parts)

    def _by_reference(self, most_executions: int | None, parts: dict[Key, Part]) -> Stop:
        def alone(may_continue: MayContinue) -> tuple[Stop, Part]:
            explorer = Explorer(
                self.world,
                until=Until.END,
                most_executions=most_executions,
                most_steps=self.budget.steps,
                may_continue=may_continue,
                part=parts[Key()],
            )
            return explorer.search(), explorer.part()

        search_part = by_reference(self.world, Until.END, self.budget.steps)
        return self._alone_at_first(alone, search_part, most_executions, parts)

    def _by_twin(self, most_executions: int | None, parts: dict[Key, Part]) -> Stop:
        twin = CompiledExplorer(
            self.world,
            until=Until.END,
            most_executions=most_executions,
            most_steps=self.budget.steps,
        )

        def alone(may_continue: MayContinue) -> tuple[Stop, Part]:
            twin.may_continue = may_continue
            return twin.search_part(parts[Key()], {}), twin.part()

        twin.open()
        try:
            return self._alone_at_first(alone, by_twin(twin), most_executions, parts)
        finally:
            twin.close()

    def _alone_at_first(
        self,
        alone: Callable[[MayContinue], tuple[Stop, Part]],
        search_part: SearchPart,
        most_executions: int | None,
        parts: dict[Key, Part],
    ) -> Stop:
        """In this process, and then in several if it takes long: the twin has automata and machine code
        by then, and each has them too.

        A search that is bounded is never split, so that the bound always means the same executions.
        """
        may_split = self.control.processes > 1 and most_executions is None
        until = float("inf")

        def may_continue(explorer: Explorer | CompiledExplorer) -> bool:
            nonlocal until
            now = time.monotonic()
            if may_split and (isinstance(explorer, Explorer) or explorer.is_at_full_speed):
                until = min(until, now + SPLIT_AFTER)
            return now <= until and self._may_continue(explorer)

        if len(parts) == 1:
            stop, parts[Key()] = alone(may_continue)
            is_late = stop is Stop.ENOUGH and time.monotonic() > until
            if not is_late or self.control.is_over() or self._has_found(parts[Key()].findings):
                return stop
        return self._in_several_processes(search_part, parts)

    def _in_several_processes(self, search_part: SearchPart, parts: dict[Key, Part]) -> Stop:
        def may_continue(explorer: ParallelExplorer) -> bool:
            if any(self._has_found(part.findings) for part in parts.values()):
                return False
            return self.control.may_continue(lambda: parts)

        return ParallelExplorer(
            search_part, self.control.processes, parts, may_continue=may_continue
        ).search()
