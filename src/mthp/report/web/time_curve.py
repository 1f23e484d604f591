# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory against time on a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mthp.predict.records import TimePoint
from mthp.report.phrases import duration
from mthp.words.units import human_bytes

_LEFT, _RIGHT, _TOP, _BOTTOM, _WIDTH, _HEIGHT = 116, 672, 24, 220, 720, 280
ROWS_SHOWN = 40


def time_lines(points: Sequence[TimePoint]) -> Iterator[str]:
    """The section: two curves, and the same as a table."""
    yield "<h2>Memory against time</h2>"
    if not points:
        yield "<p>Nothing ever changes.</p>"
        return
    last = max(points[-1].milliseconds, 1)
    most = max(1, *(max(point.collapsed_bytes, point.memory_added) for point in points))
    least = min(0, *(point.memory_added for point in points), 0)

    def place(milliseconds: float, size: float) -> tuple[float, float]:
        share = (size - least) / (most - least)
        x = _LEFT + (_RIGHT - _LEFT) * milliseconds / last
        return round(x, 1), round(_BOTTOM - (_BOTTOM - _TOP) * share, 1)

    yield (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Memory collapsed, and memory '
        f"added, against time; {human_bytes(points[-1].collapsed_bytes)} and "
        f'{human_bytes(points[-1].memory_added)} after {duration(points[-1].milliseconds)}">'
    )
    for share in (0, 0.5, 1):
        size = round(least + share * (most - least))
        _, y = place(0, size)
        yield f'<path class="axis" d="M{_LEFT} {y}H{_RIGHT}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 5}" text-anchor="end">{human_bytes(size)}</text>'
        x, _ = place(last * share, 0)
        yield f'<text x="{x}" y="{_BOTTOM + 26}" text-anchor="middle">{duration(round(last * share))}</text>'
    for name, words, sizes in (
        ("collapsed", "collapsed", [point.collapsed_bytes for point in points]),
        ("added", "memory added", [point.memory_added for point in points]),
    ):
        path = "M{} {}".format(*place(0, 0))
        for point, size in zip(points, sizes, strict=True):
            x, y = place(point.milliseconds, size)
            path += f"H{x}V{y}"
        x, y = place(last, sizes[-1])
        yield f'<path class="curve {name}" d="{path}"/>'
        yield f'<text class="name {name}" x="{x}" y="{y - 8}" text-anchor="end">{words}</text>'
    yield (
        "</svg><figcaption>Since the capture, in steps of khugepaged's wakeups, of which each comes after "
        "scan_sleep; that of the engine's run.</figcaption></figure>"
    )
    step = -(-len(points) // ROWS_SHOWN)
    yield (
        "<details><summary>As a table</summary><table><thead><tr><th>time</th><th>collapsed</th><th>memory "
        "added</th></tr></thead><tbody>"
    )
    for point in points[::-step][::-1]:
        yield (
            f"<tr><td>{duration(point.milliseconds)}</td><td>{human_bytes(point.collapsed_bytes)}</td>"
            f"<td>{human_bytes(point.memory_added)}</td></tr>"
        )
    yield "</tbody></table></details>"
