# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp sweep --fleet: many snapshots under a grid of settings."""

from __future__ import annotations

import argparse
import os
from contextlib import closing

from mthp.cli.options import UsageError, given_numbers, print_json
from mthp.cli.progress import ProgressLine
from mthp.cli.target import targets
from mthp.fleet.records import FleetError, FleetSweep, Swept, Unusable
from mthp.plan.records import Wish
from mthp.words.files import FileError
from mthp.words.settings import SettingsError, parse_enabled_flag
from mthp.words.streams import say


def run_fleet(args: argparse.Namespace, wish: Wish) -> int:
    """Run `mthp sweep --fleet` and return its exit code: 1 where a snapshot could not be used, or no setting
    holds to the wish on any machine."""
    _check(args)
    try:
        import distributed  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        text = f"--fleet needs {error.name}, which is not installed: pip install 'mthp[fleet]'"
        raise UsageError(text, 5) from None
    try:
        sweep = _fleet_of(args, wish)
    except FleetError as error:
        raise UsageError(str(error), error.code) from None
    if args.json:
        from mthp.report.fleet import fleet_document

        print_json(fleet_document(sweep))
    else:
        from rich.console import Console

        from mthp.report.fleet import render_fleet

        render_fleet(sweep, Console(), verbose=args.verbose)
    for path, why in sweep.unusable:
        say(f"mthp sweep: {path}: {why}")
    holds = any(group.chosen is not None for group in sweep.groups)
    return 0 if holds and not sweep.unusable else 1


def _check(args: argparse.Namespace) -> None:
    """UsageError where options do not go together."""
    if targets(args):
        raise UsageError("--fleet names the snapshots: give no other target")
    if args.html is not None:
        raise UsageError("--html is of one target, not of --fleet")
    if args.output is None:
        raise UsageError("--fleet needs -o FOLDER, for what is found of each snapshot")
    try:
        for flag in args.enabled or ():
            parse_enabled_flag(flag)
    except SettingsError as error:
        raise UsageError(str(error)) from None


def _fleet_of(args: argparse.Namespace, wish: Wish) -> FleetSweep:
    from mthp.fleet.gather import Gathered
    from mthp.fleet.run import snapshots_of, sweep_fleet
    from mthp.fleet.work import FleetJob

    paths = snapshots_of(args.fleet)
    if not paths:
        raise UsageError(f"{args.fleet}: no snapshot (.npz) found")
    folder = os.path.abspath(args.output)
    try:
        os.makedirs(os.path.join(folder, "done"), exist_ok=True)
    except OSError as error:
        raise FileError(f"{args.output}: {error.strerror}") from None
    job = FleetJob(
        enabled=tuple(args.enabled or ()),
        thp_anon=args.thp_anon,
        defrag=None if args.defrag is None else args.defrag == "1",
        limits=given_numbers(args),
        profile=args.profile,
        within=wish.within,
        young=args.assume_young,
        registered=None if args.registered is None else args.registered == "yes",
        free_memory=args.free_memory,
    )
    gathered, unusable, anew = Gathered(folder), list[Unusable](), 0
    progress = ProgressLine(quiet=args.quiet)
    every = sweep_fleet(
        paths, folder, job, args.scheduler, args.jobs, lambda: progress.say("starting workers")
    )
    with closing(every) as found:
        for number, done in enumerate(found, 1):
            try:
                if isinstance(done, Swept):
                    gathered.add(done)
                    anew += done.anew
                else:
                    unusable.append(done)
            except FileError as error:
                unusable.append(Unusable(done.path, str(error)))
            progress.say(f"{number:,} of {len(paths):,} snapshots")
    progress.say("")
    return FleetSweep(
        args.fleet, args.output, wish, len(paths), gathered.twice, anew, gathered.answer(wish),
        tuple(sorted(unusable)),
    )  # fmt: skip
