# SPDX-License-Identifier: GPL-2.0-or-later
"""Running the searches of mthp check: their progress, Ctrl-C, and the file to go on from."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mthp.check.jobs import Jobs, Row
from mthp.check.rows import Rows
from mthp.check.scorecard import ScorecardRow
from mthp.check.search import By
from mthp.cli.options import UsageError
from mthp.cli.progress import ProgressLine
from mthp.explore.part import NotThisSearch, Standing

INTERRUPTED = 1
"""Exit code: stopped by Ctrl-C; what is known was printed."""


def standing_text(standing: Standing) -> str:
    """Say how far a search is."""
    total = f"of about {standing.total:,.0f} (estimated)" if standing.fraction else "executions"
    return f"{standing.executions:,} {total}, depth {standing.depth}, {standing.left} choices left"


class SearchProgress(ProgressLine):
    """The line of progress of mthp check and its like."""

    def rows(self, done: int, total: int) -> None:
        """Show how many rows are finished."""
        if total > 1:
            self.say(f"{done} of {total}")

    def standing(self, job: ScorecardRow, standing: Standing) -> None:
        """Show how far the one search is that all cores work on."""
        self.say(f"{standing_text(standing)}: {job.name}")


def run_jobs(args: argparse.Namespace, jobs: Sequence[ScorecardRow], of: str) -> Iterator[Row]:
    """Yield the rows as they come; after Ctrl-C those that are known, then UsageError
    (INTERRUPTED)."""
    rows = Rows(Path(args.resume) if args.resume else None, of)
    progress = SearchProgress(quiet=args.quiet)
    work = Jobs(
        jobs,
        processes=args.jobs or os.cpu_count() or 1,
        rows=rows,
        tell=progress.standing,
        is_over=lambda: progress.interrupted,
        by=By(args.explorer) if args.explorer else By.BEST,
    )
    if not all(job.budget.is_resumable for job in jobs):
        yield from work.run()
        return
    done = 0
    try:
        with progress.interruptible():
            for row in work.run():
                done += 1
                progress.say("")
                yield row
                progress.rows(done, len(jobs))
    except NotThisSearch as error:
        raise UsageError(
            f"{args.resume}: not a search of this world, or damaged: {error}"
        ) from None
    if done < len(jobs):
        how = f"{done} of {len(jobs)} rows"
        if len(jobs) == 1 and jobs[0].key in rows.unfinished:
            how = standing_text(Standing.of(rows.unfinished[jobs[0].key].parts))
        more = "; the same command goes on" if rows.path is not None else ""
        raise UsageError(f"stopped: {how}{more}", INTERRUPTED)
