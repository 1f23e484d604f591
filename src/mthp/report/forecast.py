# SPDX-License-Identifier: GPL-2.0-or-later
"""Predictions for real programs beside what a real kernel did: a table, and a document."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mthp.compare.records import Forecast, Misprediction, NoForecast
from mthp.report.ktap import KtapTest, KtapVerdict, ktap_group
from mthp.report.measured import good_plan, measured_document, render_measured, setting_text
from mthp.report.page import SafeConsole
from mthp.report.phases import render_phases

SCHEMA_VERSION = 1
ENOUGH, ENOUGH_CHANGED = 0.999, 0.995
"""Shares of the anonymous PTEs, and of those that changed, from which a prediction is good."""
MISSES_SHOWN = 8


def good(forecast: Forecast) -> bool:
    """Whether it is as accurate as is promised: see ENOUGH and ENOUGH_CHANGED, and good_plan()."""
    enough = forecast.share >= ENOUGH and forecast.share_changed >= ENOUGH_CHANGED
    return enough and (forecast.measured is None or good_plan(forecast.measured))


def render_forecasts(forecasts: Sequence[Forecast], console: Console) -> None:
    """Print a row for each forecast, then what was predicted wrong and why."""
    page = SafeConsole(console)
    texts = [setting_text(each.settings) for each in forecasts]
    if all(text == f"max_ptes_none {each.settings.max_ptes_none}" for text, each in zip(
        texts, forecasts, strict=True)):  # fmt: skip
        _render_table(page, forecasts, with_limit=True)
    else:
        for setting in dict.fromkeys(texts):
            page.heading(setting)
            own = [each for text, each in zip(texts, forecasts, strict=True) if text == setting]
            _render_table(page, own, with_limit=False)
    for each in forecasts:
        wrong = each.ptes - each.right
        if wrong:
            page.line(f"{_title(each)}: {wrong:,} PTEs wrong", "yellow")
        for miss in each.misses[:MISSES_SHOWN]:
            page.line(f"  {_miss(miss)}")
        if len(each.misses) > MISSES_SHOWN:
            page.line(f"  and {len(each.misses) - MISSES_SHOWN} more kinds (--json has all)")
    measured = [(_title(each), each.measured) for each in forecasts if each.measured is not None]
    for kernel in dict.fromkeys(each.kernel for each in forecasts):
        page.line(
            f"kernel {kernel}; anonymous PTEs; right: the order of the folio behind it when "
            "khugepaged has come to rest, and whether a PMD maps it; baseline: nothing changes",
            "dim",
        )
    if measured:
        render_measured(page, measured)
    if any(each.memory is not None for each in forecasts):
        render_phases(page, forecasts)


def _render_table(page: SafeConsole, forecasts: Sequence[Forecast], *, with_limit: bool) -> None:
    """A row for each. with_limit: with its max_ptes_none."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("program", no_wrap=with_limit)
    names = ("PTEs", "changed", "right", "right of\nchanged", "baseline")
    for name in (*["max_ptes_\nnone"] * with_limit, *names):
        table.add_column(name, justify="right", no_wrap=True)
    for each in forecasts:
        table.add_row(
            page.text(each.target),
            *[str(each.settings.max_ptes_none)] * with_limit,
            f"{each.ptes:,}",
            f"{each.changed:,}",
            _percent(each.share),
            _percent(each.share_changed),
            _percent(each.baseline),
        )
    page.console.print(table)


def no_forecast_lines(failure: NoForecast) -> list[str]:
    """Say what failed, and show what was printed last."""
    head = f"{_title(failure)}: {failure.reason}" + ("; it printed last:" if failure.output else "")
    return [head, *(f"  | {line}" for line in failure.output)]


def _title(forecast: Forecast | NoForecast) -> str:
    if forecast.settings is None:
        return forecast.target
    return f"{forecast.target}, {setting_text(forecast.settings)}"


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
    return "start" if settings is None else re.sub("[, ]+", "_", setting_text(settings))


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
                "memory": each.memory and asdict(each.memory),
                "measured": each.measured and measured_document(each.measured),
            }
            for each in forecasts
        ],
        "failed": [
            {
                "program": each.target,
                "settings": each.settings and each.settings.to_json(),
                "max_ptes_none": each.settings and each.settings.max_ptes_none,
                "reason": each.reason,
                "output": list(each.output),
            }
            for each in failed
        ],
    }
