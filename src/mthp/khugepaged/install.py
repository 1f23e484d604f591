# SPDX-License-Identifier: GPL-2.0-or-later
"""The new folio is made reachable: by the PMD, or by PTEs of the old table.

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
    """Check that the PMD this collapse cleared is still none; the profile says what if not."""
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
    """Mark the new folio up to date: its contents are seen before what maps it.

    Kernel: include/linux/page-flags.h, __folio_mark_uptodate().
    """
    kernel.machine.smp_wmb()
    kernel.mem.flags.store_bits(folio, PG_UPTODATE)


def install_pmd(
    kernel: Kernel, folio: Folio, pmd: PmdPtr, orig_pmd: Pmd, vma: Vma, pmd_addr: Address
) -> None:
    """Install at PMD order: deposit the table and map the folio by the PMD."""
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
    """Install below PMD order: the old table comes back with the new folio in it."""
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
