# SPDX-License-Identifier: GPL-2.0-or-later
"""What a scenario says of a process: its mappings, its advice, its cgroup, what is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

from mthp.image.runs import PagesState
from mthp.words.units import Geometry

MTHP_GAUGES = ("nr_anon", "nr_anon_partially_mapped")
"""Statistics of one folio size that kernels before mTHP collapse have too."""
MTHP_STATS = (
    "collapse_alloc",
    "collapse_alloc_failed",
    "collapse_exceed_none_pte",
    "collapse_exceed_swap_pte",
    "collapse_exceed_shared_pte",
    *MTHP_GAUGES,
)
"""The statistics of one folio size (hugepages-<size>kB/stats) whose changes a pass records."""
VMSTAT_COUNTERS = (
    "thp_collapse_alloc",
    "thp_collapse_alloc_failed",
    "thp_scan_exceed_none_pte",
    "thp_scan_exceed_swap_pte",
    "thp_scan_exceed_share_pte",
)
"""The counters of /proc/vmstat whose changes a pass records."""

_Key = TypeVar("_Key")


def changed(now: Mapping[_Key, int], before: Mapping[_Key, int]) -> dict[_Key, int]:
    """By how much counters changed, without those that did not."""
    return {key: value - before[key] for key, value in now.items() if value != before[key]}


RECORDED_EVENTS: dict[str, tuple[str, ...]] = {
    "attempt": ("address", "order"),
    "mm_collapse_huge_page_swapin": ("ret", "order", "swapped_in", "referenced"),
    "mm_collapse_huge_page_isolate": ("status", "order", "referenced", "none_or_zero"),
    "mm_collapse_huge_page": ("status", "order"),
    "mm_khugepaged_scan_pmd": ("status", "referenced", "none_or_zero", "unmapped"),
}
"""Event -> the fields that a recording keeps, in its order."""


class Action(StrEnum):
    """What was run over the state."""

    KHUGEPAGED = "khugepaged"
    MADVISE_COLLAPSE = "madvise_collapse"


class Advice(StrEnum):
    """A VMA's THP advice. Kernel: VM_HUGEPAGE, VM_NOHUGEPAGE."""

    HUGEPAGE = "hugepage"
    NOHUGEPAGE = "nohugepage"


class Prctl(StrEnum):
    """How PR_SET_THP_DISABLE is set for a process, whole or with PR_THP_DISABLE_EXCEPT_ADVISED."""

    DISABLE = "disable"
    EXCEPT_ADVISED = "except_advised"


@dataclass(frozen=True)
class Memcg:
    """The memory cgroup of the processes, in base pages."""

    limit_pages: int
    usage_pages: int


class KnownMm(NamedTuple):
    """One of the two processes that a large folio knows. mm: its number, None where it is none of the
    scenario's. mappings: how often the folio counts itself mapped by it, once by a PMD."""

    mm: int | None
    mappings: int


class CachedFolio(NamedTuple):
    """A folio in the swap cache. type, offset: the slot of its first page, in pages of that device. flags:
    letters of kpageflags. folio: its identity in the initial state, None where nobody maps a page of it."""

    type: int
    offset: int
    order: int
    flags: str
    folio: int | None


@dataclass(frozen=True)
class ScenarioVma:
    """One anonymous private mapping.

    start: bytes. pages: base pages. Ranges are (first page, pages) from the VMA's start: pins are
    held by long-lived GUP references, locked pages stay locked, off_lru ones are isolated from the
    LRU, poisoned ones fail to be copied; extra_refs has a number of references as third. mm: the
    number of its process. softdirty: None where the record does not say. anon_vma: false for a VMA
    that was only ever read. extra: fields we do not know.
    """

    start: int
    pages: int
    initial: PagesState
    advice: Advice | None = None
    mlocked: bool = False
    uffd_wp: bool = False
    anon_vma: bool = True
    pins: tuple[tuple[int, int], ...] = ()
    mm: int = 0
    droppable: bool = False
    read_only: bool = False
    ksm: bool = False
    softdirty: bool | None = None
    locked: tuple[tuple[int, int], ...] = ()
    off_lru: tuple[tuple[int, int], ...] = ()
    poisoned: tuple[tuple[int, int], ...] = ()
    extra_refs: tuple[tuple[int, int, int], ...] = ()
    thp_eligible: bool | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def end(self, geometry: Geometry) -> int:
        """The first address after the VMA, in bytes."""
        return self.start + (self.pages << geometry.page_shift)
