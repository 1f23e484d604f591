# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp calibrate: what collapses, faults and flushes cost on this host."""

from __future__ import annotations

import argparse
import os

from mthp.cli.options import print_json
from mthp.cli.progress import ProgressLine
from mthp.image.capture.host import host_geometry
from mthp.image.capture.proc import LACKING, CaptureError


def run_calibrate(args: argparse.Namespace) -> int:
    """Run `mthp calibrate` and return its exit code."""
    from mthp.calibrate.measure import Calibration

    geometry = host_geometry()
    if (geometry.page_shift, geometry.ptrs_per_pte) != (12, 512):
        raise CaptureError("only 4 KiB pages in tables of 2 MiB are measured", LACKING)
    progress = ProgressLine(quiet=args.quiet)
    found = Calibration(geometry, args.rounds).run(lambda what: progress.say(f"measuring {what}"))
    progress.say("")
    points = {"calls": found.calls, "stops": found.stops}
    if args.json:
        from mthp.report.costs import calibration_document

        print_json(calibration_document(found.table, points, found.flushes, found.missing))
        return 0
    from rich.console import Console

    from mthp.report.costs import render_calibration

    cpus = len(os.sched_getaffinity(0))
    render_calibration(found.table, points, found.missing, cpus, geometry.ptrs_per_pte, Console())
    return 0
