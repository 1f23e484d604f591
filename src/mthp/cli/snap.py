# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp snap: a capture with the fast looks at frames and pages, where there is much to look at; or out of a
dump."""

from __future__ import annotations

import argparse
import mmap
import os

from mthp.cli.options import UsageError
from mthp.image.capture.command import run, write_captured
from mthp.image.capture.pages import Pages
from mthp.image.capture.proc import text
from mthp.image.capture.run import CaptureOptions
from mthp.image.frames_as_needed import FramesAsNeeded
from mthp.words.files import replacing
from mthp.words.streams import say

MUCH = 1 << 30
"""Resident bytes from which on NumPy's look at struct pages saves more time than loading it takes."""


def run_snap(args: argparse.Namespace) -> int:
    """Run `mthp snap` and return its exit code."""
    if args.vmcore is not None:
        return _snap_of_dump(args)
    args.frames, args.pages = FramesAsNeeded, Pages
    if args.deep and (args.pid is None or sum(map(_resident, args.pid)) >= MUCH):
        from mthp.image.frames_at_once import FramesAtOnce
        from mthp.image.pages_at_once import PagesAtOnce

        args.frames, args.pages = FramesAtOnce, PagesAtOnce
    return run(args)


_OF_LIVE = ("cgroup", "every", "span", "freeze", "no_exclusive")
"""Options that a dump has no use for."""


def _snap_of_dump(args: argparse.Namespace) -> int:
    """Write the snapshot of processes of a dump."""
    from mthp.image.vmcore.run import captured_of_dump

    for name in _OF_LIVE:
        if getattr(args, name):
            option = {"span": "for"}.get(name, name).replace("_", "-")
            raise UsageError(f"--{option} is for live processes, and has no place with --vmcore")
    options = CaptureOptions(redact=args.redact, deep=True, zeros=args.zeros)
    pids = None if args.all else sorted(set(args.pid))
    folder = os.path.dirname(os.path.abspath(args.output))
    with replacing(args.output, 0o600) as file:
        done = captured_of_dump(args.vmcore, pids, options, folder)
        line, *more = write_captured(file, done)
    if not args.quiet:
        say(f"mthp snap: {args.output}: {line}")
        for each in more:
            say(each, "  ")
    return 0


def _resident(pid: int) -> int:
    """The resident bytes of a process, 0 where they cannot be read."""
    pages = (text(f"/proc/{pid}/statm") or "").split()
    return int(pages[1]) * mmap.PAGESIZE if len(pages) > 1 else 0
