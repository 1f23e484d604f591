# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp snap: a capture with the fast looks at frames and pages."""

from __future__ import annotations

import argparse

from mthp.image.capture.command import run
from mthp.image.frames_at_once import FramesAtOnce
from mthp.image.pages_at_once import PagesAtOnce


def run_snap(args: argparse.Namespace) -> int:
    """Run `mthp snap` and return its exit code."""
    args.frames, args.pages = FramesAtOnce, PagesAtOnce
    return run(args)
