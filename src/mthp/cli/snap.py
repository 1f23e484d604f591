# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp snap: a capture with the fast looks at frames and pages, where there is much to look at."""

from __future__ import annotations

import argparse
import mmap

from mthp.image.capture.command import run
from mthp.image.capture.frames import Frames
from mthp.image.capture.pages import Pages
from mthp.image.capture.proc import text

MUCH = 4 << 30
"""Resident bytes from which on NumPy's looks save more time than loading it takes."""


def run_snap(args: argparse.Namespace) -> int:
    """Run `mthp snap` and return its exit code."""
    args.frames, args.pages = Frames, Pages
    if args.pid is None or sum(map(_resident, args.pid)) >= MUCH:
        from mthp.image.frames_at_once import FramesAtOnce
        from mthp.image.pages_at_once import PagesAtOnce

        args.frames, args.pages = FramesAtOnce, PagesAtOnce
    return run(args)


def _resident(pid: int) -> int:
    """The resident bytes of a process, 0 where they cannot be read."""
    pages = (text(f"/proc/{pid}/statm") or "").split()
    return int(pages[1]) * mmap.PAGESIZE if len(pages) > 1 else 0
