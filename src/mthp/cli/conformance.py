# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp collapse --conformance: recorded scenarios against the engine."""

from __future__ import annotations

import argparse

from rich.console import Console

from mthp.cli.options import DIFFER, NUMBERS, UsageError, print_json
from mthp.compare.conformance import run_conformance
from mthp.image.scenario import load
from mthp.report.conformance import conformance_document, render_conformance
from mthp.words.profiles import DEFAULT, PROFILES

_IGNORED = ("enabled", "thp_anon", "defrag", "passes", "events", "why", "steps")


def run_conformance_file(args: argparse.Namespace) -> int:
    """The verb's option; an exit code."""
    if args.target is not None or args.pid is not None:
        raise UsageError("--conformance takes its scenarios from FILE; give no other target")
    names = (*_IGNORED, *(name.replace("-", "_") for name, _ in NUMBERS))
    ignored = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
    if args.no_changes:
        ignored.append("--no-changes")
    if args.assume_young != "captured":
        ignored.append("--assume-young")
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
