# SPDX-License-Identifier: GPL-2.0-or-later
"""A race as an SVG picture for mails and slides: one file, no script, no font to load, text as text.

A column a CPU, bars for the locks it holds, arrows between steps of two CPUs that may not change places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

from mthp.check.records import RaceStep, Violation, WordKind
from mthp.report.race import (
    SPINLOCKS,
    DrawnRow,
    again,
    change_of,
    drawn_cpus,
    function_of,
    headline,
    rows,
    steps_text,
)
from mthp.words.files import shown

_CHAR, _LINE, _ROW = 8, 18, 24
"""Width of a character, height of a line of text and of a row of one, in pixels."""
_EDGE, _GAP, _LANE = 24, 64, 14
"""Around the picture, between columns, and of a lock's bar."""
_MIN_WIDTH: Final = 640

_LIGHT: Final = {
    "paper": "fill:#fff",
    "text": "fill:#1f2328",
    "dim": "fill:#656d76",
    "law": "fill:#b3121f",
    "breach": "fill:#ffebe9;stroke:#cf222e",
    "rule": "stroke:#d0d7de",
    "arrow": "stroke:#0969da;fill:none",
    "head": "fill:#0969da",
}
_DARK: Final = {
    "paper": "fill:#0d1117",
    "text": "fill:#e6edf3",
    "dim": "fill:#8d96a0",
    "law": "fill:#ff9d94",
    "breach": "fill:#3c1618;stroke:#ff7b72",
    "rule": "stroke:#30363d",
    "arrow": "stroke:#58a6ff;fill:none",
    "head": "fill:#58a6ff",
}
_LOCKS: Final = {
    "mmap_lock": "#2da44e",
    "VMA lock": "#1b9e9e",
    "anon_vma": "#a371f7",
    "pmd lock": "#d4762b",
    "PTE lock": "#b59a1c",
    "mm_list": "#8c959f",
}
"""Colours that stand out on both papers."""


class _Column(NamedTuple):
    """The column of a CPU. bars: where the bars of its locks begin; x: where its text does, to
    end."""

    bars: int
    x: int
    end: int


class _Bar(NamedTuple):
    """A lock that is held from one step to another. lane: how many others were held when it was taken."""

    cpu: int
    lock: str
    name: str
    begin: int
    end: int
    lane: int


def svg_text(violation: Violation) -> str:
    """Draw a violation as a whole file."""
    picture = _Picture(violation)
    body = [
        *picture.heading(),
        *picture.bars(),
        *picture.rows(),
        *picture.arrows(),
        *picture.footing(),
    ]
    width, height = picture.width, picture.height
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img" aria-labelledby="title desc">',
            f'<title id="title">{_clean(picture.title)}</title>',
            f'<desc id="desc">{_clean(picture.sentence)}</desc>',
            f"<style>text{{font:13px ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace}}"
            f".name{{font-weight:bold}}.small{{font-size:10px}}.bar{{fill-opacity:.35}}"
            f"{_styles(_LIGHT)}@media (prefers-color-scheme:dark){{{_styles(_DARK)}}}</style>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path class="head" d="M0 0L8 4L0 8z"/></marker></defs>',
            f'<rect class="paper" width="{width}" height="{height}"/>',
            *body,
            "</svg>",
            "",
        )
    )


def _styles(colours: Mapping[str, str]) -> str:
    return "".join(f".{name}{{{style}}}" for name, style in colours.items())


def _clean(text: str) -> str:
    """Quote a text as XML has it: no control characters, whoever wrote the text."""
    return escape(shown(text))


def _text(x: int, y: int, text: str, classes: str = "text", more: str = "") -> str:
    return f'<text class="{classes}" x="{x}" y="{y}"{more}>{_clean(text)}</text>'


class _Picture:
    """One race, laid out. at: number of a step -> the height of its middle."""

    def __init__(self, violation: Violation) -> None:
        self.violation = violation
        self.race = violation.race
        self.sentence = headline(violation)
        laws = ", ".join(str(each) for each in sorted({each.law for each in violation.breaches}))
        self.title = f"A race that breaks law {laws}: {' and '.join(violation.tasks)}"
        self.table = list(rows(self.race))
        self.spans = list(_spans(self.race.steps))
        self.columns = self._columns()
        self.width = max(_MIN_WIDTH, _EDGE + max(each.end for each in self.columns.values()))
        self.lines = self._wrapped(self.sentence)
        self.top = _EDGE + _LINE * len(self.lines) + 2 * _ROW
        self.at: dict[int, int] = {}
        self.tops: list[int] = []
        y = self.top
        for row in self.table:
            self.tops.append(y)
            height, nr = _height(row), len(row.steps)
            for nth, step in enumerate(row.steps):
                self.at[step.number] = y + height * (2 * nth + 1) // (2 * nr)
            y += height
        self.bottom = y
        self.laws = [
            line
            for each in violation.breaches
            for line in self._wrapped(f"law {each.law} is broken: {each.text}")
        ]
        self.height = y + _ROW + _LINE * (len(self.laws) + 2) + _EDGE

    def _wrapped(self, text: str) -> list[str]:
        return wrap(text, (self.width - 2 * _EDGE) // _CHAR, break_on_hyphens=False)

    def _columns(self) -> dict[int, _Column]:
        found, x = {}, _EDGE
        for cpu in drawn_cpus(self.race):
            lanes = max((bar.lane + 1 for bar in self.spans if bar.cpu == cpu), default=0)
            texts = [self._name(cpu), steps_text(999)]
            for row in self.table:
                if row.drawn is not None and row.drawn.cpu == cpu:
                    texts += _lines(row.drawn)
            begin = x + lanes * _LANE + 6
            found[cpu] = _Column(x, begin, begin + max(map(len, texts)) * _CHAR + _EDGE)
            x = found[cpu].end + _GAP - _EDGE
        return found

    def _name(self, cpu: int) -> str:
        return f"CPU{cpu} {self.violation.tasks[cpu]}"

    # From top to bottom

    def heading(self) -> Iterator[str]:
        """Write the sentence and name the CPUs."""
        for n, line in enumerate(self.lines):
            yield _text(_EDGE, _EDGE + _LINE * n + 12, line)
        y = self.top - _ROW // 2
        for cpu, column in self.columns.items():
            yield _text(column.x, y - 6, self._name(cpu), "text name")
            yield f'<path class="rule" d="M{column.bars} {y}H{column.end}"/>'

    def bars(self) -> Iterator[str]:
        """Draw the locks held, with their names where these have room."""
        for bar in self._shown():
            x = self.columns[bar.cpu].bars + bar.lane * _LANE
            y, end = self.at[bar.begin], self.at.get(bar.end, self.bottom)
            size = f'width="{_LANE - 3}" height="{max(end - y, 4)}"'
            colour = f'fill="{_LOCKS[bar.lock]}" stroke="{_LOCKS[bar.lock]}"'
            title = f"<title>{_clean(bar.name)}</title>"
            yield f'<rect class="bar" {colour} x="{x}" y="{y}" {size} rx="3">{title}</rect>'
            if end - y > len(bar.name) * 6 + 8:
                turned = f' transform="rotate(90 {x + 2} {y + 4})"'
                yield _text(x + 2, y + 4, bar.name, "text small", turned)

    def _shown(self) -> list[_Bar]:
        return [bar for bar in self.spans if bar.cpu in self.columns and bar.begin in self.at]

    def arrows(self) -> Iterator[str]:
        """Lead from a step to one of another CPU that may not change places with it."""
        for pair in self.race.conflicts:
            earlier, later = (self.race.steps[number - 1] for number in pair)
            if earlier.cpu == later.cpu or later.number not in self.at:
                continue
            is_right = self.columns[later.cpu].x > self.columns[earlier.cpu].x
            x, y = self._edge(earlier, is_right), self.at[earlier.number]
            to, end = self._edge(later, not is_right), self.at[later.number]
            bend = (_GAP // 2) * (1 if is_right else -1)
            yield (
                f'<path class="arrow" marker-end="url(#head)" '
                f'd="M{x} {y}C{x + bend} {y} {to - bend} {end} {to} {end}">'
                f"<title>{_clean(earlier.word)}</title></path>"
            )

    def _edge(self, step: RaceStep, is_right: bool) -> int:
        """Return the place beside the text of a step, or beside the bars to the left of it."""
        column = self.columns[step.cpu]
        text = max(map(len, _lines(step))) * _CHAR
        return column.x + text + 6 if is_right else column.bars - 6

    def rows(self) -> Iterator[str]:
        """Write the steps, and how many are folded."""
        for row, y in zip(self.table, self.tops, strict=True):
            if row.drawn is None:
                yield from self._folded(row, y)
                continue
            step, column, lines = row.drawn, self.columns[row.drawn.cpu], _lines(row.drawn)
            if step.breaks:
                width = max(map(len, lines)) * _CHAR + 8
                size = f'width="{width}" height="{_height(row) - 2}"'
                yield f'<rect class="breach" x="{column.x - 4}" y="{y}" {size} rx="4"/>'
            for n, line in enumerate(lines):
                kind = "law" if step.breaks else "text" if n or len(lines) == 1 else "dim"
                yield _text(column.x, y + 15 + n * _LINE, line, kind)

    def _folded(self, row: DrawnRow, y: int) -> Iterator[str]:
        """Write how many; their functions are told where the picture can be pointed at."""
        for cpu, n in row.folded.items():
            if cpu in self.columns:
                calls = {function_of(step): None for step in row.steps if step.cpu == cpu}
                title = f"<title>{_clean(', '.join(filter(None, calls)))}</title>"
                yield f"<g>{title}{_text(self.columns[cpu].x, y + 15, steps_text(n), 'dim')}</g>"

    def footing(self) -> Iterator[str]:
        """Say what the bars are, the laws, and how to run it again."""
        x, y = _EDGE, self.bottom + _LINE
        for lock in sorted({bar.lock for bar in self._shown()}, key=list(_LOCKS).index):
            colour = f'fill="{_LOCKS[lock]}" stroke="{_LOCKS[lock]}"'
            yield f'<rect class="bar" {colour} x="{x}" y="{y - 9}" width="11" height="9" rx="3"/>'
            yield _text(x + 16, y, lock, "dim")
            x += 16 + (len(lock) + 3) * _CHAR
        y += _ROW // 2
        size = f'width="{self.width - 2 * _EDGE + 12}" height="{len(self.laws) * _LINE + 6}"'
        yield f'<rect class="breach" x="{_EDGE - 6}" y="{y}" {size} rx="4"/>'
        for line in self.laws:
            y += _LINE
            yield _text(_EDGE, y - 2, line, "law")
        yield _text(_EDGE, y + _ROW, again(self.violation), "dim")


def _lines(step: RaceStep) -> list[str]:
    """Say the function, then what it does."""
    mark = f" \u2190 law {', '.join(map(str, step.breaks))}" if step.breaks else ""
    *before, last = [each for each in (function_of(step), change_of(step)) if each]
    return [*before, last + mark]


def _height(row: DrawnRow) -> int:
    return _ROW if row.drawn is None else _ROW + _LINE * (len(_lines(row.drawn)) - 1)


def _spans(steps: tuple[RaceStep, ...]) -> Iterator[_Bar]:
    """Yield every lock held, from the step that takes it to the one that gives it back, or the end."""
    held: dict[tuple[int, str, str], tuple[int, str, int]] = {}
    for step in steps:
        if step.kind is not WordKind.LOCK or not step.changes:
            continue
        key = step.task, step.word, step.of
        if step.new:
            mode = "" if step.word in SPINLOCKS else f" ({step.new})"
            name = step.word + mode + (f" of {step.of}" if step.of else "")
            taken = {lane for (task, *_), (_, _, lane) in held.items() if task == step.task}
            lane = next(n for n in range(len(taken) + 1) if n not in taken)
            held[key] = step.number, name, lane
        elif key in held:
            begin, name, lane = held.pop(key)
            yield _Bar(step.cpu, step.word, name, begin, step.number, lane)
    for (_, lock, _), (begin, name, lane) in held.items():
        yield _Bar(steps[begin - 1].cpu, lock, name, begin, len(steps) + 1, lane)
