# SPDX-License-Identifier: GPL-2.0-or-later
"""What a step of the collapse can answer.

Kernel: mm/khugepaged.c (enum scan_result), include/trace/events/huge_memory.h (SCAN_STATUS).
"""

from __future__ import annotations

from enum import Enum, IntEnum


class ScanResult(IntEnum):
    """The kernel's enum scan_result, in its order, with the tracepoints' strings."""

    string: str
    __hash__ = int.__hash__

    def __new__(cls, value: int, string: str) -> ScanResult:
        member = int.__new__(cls, value)
        member._value_ = value
        member.string = string
        return member

    FAIL = 0, "failed"
    SUCCEED = 1, "succeeded"
    NO_PTE_TABLE = 2, "no_pte_table"
    PMD_MAPPED = 3, "page_pmd_mapped"
    EXCEED_NONE_PTE = 4, "exceed_none_pte"
    EXCEED_SWAP_PTE = 5, "exceed_swap_pte"
    EXCEED_SHARED_PTE = 6, "exceed_shared_pte"
    PTE_NON_PRESENT = 7, "pte_non_present"
    PTE_UFFD = 8, "pte_uffd_wp"
    PTE_MAPPED_HUGEPAGE = 9, "pte_mapped_hugepage"
    LACK_REFERENCED_PAGE = 10, "lack_referenced_page"
    PAGE_NULL = 11, "page_null"
    SCAN_ABORT = 12, "scan_aborted"
    PAGE_COUNT = 13, "not_suitable_page_count"
    PAGE_LRU = 14, "page_not_in_lru"
    PAGE_LOCK = 15, "page_locked"
    PAGE_ANON = 16, "page_not_anon"
    PAGE_LAZYFREE = 17, "page_lazyfree"
    PAGE_COMPOUND = 18, "page_compound"
    ANY_PROCESS = 19, "no_process_for_page"
    VMA_NULL = 20, "vma_null"
    VMA_CHECK = 21, "vma_check_failed"
    ADDRESS_RANGE = 22, "not_suitable_address_range"
    DEL_PAGE_LRU = 23, "could_not_delete_page_from_lru"
    ALLOC_HUGE_PAGE_FAIL = 24, "alloc_huge_page_failed"
    CGROUP_CHARGE_FAIL = 25, "ccgroup_charge_failed"
    TRUNCATED = 26, "truncated"
    PAGE_HAS_PRIVATE = 27, "page_has_private"
    STORE_FAILED = 28, "store_failed"
    COPY_MC = 29, "copy_poisoned_page"
    PAGE_FILLED = 30, "page_filled"
    PAGE_DIRTY_OR_WRITEBACK = 31, "page_dirty_or_writeback"


FILE_ONLY = frozenset(
    {
        ScanResult.PAGE_COMPOUND,
        ScanResult.TRUNCATED,
        ScanResult.PAGE_HAS_PRIVATE,
        ScanResult.STORE_FAILED,
        ScanResult.PAGE_FILLED,
        ScanResult.PAGE_DIRTY_OR_WRITEBACK,
    }
)
"""Results that only the file and shmem path returns; the anonymous path never does."""


class Refused(Exception):
    """An expected refusal: raised deep, caught once per public operation."""

    def __init__(self, result: ScanResult) -> None:
        super().__init__(result.string)
        self.result = result


class Rule(Enum):
    """The rules that the engine holds its own functions to."""

    COUNTS = "nothing is used after it was freed, nor freed while it is used"
    LOCKS = "locks are taken in order, held where they must be, and given back once"
    MAPS = "a page table that was mapped is unmapped once"
    USE = "nothing is used after it was given up"
    STATE = "what BUG_ON() and its like assert"


class KernelBug(Exception):
    """Raised when a rule of the protocol is broken. The engine never catches it."""

    def __init__(self, rule: Rule, text: str) -> None:
        super().__init__(text)
        self.rule = rule
