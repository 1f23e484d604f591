# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp lab selftest: the kernel's own cases, in a guest and on the engine, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mthp.cli.lab_run import record_lines
from mthp.cli.options import UsageError, Verbs, add_output, print_json, show
from mthp.lab.errors import FAILED
from mthp.report.ktap import KtapTest, KtapVerdict, ktap_group, ktap_lines
from mthp.words.streams import say
from mthp.words.units import parse_whole

if TYPE_CHECKING:
    from mthp.compare.selftest import CaseRun, SelftestRow
    from mthp.compare.selftest_cases import Case
    from mthp.lab.kernels.kernels import CachedKernel
    from mthp.lab.session.selftest import Output
    from mthp.words.profiles import Profile

SCHEMA_VERSION = 1
DEFAULT_ORDER = 4
_SIDES = ("kernel", "engine", "recorded")
"""Columns of verdicts: fields of a Row."""


def add_selftest(subverbs: Verbs) -> None:
    """Add `mthp lab selftest` and its options to the parser."""
    parser = subverbs.add_parser(
        "selftest",
        help="the kernel's own khugepaged test, in a guest and on the engine",
        description="Compile the khugepaged test of the kernel's own tree "
        "(tools/testing/selftests/mm), run it in a guest, run the same cases on the engine, and "
        "print both. The test's source is Debian's linux-source, fetched once; what and how much "
        "is said beforehand. Exit code 0: all is ok; 1: something is not.",
    )
    parser.add_argument("--kernel", metavar="R", help="a kernel of the cache (default: the newest)")
    parser.add_argument(
        "--order",
        action="append",
        metavar="N",
        help="an order to collapse to below the PMD's, 2 to 8, or 'all' (the test's -c; may be "
        f"given several times; default: {DEFAULT_ORDER})",
    )
    parser.add_argument(
        "--source", metavar="PATH", help="a kernel's tree, or a .deb of linux-source"
    )
    parser.add_argument("--yes", action="store_true", help="fetch the test's source unasked")
    parser.add_argument("--engine", action="store_true", help="the engine's side alone: no guest")
    parser.add_argument(
        "--scenarios", metavar="FILE", help="also write the engine's states, as scenarios"
    )
    parser.add_argument(
        "--record",
        metavar="FILE",
        help="also make the engine's states in the guest by system calls, write down what its "
        "kernel does with them, and compare in every detail",
    )
    add_output(parser)
    parser.set_defaults(run=_run_selftest)


@dataclass(frozen=True)
class _Result:
    """What is printed. runs: the engine's, by mTHP order, None for the test's default.

    outputs: the guest's, likewise; empty where no guest ran. records: step id -> what was wrong with
    its record; None where nothing was recorded.
    """

    kernel: str
    profile: Profile
    runs: Mapping[int | None, Sequence[CaseRun]]
    outputs: Mapping[int | None, Output]
    records: Mapping[str, Sequence[str]] | None

    @property
    def rows(self) -> list[SelftestRow]:
        """The rows of all runs, in the test's order."""
        from mthp.compare.selftest import side_by_side

        return [
            row
            for order, runs in self.runs.items()
            for row in side_by_side(self.outputs.get(order), runs, order, self.records)
        ]

    @property
    def complaints(self) -> dict[str, list[str]]:
        """One line for each wrong result, by side."""
        records = self.records or {}
        return {
            "kernel": [line for out in self.outputs.values() for line in out.complaints],
            "engine": [
                line for runs in self.runs.values() for run in runs for line in run.findings
            ],
            "recorded": [f"{step}: {line}" for step, lines in records.items() for line in lines],
        }

    @property
    def complaint_lines(self) -> list[str]:
        """The same in one list."""
        return [f"{side}: {line}" for side, lines in self.complaints.items() for line in lines]

    @property
    def passed(self) -> bool:
        """Whether everything that ran is ok, and everything that was wanted ran."""
        ran = all(output.passed for output in self.outputs.values())
        return ran and all(row.passed for row in self.rows)


def _run_selftest(args: argparse.Namespace) -> int:
    from mthp.compare.selftest import run_case
    from mthp.compare.selftest_cases import cases
    from mthp.lab.kernels.kernels import find
    from mthp.lab.vm.qemu import qemu_path
    from mthp.words.profiles import DEFAULT, profile_for_release

    if args.engine and (args.kernel or args.source or args.yes or args.record):
        raise UsageError("--engine needs no guest: no --kernel, --source, --yes or --record")
    orders = [None, *_orders(args.order or [str(DEFAULT_ORDER)])]
    kernel = None
    if not args.engine:
        qemu_path()
        kernel = find(args.kernel)
    profile = profile_for_release(kernel.release) if kernel else DEFAULT
    made = {order: cases(order) for order in orders}
    if args.scenarios:
        with record_lines(args.scenarios) as write:
            for case in (case for group in made.values() for case in group):
                for step in case.steps:
                    write(step.document)
    outputs: dict[int | None, Output] = {}
    records = None
    if kernel is not None:
        outputs, records = _run_in_guest(kernel, profile, _source(args), made, args.record)
    runs = {order: [run_case(case, profile) for case in group] for order, group in made.items()}
    result = _Result(kernel.release if kernel else "", profile, runs, outputs, records)
    if args.json:
        print_json(_document(result))
    elif args.ktap:
        show(*ktap_lines(_tests(result)))
    else:
        _print_table(result)
    return 0 if result.passed else FAILED


def _orders(texts: Sequence[str]) -> list[int]:
    from mthp.lab.geometry import SMALL_ORDERS

    if texts == ["all"]:
        return list(SMALL_ORDERS)
    try:
        least, most = min(SMALL_ORDERS), max(SMALL_ORDERS)
        return [parse_whole(text, least, most) for text in dict.fromkeys(texts)]
    except ValueError as error:
        raise UsageError(f"--order: {error}, and not 'all'") from None


# --- the guest ------------------------------------------------------------------------------


def _source(args: argparse.Namespace) -> Path:
    """The test's source: the one named, else the cache's, else fetched if the user agrees."""
    from mthp.cli.source import kept_or_fetched
    from mthp.lab.kernels.source import SELFTESTS, source_at

    if args.source is not None:
        return source_at(Path(args.source))
    return kept_or_fetched(SELFTESTS, "the test's source", "--source takes a tree", yes=args.yes)


def _run_in_guest(
    kernel: CachedKernel,
    profile: Profile,
    source: Path,
    made: Mapping[int | None, Sequence[Case]],
    record_to: str | None,
) -> tuple[dict[int | None, Output], dict[str, tuple[str, ...]] | None]:
    """Run the test: its outputs by mTHP order, and the records where they are wanted, as _Result
    has them."""
    from mthp.compare.selftest import record_cases
    from mthp.lab.session.selftest import build, guest_session, run_selftest

    program = build(source)
    every = [case for group in made.values() for case in group]
    with ExitStack() as stack:
        write = stack.enter_context(record_lines(record_to)) if record_to is not None else None
        say(f"booting {kernel.release}")
        guest, session = stack.enter_context(guest_session(kernel))
        outputs = run_selftest(guest, program, made, say)
        records = None
        if write is not None:
            say(f"recording {sum(len(case.steps) for case in every)} states")
            records = record_cases(session, every, kernel.release, profile, write)
    return outputs, records


# --- output ---------------------------------------------------------------------------------


def _print_table(result: _Result) -> None:
    from mthp.report.phrases import aligned

    show(_heading(result))
    lines = [("case", "context", "order", *_SIDES), *map(_cells, result.rows)]
    columns = [column for column in zip(*lines, strict=True) if set(column[1:]) != {"-"}]
    for line in (*aligned(list(zip(*columns, strict=True))), *result.complaint_lines):
        show(line)


def _heading(result: _Result) -> str:
    names = (result.kernel, f"engine {result.profile.name}", "engine on the recorded states")
    counts = []
    for name, side in zip(names, _SIDES, strict=True):
        verdicts = [value for row in result.rows if (value := getattr(row, side)) is not None]
        if verdicts:
            good = sum(verdict in ("ok", "skip") for verdict in verdicts)
            counts.append(f"{name}: {good} of {len(verdicts)} ok")
    return "; ".join(counts)


def _cells(row: SelftestRow) -> tuple[str, ...]:
    order = "-" if row.order is None else str(row.order)
    return (row.name, row.context or "-", order, *(getattr(row, side) or "-" for side in _SIDES))


def _tests(result: _Result) -> list[KtapTest]:
    """Each side as a test of its cases."""
    verdicts = {
        "ok": KtapVerdict.OK,
        "not ok": KtapVerdict.NOT_OK,
        "skip": KtapVerdict.SKIP,
        "not run": KtapVerdict.ERROR,
    }
    found = []
    for side in _SIDES:
        cases = [
            KtapTest(
                ".".join(map(str, filter(None, (row.name, row.context, row.order)))), verdicts[v]
            )
            for row in result.rows
            if (v := getattr(row, side)) is not None
        ]
        if cases:
            found.append(ktap_group(side, cases, result.complaints[side]))
    return found


def _document(result: _Result) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "kernel": result.kernel or None,
        "profile": result.profile.name,
        "passed": result.passed,
        "cases": [
            {
                "case": row.name,
                "context": row.context or None,
                "order": row.order,
                **{side: getattr(row, side) for side in _SIDES},
            }
            for row in result.rows
        ],
        "complaints": result.complaint_lines,
    }
