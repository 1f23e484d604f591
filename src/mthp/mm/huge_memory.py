# SPDX-License-Identifier: GPL-2.0-or-later
"""Huge PMDs: faults, stores to read-only ones, splits, fork, moves. Kernel: mm/huge_memory.c."""

from __future__ import annotations

from mthp.mm.folio import folio_add_lru_vma
from mthp.mm.gup import folio_maybe_dma_pinned
from mthp.mm.huge_mm import thp_vma_suitable_order
from mthp.mm.mem_map import MemMap
from mthp.mm.memcontrol import mem_cgroup_charge
from mthp.mm.mm_types import MM_ANONPAGES, Kernel, Mm, PmdPtr, Vma
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.page_counter import Gfp
from mthp.mm.page_flags import PAGE_ANON_EXCLUSIVE, PG_DIRTY, PG_SWAPCACHE, PG_UPTODATE
from mthp.mm.page_vma_mapped import folio_lock
from mthp.mm.pgtable import (
    PteMap,
    flush_tlb_mm_range,
    mm_find_pmd,
    pgtable_trans_huge_deposit,
    pgtable_trans_huge_withdraw,
    pmd_lock,
    pmd_populate,
    pmdp_get_lockless,
    pte_free,
    set_ptes,
)
from mthp.mm.pgtable_types import (
    DIRTY,
    NO_ACCESS,
    PMD_NONE,
    SOFT_DIRTY,
    SWP_EXCLUSIVE,
    UFFD_WP,
    WRITE,
    YOUNG,
    ZERO_PFN,
    Leaf,
    Pmd,
    Pte,
    huge_pmd,
    is_huge_zero_pmd,
    leaf_pte,
    mk_pte,
    pmd_folio,
    pmd_is_migration_entry,
    pmd_none,
    pmd_trans_huge,
    pte_pfn,
    pte_write,
    zero_pte,
)
from mthp.mm.rmap import (
    anon_vma_prepare,
    folio_add_anon_rmap_pmd,
    folio_add_anon_rmap_ptes,
    folio_add_new_anon_rmap,
    folio_remove_rmap_pmd,
    remember_mm,
)
from mthp.mm.swapfile import folio_free_swap
from mthp.mm.vm_flags import VM_HUGEPAGE, VM_UFFD_MISSING, VM_UFFD_RWP, VM_UFFD_WP, VM_WRITE
from mthp.words.profiles import DeferredMemcg
from mthp.words.settings import FaultDefrag
from mthp.words.units import Address, Folio

KEPT = WRITE | YOUNG | DIRTY | SOFT_DIRTY | UFFD_WP
"""What an entry hands on when its page moves, or when a PMD becomes PTEs."""


def flush_pmd_tlb_range(mm: Mm, haddr: Address) -> None:
    """Forget the translations of a PMD range on every CPU; haddr: bytes."""
    flush_tlb_mm_range(mm, haddr, haddr + mm.geometry.pmd_size)


def pmdp_invalidate(mm: Mm, haddr: Address, pmd: PmdPtr) -> Pmd:
    """Keep the hardware out of a locked huge PMD, and return it. Kernel: mm/pgtable-generic.c."""
    old = pmd.page.pmds.swap(pmd.slot, pmd.page.pmds.read(pmd.slot) | NO_ACCESS)
    flush_pmd_tlb_range(mm, haddr)
    return old


def pmdp_huge_clear_flush(mm: Mm, haddr: Address, pmd: PmdPtr) -> Pmd:
    """Empty a locked huge PMD, flush, and return it. Kernel: mm/pgtable-generic.c."""
    old = pmd.page.pmds.swap(pmd.slot, PMD_NONE)
    flush_pmd_tlb_range(mm, haddr)
    return old


# Splitting


def vma_adjust_trans_huge(
    vma: Vma, start: Address, end: Address, following: Vma | None = None
) -> None:
    """Split the huge PMDs across which a VMA is about to begin or end. following: begins at end then.

    Kernel: mm/huge_memory.c, vma_adjust_trans_huge().
    """
    _split_huge_pmd_if_needed(vma, start)
    _split_huge_pmd_if_needed(vma, end)
    if following is not None:
        _split_huge_pmd_if_needed(following, end)


def _split_huge_pmd_if_needed(vma: Vma, address: Address) -> None:
    """Split the huge PMD across address, if a VMA may have one. Kernel: split_huge_pmd_if_needed()."""
    mm = vma.vm_mm
    haddr = mm.geometry.pmd_addr(address)
    if haddr != address and thp_vma_suitable_order(vma, haddr, mm.geometry.pmd_order):
        pmd = mm_find_pmd(mm, address)
        if pmd is not None:
            split_huge_pmd(vma, pmd, address)


def split_huge_pmd(vma: Vma, pmd: PmdPtr, address: Address) -> None:
    """Map the same pages by PTEs, of the table that was deposited. Kernel: __split_huge_pmd()."""
    mm = vma.vm_mm
    haddr = mm.geometry.pmd_addr(address)
    end = haddr + mm.geometry.pmd_size
    with mmu_notifier_invalidate_range(mm, haddr, end), pmd_lock(pmd):
        split_huge_pmd_locked(vma, haddr, pmd)


def split_huge_pmd_locked(vma: Vma, haddr: Address, pmd: PmdPtr) -> None:
    """Split a huge PMD, if it still is one. Caller holds the pmd lock.

    Kernel: mm/huge_memory.c, split_huge_pmd_locked(), __split_huge_pmd_locked().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    pmdval = pmdp_get_lockless(pmd)
    if is_huge_zero_pmd(pmdval):
        kernel.vmstat.count_vm_event("thp_split_pmd")
        table = _map_zeroes_by_ptes(vma, haddr, pmd)
    elif pmd_trans_huge(pmdval):
        kernel.vmstat.count_vm_event("thp_split_pmd")
        old = pmdp_invalidate(mm, haddr, pmd)
        if old & DIRTY:
            kernel.mem.set(pmd_folio(old), PG_DIRTY)
        table = _map_by_ptes(vma, pmd, old)
        folio_remove_rmap_pmd(kernel.mem, kernel.this_cpu, pmd_folio(old), vma)
    elif pmd_is_migration_entry(pmdval):
        kernel.vmstat.count_vm_event("thp_split_pmd")
        table = _migrate_by_ptes(kernel, pmd, pmdval)
    else:
        return
    kernel.machine.smp_wmb()
    pmd_populate(pmd, table)


def _map_by_ptes(vma: Vma, pmd: PmdPtr, old: Pmd) -> int:
    """Fill the deposited table from a huge PMD, and return its number."""
    mm = vma.vm_mm
    kernel = mm.kernel
    mem = kernel.mem
    folio, nr = pmd_folio(old), mm.geometry.ptrs_per_pte
    exclusive = mem.page_flags.raw[folio] & PAGE_ANON_EXCLUSIVE != 0
    mem.folio_ref_add(folio, nr - 1)
    pages = range(folio, folio + nr)
    folio_add_anon_rmap_ptes(mem, kernel.this_cpu, folio, pages, vma, exclusive=exclusive)
    number = pgtable_trans_huge_withdraw(pmd)
    with PteMap(kernel, kernel.tables[number], 0) as pte:
        set_ptes(pte, 0, mk_pte(folio, old & KEPT), nr)
    return number


def _map_zeroes_by_ptes(vma: Vma, haddr: Address, pmd: PmdPtr) -> int:
    """Fill the deposited table with the zero page in the place of the huge one, and return its number.

    Kernel: mm/huge_memory.c, __split_huge_zero_page_pmd().
    """
    mm = vma.vm_mm
    old = pmdp_huge_clear_flush(mm, haddr, pmd)
    number = pgtable_trans_huge_withdraw(pmd)
    ptes = mm.kernel.tables[number].ptes
    ptes.fill(0, mm.geometry.ptrs_per_pte, zero_pte(YOUNG | old & UFFD_WP))
    return number


def _migrate_by_ptes(kernel: Kernel, pmd: PmdPtr, old: Pmd) -> int:
    """Fill the deposited table from a PMD's migration entry, and return its number."""
    first, flags = pte_pfn(old), old & (KEPT | SWP_EXCLUSIVE)
    number = pgtable_trans_huge_withdraw(pmd)
    ptes = kernel.tables[number].ptes
    for i in range(kernel.geometry.ptrs_per_pte):
        ptes.write(i, leaf_pte(Leaf.MIGRATION, first + i, flags))
    return number


# Faults


def do_huge_pmd_fault(
    vma: Vma, address: Address, pmd: PmdPtr, orig_pmd: Pmd, *, write: bool
) -> bool:
    """Handle a fault at a huge PMD; returns whether nothing more is to be done.

    Kernel: mm/memory.c, __handle_mm_fault(); huge_pmd_set_accessed().
    """
    if write and not pte_write(orig_pmd):
        return do_huge_pmd_wp_page(vma, address, pmd, orig_pmd)
    with pmd_lock(pmd):
        pmd.page.pmds.replace(pmd.slot, orig_pmd, orig_pmd | YOUNG | (DIRTY if write else 0))
    return True


def reclaims_directly(vma: Vma) -> bool:
    """Whether a fault that wants a large folio reclaims and compacts for it, rather than fails at once.

    Kernel: mm/huge_memory.c, vma_thp_gfp_mask().
    """
    match vma.vm_mm.kernel.settings.fault_defrag:
        case FaultDefrag.ALWAYS:
            return True
        case FaultDefrag.DEFER | FaultDefrag.NEVER:
            return False
    return vma.vm_flags & VM_HUGEPAGE != 0


def folio_memcg_alloc_deferred(mm: Mm) -> bool:
    """Whether a cgroup's list for deferred splits fails to be made. Kernel: mm/huge_memory.c."""
    asked = mm.kernel.profile.deferred_memcg is DeferredMemcg.CHECKED
    return asked and mm.memcg is not None and mm.memcg.defer


def zero_folio(mem: MemMap, folio: Folio) -> None:
    """Fill a new folio with zeroes, before a task can reach it. Kernel: folio_zero_user(),
    __folio_mark_uptodate().
    """
    mem.content.fill(folio, mem.folio_nr_pages(folio), 0)
    mem.machine.smp_wmb()
    mem.flags.store_bits(folio, PG_UPTODATE)


def vma_alloc_anon_folio_pmd(vma: Vma) -> Folio | None:
    """Make a PMD-sized folio of zeroes, or count why there is none. Kernel: mm/huge_memory.c."""
    mm = vma.vm_mm
    mem, vmstat = mm.kernel.mem, mm.kernel.vmstat
    order, compact = mm.geometry.pmd_order, reclaims_directly(vma)
    folio = mem.folio_alloc(order, compact=compact)
    if folio is not None:
        if not mem_cgroup_charge(folio, mm, Gfp.TRANSHUGE if compact else Gfp.TRANSHUGE_LIGHT):
            vmstat.count_vm_event("thp_fault_fallback_charge")
            vmstat.count_mthp_stat(order, "anon_fault_fallback_charge")
        elif not folio_memcg_alloc_deferred(mm):
            zero_folio(mem, folio)
            return folio
        mem.folio_put(folio)
    vmstat.count_vm_event("thp_fault_fallback")
    vmstat.count_mthp_stat(order, "anon_fault_fallback")
    return None


def do_huge_pmd_anonymous_page(vma: Vma, address: Address, pmd: PmdPtr, *, write: bool) -> bool:
    """Put a huge page where a fault found no table, or the huge zero page for a load. Caller holds the VMA
    or mmap_lock. False: single pages have to do.

    Kernel: mm/huge_memory.c, do_huge_pmd_anonymous_page(), __do_huge_pmd_anonymous_page().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    haddr = mm.geometry.pmd_addr(address)
    if not thp_vma_suitable_order(vma, address, mm.geometry.pmd_order):
        return False
    if vma.vm_flags & VM_UFFD_MISSING:
        return True  # handle_userfault(): the monitor fills it, and the access waits for that
    anon_vma_prepare(vma)
    kernel.khugepaged_enter_vma(vma, vma.vm_flags)
    folio = None
    if write or not kernel.settings.use_zero_page:
        folio = vma_alloc_anon_folio_pmd(vma)
        if folio is None:
            return False
    table = kernel.new_table()
    with pmd_lock(pmd):
        if pmd_none(pmdp_get_lockless(pmd)):
            pgtable_trans_huge_deposit(pmd, table.number)
            if folio is None:  # set_huge_zero_folio()
                pmd.page.pmds.write(pmd.slot, huge_pmd(ZERO_PFN, YOUNG))
            else:
                map_anon_folio_pmd_pf(kernel, folio, pmd, vma, haddr)
            return True
    del kernel.tables[table.number]
    if folio is not None:
        kernel.mem.folio_put(folio)
    return True


def do_huge_zero_wp_pmd(vma: Vma, address: Address, pmd: PmdPtr, orig_pmd: Pmd) -> bool:
    """Put a huge page in the place of the huge zero page; False: there is none to be had.

    Kernel: mm/huge_memory.c, do_huge_zero_wp_pmd().
    """
    mm = vma.vm_mm
    kernel, haddr = mm.kernel, mm.geometry.pmd_addr(address)
    folio = vma_alloc_anon_folio_pmd(vma)
    if folio is None:
        return False
    mapped = False
    with (
        mmu_notifier_invalidate_range(mm, haddr, haddr + mm.geometry.pmd_size),
        pmd_lock(pmd),
    ):
        if pmdp_get_lockless(pmd) == orig_pmd:
            pmdp_huge_clear_flush(mm, haddr, pmd)
            map_anon_folio_pmd_pf(kernel, folio, pmd, vma, haddr)
            mapped = True
    if not mapped:
        kernel.mem.folio_put(folio)
    return True


def do_huge_pmd_wp_page(vma: Vma, address: Address, pmd: PmdPtr, orig_pmd: Pmd) -> bool:
    """Let a store to a huge page through: reuse the page, or split it for one to be copied (False).

    Kernel: mm/huge_memory.c, do_huge_pmd_wp_page().
    """
    kernel = vma.vm_mm.kernel
    mem, folio = kernel.mem, pmd_folio(orig_pmd)
    if is_huge_zero_pmd(orig_pmd):
        done = do_huge_zero_wp_pmd(vma, address, pmd, orig_pmd)
        if not done:
            split_huge_pmd(vma, pmd, address)
        return done
    ptl = pmd_lock(pmd)
    if pmdp_get_lockless(pmd) != orig_pmd:
        ptl.release()
        return True
    if mem.page_flags.test_bits(folio, PAGE_ANON_EXCLUSIVE):
        _reuse(vma, pmd, orig_pmd)
        ptl.release()
        return True
    if not mem.folio_trylock(folio):
        mem.folio_get(folio)
        ptl.release()
        folio_lock(kernel, folio)
        ptl = pmd_lock(pmd)
        if pmdp_get_lockless(pmd) != orig_pmd:
            ptl.release()
            mem.folio_unlock(folio)
            mem.folio_put(folio)
            return True
        mem.folio_put(folio)
    reused = _is_alone(vma, folio)
    mem.folio_unlock(folio)
    if reused:
        _reuse(vma, pmd, orig_pmd)
    ptl.release()
    if not reused:
        split_huge_pmd(vma, pmd, address)
    return reused


def _is_alone(vma: Vma, folio: Folio) -> bool:
    """Whether a locked huge page is this process's alone, which it is marked as then. Caller holds the pmd
    lock. Kernel: mm/huge_memory.c, do_huge_pmd_wp_page().
    """
    kernel = vma.vm_mm.kernel
    mem = kernel.mem
    if mem.page_flags.test_bits(folio, PAGE_ANON_EXCLUSIVE):
        return True
    cached = mem.folio_nr_pages(folio) if mem.test(folio, PG_SWAPCACHE) else 0
    if mem.folio_ref_count(folio) > 1 + cached:
        return False
    if cached:
        folio_free_swap(kernel, folio)
    if mem.folio_ref_count(folio) != 1:
        return False
    assert vma.anon_vma is not None
    mem.anon_vma.raw[folio] = vma.anon_vma.number  # folio_move_anon_rmap()
    mem.page_flags.set_bits(folio, PAGE_ANON_EXCLUSIVE)
    return True


def _reuse(vma: Vma, pmd: PmdPtr, orig_pmd: Pmd) -> None:
    """Let a page be written that is this process's alone."""
    may = WRITE if vma.vm_flags & VM_WRITE else 0
    pmd.page.pmds.write(pmd.slot, orig_pmd | YOUNG | DIRTY | SOFT_DIRTY | may)


def pmd_migration_entry_wait(kernel: Kernel, pmd: PmdPtr) -> None:
    """Wait for the end of a huge page's migration. Kernel: mm/migrate.c."""
    pmdval = pmdp_get_lockless(pmd)
    if pmd_is_migration_entry(pmdval):
        kernel.mem.folio_wait_locked(pmd_folio(pmdval))


# Fork


def copy_huge_pmd(copy: Vma, vma: Vma, target: PmdPtr, source: PmdPtr, haddr: Address) -> bool:
    """Share a huge page, or its migration entry, read-only on both sides; False: it is none any more, or
    one that is pinned and was split: look again.

    Kernel: mm/huge_memory.c, copy_huge_pmd(), copy_huge_non_present_pmd().
    """
    kernel = vma.vm_mm.kernel
    mem = kernel.mem
    table = kernel.new_table()
    dst_ptl = pmd_lock(target)
    src_ptl = pmd_lock(source)
    pmdval = pmdp_get_lockless(source)
    folio, present = pmd_folio(pmdval), pmd_trans_huge(pmdval)
    is_zero = is_huge_zero_pmd(pmdval)
    is_anon = pmd_is_migration_entry(pmdval)
    if present and not is_zero:
        mem.folio_get(folio)
        is_anon = folio_try_dup_anon_rmap_pmd(kernel, folio, copy, vma)
        if not is_anon:
            mem.folio_put(folio)
    if is_anon or is_zero:
        copy.vm_mm.counters[MM_ANONPAGES] += kernel.geometry.ptrs_per_pte if is_anon else 0
        pgtable_trans_huge_deposit(target, table.number)
        source.page.pmds.clear_bits(source.slot, WRITE | SWP_EXCLUSIVE)
        kept = YOUNG if not present else 0
        target.page.pmds.write(target.slot, copied_entry(pmdval, copy, kept))
    src_ptl.release()
    dst_ptl.release()
    if is_anon or is_zero:
        return True
    del kernel.tables[table.number]
    if present:
        split_huge_pmd(vma, source, haddr)
    return False


def copied_entry(entry: Pte, copy: Vma, kept: int = 0) -> Pte:
    """What a forked mapping gets for an entry: nothing that lets it store, and no mark of its use but
    those to be kept.

    Kernel: mm/memory.c, __copy_present_ptes(), copy_nonpresent_pte().
    """
    protected = copy.vm_flags & (VM_UFFD_WP | VM_UFFD_RWP)
    dropped = WRITE | SWP_EXCLUSIVE | (YOUNG & ~kept) | (0 if protected else UFFD_WP)
    return Pte(entry & ~dropped)


def folio_try_dup_anon_rmap_pmd(kernel: Kernel, folio: Folio, copy: Vma, vma: Vma) -> bool:
    """Count one more mapping of a huge page, which is nobody's alone any more; False where it is this
    process's alone and may be pinned. Kernel: include/linux/rmap.h, folio_try_dup_anon_rmap_pmd().
    """
    mem = kernel.mem
    if mem.page_flags.raw[folio] & PAGE_ANON_EXCLUSIVE:
        if folio_maybe_dma_pinned(kernel, folio):
            return False
        mem.page_flags.clear_bits(folio, PAGE_ANON_EXCLUSIVE)
    remember_mm(mem, folio, vma.vm_mm)
    folio_add_anon_rmap_pmd(mem, kernel.this_cpu, folio, copy, exclusive=False)
    return True


# Zap


def zap_deposited_table(kernel: Kernel, pmd: PmdPtr) -> None:
    """Free the table that waited for a split. Kernel: mm/huge_memory.c."""
    pte_free(kernel.tables[pgtable_trans_huge_withdraw(pmd)])


# Migration


def set_pmd_migration_entry(vma: Vma, haddr: Address, pmd: PmdPtr) -> None:
    """Make a huge PMD a migration entry. Caller holds the pmd lock and the folio lock.

    Kernel: mm/huge_memory.c, set_pmd_migration_entry().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    mem = kernel.mem
    old = pmdp_invalidate(mm, haddr, pmd)
    folio = pmd_folio(old)
    if old & DIRTY:
        mem.folio_mark_dirty(folio)
    exclusive = mem.page_flags.clear_bits(folio, PAGE_ANON_EXCLUSIVE) & PAGE_ANON_EXCLUSIVE
    flags = old & KEPT | (SWP_EXCLUSIVE if exclusive else 0)
    pmd.page.pmds.write(pmd.slot, leaf_pte(Leaf.MIGRATION, folio, flags))
    folio_remove_rmap_pmd(mem, kernel.this_cpu, folio, vma)
    mem.folio_put(folio)


def remove_migration_pmd(vma: Vma, pmd: PmdPtr, entry: Pmd, folio: Folio) -> None:
    """Make a PMD's migration entry a mapping of folio. Caller holds the pmd lock.

    Kernel: mm/huge_memory.c, remove_migration_pmd().
    """
    kernel = vma.vm_mm.kernel
    kernel.mem.folio_get(folio)
    exclusive = entry & SWP_EXCLUSIVE != 0
    folio_add_anon_rmap_pmd(kernel.mem, kernel.this_cpu, folio, vma, exclusive=exclusive)
    pmd.page.pmds.write(pmd.slot, huge_pmd(folio, entry & KEPT))


def map_anon_folio_pmd_pf(
    kernel: Kernel, folio: Folio, pmd: PmdPtr, vma: Vma, haddr: Address
) -> None:
    """Map a PMD-sized folio for a fault, and count it. Caller holds the pmd lock.

    Kernel: mm/huge_memory.c, map_anon_folio_pmd_pf().
    """
    map_anon_folio_pmd_nopf(kernel, folio, pmd, vma, haddr)
    order = kernel.geometry.pmd_order
    vma.vm_mm.counters[MM_ANONPAGES] += 1 << order
    kernel.vmstat.count_vm_event("thp_fault_alloc")
    kernel.vmstat.count_mthp_stat(order, "anon_fault_alloc")


def map_anon_folio_pmd_nopf(
    kernel: Kernel, folio: Folio, pmd: PmdPtr, vma: Vma, haddr: Address
) -> None:
    """Map a PMD-sized folio by its PMD. Caller holds the pmd lock.

    Kernel: mm/huge_memory.c, map_anon_folio_pmd_nopf().
    """
    pmd.page.ptl.assert_held()
    flags = YOUNG | DIRTY | SOFT_DIRTY | (WRITE if vma.vm_flags & VM_WRITE else 0)
    folio_add_new_anon_rmap(kernel.mem, folio, vma, haddr, exclusive=True, pmd_mapped=True)
    folio_add_lru_vma(kernel.mem, kernel.this_cpu, folio, vma)
    pmd.page.pmds.write(pmd.slot, huge_pmd(folio, flags))
    if kernel.settings.shrink_underused:
        kernel.mem.deferred_split_folio(folio, partially_mapped=False)
