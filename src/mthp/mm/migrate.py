# SPDX-License-Identifier: GPL-2.0-or-later
"""Anonymous folios are migrated, by compaction or move_pages(). Kernel: mm/migrate.c, mm/rmap.c."""

from __future__ import annotations

from mthp.mm.folio import (
    folio_add_lru,
    folio_isolate_lru,
    folio_putback_lru,
    lru_add_drain,
    mlock_drain_local,
)
from mthp.mm.huge_memory import (
    KEPT,
    remove_migration_pmd,
    set_pmd_migration_entry,
    split_huge_pmd_locked,
)
from mthp.mm.mm_types import MM_ANONPAGES, Kernel, Mm, Vma
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.page_flags import (
    PAGE_ANON_EXCLUSIVE,
    PAGE_HWPOISON,
    PG_ANON,
    PG_MLOCKED,
    PG_PARTIALLY_MAPPED,
    PG_SWAPBACKED,
    PG_UPTODATE,
)
from mthp.mm.page_vma_mapped import HugeMapping, Lookup, page_vma_mapped_walk
from mthp.mm.pagewalk import folio_walk
from mthp.mm.pgtable import PteMap, ptep_clear_flush, unlocked_after
from mthp.mm.pgtable_types import (
    SOFT_DIRTY,
    SWP_EXCLUSIVE,
    UFFD_WP,
    YOUNG,
    Leaf,
    Pte,
    leaf_pte,
    mk_pte,
    pte_dirty,
    zero_pte,
)
from mthp.mm.rmap import (
    folio_add_anon_rmap_ptes,
    folio_lock_anon_vma_read,
    folio_remove_rmap_ptes,
    mapped_places,
    page_at,
)
from mthp.mm.vm_flags import VM_LOCKED
from mthp.words.profiles import SharedSplit
from mthp.words.units import Address, Folio, Pfn


def try_to_migrate(kernel: Kernel, folio: Folio) -> None:
    """Put a migration entry wherever the folio is mapped. Kernel: mm/rmap.c, try_to_migrate()."""
    with folio_lock_anon_vma_read(kernel, folio):
        for vma, address in mapped_places(kernel, folio):
            try_to_migrate_one(kernel, folio, vma, address)


def try_to_migrate_one(
    kernel: Kernel,
    folio: Folio,
    vma: Vma,
    address: Address,
    lookup: Lookup = Lookup.LOCKLESS,
    *,
    split_huge_pmd: bool = False,
) -> bool:
    """Make one PTE, or the PMD, a migration entry; or of a PMD a table of them, under its lock. Returns
    whether the other mappings are to be dealt with, too: for a PMD that was split, the profile says.

    Kernel: mm/rmap.c, try_to_migrate_one(); TTU_SPLIT_HUGE_PMD, mm/huge_memory.c,
    __split_huge_pmd_locked() with freeze.
    """
    mem = kernel.mem
    mm = vma.vm_mm
    page = page_at(kernel, folio, vma, address)
    left = folio + mem.folio_nr_pages(folio) - page
    end = min(vma.vm_end, address + (left << kernel.geometry.page_shift))
    with mmu_notifier_invalidate_range(mm, address, end):
        found = page_vma_mapped_walk(mm, address, page, lookup)
        if found is None:
            return True
        if isinstance(found, HugeMapping):
            haddr = mm.geometry.pmd_addr(address)
            with found.ptl:
                set_pmd_migration_entry(vma, haddr, found.pmd)
                if split_huge_pmd:
                    split_huge_pmd_locked(vma, haddr, found.pmd)
            return not split_huge_pmd or kernel.profile.shared_split is SharedSplit.EVERY_PMD
        with unlocked_after(kernel, found) as pte:
            pteval = ptep_clear_flush(mm, pte, address)
            if pte_dirty(pteval):
                mem.folio_mark_dirty(folio)
            exclusive = mem.page_flags.clear_bits(page, PAGE_ANON_EXCLUSIVE)
            flags = pteval & KEPT | (SWP_EXCLUSIVE if exclusive else 0)
            pte.ptes.write(pte.base, leaf_pte(Leaf.MIGRATION, page, flags))
            folio_remove_rmap_ptes(mem, kernel.this_cpu, folio, page, 1, vma)
            if vma.vm_flags & VM_LOCKED:
                mlock_drain_local(mem, kernel.this_cpu)
            mem.folio_put(folio)
    return True


def remove_migration_ptes(kernel: Kernel, src: Folio, dst: Folio) -> None:
    """Map dst wherever an entry of src stands. Kernel: mm/migrate.c, remove_migration_ptes()."""
    with folio_lock_anon_vma_read(kernel, src):
        for vma, address in mapped_places(kernel, src):
            remove_migration_pte(kernel, src, dst, vma, address)


def remove_migration_pte(
    kernel: Kernel,
    src: Folio,
    dst: Folio,
    vma: Vma,
    address: Address,
    *,
    unused_to_zeropage: bool = False,
) -> None:
    """Map dst where an entry of src stands; or the zero page, if asked to, where it holds zeroes.

    Kernel: mm/migrate.c, remove_migration_pte(), TTU_USE_SHARED_ZEROPAGE.
    """
    mem = kernel.mem
    page = page_at(kernel, src, vma, address)
    found = page_vma_mapped_walk(vma.vm_mm, address, -page, Lookup.SYNC)
    if found is None:
        return
    if isinstance(found, HugeMapping):
        with found.ptl:
            remove_migration_pmd(vma, found.pmd, found.pmdval, dst)
        return
    new = Pfn(dst + page - src)
    with unlocked_after(kernel, found) as pte:
        old = pte.get(0)
        if unused_to_zeropage and try_to_map_unused_to_zeropage(kernel, pte, old, new, vma):
            return
        mem.folio_get(dst)
        exclusive = old & SWP_EXCLUSIVE != 0
        folio_add_anon_rmap_ptes(
            mem, kernel.this_cpu, dst, range(new, new + 1), vma, exclusive=exclusive
        )
        pte.ptes.write(pte.base, mk_pte(new, old & KEPT))
        if vma.vm_flags & VM_LOCKED:
            mlock_drain_local(mem, kernel.this_cpu)
        kernel.update_mmu_cache_range(vma, address, 1)


def try_to_map_unused_to_zeropage(
    kernel: Kernel, pte: PteMap, old: Pte, page: Pfn, vma: Vma
) -> bool:
    """Map the zero page where the entry of a locked page of zeroes stands; returns whether it is
    mapped. Mlocked pages stay, and so do those that failed.

    That an mm forbids the zero page, as those of s390 guests may, is asked on no other architecture.
    Kernel: mm/migrate.c, try_to_map_unused_to_zeropage().
    """
    mem = kernel.mem
    if mem.page_flags.test_bits(page, PAGE_HWPOISON):
        return False
    if vma.vm_flags & VM_LOCKED or mem.test(mem.page_folio(page), PG_MLOCKED):
        return False
    if mem.content.read(page):
        return False
    pte.ptes.write(pte.base, zero_pte(YOUNG | old & (SOFT_DIRTY | UFFD_WP)))
    vma.vm_mm.counters[MM_ANONPAGES] -= 1
    return True


def move_page(mm: Mm, address: Address) -> None:
    """Move what is mapped at address, small or huge, as move_pages() does.

    Kernel: mm/migrate.c, do_pages_move(), add_folio_for_migration().
    """
    mem = mm.kernel.mem
    with mm.mmap_read_lock():
        vma = mm.vma_lookup(address)
        page = folio_walk(vma, address) if vma is not None else None
    if page is not None:
        folio = mem.page_folio(page)
        isolated = folio_isolate_lru(mem, folio)
        mem.folio_put(folio)
        if isolated:
            migrate_isolated(mm.kernel, folio)


def migrate_folio(kernel: Kernel, folio: Folio) -> None:
    """Move a small folio that compaction finds by its frame.

    Kernel: mm/compaction.c, isolate_migratepages_block().
    """
    mem = kernel.mem
    if not mem.folio_try_get(folio):
        return
    isolated = folio_isolate_lru(mem, folio)
    mem.folio_put(folio)
    if isolated:
        migrate_isolated(kernel, folio)


def migrate_isolated(kernel: Kernel, folio: Folio) -> None:
    """Move a folio elsewhere, or give up and leave it where it was.

    Kernel: mm/migrate.c, migrate_pages_batch(), migrate_folio_unmap(), migrate_folio_move(),
    migrate_folio_undo_src().
    """
    mem = kernel.mem
    cpu = kernel.this_cpu
    if mem.folio_trylock(folio):
        was_mlocked = mem.test(folio, PG_MLOCKED)
        try_to_migrate(kernel, folio)
        moved = not mem.folio_mapcount(folio) and _move(kernel, folio, was_mlocked)
        if not moved:
            remove_migration_ptes(kernel, folio, folio)
        mem.folio_unlock(folio)
        if moved:
            mem.folio_put(folio)
            return
    folio_putback_lru(mem, cpu, folio)


def _move(kernel: Kernel, src: Folio, was_mlocked: bool) -> bool:
    """Copy an unmapped folio to a new one, which takes its place, and its charge: mem_cgroup_migrate()."""
    mem = kernel.mem
    if mem.folio_ref_count(src) != 1:  # folio_migrate_mapping(): it is in use
        return False
    order = mem.folio_order(src)
    dst = mem.folio_alloc(order)
    if dst is None:
        return False
    for i in range(1 << order):
        if mem.page_flags.test_bits(src + i, PAGE_HWPOISON):  # folio_mc_copy()
            mem.folio_put(dst)
            return False
        mem.content.write(dst + i, mem.content.read(src + i))
    mem.folio_trylock(dst)
    kernel.machine.smp_wmb()
    mem.flags.set_bits(dst, PG_ANON | PG_SWAPBACKED | PG_UPTODATE)
    mem.vmstat.count_mthp_stat(order, "nr_anon")
    mem.anon_vma.raw[dst] = mem.anon_vma.raw[src]
    mem.index.raw[dst] = mem.index.raw[src]
    if src in mem.mm_mapcounts:
        mem.mm_mapcounts[dst] = {}
    queued = order > 1 and mem.deferred_split.has(src, mem.sublist_of(src))
    partially_mapped = mem.flags.raw[src] & PG_PARTIALLY_MAPPED != 0
    if queued:
        mem.folio_unqueue_deferred_split(src)
    mem.memcg.raw[dst], mem.memcg.raw[src] = mem.memcg.raw[src], 0
    if queued:
        mem.deferred_split_folio(dst, partially_mapped=partially_mapped)
    folio_add_lru(mem, kernel.this_cpu, dst)
    if was_mlocked:
        lru_add_drain(mem, kernel.this_cpu)
    remove_migration_ptes(kernel, src, dst)
    mem.folio_unlock(dst)
    mem.folio_put(dst)
    return True
