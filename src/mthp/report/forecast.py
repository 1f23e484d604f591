# SPDX-License-Identifier: GPL-2.0-or-later
"""Predictions for real programs beside what a real kernel did: a table, and a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mthp.compare.records import Forecast
from mthp.report.phrases import SafeConsole

SCHEMA_VERSION = 1
ENOUGH, ENOUGH_CHANGED = 0.999, 0.995
"""Shares of the anonymous PTEs, and of those that changed, from which a prediction is good."""
MISSES_SHOWN = 8


def good(forecast: Forecast) -> bool:
    """Whether it is as accurate as is promised: see ENOUGH and ENOUGH_CHANGED."""
    return forecast.share >= ENOUGH and forecast.share_changed >= ENOUGH_CHANGED


def render_forecasts(forecasts: Sequence[Forecast], console: Console) -> None:
    """Print a row for each forecast, then what was predicted wrong and why."""
    page = SafeConsole(console)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("program", no_wrap=True)
    for name in ("max_ptes_\nnone", "PTEs", "changed", "right", "right of\nchanged", "baseline"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in forecasts:
        table.add_row(
            page.text(each.target),
            str(each.settings.max_ptes_none),
            f"{each.ptes:,}",
            f"{each.changed:,}",
            _percent(each.share),
            _percent(each.share_changed),
            _percent(each.baseline),
        )
    console.print(table)
    for each in forecasts:
        wrong = each.ptes - each.right
        if wrong:
            page.line(f"{_title(each)}: {wrong:,} PTEs wrong", "yellow")
        for miss in each.misses[:MISSES_SHOWN]:
            page.line(
                f"  {miss.ptes:,} PTEs: {miss.before} became {miss.real}, predicted "
                f"{miss.predicted} (at {miss.first:x}): {miss.cause}"
            )
        if len(each.misses) > MISSES_SHOWN:
            page.line(f"  and {len(each.misses) - MISSES_SHOWN} more kinds (--json has all)")
    for kernel in dict.fromkeys(each.kernel for each in forecasts):
        page.line(
            f"kernel {kernel}; anonymous PTEs; right: the order of the folio behind it when "
            "khugepaged has come to rest, and whether a PMD maps it; baseline: nothing changes",
            "dim",
        )


def _title(forecast: Forecast) -> str:
    return f"{forecast.target}, max_ptes_none {forecast.settings.max_ptes_none}"


def _percent(share: float) -> str:
    """A share as a percentage with two digits, never rounded up to 100."""
    text = f"{100 * share:.2f}"
    return "99.99 %" if text == "100.00" and share < 1 else f"{text} %"


def forecast_document(forecasts: Sequence[Forecast]) -> dict[str, Any]:
    """The forecasts as a document of plain JSON values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "predictions": [
            {
                "program": each.target,
                "kernel": each.kernel,
                "settings": each.settings.to_json(),
                "processes": each.processes,
                "ptes": each.ptes,
                "changed": each.changed,
                "right": each.right,
                "right_changed": each.right_changed,
                "share": each.share,
                "share_changed": each.share_changed,
                "baseline": each.baseline,
                "good": good(each),
                "full_scans": {"predicted": each.full_scans, "real": each.real_full_scans},
                "misses": [asdict(miss) for miss in each.misses],
                "assumptions": list(each.assumptions),
            }
            for each in forecasts
        ],
    }
