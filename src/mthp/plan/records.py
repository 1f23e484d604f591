# SPDX-License-Identifier: GPL-2.0-or-later
"""The finished records of plans and sweeps, which reports are made from. Sizes in bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.predict.records import Basis, Outcome, PartlyMapped, Refusal, TimePoint
from mthp.words.costs import CostTable
from mthp.words.settings import Settings

Sizes = Counter[int]
"""Bytes by order of folio: what page tables map of anonymous folios, as often as they do."""


class TlbKind(Enum):
    """Processors by what one TLB entry may reach beside a page and a PMD: orders of aligned runs of pages of
    one folio. AMD's since Zen coalesce PTEs, and arm64 has a bit for contiguous ones.
    """

    X86 = ()
    AMD = (2, 3)
    ARM64 = (4,)


TLB_ENTRIES = 1536
"""What a second-level TLB is taken to hold: that of Intel's server cores from Skylake on, of all sizes."""


@dataclass(frozen=True)
class BulkVerdict:
    """What khugepaged makes of an image under some settings.

    windows: order -> how many collapse. before, after: order -> bytes mapped. pmds: PMDs that map memory
    afterwards. memory_added, copied_bytes: as in Outcome. added_by_vma: (pid, start) -> bytes, where any.
    last_collapse_ms: within which the last of them is, by Clock's rules; None if nothing collapses.
    scanned_ptes: entries that are looked at until then, at most.
    counted_tables: tables of which occupancy decides. engine_tables: the engine's. all_engine: why it had all
    of them, or empty.
    """

    settings: Settings
    windows: Mapping[int, int]
    before: Sizes
    after: Sizes
    pmds: int
    memory_added: int
    copied_bytes: int
    added_by_vma: Mapping[tuple[int, int], int]
    last_collapse_ms: int | None
    scanned_ptes: int
    counted_tables: int
    engine_tables: int
    all_engine: str = ""

    @property
    def mapped(self) -> int:
        """Bytes of anonymous memory that are mapped afterwards."""
        return sum(self.after.values())

    @property
    def large(self) -> int:
        """Bytes of them in folios of more than one page."""
        return self.mapped - self.after[0]

    @property
    def collapsed_bytes(self) -> int:
        """In the new folios; what is not copied of them is cleared."""
        geometry = self.settings.geometry
        return sum(geometry.order_bytes(order) * nr for order, nr in self.windows.items())

    @property
    def flushes(self) -> int:
        """Of a whole PMD's range each: one for each collapse, and those that are refused late have more."""
        return sum(self.windows.values())

    @property
    def reach(self) -> float:
        """The share of it that PMDs map: a TLB entry of the largest size each."""
        huge = self.pmds * self.settings.geometry.pmd_size
        return min(huge / self.mapped, 1.0) if self.mapped else 0.0

    def entries(self, kind: TlbKind) -> dict[int, int]:
        """TLB entries that reach all of it, by the order of what each reaches, largest first.

        A model: folios are taken to be mapped where they lie aligned, and in whole runs. Runs are of pages of
        4 KiB.
        """
        geometry = self.settings.geometry
        found = Counter({geometry.pmd_order: self.pmds})
        runs = kind.value if geometry.page_size == 4096 else ()
        for order, size in self.after.items():
            by_ptes = size - (self.pmds * geometry.pmd_size if order == geometry.pmd_order else 0)
            run = max((each for each in runs if each <= order), default=0)
            found[run] += -(-by_ptes // geometry.order_bytes(run))
        return dict(sorted((+found).items(), reverse=True))

    def reached(self, kind: TlbKind, number: int = TLB_ENTRIES) -> int:
        """Bytes that so many TLB entries reach at most."""
        size = 0
        for order, nr in self.entries(kind).items():
            size += min(nr, number) * self.settings.geometry.order_bytes(order)
            number -= min(nr, number)
        return min(size, self.mapped)

    @property
    def price(self) -> tuple[int, int, int, int]:
        """What is to be small: TLB entries, bytes in small folios, memory added; and bytes copied, once."""
        return self.translations, self.after[0], self.memory_added, self.copied_bytes

    @property
    def translations(self) -> int:
        """TLB entries that reach all of it: one for each PMD that maps memory, else one for each PTE."""
        geometry = self.settings.geometry
        return (self.mapped >> geometry.page_shift) - self.pmds * (geometry.ptrs_per_pte - 1)


class Wanted(StrEnum):
    """What may be wanted of settings: memory added at most, in large folios at least, behind PMDs at least,
    each as a share of what is mapped; the last collapse within so many milliseconds."""

    ADDED = "added"
    LARGE = "large"
    REACH = "reach"
    WITHIN = "within"


@dataclass(frozen=True)
class Miss:
    """A plan does not give what is wanted. by: how far off it is, for time as a share of what was asked."""

    wanted: Wanted
    asked: float
    found: float
    by: float


@dataclass(frozen=True)
class Wish:
    """What settings have to hold to, as Wanted says. None: anything will do."""

    added: float | None = None
    large: float | None = None
    reach: float | None = None
    within: int | None = None

    def misses(self, plan: BulkVerdict) -> tuple[Miss, ...]:
        """What a plan does not give of it."""
        added = plan.memory_added / max(sum(plan.before.values()), 1)
        large = plan.large / max(plan.mapped, 1)
        return self.missed(added, large, plan.reach, plan.last_collapse_ms or 0)

    def missed(self, added: float, large: float, reach: float, last: float) -> tuple[Miss, ...]:
        """What such figures do not give of it. last: the last collapse, in milliseconds."""
        found = (
            (Wanted.ADDED, self.added, added, 1),
            (Wanted.LARGE, self.large, large, -1),
            (Wanted.REACH, self.reach, reach, -1),
            (Wanted.WITHIN, self.within, last, 1 / max(self.within or 1, 1)),
        )
        return tuple(
            Miss(wanted, asked, value, (value - asked) * weight)
            for wanted, asked, value, weight in found
            if asked is not None and (value - asked) * weight > 0
        )

    def missed_by(self, plan: BulkVerdict) -> float:
        """How far a plan is from holding to it; 0 where it does."""
        return max((miss.by for miss in self.misses(plan)), default=0.0)


@dataclass(frozen=True)
class SettingFinding:
    """Settings that do not mean what they seem to.

    read: files and what they say. means, matters: what that is, and what follows. kernel: the functions
    that make it so. write: files, and what to write to each of them; None where nothing needs to be.
    purpose: what that is for.
    """

    rule: str
    read: tuple[tuple[str, str], ...]
    means: str
    matters: str
    kernel: str
    write: tuple[tuple[str, ...], str] | None
    purpose: str


@dataclass(frozen=True)
class Sweep:
    """Plans for one image under a grid of settings, by their price.

    base: the captured settings with those asked for over them, now: the plan for them. front: for each plan,
    whether no other is as good in each of TLB entries, small folios and memory added, and better in one.
    chosen: the first that holds to the wish, None where none does; nearest: the one that misses it by least.
    elsewhere: profiles of other kernels, where asked for, and what is nearest there. notes: what of the
    nearest settings does not mean what it may seem to. sooner: the chosen settings at rates at which the last
    collapse is sooner, the soonest last.
    """

    basis: Basis
    base: Settings
    now: BulkVerdict
    wish: Wish
    plans: tuple[BulkVerdict, ...]
    front: tuple[bool, ...]
    chosen: BulkVerdict | None
    nearest: BulkVerdict
    elsewhere: Mapping[str, BulkVerdict]
    notes: tuple[SettingFinding, ...]
    sooner: tuple[BulkVerdict, ...]
    seconds: float

    @property
    def gains(self) -> bool:
        """Whether to take what is chosen: it needs fewer TLB entries than what is set, or maps less by small
        folios; or what is set does not hold to the wish.
        """
        if self.chosen is None:
            return False
        return self.wish.missed_by(self.now) > 0 or self.chosen.price[:2] < self.now.price[:2]


class Spent(NamedTuple):
    """Nanoseconds that a plan costs. collapsing, scanning: khugepaged's CPU, until the last collapse. mean,
    longest: for which one collapse stops the process, since it holds mmap_lock for writing; at most. None: a
    cost is not known, or there is no collapse.
    """

    collapsing: float | None
    scanning: float | None
    mean: float | None
    longest: float | None

    @classmethod
    def of(cls, plan: BulkVerdict, costs: CostTable) -> Spent:
        """By a table, which has the costs of a collapse to PMD size; for those to smaller sizes its part for
        each page and its part for none are taken as well, and the flush is as large."""
        geometry = plan.settings.geometry
        copied = plan.copied_bytes >> geometry.page_shift
        cleared = (plan.collapsed_bytes >> geometry.page_shift) - copied
        whole, order = plan.windows.get(geometry.pmd_order, 0), max(plan.windows, default=0)
        pages = {"copy_page": copied, "clear_page": cleared}
        most = {"copy_page": 1 << order} if plan.windows else {}
        stopped = _sum_ns(costs, stop=plan.flushes, **pages)
        return cls(
            _sum_ns(costs, allocate=whole, stop=plan.flushes, **pages),
            _sum_ns(costs, scan_pte=plan.scanned_ptes),
            stopped / plan.flushes if stopped is not None and plan.flushes else None,
            _sum_ns(costs, stop=min(plan.flushes, 1), **most),
        )


def _sum_ns(costs: CostTable, **times: float) -> float | None:
    try:
        return costs.sum_ns(**times)
    except KeyError:
        return None


class Underused(NamedTuple):
    """Huge folios of which more pages hold nothing but zeros than max_ptes_none allows. zeros: bytes of those
    pages."""

    folios: int
    zeros: int


@dataclass(frozen=True)
class Comparison:
    """One image under the settings that are set (now) and under those given. cpus: of the machine. partly:
    the captured folios that are mapped in part. zero_filled: bytes of pages that hold nothing but zeros, and
    those of them in large folios; None where that was not looked at. underused: as set and as given; None
    where it was not looked at. timelines: memory against time, as set and as given; None where the engine was
    not run for it. has_blocks: bytes of the new folios for which a block is free, as set and as given; None
    where that is not known. costs: what time is reckoned by. names: (pid, start) -> process and mapping,
    where either adds memory. The rest as Sweep's.
    """

    basis: Basis
    now: BulkVerdict
    given: BulkVerdict
    cpus: int
    partly: PartlyMapped
    zero_filled: tuple[int, int] | None
    underused: tuple[Underused, Underused] | None
    timelines: tuple[tuple[TimePoint, ...], tuple[TimePoint, ...]] | None
    has_blocks: tuple[int | None, int | None]
    costs: CostTable
    names: Mapping[tuple[int, int], tuple[str, str]]
    seconds: float


class MappedTo(IntEnum):
    """What a page is mapped to. FOLIO: a folio of order 0; the higher ones follow it."""

    NOTHING = 0
    FOLIO = 1
    ZERO = 61
    SWAP = 62
    OTHER = 63


NO_REASON = -1


class PagesAlike(NamedTuple):
    """What pages have in common. before, after: MappedTo, of a folio FOLIO and its order. reason: the place
    of a refusal like theirs in MemoryMap.reasons, or NO_REASON.
    """

    before: int
    after: int
    reason: int


@dataclass(frozen=True, eq=False)
class MemoryMap:
    """The address space before and after, in runs of pages that are alike; pages of which there is nothing
    to say are in none.

    mapping: of each run, the place of its mapping among the outcome's vmas. first: its first page, from the
    mapping's start on. pages: how many. kind: its place in kinds. reasons: an example of each kind of
    refusal.
    """

    mapping: NDArray[np.int64]
    first: NDArray[np.int64]
    pages: NDArray[np.int64]
    kind: NDArray[np.int64]
    kinds: tuple[PagesAlike, ...]
    reasons: tuple[Refusal, ...]


@dataclass(frozen=True)
class Picture:
    """What the engine made of an image, and where."""

    outcome: Outcome
    map: MemoryMap


@dataclass(frozen=True)
class Checkup:
    """What was found in the settings of a host, or for a target; most costly first.

    looked_at: what was looked for. left_out: what was not, with the reason.
    """

    basis: Basis
    settings: Settings
    findings: tuple[SettingFinding, ...]
    looked_at: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
