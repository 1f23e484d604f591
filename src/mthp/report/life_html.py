# SPDX-License-Identifier: GPL-2.0-or-later
"""A recorded life as one HTML file for others: its memory against time, as given and without huge pages."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from mthp import __version__
from mthp.life.recorded_records import LifeOutcome, LifeSweep, Lived
from mthp.report.life import (
    fault_times,
    held_text,
    khugepaged_texts,
    khugepaged_title,
    shrunk_texts,
)
from mthp.report.phrases import order_name, percent, short_time
from mthp.report.web.how import how_lines
from mthp.report.web.life_curves import curve_lines, multiple_lines, size_lines
from mthp.report.web.page import page_text, scrolls, text_of
from mthp.words.costs import CostTable
from mthp.words.settings import Settings
from mthp.words.units import Geometry, human_bytes


def life_html_text(lived: Lived, recorded: Settings) -> str:
    """The whole file. recorded: the settings while it was recorded."""
    last, geometry = round(lived.seconds * 1e9), lived.geometry
    lines = (
        *_verdict(lived),
        *how_lines(recorded, lived.given.settings),
        *curve_lines(lived.recorded, lived.given, last, geometry),
        *size_lines(lived.given, last, geometry),
        *_beside(lived),
        *_figures(lived),
        *_peak(lived),
        *_rests_on(held_text(lived.held, off=lived.off), lived.unseen),
    )
    return page_text(f"{_title(lived)}: {text_of(lived.name)}", lines, {}, geometry)


def sweep_html_text(sweep: LifeSweep, costs: CostTable) -> str:
    """The whole file of a sweep."""
    geometry, last = sweep.geometry, round(sweep.seconds * 1e9)
    base = sweep.rows[0][1]
    title = "What each size of huge page makes of this program's memory"
    lines = (
        f'<p class="dim">{text_of(sweep.command)}</p><h1>{title}</h1>',
        f'<p class="lead">Predicted from one run of {sweep.seconds:.1f} s, recorded on '
        f"{text_of(sweep.kernel)} without huge pages: {_size(base.peak.frames, geometry)} at the peak.</p>",
        "<h2>Memory against time</h2><p>All to one scale. Grey and broken: without huge pages.</p>",
        *multiple_lines(sweep.rows, last, geometry),
        *_sweep_table(sweep, costs),
        *_rests_on(held_text(sweep.held), sweep.unseen),
    )
    return page_text(f"{title}: {text_of(sweep.name)}", lines, {}, geometry)


def _size(pages: int, geometry: Geometry) -> str:
    return human_bytes(pages * geometry.page_size)


def _title(lived: Lived) -> str:
    before, after = lived.recorded.peak.frames, lived.given.peak.frames
    if lived.given.settings == lived.recorded.settings:
        return "This program's memory without huge pages"
    more = 100 * (after - before) / max(before, 1)
    if abs(more) < 0.05:
        return "These settings cost this program no memory"
    return f"These settings cost this program {more:.3g} % {'more' if more > 0 else 'less'} memory"


def _verdict(lived: Lived) -> Iterator[str]:
    """What the settings do, in plain words."""
    before, after, geometry = lived.recorded, lived.given, lived.geometry
    saved = percent(before.faults - after.faults, before.faults)
    yield f'<p class="dim">{text_of(lived.command)}</p><h1>{_title(lived)}</h1>'
    yield (
        f'<p class="lead">Predicted from one run of {lived.seconds:.1f} s, recorded on '
        f"{text_of(lived.kernel)}: with these settings its anonymous memory takes "
        f"{_size(after.peak.frames, geometry)} at the peak ({_size(before.peak.frames, geometry)} without "
        f"huge pages), {percent(after.peak.huge, after.peak.frames)} of it in large folios, and {saved} of "
        "its page faults do not happen.</p>"
        f'<p class="dim">{text_of(after.settings.describe())}</p><ul class="figures">'
    )
    for name, value, other in (
        ("At the peak", *(_size(each.peak.frames, geometry) for each in (after, before))),
        ("At the end", *(_size(each.end.frames, geometry) for each in (after, before))),
        ("Large, at the peak", *(percent(e.peak.huge, e.peak.frames) for e in (after, before))),
        ("Page faults", *(f"{each.faults:,}" for each in (after, before))),
        ("Cleared", *(_size(each.cleared, geometry) for each in (after, before))),
    ):
        yield f"<li>{name}<b>{value}</b>without huge pages: {other}</li>"
    yield "</ul>"


def _beside(lived: Lived) -> Iterator[str]:
    """What happens beside the program."""
    for title, texts in (
        (khugepaged_title(lived), [*khugepaged_texts(lived)]),
        ("What comes back when memory is asked for", [*shrunk_texts(lived)]),
    ):
        if texts:
            yield f"<h2>{title}</h2><p>{escape(' '.join(texts))}</p>"


def _figures(lived: Lived) -> Iterator[str]:
    """Folios of each size, at the peak and at the end."""
    geometry, given = lived.geometry, lived.given
    orders = sorted({*given.peak.folios, *given.end.folios})
    if not orders:
        return
    yield "<h2>Large folios</h2>"
    table = [
        '<table><thead><tr><th></th><th scope="col">at the peak</th><th scope="col">at the end</th></tr>'
        "</thead><tbody>"
    ]
    for order in orders:
        cells = "".join(
            f"<td>{moment.folios.get(order, 0):,}</td>" for moment in (given.peak, given.end)
        )
        table.append(f"<tr><td>{order_name(geometry, order)}</td>{cells}</tr>")
    table.append("</tbody></table>")
    yield from scrolls("Large folios", table)


def _peak(lived: Lived) -> Iterator[str]:
    """What made the peak, by mapping."""
    given, geometry = lived.given, lived.geometry
    if not given.mappings:
        return
    yield f"<h2>What made the peak, {short_time(given.peak.time)} after the beginning</h2>"
    heads = ("mappings", "mapped", "never written", "in large folios")
    table = ['<table class="sorts"><thead><tr>']
    for k, head in enumerate(heads):
        order = "" if not k else ' aria-sort="descending"' if k == 1 else ' aria-sort="none"'
        table.append(f'<th scope="col"{order}>{head}</th>')
    table.append("</tr></thead><tbody>")
    for each in given.mappings:
        numbers = (
            (each.rss, _size(each.rss, geometry)),
            (each.rss - each.written, _size(each.rss - each.written, geometry)),
            (each.huge / max(each.rss, 1), percent(each.huge, each.rss)),
        )
        cells = "".join(f'<td data-v="{value}">{text}</td>' for value, text in numbers)
        name = f"{text_of(each.process)}: {text_of(each.name)} ({each.mappings:,})"
        table.append(f"<tr><td>{name}</td>{cells}</tr>")
    table.append("</tbody></table>")
    yield from scrolls("What made the peak", table)


def _sweep_table(sweep: LifeSweep, costs: CostTable) -> Iterator[str]:
    """Every setting."""
    geometry, base = sweep.geometry, sweep.rows[0][1]
    times = fault_times(sweep, costs)
    heads = ["sizes always", "peak", "more", "large", "at the end", "faults"]
    heads += [*(["fault time"] if times else []), "by khugepaged"]
    yield "<h2>All settings</h2>"
    table = ['<table class="sorts"><thead><tr>']
    for k, head in enumerate(heads):
        table.append(f'<th scope="col" aria-sort="{"none" if k else "ascending"}">{head}</th>')
    table.append("</tr></thead><tbody>")
    for k, (title, each) in enumerate(sweep.rows):
        more = 100 * (each.peak.frames / max(base.peak.frames, 1) - 1)
        cells = (
            (k, escape(title)),
            (each.peak.frames, _size(each.peak.frames, geometry)),
            (more, f"{more:+.1f} %"),
            (each.peak.huge / max(each.peak.frames, 1), percent(each.peak.huge, each.peak.frames)),
            (each.end.frames, _size(each.end.frames, geometry)),
            (each.faults, f"{each.faults:,}"),
            *([(times[k], short_time(times[k]))] if times else []),
            (_added(each), _size(_added(each), geometry)),
        )
        row = "".join(f'<td data-v="{value}">{text}</td>' for value, text in cells)
        table.append(f"<tr>{row}</tr>")
    table.append("</tbody></table>")
    yield from scrolls("All settings", table)
    yield "<p>By khugepaged: the memory in use that its collapses add.</p>"


def _added(outcome: LifeOutcome) -> int:
    return outcome.khugepaged.frames_added if outcome.khugepaged is not None else 0


def _rests_on(held: str, unseen: tuple[str, ...]) -> Iterator[str]:
    """What all this rests on."""
    items = "".join(f"<li>{text_of(text)}</li>" for text in unseen)
    yield (
        f"<h2>What this rests on</h2><p>A prediction, made by mthp {__version__} from a recording and the "
        f"kernel's own rules, not a measurement. {escape(held)}</p>"
        f"<details><summary>Not seen ({len(unseen)})</summary><ul>{items}</ul></details>"
    )
