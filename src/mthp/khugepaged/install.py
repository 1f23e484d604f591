# SPDX-License-Identifier: GPL-2.0-or-later
"""Make the new folio reachable: by the PMD, or by PTEs of the old table.

Kernel: mm/khugepaged.c, the last part of collapse_huge_page().
"""

from __future__ import annotations

from mthp.mm.huge_memory import map_anon_folio_pmd_nopf
from mthp.mm.memory import map_anon_folio_pte_nopf
from mthp.mm.mm_types import Kernel, PmdPtr, Vma
from mthp.mm.page_flags import PG_UPTODATE
from mthp.mm.pgtable import (
    PteMap,
    pgtable_trans_huge_deposit,
    pmd_lock,
    pmd_populate,
    pmdp_get_lockless,
)
from mthp.mm.pgtable_types import Pmd, pmd_none, pmd_pgtable
from mthp.words.profiles import Install
from mthp.words.units import Address, Folio


def guard_pmd_none(kernel: Kernel, pmd: PmdPtr) -> None:
    """The PMD this collapse cleared must still be none; what else follows is the profile's."""
    kernel.guard(
        "collapse_huge_page",
        not pmd_none(pmdp_get_lockless(pmd)),
        "the PMD that the collapse cleared is populated; it is overwritten",
    )


def restore_pmd(kernel: Kernel, pmd: PmdPtr, orig_pmd: Pmd) -> None:
    """Put the old table back after a refusal. Kernel: collapse_huge_page(), failure branch."""
    with pmd_lock(pmd):
        guard_pmd_none(kernel, pmd)
        pmd_populate(pmd, pmd_pgtable(orig_pmd))


def __folio_mark_uptodate(kernel: Kernel, folio: Folio) -> None:
    """Contents are seen before the mapping.

    Kernel: include/linux/page-flags.h, __folio_mark_uptodate().
    """
    kernel.machine.smp_wmb()
    kernel.mem.set(folio, PG_UPTODATE)


def install_pmd(
    kernel: Kernel, folio: Folio, pmd: PmdPtr, orig_pmd: Pmd, vma: Vma, pmd_addr: Address
) -> None:
    """PMD order: deposit the table, map by the PMD."""
    with pmd_lock(pmd):
        guard_pmd_none(kernel, pmd)
        pgtable_trans_huge_deposit(pmd, pmd_pgtable(orig_pmd))
        map_anon_folio_pmd_nopf(kernel, folio, pmd, vma, pmd_addr)


def install_ptes(
    kernel: Kernel,
    folio: Folio,
    pmd: PmdPtr,
    orig_pmd: Pmd,
    pte: PteMap,
    vma: Vma,
    start_addr: Address,
) -> None:
    """Below PMD order: the old table comes back with the new folio in it, in the profile's order."""
    with pmd_lock(pmd):
        guard_pmd_none(kernel, pmd)
        if kernel.profile.install is Install.PTES_THEN_PMD:
            map_anon_folio_pte_nopf(kernel, folio, pte, vma, start_addr, uffd_wp=False)
            kernel.machine.smp_wmb()
            pmd_populate(pmd, pmd_pgtable(orig_pmd))
        else:
            with pte.table.ptl.lock():
                pmd_populate(pmd, pmd_pgtable(orig_pmd))
                map_anon_folio_pte_nopf(kernel, folio, pte, vma, start_addr, uffd_wp=False)
