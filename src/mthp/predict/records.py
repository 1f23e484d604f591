# SPDX-License-Identifier: GPL-2.0-or-later
"""The finished records of a run, which reports are made from: values alone, no engine objects.

Sizes in bytes, times in milliseconds, addresses absolute. Orders are log2 of base pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from enum import Enum, StrEnum
from functools import cached_property
from operator import add
from typing import NamedTuple

from mthp.mm.huge_mm import VmaGate
from mthp.words.events import Event
from mthp.words.resident import Resident
from mthp.words.results import ScanResult
from mthp.words.settings import Settings
from mthp.words.units import Geometry


@dataclass(frozen=True)
class OrderUse:
    """Memory in folios of one order: folios of which the target maps something, and the bytes of them
    that it maps; each folio and each page once, however many map it.
    """

    folios: int
    bytes: int


@dataclass(frozen=True)
class PartlyMapped:
    """Large folios of which some page is mapped and another is not: how many, the bytes they hold
    beyond what is mapped, and how many of those bytes reclaim gets back by splitting them.
    """

    folios: int = 0
    held: int = 0
    reclaimable: int = 0


@dataclass(frozen=True)
class Effort:
    """What attempts cost, summed over successes or over refusals.

    ipis: sync IPIs sent. tlb_outside: present PTEs flushed though outside the window (at most so
    many TLB entries a CPU). allocated_bytes: of folios that were allocated for them.
    """

    attempts: int = 0
    flushed_bytes: int = 0
    ipis: int = 0
    tlb_outside: int = 0
    allocated_bytes: int = 0

    def __add__(self, other: Effort) -> Effort:
        return Effort(*map(add, astuple(self), astuple(other)))


COPY_BYTES_A_SECOND = 4 << 30
"""How fast a collapse is taken to copy and clear: what one core of a server does with pages that are in
no cache."""


class TimePoint(NamedTuple):
    """What is there so many milliseconds after the capture. memory_added is the growth of the frames
    in use, collapsed_bytes what has collapsed by then.
    """

    milliseconds: int
    memory_added: int
    collapsed_bytes: int


@dataclass(frozen=True)
class Others:
    """Processes that were not captured, and their anonymous memory. scanned: khugepaged is taken to
    spend time on them too.
    """

    processes: int
    anonymous_bytes: int
    scanned: bool


@dataclass(frozen=True)
class Clock:
    """How long a run takes. The sleeps are those of all full scans, also of those that find nothing.

    last_collapse_ms: until the last collapse, from the capture on; None where nothing collapses. It has
    the sleep before the first wakeup, what is spent on other processes, and work_ms: copying and
    clearing at COPY_BYTES_A_SECOND. All other work counts as no time.
    """

    full_scans: int
    wakeups: int
    scan_sleep_ms: int
    alloc_sleep_ms: int
    work_ms: int = 0
    last_collapse_ms: int | None = None


class RefusedAt(StrEnum):
    """Where a PTE was refused last."""

    VMA = "vma"
    EDGE = "edge"
    SCAN = "scan"
    OCCUPANCY = "occupancy"
    ATTEMPT = "attempt"
    NOT_SCANNED = "not scanned"


class WindowGate(Enum):
    """Why a part of a table came to no attempt, and no result of a scan says so."""

    EDGE = "PMD_NOT_SPANNED"
    TOO_FEW = "TOO_FEW_PTES"
    NOT_SCANNED = "NOT_SCANNED"
    NOT_REGISTERED = "NOT_REGISTERED"
    NOT_CHOSEN = "NOT_CHOSEN"


Status = ScanResult | VmaGate | WindowGate


class Scope(Enum):
    """What a change is made to, the widest first."""

    SETTINGS = "settings"
    VMA = "mapping"
    TABLE = "table"
    WINDOW = "window"


class ChangeKind(Enum):
    """What can be changed so that memory may collapse: what to do, in words, and to what.

    The words have {places} that report/refusals.py fills in.
    """

    RAISE_KNOB = "raise {knob} to {value}", Scope.SETTINGS
    ENABLE_SIZE = "enable {size}", Scope.SETTINGS
    ENABLE_GLOBALLY = "set transparent_hugepage/enabled to always", Scope.SETTINGS
    DEFRAG = "set khugepaged/defrag to 1", Scope.SETTINGS
    ADVISE = "MADV_HUGEPAGE on the mapping", Scope.VMA
    LIFT_PRCTL = "lift PR_SET_THP_DISABLE", Scope.VMA
    SPAN_WHOLE_PMD = "begin and end the memory at multiples of {pmd}", Scope.VMA
    SPAN_ALIGNED_PMD = "allocate at least {two_pmds} at once, or {pmd} aligned to {pmd}", Scope.VMA
    WRITE_ONCE = "write to the mapping once", Scope.VMA
    UNREGISTER_USERFAULTFD = "unregister userfaultfd", Scope.VMA
    FREE_BLOCK = "free {blocks} of {size}", Scope.TABLE
    RAISE_MEMCG_LIMIT = "raise the memory cgroup's limit by {more}", Scope.TABLE
    FILL = "write to {missing}", Scope.WINDOW
    BRING_IN = "bring in {pages}", Scope.WINDOW
    UNSHARE = "unshare {pages}", Scope.WINDOW
    CLEAR_PINS = "clear {pinned}", Scope.WINDOW
    UNLOCK = "unlock {pages}", Scope.WINDOW
    PUT_ON_LRU = "put {pages} back on the LRU", Scope.WINDOW
    WRITE_FREED = "write to {pages} that MADV_FREE gave up", Scope.WINDOW
    LIFT_PROTECTION = "lift write protection from {pages}", Scope.WINDOW
    TOUCH = "touch {pages}", Scope.WINDOW
    REMOVE_MARKERS = "remove {markers}", Scope.WINDOW

    @property
    def words(self) -> str:
        return self.value[0]

    @property
    def scope(self) -> Scope:
        return self.value[1]


@dataclass(frozen=True, slots=True)
class Change:
    """One change. ptes: those of the table that it is made to, one for each folio where it is made
    to folios. value: the knob's, or a number of pages or blocks. order: of the size that is enabled or freed.
    """

    kind: ChangeKind
    ptes: tuple[int, ...] = ()
    knob: str = ""
    value: int = 0
    order: int = 0


@dataclass(frozen=True, slots=True)
class Price:
    """What changes cost in the trial of one table, and what came of them, summed where several are.

    memory_added: by how many bytes the frames in use grow, the changes themselves included. tlb_entries:
    by how many more, or fewer, translations all of it is reached. copied_bytes: by the collapses, and by
    the writes that un-share pages.
    """

    memory_added: int = 0
    tlb_entries: int = 0
    copied_bytes: int = 0

    def __add__(self, other: Price) -> Price:
        return Price(
            self.memory_added + other.memory_added,
            self.tlb_entries + other.tlb_entries,
            self.copied_bytes + other.copied_bytes,
        )

    def scaled(self, many: int, few: int) -> Price:
        """The price of many such things, where this is that of few."""
        return Price(*(value * many // few for value in astuple(self)))


@dataclass(frozen=True, slots=True)
class Proposal:
    """Changes to be made together: then `grown` of the `held` pages are in larger folios.

    For a refusal that takes the proposal of its group, the PTEs and numbers are the example's.
    """

    changes: tuple[Change, ...]
    grown: int
    held: int
    price: Price


class Verified(StrEnum):
    """How sure a proposed change is."""

    RUN = "verified by running it"
    GROUP = "verified on another refusal of the same kind"
    NONE = "nothing tried lets it"


class Refusal(NamedTuple):
    """A run of PTEs of one table that met the same last gate.

    address: of the first PTE. span: PTEs it covers. pages: those of them that hold something (a page, a
    zero page, a swap or marker entry); mapped: those that hold memory, which pages alone do; distinct:
    those of them that no refusal before this one has, for several page tables may map a page. order: the
    order asked for last, None where a VMA was turned away. allowed_empty: where too few pages are there,
    the empty PTEs that would be allowed, None where no limit is; 0 where userfaultfd allows none.
    ended_earlier: the result ended the table before it got here. change: the least change that lets it,
    None where none is known.
    """

    pid: int
    address: int
    span: int
    pages: int
    order: int | None
    stage: RefusedAt
    status: Status
    allowed_empty: int | None = None
    ended_earlier: bool = False
    mapped: int = 0
    distinct: int = 0
    change: Proposal | None = None
    verified: Verified = Verified.NONE

    def changed_by(self, change: Proposal, verified: Verified) -> Refusal:
        """The same with a change; as _replace(), in a third of the time, as there may be many."""
        return Refusal(*self[:-2], change, verified)

    def covers(self, address: int, page_size: int) -> bool:
        """Whether the address lies among its PTEs, or in a hole between them."""
        return self.address <= address < self.address + self.span * page_size


class PageIs(Enum):
    """What is at an address, in words; those of mappings that are not modelled come last."""

    NONE = "no page"
    FOLIO = "in a folio of order {order}"
    ZERO = "the zero page, which holds no memory"
    SWAP = "swapped out"
    GUARD = "a guard region"
    HWPOISON = "a poisoned page"
    MIGRATION = "a page that is being moved"
    PRIVATE = "a page in a device's own memory"
    MARKER = "a marker of userfaultfd"
    FILE = "the file's page cache, or nothing: not modelled"
    SHMEM = "shared memory, or nothing: not modelled"
    SHARED = "shared memory or a file's page cache, or nothing: not modelled"
    HUGETLB = "a page of hugetlb, or nothing: not modelled"
    DEVICE = "what a device maps: not modelled"
    SPECIAL = "a page of the kernel's own: not modelled"


class PageAt(NamedTuple):
    """What is at an address. order: of the folio."""

    what: PageIs
    order: int = 0


@dataclass(frozen=True)
class TornUse:
    """How much of an answer rests on tables that changed while they were read; no refusal is given of
    them. bytes: held there before the run. collapsed_bytes: of all that were collapsed.
    """

    tables: int = 0
    bytes: int = 0
    collapsed_bytes: int = 0


@dataclass(frozen=True)
class WindowReport:
    """What is known about the table at one address. gate: why the mapping is passed by, None if it
    is scanned.

    highest: the highest order enabled for the mapping. before, after: the state strings of the
    table's part in the mapping (folios, entries). page_before, page_now: what is at the address.
    torn: whether the table changed while it was read. events: those about the table.
    """

    settings: Settings
    address: int
    start: int
    end: int
    name: str
    gate: VmaGate | None
    highest: int
    before: tuple[str, str]
    after: tuple[str, str]
    page_before: PageAt
    page_now: PageAt
    refusals: tuple[Refusal, ...]
    torn: bool
    events: tuple[Event, ...]


class DrawnCall(NamedTuple):
    """One call of a collapse, at a depth from 0: the kernel's name, what it does in plain words, and
    the locks held when it began, outermost first.
    """

    depth: int
    function: str
    what: str
    locks: tuple[str, ...]


class VmaUse(NamedTuple):
    """One mapping, before and after: bytes per folio order, and bytes of zero page and swap.

    gate: why the whole mapping was turned away, empty if it was scanned. memory_added: by the
    collapses in it.
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
    memory_added: int = 0


class ProcessUse(NamedTuple):
    """One process, before and after: the sums of its mappings. resident: where all of its memory was
    when it was captured.
    """

    pid: int
    name: str
    before: Mapping[int, int]
    after: Mapping[int, int]
    swapped: int
    memory_added: int
    resident: Resident

    def huge(self, order: int) -> tuple[int, int]:
        """Bytes in folios of an order or higher, before and after."""
        large, now = (
            sum(size for each, size in use.items() if each >= order)
            for use in (self.before, self.after)
        )
        return large, now


class Unknown(Enum):
    """What a capture leaves open, so that more or less may collapse; in words."""

    YOUNG = "which pages were used lately"
    LAZYFREE = "which pages that MADV_FREE gave up were written again"
    PINNED = "which pages are pinned"
    REGISTERED = "which processes khugepaged has on its list"
    SHARED = "which large folios that a fork left to one process still count as shared"


class Bounds(NamedTuple):
    """Between what the bytes lie that collapse in all. unknown: what is open. ends: the least and the
    most; None where they were not run."""

    unknown: tuple[Unknown, ...]
    ends: tuple[int, int] | None


@dataclass(frozen=True)
class Basis:
    """What an answer is about and rests on. usual: those of assumptions and unseen that every capture has."""

    target: str
    source: str
    profile: str
    profile_reason: str
    assumptions: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    usual: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Outcome:
    """What khugepaged made of a target. `complete` is false after an interrupt or a pass limit.

    orders_before, orders_after: order -> use, of anonymous memory of the target. partly_before,
    partly_after: those of its folios that are mapped in part. resident: where all of its memory was
    when it was captured.
    tlb_before, tlb_after: translations needed to reach all of it, under the `tlb` model.
    attempts: (order, status) -> how many there were, over all passes.
    timeline: a point for each wakeup in which anything changed. others: None where they were not counted.
    alternatives: what other settings would give, by their names, where nothing is enabled. bounds: None
    where the target leaves nothing open that decides. registered: pid -> whether khugepaged has it on its
    list, None: not known; taken_off: those that are not known and taken not to be.
    free_memory: bytes that were free when it was captured; None where that is not said.
    """

    basis: Basis
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
    attempts: Mapping[tuple[int, ScanResult], int]
    counters: Mapping[str, Mapping[str, int]]
    refusals: tuple[Refusal, ...] = ()
    torn: TornUse = TornUse()
    vmas: tuple[VmaUse, ...] = ()
    by_process: tuple[ProcessUse, ...] = ()
    warnings: tuple[str, ...] = ()
    timeline: tuple[TimePoint, ...] = ()
    others: Others | None = None
    alternatives: Mapping[str, Outcome] = field(default_factory=dict)
    bounds: Bounds | None = None
    registered: Mapping[int, bool | None] = field(default_factory=dict)
    taken_off: frozenset[int] = frozenset()
    free_memory: int | None = None
    partly_before: PartlyMapped = PartlyMapped()
    partly_after: PartlyMapped = PartlyMapped()
    resident: Resident | None = None
    seconds: float = 0.0
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def large_bytes(self) -> int:
        """Bytes in folios of the highest enabled order or more, afterwards."""
        least = self.pmd_order if self.highest_order is None else self.highest_order
        return sum(use.bytes for order, use in self.orders_after.items() if order >= least)

    @cached_property
    def nothing_enabled(self) -> bool:
        """Whether no mapping is scanned, and there are some that would be if a size were enabled."""
        if self.highest_order is not None:
            return False
        return any(refusal.status is VmaGate.NOT_ENABLED for refusal in self.refusals)

    @property
    def short_of_memory(self) -> bool:
        """Whether the kernel would have had to make room for what is predicted, or for what was refused."""
        fails = ScanResult.ALLOC_HUGE_PAGE_FAIL in {status for _, status in self.attempts}
        return self.free_memory is not None and (fails or self.memory_added > self.free_memory)

    @property
    def effort(self) -> Effort:
        """What all attempts cost together."""
        return self.successes + self.refused


@dataclass(frozen=True)
class Advised:
    """What one madvise(MADV_COLLAPSE) of [start, end) would do.

    name: of the first of the mappings there. error: 0, or the errno; None where it comes to a file
    mapping, for which that is not modelled. gate: why the mapping that ended the call is refused as a
    whole, None where a window ended it, or nothing. windows: whole aligned PMD ranges there.
    already_huge: windows that a PMD mapped before. refused: result -> windows; torn: others, whose table
    changed while it was read.
    """

    pid: int
    start: int
    end: int
    name: str
    mappings: int
    error: int | None
    gate: VmaGate | None
    windows: int
    collapsed: int
    already_huge: int
    refused: Mapping[ScanResult, int]
    memory_added: int
    torn: int = 0

    @property
    def not_tried(self) -> int:
        """Windows behind the one, or the mapping, that ended the call."""
        tried = self.collapsed + self.already_huge + sum(self.refused.values()) + self.torn
        return self.windows - tried


class BlocksByType(NamedTuple):
    """Free blocks of PMD size. movable: in movable pageblocks. claimed: in pageblocks that become movable
    with them, by type; kept: that no movable allocation is given. emptied: pageblocks that compaction can
    empty, of all; None where those are of another size.
    """

    movable: int
    claimed: Mapping[str, int]
    kept: Mapping[str, int]
    emptied: int | None
    all: int


@dataclass(frozen=True)
class HugeShare:
    """How much of the anonymous memory in the ranges of some calls PMDs map, in bytes. total, before: when
    they began; mapped, huge: afterwards. in_windows: what lies in whole aligned windows. refused: result ->
    what windows hold that are refused for it.

    blocks: free blocks of PMD size when they began, those that larger ones split into with them; None where
    that is not said, or no end is seen of them. needed: windows that took one. by_type: the same by the types
    of their pageblocks; None where the capture does not say.
    """

    total: int
    before: int
    mapped: int
    huge: int
    in_windows: int
    refused: Mapping[ScanResult, int]
    blocks: int | None
    needed: int
    pmd_size: int
    by_type: BlocksByType | None = None

    @property
    def most(self) -> int:
        """What PMDs map if compaction empties every pageblock that it can."""
        if self.by_type is None or self.by_type.emptied is None:
            return self.huge
        there = self.by_type.emptied + sum(self.by_type.claimed.values())
        lacking = max(self.needed - there, 0)
        return self.huge - lacking * self.pmd_size

    @property
    def not_tried(self) -> int:
        """In windows that no call came to."""
        return self.in_windows - self.huge - sum(self.refused.values())

    @property
    def least(self) -> int:
        """What PMDs map if no more blocks are free than there were: neither reclaim nor compaction makes any.
        What the others would have filled is counted as mapped nevertheless."""
        lacking = 0 if self.blocks is None else max(self.needed - self.blocks, 0)
        return self.huge - lacking * self.pmd_size


@dataclass(frozen=True)
class AdvisedOutcome:
    """What MADV_COLLAPSE made of a target, call by call. complete: false after an interrupt."""

    basis: Basis
    geometry: Geometry
    ranges: tuple[Advised, ...]
    orders_before: Mapping[int, OrderUse]
    orders_after: Mapping[int, OrderUse]
    memory_added: int
    copied_bytes: int
    swapped_in_bytes: int
    share: HugeShare
    complete: bool
    torn: TornUse = TornUse()
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
