# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of `mthp life`."""

from __future__ import annotations

import argparse
import re

from mthp.cli.options import Verbs, add_settings
from mthp.words.profiles import PROFILES

UNITS = {"": 1_000_000_000, "s": 1_000_000_000, "ms": 1_000_000, "min": 60_000_000_000}


def moment(text: str) -> int:
    """Read a time such as 300ms, 1.5s or 2min as nanoseconds, for argparse."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(|s|ms|min)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a time such as 300ms, 1.5s or 2min")
    return round(float(match[1]) * UNITS[match[2]])


def add_life(verbs: Verbs) -> None:
    """Add `mthp life` and its options to the parser."""
    parser = verbs.add_parser(
        "life",
        help="a recorded program's memory under other settings",
        description="Replay a recording (mthp record) under the settings given: memory against time, its "
        "peak and what made it, faults, and what khugepaged does meanwhile, beside the life without huge "
        "pages. Nothing is run.",
    )
    parser.set_defaults(run="mthp.cli.life:run_life")
    parser.add_argument("file", metavar="FILE", help="a recording")
    add_settings(parser)
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="one table: without huge pages, each size alone, all below PMD size, all, and as given",
    )
    parser.add_argument(
        "--costs",
        metavar="FILE",
        help="of --sweep: what time is reckoned by, as mthp calibrate --json has it",
    )
    group = parser.add_argument_group("khugepaged")
    group.add_argument(
        "--profile",
        choices=PROFILES,
        help="which kernel's (default: that of the kernel it was recorded on)",
    )
    group.add_argument(
        "--no-khugepaged", action="store_true", help="what faults alone make of the program"
    )
    group.add_argument(
        "--assume-young",
        choices=("faults", "all"),
        default="faults",
        help="which pages count as used lately: those of which a fault shows it, or all (what a forked "
        "child only reads shows in no fault)",
    )
    parser.add_argument(
        "--pressure",
        action="append",
        type=moment,
        default=[],
        metavar="TIME",
        help="so long after the beginning (300ms, 1.5s, 2min) shrinkers are asked for all they can give: "
        "what is partly mapped is split, and huge pages that are underused; may be repeated",
    )
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON document")
    group.add_argument(
        "--html", metavar="FILE", help="write a page there that shows it to others, with the curves"
    )
    group.add_argument("--svg", metavar="FILE", help="write memory against time there as a picture")
    group.add_argument("--verbose", action="store_true", help="every mapping and call site")
