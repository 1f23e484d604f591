# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp check --litmus: the litmus tests under our store buffers, and under herd7."""

from __future__ import annotations

import argparse
from pathlib import Path

from mthp.check.litmus import compare
from mthp.cli.options import DIFFER, UsageError, print_json, show
from mthp.cli.source import kept_or_fetched
from mthp.lab.kernels.herd import check_herd, check_model
from mthp.lab.kernels.source import MEMORY_MODEL
from mthp.report.litmus import litmus_document, litmus_lines


def run_litmus(args: argparse.Namespace) -> int:
    """Run `mthp check --litmus`; exit code 3 where machine and memory model differ."""
    if (args.memory_model or args.yes) and not args.herd:
        raise UsageError("--memory-model and --yes are for --herd")
    results = compare(_memory_model(args) if args.herd else None)
    if args.json:
        print_json(litmus_document(results))
    else:
        show(*litmus_lines(results))
    return 0 if all(each.agrees for each in results) else DIFFER


def _memory_model(args: argparse.Namespace) -> Path:
    """The memory model: the one named, the cache's, or the archive's. herd7 must be there."""
    check_herd()
    if args.memory_model is not None:
        return check_model(Path(args.memory_model))
    source = kept_or_fetched(
        MEMORY_MODEL, "the kernel's memory model", "--memory-model takes a folder", yes=args.yes
    )
    return check_model(source / MEMORY_MODEL)
