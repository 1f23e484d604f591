# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp plan: a target under the settings given, beside those that are set."""

from __future__ import annotations

import argparse
import time

from mthp.cli.options import print_json
from mthp.cli.planning import drawn, planning_of
from mthp.plan.blocks import has_blocks_for
from mthp.plan.records import Comparison, Picture
from mthp.words.costs import PUBLISHED, read_costs
from mthp.words.files import check_target, replace_text


def run_plan(args: argparse.Namespace) -> int:
    """Run `mthp plan` and return its exit code."""
    for file in filter(None, (args.html, args.svg)):
        check_target(file)
    planning, began = planning_of(args)
    planner = planning.planner
    now, given = planner.plan(planning.captured), planner.plan(planning.given)
    pictures: list[Picture] = []
    if args.timeline or args.html is not None or args.svg is not None:
        changes = args.html is not None
        pictures = [drawn(args, planning, planning.given, changes=changes)]
    if args.timeline:
        pictures.append(drawn(args, planning, planning.captured, changes=False))
    if not all(picture.outcome.complete for picture in pictures):
        return 1
    lines = [picture.outcome.timeline for picture in pictures]
    underused = planner.underused(planning.captured), planner.underused(planning.given)
    comparison = Comparison(
        basis=planning.basis,
        now=now,
        given=given,
        cpus=planner.cpus,
        partly=planner.partly_mapped,
        zero_filled=planner.zero_filled,
        underused=(underused[0], underused[1]) if underused[0] and underused[1] else None,
        timelines=(lines[1], lines[0]) if args.timeline else None,
        has_blocks=(
            has_blocks_for(now, planner.arrays.nodes),
            has_blocks_for(given, planner.arrays.nodes),
        ),
        costs=PUBLISHED if args.costs is None else read_costs(args.costs).or_else(PUBLISHED),
        names=planning.names((now, given)),
        seconds=time.monotonic() - began,
    )
    if pictures:
        _write(args, comparison, pictures[0])
    if args.json:
        from mthp.report.plan import plan_document

        print_json(plan_document(comparison))
    else:
        from rich.console import Console

        from mthp.report.plan import render_plan

        render_plan(comparison, Console(), verbose=args.verbose)
    return 0


def _write(args: argparse.Namespace, comparison: Comparison, picture: Picture) -> None:
    """Write the files that were asked for."""
    if args.html is not None:
        from mthp.report.plan_html import plan_html_text

        replace_text(args.html, plan_html_text(comparison, picture))
    if args.svg is not None:
        from mthp.report.web.picture_svg import picture_svg

        replace_text(args.svg, picture_svg(comparison, picture))
