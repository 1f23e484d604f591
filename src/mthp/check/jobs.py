# SPDX-License-Identifier: GPL-2.0-or-later
"""Many searches on all cores: each on one first, and those that take long on all, one after another."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import KW_ONLY, dataclass, field, replace
from multiprocessing import get_context
from typing import Any, Final

from mthp.check.records import joined
from mthp.check.rows import Result, Rows, Unfinished
from mthp.check.scorecard import ScorecardRow
from mthp.check.search import By, SearchControl
from mthp.explore.part import Parts, Standing
from mthp.words.processes import workers

TURN: Final = 30.0
"""Seconds that a search may have one core to itself."""
_ASK: Final = 0.2
_NOTHING: Final = Unfinished({}, 0, ())

Row = tuple[ScorecardRow, Result]


@dataclass
class Jobs:
    """Searches to be made. rows: keeps what is known. tell: is told how far the one search is that all
    cores work on. is_over: True stops everything; what was not finished is kept.
    """

    jobs: Sequence[ScorecardRow]
    _: KW_ONLY
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    rows: Rows = field(default_factory=lambda: Rows(None, ""))
    tell: Callable[[ScorecardRow, Standing], None] | None = None
    is_over: Callable[[], bool] = lambda: False
    turn: float = TURN
    by: By = By.BEST

    def run(self) -> Iterator[Row]:
        """The results as they come. Fewer than there are jobs: it was stopped."""
        try:
            yield from self._run()
        finally:
            self.rows.save()

    def _run(self) -> Iterator[Row]:
        left = []
        for job in self.jobs:
            result = self.rows.finished.get(job.key)
            if result is not None and not _goes_on(job, result):
                yield job, result
            else:
                left.append(job)
        if len(left) > 1 and self.processes > 1:
            yield from self._each_on_one(left)
            left = [job for job in left if job.key not in self.rows.finished]
        for job in left:
            if self.is_over():
                return
            result = self._on_all(job)
            if result is not None:
                yield job, result

    # Each on one core, for a turn

    def _each_on_one(self, jobs: Sequence[ScorecardRow]) -> Iterator[Row]:
        over = get_context("fork").Event()
        count = min(self.processes, len(jobs))
        with workers(count, _begin, over, self.turn, self.by) as pool:
            queue = list(reversed(jobs))
            running: dict[Future[tuple[Result, Parts | None]], ScorecardRow] = {}
            while running or queue:
                while queue and len(running) < 2 * count:  # one more for each, so that none waits
                    job = queue.pop()
                    before = self.rows.unfinished.get(job.key, _NOTHING)
                    running[pool.submit(_turn, job, before)] = job
                for future in wait(running, _ASK, FIRST_COMPLETED).done:
                    job = running.pop(future)
                    result = self._keep(job, *future.result())
                    if result is not None:
                        yield job, result
                if self.is_over() and not over.is_set():
                    over.set()
                    queue.clear()
                    for future in list(running):
                        if future.cancel():
                            del running[future]

    def _keep(self, job: ScorecardRow, result: Result, rest: Parts | None) -> Result | None:
        """Keep a row; None: it is not finished."""
        is_finished = rest is None or _is_bounded(job, result)
        if is_finished:
            self.rows.finish(job.key, result)
        if rest is not None:
            self.rows.keep(job.key, Unfinished(rest, result.seconds, result.ran))
        return result if is_finished else None

    # One on all cores

    def _on_all(self, job: ScorecardRow) -> Result | None:
        before = self.rows.unfinished.get(job.key, _NOTHING)
        began = time.monotonic()

        def so_far(parts: Parts) -> Unfinished:
            seconds = before.seconds + time.monotonic() - began
            return Unfinished(parts, seconds, joined(before.ran, control.ran()))

        control = SearchControl(
            parts=before.parts,
            processes=self.processes,
            tell=None if self.tell is None else lambda standing: self.tell(job, standing),  # type: ignore[misc]
            keep=lambda parts: self.rows.keep(job.key, so_far(parts)),
            is_over=self.is_over,
            by=self.by,
        )
        return self._keep(job, _after(before, job.run(control)), control.rest)


def _goes_on(job: ScorecardRow, result: Result) -> bool:
    """Whether a finished row stopped at a bound that is further away now."""
    most = job.budget.executions
    stopped = result.covered.bound.startswith("stopped after")
    return stopped and (most is None or most > result.covered.executions)


def _is_bounded(job: ScorecardRow, result: Result) -> bool:
    """Whether a search that is not at its end has come to the bound it was given."""
    most = job.budget.executions
    return most is not None and result.covered.executions >= most


def _after(before: Unfinished, result: Result) -> Result:
    """The result of a search that went on where another had stopped."""
    seconds, ran = before.seconds + result.seconds, joined(before.ran, result.ran)
    return replace(result, seconds=seconds, ran=ran)


# In each process


class _Orders:
    over: Any
    turn: float
    by: By


def _begin(over: Any, turn: float, by: By) -> None:
    _Orders.over, _Orders.turn, _Orders.by = over, turn, by


def _turn(job: ScorecardRow, before: Unfinished) -> tuple[Result, Parts | None]:
    end = time.monotonic() + _Orders.turn
    control = SearchControl(
        parts=before.parts,
        is_over=lambda: time.monotonic() > end or _Orders.over.is_set(),
        by=_Orders.by,
    )
    return _after(before, job.run(control)), control.rest
