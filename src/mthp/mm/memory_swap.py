# SPDX-License-Identifier: GPL-2.0-or-later
"""Swap-in. Kernel: mm/memory.c.

Apart from memory.py, which is long.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from mthp.machine.hold import Hold
from mthp.mm.folio import folio_add_lru_vma
from mthp.mm.ksm import ksm_might_need_to_copy
from mthp.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, Kernel, Mm, PmdPtr, Vma
from mthp.mm.page_flags import (
    PAGE_HWPOISON,
    PG_ANON,
    PG_DIRTY,
    PG_KSM,
    PG_MLOCKED,
    PG_SWAPCACHE,
    PG_UPTODATE,
)
from mthp.mm.pgtable import PteMap, pte_offset_map_lock, set_ptes
from mthp.mm.pgtable_types import (
    DIRTY,
    PFN_SHIFT,
    SOFT_DIRTY,
    SWP_EXCLUSIVE,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
    Pte,
    leaf_kind,
    mk_pte,
    pte_pfn,
)
from mthp.mm.rmap import folio_add_anon_rmap_ptes, folio_add_new_anon_rmap
from mthp.mm.swap_state import (
    folio_matches_swap_entry,
    swap_cache_del_folio,
    swap_cache_get_folio,
    swap_ptes_run_on,
    swapin_sync,
)
from mthp.mm.swap_table import SwapError
from mthp.mm.swapfile import folio_free_swap
from mthp.mm.vm_flags import VM_LOCKED, VM_SOFTDIRTY, VM_UFFD_WP, VM_WRITE
from mthp.words.profiles import SwapIn
from mthp.words.units import Address, Folio, Pfn


class VmFault(Enum):
    """How a fault ended. Kernel: vm_fault_t, as far as swap-in tells them apart."""

    DONE = "done"
    RETRY = "retry"
    ERROR = "error"


class _Span(NamedTuple):
    """What one fault maps: nr PTEs from `first` of a mapped table on, at address. write: for a store."""

    first: int
    nr: int
    address: Address
    page: Pfn
    write: bool


def do_swap_page(
    mm: Mm,
    vma: Vma,
    address: Address,
    pmd: PmdPtr,
    orig_pte: Pte,
    mmap_lock: Hold,
    *,
    write: bool = False,
) -> VmFault:
    """Bring a non-present PTE back, and those around it that are of the same large folio. RETRY:
    mmap_lock was released here; else it is still held. write: for a store, which makes them all dirty.

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
    swapcache = swap_cache_get_folio(kernel, entry)
    if swapcache is None:
        read = swapin_sync(mm, vma, address, pmd, orig_pte)
        if read is SwapError.EXISTS:
            return VmFault.DONE  # what is there is being freed; the entry is read again later
        if isinstance(read, SwapError):
            return _not_read(mm, pmd, address, orig_pte)
        swapcache = read
        kernel.vmstat.count_vm_event("pgmajfault")
    if not mem.folio_trylock(swapcache):
        # folio_lock_or_retry(): FAULT_FLAG_ALLOW_RETRY lets go of mmap_lock before it waits.
        mmap_lock.release()
        mem.folio_wait_locked(swapcache)
        mem.folio_put(swapcache)
        return VmFault.RETRY
    if not folio_matches_swap_entry(kernel, swapcache, entry):
        return _drop(kernel, swapcache, VmFault.DONE)
    page = Pfn(swapcache + entry - kernel.swap.entry_of[swapcache])
    if mem.page_flags.raw[page] & PAGE_HWPOISON:
        return _drop(kernel, swapcache, VmFault.ERROR)
    folio = ksm_might_need_to_copy(kernel, swapcache, vma, address)
    if folio is None:
        return _drop(kernel, swapcache, VmFault.ERROR)
    if folio != swapcache:
        page = folio
    outcome = _map(kernel, vma, address, pmd, orig_pte, (folio, page, swapcache, write))
    if folio != swapcache:
        mem.folio_unlock(swapcache)
        mem.folio_put(swapcache)
    return outcome


def _not_read(mm: Mm, pmd: PmdPtr, address: Address, orig_pte: Pte) -> VmFault:
    """How a fault without memory ends: no error where another task has dealt with the entry."""
    mapped = pte_offset_map_lock(mm, pmd, address)
    if mapped is None:
        return VmFault.DONE
    pte, ptl = mapped
    with pte, ptl:
        return VmFault.ERROR if pte.get(0) == orig_pte else VmFault.DONE


def _map(
    kernel: Kernel,
    vma: Vma,
    address: Address,
    pmd: PmdPtr,
    orig_pte: Pte,
    found: tuple[Folio, Pfn, Folio, bool],
) -> VmFault:
    """Map a locked folio where orig_pte still stands; consumes the lock and a reference of it.

    found: the folio, its page for the address, the folio in the swap cache, and whether a store asks.
    """
    mem = kernel.mem
    folio, page, swapcache, write = found
    mapped = pte_offset_map_lock(vma.vm_mm, pmd, address)
    if mapped is None:
        return _drop(kernel, folio, VmFault.DONE)
    pte, ptl = mapped
    with pte, ptl:
        if pte.get(0) != orig_pte:
            return _drop(kernel, folio, VmFault.DONE)
        if not mem.test(folio, PG_UPTODATE):
            return _drop(kernel, folio, VmFault.ERROR)
        span = _span(kernel, vma, pte, orig_pte, _Span(0, 1, address, page, write))
        nr = mem.folio_nr_pages(folio)
        if nr > span.nr and not mem.test(folio, PG_ANON):
            # Read for this table, which has changed since.
            if not mem.test(folio, PG_DIRTY):
                swap_cache_del_folio(kernel, folio)
            return _drop(kernel, folio, VmFault.DONE)
        read = not mem.test(folio, PG_ANON)
        bypass = kernel.profile.swapin is SwapIn.BYPASS
        # One PTE alone named what was read and is no copy: it never was in the swap cache.
        copied = folio != swapcache
        past = bypass and read and not copied
        past = past and (nr > 1 or kernel.swap.count(pte_pfn(orig_pte)) == 1)
        _set(kernel, vma, pte, orig_pte, span, copied=copied, fresh=copied or past)
        at_once = kernel.swap.synchronous and (read or not bypass)
        if past:
            swap_cache_del_folio(kernel, folio)
        if at_once or vma.vm_flags & VM_LOCKED or mem.test(folio, PG_MLOCKED):
            folio_free_swap(kernel, folio)
        mem.folio_unlock(folio)
        kernel.update_mmu_cache_range(vma, span.address, span.nr)
    return VmFault.DONE


def _span(kernel: Kernel, vma: Vma, pte: PteMap, orig_pte: Pte, one: _Span) -> _Span:
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
    return _Span(-index, nr, start, folio, one.write)


def _set(
    kernel: Kernel, vma: Vma, pte: PteMap, orig_pte: Pte, span: _Span, *, copied: bool, fresh: bool
) -> None:
    """Set counts, rmap and PTEs of what is mapped. Caller holds the PTE lock and the folio lock.

    fresh: the folio is not in the swap cache, where nobody else can find it; or copied from one that is.
    """
    mem, counters = kernel.mem, vma.vm_mm.counters
    folio = mem.head.raw[span.page]
    exclusive = fresh or (orig_pte & SWP_EXCLUSIVE != 0 and not mem.test(folio, PG_KSM))
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
    bits = _bits(vma, orig_pte, exclusive=exclusive)
    if span.write and bits & WRITE:
        bits |= DIRTY | SOFT_DIRTY
    set_ptes(pte, span.first, mk_pte(span.page, bits), span.nr)


def _bits(vma: Vma, orig_pte: Pte, *, exclusive: bool) -> int:
    """The bits of the PTE that takes the place of a swap entry."""
    bits = YOUNG | orig_pte & (SOFT_DIRTY | UFFD_WP)
    protected = vma.vm_flags & VM_UFFD_WP and bits & UFFD_WP
    untracked = vma.vm_flags & VM_SOFTDIRTY or bits & SOFT_DIRTY
    if exclusive and vma.vm_flags & VM_WRITE and not protected and untracked:
        bits |= WRITE
    return bits


def _drop(kernel: Kernel, folio: Folio, outcome: VmFault) -> VmFault:
    """End without a mapping: a slot that no PTE names is given up."""
    folio_free_swap(kernel, folio)
    kernel.mem.folio_unlock(folio)
    kernel.mem.folio_put(folio)
    return outcome
