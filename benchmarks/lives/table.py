# SPDX-License-Identifier: GPL-2.0-or-later
"""What was predicted beside what was seen, as a table of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from benchmarks.lives.seen import Life, Seen

HEAD = (
    "| program | sizes always | peak: predicted | real | off by | end: predicted | real | off by "
    "| folios | as without |",
    "|---|---|---:|---|---:|---:|---|---:|---:|---:|",
)
SMALLEST = 64
"""Folios of an order that are held against each other: of a few, one is many per cent."""


def off_by(predicted: Sequence[int], real: Sequence[int]) -> float:
    """By how many per cent what is predicted, of one recording or from the least to the most of several, lies
    outside what was seen; 0 where they meet."""
    if min(predicted) <= max(real) and min(real) <= max(predicted):
        return 0.0
    said, near = min(product(predicted, real), key=lambda pair: abs(pair[0] - pair[1]))
    return 100 * (said / near - 1) if near else 100.0


def folios_off_by(predicted: Sequence[Life], real: Sequence[Life]) -> float:
    """The same of the folios of each order at the end, the worst of them; those that are few are left out."""
    worst = 0.0
    for order in {order for life in (*predicted, *real) for order in life.marks[-1].folios}:
        said, seen = (
            [life.marks[-1].folios.get(order, 0) for life in lives] for lives in (predicted, real)
        )
        if max(*said, *seen) >= SMALLEST:
            worst = max(worst, off_by(said, seen), key=abs)
    return worst


def table_of(seen: Seen) -> Iterator[str]:
    """The rows of a program."""
    base = [life.marks[-1].rss for life in seen.predicted["none"]]
    for title, predicted in seen.predicted.items():
        real = seen.real[title]
        peaks, said_peaks = ([life.peak for life in lives] for lives in (real, predicted))
        ends, said_ends = ([life.marks[-1].rss for life in lives] for lives in (real, predicted))
        name = seen.title if title == "none" else ""
        yield (
            f"| {name} | {title} | {_span(said_peaks)} | {_span(peaks)} | {_off(off_by(said_peaks, peaks))} "
            f"| {_span(said_ends)} | {_span(ends)} | {_off(off_by(said_ends, ends))} "
            f"| {_off(folios_off_by(predicted, real))} | {_off(off_by(base, ends))} |"
        )


def _span(pages: Sequence[int]) -> str:
    low, high = (f"{edge(pages) << 2:,}" for edge in (min, max))
    return low if low == high else f"{low} to {high}"


def _off(percent: float) -> str:
    return f"{percent:+.2f} %" if percent else "0"


ASKED = (
    "| sizes always | purged: mapped | real | frames | real | 2 MB values: frames | real "
    "| memory asked for: frames | real |",
    "|---|---:|---|---:|---|---:|---|---:|---|",
)


def asked_of(seen: Seen) -> Iterator[str]:
    """The rows of a program of which memory is asked for: what was there at its last three marks."""
    for title, predicted in seen.predicted.items():
        cells = [title]
        for mark, mapped in ((-3, True), (-3, False), (-2, False), (-1, False)):
            for lives in (predicted, seen.real[title]):
                marks = [life.marks[mark] for life in lives]
                cells.append(_span([each.rss if mapped else each.frames for each in marks]))
        yield f"| {' | '.join(cells)} |"


MARKS = (
    "| program | sizes always | mark | mapped: predicted | real | frames: predicted | real |",
    "|---|---|---|---:|---|---:|---|",
)


def marks_of(seen: Seen) -> Iterator[str]:
    """The rows of a program's marks: memory that is mapped, all processes together, and what its folios
    take."""
    for title, predicted in seen.predicted.items():
        for k, mark in enumerate(predicted[0].marks):
            said, real = (
                [life.marks[k] for life in lives] for lives in (predicted, seen.real[title])
            )
            yield (
                f"| {seen.title} | {title} | {mark.name} | {_span([each.rss for each in said])} "
                f"| {_span([each.rss for each in real])} | {_span([each.frames for each in said])} "
                f"| {_span([each.frames for each in real])} |"
            )
