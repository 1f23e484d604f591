# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp diff: where two kernels' collapses differ."""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console

from mthp.cli.collapse import predict
from mthp.cli.options import NUMBERS, UsageError
from mthp.cli.target import captured_settings, load_target, settle_settings
from mthp.predict.outcome import run_world
from mthp.report.profiles import (
    differences_document,
    render_differences,
    render_outcome_diff,
)
from mthp.words.profiles import PROFILES


def run_diff(args: argparse.Namespace) -> int:
    """The verb; an exit code."""
    a, b = PROFILES[args.a], PROFILES[args.b]
    console = Console()
    if args.target is None and args.pid is None:
        given = [args.enabled, args.thp_anon, args.defrag, args.passes]
        given += [getattr(args, name.replace("-", "_")) for name, _ in NUMBERS]
        if any(value is not None for value in given):
            raise UsageError("settings and --passes need a target to run on")
        if args.json:
            json.dump(differences_document(a, b), sys.stdout, indent=1)
            print()
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
        json.dump(differences_document(a, b, (outcomes[0], outcomes[1])), sys.stdout, indent=1)
        print()
        return 0
    render_differences(a, b, console)
    console.print()
    render_outcome_diff(outcomes[0], outcomes[1], console)
    return 0
