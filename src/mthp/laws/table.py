# SPDX-License-Identifier: GPL-2.0-or-later
"""The laws: each law's number, its sentence, and its functions by the moment they look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from types import MappingProxyType

from mthp.laws import at_rest, mappings, observations, steps, trail, use
from mthp.laws.broken import Broken

Check = Callable[..., Iterator[Broken]]


class Moment(Enum):
    """When a law looks at a world; what its function is given then."""

    REST = auto()
    """No task works: (Rest)."""
    END = auto()
    """Every task of a race has ended: (Rest)."""
    OBSERVED = auto()
    """Then what was reported is held against the end: (Observations, Census)."""
    COLLAPSED = auto()
    """Only khugepaged has worked: (Census before, Census now)."""
    ALONE = auto()
    """The same, in a race's world, where nobody else changed a mapping either."""
    COUNTED = auto()
    """Any tasks have worked: (Census before, Census now)."""
    ABORTED = auto()
    """Only khugepaged has worked, and did not succeed: (Census before, Census now)."""
    GAVE_UP = auto()
    """An attempt of a collapser did not succeed: (Trail)."""
    STORED_LATE = auto()
    """A page was stored to after a collapse that succeeded had copied it: (Ghost, page, task's name)."""
    REPORT = auto()
    """Something was reported: (Ghost, report)."""
    USES_PTE = auto()
    """The running task is about to read or change a PTE, or lets others see a store to it later: (Ghost,
    Step)."""
    CHANGES_PTE = auto()
    """It has changed one, or has stored to it like that: (Ghost, Step)."""
    BEFORE_PTE = auto()
    """A task, or a late store, is about to take a step of this kind, or has taken it: (Ghost, Step)."""
    AFTER_PTE = auto()
    BEFORE_PMD = auto()
    AFTER_PMD = auto()
    BEFORE_CONTENT = auto()
    BEFORE_FLAGS = auto()
    BEFORE_VMA_LOCK = auto()
    BEFORE_ANON_VMA_LOCK = auto()
    BEFORE_MMAP_LOCK = auto()


@dataclass(frozen=True)
class Law:
    """sentence: what must hold. checks: the functions that yield what breaks it, by their moment."""

    number: int
    sentence: str
    checks: Mapping[Moment, Check] = field(default_factory=dict)


# fmt: off
_LAWS = (
    Law(1, "no page, table, lock, VMA, anon_vma or mm is used after it was freed",
        {Moment.REST: at_rest.law_1_freed_memory_is_unreachable,
         Moment.OBSERVED: observations.law_1_failed_memory_is_not_mapped,
         Moment.BEFORE_PTE: steps.law_1_tables,
         Moment.BEFORE_CONTENT: steps.law_1_contents,
         Moment.BEFORE_FLAGS: steps.law_1_flags,
         Moment.BEFORE_ANON_VMA_LOCK: steps.law_1_anon_vmas}),
    Law(2, "before the copy, no CPU and no secondary MMU can still write a source, and a TLB "
        "never holds small and huge entries of one address, nor a right that was taken",
        {Moment.REST: at_rest.law_2_tlbs_agree_with_the_page_table,
         Moment.STORED_LATE: steps.law_2_copies,
         Moment.REPORT: steps.law_2_tlbs}),
    Law(3, "a load sees the last store, and an exclusively pinned page stays the mapped page",
        {Moment.END: at_rest.law_3_mapped_pages_are_up_to_date,
         Moment.OBSERVED: observations.law_3_the_last_store_is_read,
         Moment.COLLAPSED: at_rest.law_3_loads_see_what_was_stored,
         Moment.STORED_LATE: steps.law_3_copies,
         Moment.REPORT: steps.law_3_loads}),
    Law(4, "mapcounts are the mappings that exist, and no migration entry outlives its "
        "migration",
        {Moment.REST: at_rest.law_4_mapcounts_are_mappings,
         Moment.AFTER_PTE: use.law_4_ptes,
         Moment.AFTER_PMD: use.law_4_pmds,
         Moment.END: at_rest.law_4_migrations_have_ended}),
    Law(5, "reference counts are explained by mappings, swap cache, batches and pins, and "
        "counters move as what they count",
        {Moment.REST: at_rest.law_5_references_are_explained,
         Moment.END: mappings.law_5_mapped_folios_are_charged,
         Moment.COUNTED: at_rest.law_5_books_are_kept}),
    Law(6, "a table is linked, deposited, detached by one task, or being freed; never two of "
        "them",
        {Moment.REST: at_rest.law_6_every_table_is_linked_or_deposited,
         Moment.BEFORE_PTE: steps.law_6_walks,
         Moment.USES_PTE: steps.law_6_frees,
         Moment.CHANGES_PTE: steps.law_6_fills,
         Moment.AFTER_PMD: steps.law_6_links}),
    Law(7, "a PMD or PTE that points to something is never overwritten, and nothing is mapped twice",
        {Moment.REST: at_rest.law_7_nothing_is_overwritten_or_mapped_twice,
         Moment.AFTER_PTE: steps.law_7_ptes,
         Moment.AFTER_PMD: steps.law_7_pmds}),
    Law(8, "userfaultfd and soft-dirty marks survive",
        {Moment.OBSERVED: observations.law_8_marks_are_there,
         Moment.COLLAPSED: at_rest.law_8_marks_survive,
         Moment.AFTER_PTE: steps.law_8_ptes,
         Moment.AFTER_PMD: steps.law_8_pmds}),
    Law(9, "locks, RCU and PTE maps balance, no task waits for ever, and what a lock guards "
        "is not changed without it",
        {Moment.REST: at_rest.law_9_locks_balance,
         Moment.CHANGES_PTE: steps.law_9_ptes,
         Moment.AFTER_PMD: use.law_9_pmds,
         Moment.REPORT: steps.law_9_hooks}),
    Law(10, "what was learnt under a lock is not used after the lock was let go, nor a table after "
        "its map was",
        {Moment.USES_PTE: use.law_10_tables,
         Moment.BEFORE_VMA_LOCK: steps.law_10_vmas,
         Moment.REPORT: steps.law_10_ranges}),
    Law(11, "a collapse that gives up leaves everything as it was",
        {Moment.ABORTED: at_rest.law_11_an_abort_leaves_everything,
         Moment.GAVE_UP: trail.law_11_nothing_of_it_is_left}),
    Law(12, "a completed zap stays zapped",
        {Moment.OBSERVED: observations.law_12_zapped_addresses_are_empty}),
    Law(13, "khugepaged touches only mms and mappings that are fully built and alive",
        {Moment.REST: at_rest.law_13_only_live_mms_are_scanned,
         Moment.END: at_rest.law_13_ended_mms_are_not_listed,
         Moment.BEFORE_PMD: steps.law_13_pmds,
         Moment.AFTER_PMD: use.law_13_spans,
         Moment.BEFORE_VMA_LOCK: steps.law_13_vmas,
         Moment.BEFORE_MMAP_LOCK: steps.law_13_mms}),
    Law(14, "a mapping lies inside its VMA and allows no more than it does, and a collapse leaves VMAs "
        "as they are",
        {Moment.END: mappings.law_14_mappings_lie_in_their_vmas,
         Moment.OBSERVED: observations.law_14_rights_that_were_taken_stay_so,
         Moment.ALONE: mappings.law_14_vmas_stay}),
    Law(15, "rmap finds every mapping of a folio",
        {Moment.END: mappings.law_15_rmap_finds_every_mapping}),
    Law(16, "a folio's flags, and the young and dirty bits of its mappings, are those that its history "
        "demands",
        {Moment.END: mappings.law_16_flags_fit_the_mappings,
         Moment.COLLAPSED: mappings.law_16_locked_mappings_are_mlocked,
         Moment.OBSERVED: mappings.law_16_new_folios_are_as_their_vma_wants,
         Moment.AFTER_PTE: use.law_16_ptes,
         Moment.AFTER_PMD: use.law_16_pmds}),
    Law(17, "memory that failed is not read",
        {Moment.BEFORE_CONTENT: use.law_17_contents}),
)
# fmt: on
LAWS: Mapping[int, Law] = MappingProxyType({law.number: law for law in _LAWS})
_CHECKS = {
    moment: tuple(law.checks[moment] for law in LAWS.values() if moment in law.checks)
    for moment in Moment
}


def broken_at(moment: Moment, *given: object) -> Iterator[Broken]:
    """What breaks any law at a moment."""
    for check in _CHECKS[moment]:
        yield from check(*given)
