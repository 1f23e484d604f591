# SPDX-License-Identifier: GPL-2.0-or-later
"""The outcomes that a fuzz campaign has seen, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mthp.compare.coverage import (
    ERRNOS,
    Chance,
    CountedOutcome,
    OutcomeCounts,
    OutcomeKind,
    expectation,
    why_never_seen,
)
from mthp.words.results import ScanResult
from mthp.words.units import Geometry

GEOMETRY = Geometry()
ORDERS = sorted(GEOMETRY.anon_orders)


def coverage_table(coverage: OutcomeCounts) -> str:
    """One row for each result and one column for each order, with the counts.

    A dot stands for an outcome that is reachable and was never seen; a blank, for one that is not
    reachable.
    """
    lines = [f"{coverage.passes} passes"]
    heads = "".join(f"{GEOMETRY.size_name(order):>8}" for order in ORDERS)
    for kind in (OutcomeKind.ATTEMPT, OutcomeKind.ISOLATE, OutcomeKind.SWAPIN):
        lines += ["", f"{kind:<32}{heads}", *_rows(coverage, kind, ORDERS)]
    for kind in (OutcomeKind.SCAN, OutcomeKind.ERRNO):
        lines += ["", str(kind), *_rows(coverage, kind, (None,))]
    return "\n".join([*lines, "", *_why_lines(coverage)]) + "\n"


def _rows(
    coverage: OutcomeCounts, kind: OutcomeKind, orders: Iterable[int | None]
) -> Iterator[str]:
    names = ERRNOS if kind is OutcomeKind.ERRNO else [result.string for result in ScanResult]
    for name in names:
        cells = [_cell(coverage, CountedOutcome(kind, name, order)) for order in orders]
        if any(cells):
            yield (f"  {name:<30}" + "".join(f"{cell:>8}" for cell in cells)).rstrip()


def _cell(coverage: OutcomeCounts, outcome: CountedOutcome) -> str:
    count = coverage.counts[outcome]
    if count:
        return str(count)
    return "." if expectation(outcome)[0] is Chance.YES else ""


def _why_lines(coverage: OutcomeCounts) -> Iterator[str]:
    """Results that were never seen anywhere, with the reason where there is one."""
    seen = {each.result for each in coverage.counts}
    for result in ScanResult:
        if result.string in seen:
            continue
        yield f"never seen: {result.string}: {why_never_seen(result)}"
