# SPDX-License-Identifier: GPL-2.0-or-later
"""How the programs that are copied to a host begin and end: mthp-snap and mthp-record."""

from __future__ import annotations

import argparse
from typing import Callable

from mthp.image.capture.proc import FAILED, OK, USAGE, CaptureError
from mthp.words.files import FileError
from mthp.words.streams import ended_in_order, failure, occupy, say

Run = Callable[[argparse.Namespace, str], int]


def exit_code(prog: str, work: Callable[[], Callable[[], object]]) -> int:
    """Do the work, which returns what says what was done; the exit code, after a line that says why it
    failed where it did.
    """
    try:
        with ended_in_order():
            done = work()
        done()
        return OK
    except (CaptureError, FileError) as error:
        say(f"{prog}: {error}")
        return error.code if isinstance(error, CaptureError) else USAGE
    except OSError as error:
        say(f"{prog}: {failure(error)}")
        return FAILED
    except KeyboardInterrupt:
        say(f"{prog}: interrupted, nothing written")
        return FAILED


def run_with_arguments(parser: argparse.ArgumentParser, argv: list[str] | None, run: Run) -> int:
    """Read the arguments, run, and return the exit code."""
    occupy()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USAGE
    return run(args, parser.prog)
