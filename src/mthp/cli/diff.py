# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp diff: where two kernels' collapses differ, or what changed between two captures."""

from __future__ import annotations

import argparse

from rich.console import Console

from mthp.cli.collapse import predict
from mthp.cli.options import UsageError, given_numbers, print_json
from mthp.cli.target import captured_settings, load_target, settle_settings, targets
from mthp.compare.captures import compare_captures
from mthp.image.snapshot import load
from mthp.predict.outcome import run_world
from mthp.report.captures import captures_document, render_captures
from mthp.report.profiles import (
    differences_document,
    render_differences,
    render_outcome_diff,
)
from mthp.words.files import FileError
from mthp.words.profiles import PROFILES
from mthp.worlds.unseen import Young


def run_diff(args: argparse.Namespace) -> int:
    """Run `mthp diff` and return its exit code."""
    kinds = [name in PROFILES for name in (args.a, args.b)]
    if not any(kinds):
        return _captures(args)
    if not all(kinds):
        other = (args.a, args.b)[kinds.index(False)]
        raise UsageError(
            f"{other[:60]!r} is not a profile, as the other is: give two of {', '.join(PROFILES)}, or "
            "two captures"
        )
    a, b = PROFILES[args.a], PROFILES[args.b]
    console = Console()
    if not targets(args):
        if _has_settings(args):
            raise UsageError("settings and --passes need a target to run on")
        if args.json:
            print_json(differences_document(a, b))
        else:
            render_differences(a, b, console)
        return 0
    image = load_target(args)
    settings = settle_settings(args, captured_settings(image))
    outcomes = []
    for profile in (a, b):
        world, request = predict(image, settings, (profile, "as asked"), args)
        request.changes = False
        outcomes.append(run_world(world, request))
    if args.json:
        print_json(differences_document(a, b, (outcomes[0], outcomes[1])))
        return 0
    render_differences(a, b, console)
    console.print()
    render_outcome_diff(outcomes[0], outcomes[1], console)
    return 0


def _has_settings(args: argparse.Namespace) -> bool:
    given = [args.enabled, args.thp_anon, args.defrag, args.passes, args.registered]
    return bool(given_numbers(args)) or any(value is not None for value in given)


def _captures(args: argparse.Namespace) -> int:
    if targets(args) or _has_settings(args) or args.assume_young != Young.CAPTURED:
        raise UsageError("two captures are compared as they are: no target and no settings")
    try:
        change = compare_captures((args.a, args.b), load(args.a), load(args.b))
    except FileError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None
    if args.json:
        print_json(captures_document(change))
    else:
        render_captures(change, Console(), verbose=args.verbose)
    return 0
