# SPDX-License-Identifier: GPL-2.0-or-later
"""A plan as one HTML file for others: what the settings given make of a program beside those that are set."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from mthp.plan.records import BulkVerdict, Comparison, Picture
from mthp.report.basis import name_of
from mthp.report.phrases import percent
from mthp.report.plan import come_back_text, figure_rows, grounds_text, size_rows
from mthp.report.sweep import plan_name
from mthp.report.web.answer import now_text, reach_text, tiles
from mthp.report.web.how import WORDS, how_lines, rests_on
from mthp.report.web.memory_map import map_data, map_lines, mapping_lines
from mthp.report.web.page import page_text, scrolls, text_of
from mthp.report.web.time_curve import time_lines
from mthp.words.units import human_bytes


def plan_html_text(comparison: Comparison, picture: Picture) -> str:
    """The whole file. picture: of the settings given."""
    now, given = comparison.now.settings, comparison.given.settings
    then = f"With {plan_name(comparison.given)}"
    data = map_data(picture)
    lines = (
        *_verdict(comparison),
        *how_lines(now, given),
        *map_lines(picture, then, data["every"]),
        *time_lines(picture.outcome.timeline),
        *mapping_lines(picture),
        *_figures(comparison),
        *rests_on(comparison.basis, grounds_text(comparison)),
    )
    title = f"{_title(comparison)}: {text_of(comparison.basis.target)}"
    return page_text(title, lines, data, given.geometry)


def _title(comparison: Comparison) -> str:
    """Whether to set what was given, by TLB entries, small pages and memory."""
    now, given = comparison.now, comparison.given
    if now.settings == given.settings:
        return "What the settings as they are will come to"
    better = [_costs(given)[k] < _costs(now)[k] for k in range(3)]
    worse = [_costs(given)[k] > _costs(now)[k] for k in range(3)]
    if not any(better) and not any(worse):
        return "These settings change nothing here"
    if not any(worse):
        return "These settings are better for this program"
    if not any(better):
        return "These settings are worse for this program"
    return "These settings are a trade for this program"


def _costs(plan: BulkVerdict) -> tuple[int, int, int]:
    return plan.price[:3]


def _verdict(comparison: Comparison) -> Iterator[str]:
    """What the settings do, in plain words."""
    now, given = comparison.now, comparison.given
    yield (
        f'<p class="dim">Huge pages for {text_of(name_of(comparison.basis))}</p>'
        f"<h1>{_title(comparison)}</h1>"
    )
    lead = (
        f"Predicted: with {plan_name(given)}, {percent(given.large, given.mapped)} of "
        f"{human_bytes(given.mapped)} will be in large folios, and the processor needs "
        f"{given.translations:,} TLB entries to reach all of it. "
    )
    if now.settings != given.settings:
        lead += (
            f"With what is set now ({plan_name(now)}) it will be {percent(now.large, now.mapped)} and "
            f"{now.translations:,}. "
        )
    lead += reach_text(given, now)
    lead += f" These settings take {human_bytes(given.memory_added)} more memory than there is now"
    if given.memory_added != now.memory_added:
        lead += f", those that are set {human_bytes(now.memory_added)}"
    yield f'<p class="lead">{escape(lead)}.</p>{WORDS}'
    yield from tiles(given, now, comparison.costs)
    if now.settings != given.settings:
        yield f'<p class="dim">As set now: {plan_name(now)}.{now_text(now)}</p>'


def _figures(comparison: Comparison) -> Iterator[str]:
    """All figures of the report, side by side."""
    yield "<h2>All figures</h2>"
    table = [
        '<table><thead><tr><th></th><th scope="col">as set</th><th scope="col">as given</th></tr></thead>'
        "<tbody>"
    ]
    for name, *cells in (*size_rows(comparison), *figure_rows(comparison)):
        text = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        table.append(f"<tr><td>{escape(name)}</td>{text}</tr>")
    table.append("</tbody></table>")
    yield from scrolls("All figures", table)
    yield f"<p>{escape(come_back_text(comparison))}</p>"
