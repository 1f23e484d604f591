# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp diff: where two kernels' collapses differ."""

from __future__ import annotations

import argparse

from rich.console import Console

from mthp.cli.collapse import predict
from mthp.cli.options import UsageError, given_numbers, print_json
from mthp.cli.target import captured_settings, load_target, settle_settings, targets
from mthp.predict.outcome import run_world
from mthp.report.profiles import (
    differences_document,
    render_differences,
    render_outcome_diff,
)
from mthp.words.profiles import PROFILES


def run_diff(args: argparse.Namespace) -> int:
    """Run `mthp diff` and return its exit code."""
    a, b = PROFILES[args.a], PROFILES[args.b]
    console = Console()
    if not targets(args):
        given = [args.enabled, args.thp_anon, args.defrag, args.passes]
        if given_numbers(args) or any(value is not None for value in given):
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
