# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp plan: a target under the settings given, beside those that are set."""

from __future__ import annotations

import argparse
import time

from mthp.cli.options import print_json
from mthp.cli.planning import planning_of
from mthp.plan.records import Comparison
from mthp.words.costs import PUBLISHED, read_costs


def run_plan(args: argparse.Namespace) -> int:
    """Run `mthp plan` and return its exit code."""
    planning, began = planning_of(args)
    planner = planning.planner
    now, given = planner.plan(planning.captured), planner.plan(planning.given)
    comparison = Comparison(
        basis=planning.basis,
        now=now,
        given=given,
        cpus=planner.cpus,
        costs=PUBLISHED if args.costs is None else read_costs(args.costs).or_else(PUBLISHED),
        names=planning.names((now, given)),
        seconds=time.monotonic() - began,
    )
    if args.json:
        from mthp.report.plan import plan_document

        print_json(plan_document(comparison))
    else:
        from rich.console import Console

        from mthp.report.plan import render_plan

        render_plan(comparison, Console(), verbose=args.verbose)
    return 0
