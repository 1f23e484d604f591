# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of a recording, for the command on hosts and for `mthp record`."""

from __future__ import annotations

import argparse
import re

from mthp.image.capture.options import pid_of
from mthp.image.capture.series import duration
from mthp.words.units import parse_whole

SMALLEST_BUFFER, LARGEST_BUFFER = 64, 4 << 20
"""KiB of each CPU's buffer."""
SHORTEST_LOOKS, LONGEST_LOOKS = 0.1, 86400
"""Seconds from one look at which pages are zero to the next."""


def buffer_of(value: str) -> int:
    """Read --buffer, for argparse."""
    try:
        kib = parse_whole(value, SMALLEST_BUFFER)
    except ValueError:
        kib = 0
    if not SMALLEST_BUFFER <= kib <= LARGEST_BUFFER:
        message = (
            f"{value[:40]!r} is not a number of KiB from {SMALLEST_BUFFER} to {LARGEST_BUFFER}"
        )
        raise argparse.ArgumentTypeError(message)
    return kib


def seconds_of(value: str) -> float:
    """Read --zero, for argparse."""
    match = re.fullmatch(r"[0-9]{1,6}(?:\.[0-9]{1,6})?", value)
    seconds = float(value) if match else 0.0
    if not SHORTEST_LOOKS <= seconds <= LONGEST_LOOKS:
        message = (
            f"{value[:40]!r} is not a number of seconds from {SHORTEST_LOOKS} to {LONGEST_LOOKS}"
        )
        raise argparse.ArgumentTypeError(message)
    return seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options, for the command on hosts and for `mthp record`."""
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="mode 0600")
    parser.add_argument(
        "--buffer",
        type=buffer_of,
        metavar="KIB",
        help="of each CPU's trace buffer (default: 16384, or less where memory is short)",
    )
    parser.add_argument(
        "--pid",
        type=pid_of,
        metavar="N",
        help="not a command, but a process that runs already: from a capture of what it has on",
    )
    parser.add_argument(
        "--for", type=duration, dest="span", metavar="TIME", help="of --pid: so long (60, 5m, 1h)"
    )
    parser.add_argument(
        "--zero",
        type=seconds_of,
        metavar="SECONDS",
        help="look so often which pages hold nothing but zeroes (their contents are not kept)",
    )
    parser.add_argument("--quiet", action="store_true", help="errors only")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run, and its words"
    )
