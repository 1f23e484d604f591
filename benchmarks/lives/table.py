# SPDX-License-Identifier: GPL-2.0-or-later
"""What was predicted beside what was seen, as a table of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.lives.seen import Life, Seen

HEAD = (
    "| program | sizes always | peak: predicted | real | off by | end: predicted | real | off by "
    "| folios | as without |",
    "|---|---|---:|---|---:|---:|---|---:|---:|---:|",
)
SMALLEST = 64
"""Folios of an order that are held against each other: of a few, one is many per cent."""


def off_by(predicted: int, real: Sequence[int]) -> float:
    """By how many per cent a prediction lies outside what was seen; 0 where it lies between."""
    if min(real) <= predicted <= max(real):
        return 0.0
    near = min(real, key=lambda each: abs(each - predicted))
    return 100 * (predicted / near - 1) if near else 100.0


def folios_off_by(predicted: Life, real: Sequence[Life]) -> float:
    """The same of the folios of each order at the end, the worst of them; those that are few are left out."""
    worst = 0.0
    mark = predicted.marks[-1]
    for order in {*mark.folios, *(order for life in real for order in life.marks[-1].folios)}:
        seen = [life.marks[-1].folios.get(order, 0) for life in real]
        said = mark.folios.get(order, 0)
        if max(said, *seen) >= SMALLEST:
            worst = max(worst, off_by(said, seen), key=abs)
    return worst


def table_of(seen: Seen) -> Iterator[str]:
    """The rows of a program."""
    base = seen.predicted["none"].marks[-1].rss
    for title, life in seen.predicted.items():
        real = seen.real[title]
        peaks, ends = [each.peak for each in real], [each.marks[-1].rss for each in real]
        name = seen.title if title == "none" else ""
        yield (
            f"| {name} | {title} | {_kib(life.peak)} | {_span(peaks)} | {_off(off_by(life.peak, peaks))} "
            f"| {_kib(life.marks[-1].rss)} | {_span(ends)} | {_off(off_by(life.marks[-1].rss, ends))} "
            f"| {_off(folios_off_by(life, real))} | {_off(off_by(base, ends))} |"
        )


def _kib(pages: int) -> str:
    return f"{pages << 2:,}"


def _span(pages: Sequence[int]) -> str:
    low, high = min(pages), max(pages)
    return _kib(low) if low == high else f"{_kib(low)} to {_kib(high)}"


def _off(percent: float) -> str:
    return f"{percent:+.2f} %" if percent else "0"


MARKS = (
    "| program | sizes always | mark | mapped: predicted | real | frames: predicted | real |",
    "|---|---|---|---:|---|---:|---|",
)


def marks_of(seen: Seen) -> Iterator[str]:
    """The rows of a program's marks: memory that is mapped, all processes together, and what its folios
    take."""
    for title, life in seen.predicted.items():
        for k, mark in enumerate(life.marks):
            real = [each.marks[k] for each in seen.real[title]]
            yield (
                f"| {seen.title} | {title} | {mark.name} | {_kib(mark.rss)} "
                f"| {_span([each.rss for each in real])} | {_kib(mark.frames)} "
                f"| {_span([each.frames for each in real])} |"
            )
