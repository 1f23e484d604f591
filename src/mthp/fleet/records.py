# SPDX-License-Identifier: GPL-2.0-or-later
"""The finished records of a fleet's sweep, which reports are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mthp.plan.records import Miss, Wish
from mthp.words.settings import Settings


class FleetError(Exception):
    """The cluster cannot be had, or is gone. code: the exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Unusable(NamedTuple):
    """A snapshot that has no answer, and why."""

    path: str
    why: str


class Swept(NamedTuple):
    """A snapshot that has its answers on disk.

    digest: SHA-256 of the file, in hexadecimal. host: None where the capture is redacted. part: below
    captured/ and answers/ each. anew: this run did it, and did not find it done.
    """

    path: str
    digest: str
    host: str | None
    kernel: str
    profile: str
    page_size: int
    pmd_size: int
    part: str
    anew: bool = True


class Spread(NamedTuple):
    """A figure over machines: what 10, 50 and 90 % of them are at or below, each some machine's own; and the
    worst."""

    p10: float
    p50: float
    p90: float
    worst: float


@dataclass(frozen=True)
class FleetSetting:
    """One setting over machines. settings: the sizes and max_ptes_none, all else each machine's own; None
    for what is set on each now. holds: on how many the wish does. front: on how many no other setting
    betters it. added, large, reach: shares, as BulkVerdict has them. last_collapse_ms: 0 where there is none.
    """

    settings: Settings | None
    holds: int
    front: int
    added: Spread
    large: Spread
    reach: Spread
    translations: Spread
    last_collapse_ms: Spread


class FleetMachine(NamedTuple):
    """A machine under one setting: what it misses of the wish. added: the share of memory that is added."""

    name: str
    misses: tuple[Miss, ...]
    added: float


@dataclass(frozen=True)
class FleetGroup:
    """Machines that can be compared. kernels: release -> snapshots of it. machines: how many; of a machine
    with several snapshots its worst figure counts. settings: in the order of the grid. chosen: of those that
    enable a size the one that holds on the most machines, of these the one with the fewest TLB entries in
    all; None where none holds on any. worst: the machines that miss the wish under it by most, else those to
    which it adds most.
    """

    profile: str
    page_size: int
    pmd_size: int
    kernels: Mapping[str, int]
    machines: int
    now: FleetSetting
    settings: tuple[FleetSetting, ...]
    chosen: FleetSetting | None
    worst: tuple[FleetMachine, ...]

    @property
    def snapshots(self) -> int:
        """How many there are of it."""
        return sum(self.kernels.values())


@dataclass(frozen=True)
class FleetSweep:
    """Many snapshots under a grid of settings. found: how many files were. twice: those of them with the same
    content as another. anew: how many this run did; the rest was done."""

    fleet: str
    folder: str
    wish: Wish
    found: int
    twice: int
    anew: int
    groups: tuple[FleetGroup, ...]
    unusable: tuple[Unusable, ...] = field(default=())
