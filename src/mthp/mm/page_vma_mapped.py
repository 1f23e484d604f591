# SPDX-License-Identifier: GPL-2.0-or-later
"""One folio is looked for at one address, and the table that maps it is locked.

Kernel: mm/page_vma_mapped.c, mm/rmap.c (rmap_walk_anon).
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from mthp.machine.hold import Hold
from mthp.mm.mm_types import Kernel, Mm, PmdPtr
from mthp.mm.pgtable import PteMap, mm_find_pmd, pmd_lock, pmdp_get_lockless, pte_offset_map
from mthp.mm.pgtable_types import (
    Leaf,
    Pmd,
    Pte,
    is_huge_zero_pmd,
    leaf_kind,
    pmd_is_migration_entry,
    pmd_is_table,
    pmd_trans_huge,
    pte_none,
    pte_pfn,
    pte_present,
)
from mthp.words.units import Address, Folio, Pfn


def folio_lock(kernel: Kernel, folio: Folio) -> None:
    """Wait for a folio's lock and take it. Kernel: include/linux/pagemap.h, folio_lock()."""
    while not kernel.mem.folio_trylock(folio):
        kernel.mem.folio_wait_locked(folio)


class HugeMapping(NamedTuple):
    """A folio found by its PMD, which is locked. pmdval: what the slot holds."""

    pmd: PmdPtr
    ptl: Hold
    pmdval: Pmd


class Lookup(Enum):
    """How an entry is looked at that does not map the page. Kernel: PVMW_SYNC."""

    LOCKLESS = "and passed over: somebody may be about to change it"
    SYNC = "once it is locked: whoever works on it has finished"


def page_vma_mapped_walk(
    mm: Mm, address: Address, wanted: int, lookup: Lookup = Lookup.LOCKLESS
) -> HugeMapping | tuple[PteMap, Hold] | None:
    """Lock the PMD or PTE of address, if it maps page `wanted`; of -page, if it is its migration
    entry.

    A PMD that is none is passed over without a lock.
    Kernel: mm/page_vma_mapped.c, page_vma_mapped_walk(), map_pte(), check_pte(), check_pmd().
    """
    pmd = mm_find_pmd(mm, address)
    while pmd is not None:
        pmdval = pmdp_get_lockless(pmd)
        if pmd_trans_huge(pmdval) or pmd_is_migration_entry(pmdval):
            ptl = pmd_lock(pmd)
            pmdval = pmdp_get_lockless(pmd)
            if is_wanted_pmd(mm, pmdval, wanted):
                return HugeMapping(pmd, ptl, pmdval)
            ptl.release()
            if not pmd_is_table(pmdval):
                return None
            continue  # it was split under us
        if not pmd_is_table(pmdval):
            if lookup is Lookup.SYNC:
                sync_with_folio_pmd_zap(mm, pmd, Pfn(abs(wanted)))
            return None
        pte = pte_offset_map(mm.kernel, pmdval, address)
        assert pte is not None
        if lookup is Lookup.LOCKLESS and not is_wanted(pte.get(0), wanted):
            pte.unmap()
            return None
        ptl = pte.table.ptl.lock()
        if pmdp_get_lockless(pmd) != pmdval:
            ptl.release()
            pte.unmap()
            continue
        if is_wanted(pte.get(0), wanted):
            return pte, ptl
        ptl.release()
        pte.unmap()
        return None
    return None


def sync_with_folio_pmd_zap(mm: Mm, pmd: PmdPtr, page: Pfn) -> None:
    """Wait until the task that emptied a PMD, maybe the folio's, has finished with it.

    Divergence: done at any place of a folio as large as a table. Kernel: mm/internal.h.
    """
    mem = mm.kernel.mem
    if mem.order.raw[mem.page_folio(page)] >= mm.geometry.pmd_order:
        pmd_lock(pmd).release()


def map_pte(
    mm: Mm, address: Address, wanted: int, lookup: Lookup = Lookup.LOCKLESS
) -> tuple[PteMap, Hold] | None:
    """Find the PTE of a small folio, which no PMD maps."""
    found = page_vma_mapped_walk(mm, address, wanted, lookup)
    assert not isinstance(found, HugeMapping)
    return found


def is_wanted_pmd(mm: Mm, pmdval: Pmd, wanted: int) -> bool:
    """Whether a PMD maps the folio of page `wanted`; for -page, whether it is its migration entry."""
    first, page = pte_pfn(pmdval), abs(wanted)
    kind = pmd_trans_huge if wanted > 0 else pmd_is_migration_entry
    maps = kind(pmdval) and not is_huge_zero_pmd(pmdval)
    return maps and first <= page < first + mm.geometry.ptrs_per_pte


def is_wanted(pteval: Pte, wanted: int) -> bool:
    """Whether a PTE maps page `wanted`; for -page, whether it is that page's migration entry."""
    if pte_present(pteval):
        return pte_pfn(pteval) == wanted
    migrating = not pte_none(pteval) and leaf_kind(pteval) is Leaf.MIGRATION
    return migrating and pte_pfn(pteval) == -wanted
