# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp lab selftest: the kernel's own cases, in a guest and on the engine, side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mthp.cli.consent import asked
from mthp.cli.options import UsageError, Verbs
from mthp.lab.errors import FAILED, HOST_LACKS, LabError

if TYPE_CHECKING:
    from mthp.lab.kernels import Kernel
    from mthp.lab.kselftest import Output
    from mthp.profiles import Profile
    from mthp.run.selftest import CaseRun, Row

SCHEMA_VERSION = 1
DEFAULT_ORDER = 4


def add_selftest(subverbs: Verbs) -> None:
    """mthp lab selftest."""
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
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.set_defaults(run_subverb=_run_selftest)


@dataclass(frozen=True)
class _Result:
    """What is printed. outputs: None where no guest ran. runs: by mTHP order, None the default."""

    kernel: str
    profile: Profile
    outputs: Mapping[int | None, Output] | None
    runs: Mapping[int | None, Sequence[CaseRun]]

    @property
    def rows(self) -> list[Row]:
        from mthp.run.selftest import side_by_side

        return [
            row
            for order, runs in self.runs.items()
            for row in side_by_side(self.outputs[order] if self.outputs else None, runs, order)
        ]

    @property
    def complaints(self) -> list[str]:
        said = [
            f"kernel: {line}" for out in (self.outputs or {}).values() for line in out.complaints
        ]
        for runs in self.runs.values():
            said += [f"engine: {line}" for run in runs for line in run.findings]
        return said

    @property
    def passed(self) -> bool:
        ran = all(output.passed for output in (self.outputs or {}).values())
        return ran and all(row.passed for row in self.rows)


def _run_selftest(args: argparse.Namespace) -> int:
    from mthp.profiles import DEFAULT, profile_for_release
    from mthp.run.selftest import run_case
    from mthp.run.selftest_states import cases

    if args.engine and (args.kernel or args.source or args.yes):
        raise UsageError("--engine needs no guest: no --kernel, --source or --yes")
    orders = [None, *_orders(args.order or [str(DEFAULT_ORDER)])]
    kernel = None if args.engine else _kernel(args.kernel)
    profile = profile_for_release(kernel.release) if kernel else DEFAULT
    made = {order: cases(order) for order in orders}
    if args.scenarios:
        _write_scenarios(
            args.scenarios,
            [step for group in made.values() for case in group for step in case.steps],
        )
    outputs = None if kernel is None else _run_in_guest(kernel, _source(args), orders)
    runs = {order: [run_case(case, profile) for case in group] for order, group in made.items()}
    result = _Result(kernel.release if kernel else "", profile, outputs, runs)
    _print(result, args.json)
    return 0 if result.passed else FAILED


def _orders(texts: Sequence[str]) -> list[int]:
    from mthp.lab.selftest import MTHP_ORDERS

    if texts == ["all"]:
        return list(MTHP_ORDERS)
    for text in texts:
        if not text.isdecimal() or int(text) not in MTHP_ORDERS:
            raise UsageError(f"--order {text!r}: not an order from 2 to 8, and not 'all'")
    return list(dict.fromkeys(map(int, texts)))


# --- the guest ------------------------------------------------------------------------------


def _kernel(name: str | None) -> Kernel:
    from mthp.lab.kernels import find
    from mthp.lab.qemu import qemu_path

    qemu_path()
    return find(name)


def _source(args: argparse.Namespace) -> Path:
    """The test's source: the one named, the cache's, or the archive's if that is wanted."""
    from mthp.lab.apt import debian_archive, system_sources
    from mthp.lab.packages import DEFAULT_RELEASE
    from mthp.lab.source import cached_source, fetch, look_up, source_at
    from mthp.units import human_bytes

    if args.source is not None:
        return source_at(Path(args.source))
    kept = cached_source(DEFAULT_RELEASE)
    if kept is not None:
        return kept
    offer = look_up(DEFAULT_RELEASE, debian_archive(system_sources()), _say)
    package = offer.package
    _say(
        f"{package.name} {package.version}, Debian {offer.suite}: {human_bytes(package.size)} to "
        "fetch, under 10 MiB of it kept in the cache"
    )
    if not (args.yes or asked("Fetch it now? [y/N] ")):
        raise LabError(
            HOST_LACKS, "the test's source is not here: --yes fetches it, --source takes a tree"
        )
    return fetch(offer)


def _run_in_guest(
    kernel: Kernel, source: Path, orders: Sequence[int | None]
) -> dict[int | None, Output]:
    from mthp.lab.selftest import Invocation, build, guest_session, run_selftest

    program = build(source)
    _say(f"booting {kernel.release}")
    wanted = [Invocation(order) for order in orders]
    with guest_session(kernel) as (guest, _):
        outputs = run_selftest(guest, program, wanted, _begun)
    return {invocation.mthp_order: output for invocation, output in outputs.items()}


def _begun(what: str) -> None:
    _say(f"running {what}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# --- output ---------------------------------------------------------------------------------


def _write_scenarios(path: str, steps: Sequence[Any]) -> None:
    try:
        with Path(path).open("w", encoding="utf-8") as file:
            for step in steps:
                file.write(json.dumps(step.document) + "\n")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _print(result: _Result, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_document(result), indent=1))
        return
    print(_heading(result))
    rows = [("case", "context", "order", "kernel", "engine")]
    rows += map(_cells, result.rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print(line.rstrip())
    for line in result.complaints:
        print(line)


def _heading(result: _Result) -> str:
    counts = []
    for who in ("kernel", "engine"):
        verdicts = [value for row in result.rows if (value := getattr(row, who)) is not None]
        if verdicts:
            good = sum(verdict.value in ("ok", "skip") for verdict in verdicts)
            name = result.kernel if who == "kernel" else f"engine {result.profile.name}"
            counts.append(f"{name}: {good} of {len(verdicts)} ok")
    return "; ".join(counts)


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    return (
        row.name,
        row.context or "-",
        "-" if row.order is None else str(row.order),
        row.kernel or "-",
        row.engine or "-",
    )


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
                "kernel": row.kernel,
                "engine": row.engine,
            }
            for row in result.rows
        ],
        "complaints": result.complaints,
    }
