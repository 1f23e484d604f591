# SPDX-License-Identifier: GPL-2.0-or-later
"""What a replayed recording comes to: curves, a peak and what made it, faults, and what it rests on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Curve:
    """Memory against time. time: nanoseconds from the beginning. rss: pages mapped, summed over processes.
    frames: pages that folios take. huge: in large folios, of frames."""

    time: NDArray[np.int64]
    rss: NDArray[np.int64]
    frames: NDArray[np.int64]
    huge: NDArray[np.int64]


@dataclass(frozen=True)
class MappingAtPeak:
    """What a process's mappings of one name had when memory was at its peak; pages. written: those that the
    program had ever written to."""

    process: str
    name: str
    mappings: int
    rss: int
    written: int
    huge: int


@dataclass(frozen=True)
class SiteTotal:
    """An instruction whose faults brought memory. ip: its address."""

    ip: int
    faults: int
    pages: int


@dataclass(frozen=True)
class Held:
    """How the replay without huge pages compares with what /proc said while it was recorded. worst: pages
    that /proc said more, in the sample that differs most; at: what it said then."""

    samples: int
    worst: int
    at: int


@dataclass(frozen=True, eq=False)
class Life:
    """One life under one set of settings. Pages throughout; time in nanoseconds.

    brought: order -> folios that faults brought. left: pages at the end, of what still runs.
    """

    settings: str
    events: int
    curve: Curve
    peak: int
    peak_time: int
    peak_frames: int
    final: int
    peak_huge: dict[int, int]
    faults: int
    saved: int
    cleared: int
    copied: int
    brought: dict[int, int]
    mappings: tuple[MappingAtPeak, ...]
    sites: tuple[SiteTotal, ...]
    held: Held
    passed_over: dict[str, int] = field(default_factory=dict)
    nowhere: int = 0
