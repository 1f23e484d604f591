# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of a capture, for the command on hosts and for those of mthp. Reads nothing by itself."""

from __future__ import annotations

import argparse

from mthp.image.capture.proc import own_pid
from mthp.image.capture.series import duration
from mthp.words.units import parse_whole


def pid_of(value: str) -> int:
    """Read the process that --pid names, for argparse."""
    try:
        return own_pid() if value == "self" else parse_whole(value, 1)
    except ValueError:
        message = f"{value[:40]!r} is neither a process's number nor 'self'"
        raise argparse.ArgumentTypeError(message) from None


def add_processes(group: argparse._ActionsContainer) -> None:
    """Add the options that say which live processes are meant."""
    group.add_argument(
        "--pid",
        type=pid_of,
        action="append",
        metavar="N",
        help="a live process: a number, or 'self'; may be repeated",
    )
    group.add_argument(
        "--cgroup",
        metavar="PATH",
        help="every process of a cgroup and below it: its folder, or as /proc/PID/cgroup has it",
    )
    group.add_argument(
        "--all", action="store_true", help="every process that can be read, but this one"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options, for the command on hosts and for `mthp snap`."""
    add_processes(parser.add_mutually_exclusive_group(required=True))
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="mode 0600; with --every a folder, or a name that the time is put into",
    )
    parser.add_argument(
        "--every", type=duration, metavar="TIME", help="capture again and again: 60, 60s, 5m, 1h"
    )
    parser.add_argument(
        "--for", type=duration, dest="span", metavar="TIME", help="of --every: end after so long"
    )
    parser.add_argument(
        "--deep",
        action="store_true",
        help="read the page tables and folios themselves too, from /proc/kcore (root, x86-64)",
    )
    parser.add_argument(
        "--zeros",
        action="store_true",
        help="with --deep: look into the pages too, and note of each whether it holds nothing but zeros",
    )
    parser.add_argument("--redact", action="store_true", help="drop names, shift addresses")
    parser.add_argument("--freeze", action="store_true", help="stop them while reading; asks first")
    parser.add_argument("--yes", action="store_true", help="do not ask before --freeze")
    parser.add_argument(
        "--no-exclusive", action="store_true", help="skip the exclusive bit: faster"
    )
    parser.add_argument("--quiet", action="store_true", help="errors only")
    parser.add_argument(
        "--reader", choices=("auto", "scan", "pagemap"), default="auto", help=argparse.SUPPRESS
    )
