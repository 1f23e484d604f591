# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp lab run and mthp lab record: run given scenarios on a real kernel."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mthp.cli.options import DIFFER, UsageError, Verbs, print_json
from mthp.lab.errors import FAILED
from mthp.words.files import recording
from mthp.words.streams import say

if TYPE_CHECKING:
    from mthp.compare.fuzz import Rerun
    from mthp.image.scenario import Scenario


def add_run(subverbs: Verbs) -> None:
    """Add `mthp lab run` and its options to the parser."""
    parser = subverbs.add_parser(
        "run",
        help="scenarios on a real kernel, beside the engine",
        description="Make each scenario's state in a guest by real system calls, let the real "
        "khugepaged or MADV_COLLAPSE act, and show its events beside the engine's.",
    )
    _add_common(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.set_defaults(run=_run)


def add_record(subverbs: Verbs) -> None:
    """Add `mthp lab record` and its options to the parser."""
    parser = subverbs.add_parser(
        "record",
        help="write down what a real kernel does with scenarios",
        description="As run, and write a scenario file: each state with what the kernel did.",
    )
    _add_common(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="a .jsonl file")
    parser.set_defaults(run=_record)


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
    number = 0
    with record_lines(args.output) as record:
        for rerun in _run_again(args):
            if rerun.verdict.not_built:
                raise UsageError(
                    f"{rerun.scenario.id}: not built: {rerun.verdict.not_built}", FAILED
                )
            record(rerun.verdict.record or {})
            number += 1
    say(f"{number} scenarios recorded: {args.output}")
    return 0


@contextmanager
def record_lines(path: str) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Take documents, one a line. The file is in its place when all are written; what was written
    before a failure is kept beside it, and the user is told so."""
    number = 0

    def write(document: Mapping[str, Any]) -> None:
        nonlocal number
        file.write(json.dumps(document).encode() + b"\n")
        file.flush()
        number += 1

    try:
        with recording(path) as file:
            yield write
    except BaseException:
        if number:
            say(f"kept: the {number} scenarios before that, in {path}.part")
        raise


def _run_again(args: argparse.Namespace) -> Iterator[Rerun]:
    """Run the named scenarios in order; FileError or UsageError where one cannot be read or
    made."""
    from mthp.compare.fuzz import DraftRunner, run_again
    from mthp.lab.compile import CannotBuild
    from mthp.lab.kernels.kernels import find

    scenarios = [each for spec in args.scenarios for each in _load(spec)]
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
