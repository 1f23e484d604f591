# SPDX-License-Identifier: GPL-2.0-or-later
"""What must still hold after mmap_lock was let go. Kernel: mm/khugepaged.c."""

from __future__ import annotations

from enum import Enum

from mthp.khugepaged.control import CollapseControl
from mthp.khugepaged.eligibility import collapse_test_exit_or_disable
from mthp.mm.huge_mm import Tva, thp_vma_allowable_orders, thp_vma_suitable_order
from mthp.mm.mm_types import Mm, PmdPtr, Vma, vma_is_anonymous
from mthp.mm.pgtable import mm_find_pmd, pmdp_get_lockless
from mthp.mm.pgtable_types import (
    pmd_bad,
    pmd_is_migration_entry,
    pmd_is_table,
    pmd_none,
    pmd_present,
    pmd_trans_huge,
)
from mthp.words.results import Refused, ScanResult
from mthp.words.units import Address, Order


class Expect(Enum):
    """What must be found: whether the VMA must be anonymous memory with an anon_vma."""

    ANON = "anonymous"
    ANY = "anything"


def hugepage_vma_revalidate(
    mm: Mm, address: Address, expect: Expect, cc: CollapseControl, order: Order
) -> Vma:
    """Find the VMA that now stands at the PMD range of address. Caller holds mmap_lock.

    Refused: ANY_PROCESS, VMA_NULL, ADDRESS_RANGE (the VMA must span the whole PMD at any order),
    VMA_CHECK, PAGE_ANON. Kernel: mm/khugepaged.c, hugepage_vma_revalidate().
    """
    mm.mmap_lock.assert_held()
    if collapse_test_exit_or_disable(mm):
        raise Refused(ScanResult.ANY_PROCESS)
    vma = mm.find_vma(address)
    if vma is None:
        raise Refused(ScanResult.VMA_NULL)
    if not thp_vma_suitable_order(vma, address, mm.geometry.pmd_order):
        raise Refused(ScanResult.ADDRESS_RANGE)
    tva = Tva.KHUGEPAGED if cc.is_khugepaged else Tva.FORCED_COLLAPSE
    if not thp_vma_allowable_orders(vma, vma.vm_flags, tva, 1 << order):
        raise Refused(ScanResult.VMA_CHECK)
    if expect is Expect.ANON and (vma.anon_vma is None or not vma_is_anonymous(vma)):
        raise Refused(ScanResult.PAGE_ANON)
    return vma


def check_pmd_state(pmd: PmdPtr) -> None:
    """See that the PMD points to a table. Refused: NO_PTE_TABLE, PMD_MAPPED.

    Kernel: mm/khugepaged.c, check_pmd_state().
    """
    pmdval = pmdp_get_lockless(pmd)
    if pmd_is_table(pmdval):
        return  # the usual case, and the only one that passes all of these:
    if pmd_none(pmdval):
        raise Refused(ScanResult.NO_PTE_TABLE)
    if pmd_is_migration_entry(pmdval):
        raise Refused(ScanResult.PMD_MAPPED)
    if not pmd_present(pmdval):
        raise Refused(ScanResult.NO_PTE_TABLE)
    if pmd_trans_huge(pmdval):
        raise Refused(ScanResult.PMD_MAPPED)
    if pmd_bad(pmdval):
        raise Refused(ScanResult.NO_PTE_TABLE)


def find_pmd_or_thp_or_none(mm: Mm, address: Address) -> PmdPtr:
    """Find the PMD slot of address, which must point to a table. Refused as check_pmd_state().

    Kernel: mm/khugepaged.c, find_pmd_or_thp_or_none().
    """
    pmd = mm_find_pmd(mm, address)
    if pmd is None:
        raise Refused(ScanResult.NO_PTE_TABLE)
    check_pmd_state(pmd)
    return pmd


def check_pmd_still_valid(mm: Mm, address: Address, pmd: PmdPtr) -> None:
    """See that address has the PMD it had, and that it points to a table.

    Refused: as check_pmd_state(), or FAIL if another page of PMDs stands there now.

    Kernel: mm/khugepaged.c, check_pmd_still_valid().
    """
    if find_pmd_or_thp_or_none(mm, address) != pmd:
        raise Refused(ScanResult.FAIL)
