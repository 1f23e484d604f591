# SPDX-License-Identifier: GPL-2.0-or-later
"""ksmd merges a page with one of the same contents, and a swap-in takes it apart. Kernel: mm/ksm.c."""

from __future__ import annotations

from mthp.mm.gup import folio_maybe_dma_pinned
from mthp.mm.huge_memory_split import split_folio
from mthp.mm.memcontrol import mem_cgroup_charge
from mthp.mm.mm_types import MM_ANONPAGES, Kernel, Mm, Vma, linear_page_index
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.page_flags import (
    PAGE_ANON_EXCLUSIVE,
    PG_ANON,
    PG_DIRTY,
    PG_KSM,
    PG_LOCKED,
    PG_SWAPCACHE,
    PG_UPTODATE,
)
from mthp.mm.page_vma_mapped import map_pte
from mthp.mm.pagewalk import folio_walk
from mthp.mm.pgtable import mm_find_pmd, pte_offset_map_lock, ptep_clear_flush, unlocked_after
from mthp.mm.pgtable_types import DIRTY, WRITE, YOUNG, Pte, mk_pte, pte_dirty, pte_write, zero_pte
from mthp.mm.rmap import folio_add_anon_rmap_ptes, folio_remove_rmap_ptes
from mthp.mm.swapfile import folio_free_swap
from mthp.mm.vm_flags import VM_MERGEABLE
from mthp.words.units import Address, Folio, Pfn


def ksm_might_need_to_copy(
    kernel: Kernel, folio: Folio, vma: Vma, address: Address
) -> Folio | None:
    """The swap cache folio itself, or a locked copy of it where it already belongs to another place
    (a merged page loses the mark when it is swapped out); None: no memory.

    Divergence: a place is told by its index alone, not by the root of its anon_vma.
    Kernel: mm/ksm.c, ksm_might_need_to_copy().
    """
    mem = kernel.mem
    flags = mem.flags.test_bits(folio, PG_KSM | PG_ANON | PG_UPTODATE)
    if mem.folio_test_large(folio) or flags & PG_KSM or not flags & PG_ANON:
        return folio
    if mem.index.raw[folio] == linear_page_index(vma, address) or not flags & PG_UPTODATE:
        return folio
    copy = mem.folio_alloc(0)
    if copy is None:
        return None
    if not mem_cgroup_charge(copy, vma.vm_mm):
        mem.folio_put(copy)
        return None
    mem.content.write(copy, mem.content.read(folio))
    kernel.machine.smp_wmb()
    mem.flags.set_bits(copy, PG_DIRTY | PG_UPTODATE | PG_LOCKED)
    kernel.vmstat.count_vm_event("ksm_swpin_copy")
    return copy


def ksm_do_scan(mm: Mm, address: Address, kpage: Folio) -> None:
    """Look at one page, and merge it with kpage (0: the zero page) if it holds the same.

    Kernel: mm/ksm.c, ksm_do_scan(), scan_get_next_rmap_item(), cmp_and_merge_page().
    """
    kernel = mm.kernel
    mem = kernel.mem
    with mm.mmap_read_lock():
        vma = find_mergeable_vma(mm, address)
        page = folio_walk(vma, address) if vma is not None else None
    if page is None:
        return
    if kpage == 0 or mem.folio_try_get(kpage):
        try_to_merge_with_ksm_page(mm, address, page, kpage)
        if kpage:
            mem.folio_put(kpage)
    mem.folio_put(mem.page_folio(page))


def find_mergeable_vma(mm: Mm, address: Address) -> Vma | None:
    """The VMA of address, if it is mergeable; mmap_lock is held. Kernel: find_mergeable_vma()."""
    vma = mm.vma_lookup(address)
    if vma is None or not vma.vm_flags & VM_MERGEABLE:
        return None
    return vma if vma.anon_vma is not None else None


def try_to_merge_with_ksm_page(mm: Mm, address: Address, page: Pfn, kpage: Folio) -> bool:
    """Map kpage instead; returns whether it is. Kernel: try_to_merge_with_ksm_page()."""
    with mm.mmap_read_lock():
        vma = find_mergeable_vma(mm, address)
        return vma is not None and try_to_merge_one_page(vma, address, page, kpage)


def try_to_merge_one_page(vma: Vma, address: Address, page: Pfn, kpage: Folio) -> bool:
    """Merge the page. Caller holds a reference of its folio, which is split if it is large.

    Kernel: mm/ksm.c, try_to_merge_one_page().
    """
    kernel = vma.vm_mm.kernel
    mem = kernel.mem
    folio = mem.page_folio(page)
    if page == kpage or not mem.test(folio, PG_ANON) or not mem.folio_trylock(folio):
        return False
    merged = False
    if not mem.folio_test_large(folio) or split_folio(kernel, folio, page):
        orig_pte = write_protect_page(vma, address, Folio(page))
        merged = (
            orig_pte is not None
            and pages_identical(kernel, page, kpage)
            and replace_page(vma, address, Folio(page), kpage, orig_pte)
        )
    mem.folio_unlock(mem.page_folio(page))
    return merged


def pages_identical(kernel: Kernel, page: Pfn, kpage: Folio) -> bool:
    """Compare contents; the zero page holds 0. Kernel: include/linux/mm.h, pages_identical()."""
    content = kernel.mem.content
    return content.read(page) == (content.read(kpage) if kpage else 0)


def write_protect_page(vma: Vma, address: Address, folio: Folio) -> Pte | None:
    """Let no store reach the page, and return its PTE. None: it is not mapped there, or pinned.

    The PTE is cleared and flushed before references are counted, for GUP-fast takes no lock.
    Kernel: mm/ksm.c, write_protect_page().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    mem = kernel.mem
    with mmu_notifier_invalidate_range(mm, address, address + kernel.geometry.page_size):
        found = map_pte(mm, address, folio)
        if found is None:
            return None
        with unlocked_after(kernel, found) as pte:
            entry = pte.get(0)
            exclusive = mem.page_flags.test_bits(folio, PAGE_ANON_EXCLUSIVE)
            if not (pte_write(entry) or pte_dirty(entry) or exclusive):
                return entry
            swapped = mem.test(folio, PG_SWAPCACHE)
            entry = ptep_clear_flush(mm, pte, address)
            used = mem.folio_mapcount(folio) + 1 + swapped != mem.folio_ref_count(folio)
            if used or (exclusive and not folio_try_share_anon_rmap_pte(kernel, folio)):
                pte.ptes.write(pte.base, entry)
                return None
            if pte_dirty(entry):
                mem.set(folio, PG_DIRTY)
            entry = Pte(entry & ~(WRITE | DIRTY))
            pte.ptes.write(pte.base, entry)
    return entry


def folio_try_share_anon_rmap_pte(kernel: Kernel, page: Pfn) -> bool:
    """Make the page one that several may map, unless it is pinned. The PTE was cleared before.

    Kernel: include/linux/rmap.h, folio_try_share_anon_rmap_pte().
    """
    if folio_maybe_dma_pinned(kernel, kernel.mem.page_folio(page)):
        return False
    kernel.mem.page_flags.clear_bits(page, PAGE_ANON_EXCLUSIVE)
    return True


def replace_page(vma: Vma, address: Address, page: Folio, kpage: Folio, orig_pte: Pte) -> bool:
    """Map kpage in the page's place, if orig_pte still stands there. Kernel: mm/ksm.c, replace_page()."""
    mm = vma.vm_mm
    kernel = mm.kernel
    mem = kernel.mem
    cpu = kernel.this_cpu
    pmd = mm_find_pmd(mm, address)
    assert pmd is not None
    with mmu_notifier_invalidate_range(mm, address, address + kernel.geometry.page_size):
        found = pte_offset_map_lock(mm, pmd, address)
        if found is None:
            return False
        with unlocked_after(kernel, found) as pte:
            if pte.get(0) != orig_pte:
                return False
            if kpage:
                mem.folio_get(kpage)
                pages = range(kpage, kpage + 1)
                folio_add_anon_rmap_ptes(mem, cpu, kpage, pages, vma, exclusive=False)
                newpte = mk_pte(kpage, YOUNG)
            else:
                newpte = zero_pte(YOUNG | DIRTY)
                mm.counters[MM_ANONPAGES] -= 1
            ptep_clear_flush(mm, pte, address)
            pte.ptes.write(pte.base, newpte)
            folio_remove_rmap_ptes(mem, cpu, page, page, 1, vma)
            if not mem.folio_mapcount(page):
                folio_free_swap(kernel, page)
            mem.folio_put(page)
    return True
