# SPDX-License-Identifier: GPL-2.0-or-later
"""From what guest.py wrote down to lives: its marks, and the trace of every change of anonymous memory."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks.lives.seen import AtMark, Life, thinned
from mthp.image.record.formats import layout_of, parse_event
from mthp.image.record.ring import RingPages

FORMATS = ("header_page", "kmem/rss_stat/format")
"""The files below tracing/events that tell how the trace is laid out."""
SETTLES = 0.03
"""The share by which /proc may differ from the trace at a mark: a program's other threads may go on."""
BEGINS = 512
"""Pages that an address space has at most when it is seen first, if it was seen to begin: fork copies whole
tables."""


def at_mark(mark: Mapping[str, Any], began: int) -> AtMark:
    """What the guest says of a mark. began: the time from which times are counted."""

    def by_order(counter: str) -> dict[int, int]:
        sizes = mark[counter].items()
        return {int(size).bit_length() - 3: count for size, count in sizes if count}

    return AtMark(
        mark["name"],
        mark["began"] - began,
        sum(mark["rss"].values()),
        {0: mark["small"], **by_order("nr_anon")},
        by_order("anon_fault_alloc"),
    )


def real_life(trace: bytes, seen: Mapping[str, Any], formats: Mapping[str, str]) -> Life:
    """A real run: the sum of all address spaces' anonymous pages after each change of one. ValueError: the
    trace is not whole, or not what /proc said."""
    if seen["lost"]:
        raise ValueError(f"{seen['lost']} events of the trace were lost")
    times, sums = [], []
    has: dict[int, int] = {}
    total = 0
    others: set[int] = set()
    for now, mm, pages in _changes(trace, formats):
        if mm not in has and pages > BEGINS:
            others.add(mm)  # guest.py's own, and its copy, which ends where the program begins
        if mm in others:
            if not pages:
                others.discard(mm)  # the next has its place
        else:
            total += pages - has.get(mm, 0)
            has[mm] = pages
            times.append(now)
            sums.append(total)
    began = times[0]
    time, mapped = np.array(times, np.int64) - began, np.array(sums, np.int64)
    marks = tuple(at_mark(mark, began) for mark in seen["marks"])
    last = int(np.searchsorted(time, marks[-1].time, side="right"))
    if abs(int(mapped[last - 1]) - marks[-1].rss) > SETTLES * marks[-1].rss:
        raise ValueError(f"{mapped[last - 1]} pages in the trace, where /proc says {marks[-1].rss}")
    return Life(int(mapped[:last].max()), marks, thinned(time[:last], mapped[:last], marks))


def _changes(data: bytes, formats: Mapping[str, str]) -> Iterator[tuple[int, int, int]]:
    """(when, which address space, its anonymous pages) of each change."""
    event = parse_event("kmem/rss_stat", formats["kmem/rss_stat/format"])
    number = event.unpacker("common_type")
    unpack = event.unpacker("mm_id", "size").unpack_from
    pages = RingPages(io.BytesIO(data), layout_of(formats["header_page"]))
    for now, page, at, _ in pages.records():
        if number.unpack_from(page, at)[0] == event.number:
            mm, size = unpack(page, at)
            yield now, mm, size >> 12
