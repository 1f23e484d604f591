# SPDX-License-Identifier: GPL-2.0-or-later
"""Large folios are split into small ones. Kernel: mm/huge_memory.c.

Apart from huge_memory.py, since a split migrates what it unmaps, and migration knows huge PMDs.
"""

from __future__ import annotations

from mthp.mm.huge_memory import split_huge_pmd_locked
from mthp.mm.migrate import remove_migration_pte, try_to_migrate_one
from mthp.mm.mm_types import Kernel, Mm
from mthp.mm.page_flags import PG_LRU, PG_SWAPCACHE
from mthp.mm.page_vma_mapped import HugeMapping, Lookup, page_vma_mapped_walk
from mthp.mm.pagewalk import folio_walk
from mthp.mm.rmap import anon_vma_lock_write, mapped_places, page_at
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


def deferred_split_scan(kernel: Kernel, folio: Folio) -> None:
    """Split a large folio of the queue, as the shrinker does: it holds no lock of a process.

    Divergence: which folios are queued is not asked.
    Kernel: mm/huge_memory.c, deferred_split_scan(), deferred_split_isolate().
    """
    mem = kernel.mem
    if not mem.folio_try_get(folio):
        return
    if mem.folio_test_large(folio) and mem.folio_trylock(folio):
        split_folio(kernel, folio, folio)
        mem.folio_unlock(folio)
    mem.folio_put(folio)


def split_folio(kernel: Kernel, folio: Folio, lock_at: Pfn) -> bool:
    """Split a large folio into pages; returns whether it was. Caller holds its lock and a
    reference, and keeps both of its page lock_at.

    anon_vma is held for writing: collapses below PMD order and other splits wait.
    Divergence: not in the swap cache, and a page of zeroes stays a page of its own.
    Kernel: mm/huge_memory.c, __folio_split().
    """
    mem = kernel.mem
    if mem.test(folio, PG_SWAPCACHE):
        return False
    with anon_vma_lock_write(kernel.anon_vmas[mem.anon_vma.raw[folio]]):
        if mem.folio_expected_ref_count(folio) != mem.folio_ref_count(folio) - 1:
            return False
        nr = mem.folio_nr_pages(folio)
        places = [(*at, page_at(kernel, folio, *at)) for at in mapped_places(kernel, folio)]
        unmap_folio(kernel, folio)
        split = mem.refcount.freeze(folio, 1)
        if split:
            _split_unmapped(kernel, folio, nr)
        for vma, address, page in places:  # remap_page()
            src = Folio(page) if split else folio
            remove_migration_pte(kernel, src, src, vma, address)
        for page in map(Folio, map(Pfn, range(folio, folio + nr if split else folio))):
            if page != lock_at:
                mem.folio_unlock(page)
                mem.folio_put(page)
    return split


def unmap_folio(kernel: Kernel, folio: Folio) -> None:
    """Put migration entries in the place of every mapping. Caller holds anon_vma for writing.

    Divergence: a huge PMD is split first, where the kernel writes the entries as it splits.
    Kernel: mm/huge_memory.c, unmap_folio(); TTU_SPLIT_HUGE_PMD.
    """
    for vma, address in mapped_places(kernel, folio):
        page = page_at(kernel, folio, vma, address)
        found = page_vma_mapped_walk(vma.vm_mm, address, page, Lookup.SYNC)
        if isinstance(found, HugeMapping):
            with found.ptl:
                split_huge_pmd_locked(vma, vma.vm_mm.geometry.pmd_addr(address), found.pmd)
        elif found is not None:
            found[1].release()
            found[0].unmap()
        try_to_migrate_one(kernel, folio, vma, address, Lookup.SYNC)


def _split_unmapped(kernel: Kernel, folio: Folio, nr: int) -> None:
    """Make each page a folio of its own, locked and with a reference. The folio is frozen: no task
    can refer to it or find its pages. Kernel: mm/huge_memory.c, __split_folio_to_order()."""
    mem = kernel.mem
    mem.folio_unqueue_deferred_split(folio)
    order = mem.order.raw[folio]
    mem.vmstat.count_mthp_stat(order, "nr_anon", -1)
    mem.vmstat.count_mthp_stat(0, "nr_anon", nr)
    flags = mem.flags.raw[folio]
    for i in range(nr):
        page = folio + i
        mem.head.raw[page], mem.order.raw[page] = page, 0
        mem.flags.raw[page] = flags | PG_LRU
        mem.anon_vma.raw[page] = mem.anon_vma.raw[folio]
        mem.memcg.raw[page] = mem.memcg.raw[folio]
        mem.index.raw[page] = mem.index.raw[folio] + i
    mem.large_mapcount.raw[folio] = mem.nr_pages_mapped.raw[folio] = 0
    mem.mm_mapcounts.pop(folio, None)
    for page in range(folio + nr - 1, folio - 1, -1):
        mem.refcount.write(page, 1)
