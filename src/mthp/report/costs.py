# SPDX-License-Identifier: GPL-2.0-or-later
"""What was measured of a host's costs: the table, the stops beside the published ones, and the flush."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mthp.report.page import SafeConsole
from mthp.report.phrases import short_time
from mthp.words.costs import (
    MEANING,
    PUBLISHED,
    PUBLISHED_STOPS,
    CostTable,
    StopPoint,
    costs_document,
    stop_ns,
)

WINDOW = 16
"""Pages of the window that the flush is told for: 64 kB."""


def flush_ns(costs: CostTable, ptrs: int) -> tuple[float, float] | None:
    """What flushing a whole PMD costs a collapse of WINDOW pages: the wait for other CPUs, and at most to
    fill again the entries outside the window. None: not measured.
    """
    if "refill" not in costs:
        return None
    wait = costs["flush_ipi"].ns if "flush_ipi" in costs else 0.0
    return wait, (ptrs - WINDOW) * costs["refill"].ns


def calibration_document(
    costs: CostTable,
    points: Mapping[str, Sequence[StopPoint]],
    flushes: dict[int, float],
    missing: dict[str, str],
) -> dict[str, Any]:
    """The measurement as JSON; read_costs() reads the table in it."""
    return {
        **costs_document(costs),
        "collapse_ns": {
            name: {str(point.empty): round(point.ns) for point in of} for name, of in points.items()
        },
        "flush_ipi_ns": {str(cpus): round(ns, 1) for cpus, ns in flushes.items()},
        "not_measured": missing,
    }


def render_calibration(
    costs: CostTable,
    points: Mapping[str, Sequence[StopPoint]],
    missing: dict[str, str],
    cpus: int,
    ptrs: int,
    console: Console,
) -> None:
    """Print the table, and the experiment that it has to explain."""
    page = SafeConsole(console)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("cost")
    table.add_column("here", justify="right", no_wrap=True)
    table.add_column("what it is")
    for name, cost in costs.items():
        table.add_row(name, short_time(cost.ns), MEANING[name])
    page.console.print(table)
    page.console.print()
    _render_stops(page, costs, points)
    flush = flush_ns(costs, ptrs)
    if flush is not None:
        wait, refill = flush
        page.line(
            f"A collapse to 64kB flushes the whole PMD: {short_time(wait)} for {cpus} CPUs to confirm, "
            f"and up to {short_time(refill)} to fill again the {ptrs - WINDOW} entries outside the window "
            "if all are used; the same where it is refused after that."
        )
    for name, why in missing.items():
        page.line(f"Not measured: {name} ({why}).", "dim")


def _render_stops(
    page: SafeConsole, costs: CostTable, points: Mapping[str, Sequence[StopPoint]]
) -> None:
    """One collapse of PMD size by its empty PTEs: measured, by the line, and as published."""
    published = {point.empty: point.ns for point in PUBLISHED_STOPS}
    stops, calls = (
        {point.empty: point.ns for point in points[name]} for name in ("stops", "calls")
    )
    if not calls:
        return
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for name in ("empty PTEs", "call", "stop", "model", "off", "published", "model", "off"):
        table.add_column(name, justify="right", no_wrap=True)
    fitted = stops or calls
    for empty, call in calls.items():
        row = [str(empty), short_time(call), short_time(stops[empty]) if stops else "-"]
        for measured, by in ((fitted.get(empty), costs), (published.get(empty), PUBLISHED)):
            if by is PUBLISHED:
                row.append("-" if measured is None else short_time(measured))
            if measured is None or "stop" not in by:
                row += ["-", "-"]
                continue
            model = stop_ns(by, empty)
            row += [short_time(model), f"{100 * (model / measured - 1):+.0f}%"]
        table.add_row(*row)
    page.line(
        "One collapse of PMD size (call: MADV_COLLAPSE; stop: of a thread that writes there):"
    )
    page.console.print(table)
    page.line(
        "published: stops on the list, March 2024, Core i5; model: a line through the column before."
    )
    page.console.print()
