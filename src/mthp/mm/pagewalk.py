# SPDX-License-Identifier: GPL-2.0-or-later
"""The page behind one address is looked up. Kernel: mm/pagewalk.c."""

from __future__ import annotations

from mthp.mm.mm_types import Vma
from mthp.mm.pgtable import (
    mm_find_pmd,
    pmd_lock,
    pmdp_get_lockless,
    pte_offset_map_lock,
    unlocked_after,
)
from mthp.mm.pgtable_types import is_huge_zero_pmd, pmd_folio, pmd_trans_huge, pte_pfn, pte_present
from mthp.words.units import Address, Pfn


def folio_walk(vma: Vma, address: Address) -> Pfn | None:
    """The page that address maps, with a reference on its folio; None if it maps none.

    Kernel: mm/pagewalk.c, folio_walk_start(), folio_walk_end().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    pmd = mm_find_pmd(mm, address)
    if pmd is None:
        return None
    if pmd_trans_huge(pmdp_get_lockless(pmd)):
        with pmd_lock(pmd):
            pmdval = pmdp_get_lockless(pmd)
            if is_huge_zero_pmd(pmdval):
                return None
            if pmd_trans_huge(pmdval):
                kernel.mem.folio_get(pmd_folio(pmdval))
                return Pfn(pte_pfn(pmdval) + mm.geometry.pte_index(address))
    found = pte_offset_map_lock(mm, pmd, address)
    if found is None:
        return None
    with unlocked_after(kernel, found) as pte:
        pteval = pte.get(0)
        if not pte_present(pteval) or not pte_pfn(pteval):
            return None
        kernel.mem.folio_get(kernel.mem.page_folio(pte_pfn(pteval)))
        return pte_pfn(pteval)
