# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp lab fuzz: random states on a real kernel and on the engine, and where the two disagree."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mthp.cli.options import DIFFER, UsageError, Verbs, add_number, add_output, print_json, show
from mthp.words.files import replace_text
from mthp.words.streams import say

if TYPE_CHECKING:
    from mthp.compare.campaign import Campaign, ShrunkDraft
    from mthp.compare.program_campaign import ProgramCampaign
    from mthp.lab.session.captures import CapturePath


MOST = 10**12


def add_fuzz(subverbs: Verbs) -> None:
    """Add `mthp lab fuzz` and its options to the parser."""
    parser = subverbs.add_parser(
        "fuzz",
        help="random states on a real kernel and on the engine",
        description="Draw random initial states, run khugepaged over them on a real kernel and on "
        "the engine, compare every event, counter and page, and shrink what disagrees. What was "
        "done is kept in a folder; the same command goes on where it was stopped.",
    )
    add_number(parser, "seed", "what is drawn (default 1)", 0, MOST, 1)
    add_number(parser, "n", "how many states (default 250)", 0, MOST, 250)
    parser.add_argument(
        "--programs",
        action="store_true",
        help="not states but programs: system calls, touches, scans and settings, with everything "
        "compared after each operation",
    )
    parser.add_argument("--kernel", metavar="R", help="a release of the cache (default: newest)")
    parser.add_argument("--family", default="", metavar="F", help="only states of this family")
    parser.add_argument(
        "--paths",
        default="scenario,snap,deep",
        metavar="P,…",
        help="along which paths a state is predicted: scenario, always; from a capture by mthp snap "
        "(snap) or by mthp snap --deep (deep); default all three",
    )
    add_number(parser, "cpus", "processors of a guest (default 1)", 1, 64, 1)
    add_number(parser, "nodes", "its NUMA nodes (default 1)", 1, 8, 1)
    apart = "of each node from the next (default 20; beyond 30 nodes are too far apart for one folio's pages)"
    add_number(parser, "distance", apart, 11, 254, 20)
    parser.add_argument(
        "--swap",
        choices=("zram", "brd", "disk"),
        default="zram",
        help="what it swaps to: compressed memory, a RAM disk, a disk (default zram)",
    )
    add_number(parser, "guests", "guests side by side (default: processors)", 0, MOST)
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="the folder (default lab-fuzz-RELEASE-SEED)"
    )
    what = "make the first N disagreements small (default 5; 0: none)"
    add_number(parser, "shrink", what, 0, MOST, 5)
    add_output(parser)
    parser.set_defaults(run=run_fuzz)


def run_fuzz(args: argparse.Namespace) -> int:
    """Run `mthp lab fuzz` and return its exit code."""
    from mthp.compare.campaign import (
        CampaignSpec,
        open_campaign,
        run_campaign,
        shrink_all,
    )
    from mthp.compare.campaign_folder import LOG_BYTES
    from mthp.lab.draw import FAMILIES, LATER_FAMILIES, NODE_FAMILIES
    from mthp.lab.kernels.kernels import find
    from mthp.lab.session.boot import Guest
    from mthp.lab.session.session import Swap
    from mthp.report.coverage import coverage_table
    from mthp.report.fuzz import fuzz_tests, fuzz_text
    from mthp.report.ktap import ktap_lines
    from mthp.words.reading import parse_json, read_text

    if args.programs:
        return _run_programs(args)
    if args.family in NODE_FAMILIES and args.nodes == 1:
        raise UsageError(f"--family {args.family}: goes with --nodes 2 or more")
    families = FAMILIES | LATER_FAMILIES | NODE_FAMILIES
    if args.family and args.family not in families:
        raise UsageError(f"--family {args.family}: not one of {', '.join(families)}")
    captures = _captures(args.paths)
    kernel = find(args.kernel)
    guest = Guest(cpus=args.cpus, nodes=args.nodes, distance=args.distance, swap=Swap(args.swap))
    spec = CampaignSpec(args.seed, args.n, kernel.release, args.family, captures, guest)
    name = f"lab-fuzz-{kernel.release}-{args.seed}" + (f"-{args.family}" if args.family else "")
    campaign = open_campaign(spec, Path(args.output or name))
    guests = max(args.guests or os.cpu_count() or 1, 1)
    try:
        run_campaign(campaign, kernel, guests, _progress(sys.stderr.isatty()))
    except KeyboardInterrupt:
        say("")
        raise UsageError(
            f"stopped after {campaign.done} of {args.n}; the same command goes on", 1
        ) from None
    smallest = shrink_all(campaign, kernel, guests, args.shrink, budget=80)
    for each in smallest:
        _save(campaign, each)
    document = campaign.to_json()
    if args.json:
        print_json(document)
    elif args.ktap:
        lines = read_text(campaign.log, LOG_BYTES).splitlines()
        show(*ktap_lines(fuzz_tests(map(parse_json, lines))))
    else:
        show(*fuzz_text(document, coverage_table(campaign.coverage)).splitlines())
        if smallest:
            show(f"made small, with both event lists: {campaign.folder / 'disagreements'}")
    return DIFFER if campaign.mismatches else 0


def _run_programs(args: argparse.Namespace) -> int:
    """Run `mthp lab fuzz --programs` and return its exit code."""
    from mthp.compare.program_campaign import (
        ProgramSpec,
        keep_record,
        open_program_campaign,
        run_program_campaign,
        shrink_programs,
    )
    from mthp.lab.kernels.kernels import find
    from mthp.report.fuzz import programs_text

    if args.family or args.cpus != 1 or args.nodes != 1 or args.swap != "zram" or args.ktap:
        raise UsageError("--programs: not with --family, --cpus, --nodes, --swap or --ktap")
    kernel = find(args.kernel)
    spec = ProgramSpec(args.seed, args.n, kernel.release)
    folder = Path(args.output or f"lab-programs-{kernel.release}-{args.seed}")
    campaign = open_program_campaign(spec, folder)
    guests = max(args.guests or os.cpu_count() or 1, 1)
    try:
        run_program_campaign(campaign, kernel, guests, _program_progress(sys.stderr.isatty()))
    except KeyboardInterrupt:
        say("")
        raise UsageError(
            f"stopped after {campaign.done} of {args.n}; the same command goes on", 1
        ) from None
    smallest = shrink_programs(campaign, kernel, guests, args.shrink, budget=80)
    for each in smallest:
        if each.difference is not None:
            keep_record(folder, each)
    document = campaign.to_json() | {"smallest": [each.difference for each in smallest]}
    if args.json:
        print_json(document)
    else:
        show(*programs_text(document, [each.document for each in smallest]).splitlines())
        if smallest:
            show(f"records, made small: {folder / 'differences'}")
    return DIFFER if campaign.differences else 0


def _program_progress(terminal: bool) -> Callable[[ProgramCampaign, float], None]:
    """Prints a line of progress on stderr: rewritten on a terminal, elsewhere every 500 programs."""
    begun = itertools.count(1)

    def show(campaign: ProgramCampaign, seconds: float) -> None:
        number = next(begun)
        rate = number / seconds * 60 if seconds else 0.0
        last = campaign.done == campaign.spec.number
        line = (
            f"{campaign.done}/{campaign.spec.number} programs, {campaign.agreed} agree after every "
            f"operation, {len(campaign.not_run)} not run to their end, {rate:.0f} a minute"
        )
        if terminal:
            say(line, begin="\r", end="\n" if last else "")
        elif campaign.done % 500 == 0 or last:
            say(line)

    return show


def _captures(text: str) -> tuple[CapturePath, ...]:
    """The captures that --paths asks for."""
    from mthp.lab.session.captures import CapturePath

    known = ["scenario", *CapturePath]
    named = text.split(",")
    for name in named:
        if name not in known:
            raise UsageError(f"--paths: {name[:40]!r} is not one of {', '.join(known)}")
    return tuple(path for path in CapturePath if path in named)


def _progress(terminal: bool) -> Callable[[Campaign, float], None]:
    """Prints a line of progress on stderr: rewritten on a terminal, elsewhere every 500 states."""
    begun = itertools.count(1)

    def show(campaign: Campaign, seconds: float) -> None:
        number = next(begun)
        rate = number / seconds * 60 if seconds else 0.0
        line = (
            f"{campaign.done}/{campaign.spec.number} states, {campaign.agreed}/{campaign.passes} "
            f"passes agree, {len(campaign.not_built)} not built, {rate:.0f} a minute"
        )
        if terminal:
            say(line, begin="\r", end="\n" if campaign.done == campaign.spec.number else "")
        elif campaign.done % 500 == 0 or campaign.done == campaign.spec.number:
            say(line)

    return show


def _save(campaign: Campaign, smallest: ShrunkDraft) -> None:
    """Write the smallest scenario as a record, and both event lists beside it."""
    from mthp.report.fuzz import side_by_side

    folder = campaign.folder / "disagreements"
    folder.mkdir(exist_ok=True)
    verdict = smallest.verdict
    if verdict.record is None or not verdict.disagrees:
        alone = f"{smallest.first}: tried alone in a fresh guest, it does not disagree\n"
        replace_text(folder / f"{smallest.first}.txt", alone)
        return
    replace_text(folder / f"{smallest.first}.jsonl", json.dumps(verdict.record) + "\n")
    lines = [f"{smallest.first}, made small:", *(f"  {op}" for op in verdict.draft.program())]
    lines += ["", *(json.dumps(each) for each in verdict.mismatches), ""]
    for number, (recorded, ours) in enumerate(
        zip(verdict.record["passes"], verdict.engine, strict=True)
    ):
        lines += [f"pass {number}:", side_by_side(recorded["events"], ours)]
    replace_text(folder / f"{smallest.first}.txt", "\n".join(lines))
