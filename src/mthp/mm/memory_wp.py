# SPDX-License-Identifier: GPL-2.0-or-later
"""A store to a page that is present and read-only: reused, or copied. Kernel: mm/memory.c.

Apart from memory.py, which is long.
"""

from __future__ import annotations

from mthp.mm.folio import folio_add_lru_vma, lru_add_drain
from mthp.mm.memcontrol import mem_cgroup_charge
from mthp.mm.mm_types import MM_ANONPAGES, Kernel, Mm, PmdPtr, Vma
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.page_flags import (
    PAGE_ANON_EXCLUSIVE,
    PG_ANON,
    PG_KSM,
    PG_LRU,
    PG_MAPPED_SHARED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_UPTODATE,
)
from mthp.mm.pgtable import flush_tlb_page, pte_offset_map_lock, unlocked_after
from mthp.mm.pgtable_types import (
    DIRTY,
    PTE_NONE,
    SOFT_DIRTY,
    UFFD_WP,
    WRITE,
    YOUNG,
    Pte,
    mk_pte,
    pte_pfn,
)
from mthp.mm.rmap import anon_vma_prepare, folio_add_new_anon_rmap, folio_remove_rmap_ptes
from mthp.mm.swapfile import folio_free_swap, free_swap_cache
from mthp.mm.vm_flags import VM_UFFD_WP, VM_WRITE
from mthp.words.units import Address, Folio


def new_anon_folio(mm: Mm, content: int) -> Folio | None:
    """Make a small folio, written before a task can reach it; None: its cgroup is full.

    Kernel: mm/memory.c, folio_prealloc().
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
    """Let a store to a page through: reuse the page or copy it. Kernel: mm/memory.c, do_wp_page()."""
    if not vma.vm_flags & VM_WRITE:
        return  # SIGSEGV
    if vma.vm_flags & VM_UFFD_WP and orig_pte & UFFD_WP:
        return  # handle_userfault(): the monitor decides, and the access waits for it
    kernel = vma.vm_mm.kernel
    mem = kernel.mem
    found = pte_offset_map_lock(vma.vm_mm, pmd, address)
    if found is None:
        return
    page = pte_pfn(orig_pte)
    with unlocked_after(kernel, found) as pte:
        if pte.get(0) != orig_pte:
            return
        if page:
            exclusive = mem.page_flags.raw[page] & PAGE_ANON_EXCLUSIVE
            if exclusive or wp_can_reuse_anon_folio(kernel, mem.page_folio(page), vma):
                if not exclusive:
                    mem.page_flags.set_bits(page, PAGE_ANON_EXCLUSIVE)
                pte.ptes.replace(pte.base, orig_pte, orig_pte | WRITE | DIRTY | YOUNG | SOFT_DIRTY)
                return
            mem.folio_get(mem.page_folio(page))
    wp_page_copy(vma, address, pmd, orig_pte)


def wp_can_reuse_anon_folio(kernel: Kernel, folio: Folio, vma: Vma) -> bool:
    """Whether nothing else refers to a folio of which the PTE lock is held: it is this process's alone then.

    Kernel: mm/memory.c, wp_can_reuse_anon_folio().
    """
    mem = kernel.mem
    if not mem.test(folio, PG_ANON):
        return False
    in_lru_cache = not mem.test(folio, PG_LRU)
    in_swapcache = mem.test(folio, PG_SWAPCACHE)
    if mem.folio_test_large(folio):
        return wp_can_reuse_large_anon_folio(kernel, folio)
    most = 1 + in_swapcache
    if mem.test(folio, PG_KSM) or mem.folio_ref_count(folio) > most + in_lru_cache:
        return False
    if in_lru_cache:
        lru_add_drain(mem, kernel.this_cpu)
    if mem.folio_ref_count(folio) > most or not mem.folio_trylock(folio):
        return False
    if mem.test(folio, PG_SWAPCACHE):
        folio_free_swap(kernel, folio)
    alone = not mem.test(folio, PG_KSM) and mem.folio_ref_count(folio) == 1
    if alone:
        assert vma.anon_vma is not None
        mem.anon_vma.raw[folio] = vma.anon_vma.number  # folio_move_anon_rmap()
    mem.folio_unlock(folio)
    return alone


def wp_can_reuse_large_anon_folio(kernel: Kernel, folio: Folio) -> bool:
    """The same of a large folio: every reference is a mapping's, and one process has them all. One page that
    is left of it is copied, so that the folio can be freed.

    Kernel: mm/memory.c, __wp_can_reuse_large_anon_folio().
    """
    mem = kernel.mem
    if mem.folio_mapcount(folio) <= 1 or mem.test(folio, PG_MAPPED_SHARED):
        return False
    if mem.test(folio, PG_SWAPCACHE):
        if not mem.folio_trylock(folio):
            return False
        folio_free_swap(kernel, folio)
        mem.folio_unlock(folio)
    return mem.folio_mapcount(folio) == mem.folio_ref_count(folio)


def wp_page_copy(vma: Vma, address: Address, pmd: PmdPtr, orig_pte: Pte) -> None:
    """Copy a page that a store may not change. Caller has taken a reference to its folio, which is put
    here; the zero page has none.

    Kernel: mm/memory.c, wp_page_copy().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    mem = kernel.mem
    old = pte_pfn(orig_pte)
    anon_vma_prepare(vma)
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
        head = mem.page_folio(old)
        if copied:
            free_swap_cache(kernel, head)
        mem.folio_put(head, 2 if copied else 1)
