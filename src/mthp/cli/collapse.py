# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp collapse: what khugepaged would make of a target."""

from __future__ import annotations

import argparse
import gc
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from mthp.cli.options import DIFFER, UsageError, given_numbers, print_json, show
from mthp.cli.progress import ProgressLine
from mthp.cli.target import (
    captured_settings,
    load_target,
    settle_assumed,
    settle_profile,
    settle_settings,
    targets,
)
from mthp.image.snapshot import Snapshot
from mthp.predict.bounds import with_bounds, with_unknowns
from mthp.predict.explain import vma_gate
from mthp.predict.image import Image
from mthp.predict.measure import TlbModel, parts_of
from mthp.predict.outcome import Request, run_world
from mthp.predict.passes import Interrupted
from mthp.predict.records import Outcome
from mthp.words.events import Event, PassedBy, ftrace, singly
from mthp.words.profiles import DEFAULT, PROFILES, Profile
from mthp.words.settings import Settings
from mthp.worlds.build import BuiltWorld
from mthp.worlds.unseen import Assumed

MOST_LEFT_ALONE = 1 << 19
"""Frames of a world that is over which take too little to look for it at once."""


class ScanProgress(ProgressLine):
    """Shows how far a run over so many tables is; an interrupt takes effect here."""

    def __init__(self, world: BuiltWorld, *, quiet: bool) -> None:
        super().__init__(quiet=quiet)
        self.daemon = world.khugepaged
        self.tables = tables_of(world)
        self.full_scans = self.within = self.scanned = self.tried = 0
        self.began = self.last = time.monotonic()

    def on_table(self) -> None:
        """Count one more table that was scanned."""
        if self.daemon.full_scans != self.full_scans:
            self.full_scans, self.within = self.daemon.full_scans, 0
        self.within += 1
        self.scanned += 1
        if self._is_due():
            left = (self.last - self.began) / self.scanned * (self.tables - self.within)
            self.say(
                f"full scan {self.full_scans + 1}: {self.within:,} of {self.tables:,} tables, "
                f"{left:.0f} s to its end"
            )

    def on_try(self) -> None:
        """Count one more change that is tried."""
        self.tried += 1
        if self._is_due():
            self.say(f"looking for the least changes: {self.tried} tried")

    def on_other(self) -> None:
        """Count one more table that was scanned under other settings, or other assumptions."""
        self.scanned += 1
        if self._is_due():
            self.say(f"trying what else there could be: {self.scanned} tables")

    def _is_due(self) -> bool:
        """Whether the line is half a second old. Raises Interrupted after Ctrl-C."""
        if self.interrupted:
            raise Interrupted
        now = time.monotonic()
        if now - self.last <= 0.5:
            return False
        self.last = now
        return True


def tables_of(world: BuiltWorld) -> int:
    """How many tables a full scan of a world comes to that are there."""
    parts = parts_of(world.vmas)
    whole = Counter(parts.owners[parts.counts == world.kernel.geometry.ptrs_per_pte].tolist())
    return sum(nr for k, nr in whole.items() if vma_gate(world.kernel, world.vmas[k]) is None)


def predict(
    image: Image,
    settings: Settings,
    profile: tuple[Profile, str],
    args: argparse.Namespace,
    assumed: Assumed | None = None,
) -> tuple[BuiltWorld, Request]:
    """Build a world and the request to run on it; a ValueError says why a state cannot be."""
    assumed = assumed or settle_assumed(args)
    try:
        world, request = image.prepared(settings, *profile, assumed)
    except ValueError as error:
        raise UsageError(f"{image.name}: {error}") from None
    request.passes = args.passes
    request.tlb = TlbModel(getattr(args, "tlb", "plain"))
    request.changes = not getattr(args, "no_changes", False)
    return world, request


@contextmanager
def kept() -> Iterator[None]:
    """What is made meanwhile stays: it is not looked for cycles in, of which it has many that are in use."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def forget_worlds() -> None:
    """Give back what worlds took that are over: they lie in cycles."""
    gc.unfreeze()
    gc.collect()


def run_collapse(args: argparse.Namespace) -> int:
    """Run `mthp collapse` and return its exit code."""
    if args.conformance:
        return _conformance(args)
    given = (args.json, args.csv, args.csv_processes, args.events)
    views = [*map(bool, given), args.why is not None, args.steps is not None]
    if sum(views) > 1:
        raise UsageError(
            "--json, --csv, --csv-processes, --events, --why and --steps exclude one another"
        )
    if args.timeline and sum(views[1:]):
        raise UsageError(
            "--timeline is a part of the report, and --json has it: there is none here"
        )
    asked = madvise_range(args)
    with kept():
        image = load_target(args)
    settings = settle_settings(args, captured_settings(image))
    profile = settle_profile(args.profile, image)
    if args.steps is not None:
        return _steps(args, image, settings, profile)
    if asked is not None:
        return _madvise(args, asked, image, settings, profile)
    keep: list[Event | PassedBy] | None = [] if args.events or args.why is not None else None
    with kept():
        world, request = predict(image, settings, profile, args)
    progress = ScanProgress(world, quiet=args.quiet)
    request.keep, request.on_table, request.on_try = keep, progress.on_table, progress.on_try
    if args.why is not None:
        return _why(args, world, request, progress, keep or [])

    def another(settings: Settings, assumed: Assumed | None = None) -> tuple[BuiltWorld, Request]:
        forget_worlds()
        return predict(image, settings, profile, args, assumed)

    brief = args.events or args.csv or args.csv_processes
    request.changes &= not brief
    with progress.interruptible():
        outcome = run_world(world, request)
        if not brief:
            is_large = world.kernel.mem.nr_frames > MOST_LEFT_ALONE
            del world, progress.daemon
            if is_large:
                forget_worlds()
            if isinstance(image.data, Snapshot) and args.no_range:
                outcome = with_unknowns(outcome, image.data, settle_assumed(args))
            elif isinstance(image.data, Snapshot):
                outcome = with_bounds(
                    outcome,
                    request.windows,
                    image.data,
                    settle_assumed(args),
                    lambda assumed: another(settings, assumed),
                    progress.on_other,
                )
        if request.changes:
            from mthp.predict.alternatives import with_alternatives

            outcome = with_alternatives(outcome, another, progress.on_other)
    _print(args, outcome, keep or [])
    return 0 if outcome.complete and not progress.interrupted else 1


def _print(args: argparse.Namespace, outcome: Outcome, events: list[Event | PassedBy]) -> None:
    if args.events:
        for line in ftrace(singly(events)):
            show(line)
    elif args.json:
        from mthp.report.json_doc import outcome_document

        print_json(outcome_document(outcome))
    elif args.csv or args.csv_processes:
        from mthp.report.table_csv import mapping_rows, process_rows, write_csv

        rows = mapping_rows if args.csv else process_rows
        write_csv(rows(outcome), sys.stdout)
    else:
        from rich.console import Console

        from mthp.report.text import render_outcome

        render_outcome(outcome, Console(), verbose=args.verbose, timeline=args.timeline)


def _why(
    args: argparse.Namespace,
    world: BuiltWorld,
    request: Request,
    progress: ScanProgress,
    events: list[Event | PassedBy],
) -> int:
    from mthp.predict.why import find_mapping, look_at_window, table_now
    from mthp.report.refusals import window_lines

    address: int = args.why
    vma = find_mapping(world, address)
    if vma is None:
        raise UsageError(f"--why: {address:#x} is in no mapping of {request.target}")
    before = table_now(world, vma, address, request.snapshot)
    with progress.interruptible():
        request.keep = events
        outcome = run_world(world, request)
    window = look_at_window(world, vma, address, before, request, outcome, events)
    for line in window_lines(window):
        show(line)
    return 0 if outcome.complete and not progress.interrupted else 1


def _steps(
    args: argparse.Namespace, image: Image, settings: Settings, profile: tuple[Profile, str]
) -> int:
    from rich.console import Console

    from mthp.predict.steps import StepRecorder
    from mthp.report.steps import render_steps

    address: int = args.steps
    world, request = predict(image, settings, profile, args)
    request.changes = False
    recorder = StepRecorder(world.kernel, address)
    request.on_event = recorder.on_event
    run_world(world, request)
    if not recorder.attempts:
        raise UsageError(
            f"--steps: nothing was attempted at {address:#x}; --why {address:x} says why"
        )
    render_steps(recorder.folded(), Console())
    return 0


def madvise_range(args: argparse.Namespace) -> tuple[int, int] | None:
    """The range of --madvise-collapse; start and end 0 where it was given none, None without it.

    What follows the option and is no range is the target.
    """
    given: str | None = args.madvise_collapse
    if given is None:
        if args.reach is not None:
            raise UsageError("--reach goes with --madvise-collapse")
        return None
    khugepaged = (args.events, args.why, args.steps, args.passes, args.timeline or None)
    if any(value is not None for value in khugepaged):
        raise UsageError(
            "--madvise-collapse has no --events, --why, --steps, --passes and --timeline"
        )
    if args.csv_processes:
        raise UsageError("--madvise-collapse has a row a call: --csv")
    match = re.fullmatch(r"(?:0[xX])?([0-9a-fA-F]{1,16})([-+])(?:0[xX])?([0-9a-fA-F]{1,17})", given)
    if match is None:
        if given and targets(args):
            raise UsageError(
                f"--madvise-collapse: {given[:40]!r} is neither START-END nor START+LENGTH"
            )
        args.target = given or args.target
        return 0, 0
    start, end = int(match[1], 16), int(match[3], 16)
    end += start if match[2] == "+" else 0
    if end <= start:
        raise UsageError(f"--madvise-collapse: {given} is empty")
    return start, end


def _madvise(
    args: argparse.Namespace,
    asked: tuple[int, int],
    image: Image,
    settings: Settings,
    profile: tuple[Profile, str],
) -> int:
    from rich.console import Console

    from mthp.predict.madvise import anonymous_ranges, run_madvise
    from mthp.report.madvise import ReachAnswer, madvise_document, reach_answer, render_madvise
    from mthp.report.table_csv import call_rows, write_csv

    world, request = predict(image, settings, profile, args)
    progress = ScanProgress(world, quiet=args.quiet)
    request.on_table = progress.on_table
    ranges = list(anonymous_ranges(world))
    if asked[1]:
        if len(world.kernel.mms) != 1:
            raise UsageError("--madvise-collapse: a range is one process's, and here are several")
        ranges = [(world.kernel.mms[0], *asked)]
    reach = None if args.reach is None else args.reach / 100
    with progress.interruptible():
        outcome = run_madvise(world, request, ranges)
    if args.json:
        print_json(madvise_document(outcome, reach))
    elif args.csv:
        write_csv(call_rows(outcome), sys.stdout)
    else:
        render_madvise(outcome, Console(), verbose=args.verbose, reach=reach)
    if reach is not None and reach_answer(outcome.share, reach) is ReachAnswer.NO:
        return 1
    return 0 if outcome.complete and not progress.interrupted else 1


_IGNORED = (
    "madvise_collapse", "enabled", "thp_anon", "defrag", "registered", "free_memory", "passes", "events",
    "why", "steps",
)  # fmt: skip


def _conformance(args: argparse.Namespace) -> int:
    """Run recorded scenarios on the engine and return the exit code."""
    from rich.console import Console

    from mthp.compare.conformance import run_conformance
    from mthp.image.scenario import load
    from mthp.report.conformance import conformance_document, render_conformance

    if targets(args):
        raise UsageError("--conformance takes its scenarios from FILE; give no other target")
    given = [name for name in _IGNORED if getattr(args, name) is not None]
    ignored = [f"--{name.replace('_', '-')}" for name in (*given, *given_numbers(args))]
    if args.no_changes:
        ignored.append("--no-changes")
    if args.no_range:
        ignored.append("--no-range")
    if args.assume_young != "captured":
        ignored.append("--assume-young")
    if args.csv or args.csv_processes:
        ignored.append("--csv")
    if args.timeline:
        ignored.append("--timeline")
    if ignored:
        raise UsageError(f"--conformance runs what was recorded: {ignored[0]} has no place there")
    profile = PROFILES[args.profile] if args.profile else DEFAULT
    try:
        score = run_conformance(load(args.conformance), profile)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not score.passes:
        raise UsageError(f"{args.conformance}: no recorded pass in it")
    if args.json:
        print_json(conformance_document(score))
    else:
        render_conformance(score, Console())
    return DIFFER if score.mismatches else 0
