# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults and swap-in.

Kernel: mm/memory.c, arch/x86/mm/fault.c (do_user_addr_fault), mm/mmap_lock.c (lock_mm_and_find_vma).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mthp.mm.folio import folio_add_lru_vma
from mthp.mm.huge_memory import (
    do_huge_pmd_anonymous_page,
    do_huge_pmd_fault,
    folio_memcg_alloc_deferred,
    pmd_migration_entry_wait,
    reclaims_directly,
    zero_folio,
)
from mthp.mm.huge_mm import (
    PAGEFAULT,
    highest_order,
    next_orders,
    thp_vma_allowable_orders,
    thp_vma_suitable_orders,
)
from mthp.mm.memcontrol import mem_cgroup_charge
from mthp.mm.memory_swap import do_swap_page
from mthp.mm.memory_wp import do_wp_page, new_anon_folio
from mthp.mm.mm_types import (
    MM_ANONPAGES,
    Kernel,
    Mm,
    PmdPtr,
    Vma,
    userfaultfd_armed,
    vma_is_anonymous,
)
from mthp.mm.mmap_lock import lock_vma_under_rcu
from mthp.mm.page_counter import Gfp
from mthp.mm.page_flags import PAGE_ANON_EXCLUSIVE
from mthp.mm.pgtable import (
    PteMap,
    pmd_lock,
    pmd_ptr,
    pmdp_get_lockless,
    pte_offset_map,
    pte_offset_map_lock,
    pte_range_none,
    set_ptes,
    unlocked_after,
)
from mthp.mm.pgtable_types import (
    DIRTY,
    NO_ACCESS,
    PTE_NONE,
    SOFT_DIRTY,
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
from mthp.mm.rmap import anon_vma_prepare, folio_add_new_anon_rmap
from mthp.mm.vm_flags import VM_SOFTDIRTY, VM_UFFD_MISSING, VM_WRITE
from mthp.words.profiles import FaultUse
from mthp.words.units import Address, Folio, Order


def handle_user_fault(mm: Mm, address: Address, *, write: bool) -> None:
    """Handle one fault; the access is tried again afterwards. Kernel: do_user_addr_fault()."""
    vma = lock_vma_under_rcu(mm, address)
    if vma is not None:
        done = handle_mm_fault(vma, address, write=write)
        vma.vm_lock.leave()
        if done:
            return
    fault_under_mmap_lock(mm, address, write=write)


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
            with lru_gen_fault(mm.kernel):
                do_swap_page(mm, vma, address, pmd, swapped, mmap_lock, write=write)
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


@contextmanager
def lru_gen_fault(kernel: Kernel) -> Iterator[None]:
    """Let folios that come to the LRU meanwhile count as used. Kernel: mm/memory.c, lru_gen_enter_fault(),
    lru_gen_exit_fault().
    """
    task = kernel.machine.current
    task.in_lru_fault = kernel.profile.fault_use is FaultUse.REFERENCED
    try:
        yield
    finally:
        task.in_lru_fault = False


def handle_mm_fault(vma: Vma, address: Address, *, write: bool) -> bool:
    """Handle a fault in a locked VMA; False: mmap_lock is needed. Kernel: mm/memory.c, handle_mm_fault()."""
    with lru_gen_fault(vma.vm_mm.kernel):
        return _handle_mm_fault(vma, address, write=write)


def _handle_mm_fault(vma: Vma, address: Address, *, write: bool) -> bool:
    """Kernel: mm/memory.c, __handle_mm_fault(), handle_pte_fault()."""
    mm = vma.vm_mm
    pmd = pmd_ptr(mm, address, create=True)
    assert pmd is not None
    pmdval = pmdp_get_lockless(pmd)
    huge = mm.kernel.fault_orders & 1 << mm.geometry.pmd_order
    if huge and pmd_none(pmdval) and thp_vma_allowable_orders(vma, vma.vm_flags, PAGEFAULT, huge):
        if vma_is_anonymous(vma) and do_huge_pmd_anonymous_page(vma, address, pmd, write=write):
            return True
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
    """Map zeroed pages where there was nothing. Kernel: mm/memory.c, do_anonymous_page()."""
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
    anon_vma_prepare(vma)
    order, folio = alloc_anon_folio(vma, address, pmd)
    if folio is None:
        return
    start = address & -kernel.geometry.order_bytes(order)
    found = pte_offset_map_lock(mm, pmd, start)
    if found is None:
        kernel.mem.folio_put(folio)
        return
    with unlocked_after(kernel, found) as pte:
        if pte_range_none(pte, 0, 1 << order):
            mm.counters[MM_ANONPAGES] += 1 << order
            map_anon_folio_pte_nopf(kernel, folio, pte, vma, start, uffd_wp=False)
            kernel.vmstat.count_mthp_stat(order, "anon_fault_alloc")
            return
    kernel.mem.folio_put(folio)


def alloc_anon_folio(vma: Vma, address: Address, pmd: PmdPtr) -> tuple[Order, Folio | None]:
    """Make the largest folio, of zeroes, that may stand around address and can be had; its order. None: no
    memory, or no table any more.

    Kernel: mm/memory.c, alloc_anon_folio().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    mem, vmstat = kernel.mem, kernel.vmstat
    orders = kernel.fault_orders & (1 << kernel.geometry.pmd_order) - 1
    if orders and not userfaultfd_armed(vma):
        orders = thp_vma_allowable_orders(vma, vma.vm_flags, PAGEFAULT, orders)
        orders = thp_vma_suitable_orders(vma, address, orders)
        if orders:
            orders = _empty_orders(kernel, address, pmd, orders)
        compact = reclaims_directly(vma)
        while orders > 0:
            order = highest_order(orders)
            folio = mem.folio_alloc(order, compact=compact)
            if folio is not None:
                if mem_cgroup_charge(folio, mm, Gfp.TRANSHUGE if compact else Gfp.TRANSHUGE_LIGHT):
                    if not folio_memcg_alloc_deferred(mm):
                        zero_folio(mem, folio)
                        return order, folio
                    mem.folio_put(folio)
                    break
                vmstat.count_mthp_stat(order, "anon_fault_fallback_charge")
                mem.folio_put(folio)
            vmstat.count_mthp_stat(order, "anon_fault_fallback")
            orders = next_orders(orders)
    return 0, None if orders < 0 else new_anon_folio(mm, 0)


def _empty_orders(kernel: Kernel, address: Address, pmd: PmdPtr, orders: int) -> int:
    """The orders of which the aligned range around address is empty: smaller than the largest that is, they
    are empty too. -1: there is no table any more, and the access is tried again.
    """
    pte = pte_offset_map(kernel, pmdp_get_lockless(pmd), kernel.geometry.pmd_addr(address))
    if pte is None:
        return -1
    with pte:
        index = kernel.geometry.pte_index(address)
        while orders:
            nr = 1 << highest_order(orders)
            if pte_range_none(pte, index & -nr, nr):
                break
            orders = next_orders(orders)
    return orders


def do_cow_fault(vma: Vma, address: Address, pmd: PmdPtr) -> None:
    """Map a copy of a file's page, for this process alone.

    Divergence: the page cache is not modelled, so that a load makes a copy too.
    Kernel: mm/memory.c, do_cow_fault().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    anon_vma_prepare(vma)
    pte_alloc(mm, pmd)
    folio = new_anon_folio(mm, kernel.files.get(vma.file, 0))
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
