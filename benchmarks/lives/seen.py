# SPDX-License-Identifier: GPL-2.0-or-later
"""What was seen of a program in guests, kept as NAME.json beside its recordings, and what those say of each
setting.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mthp.image.recording import Recording, load_recording
from mthp.life.recorded_life import without_huge_pages
from mthp.life.recorded_replay import RecordedReplay
from mthp.words.settings import Settings, parse_enabled_flag

SETTINGS = {
    "none": "all=never",
    "16kB": "16kB=always",
    "64kB": "64kB=always",
    "16kB and 64kB": "16kB=always,64kB=always",
    "2MB": "2MB=always",
    "every size": "all=always",
}
"""What is run: title -> sizes."""
COLUMNS = 300
"""Of a curve between its beginning and its last mark."""


def settings_of(enabled: str) -> Settings:
    """The settings that are predicted and set."""
    return without_huge_pages(Settings()).with_enabled(parse_enabled_flag(enabled))


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
            predicted(recording, settings_of(SETTINGS[title]), marks)
            for recording, marks in zip(recordings, recorded, strict=True)
        ]
        for title in real
    }
    return Seen(document["title"], recordings, recorded, lived, real)


def predicted(recording: Recording, settings: Settings, recorded: tuple[AtMark, ...]) -> Life:
    """The recorded life under settings, from mark to mark of the recorded run."""
    replay = RecordedReplay(recording, settings)
    times = [mark.time for mark in recorded]
    moments = np.searchsorted(recording.time, times, side="right").tolist()
    found: list[AtMark] = []

    def look(event: int) -> None:
        pages = replay.pages
        while len(found) < len(moments) and moments[len(found)] == event:
            mark = recorded[len(found)]
            there = {order: count for order, count in pages.huge.items() if count}
            brought = {order: count for order, count in pages.work.brought.items() if order}
            found.append(AtMark(mark.name, mark.time, pages.rss, there, brought))

    replay.run((moments[-1], 0), stops=moments, watch=look)
    points = np.array(replay.points, np.int64).reshape(-1, 4)
    curve = thinned(points[:, 0], points[:, 1], recorded)
    return Life(int(points[:, 1].max()), tuple(found), curve)


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
