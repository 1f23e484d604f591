# SPDX-License-Identifier: GPL-2.0-or-later
"""Finished records of a run: all that a report is made from. No engine objects in here.

Sizes in bytes, times in milliseconds, addresses absolute. Orders are log2 of base pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from mthp.words.settings import Settings


@dataclass(frozen=True)
class OrderUse:
    """Memory in folios of one order: folios seen, and the bytes of them that are mapped."""

    folios: int
    bytes: int


@dataclass(frozen=True)
class Effort:
    """What attempts cost, summed over successes or over refusals.

    ipis: sync IPIs sent. tlb_outside: present PTEs flushed though outside the window (at most so
    many TLB entries a CPU). allocated: bytes of folios that were allocated for them.
    """

    attempts: int = 0
    flushed_bytes: int = 0
    ipis: int = 0
    tlb_outside: int = 0
    allocated: int = 0


@dataclass(frozen=True)
class Clock:
    """How long it takes by sleeping alone; work counts as no time."""

    full_scans: int
    wakeups: int
    scan_sleep_ms: int
    alloc_sleep_ms: int


class RefusedAt(StrEnum):
    """Where a PTE was refused last."""

    VMA = "vma"
    EDGE = "edge"
    SCAN = "scan"
    OCCUPANCY = "occupancy"
    ATTEMPT = "attempt"
    NOT_SCANNED = "not scanned"


class Verified(StrEnum):
    """How sure a proposed change is."""

    RUN = "verified by running it"
    GROUP = "verified on another refusal of the same kind"
    NONE = "nothing tried lets it"


@dataclass(frozen=True)
class Refusal:
    """A run of PTEs of one table that met the same last gate.

    address: of the first PTE. span: PTEs it covers. pages: those of them that hold something (a
    page, a zero page, a swap or marker entry). order: the order asked for last, None where a VMA
    was turned away. status: the kernel's string, or the gate's name in capitals. reason: plain
    words. change: the least change that lets it, empty where none is known.
    """

    pid: int
    address: int
    span: int
    pages: int
    order: int | None
    stage: RefusedAt
    status: str
    reason: str
    change: str = ""
    verified: Verified = Verified.NONE


@dataclass(frozen=True)
class VmaUse:
    """One mapping, before and after: bytes per folio order, and bytes of zero page and swap.

    gate: why the whole mapping was turned away, empty if it was scanned.
    """

    pid: int
    start: int
    end: int
    name: str
    gate: str
    before: Mapping[int, int]
    after: Mapping[int, int]
    swapped: int
    zero: int


@dataclass(frozen=True)
class Outcome:
    """What khugepaged made of a target. `complete` is false after an interrupt or a pass limit.

    orders_before, orders_after: order -> use, of anonymous memory of the target.
    tlb_before, tlb_after: translations needed to reach all of it, under the `tlb` model.
    attempts: (order, status) -> how many there were, over all passes.
    """

    target: str
    source: str
    profile: str
    profile_reason: str
    settings: Settings
    page_size: int
    pmd_order: int
    highest_order: int | None
    processes: int
    orders_before: Mapping[int, OrderUse]
    orders_after: Mapping[int, OrderUse]
    memory_added: int
    copied_bytes: int
    collapsed_bytes: int
    swapped_in_bytes: int
    successes: Effort
    refused: Effort
    tlb: str
    tlb_before: int
    tlb_after: int
    clock: Clock
    fixed_point: bool
    complete: bool
    attempts: Mapping[tuple[int, str], int]
    counters: Mapping[str, Mapping[str, int]]
    refusals: tuple[Refusal, ...] = ()
    vmas: tuple[VmaUse, ...] = ()
    assumptions: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    extra: Mapping[str, str] = field(default_factory=dict)
