# SPDX-License-Identifier: GPL-2.0-or-later
"""A picture of a program's memory against time, as predicted and as it was, under some settings."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from benchmarks.lives.seen import Life, Seen
from mthp.words.units import human_bytes

DRAWN = {"none": "#57606a", "64kB": "#0969da", "2MB": "#bc4c00"}
ASKED = {
    "none": "#57606a",
    "2MB": "#0969da",
    "2MB, khugepaged": "#bc4c00",
    "2MB, khugepaged, max_ptes_none 0": "#1a7f37",
}
"""The settings that are drawn, and their colours; of a program of which memory is asked for, others."""
LEFT, RIGHT, TOP, BOTTOM, WIDTH, HEIGHT = 84, 830, 92, 340, 860, 420
STYLE = """
svg{font:14px system-ui,sans-serif}.paper{fill:#fff}text{fill:#1f2328}.big{font-size:19px;font-weight:bold}
.dim{fill:#59636e}.axis{stroke:#d1d9e0;fill:none}.said{fill:none;stroke-width:1.5}
.real{fill:none;stroke-width:5;stroke-opacity:.3}.ring{fill:none;stroke-width:1.5}
@media(prefers-color-scheme:dark){.paper{fill:#0d1117}text{fill:#e6edf3}.dim{fill:#9aa4af}.axis{stroke:#353c45}}"""


def picture_of(seen: Seen) -> str:
    """The picture as SVG. Time runs from mark to mark: lives last differently long, and marks do not."""
    colours = ASKED if seen.asked else DRAWN
    lives = {title: life for title, (life, *_) in seen.predicted.items() if title in colours}
    drawn = [each for title in lives for each in (lives[title], seen.real[title][0])]
    most = max(pages for life in drawn for _, pages in life.curve)
    most = max(most, *(mark.frames for life in drawn for mark in life.marks))
    top = -(-(most << 12) // (4 << 20)) * (4 << 20)
    title = escape(seen.title)
    kernel = escape(seen.kernel.partition("+")[0])
    what = (
        f"Lines: what is mapped; circles: what folios take. Thin: predicted; broad: Linux {kernel}."
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" aria-labelledby="title">',
        f'<title id="title">{title}; {what}</title>',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="big" x="24" y="34">{title}</text>',
        f'<text class="dim" x="24" y="58">{what}</text>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = round(BOTTOM - (BOTTOM - TOP) * share, 1)
        parts.append(f'<path class="axis" d="M{LEFT} {y}H{RIGHT}"/>')
        size = human_bytes(round(top * share))
        parts.append(f'<text x="{LEFT - 8}" y="{y + 5}" text-anchor="end">{size}</text>')
    marks = next(iter(lives.values())).marks
    parts += _names([mark.name for mark in marks])
    x = LEFT
    for name, life in lives.items():
        for kind, each in (("real", seen.real[name][0]), ("said", life)):
            path = " ".join(f"{x},{y}" for x, y in _line(each, top))
            parts.append(f'<polyline class="{kind}" stroke="{colours[name]}" points="{path}"/>')
            parts += _frames(each, kind, colours[name], top)
        size, *others = name.split(", ")
        label = ", ".join((f"{size} always", *others)) if size != "none" else "every size off"
        parts.append(f'<text x="{x}" y="80" style="fill:{colours[name]}">{label}</text>')
        x += 20 + 8 * len(label) if seen.asked else 150
    return "\n".join((*parts, "</svg>", ""))


def _names(names: list[str]) -> Iterator[str]:
    """The marks, each below where it is, in two rows by turns."""
    for k, name in enumerate(names, 1):
        x = round(LEFT + (RIGHT - LEFT) * k / len(names), 1)
        y = BOTTOM + 24 + (k % 2) * 22
        yield f'<path class="axis" d="M{x} {TOP}V{y - 14}"/>'
        yield f'<text class="dim" x="{x}" y="{y}" text-anchor="end">{escape(name)}</text>'


def _frames(life: Life, kind: str, colour: str, top: int) -> Iterator[str]:
    """What folios take at the marks: a dot as predicted, a ring in a real run."""
    how = f'r="2.5" fill="{colour}"' if kind == "said" else f'r="6" class="ring" stroke="{colour}"'
    for k, mark in enumerate(life.marks, 1):
        x = round(LEFT + (RIGHT - LEFT) * k / len(life.marks), 1)
        y = round(BOTTOM - (BOTTOM - TOP) * (mark.frames << 12) / top, 1)
        yield f'<circle {how} cx="{x}" cy="{y}"/>'


def _line(life: Life, top: int) -> Iterator[tuple[float, float]]:
    """The points of a life's line: memory stays as it is until it changes."""
    y = float(BOTTOM)
    for at, pages in life.curve:
        x = round(LEFT + (RIGHT - LEFT) * at / len(life.marks), 1)
        yield x, y
        y = round(BOTTOM - (BOTTOM - TOP) * (pages << 12) / top, 1)
        yield x, y
    yield RIGHT, y
