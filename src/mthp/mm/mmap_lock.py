# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks of an address space and of single VMAs. Kernel: mm/mmap_lock.c."""

from __future__ import annotations

from collections.abc import Callable

from mthp.mm.mm_types import Mm, Vma
from mthp.words.units import Address


def vma_start_write(vma: Vma) -> None:
    """Shut out page faults under the VMA lock until mmap_lock is released.

    Caller holds mmap_lock for writing. Waits for readers (a positive word).
    Kernel: mm/mmap_lock.c, __vma_start_write().
    """
    mm = vma.vm_mm
    mm.mmap_lock.assert_held()
    if vma not in mm.write_locked_vmas:
        vma.vm_lock.mark()
        mm.write_locked_vmas.append(vma)


def lock_vma_under_rcu(mm: Mm, address: Address) -> Vma | None:
    """Lock the VMA of address for reading; None: take mmap_lock instead.

    Kernel: mm/mmap_lock.c, lock_vma_under_rcu().
    """
    mm.mm_mt.read()
    vma = mm.vma_lookup(address)
    if vma is None or not vma.vm_lock.try_enter():
        return None
    if vma.detached or vma.anon_vma is None:
        vma.vm_lock.leave()
        return None
    return vma


def with_vma_read_locked(mm: Mm, address: Address, act: Callable[[Vma], None]) -> None:
    """Do an act to the VMA of address, if there is one, under its own lock or else under mmap_lock.

    Kernel: mm/madvise.c, try_vma_read_lock(); mm/userfaultfd.c, uffd_mfill_lock().
    """
    vma = lock_vma_under_rcu(mm, address)
    if vma is not None:
        act(vma)
        vma.vm_lock.leave()
        return
    with mm.mmap_read_lock():
        vma = mm.vma_lookup(address)
        if vma is not None:
            act(vma)
