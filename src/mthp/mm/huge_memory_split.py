# SPDX-License-Identifier: GPL-2.0-or-later
"""Large folios are split into small ones, at once or when memory is wanted. Kernel: mm/huge_memory.c.

Apart from huge_memory.py, since a split migrates what it unmaps, and migration knows huge PMDs.
"""

from __future__ import annotations

from collections import deque

from mthp.mm.list_lru import Sublist
from mthp.mm.migrate import remove_migration_pte, try_to_migrate_one
from mthp.mm.mm_types import Kernel, Mm, Vma
from mthp.mm.page_flags import (
    PAGE_HWPOISON,
    PG_LRU,
    PG_MLOCKED,
    PG_PARTIALLY_MAPPED,
    PG_SWAPCACHE,
    PG_WRITEBACK,
)
from mthp.mm.page_vma_mapped import Lookup
from mthp.mm.pagewalk import folio_walk
from mthp.mm.rmap import anon_vma_lock_write, mapped_places, page_at
from mthp.mm.swapfile import free_swap_cache
from mthp.words.units import Address, Folio, Pfn


def split_huge_pages_pid(mm: Mm, address: Address) -> None:
    """Split what is mapped at address, if it is large and not in use.

    Kernel: mm/huge_memory.c, split_huge_pages_pid().
    """
    mem = mm.kernel.mem
    with mm.mmap_read_lock():
        vma = mm.vma_lookup(address)
        page = folio_walk(vma, address) if vma is not None else None
        if page is None:
            return
        folio = mem.page_folio(page)
        if mem.folio_test_large(folio) and mem.folio_trylock(folio):
            split_folio(mm.kernel, folio, page)
            mem.folio_unlock(mem.page_folio(page))
        mem.folio_put(mem.page_folio(page))


def deferred_split_scan(kernel: Kernel, of: Sublist, nr_to_scan: int) -> int | None:
    """Split what is partially mapped or underused of the first folios of a queue; returns how many were
    split, or None (SHRINK_STOP) where nothing was there. It holds no lock of a process.

    The last of them come first, as the list they are moved to is filled from its front.
    Kernel: mm/huge_memory.c, deferred_split_scan(), deferred_split_isolate().
    """
    mem = kernel.mem
    dispose = mem.deferred_split.walk_one(of, nr_to_scan, mem.folio_try_get)
    split = sum(split_isolated(kernel, folio) for folio in reversed(dispose))
    return split if dispose else None


def split_isolated(kernel: Kernel, folio: Folio) -> bool:
    """Split a folio that was taken off the queue with a reference, if it is to be split; returns whether
    it was. One that is partially mapped and could not be split is queued again; a whole one that is in
    use, or could not be split, never is.

    Kernel: mm/huge_memory.c, deferred_split_scan(), what it does to each folio.
    """
    mem = kernel.mem
    partially_mapped = mem.test(folio, PG_PARTIALLY_MAPPED)
    wanted = partially_mapped or (not mem.test(folio, PG_MLOCKED) and thp_underused(kernel, folio))
    was_split = queue_again = False
    if wanted:
        if mem.folio_trylock(folio):
            was_split = split_folio(kernel, folio, folio)
            if was_split and not partially_mapped:
                mem.vmstat.count_vm_event("thp_underused_split_page")
            mem.folio_unlock(folio)
            queue_again = not was_split and mem.test(folio, PG_PARTIALLY_MAPPED)
        else:
            queue_again = True
    if queue_again:
        mem.deferred_split.add(folio, mem.sublist_of(folio))
    mem.folio_put(folio)
    return was_split


def thp_underused(kernel: Kernel, folio: Folio) -> bool:
    """Whether more of its pages hold nothing but zeroes than max_ptes_none allows; never where that
    allows all but one, nor where a page failed.

    Kernel: mm/huge_memory.c, thp_underused().
    """
    mem, limit = kernel.mem, kernel.settings.max_ptes_none
    pages = slice(folio, folio + mem.folio_nr_pages(folio))
    if limit == kernel.geometry.ptrs_per_pte - 1:
        return False
    if any(flags & PAGE_HWPOISON for flags in mem.page_flags.raw[pages]):
        return False
    return mem.content.raw[pages].count(0) > limit


def split_folio(
    kernel: Kernel, folio: Folio, lock_at: Pfn, isolated: deque[Folio] | None = None
) -> bool:
    """Split a large folio into pages; returns whether it was. Caller holds its lock and a
    reference, and keeps both of its page lock_at.

    anon_vma is held for writing: collapses below PMD order and other splits wait. isolated: what
    reclaim has taken off the LRU, to which the pages are added in place of going to the LRU.
    Kernel: mm/huge_memory.c, split_folio_to_list(), __folio_split().
    """
    mem = kernel.mem
    order = mem.folio_order(folio)
    split = _folio_split(kernel, folio, lock_at, isolated)
    mem.vmstat.count_mthp_stat(order, "split" if split else "split_failed")
    if order >= mem.pmd_order:
        mem.vmstat.count_vm_event("thp_split_page" if split else "thp_split_page_failed")
    return split


def _folio_split(kernel: Kernel, folio: Folio, lock_at: Pfn, isolated: deque[Folio] | None) -> bool:
    mem = kernel.mem
    if mem.test(folio, PG_WRITEBACK) or not mem.folio_mapcount(folio):
        return False  # folio_check_splittable(), folio_get_anon_vma()
    with anon_vma_lock_write(kernel.anon_vmas[mem.anon_vma.raw[folio]]):
        if mem.folio_expected_ref_count(folio) != mem.folio_ref_count(folio) - 1:
            return False
        nr = mem.folio_nr_pages(folio)
        places = [(*at, page_at(kernel, folio, *at)) for at in mapped_places(kernel, folio)]
        unmap_folio(kernel, folio)
        cached = nr if mem.test(folio, PG_SWAPCACHE) else 0
        split = mem.refcount.freeze(folio, 1 + cached)
        if split:
            _split_unmapped(kernel, folio, nr, isolated)
        for vma, address, page in places:  # remap_page()
            src = Folio(page) if split else folio
            remove_migration_pte(kernel, src, src, vma, address, unused_to_zeropage=split)
        for page in map(Folio, map(Pfn, range(folio, folio + nr if split else folio))):
            if page != lock_at:
                mem.folio_unlock(page)
                free_swap_cache(kernel, page)
                mem.folio_put(page)
    return split


def unmap_folio(kernel: Kernel, folio: Folio) -> None:
    """Put migration entries in the place of every mapping. Caller holds anon_vma for writing.

    Kernel: mm/huge_memory.c, unmap_folio().
    """
    for vma, address in sorted(mapped_places(kernel, folio), key=_start_pgoff):
        if not try_to_migrate_one(kernel, folio, vma, address, Lookup.SYNC, split_huge_pmd=True):
            break


def _start_pgoff(place: tuple[Vma, Address]) -> int:
    """Where in its anon_vma's tree a mapping stands; those of the same place follow one another as they were
    made. Kernel: mm/interval_tree.c, avc_start_pgoff().
    """
    return place[0].vm_pgoff


def _split_unmapped(kernel: Kernel, folio: Folio, nr: int, isolated: deque[Folio] | None) -> None:
    """Make each page a folio of its own, locked and with a reference. The folio is frozen: no task
    can refer to it or find its pages.

    Kernel: mm/huge_memory.c, __folio_freeze_and_split_unmapped(), __split_folio_to_order(),
    lru_add_split_folio().
    """
    mem = kernel.mem
    mem.folio_unqueue_deferred_split(folio)
    order = mem.order.raw[folio]
    mem.vmstat.count_mthp_stat(order, "nr_anon", -1)
    mem.vmstat.count_mthp_stat(0, "nr_anon", nr)
    flags = mem.flags.raw[folio] & ~PG_PARTIALLY_MAPPED
    cached = flags & PG_SWAPCACHE != 0
    if cached:
        kernel.swap.replace_folio(folio, nr)
    for i in range(nr):
        page = folio + i
        mem.head.raw[page], mem.order.raw[page] = page, 0
        mem.flags.raw[page] = flags if isolated is not None else flags | PG_LRU
        mem.anon_vma.raw[page] = mem.anon_vma.raw[folio]
        mem.memcg.raw[page] = mem.memcg.raw[folio]
        mem.index.raw[page] = mem.index.raw[folio] + i
    mem.large_mapcount.raw[folio] = mem.nr_pages_mapped.raw[folio] = 0
    mem.mm_mapcounts.pop(folio, None)
    for page in range(folio + nr - 1, folio - 1, -1):
        on_list = isolated is not None and page != folio
        mem.refcount.write(page, 1 + cached + on_list)
    if isolated is not None:
        isolated.extend(map(Folio, map(Pfn, range(folio + 1, folio + nr))))
