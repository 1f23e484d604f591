# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp sweep: a target under a grid of settings, and which of them to take."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence

from mthp.cli.options import UsageError, print_json
from mthp.cli.planning import Planning, drawn, planning_of
from mthp.cli.progress import ProgressLine
from mthp.plan.planner import Planner
from mthp.plan.records import BulkVerdict, Sweep, Wish
from mthp.plan.sweep import Sweeper, Varied, choose_plan, front_of, grid, notes_of, sooner_than
from mthp.words.files import check_target, replace_text
from mthp.words.profiles import PROFILES
from mthp.words.settings import Settings


def run_sweep(args: argparse.Namespace) -> int:
    """Run `mthp sweep` and return its exit code: 1 where no setting holds to the wish."""
    if args.fleet is not None:
        from mthp.cli.fleet import run_fleet

        return run_fleet(args, wish_of(args))
    if args.output is not None or args.scheduler is not None:
        raise UsageError("-o and --scheduler go with --fleet")
    if args.html is not None:
        check_target(args.html)
    planning, began = planning_of(args)
    sweep = sweep_of(args, planning, began)
    if args.html is not None:
        from mthp.report.sweep_html import html_text, shown_settings

        picture = drawn(args, planning, shown_settings(sweep))
        if not picture.outcome.complete:
            return 1
        replace_text(args.html, html_text(sweep, picture))
    if args.json:
        from mthp.report.sweep import sweep_document

        print_json(sweep_document(sweep))
    else:
        from rich.console import Console

        from mthp.report.sweep import render_sweep

        render_sweep(sweep, Console(), verbose=args.verbose)
    return 0 if sweep.chosen is not None else 1


def sweep_of(args: argparse.Namespace, planning: Planning, began: float) -> Sweep:
    """Plan the target of the command line under every setting of the grid."""
    planner, base = planning.planner, planning.given
    now = planner.plan(base)
    wish, vary = wish_of(args), frozenset(args.vary)
    progress, jobs = ProgressLine(quiet=args.quiet), args.jobs or os.cpu_count() or 1
    plans = _plans(planner, [*grid(base, planning.profile, vary)], wish, progress, jobs)
    elsewhere = {}
    for profile in PROFILES.values() if Varied.PROFILE in vary else ():
        if profile is not planning.profile:
            other = Planner(planner.arrays, profile, base, planner.snapshot)
            found = _plans(other, [*grid(base, profile, vary)], wish, progress, jobs)
            _, elsewhere[profile.name] = choose_plan(found, wish)
    progress.say("")
    chosen, nearest = choose_plan(plans, wish)
    return Sweep(
        basis=planning.basis,
        base=base,
        now=now,
        wish=wish,
        plans=tuple(plans),
        front=front_of(plans),
        chosen=chosen,
        nearest=nearest,
        elsewhere=elsewhere,
        notes=notes_of(planner, nearest.settings, base),
        sooner=() if chosen is None else sooner_than(planner, chosen),
        seconds=time.monotonic() - began,
    )


def _plans(
    planner: Planner, tried: Sequence[Settings], wish: Wish, progress: ProgressLine, jobs: int
) -> list[BulkVerdict]:
    """The plans for some settings, by their price."""

    def tell(done: int) -> None:
        progress.say(f"{done} of {len(tried)} settings tried")

    plans = Sweeper(planner, wish, jobs=jobs, tell=tell).plans(tried)
    return sorted(plans, key=lambda plan: plan.price)


def wish_of(args: argparse.Namespace) -> Wish:
    """What the command line asks of settings."""
    within = None if args.within is None else 1000 * args.within
    return Wish(_share(args.max_added), _share(args.min_large), _share(args.min_reach), within)


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100
