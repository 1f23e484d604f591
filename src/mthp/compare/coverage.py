# SPDX-License-Identifier: GPL-2.0-or-later
"""Which results recorded passes have exercised, at which orders, and why the others were not seen.

What a result can come from is read off mm/khugepaged.c, for private anonymous memory.
"""

from __future__ import annotations

import errno as errnos
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from mthp.lab.geometry import ORDERS, PMD_ORDER, SMALL_ORDERS
from mthp.words.results import FILE_ONLY, ScanResult

_R = ScanResult


class OutcomeKind(StrEnum):
    """The kinds of outcomes that are counted: four tracepoints, and MADV_COLLAPSE's errno."""

    SCAN = "mm_khugepaged_scan_pmd"
    ATTEMPT = "mm_collapse_huge_page"
    ISOLATE = "mm_collapse_huge_page_isolate"
    SWAPIN = "mm_collapse_huge_page_swapin"
    ERRNO = "errno"


@dataclass(frozen=True, order=True)
class CountedOutcome:
    """An outcome that passes are counted by. order: None where the tracepoint has none.

    result: the tracepoint's string, or the errno's name ("0" for success).
    """

    kind: OutcomeKind
    result: str
    order: int | None = None


class Chance(StrEnum):
    """Whether a state made in the guest can lead to an outcome."""

    YES = "reachable"
    FILE = "of files and shmem alone"
    RACE = "needs a race, or a state no system call makes"
    NEVER = "excluded by an earlier step"


@dataclass(frozen=True)
class UnseenOutcome:
    """An outcome that no recorded pass has had, and why."""

    outcome: CountedOutcome
    chance: Chance
    reason: str


@dataclass
class OutcomeCounts:
    """How often each outcome was seen over many recorded passes."""

    passes: int = 0
    counts: Counter[CountedOutcome] = field(default_factory=Counter)

    def add_pass(self, events: Iterable[Mapping[str, Any]], errno: int | None = None) -> None:
        """Count one recorded pass: its events, and its errno (0 or negative; None for khugepaged)."""
        self.passes += 1
        self.counts.update(outcome for each in events if (outcome := outcome_of(each)) is not None)
        if errno is not None:
            name = errnos.errorcode.get(-errno, str(errno)) if errno else "0"
            self.counts[CountedOutcome(OutcomeKind.ERRNO, name)] += 1

    def unseen(self) -> list[UnseenOutcome]:
        """Every possible outcome that no pass has had, and why."""
        return [
            UnseenOutcome(each, *expectation(each))
            for each in every_outcome()
            if not self.counts[each]
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the outcomes seen, those never seen, and how many of the reachable were seen."""
        reachable = [each for each in every_outcome() if expectation(each)[0] is Chance.YES]
        return {
            "passes": self.passes,
            "reachable": len(reachable),
            "reached": sum(self.counts[each] > 0 for each in reachable),
            "seen": [
                {**_named(each), "count": n}
                for each, n in sorted(self.counts.items(), key=lambda item: _sort_key(item[0]))
            ],
            "never_seen": [
                {**_named(each.outcome), "chance": each.chance.value, "reason": each.reason}
                for each in self.unseen()
            ],
        }


def _named(outcome: CountedOutcome) -> dict[str, Any]:
    return {"kind": outcome.kind.value, "result": outcome.result, "order": outcome.order}


def _sort_key(outcome: CountedOutcome) -> tuple[int, int, int]:
    result = _BY_STRING.get(outcome.result)
    number = result if result is not None else len(ScanResult)
    return list(OutcomeKind).index(outcome.kind), number, outcome.order or 0


def outcome_of(event: Mapping[str, Any]) -> CountedOutcome | None:
    """The outcome that a recorded event counts as; None for an event without a result."""
    name = event["event"]
    if name not in set(OutcomeKind):
        return None
    kind = OutcomeKind(name)
    result = _BY_NUMBER[event["ret"]].string if kind is OutcomeKind.SWAPIN else str(event["status"])
    return CountedOutcome(kind, result, event.get("order"))


# --- what can be seen -----------------------------------------------------------------------

_Orders = dict[ScanResult, Sequence[int | None]]

ERRNOS = ("0", "EINVAL", "ENOMEM", "EBUSY", "EAGAIN")

_BY_ISOLATE: _Orders = {
    _R.EXCEED_NONE_PTE: ORDERS,
    _R.EXCEED_SHARED_PTE: ORDERS,  # at PMD order where swapped-in pages are shared
    _R.PTE_MAPPED_HUGEPAGE: SMALL_ORDERS,
    _R.PAGE_COUNT: SMALL_ORDERS,
    _R.LACK_REFERENCED_PAGE: SMALL_ORDERS,
    _R.PAGE_LOCK: (PMD_ORDER,),
}
_BY_SWAPIN: _Orders = {
    _R.EXCEED_SWAP_PTE: SMALL_ORDERS,
    _R.FAIL: (PMD_ORDER,),
}
_BY_ALLOCATION: _Orders = {_R.ALLOC_HUGE_PAGE_FAIL: ORDERS, _R.CGROUP_CHARGE_FAIL: ORDERS}
_SUCCESS: _Orders = {_R.SUCCEED: ORDERS}

_BY_SCAN = (
    _R.NO_PTE_TABLE,
    _R.PMD_MAPPED,
    _R.EXCEED_NONE_PTE,
    _R.EXCEED_SWAP_PTE,
    _R.EXCEED_SHARED_PTE,
    _R.PTE_UFFD,
    _R.PAGE_LAZYFREE,
    _R.PAGE_LRU,
    _R.PAGE_LOCK,
    _R.PAGE_COUNT,
    _R.LACK_REFERENCED_PAGE,
    _R.SUCCEED,
    _R.FAIL,
    _R.ALLOC_HUGE_PAGE_FAIL,
    _R.CGROUP_CHARGE_FAIL,
)
REACHABLE: dict[OutcomeKind, _Orders] = {
    OutcomeKind.SCAN: dict.fromkeys(_BY_SCAN, (None,)),
    OutcomeKind.ISOLATE: _SUCCESS | _BY_ISOLATE,
    OutcomeKind.SWAPIN: _SUCCESS | _BY_SWAPIN,
    OutcomeKind.ATTEMPT: _SUCCESS | _BY_ALLOCATION | _BY_ISOLATE | _BY_SWAPIN,
}
"""Kind -> result -> the orders at which a state made by system calls can lead to it; None: no order."""

_RACES: dict[ScanResult, str] = {
    _R.PTE_NON_PRESENT: "an entry must go between the scan, or the swap-in, and the isolation",
    _R.PTE_UFFD: "the scan refuses the whole table first: an entry must be protected after it",
    _R.PAGE_NULL: "anonymous private memory maps normal pages; a device page cannot be made here",
    _R.SCAN_ABORT: "needs NUMA nodes further apart than node_reclaim_distance",
    _R.PAGE_LOCK: "another task must hold a page's lock just then (at PMD order the attempt itself does,"
    " where one KSM page is mapped twice)",
    _R.PAGE_LRU: "the page must be isolated, or in an LRU batch, just then",
    _R.PAGE_ANON: "a private file mapping's page: only anonymous mappings are drawn",
    _R.PAGE_LAZYFREE: "the scan refuses the whole table first: MADV_FREE must come after it",
    _R.ANY_PROCESS: "the process must end while khugepaged is at it",
    _R.VMA_NULL: "the mapping must go while the lock is dropped",
    _R.VMA_CHECK: "the mapping's flags must change while the lock is dropped",
    _R.ADDRESS_RANGE: "the mapping must shrink while the lock is dropped",
    _R.DEL_PAGE_LRU: "the page must leave the LRU between the scan and its isolation",
    _R.COPY_MC: "a machine check while copying; MADV_HWPOISON unmaps the page instead",
    _R.NO_PTE_TABLE: "the table must go between the scan and the attempt",
    _R.PMD_MAPPED: "another collapse or fault must map the table between the scan and the attempt",
}
_COUNTED = "at PMD order the scan has looked at the same entries before, with the same limit"
_EXCLUDED: dict[tuple[OutcomeKind, ScanResult], str] = {
    (OutcomeKind.SCAN, _R.PTE_NON_PRESENT): "the scan counts such entries against max_ptes_swap",
    (OutcomeKind.SCAN, _R.PTE_MAPPED_HUGEPAGE): "mthp_collapse() does not report it",
    (OutcomeKind.ISOLATE, _R.LACK_REFERENCED_PAGE): _COUNTED,
    (OutcomeKind.ISOLATE, _R.PAGE_COUNT): _COUNTED,
    (OutcomeKind.ISOLATE, _R.PTE_MAPPED_HUGEPAGE): "asked below PMD order alone",
    (OutcomeKind.SWAPIN, _R.EXCEED_SWAP_PTE): "at PMD order the pages are swapped in",
    (OutcomeKind.SWAPIN, _R.FAIL): "below PMD order the first such entry ends the attempt",
}
_NOT_ITS_OWN = "this step does not return it"
_STEP_RESULTS: dict[OutcomeKind, frozenset[ScanResult]] = {
    OutcomeKind.SWAPIN: frozenset({_R.NO_PTE_TABLE, _R.PAGE_LOCK}),
    OutcomeKind.ISOLATE: frozenset(
        {
            _R.PTE_NON_PRESENT,
            _R.PTE_UFFD,
            _R.PAGE_NULL,
            _R.PAGE_LAZYFREE,
            _R.PAGE_LOCK,
            _R.DEL_PAGE_LRU,
        }
    ),
    OutcomeKind.SCAN: frozenset(_RACES) - {_R.PTE_NON_PRESENT},
    OutcomeKind.ATTEMPT: frozenset(_RACES) - {_R.SCAN_ABORT, _R.PAGE_LRU},
}
"""What a step can return besides, if something happens meanwhile that no program can cause."""


def every_outcome() -> Iterator[CountedOutcome]:
    """Every result at every order for every kind, reachable or not, in the order of the tables."""
    for result in ScanResult:
        yield CountedOutcome(OutcomeKind.SCAN, result.string)
    for kind in (OutcomeKind.ATTEMPT, OutcomeKind.ISOLATE, OutcomeKind.SWAPIN):
        for result in ScanResult:
            for order in ORDERS:
                yield CountedOutcome(kind, result.string, order)
    for name in ERRNOS:
        yield CountedOutcome(OutcomeKind.ERRNO, name)


_BY_NUMBER = {int(result): result for result in ScanResult}
_BY_STRING = {result.string: result for result in ScanResult}


def expectation(outcome: CountedOutcome) -> tuple[Chance, str]:
    """Whether states made by system calls can lead to an outcome, and the reason if they cannot."""
    if outcome.kind is OutcomeKind.ERRNO:
        if outcome.result == "ENOMEM":
            return Chance.RACE, "MADV_COLLAPSE reclaims and compacts: memory must stay short"
        return (Chance.YES, "") if outcome.result in ERRNOS else (Chance.NEVER, _NOT_ITS_OWN)
    result = _BY_STRING.get(outcome.result)
    if result is None:
        return Chance.NEVER, "no result of the enum"
    if result in FILE_ONLY:
        return Chance.FILE, "collapse_file() and hpage_collapse_scan_file() alone return it"
    if outcome.order in REACHABLE[outcome.kind].get(result, ()):
        return Chance.YES, ""
    return _why_not(outcome.kind, result)


def _why_not(kind: OutcomeKind, result: ScanResult) -> tuple[Chance, str]:
    kinds = (
        (kind, OutcomeKind.ISOLATE, OutcomeKind.SWAPIN) if kind is OutcomeKind.ATTEMPT else (kind,)
    )
    for each in kinds:
        if (each, result) in _EXCLUDED:
            return Chance.NEVER, _EXCLUDED[each, result]
    if result in _STEP_RESULTS[kind]:
        return Chance.RACE, _RACES[result]
    return Chance.NEVER, _NOT_ITS_OWN


def why_never_seen(result: ScanResult) -> str:
    """The reason why a result was not seen at any step or order, as one phrase."""
    if result in FILE_ONLY:
        return Chance.FILE.value
    if any(result in table for table in REACHABLE.values()):
        return "reachable, but not drawn so far"
    return _RACES[result]
