# SPDX-License-Identifier: GPL-2.0-or-later
"""UFFDIO_WRITEPROTECT: from its return on no store goes unseen. Kernel: mm/userfaultfd.c."""

from __future__ import annotations

from mthp.mm.mm_struct import Mm
from mthp.mm.pagetable import mm_find_pmd, pte_offset_map_lock
from mthp.mm.pte import UFFD_WP, WRITE, pte_present
from mthp.rivals.said import WriteProtected
from mthp.rivals.walk import flush_tlb_page, unlocked_after


def mwriteprotect_range(mm: Mm, address: int) -> None:
    """Write-protect one page. Kernel: mm/userfaultfd.c, mwriteprotect_range()."""
    with mm.mmap_read_lock():
        vma = mm.find_vma(address)
        if vma is None or address < vma.vm_start:
            return
        done = change_pte_range(mm, address)
    if done:
        mm.kernel.witness(WriteProtected(mm, address))


def change_pte_range(mm: Mm, address: int) -> bool:
    """Kernel: mm/mprotect.c, change_pte_range()."""
    pmd = mm_find_pmd(mm, address)
    found = pte_offset_map_lock(mm, pmd, address) if pmd is not None else None
    if found is None:
        return False
    kernel = mm.kernel
    with unlocked_after(kernel, found) as pte:
        pteval = pte.get(0)
        if not pte_present(pteval):
            return False
        pte.ptes.write(pte.base, (pteval & ~WRITE) | UFFD_WP)
        flush_tlb_page(mm, address)
    return True
