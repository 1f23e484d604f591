# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernel's collapse runs: each point where kernels differ, as a policy with its reason.

v16 is the patch as posted in April 2026; 7.3 is what was merged (first release 7.2); pmd-only is
every kernel before. The order walk is 7.3's under every profile.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType


class Orders(Enum):
    """Orders khugepaged may collapse to."""

    PMD_ONLY = "the PMD order alone"
    ANON = "2 to the PMD order"


class Guard(Enum):
    """What happens where a PMD that must be none is not."""

    BUG_ON = "BUG_ON: the kernel stops"
    WARN_ON_ONCE = "WARN_ON_ONCE: one warning a boot, then the PMD is overwritten"
    VM_WARN_ON_ONCE = "VM_WARN_ON_ONCE: silent without CONFIG_DEBUG_VM, then overwritten"


class Install(Enum):
    """How PTEs of a new folio below PMD order become visible."""

    PTES_THEN_PMD = "PTEs set under the pmd lock, smp_wmb, then pmd_populate"
    PMD_THEN_PTES = "pmd_populate, then PTEs, under the pmd lock and the PTE lock nested"


class IntermediateNone(Enum):
    """What max_ptes_none other than 0 and the maximum means below PMD order."""

    REFUSE = "no collapse below PMD order"
    ZERO = "warn once and act as 0"


class UnmapOrder(Enum):
    """When the PTE table is unmapped on the way out."""

    BEFORE_ANON_VMA_UNLOCK = "pte_unmap, then anon_vma unlock"
    AFTER_ANON_VMA_UNLOCK = "anon_vma unlock, then pte_unmap"


class DeferredMemcg(Enum):
    """Whether a deferred memcg allocation failure is looked for."""

    CHECKED = "checked after the charge: alloc_huge_page_failed"
    UNKNOWN = "not checked"


class Lazyfree(Enum):
    """What khugepaged does at a clean MADV_FREE page."""

    REFUSE = "page_lazyfree: the table (or window) is refused"
    COLLAPSE = "collapsed like any other page"


class ScanCost(Enum):
    """What a scanned table costs of pages_to_scan."""

    PER_PTE = "one for each entry looked at"
    PER_PMD = "a whole table, whatever was looked at"


class EmptyRange(Enum):
    """What MADV_COLLAPSE answers where no aligned PMD range fits into what was asked."""

    ZERO = "0: there is nothing to do"
    UNDERFLOW = "-EINVAL if the rounded start lies behind the rounded end, else 0"


class MissingTable(Enum):
    """What MADV_COLLAPSE does after a range without a page table."""

    GO_ON = "the range has failed, and the next is tried"
    END = "the call ends there"


class SwapIn(Enum):
    """How a fault reads from a synchronous device."""

    CACHED = "through the swap cache, in the largest folio that fits"
    BYPASS = "past the swap cache if one PTE names the slot; else single pages, which stay in it"


class FaultUse(Enum):
    """What a folio that a fault brings to the LRU shows of its use."""

    REFERENCED = "PG_referenced is set: khugepaged counts its pages as referenced"
    GENERATION = "nothing once it is on the LRU: its generation alone tells"


class PmdModify(Enum):
    """What becomes of the dirty bit of a writable huge PMD whose protection changes."""

    CLEANED = "it is lost: x86's pmd_modify() masks it out"
    KEPT = "it stays, as at a PTE"


class SharedSplit(Enum):
    """How a huge page that several processes map is split."""

    ONE_PMD = (
        "the walk ends with the first PMD that it splits: the page is split only if that was all"
    )
    EVERY_PMD = "every PMD is split, and then the page"


class OtherPmd(Enum):
    """What a walk over a folio's mappings does at a PMD that maps another huge page."""

    ENDS = "it ends for this VMA: pages of the folio behind it are not found"
    PASSED = "it goes on behind it"


class HugepageMadvise(Enum):
    """When MADV_HUGEPAGE puts the process on khugepaged's list."""

    ANY_CALL = "at every call, by the whole mapping, also where it was advised before"
    FLAGS_CHANGE = "where a mapping's flags change, and by what has them then"


@dataclass(frozen=True)
class Profile:
    """What one kernel does at each point. debug_vm: CONFIG_DEBUG_VM is set."""

    name: str
    kernels: str
    orders: Orders
    install: Install
    guard: Guard
    intermediate_none: IntermediateNone
    unmap_order: UnmapOrder
    deferred_memcg: DeferredMemcg
    lazyfree: Lazyfree
    progress: ScanCost
    empty_range: EmptyRange
    missing_table: MissingTable
    swapin: SwapIn
    fault_use: FaultUse
    pmd_modify: PmdModify
    shared_split: SharedSplit
    other_pmd: OtherPmd
    hugepage_madvise: HugepageMadvise
    debug_vm: bool = False


V16 = Profile(
    name="v16",
    kernels="the series as posted in April 2026, v16",
    orders=Orders.ANON,
    install=Install.PTES_THEN_PMD,
    guard=Guard.WARN_ON_ONCE,
    intermediate_none=IntermediateNone.REFUSE,
    unmap_order=UnmapOrder.AFTER_ANON_VMA_UNLOCK,
    deferred_memcg=DeferredMemcg.UNKNOWN,
    lazyfree=Lazyfree.REFUSE,
    progress=ScanCost.PER_PTE,
    empty_range=EmptyRange.ZERO,
    missing_table=MissingTable.GO_ON,
    swapin=SwapIn.CACHED,
    fault_use=FaultUse.REFERENCED,
    pmd_modify=PmdModify.CLEANED,
    shared_split=SharedSplit.EVERY_PMD,
    other_pmd=OtherPmd.PASSED,
    hugepage_madvise=HugepageMadvise.FLAGS_CHANGE,
)
V7_3 = Profile(
    name="7.3",
    kernels="7.2 and later, as merged",
    orders=Orders.ANON,
    install=Install.PMD_THEN_PTES,
    guard=Guard.VM_WARN_ON_ONCE,
    intermediate_none=IntermediateNone.ZERO,
    unmap_order=UnmapOrder.BEFORE_ANON_VMA_UNLOCK,
    deferred_memcg=DeferredMemcg.CHECKED,
    lazyfree=Lazyfree.REFUSE,
    progress=ScanCost.PER_PTE,
    empty_range=EmptyRange.ZERO,
    missing_table=MissingTable.GO_ON,
    swapin=SwapIn.CACHED,
    fault_use=FaultUse.REFERENCED,
    pmd_modify=PmdModify.KEPT,
    shared_split=SharedSplit.EVERY_PMD,
    other_pmd=OtherPmd.PASSED,
    hugepage_madvise=HugepageMadvise.FLAGS_CHANGE,
)
PMD_ONLY = Profile(
    name="pmd-only",
    kernels="before 7.2",
    orders=Orders.PMD_ONLY,
    install=Install.PMD_THEN_PTES,
    guard=Guard.BUG_ON,
    intermediate_none=IntermediateNone.ZERO,
    unmap_order=UnmapOrder.BEFORE_ANON_VMA_UNLOCK,
    deferred_memcg=DeferredMemcg.UNKNOWN,
    lazyfree=Lazyfree.COLLAPSE,
    progress=ScanCost.PER_PMD,
    empty_range=EmptyRange.UNDERFLOW,
    missing_table=MissingTable.END,
    swapin=SwapIn.BYPASS,
    fault_use=FaultUse.GENERATION,
    pmd_modify=PmdModify.CLEANED,
    shared_split=SharedSplit.ONE_PMD,
    other_pmd=OtherPmd.ENDS,
    hugepage_madvise=HugepageMadvise.ANY_CALL,
)

PROFILES: Mapping[str, Profile] = MappingProxyType({p.name: p for p in (V16, V7_3, PMD_ONLY)})

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "orders": "collapse_huge_page() took an order and an offset with this series; before it, "
        "khugepaged knew one size.",
        "install": "update_mmu_cache_range() walks the live table on some architectures (MIPS), so "
        "the table is published first, under both locks; __folio_mark_uptodate() already orders "
        "the contents before the mapping, so the barrier went.",
        "guard": "the series replaced BUG_ON; a reviewer who would rather crash than corrupt did "
        "not prevail, and it was merged as a debug check.",
        "intermediate_none": "a limit between the ends lets a window grow to the next size on every "
        "later scan; v16 refused it, the merged code falls back to 0.",
        "unmap_order": "pte_unmap moved to the common exit with the new error paths; the order "
        "against the anon_vma unlock changed once more before 7.3.",
        "deferred_memcg": "the memcg list_lru for the deferred split queue may fail to be allocated; "
        "merged code looks at it before any lock is taken.",
        "lazyfree": "collapsing a page given up by MADV_FREE would make it unfreeable again.",
        "empty_range": "the number of ranges was computed without looking whether it is negative; "
        "seen on 6.18.",
        "missing_table": "an empty PMD and a missing page of PMDs were two results, of which the first "
        "ended the call, until they became one; seen on 6.18.",
        "swapin": "the swap cache was passed by to save its cost, until the swap table made it cheap; seen "
        "on 6.18.",
        "fault_use": "multi-generational LRU: aging was reworked to count uses of anonymous memory too; seen "
        "on 6.18 and 7.3.",
        "pmd_modify": "a mask meant for shadow stacks (6.4) lost the bit, and with it what was stored after "
        "MADV_FREE, until it was noticed in September 2026; seen on 6.18, and mended on 7.2.12 and 7.3.",
        "shared_split": "try_to_migrate() stopped after a PMD since 6.16, until 'fix early failure "
        "try_to_migrate() when split huge pmd for shared THP' (7.0, 6.18.20); seen on 6.18.15.",
        "other_pmd": "page_vma_mapped_walk() took a PMD for all that a VMA can have of a folio, but mremap() "
        "puts a folio across two; seen on 6.18.",
        "hugepage_madvise": "madvise_update_vma() registers since the flags are no longer set by the "
        "function that did; seen on 6.18.15, and no longer on 7.2.12 and 7.3.",
        "progress": "progress is counted at each entry since the scan loops were merged.",
    }
)

DEFAULT = V7_3


def profile_for_release(release: str) -> Profile:
    """The profile of a kernel release such as 6.12.9-amd64; the default where it says nothing."""
    match = re.match(r"(\d{1,9})\.(\d{1,9})", release)
    if match is None:
        return DEFAULT
    return V7_3 if (int(match[1]), int(match[2])) >= (7, 2) else PMD_ONLY


def differences(a: Profile, b: Profile) -> list[tuple[str, Enum, Enum, str]]:
    """Yield (point, in a, in b, reason) for each point where two profiles differ."""
    return [
        (point, getattr(a, point), getattr(b, point), reason)
        for point, reason in REASONS.items()
        if getattr(a, point) is not getattr(b, point)
    ]
