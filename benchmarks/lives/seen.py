# SPDX-License-Identifier: GPL-2.0-or-later
"""What was seen of a program in guests, kept as NAME.json beside its recordings, and what those say of each
setting.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mthp.image.recording import Recording, load_recording
from mthp.life.recorded_life import without_huge_pages
from mthp.life.recorded_replay import NOTHING, Meanwhile, RecordedReplay
from mthp.words.profiles import profile_for_release
from mthp.words.settings import Settings, parse_enabled_flag


@dataclass(frozen=True)
class Under:
    """What a program is run under. enabled: sizes. limit: max_ptes_none. khugepaged: it is awake, at PACE."""

    enabled: str
    limit: int = 511
    khugepaged: bool = False

    @property
    def settings(self) -> Settings:
        """The settings that are predicted and set."""
        settings = without_huge_pages(Settings()).with_enabled(parse_enabled_flag(self.enabled))
        return settings.replace(max_ptes_none=self.limit, **PACE)


PACE = {"pages_to_scan": 1 << 20, "scan_sleep_millisecs": 500}
SETTINGS = {
    "none": Under("all=never"),
    "16kB": Under("16kB=always"),
    "64kB": Under("64kB=always"),
    "16kB and 64kB": Under("16kB=always,64kB=always"),
    "2MB": Under("2MB=always"),
    "every size": Under("all=always"),
}
"""What most programs are run under, by title: faults alone make large folios."""
BLOAT = {
    "none": Under("all=never"),
    "64kB": Under("64kB=always"),
    "2MB": Under("2MB=always"),
    "2MB, max_ptes_none 64": Under("2MB=always", 64),
    "2MB, max_ptes_none 0": Under("2MB=always", 0),
    "every size": Under("all=always"),
    "64kB, khugepaged": Under("64kB=always", 511, True),
    "2MB, khugepaged": Under("2MB=always", 511, True),
    "2MB, khugepaged, max_ptes_none 64": Under("2MB=always", 64, True),
    "2MB, khugepaged, max_ptes_none 0": Under("2MB=always", 0, True),
    "every size, khugepaged": Under("all=always", 511, True),
}
"""What a program is run under of which memory is asked for at the end."""
PRESSURE = "memory asked for"
"""The mark before which shrinkers are asked for all that they can give."""
COLUMNS = 300
"""Of a curve between its beginning and its last mark."""


Curve = list[tuple[float, int]]
"""When, and the pages of anonymous memory that are mapped from then on. Time is 0 at the beginning, 1 at the
first mark, and so on: lives take differently long from mark to mark."""


@dataclass(frozen=True)
class AtMark:
    """Anonymous memory at a mark: pages mapped (all processes together), folios by order, and large ones
    that faults brought until then. time: nanoseconds from the beginning."""

    name: str
    time: int
    rss: int
    folios: dict[int, int]
    brought: dict[int, int]

    @property
    def frames(self) -> int:
        """What all folios take, in pages."""
        return sum(count << order for order, count in self.folios.items())

    def to_json(self) -> list[Any]:
        """Plain values."""
        return [self.name, self.time, self.rss, self.folios, self.brought]

    @classmethod
    def from_json(cls, values: list[Any]) -> AtMark:
        """The same back."""
        name, time, rss, *counts = values
        folios, brought = ({int(order): count for order, count in each.items()} for each in counts)
        return cls(name, time, rss, folios, brought)


@dataclass(frozen=True)
class Life:
    """One life: peak, in pages mapped; what was at each mark; the curve."""

    peak: int
    marks: tuple[AtMark, ...]
    curve: Curve


@dataclass(frozen=True)
class Seen:
    """A program: recorded, and by setting predicted and really run. recorded: what each recorded run itself
    had at its marks. predicted: from each recording."""

    title: str
    recordings: tuple[Recording, ...]
    recorded: tuple[tuple[AtMark, ...], ...]
    predicted: dict[str, list[Life]]
    real: dict[str, list[Life]]

    @property
    def asked(self) -> bool:
        """Whether shrinkers were asked before the last mark."""
        return self.recorded[0][-1].name == PRESSURE

    @property
    def kernel(self) -> str:
        """What they ran on."""
        return self.recordings[0].kernel


def recording_of(folder: Path, name: str, number: int) -> Path:
    """Where a program's recording is, counted from 0: NAME.npz, NAME-2.npz and so on."""
    return folder / (f"{name}-{number + 1}.npz" if number else f"{name}.npz")


def write_seen(
    path: Path,
    title: str,
    recorded: Sequence[tuple[AtMark, ...]],
    real: Mapping[str, Sequence[Life]],
) -> None:
    """Keep what was seen. Of each setting the first run's curve is kept."""
    document = {
        "title": title,
        "recorded": [[mark.to_json() for mark in marks] for marks in recorded],
        "real": {
            title: [
                [
                    life.peak,
                    [mark.to_json() for mark in life.marks],
                    life.curve if not number else [],
                ]
                for number, life in enumerate(lives)
            ]
            for title, lives in real.items()
        },
    }
    path.write_text(json.dumps(document, separators=(",", ":")) + "\n")


def read_seen(folder: Path, name: str) -> Seen:
    """What a folder holds of a program, predicted anew."""
    document = json.loads((folder / f"{name}.json").read_text())
    recorded = tuple(tuple(map(AtMark.from_json, marks)) for marks in document["recorded"])
    recordings = tuple(
        load_recording(recording_of(folder, name, number)) for number in range(len(recorded))
    )
    real = {
        title: [
            Life(peak, tuple(map(AtMark.from_json, marks)), [(at, pages) for at, pages in curve])
            for peak, marks, curve in lives
        ]
        for title, lives in document["real"].items()
    }
    lived = {
        title: [
            predicted(recording, (SETTINGS | BLOAT)[title], marks)
            for recording, marks in zip(recordings, recorded, strict=True)
        ]
        for title in real
    }
    return Seen(document["title"], recordings, recorded, lived, real)


def predicted(recording: Recording, under: Under, recorded: tuple[AtMark, ...]) -> Life:
    """The recorded life under settings, from mark to mark of the recorded run."""
    asked = recorded[-1].name == PRESSURE
    meanwhile = NOTHING
    if asked or under.khugepaged:
        profile = profile_for_release(recording.kernel)
        meanwhile = Meanwhile(profile, scans=under.khugepaged)
    before: list[AtMark] = []
    if asked:  # shrinkers come between two marks, and perhaps no event does
        *others, last = recorded
        _, before = _replayed(recording, under, meanwhile, others)
        when = (others[-1].time + last.time) // 2
        meanwhile = replace(meanwhile, pressure=(when,))
    replay, found = _replayed(recording, under, meanwhile, recorded[len(before) :])
    points = np.array(replay.points, np.int64).reshape(-1, 4)
    curve = thinned(points[:, 0], points[:, 1], recorded)
    return Life(int(points[:, 1].max()), (*before, *found), curve)


def _replayed(
    recording: Recording, under: Under, meanwhile: Meanwhile, marks: Sequence[AtMark]
) -> tuple[RecordedReplay, list[AtMark]]:
    """A replay up to the last of these marks, and what was there at each."""
    replay = RecordedReplay(recording, under.settings, meanwhile)
    times = [mark.time for mark in marks]
    moments = np.searchsorted(recording.time, times, side="right").tolist()
    found: list[AtMark] = []

    def look(event: int) -> None:
        pages = replay.pages
        while len(found) < len(moments) and moments[len(found)] == event:
            mark = marks[len(found)]
            there = {order: count for order, count in pages.huge.items() if count}
            brought = {order: count for order, count in pages.work.brought.items() if order}
            found.append(AtMark(mark.name, mark.time, pages.rss, there, brought))

    replay.run((moments[-1], sys.maxsize), stops=moments, watch=look)
    return replay, found


def thinned(time: NDArray[np.int64], pages: NDArray[np.int64], marks: tuple[AtMark, ...]) -> Curve:
    """A curve with the least and the most of each of its columns, and what it ends with."""
    edges = np.array([0, *(mark.time for mark in marks)], np.float64)
    at = np.interp(time, edges, np.arange(len(edges)))
    column = np.floor(at * COLUMNS / len(marks)).astype(np.int64)
    curve: Curve = []
    for each in np.unique(column).tolist():
        where = np.flatnonzero(column == each)
        here = pages[where]
        for k in sorted({0, int(here.argmin()), int(here.argmax()), len(here) - 1}):
            curve.append((round(float(at[where[k]]), 4), int(here[k])))
    return curve
