# SPDX-License-Identifier: GPL-2.0-or-later
"""Running the searches of mthp check: the progress line, Ctrl-C, and the file to go on from."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import FrameType

from mthp.check.jobs import Jobs, Row
from mthp.check.rows import Rows
from mthp.check.scorecard import ScorecardRow
from mthp.check.search import By
from mthp.cli.options import UsageError
from mthp.explore.part import Standing

FAILED = 1
INTERRUPTED = 1
"""Exit code: stopped by Ctrl-C; what is known was printed."""


def standing_text(standing: Standing) -> str:
    """How far a search is."""
    total = f"of about {standing.total:,.0f} (estimated)" if standing.fraction else "executions"
    return f"{standing.executions:,} {total}, depth {standing.depth}, {standing.left} choices left"


class SearchProgress:
    """One line on stderr, if that is a terminal and --quiet was not given."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.is_shown = not args.quiet and sys.stderr.isatty()
        self.began = time.monotonic()

    def rows(self, done: int, total: int) -> None:
        """How many rows are finished."""
        if total > 1:
            self._line(f"{done} of {total}")

    def standing(self, job: ScorecardRow, standing: Standing) -> None:
        """How far the one search is that all cores work on."""
        self._line(f"{standing_text(standing)}: {job.name}")

    def clear(self) -> None:
        """Remove the line."""
        self._line("")

    def _line(self, text: str) -> None:
        if self.is_shown:
            width = shutil.get_terminal_size((80, 24)).columns - 1
            end = "" if text else "\r"
            print(f"\r{text[:width]:{width}}", end=end, file=sys.stderr, flush=True)


@contextmanager
def _heeded(interrupt: Event) -> Iterator[None]:
    """Until the end of the block, the first Ctrl-C is an event; a second kills."""

    def on_signal(_: int, __: FrameType | None) -> None:
        if interrupt.is_set():
            raise KeyboardInterrupt
        interrupt.set()

    old = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


def run_jobs(args: argparse.Namespace, jobs: Sequence[ScorecardRow], of: str) -> Iterator[Row]:
    """The rows as they come. UsageError with INTERRUPTED, after those that were known."""
    rows = Rows(Path(args.resume) if args.resume else None, of)
    progress, interrupt = SearchProgress(args), Event()
    work = Jobs(
        jobs,
        processes=args.jobs or os.cpu_count() or 1,
        rows=rows,
        tell=progress.standing,
        is_over=interrupt.is_set,
        by=By(args.explorer) if args.explorer else By.BEST,
    )
    if not all(job.budget.is_resumable for job in jobs):
        yield from work.run()
        return
    done = 0
    try:
        with _heeded(interrupt):
            for row in work.run():
                done += 1
                progress.clear()
                yield row
                progress.rows(done, len(jobs))
    except BrokenProcessPool:
        raise UsageError("one of the processes was killed (out of memory?)", FAILED) from None
    progress.clear()
    if done < len(jobs):
        how = f"{done} of {len(jobs)} rows"
        if len(jobs) == 1 and jobs[0].key in rows.unfinished:
            how = standing_text(Standing.of(rows.unfinished[jobs[0].key].parts))
        more = "; the same command goes on" if rows.path is not None else ""
        raise UsageError(f"stopped: {how}{more}", INTERRUPTED)
