# SPDX-License-Identifier: GPL-2.0-or-later
"""The fault that brings swapped pages back, and giving up slots of what is in memory.

Kernel: mm/memory.c (do_swap_page), mm/swapfile.c. Reading into the swap cache: mthp.mm.swap_state.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from mthp.machine.locks import Hold
from mthp.machine.step import Access
from mthp.mm.folio import (
    PAGE_HWPOISON,
    PG_ANON,
    PG_DIRTY,
    PG_KSM,
    PG_MLOCKED,
    PG_SWAPCACHE,
    PG_UPTODATE,
    PG_WRITEBACK,
)
from mthp.mm.ksm import ksm_might_need_to_copy
from mthp.mm.lru import folio_add_lru_vma
from mthp.mm.mm_struct import MM_ANONPAGES, MM_SWAPENTS, Mm
from mthp.mm.pagetable import PmdPtr, PteMap, pte_offset_map_lock, set_ptes
from mthp.mm.pte import (
    PFN_SHIFT,
    SOFT_DIRTY,
    SWP_EXCLUSIVE,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
    leaf_kind,
    mk_pte,
    pte_pfn,
)
from mthp.mm.rmap import folio_add_anon_rmap_ptes, folio_add_new_anon_rmap
from mthp.mm.swap_state import swap_ptes_run_on, swapin_sync
from mthp.mm.vma import VM_LOCKED, VM_SOFTDIRTY, VM_UFFD_WP, VM_WRITE, Vma

if TYPE_CHECKING:
    from mthp.mm.kernel import Kernel


class VmFault(Enum):
    """How a fault ended. Kernel: vm_fault_t, as far as swap-in tells them apart."""

    DONE = "done"
    RETRY = "retry"
    ERROR = "error"


class _Span(NamedTuple):
    """What one fault maps: nr PTEs from `first` of a mapped table on, at address."""

    first: int
    nr: int
    address: int
    page: int


def do_swap_page(
    mm: Mm, vma: Vma, address: int, pmd: PmdPtr, orig_pte: int, mmap_lock: Hold
) -> VmFault:
    """Bring a non-present PTE back, and those around it that are of the same large folio. RETRY:
    mmap_lock was released here; else it is still held.

    Kernel: mm/memory.c, do_swap_page().
    Divergence: no readahead, and a device that is not synchronous has read a page at once.
    """
    kernel = mm.kernel
    mem = kernel.mem
    kind = leaf_kind(orig_pte)
    if kind is Leaf.MIGRATION:
        # migration_entry_wait(): over by itself once migration ends; the entry is read again later.
        return VmFault.DONE
    if kind is not Leaf.SWAP:
        return VmFault.ERROR
    entry = pte_pfn(orig_pte)
    kernel.machine.step(Access.READ, kernel.swap, entry)
    swapcache = kernel.swap.cache.get(entry)
    if swapcache is None:
        swapcache = swapin_sync(mm, vma, address, pmd, orig_pte)
        if swapcache is None and entry in kernel.swap.cache:
            return VmFault.DONE  # somebody else reads it; the entry is read again later
        if swapcache is None:
            return _not_read(mm, pmd, address, orig_pte)
        kernel.vmstat.count_vm_event("pgmajfault")
    elif not mem.folio_try_get(swapcache):
        return VmFault.DONE
    if not mem.folio_trylock(swapcache):
        # folio_lock_or_retry(): FAULT_FLAG_ALLOW_RETRY lets go of mmap_lock before it waits.
        mmap_lock.release()
        mem.folio_wait_locked(swapcache)
        mem.folio_put(swapcache)
        return VmFault.RETRY
    if kernel.swap.cache.get(entry) != swapcache:  # folio_matches_swap_entry()
        return _drop(kernel, swapcache, VmFault.DONE)
    page = swapcache + entry - kernel.swap.entry_of[swapcache]
    if mem.page_flags.raw[page] & PAGE_HWPOISON:
        return _drop(kernel, swapcache, VmFault.ERROR)
    folio = ksm_might_need_to_copy(kernel, swapcache, vma, address)
    if folio is None:
        return _drop(kernel, swapcache, VmFault.ERROR)
    if folio != swapcache:
        page = folio
    outcome = _map(kernel, vma, address, pmd, orig_pte, (folio, page, swapcache))
    if folio != swapcache:
        mem.folio_unlock(swapcache)
        mem.folio_put(swapcache)
    return outcome


def _not_read(mm: Mm, pmd: PmdPtr, address: int, orig_pte: int) -> VmFault:
    """No memory, which is no error where somebody else has dealt with the entry."""
    mapped = pte_offset_map_lock(mm, pmd, address)
    if mapped is None:
        return VmFault.DONE
    pte, ptl = mapped
    with pte, ptl:
        return VmFault.ERROR if pte.get(0) == orig_pte else VmFault.DONE


def _map(
    kernel: Kernel,
    vma: Vma,
    address: int,
    pmd: PmdPtr,
    orig_pte: int,
    found: tuple[int, int, int],
) -> VmFault:
    """Map a locked folio where orig_pte still stands; consumes the lock and a reference of it.

    found: the folio, its page for the address, and the folio in the swap cache.
    """
    mem = kernel.mem
    folio, page, swapcache = found
    mapped = pte_offset_map_lock(vma.vm_mm, pmd, address)
    if mapped is None:
        return _drop(kernel, folio, VmFault.DONE)
    pte, ptl = mapped
    with pte, ptl:
        if pte.get(0) != orig_pte:
            return _drop(kernel, folio, VmFault.DONE)
        if not mem.test(folio, PG_UPTODATE):
            return _drop(kernel, folio, VmFault.ERROR)
        span = _span(kernel, vma, pte, orig_pte, _Span(0, 1, address, page))
        nr = mem.folio_nr_pages(folio)
        if nr > span.nr and not mem.test(folio, PG_ANON):
            # Read for this table, which has changed since.
            if not mem.test(folio, PG_DIRTY):
                swap_cache_del_folio(kernel, folio)
            return _drop(kernel, folio, VmFault.DONE)
        _set(kernel, vma, pte, orig_pte, span, swapcache)
        synchronous = kernel.swap.synchronous
        if synchronous or vma.vm_flags & VM_LOCKED or mem.test(folio, PG_MLOCKED):
            folio_free_swap(kernel, folio)
        mem.folio_unlock(folio)
        kernel.update_mmu_cache_range(vma, span.address, span.nr)
    return VmFault.DONE


def _span(kernel: Kernel, vma: Vma, pte: PteMap, orig_pte: int, one: _Span) -> _Span:
    """The whole of a large folio, if the table has its entries all side by side; else one page."""
    mem, geometry = kernel.mem, kernel.geometry
    folio = mem.head.raw[one.page]
    if not mem.folio_test_large(folio) or not mem.test(folio, PG_SWAPCACHE):
        return one
    nr, index = mem.folio_nr_pages(folio), one.page - folio
    start = one.address - (index << geometry.page_shift)
    end = start + (nr << geometry.page_shift)
    table = geometry.pmd_addr(one.address)
    if start < max(table, vma.vm_start) or end > min(table + geometry.pmd_size, vma.vm_end):
        return one
    if not swap_ptes_run_on(pte, -index, nr, orig_pte - (index << PFN_SHIFT)):
        return one
    return _Span(-index, nr, start, folio)


def _set(kernel: Kernel, vma: Vma, pte: PteMap, orig_pte: int, span: _Span, swapcache: int) -> None:
    """Counts, rmap and PTEs of what is mapped. Caller holds the PTE lock and the folio lock."""
    mem, counters = kernel.mem, vma.vm_mm.counters
    folio = mem.head.raw[span.page]
    copied = folio != swapcache
    exclusive = copied or (orig_pte & SWP_EXCLUSIVE != 0 and not mem.test(folio, PG_KSM))
    counters[MM_ANONPAGES] += span.nr
    counters[MM_SWAPENTS] -= span.nr
    if span.nr > 1:
        mem.folio_ref_add(folio, span.nr - 1)
    if copied or not mem.test(folio, PG_ANON):
        folio_add_new_anon_rmap(mem, folio, vma, span.address, exclusive=exclusive)
        if copied:
            folio_add_lru_vma(mem, kernel.this_cpu, folio, vma)
    else:
        folio_add_anon_rmap_ptes(
            mem,
            kernel.this_cpu,
            folio,
            range(span.page, span.page + span.nr),
            vma,
            exclusive=exclusive,
        )
    kernel.swap.put_users(pte_pfn(orig_pte) + span.first, span.nr)
    set_ptes(pte, span.first, mk_pte(span.page, _bits(vma, orig_pte, exclusive=exclusive)), span.nr)


def _bits(vma: Vma, orig_pte: int, *, exclusive: bool) -> int:
    """The bits of the PTE that takes the place of a swap entry."""
    bits = YOUNG | orig_pte & (SOFT_DIRTY | UFFD_WP)
    protected = vma.vm_flags & VM_UFFD_WP and bits & UFFD_WP
    untracked = vma.vm_flags & VM_SOFTDIRTY or bits & SOFT_DIRTY
    if exclusive and vma.vm_flags & VM_WRITE and not protected and untracked:
        bits |= WRITE
    return bits


def _drop(kernel: Kernel, folio: int, outcome: VmFault) -> VmFault:
    """Every exit without a mapping gives up a slot that nobody names."""
    folio_free_swap(kernel, folio)
    kernel.mem.folio_unlock(folio)
    kernel.mem.folio_put(folio)
    return outcome


def swap_cache_del_folio(kernel: Kernel, folio: int) -> None:
    """Caller holds the folio lock. Kernel: mm/swap_state.c, swap_cache_del_folio()."""
    mem = kernel.mem
    nr = mem.folio_nr_pages(folio)
    kernel.machine.step(Access.WRITE, kernel.swap, kernel.swap.entry_of[folio])
    kernel.swap.remove_from_cache(folio, nr)
    mem.flags.clear_bits(folio, PG_SWAPCACHE)
    mem.folio_put(folio, nr)


def folio_free_swap(kernel: Kernel, folio: int) -> None:
    """Give up the swap slots of a folio that is in memory; it is dirty from then on. Slots that
    other PTEs still name stay, and so do those that are being written.

    Caller holds the folio lock. Kernel: mm/swapfile.c, folio_free_swap(), folio_swapcache_freeable().
    """
    mem = kernel.mem
    if mem.flags.test_bits(folio, PG_SWAPCACHE | PG_WRITEBACK) != PG_SWAPCACHE:
        return
    kernel.machine.step(Access.READ, kernel.swap, kernel.swap.entry_of[folio])
    if kernel.swap.folio_maybe_swapped(folio, mem.folio_nr_pages(folio)):
        return
    swap_cache_del_folio(kernel, folio)
    mem.flags.set_bits(folio, PG_DIRTY)


def free_swap_cache(kernel: Kernel, folio: int) -> None:
    """Give up the swap slot of a folio nobody maps any more. Kernel: mm/swap_state.c."""
    mem = kernel.mem
    if not mem.test(folio, PG_SWAPCACHE) or mem.folio_mapcount(folio):
        return
    if mem.folio_trylock(folio):
        folio_free_swap(kernel, folio)
        mem.folio_unlock(folio)
