# SPDX-License-Identifier: GPL-2.0-or-later
"""userfaultfd: UFFDIO_REGISTER, _WRITEPROTECT, _COPY and _MOVE. Kernel: mm/userfaultfd.c."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from mthp.machine.hold import Hold
from mthp.mm.gup import folio_maybe_dma_pinned
from mthp.mm.huge_memory import split_huge_pmd
from mthp.mm.huge_memory_split import split_folio
from mthp.mm.memory import map_anon_folio_pte_nopf, pte_alloc
from mthp.mm.memory_wp import new_anon_folio
from mthp.mm.mm_types import MM_ANONPAGES, Mm, PmdPtr, Vma, linear_page_index, userfaultfd_armed
from mthp.mm.mmap_lock import lock_vma_under_rcu, vma_start_write, with_vma_read_locked
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.mprotect import Right, change_protection
from mthp.mm.page_flags import PAGE_ANON_EXCLUSIVE
from mthp.mm.page_vma_mapped import folio_lock
from mthp.mm.pgtable import (
    PteMap,
    flush_tlb_page,
    mm_find_pmd,
    pmd_ptr,
    pmdp_get_lockless,
    pte_offset_map,
    pte_offset_map_lock,
    unlocked_after,
)
from mthp.mm.pgtable_types import (
    DIRTY,
    PTE_NONE,
    SOFT_DIRTY,
    SWP_EXCLUSIVE,
    WRITE,
    YOUNG,
    Leaf,
    Pte,
    leaf_kind,
    mk_pte,
    pmd_is_migration_entry,
    pmd_none,
    pmd_trans_huge,
    pte_none,
    pte_pfn,
    pte_present,
    zero_pte,
)
from mthp.mm.reports import Moving, Registered, StoredTo, WriteProtected
from mthp.mm.vm_flags import VM_LOCKED, VM_UFFD_MISSING, VM_UFFD_WP, VM_WRITE
from mthp.words.units import Address, Folio


def mwriteprotect_range(mm: Mm, address: Address) -> None:
    """Write-protect one page: from its return on no store goes unseen.

    Kernel: mm/userfaultfd.c, mwriteprotect_range(), uffd_wp_range().
    """
    with mm.mmap_read_lock():
        vma = mm.vma_lookup(address)
        if vma is None or not vma.vm_flags & VM_UFFD_WP:
            return
        end = address + mm.geometry.page_size
        done = change_protection(vma, address, end, Right.UFFD_WP)
    if done:
        mm.kernel.report(WriteProtected(mm, address))


def userfaultfd_register(mm: Mm, start: Address) -> None:
    """Register a mapping: from its return on the monitor alone fills what is missing.

    Kernel: mm/userfaultfd.c, userfaultfd_register(), userfaultfd_set_vm_flags().
    """
    with mm.mmap_write_lock():
        vma = mm.vma_lookup(start)
        if vma is None:
            return
        vma_start_write(vma)
        vma.vm_flags |= VM_UFFD_MISSING
        mm.kernel.report(Registered(mm, vma.vm_start, vma.vm_end))


def mfill_atomic(mm: Mm, address: Address, content: int) -> None:
    """Map a page of contents, if nothing is there yet.

    Kernel: mm/userfaultfd.c, mfill_atomic(), uffd_mfill_lock().
    """
    with_vma_read_locked(mm, address, lambda vma: mfill_atomic_install_pte(vma, address, content))


def mfill_atomic_install_pte(vma: Vma, address: Address, content: int) -> None:
    """Caller holds the VMA or mmap_lock. Kernel: mm/userfaultfd.c, mfill_atomic_install_pte()."""
    mm = vma.vm_mm
    kernel = mm.kernel
    pmd = pmd_ptr(mm, address, create=True)
    assert pmd is not None
    folio = new_anon_folio(mm, content) if userfaultfd_armed(vma) else None
    if folio is None:
        return
    pte_alloc(mm, pmd)
    found = pte_offset_map_lock(mm, pmd, address)
    if found is not None:
        with unlocked_after(kernel, found) as pte:
            if pte_none(pte.get(0)):
                mm.counters[MM_ANONPAGES] += 1
                kernel.report(StoredTo(mm, address, content, kernel.machine.current.name))
                map_anon_folio_pte_nopf(kernel, folio, pte, vma, address, uffd_wp=False)
                return
    kernel.mem.folio_put(folio)


class Moved(Enum):
    """How one attempt to move a page ended. Kernel: 0, -EAGAIN, and any other error."""

    DONE = "done"
    AGAIN = "again"
    GIVEN_UP = "given up"


MOST_TRIES = 3


def move_pages(mm: Mm, dst_addr: int, src_addr: int) -> None:
    """Move one page under the locks of both VMAs. Kernel: mm/userfaultfd.c, move_pages()."""
    dst_vma = lock_vma_under_rcu(mm, dst_addr)
    if dst_vma is None:
        _under_mmap_lock(mm, dst_addr, src_addr)
        return
    src_vma = dst_vma
    if not dst_vma.vm_start <= src_addr < dst_vma.vm_end:
        locked = lock_vma_under_rcu(mm, src_addr)
        if locked is None:
            dst_vma.vm_lock.leave()
            _under_mmap_lock(mm, dst_addr, src_addr)
            return
        src_vma = locked
    _move(dst_vma, src_vma, dst_addr, src_addr)
    if src_vma is not dst_vma:
        src_vma.vm_lock.leave()
    dst_vma.vm_lock.leave()


def _under_mmap_lock(mm: Mm, dst_addr: int, src_addr: int) -> None:
    """Divergence: mmap_lock is kept, where the kernel locks both VMAs under it and lets it go.

    Kernel: mm/userfaultfd.c, uffd_move_lock().
    """
    with mm.mmap_read_lock():
        dst_vma, src_vma = mm.find_vma(dst_addr), mm.find_vma(src_addr)
        if dst_vma is None or dst_addr < dst_vma.vm_start:
            return
        if src_vma is None or src_addr < src_vma.vm_start:
            return
        _move(dst_vma, src_vma, dst_addr, src_addr)


def _move(dst_vma: Vma, src_vma: Vma, dst_addr: int, src_addr: int) -> None:
    """Kernel: mm/userfaultfd.c, validate_move_areas(), and the loop of move_pages()."""
    mm = dst_vma.vm_mm
    if not userfaultfd_armed(dst_vma) or not src_vma.vm_flags & dst_vma.vm_flags & VM_WRITE:
        return
    if (src_vma.vm_flags ^ dst_vma.vm_flags) & VM_LOCKED:
        return
    for _ in range(MOST_TRIES):
        src_pmd = mm_find_pmd(mm, src_addr)
        dst_pmd = pmd_ptr(mm, dst_addr, create=True)
        assert dst_pmd is not None
        if src_pmd is None or pmd_trans_huge(pmdp_get_lockless(dst_pmd)):
            return
        src_pmdval = pmdp_get_lockless(src_pmd)
        if pmd_trans_huge(src_pmdval) or pmd_is_migration_entry(src_pmdval):
            split_huge_pmd(src_vma, src_pmd, src_addr)
            continue
        if pmd_none(src_pmdval):
            return
        pte_alloc(mm, dst_pmd)
        size = mm.geometry.page_size
        with mmu_notifier_invalidate_range(mm, src_addr, src_addr + size):
            ends = _Ends(dst_vma, src_vma, dst_pmd, src_pmd, dst_addr, src_addr)
            if move_pages_ptes(ends) is not Moved.AGAIN:
                return


class _Ends(NamedTuple):
    """The place that a page moves from, and the place that it moves to."""

    dst_vma: Vma
    src_vma: Vma
    dst_pmd: PmdPtr
    src_pmd: PmdPtr
    dst_addr: int
    src_addr: int


class _Mapped(NamedTuple):
    """Both tables mapped without their locks, and what was read of them."""

    dst: PteMap
    src: PteMap
    dst_pmdval: int
    orig_src_pte: Pte

    def lock(self) -> tuple[Hold, Hold | None]:
        """Take both locks, the lower one first. Kernel: double_pt_lock()."""
        first, second = sorted((self.dst.table, self.src.table), key=lambda table: table.number)
        return first.ptl.lock(), None if first is second else second.ptl.lock()

    def is_stable(self, dst_pmd: PmdPtr) -> bool:
        """Whether it is still as it was read. Kernel: mm/userfaultfd.c, is_pte_pages_stable()."""
        return (
            self.src.get(0) == self.orig_src_pte
            and pte_none(self.dst.get(0))
            and pmdp_get_lockless(dst_pmd) == self.dst_pmdval
        )


def move_pages_ptes(ends: _Ends) -> Moved:
    """Try once to move a page. Kernel: mm/userfaultfd.c, move_pages_ptes()."""
    kernel = ends.dst_vma.vm_mm.kernel
    dst_pmdval = pmdp_get_lockless(ends.dst_pmd)
    dst = pte_offset_map(kernel, dst_pmdval, ends.dst_addr)
    if dst is None:
        return Moved.AGAIN
    with dst:
        src = pte_offset_map(kernel, pmdp_get_lockless(ends.src_pmd), ends.src_addr)
        if src is None:
            return Moved.AGAIN
        with src:
            with dst.table.ptl.lock():
                orig_dst_pte = dst.get(0)
            with src.table.ptl.lock():
                orig_src_pte = src.get(0)
            if not pte_none(orig_dst_pte) or pte_none(orig_src_pte):
                return Moved.GIVEN_UP
            mapped = _Mapped(dst, src, dst_pmdval, orig_src_pte)
            if not pte_present(orig_src_pte):
                return _move_swapped(ends, mapped)
            if not pte_pfn(orig_src_pte):
                return _set(ends, mapped, zero_pte())
            return _move_present(ends, mapped)


def _move_swapped(ends: _Ends, mapped: _Mapped) -> Moved:
    """Move a swap entry, or wait for a migration to end. Kernel: move_swap_pte()."""
    kernel = ends.dst_vma.vm_mm.kernel
    entry = mapped.orig_src_pte
    if leaf_kind(entry) is Leaf.MIGRATION:
        kernel.mem.folio_wait_locked(Folio(pte_pfn(entry)))
        return Moved.AGAIN
    if leaf_kind(entry) is not Leaf.SWAP or not entry & SWP_EXCLUSIVE:
        return Moved.GIVEN_UP
    return _set(ends, mapped, Pte(entry | SOFT_DIRTY))


def _move_present(ends: _Ends, mapped: _Mapped) -> Moved:
    """Lock the folio, split it if it is large, and move it if it is this process's alone."""
    kernel = ends.dst_vma.vm_mm.kernel
    mem = kernel.mem
    page = pte_pfn(mapped.orig_src_pte)
    with mapped.src.table.ptl.lock():
        if mapped.src.get(0) != mapped.orig_src_pte:
            return Moved.AGAIN
        folio = mem.page_folio(page)
        if not mem.page_flags.test_bits(page, PAGE_ANON_EXCLUSIVE):
            return Moved.GIVEN_UP
        locked = mem.folio_trylock(folio)
        mem.folio_get(folio)
    if not locked:
        folio_lock(kernel, folio)
    try:
        if mem.folio_test_large(folio):
            return Moved.AGAIN if split_folio(kernel, folio, page) else Moved.GIVEN_UP
        return move_present_ptes(ends, mapped, folio)
    finally:
        if not kernel.machine.abandoned:
            mem.folio_unlock(mem.page_folio(page))
            mem.folio_put(mem.page_folio(page))


def move_present_ptes(ends: _Ends, mapped: _Mapped, folio: Folio) -> Moved:
    """Move a folio whose lock, held by the caller, keeps rmap walks away while it belongs nowhere.

    Divergence: the caller's reference is put in the end. Kernel: mm/userfaultfd.c,
    move_present_ptes().
    """
    kernel = ends.dst_vma.vm_mm.kernel
    ptls = mapped.lock()
    try:
        if not mapped.is_stable(ends.dst_pmd):
            return Moved.AGAIN
        if folio_maybe_dma_pinned(kernel, folio):
            return Moved.GIVEN_UP
        old = mapped.src.ptes.swap(mapped.src.base, PTE_NONE)
        if folio_maybe_dma_pinned(kernel, folio):
            mapped.src.ptes.write(mapped.src.base, old)
            return Moved.GIVEN_UP
        folio_move_anon_rmap(ends, folio)
        new = mk_pte(folio, old & DIRTY | YOUNG | SOFT_DIRTY | WRITE)
        _moved(ends)
        mapped.dst.ptes.write(mapped.dst.base, new)
        flush_tlb_page(ends.src_vma.vm_mm, ends.src_addr)
        return Moved.DONE
    finally:
        _release(kernel.machine.abandoned, ptls)


def _set(ends: _Ends, mapped: _Mapped, new: Pte) -> Moved:
    """Move an entry that has no page of its own: of the zero page, or of a swapped one."""
    kernel = ends.dst_vma.vm_mm.kernel
    ptls = mapped.lock()
    try:
        if not mapped.is_stable(ends.dst_pmd):
            return Moved.AGAIN
        if not pte_present(new) and kernel.swap.folio_at(pte_pfn(new)) is not None:
            return Moved.GIVEN_UP  # the kernel waits for the folio and moves it too
        mapped.src.ptes.swap(mapped.src.base, PTE_NONE)
        flush_tlb_page(ends.src_vma.vm_mm, ends.src_addr)
        _moved(ends)
        mapped.dst.ptes.write(mapped.dst.base, new)
        return Moved.DONE
    finally:
        _release(kernel.machine.abandoned, ptls)


def _release(abandoned: bool, ptls: tuple[Hold, Hold | None]) -> None:
    for ptl in reversed(ptls):
        if ptl is not None and not abandoned:
            ptl.release()


def _moved(ends: _Ends) -> None:
    """Tell that what was read at the source is read at the destination."""
    mm = ends.dst_vma.vm_mm
    by = mm.machine.current.name
    size = mm.geometry.page_size
    mm.kernel.report(Moving(mm, ends.src_addr, ends.dst_addr, size, by))


def folio_move_anon_rmap(ends: _Ends, folio: Folio) -> None:
    """Let rmap find the page at its new place. Kernel: mm/rmap.c."""
    mem = ends.dst_vma.vm_mm.kernel.mem
    assert ends.dst_vma.anon_vma is not None
    mem.anon_vma.raw[folio] = ends.dst_vma.anon_vma.number
    mem.index.raw[folio] = linear_page_index(ends.dst_vma, ends.dst_addr)
