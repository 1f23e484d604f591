# SPDX-License-Identifier: GPL-2.0-or-later
"""A page's memory fails: no task may reach it any more. Kernel: mm/memory-failure.c."""

from __future__ import annotations

from mthp.mm.folio import folio_isolate_lru, lru_add_drain
from mthp.mm.mm_types import MM_ANONPAGES, Kernel, Vma
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.page_flags import (
    PAGE_ANON_EXCLUSIVE,
    PAGE_HWPOISON,
    PG_ACTIVE,
    PG_LRU,
    PG_SWAPCACHE,
    PG_UNEVICTABLE,
)
from mthp.mm.page_vma_mapped import Lookup, folio_lock, map_pte
from mthp.mm.pgtable import ptep_clear_flush, unlocked_after
from mthp.mm.pgtable_types import Leaf, leaf_pte
from mthp.mm.reports import Poisoned
from mthp.mm.rmap import folio_lock_anon_vma_read, folio_remove_rmap_ptes, mapped_places
from mthp.words.units import Address, Folio, Pfn


def memory_failure(kernel: Kernel, page: Pfn) -> None:
    """Take a failed page out of use. Its folio keeps a reference, so that it is not reused; a
    page that is free leaves the free lists.

    Divergence: the page's own CPU batch is emptied, not every CPU's; a folio in the swap cache
    stays.
    Kernel: mm/memory-failure.c, memory_failure(), get_hwpoison_page(), shake_folio().
    """
    mem = kernel.mem
    mem.page_flags.set_bits(page, PAGE_HWPOISON)
    folio = mem.page_folio(page)
    if not mem.folio_try_get(folio):
        mem.take_page_off_buddy(page)
        return
    if mem.folio_test_large(folio):
        kernel.report(Poisoned(page, unmapped=False))  # MF_MSG_UNSPLIT_THP: its users are killed
        return
    if not mem.test(folio, PG_LRU):
        lru_add_drain(mem, kernel.this_cpu)
    folio_lock(kernel, folio)
    unmapped = mem.test(folio, PG_LRU) and hwpoison_user_mappings(kernel, folio)
    if unmapped:
        delete_from_lru_cache(kernel, folio)
    mem.folio_unlock(folio)
    kernel.report(Poisoned(page, unmapped))


def hwpoison_user_mappings(kernel: Kernel, folio: Folio) -> bool:
    """Unmap the folio; returns whether nothing maps it any more. Kernel: unmap_poisoned_folio()."""
    if kernel.mem.test(folio, PG_SWAPCACHE):
        return False
    if kernel.mem.folio_mapcount(folio):
        with folio_lock_anon_vma_read(kernel, folio):
            for vma, address in mapped_places(kernel, folio):
                try_to_unmap_one_poisoned(kernel, folio, vma, address)
    return not kernel.mem.folio_mapcount(folio)


def try_to_unmap_one_poisoned(kernel: Kernel, folio: Folio, vma: Vma, address: Address) -> None:
    """Put an entry there that kills its users. Kernel: mm/rmap.c, try_to_unmap_one()."""
    mem = kernel.mem
    mm = vma.vm_mm
    with mmu_notifier_invalidate_range(mm, address, address + kernel.geometry.page_size):
        found = map_pte(mm, address, folio, Lookup.SYNC)
        if found is None:
            return
        with unlocked_after(kernel, found) as pte:
            ptep_clear_flush(mm, pte, address)
            mem.page_flags.clear_bits(folio, PAGE_ANON_EXCLUSIVE)
            pte.ptes.write(pte.base, leaf_pte(Leaf.HWPOISON, folio))
            mm.counters[MM_ANONPAGES] -= 1
            folio_remove_rmap_ptes(mem, kernel.this_cpu, folio, folio, 1, vma)
            mem.folio_put(folio)


def delete_from_lru_cache(kernel: Kernel, folio: Folio) -> None:
    """Take it off the LRU for good. Kernel: mm/memory-failure.c, delete_from_lru_cache()."""
    mem = kernel.mem
    if folio_isolate_lru(mem, folio):
        mem.flags.clear_bits(folio, PG_ACTIVE | PG_UNEVICTABLE)
        mem.folio_put(folio)
