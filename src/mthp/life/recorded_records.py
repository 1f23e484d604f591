# SPDX-License-Identifier: GPL-2.0-or-later
"""What a replayed recording comes to: curves, a peak and what made it, faults, and what it rests on.

Amounts are in pages, times in nanoseconds from the beginning.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mthp.words.settings import Settings
from mthp.words.units import Geometry


@dataclass(frozen=True, eq=False)
class MemoryCurve:
    """Memory against time, at the times when it changed. rss: mapped, summed over processes. frames: what
    folios take. huge: of it, in large folios. folios: (times, orders) how many there are."""

    time: NDArray[np.int64]
    rss: NDArray[np.int64]
    frames: NDArray[np.int64]
    huge: NDArray[np.int64]
    folios: NDArray[np.int32]


@dataclass(frozen=True)
class MemoryMoment:
    """Memory at one time, as in MemoryCurve. folios: order -> large folios."""

    time: int
    rss: int
    frames: int
    huge: int
    folios: dict[int, int]


@dataclass(frozen=True)
class PeakMapping:
    """What a process's mappings of one name had when memory was at its peak. written: what the program had
    ever written to."""

    process: str
    name: str
    mappings: int
    rss: int
    written: int
    huge: int


@dataclass(frozen=True)
class CallSite:
    """An instruction whose faults brought memory. ip: its address."""

    ip: int
    faults: int
    pages: int


@dataclass(frozen=True)
class KhugepagedPoint:
    """What khugepaged had done after a wakeup. collapsed: pages of the folios it made; added: frames."""

    time: int
    collapsed: int
    added: int


@dataclass(frozen=True)
class KhugepagedWork:
    """What khugepaged did in a life. profile: whose rules it went by. scanned: what it spent of
    pages_to_scan. collapsed: order -> folios it made. copied, filled: pages of these; frames_added: that
    memory in use grew by. attempts: folios it allocated. lacking: windows it refused since no fault shows
    that any of their pages was used. points: after each wakeup that collapsed something."""

    profile: str
    wakeups: int
    full_scans: int
    scanned: int
    collapsed: dict[int, int]
    copied: int
    filled: int
    frames_added: int
    attempts: int
    lacking: int
    points: tuple[KhugepagedPoint, ...]


@dataclass(frozen=True)
class GivenBack:
    """What shrinkers give. underused: huge pages that are split though they are whole. unmapped: pages that
    the zero page stands for; freed: frames."""

    underused: int
    unmapped: int
    freed: int


@dataclass(frozen=True)
class SeenZero:
    """What was known of contents when shrinkers were asked, of the pages that they would look at and that the
    program had written to. looked: how many somebody had looked at since, `newest` to `oldest` nanoseconds
    before; zero: how many of these were zero. blind: what the answer would be if nobody had looked."""

    written: int
    looked: int
    zero: int
    newest: int
    oldest: int
    blind: GivenBack


@dataclass(frozen=True)
class Shrunk:
    """What shrinkers gave when they were asked. split: order -> large folios that were split; those that are
    not underused were partly mapped. seen: None where it was not looked which pages are zero."""

    time: int
    split: dict[int, int]
    given: GivenBack
    seen: SeenZero | None


@dataclass(frozen=True, eq=False)
class LifeOutcome:
    """One life under one set of settings. end: when the command ended, or the recording.

    faults: at anonymous memory. cleared: pages; copied: those that copy-on-write copied. brought: order ->
    folios that faults brought. nowhere: recorded faults where no mapping allows the access. passed_over:
    calls of which it is not known what they did -> how many. khugepaged: None where it was not run.
    shrunk: each time that shrinkers were asked.
    """

    settings: Settings
    curve: MemoryCurve
    peak: MemoryMoment
    end: MemoryMoment
    faults: int
    cleared: int
    copied: int
    brought: dict[int, int]
    mappings: tuple[PeakMapping, ...]
    sites: tuple[CallSite, ...]
    nowhere: int
    passed_over: dict[str, int]
    khugepaged: KhugepagedWork | None
    shrunk: tuple[Shrunk, ...]


@dataclass(frozen=True, eq=False)
class LifeSweep:
    """A recording under a grid of settings, each with its name; the first is the one without huge pages."""

    name: str
    command: str
    kernel: str
    geometry: Geometry
    seconds: float
    rows: tuple[tuple[str, LifeOutcome], ...]
    held: HeldAgainst
    unseen: tuple[str, ...]
    took: float


@dataclass(frozen=True)
class HeldAgainst:
    """How the replay without huge pages compares with what /proc said while it was recorded. worst: how much
    more /proc said in the sample that differs most; said: what it said there."""

    samples: int
    worst: int
    said: int


@dataclass(frozen=True, eq=False)
class Lived:
    """A recording and its lives: without huge pages, and under the settings asked for. off: while it was
    recorded huge pages were off."""

    name: str
    command: str
    kernel: str
    geometry: Geometry
    events: int
    processes: int
    tasks: int
    seconds: float
    off: bool
    recorded: LifeOutcome
    given: LifeOutcome
    held: HeldAgainst
    unseen: tuple[str, ...]
    took: float
