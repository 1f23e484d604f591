# SPDX-License-Identifier: GPL-2.0-or-later
"""Predictions for real programs beside what a real kernel did: a table, and a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mthp.compare.records import Forecast, Misprediction, NoForecast
from mthp.report.ktap import KtapTest, KtapVerdict, ktap_group
from mthp.report.page import SafeConsole

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
            page.line(f"  {_miss(miss)}")
        if len(each.misses) > MISSES_SHOWN:
            page.line(f"  and {len(each.misses) - MISSES_SHOWN} more kinds (--json has all)")
    for kernel in dict.fromkeys(each.kernel for each in forecasts):
        page.line(
            f"kernel {kernel}; anonymous PTEs; right: the order of the folio behind it when "
            "khugepaged has come to rest, and whether a PMD maps it; baseline: nothing changes",
            "dim",
        )


def no_forecast_lines(failure: NoForecast) -> list[str]:
    """Say what failed, and show what was printed last."""
    head = f"{_title(failure)}: {failure.reason}" + ("; it printed last:" if failure.output else "")
    return [head, *(f"  | {line}" for line in failure.output)]


def _title(forecast: Forecast | NoForecast) -> str:
    if forecast.settings is None:
        return forecast.target
    return f"{forecast.target}, max_ptes_none {forecast.settings.max_ptes_none}"


def _miss(miss: Misprediction) -> str:
    return (
        f"{miss.ptes:,} PTEs: {miss.before} became {miss.real}, predicted "
        f"{miss.predicted} (at {miss.first:x}): {miss.cause}"
    )


def _percent(share: float) -> str:
    """A share as a percentage with two digits, never rounded up to 100."""
    text = f"{100 * share:.2f}"
    return "99.99 %" if text == "100.00" and share < 1 else f"{text} %"


def forecast_tests(forecasts: Sequence[Forecast], failed: Sequence[NoForecast]) -> list[KtapTest]:
    """Each program as a test, with one of each max_ptes_none in it."""
    found: dict[str, list[KtapTest]] = {}
    for each in forecasts:
        counts = f"{each.right} of {each.ptes} PTEs right, {each.right_changed} of {each.changed} changed"
        verdict = KtapVerdict.OK if good(each) else KtapVerdict.NOT_OK
        lines = (counts, *map(_miss, each.misses))
        found.setdefault(each.target, []).append(KtapTest(_setting(each), verdict, notes=lines))
    for failure in failed:
        test = KtapTest(_setting(failure), KtapVerdict.ERROR, failure.reason, failure.output)
        found.setdefault(failure.target, []).append(test)
    return [ktap_group(target, tests) for target, tests in found.items()]


def _setting(forecast: Forecast | NoForecast) -> str:
    settings = forecast.settings
    return "start" if settings is None else f"max_ptes_none_{settings.max_ptes_none}"


def forecast_document(
    forecasts: Sequence[Forecast], failed: Sequence[NoForecast]
) -> dict[str, Any]:
    """The forecasts, and what there is none of, as a document of plain JSON values."""
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
        "failed": [
            {
                "program": each.target,
                "max_ptes_none": each.settings and each.settings.max_ptes_none,
                "reason": each.reason,
                "output": list(each.output),
            }
            for each in failed
        ],
    }
