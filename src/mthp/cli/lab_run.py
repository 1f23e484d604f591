# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp lab run and mthp lab record: run given scenarios on a real kernel."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mthp.cli.options import DIFFER, UsageError, Verbs, print_json
from mthp.lab.errors import FAILED

if TYPE_CHECKING:
    from mthp.compare.rerun import Rerun
    from mthp.image.scenario import Scenario


def add_run(subverbs: Verbs) -> None:
    """mthp lab run."""
    parser = subverbs.add_parser(
        "run",
        help="scenarios on a real kernel, beside the engine",
        description="Make each scenario's state in a guest by real system calls, let the real "
        "khugepaged or MADV_COLLAPSE act, and show its events beside the engine's.",
    )
    _add_common(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.set_defaults(run_subverb=_run)


def add_record(subverbs: Verbs) -> None:
    """mthp lab record."""
    parser = subverbs.add_parser(
        "record",
        help="write down what a real kernel does with scenarios",
        description="As run, and write a scenario file: each state with what the kernel did.",
    )
    _add_common(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="a .jsonl file")
    parser.set_defaults(run_subverb=_record)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "scenarios", nargs="+", metavar="SCENARIO", help="FILE.jsonl (all of it) or FILE.jsonl#ID"
    )
    parser.add_argument("--kernel", metavar="R", help="a release of the cache (default: newest)")


def _run(args: argparse.Namespace) -> int:
    from mthp.report.fuzz import rerun_text

    documents = []
    differ = not_built = 0
    for rerun in _run_again(args):
        differ += rerun.verdict.disagrees
        not_built += bool(rerun.verdict.not_built)
        if args.json:
            documents.append(rerun.to_json())
        else:
            sys.stdout.write(rerun_text(rerun.to_json()))
            sys.stdout.flush()
    if args.json:
        print_json({"schema_version": 1, "scenarios": documents})
    if differ:
        return DIFFER
    return FAILED if not_built else 0


def _record(args: argparse.Namespace) -> int:
    """Write the file, whole or not at all; what was recorded before a failure is kept in FILE.part."""
    target = Path(args.output)
    part = target.with_name(target.name + ".part")
    number = 0
    try:
        with part.open("w") as out:
            for rerun in _run_again(args):
                if rerun.verdict.not_built:
                    raise UsageError(
                        f"{rerun.scenario.id}: not built: {rerun.verdict.not_built}", FAILED
                    )
                out.write(json.dumps(rerun.verdict.record) + "\n")
                out.flush()
                number += 1
        os.replace(part, target)
    except OSError as error:
        raise UsageError(f"{target}: {error.strerror or error}") from None
    print(f"{number} scenarios recorded: {target}", file=sys.stderr)
    return 0


def _run_again(args: argparse.Namespace) -> Iterator[Rerun]:
    """Run every scenario named, in order. UsageError: one cannot be read, or not be made."""
    from mthp.compare.fuzz import DraftRunner
    from mthp.compare.rerun import run_again
    from mthp.image.scenario import ScenarioError
    from mthp.lab.compile import CannotBuild
    from mthp.lab.kernels.kernels import find

    try:
        scenarios = [each for spec in args.scenarios for each in _load(spec)]
    except (ScenarioError, OSError) as error:
        raise UsageError(str(error)) from None
    with DraftRunner(find(args.kernel)) as runner:
        for scenario in scenarios:
            try:
                yield run_again(runner, scenario)
            except CannotBuild as error:
                raise UsageError(
                    f"{scenario.id}: cannot be made by system calls: {error}"
                ) from None


def _load(spec: str) -> Sequence[Scenario]:
    from mthp.image.scenario import load, load_one

    if "#" in spec and not Path(spec).exists():
        return [load_one(spec)]
    return list(load(spec))
