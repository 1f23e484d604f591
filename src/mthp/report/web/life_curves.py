# SPDX-License-Identifier: GPL-2.0-or-later
"""Curves of a life's memory on a page: in use against time, by size of folio, and small ones side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from mthp.life.recorded_records import LifeOutcome, MemoryCurve
from mthp.report.phrases import percent, short_time
from mthp.words.units import Geometry, human_bytes

_LEFT, _RIGHT, _TOP, _BOTTOM, _WIDTH, _HEIGHT = 116, 700, 24, 270, 720, 330
COLUMNS = 480
"""A curve has so many steps at most: of each it shows the highest point and the last."""
DOTS = 25
ROWS_SHOWN = 40
Values = NDArray[np.int64]


@dataclass(frozen=True)
class CurveField:
    """Where things are: times in nanoseconds to the right, pages upwards. last, most: the ends."""

    last: int
    most: int
    left: float = _LEFT
    right: float = _RIGHT
    top: float = _TOP
    bottom: float = _BOTTOM

    def x(self, time: float) -> float:
        return round(self.left + (self.right - self.left) * time / max(self.last, 1), 1)

    def y(self, pages: float) -> float:
        return round(self.bottom - (self.bottom - self.top) * pages / max(self.most, 1), 1)


def thinned(time: Values, sizes: Values, last: int) -> tuple[Values, Values]:
    """No more than two points a column, of which one is the column's highest: so that no peak is lost."""
    if len(time) <= 2 * COLUMNS:
        return time, sizes
    column = np.minimum(time * COLUMNS // max(last, 1), COLUMNS - 1)
    first = np.flatnonzero(np.diff(column, prepend=-1))
    ends = np.append(first[1:], len(time))
    highest = [
        begin + int(np.argmax(sizes[begin:end])) for begin, end in zip(first, ends, strict=True)
    ]
    kept = np.unique(np.concatenate([highest, ends - 1]))
    return time[kept], sizes[kept]


def step_path(field: CurveField, time: Values, sizes: Values) -> str:
    """The path of a curve that stays as it is from each point to the next, from nothing to the end."""
    time, sizes = thinned(time, sizes, field.last)
    path = f"M{field.x(0)} {field.y(0)}"
    for moment, size in zip(time.tolist(), sizes.tolist(), strict=True):
        path += f"H{field.x(moment)}V{field.y(size)}"
    return f"{path}H{field.x(field.last)}"


def axes(field: CurveField, page: int) -> Iterator[str]:
    """Lines and numbers. page: bytes."""
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = field.y(field.most * share)
        yield f'<path class="axis" d="M{field.left} {y}H{field.right}"/>'
        name = human_bytes(round(field.most * share) * page)
        yield f'<text x="{field.left - 8}" y="{y + 5}" text-anchor="end">{name}</text>'
    for share in (0, 0.5, 1):
        x, side = field.x(field.last * share), "end" if share == 1 else "middle"
        name = short_time(field.last * share) if share else "0"
        yield f'<text x="{x}" y="{field.bottom + 26}" text-anchor="{side}">{name}</text>'


def at(curve: MemoryCurve, time: float) -> int:
    """The place in a curve that holds at a time; -1 before the first."""
    return int(np.searchsorted(curve.time, time, side="right")) - 1


def curve_lines(
    without: LifeOutcome, given: LifeOutcome, last: int, geometry: Geometry
) -> Iterator[str]:
    """The section: memory in use against time, without huge pages and as given; the same as a table."""
    page = geometry.page_size
    most = max(1, *(int(np.max(each.curve.frames, initial=0)) for each in (without, given)))
    field = CurveField(last, most)
    work = given.khugepaged
    yield (
        f'<h2>Memory against time</h2><figure class="plot"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'role="group" aria-label="Memory in use against time, without huge pages and as given; the table '
        'below has the same figures">'
    )
    yield from axes(field, page)
    yield f'<path class="curve without" d="{step_path(field, without.curve.time, without.curve.frames)}"/>'
    yield f'<path class="curve given" d="{step_path(field, given.curve.time, given.curve.frames)}"/>'
    keys = [("without", "without huge pages"), ("given", "as given")]
    if work is not None and work.points:
        times, added = np.array([(each.time, each.added) for each in work.points], np.int64).T
        yield f'<path class="curve added" d="{step_path(field, times, np.maximum(added, 0))}"/>'
        keys.append(("added", "added by khugepaged"))
    yield from _dots(field, given, page)
    legend = "".join(f'<li><span class="key {kind}"></span>{name}</li>' for kind, name in keys)
    yield (
        f'</svg><ul class="legend">{legend}</ul><figcaption>Frames that anonymous folios take, of all '
        "processes. Point at a dot, or use the Tab and arrow keys.<br><output></output></figcaption></figure>"
    )
    yield from _table(without, given, last, page)


def _dots(field: CurveField, given: LifeOutcome, page: int) -> Iterator[str]:
    """Moments to be asked about: evenly, and the peak."""
    curve = given.curve
    times = sorted({*(field.last * k // (DOTS - 1) for k in range(DOTS)), given.peak.time})
    stop = 0
    for time in times:
        k = at(curve, time)
        if k < 0:
            continue
        frames, rss, huge = (int(each[k]) for each in (curve.frames, curve.rss, curve.huge))
        kind = "take" if time == given.peak.time else "on"
        text = (
            f"{'The peak, ' if kind == 'take' else ''}{short_time(time)} after the beginning: "
            f"{human_bytes(frames * page)} in use, {human_bytes(rss * page)} mapped, "
            f"{percent(huge, frames)} in large folios"
        )
        yield (
            f'<circle class="dot {kind}" tabindex="{stop}" role="img" aria-label="{escape(text)}" '
            f'cx="{field.x(time)}" cy="{field.y(frames)}" r="{5 if kind == "take" else 3.5}"/>'
        )
        stop = -1


def _table(without: LifeOutcome, given: LifeOutcome, last: int, page: int) -> Iterator[str]:
    yield (
        "<details><summary>As a table</summary><table><thead><tr><th>time</th><th>without huge pages</th>"
        "<th>as given</th><th>mapped</th><th>in large folios</th></tr></thead><tbody>"
    )
    for step in range(ROWS_SHOWN + 1):
        time = last * step // ROWS_SHOWN
        k, plain = at(given.curve, time), at(without.curve, time)
        frames, rss, huge = (
            int(each[k]) if k >= 0 else 0
            for each in (given.curve.frames, given.curve.rss, given.curve.huge)
        )
        small = int(without.curve.frames[plain]) if plain >= 0 else 0
        cells = (small, frames, rss)
        text = "".join(f"<td>{human_bytes(each * page)}</td>" for each in cells)
        yield f"<tr><td>{short_time(time)}</td>{text}<td>{percent(huge, frames)}</td></tr>"
    yield "</tbody></table></details>"


def size_lines(given: LifeOutcome, last: int, geometry: Geometry) -> Iterator[str]:
    """The section: memory in use by size of folio against time, one above the other, the largest below."""
    curve = given.curve
    field = CurveField(last, int(np.max(curve.frames, initial=1)))
    orders = [order for order in range(curve.folios.shape[1]) if curve.folios[:, order].any()]
    if not orders:
        return
    names = ", ".join(geometry.size_name(order) for order in reversed(orders))
    yield (
        f'<h2>By size of folio</h2><figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="Memory as given against time, in folios of {names}">'
    )
    times = np.unique(np.linspace(0, last, COLUMNS).astype(np.int64))
    places = np.searchsorted(curve.time, times, side="right") - 1
    below = np.zeros(len(times), np.int64)
    for order in reversed(orders):
        pages = np.where(places >= 0, curve.folios[places, order].astype(np.int64) << order, 0)
        yield f'<path class="o{order}" d="{_area(field, times, below, below + pages)}"/>'
        below += pages
    yield from axes(field, geometry.page_size)
    keys = "".join(
        f'<li><span class="key o{order}"></span>{geometry.size_name(order)}</li>'
        for order in orders
    )
    yield (
        f'</svg><ul class="legend">{keys}</ul><figcaption>As given. What is shown at each time is what there '
        "is then, so that a peak between two columns may be higher.</figcaption></figure>"
    )


def _area(field: CurveField, times: Values, low: Values, high: Values) -> str:
    there = [
        f"{field.x(time)} {field.y(size)}"
        for time, size in zip(times.tolist(), high.tolist(), strict=True)
    ]
    back = [
        f"{field.x(time)} {field.y(size)}"
        for time, size in zip(times[::-1].tolist(), low[::-1].tolist(), strict=True)
    ]
    return f"M{'L'.join([*there, *back])}z"


def multiple_lines(
    rows: Sequence[tuple[str, LifeOutcome]], last: int, geometry: Geometry
) -> Iterator[str]:
    """A small curve for each setting, all to one scale, with the one without huge pages behind each."""
    base = rows[0][1].curve
    most = max(1, *(int(np.max(each.curve.frames, initial=0)) for _, each in rows))
    field = CurveField(last, most, 4, 236, 8, 92)
    behind = step_path(field, base.time, base.frames)
    yield '<div class="multiples">'
    for title, each in rows:
        peak = human_bytes(each.peak.frames * geometry.page_size)
        end = human_bytes(each.end.frames * geometry.page_size)
        path = step_path(field, each.curve.time, each.curve.frames)
        yield (
            f'<figure><svg viewBox="0 0 240 100" role="img" aria-label="Memory in use against time with '
            f'{escape(title)}: {peak} at the peak, {end} at the end"><path class="curve without" '
            f'd="{behind}"/><path class="curve given" d="{path}"/>'
            f"</svg><figcaption><b>{escape(title)}</b> {peak}, then {end}</figcaption></figure>"
        )
    yield "</div>"
