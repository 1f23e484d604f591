# SPDX-License-Identifier: GPL-2.0-or-later
"""Timing: medians over repetitions by time.perf_counter, and a row of a table."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One measurement. seconds: for one unit of `per`. peer: what it is compared with."""

    name: str
    seconds: float
    per: str
    peer: str = ""
    ratio: float | None = None


def timed(work: Callable[[], object], repeat: int = 15, inner: int = 1) -> float:
    """Median seconds of one call of work, over `repeat` runs of `inner` calls each."""
    runs = []
    for _ in range(repeat):
        begin = time.perf_counter()
        for _ in range(inner):
            work()
        runs.append((time.perf_counter() - begin) / inner)
    return median(runs)


def compared(
    work: Callable[[], object], peer: Callable[[], object], repeat: int = 51, inner: int = 50
) -> tuple[float, float]:
    """Median seconds of one call of work, and the median of its ratio to the peer's, the two being
    run in turns: what disturbs the machine then disturbs both.
    """
    times, ratios = [], []
    for _ in range(repeat):
        mine, other = timed(work, 1, inner), timed(peer, 1, inner)
        times.append(mine)
        ratios.append(mine / other)
    return median(times), median(ratios)


def timed_fresh(make: Callable[[], T], work: Callable[[T], int], repeat: int = 5) -> float:
    """Median seconds of one unit: make() is not timed, work() returns how many units it did."""
    runs = []
    for _ in range(repeat):
        thing = make()
        gc.collect()
        begin = time.perf_counter()
        units = work(thing)
        runs.append((time.perf_counter() - begin) / units)
    return median(runs)


def show_seconds(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def table(title: str, rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [f"**{title}**", "", "| what | time | per second | against |", "|---|---:|---:|---|"]
    for row in rows:
        ratio = f"{row.ratio:.2f} x {row.peer}" if row.ratio is not None else row.peer
        rate = f"{1 / row.seconds:,.0f} {row.per}" if row.per else ""
        lines.append(f"| {row.name} | {show_seconds(row.seconds)} | {rate} | {ratio} |")
    return "\n".join(lines) + "\n"
