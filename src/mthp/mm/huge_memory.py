# SPDX-License-Identifier: GPL-2.0-or-later
"""Huge PMDs, as a collapse leaves them: split, write faults, fork, moves. Kernel: mm/huge_memory.c."""

from __future__ import annotations

from mthp.mm.folio import folio_add_lru_vma
from mthp.mm.huge_mm import thp_vma_suitable_order
from mthp.mm.memcontrol import mem_cgroup_charge
from mthp.mm.mm_types import MM_ANONPAGES, Kernel, Mm, PmdPtr, Vma
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.page_flags import PAGE_ANON_EXCLUSIVE, PG_SWAPCACHE, PG_UPTODATE
from mthp.mm.pgtable import (
    PteMap,
    flush_tlb_mm_range,
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
    Leaf,
    Pmd,
    huge_pmd,
    leaf_pte,
    mk_pte,
    pmd_folio,
    pmd_is_migration_entry,
    pmd_none,
    pmd_trans_huge,
    pte_pfn,
    pte_write,
)
from mthp.mm.rmap import (
    folio_add_anon_rmap_pmd,
    folio_add_anon_rmap_ptes,
    folio_add_new_anon_rmap,
    folio_remove_rmap_pmd,
    remember_mm,
)
from mthp.mm.vm_flags import VM_UFFD_MISSING, VM_WRITE
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
    if pmd_trans_huge(pmdval):
        old = pmdp_invalidate(mm, haddr, pmd)
        table = _map_by_ptes(vma, pmd, old)
        folio_remove_rmap_pmd(kernel.mem, kernel.this_cpu, pmd_folio(old), vma)
    elif pmd_is_migration_entry(pmdval):
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


def do_huge_pmd_anonymous_page(vma: Vma, address: Address, pmd: PmdPtr) -> None:
    """Put a huge page where a fault found no table. Caller holds the VMA or mmap_lock.

    Kernel: mm/huge_memory.c, __do_huge_pmd_anonymous_page().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    mem = kernel.mem
    order, haddr = mm.geometry.pmd_order, mm.geometry.pmd_addr(address)
    if not thp_vma_suitable_order(vma, address, order) or vma.vm_flags & VM_UFFD_MISSING:
        return
    folio = mem.folio_alloc(order)
    assert folio is not None
    if not mem_cgroup_charge(folio, mm):
        mem.folio_put(folio)
        return
    for page in range(folio, folio + (1 << order)):
        mem.content.write(page, 0)
    kernel.machine.smp_wmb()
    mem.flags.store_bits(folio, PG_UPTODATE)
    table = kernel.new_table()
    with pmd_lock(pmd):
        if pmd_none(pmdp_get_lockless(pmd)):
            pgtable_trans_huge_deposit(pmd, table.number)
            map_anon_folio_pmd_nopf(kernel, folio, pmd, vma, haddr)
            mm.counters[MM_ANONPAGES] += 1 << order
            return
    del kernel.tables[table.number]
    mem.folio_put(folio)


def do_huge_pmd_wp_page(vma: Vma, address: Address, pmd: PmdPtr, orig_pmd: Pmd) -> bool:
    """Let a store to a huge page through: reuse the page, or split it for one to be copied (False).

    Kernel: mm/huge_memory.c, do_huge_pmd_wp_page().
    """
    mem = vma.vm_mm.kernel.mem
    folio = pmd_folio(orig_pmd)
    ptl = pmd_lock(pmd)
    if pmdp_get_lockless(pmd) != orig_pmd:
        ptl.release()
        return True
    if mem.page_flags.test_bits(folio, PAGE_ANON_EXCLUSIVE):
        _reuse(vma, pmd, orig_pmd)
        ptl.release()
        return True
    if mem.folio_trylock(folio):
        # 1 + folio_test_swapcache(): a huge page of these worlds is never swapped
        if mem.folio_ref_count(folio) == 1 and not mem.test(folio, PG_SWAPCACHE):
            mem.page_flags.set_bits(folio, PAGE_ANON_EXCLUSIVE)
            mem.folio_unlock(folio)
            _reuse(vma, pmd, orig_pmd)
            ptl.release()
            return True
        mem.folio_unlock(folio)
    ptl.release()
    split_huge_pmd(vma, pmd, address)
    return False


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


def copy_huge_pmd(copy: Vma, vma: Vma, target: PmdPtr, source: PmdPtr) -> bool:
    """Share a huge page, read-only on both sides; False: it is none any more, look again.

    Kernel: mm/huge_memory.c, copy_huge_pmd().
    """
    kernel = vma.vm_mm.kernel
    mem = kernel.mem
    table = kernel.new_table()
    dst_ptl = pmd_lock(target)
    src_ptl = pmd_lock(source)
    pmdval = pmdp_get_lockless(source)
    if not pmd_trans_huge(pmdval):
        del kernel.tables[table.number]
        src_ptl.release()
        dst_ptl.release()
        return False
    folio = pmd_folio(pmdval)
    mem.folio_get(folio)
    mem.page_flags.clear_bits(folio, PAGE_ANON_EXCLUSIVE)
    remember_mm(mem, folio, vma.vm_mm)
    folio_add_anon_rmap_pmd(mem, kernel.this_cpu, folio, copy, exclusive=False)
    copy.vm_mm.counters[MM_ANONPAGES] += kernel.geometry.ptrs_per_pte
    pgtable_trans_huge_deposit(target, table.number)
    source.page.pmds.clear_bits(source.slot, WRITE)
    target.page.pmds.write(target.slot, pmdval & ~(WRITE | YOUNG))
    src_ptl.release()
    dst_ptl.release()
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
