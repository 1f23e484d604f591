# SPDX-License-Identifier: GPL-2.0-or-later
"""UFFDIO_REGISTER, UFFDIO_WRITEPROTECT, UFFDIO_COPY. Kernel: mm/userfaultfd.c."""

from __future__ import annotations

from mthp.mm.mm_struct import MM_ANONPAGES, Mm
from mthp.mm.pagetable import map_anon_folio_pte_nopf, pmd_ptr, pte_offset_map_lock
from mthp.mm.pte import pte_none
from mthp.mm.vma import VM_UFFD_MISSING, Vma, vma_start_write
from mthp.rivals.fault import lock_vma_under_rcu, new_anon_folio, pte_alloc
from mthp.rivals.mprotect import Right, change_protection
from mthp.rivals.said import Registered, Stored, WriteProtected
from mthp.rivals.walk import unlocked_after


def mwriteprotect_range(mm: Mm, address: int) -> None:
    """Write-protect one page: from its return on no store goes unseen.

    Kernel: mm/userfaultfd.c, mwriteprotect_range(), uffd_wp_range().
    """
    with mm.mmap_read_lock():
        vma = mm.find_vma(address)
        if vma is None or address < vma.vm_start:
            return
        end = address + mm.geometry.page_size
        done = change_protection(vma, address, end, Right.UFFD_WP)
    if done:
        mm.kernel.witness(WriteProtected(mm, address))


def userfaultfd_register(mm: Mm, start: int) -> None:
    """From its return on the monitor fills what is missing, and nobody else.

    Kernel: mm/userfaultfd.c, userfaultfd_register(), userfaultfd_set_vm_flags().
    """
    with mm.mmap_write_lock():
        vma = mm.find_vma(start)
        if vma is None or start < vma.vm_start:
            return
        vma_start_write(vma)
        vma.vm_flags |= VM_UFFD_MISSING
        mm.kernel.witness(Registered(mm, vma.vm_start, vma.vm_end))


def mfill_atomic(mm: Mm, address: int, content: int) -> None:
    """UFFDIO_COPY of one page, if nothing is there yet.

    Kernel: mm/userfaultfd.c, mfill_atomic(), uffd_mfill_lock().
    """
    vma = lock_vma_under_rcu(mm, address)
    if vma is not None:
        mfill_atomic_install_pte(vma, address, content)
        vma.vm_lock.leave()
        return
    with mm.mmap_read_lock():
        vma = mm.find_vma(address)
        if vma is not None and address >= vma.vm_start:
            mfill_atomic_install_pte(vma, address, content)


def mfill_atomic_install_pte(vma: Vma, address: int, content: int) -> None:
    """Caller holds the VMA or mmap_lock. Kernel: mm/userfaultfd.c, mfill_atomic_install_pte()."""
    mm = vma.vm_mm
    kernel = mm.kernel
    pmd = pmd_ptr(mm, address, create=True)
    assert pmd is not None
    folio = new_anon_folio(kernel, content)
    pte_alloc(mm, pmd)
    found = pte_offset_map_lock(mm, pmd, address)
    if found is not None:
        with unlocked_after(kernel, found) as pte:
            if pte_none(pte.get(0)):
                mm.counters[MM_ANONPAGES] += 1
                kernel.witness(Stored(mm, address, content, kernel.machine.current.name))
                map_anon_folio_pte_nopf(kernel, folio, pte, vma, address, uffd_wp=False)
                return
    kernel.mem.folio_put(folio)
