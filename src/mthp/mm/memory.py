# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults and swap-in.

Kernel: mm/memory.c, arch/x86/mm/fault.c (do_user_addr_fault), mm/mmap_lock.c (lock_mm_and_find_vma).
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from mthp.machine.hold import Hold
from mthp.mm.folio import folio_add_lru_vma
from mthp.mm.huge_memory import (
    do_huge_pmd_anonymous_page,
    do_huge_pmd_fault,
    pmd_migration_entry_wait,
)
from mthp.mm.ksm import ksm_might_need_to_copy
from mthp.mm.memcontrol import mem_cgroup_charge
from mthp.mm.mm_types import (
    MM_ANONPAGES,
    MM_SWAPENTS,
    Kernel,
    Mm,
    PmdPtr,
    Vma,
    vma_is_anonymous,
)
from mthp.mm.mmap_lock import lock_vma_under_rcu
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.page_flags import (
    PAGE_ANON_EXCLUSIVE,
    PAGE_HWPOISON,
    PG_ANON,
    PG_DIRTY,
    PG_KSM,
    PG_MLOCKED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_UPTODATE,
)
from mthp.mm.pgtable import (
    PteMap,
    flush_tlb_page,
    pmd_lock,
    pmd_ptr,
    pmdp_get_lockless,
    pte_offset_map,
    pte_offset_map_lock,
    set_ptes,
    unlocked_after,
)
from mthp.mm.pgtable_types import (
    DIRTY,
    NO_ACCESS,
    PFN_SHIFT,
    PTE_NONE,
    SOFT_DIRTY,
    SWP_EXCLUSIVE,
    UFFD_WP,
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
    pte_protnone,
    pte_write,
    table_pmd,
    zero_pte,
)
from mthp.mm.rmap import (
    folio_add_anon_rmap_ptes,
    folio_add_new_anon_rmap,
    folio_remove_rmap_ptes,
)
from mthp.mm.swap_state import (
    folio_matches_swap_entry,
    swap_cache_del_folio,
    swap_cache_get_folio,
    swap_ptes_run_on,
    swapin_sync,
)
from mthp.mm.swap_table import SwapError
from mthp.mm.swapfile import folio_free_swap
from mthp.mm.vm_flags import VM_LOCKED, VM_SOFTDIRTY, VM_UFFD_MISSING, VM_UFFD_WP, VM_WRITE
from mthp.words.profiles import SwapIn
from mthp.words.units import Address, Folio, Pfn


def handle_user_fault(mm: Mm, address: Address, *, write: bool) -> None:
    """Handle one fault; the access is tried again afterwards. Kernel: do_user_addr_fault()."""
    vma = lock_vma_under_rcu(mm, address)
    if vma is not None:
        done = handle_mm_fault(vma, address, write=write)
        vma.vm_lock.leave()
        if done:
            return
    fault_under_mmap_lock(mm, address, write=write)


def handle_huge_fault(mm: Mm, address: Address) -> None:
    """Handle a fault where the settings give a huge page to the range of an empty table.

    Kernel: mm/memory.c, __handle_mm_fault(), create_huge_pmd().
    """
    vma = lock_vma_under_rcu(mm, address)
    if vma is None:
        return
    pmd = pmd_ptr(mm, address, create=True)
    assert pmd is not None
    if pmd_none(pmdp_get_lockless(pmd)):
        do_huge_pmd_anonymous_page(vma, address, pmd)
    else:
        handle_mm_fault(vma, address, write=True)
    vma.vm_lock.leave()


def fault_under_mmap_lock(mm: Mm, address: Address, *, write: bool) -> None:
    """Handle a fault that the VMA lock did not suffice for. Kernel: lock_mm_and_find_vma()."""
    with mm.mmap_read_lock() as mmap_lock:
        vma = mm.vma_lookup(address)
        if vma is None:
            return
        pmd = pmd_ptr(mm, address, create=True)
        assert pmd is not None
        swapped = _swapped(vma, address, pmd)
        if swapped is not None:
            do_swap_page(mm, vma, address, pmd, swapped, mmap_lock)
        else:
            handle_mm_fault(vma, address, write=write)


def _swapped(vma: Vma, address: Address, pmd: PmdPtr) -> Pte | None:
    """The swap entry of address, if one stands there."""
    pte = pte_offset_map(vma.vm_mm.kernel, pmdp_get_lockless(pmd), address)
    if pte is None:
        return None
    with pte:
        value = pte.get(0)
    is_swap = not pte_none(value) and not pte_present(value) and leaf_kind(value) is Leaf.SWAP
    return value if is_swap else None


def handle_mm_fault(vma: Vma, address: Address, *, write: bool) -> bool:
    """Handle a fault in a locked VMA; False: mmap_lock is needed. Kernel: handle_pte_fault()."""
    mm = vma.vm_mm
    pmd = pmd_ptr(mm, address, create=True)
    assert pmd is not None
    pmdval = pmdp_get_lockless(pmd)
    if pmd_is_migration_entry(pmdval):
        pmd_migration_entry_wait(mm.kernel, pmd)
        return True
    if pmd_trans_huge(pmdval):
        if do_huge_pmd_fault(vma, address, pmd, pmdval, write=write):
            return True
        pmdval = pmdp_get_lockless(pmd)
    orig_pte = PTE_NONE
    if not pmd_none(pmdval):
        pte = pte_offset_map(mm.kernel, pmdval, address)
        if pte is None:
            return True
        with pte:
            orig_pte = pte.get(0)
    if pte_none(orig_pte):
        if vma_is_anonymous(vma):
            do_anonymous_page(vma, address, pmd, write=write)
        else:
            do_cow_fault(vma, address, pmd)
    elif not pte_present(orig_pte):
        return migration_entry_wait(mm.kernel, orig_pte)
    elif pte_protnone(orig_pte):
        do_numa_page(vma, address, pmd, orig_pte)
    elif write and not pte_write(orig_pte):
        do_wp_page(vma, address, pmd, orig_pte)
    return True


def do_numa_page(vma: Vma, address: Address, pmd: PmdPtr, orig_pte: Pte) -> None:
    """Let the access to a page with a NUMA hint through again, where the page already is.

    Divergence: the page is never found to be misplaced. Kernel: mm/memory.c, do_numa_page().
    """
    found = pte_offset_map_lock(vma.vm_mm, pmd, address)
    if found is None:
        return
    with unlocked_after(vma.vm_mm.kernel, found) as pte:
        if pte.get(0) == orig_pte:
            page = pte_pfn(orig_pte)
            alone = vma.vm_mm.kernel.mem.page_flags.raw[page] & PAGE_ANON_EXCLUSIVE
            writable = WRITE if vma.vm_flags & VM_WRITE and alone else 0
            if orig_pte & UFFD_WP or pte_needs_soft_dirty_wp(vma, orig_pte):
                writable = 0
            pte.ptes.write(pte.base, orig_pte & ~NO_ACCESS | YOUNG | writable)


def pte_needs_soft_dirty_wp(vma: Vma, pteval: Pte) -> bool:
    """Whether stores must fault, so that soft-dirty sees them. Kernel: mm/internal.h."""
    return not vma.vm_flags & VM_SOFTDIRTY and not pteval & SOFT_DIRTY


def migration_entry_wait(kernel: Kernel, entry: Pte) -> bool:
    """Wait for the end of a migration, if that is what the entry says; the access is tried again.

    Kernel: mm/migrate.c, migration_entry_wait().
    """
    if leaf_kind(entry) is Leaf.MIGRATION:
        kernel.mem.folio_wait_locked(Folio(pte_pfn(entry)))
        return True
    return False


def pte_alloc(mm: Mm, pmd: PmdPtr) -> None:
    """Put an empty table into a slot that is none. Kernel: mm/memory.c, __pte_alloc()."""
    if not pmd_none(pmdp_get_lockless(pmd)):
        return
    table = mm.kernel.new_table()
    with pmd_lock(pmd):
        if pmd_none(pmdp_get_lockless(pmd)):
            pmd.page.pmds.write(pmd.slot, table_pmd(table.number))
            return
    del mm.kernel.tables[table.number]


def do_anonymous_page(vma: Vma, address: Address, pmd: PmdPtr, *, write: bool) -> None:
    """Map a zeroed page where there was nothing. Kernel: mm/memory.c, do_anonymous_page()."""
    mm = vma.vm_mm
    kernel = mm.kernel
    if vma.vm_flags & VM_UFFD_MISSING:
        return  # handle_userfault(): the monitor fills it, and the access waits for that
    pte_alloc(mm, pmd)
    if not write:
        found = pte_offset_map_lock(mm, pmd, address)
        if found is not None:
            with unlocked_after(kernel, found) as pte:
                if pte_none(pte.get(0)):
                    pte.ptes.write(pte.base, zero_pte())
        return
    map_new_page(vma, address, pmd, 0)


def do_cow_fault(vma: Vma, address: Address, pmd: PmdPtr) -> None:
    """Map a copy of a file's page, for this process alone.

    Divergence: the page cache is not modelled, so that a load makes a copy too.
    Kernel: mm/memory.c, do_cow_fault().
    """
    pte_alloc(vma.vm_mm, pmd)
    map_new_page(vma, address, pmd, vma.vm_mm.kernel.files.get(vma.file, 0))


def map_new_page(vma: Vma, address: Address, pmd: PmdPtr, content: int) -> None:
    """Map a new page, if there still is nothing."""
    mm = vma.vm_mm
    kernel = mm.kernel
    folio = new_anon_folio(mm, content)
    if folio is None:
        return
    found = pte_offset_map_lock(mm, pmd, address)
    if found is None:
        kernel.mem.folio_put(folio)
        return
    with unlocked_after(kernel, found) as pte:
        if pte_none(pte.get(0)):
            mm.counters[MM_ANONPAGES] += 1
            map_anon_folio_pte_nopf(kernel, folio, pte, vma, address, uffd_wp=False)
            return
    kernel.mem.folio_put(folio)


def new_anon_folio(mm: Mm, content: int) -> Folio | None:
    """Make a small folio, written before a task can reach it; None: its cgroup is full.

    Kernel: mm/memory.c, alloc_anon_folio().
    """
    kernel = mm.kernel
    mem = kernel.mem
    folio = mem.folio_alloc(0)
    assert folio is not None
    if not mem_cgroup_charge(folio, mm):
        mem.folio_put(folio)
        return None
    mem.content.write(folio, content)
    kernel.machine.smp_wmb()
    mem.flags.store_bits(folio, PG_UPTODATE | PG_SWAPBACKED)
    return folio


def do_wp_page(vma: Vma, address: Address, pmd: PmdPtr, orig_pte: Pte) -> None:
    """Let a store to a page through: reuse the page or copy it. Kernel: do_wp_page()."""
    if not vma.vm_flags & VM_WRITE:
        return  # SIGSEGV
    if vma.vm_flags & VM_UFFD_WP and orig_pte & UFFD_WP:
        return  # handle_userfault(): the monitor decides, and the access waits for it
    kernel = vma.vm_mm.kernel
    mem = kernel.mem
    page = pte_pfn(orig_pte)
    if page and mem.page_flags.raw[page] & PAGE_ANON_EXCLUSIVE:
        found = pte_offset_map_lock(vma.vm_mm, pmd, address)
        if found is not None:
            with unlocked_after(kernel, found) as pte:
                pte.ptes.replace(pte.base, orig_pte, orig_pte | WRITE | DIRTY | YOUNG | SOFT_DIRTY)
        return
    wp_page_copy(vma, address, pmd, orig_pte)


def wp_page_copy(vma: Vma, address: Address, pmd: PmdPtr, orig_pte: Pte) -> None:
    """Copy a page that a store may not change. Kernel: mm/memory.c, wp_page_copy()."""
    mm = vma.vm_mm
    kernel = mm.kernel
    mem = kernel.mem
    old = pte_pfn(orig_pte)
    if old and not mem.folio_try_get(mem.page_folio(old)):
        return
    folio = new_anon_folio(mm, mem.content.read(old) if old else 0)
    if folio is None:
        if old:
            mem.folio_put(mem.page_folio(old))
        return
    size = kernel.geometry.page_size
    copied = False
    with mmu_notifier_invalidate_range(mm, address, address + size):
        found = pte_offset_map_lock(mm, pmd, address)
        if found is not None:
            with unlocked_after(kernel, found) as pte:
                if pte.get(0) == orig_pte:
                    pte.ptes.write(pte.base, PTE_NONE)
                    flush_tlb_page(mm, address)
                    folio_add_new_anon_rmap(mem, folio, vma, address, exclusive=True)
                    folio_add_lru_vma(mem, kernel.this_cpu, folio, vma)
                    flags = WRITE | DIRTY | YOUNG | SOFT_DIRTY
                    pte.ptes.write(pte.base, mk_pte(folio, flags))
                    if not old:
                        mm.counters[MM_ANONPAGES] += 1
                    else:
                        head = mem.page_folio(old)
                        folio_remove_rmap_ptes(mem, kernel.this_cpu, head, old, 1, vma)
                    copied = True
    if not copied:
        mem.folio_put(folio)
    if old:
        mem.folio_put(mem.page_folio(old), 2 if copied else 1)


def map_anon_folio_pte_nopf(
    kernel: Kernel, folio: Folio, pte: PteMap, vma: Vma, address: Address, *, uffd_wp: bool
) -> None:
    """Map a folio by PTEs from the start of `pte`; update_mmu_cache_range() comes last.

    Kernel: mm/memory.c, map_anon_folio_pte_nopf().
    """
    mem = kernel.mem
    nr = mem.folio_nr_pages(folio)
    flags = YOUNG
    if vma.vm_flags & VM_WRITE:
        flags |= WRITE | DIRTY | SOFT_DIRTY
    if uffd_wp:
        flags |= UFFD_WP
    mem.folio_ref_add(folio, nr - 1)
    folio_add_new_anon_rmap(mem, folio, vma, address, exclusive=True)
    folio_add_lru_vma(mem, kernel.this_cpu, folio, vma)
    set_ptes(pte, 0, mk_pte(folio, flags), nr)
    kernel.update_mmu_cache_range(vma, address, nr)


class VmFault(Enum):
    """How a fault ended. Kernel: vm_fault_t, as far as swap-in tells them apart."""

    DONE = "done"
    RETRY = "retry"
    ERROR = "error"


class _Span(NamedTuple):
    """What one fault maps: nr PTEs from `first` of a mapped table on, at address."""

    first: int
    nr: int
    address: Address
    page: Pfn


def do_swap_page(
    mm: Mm, vma: Vma, address: Address, pmd: PmdPtr, orig_pte: Pte, mmap_lock: Hold
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
    outcome = _map(kernel, vma, address, pmd, orig_pte, (folio, page, swapcache))
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
    found: tuple[Folio, Pfn, Folio],
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
        read = not mem.test(folio, PG_ANON)
        _set(kernel, vma, pte, orig_pte, span, swapcache)
        at_once = kernel.swap.synchronous
        if kernel.profile.swapin is SwapIn.BYPASS:
            at_once = at_once and read
            if read and nr > 1:  # it never was in the swap cache, whoever else names its slots
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
    return _Span(-index, nr, start, folio)


def _set(kernel: Kernel, vma: Vma, pte: PteMap, orig_pte: Pte, span: _Span, swapcache: int) -> None:
    """Set counts, rmap and PTEs of what is mapped. Caller holds the PTE lock and the folio lock."""
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
