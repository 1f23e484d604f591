# SPDX-License-Identifier: GPL-2.0-or-later
"""Anonymous folios are reclaimed: aged, swapped out, or dropped. Kernel: mm/vmscan.c."""

from __future__ import annotations

from collections import deque
from functools import reduce
from operator import or_

from mthp.machine.hold import Hold
from mthp.mm.folio import folio_isolate_lru, folio_putback_lru
from mthp.mm.gup import folio_maybe_dma_pinned
from mthp.mm.huge_memory import split_huge_pmd_locked
from mthp.mm.huge_memory_split import split_folio
from mthp.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, Kernel, Vma
from mthp.mm.mmu_notifier import mmu_notifier_invalidate_range
from mthp.mm.page_flags import (
    PAGE_ANON_EXCLUSIVE,
    PG_ACTIVE,
    PG_DIRTY,
    PG_MLOCKED,
    PG_PARTIALLY_MAPPED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_WRITEBACK,
)
from mthp.mm.page_vma_mapped import HugeMapping, Lookup, page_vma_mapped_walk
from mthp.mm.pgtable import (
    PteMap,
    flush_tlb_mm_range,
    folio_pte_batch,
    ptep_clear_flush,
    set_ptes,
    unlocked_after,
)
from mthp.mm.pgtable_types import (
    DIRTY,
    PTE_NONE,
    SOFT_DIRTY,
    SWP_EXCLUSIVE,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
    Pte,
    leaf_pte,
    pte_dirty,
)
from mthp.mm.rmap import (
    folio_lock_anon_vma_read,
    folio_referenced,
    folio_remove_rmap_ptes,
    is_kept_by_mlock,
    mapped_places,
    page_at,
)
from mthp.mm.swapfile import folio_free_swap
from mthp.words.units import Address, Folio


def reclaim_pages(kernel: Kernel, isolated: deque[Folio]) -> None:
    """Reclaim folios that were taken off the LRU, node by node from the end on; what cannot be is put back.

    Kernel: mm/vmscan.c, reclaim_pages(), reclaim_folio_list().
    """
    mem = kernel.mem
    for folio in isolated:
        mem.flags.clear_bits(folio, PG_ACTIVE)
    while isolated:
        nid = mem.folio_nid(isolated[-1])
        of_node: deque[Folio] = deque()
        while isolated and mem.folio_nid(isolated[-1]) == nid:
            of_node.appendleft(isolated.pop())
        shrink_folio_list(kernel, of_node)


def shrink_folio(kernel: Kernel, folio: Folio, entry: int | None = None) -> None:
    """Take a folio off the LRU and reclaim it: to slot `entry`, if it has to be written and has none.

    Kernel: mm/vmscan.c, isolate_lru_folios(), shrink_folio_list().
    """
    mem = kernel.mem
    if not mem.folio_try_get(folio):
        return
    isolated = folio_isolate_lru(mem, folio)
    mem.folio_put(folio)
    if isolated:
        shrink_folio_list(kernel, deque((folio,)), entry)


def shrink_folio_list(kernel: Kernel, folios: deque[Folio], entry: int | None = None) -> None:
    """Free isolated folios, from the end on, unless they are in use or mlocked; they are swapped out first,
    or dropped where MADV_FREE gave them up. The others are put back.

    Kernel: mm/vmscan.c, shrink_folio_list(), with ignore_references.
    """
    mem = kernel.mem
    kept: list[Folio] = []
    while folios:
        folio = folios.pop()
        if not mem.folio_trylock(folio):
            kept.append(folio)
            continue
        gone = _reclaim_locked(kernel, folio, folios, entry)
        mem.folio_unlock(folio)
        if gone:
            mem.free_folio(folio)
        else:
            kept.append(folio)
    for folio in kept:
        folio_putback_lru(mem, kernel.this_cpu, folio)


def _reclaim_locked(kernel: Kernel, folio: Folio, folios: deque[Folio], entry: int | None) -> bool:
    """Whether nothing refers to a locked folio any more; what it was split into goes to folios."""
    mem = kernel.mem
    kinds = PG_MLOCKED | PG_WRITEBACK | PG_SWAPBACKED | PG_SWAPCACHE
    flags = mem.flags.test_bits(folio, kinds)
    if flags & (PG_MLOCKED | PG_WRITEBACK):  # folio_evictable()
        return False
    if flags == PG_SWAPBACKED:
        if not add_to_swap(kernel, folio, folios, entry):
            return False
        mem.set(folio, PG_DIRTY)
    if mem.folio_mapcount(folio):
        try_to_unmap(kernel, folio)
        if mem.folio_mapcount(folio):
            return False
    if mem.folio_test_lazyfree(folio):
        if mem.test(folio, PG_DIRTY) or not mem.refcount.freeze(folio, 1):
            return False
        kernel.vmstat.count_vm_event("pglazyfreed", mem.folio_nr_pages(folio))
        return True
    return pageout(kernel, folio) and remove_mapping(kernel, folio)


def add_to_swap(
    kernel: Kernel, folio: Folio, folios: deque[Folio], entry: int | None = None
) -> bool:
    """Give a locked folio slots. One that is partially mapped is split first, and one for which there are
    not enough slots in a row; what else it was split into goes to folios. False: it stays where it is.

    Kernel: mm/vmscan.c, shrink_folio_list(), the part of anonymous folios without slots.
    """
    mem, vmstat = kernel.mem, kernel.vmstat
    order = mem.folio_order(folio)
    if folio_maybe_dma_pinned(kernel, folio):
        return False
    if order:
        if mem.folio_expected_ref_count(folio) != mem.folio_ref_count(folio) - 1:
            return False
        queued = order > 1 and mem.deferred_split.has(folio, mem.sublist_of(folio))
        to_split = queued and mem.test(folio, PG_PARTIALLY_MAPPED)
        if to_split and not split_folio(kernel, folio, folio, folios):
            return False
    if folio_alloc_swap(kernel, folio, entry):
        return True
    if not mem.folio_test_large(folio) or not split_folio(kernel, folio, folio, folios):
        return False
    if order >= mem.pmd_order:
        vmstat.count_vm_event("thp_swpout_fallback")
    vmstat.count_mthp_stat(order, "swpout_fallback")
    return folio_alloc_swap(kernel, folio, entry)


def folio_alloc_swap(kernel: Kernel, folio: Folio, entry: int | None = None) -> bool:
    """Add to the swap cache, if there are slots for it; or if slot `entry` is free.

    Kernel: mm/swapfile.c, folio_alloc_swap().
    """
    mem = kernel.mem
    order = mem.folio_order(folio)
    if entry is None:
        taken = kernel.swap.alloc_slots(folio, order)
    else:
        taken = not order and kernel.swap.alloc_slot(folio, entry)
    if taken:
        mem.folio_ref_add(folio, 1 << order)
        mem.set(folio, PG_SWAPCACHE)
    return taken


def pageout(kernel: Kernel, folio: Folio) -> bool:
    """Write a dirty folio of the swap cache to its slots; whether it may be freed then. One whose slots
    nobody names gives them up instead. Zeroes are not written, but remembered.

    Kernel: mm/vmscan.c, pageout(); mm/page_io.c, swap_writeout(), __swap_writepage().
    """
    mem, swap = kernel.mem, kernel.swap
    if not mem.clear(folio, PG_DIRTY):
        return True
    if folio_free_swap(kernel, folio):
        return False
    nr, first = mem.folio_nr_pages(folio), swap.entry_of[folio]
    contents = [mem.content.read(page) for page in range(folio, folio + nr)]
    slots = range(first, first + nr)
    for slot, content in zip(slots, contents, strict=True):
        swap.contents[slot] = content
        if any(contents):
            swap.zeroes.discard(slot)
        else:
            swap.zeroes.add(slot)
    if any(contents):
        order = mem.folio_order(folio)
        if order >= mem.pmd_order:
            kernel.vmstat.count_vm_event("thp_swpout")
        kernel.vmstat.count_mthp_stat(order, "swpout")
        kernel.vmstat.count_vm_event("pswpout", nr)
    return True


def remove_mapping(kernel: Kernel, folio: Folio) -> bool:
    """Take it from the swap cache, if nothing else refers to it; none can then.

    Kernel: mm/vmscan.c, __remove_mapping().
    """
    mem = kernel.mem
    nr = mem.folio_nr_pages(folio)
    if not mem.test(folio, PG_SWAPCACHE) or not mem.refcount.freeze(folio, 1 + nr):
        return False
    if mem.clear(folio, PG_DIRTY):  # written again, by a reference that is put by now: it stays
        mem.refcount.write(folio, 1 + nr)
        mem.set(folio, PG_DIRTY)
        return False
    kernel.swap.del_folio(folio, nr)
    mem.clear(folio, PG_SWAPCACHE)
    return True


def try_to_unmap(kernel: Kernel, folio: Folio) -> None:
    """Put swap entries wherever a folio of the swap cache is mapped; what was given up is unmapped.

    Kernel: mm/rmap.c, try_to_unmap().
    """
    lazyfree = kernel.mem.folio_test_lazyfree(folio)
    with folio_lock_anon_vma_read(kernel, folio):
        for vma, address in mapped_places(kernel, folio):
            if lazyfree:
                if not _discard(kernel, folio, vma, address):
                    return
            else:
                try_to_unmap_one(kernel, folio, vma, address)


def _locked_pte(
    kernel: Kernel, folio: Folio, vma: Vma, address: Address
) -> tuple[PteMap, Hold] | None:
    """The locked PTE that maps a folio at an address; a huge PMD is split for it.

    Kernel: mm/rmap.c, try_to_unmap_one(); TTU_SPLIT_HUGE_PMD.
    """
    page = page_at(kernel, folio, vma, address)
    lookup = Lookup.SYNC if kernel.mem.folio_test_large(folio) else Lookup.LOCKLESS
    found = page_vma_mapped_walk(vma.vm_mm, address, page, lookup)
    while isinstance(found, HugeMapping):
        with found.ptl:
            split_huge_pmd_locked(vma, kernel.geometry.pmd_addr(address), found.pmd)
        found = page_vma_mapped_walk(vma.vm_mm, address, page, lookup)
    return found


def _rest_of_folio(kernel: Kernel, folio: Folio, vma: Vma, address: Address) -> Address:
    """Where the folio of which a page may be mapped at address ends in a VMA."""
    page = page_at(kernel, folio, vma, address)
    left = folio + kernel.mem.folio_nr_pages(folio) - page
    return Address(min(vma.vm_end, address + (left << kernel.geometry.page_shift)))


def try_to_unmap_one(kernel: Kernel, folio: Folio, vma: Vma, address: Address) -> None:
    """Put a swap entry at one place. Kernel: mm/rmap.c, try_to_unmap_one(),
    ttu_anon_swapbacked_folio()."""
    mem = kernel.mem
    mm = vma.vm_mm
    end = _rest_of_folio(kernel, folio, vma, address)
    with mmu_notifier_invalidate_range(mm, address, end):
        found = _locked_pte(kernel, folio, vma, address)
        if found is None:
            return
        with unlocked_after(kernel, found) as pte:
            if is_kept_by_mlock(kernel, folio, vma):
                return
            page = page_at(kernel, folio, vma, address)
            entry = kernel.swap.entry_of[folio] + page - folio
            pteval = ptep_clear_flush(mm, pte, address)
            if pte_dirty(pteval):
                mem.folio_mark_dirty(folio)
            exclusive = mem.page_flags.clear_bits(page, PAGE_ANON_EXCLUSIVE)
            flags = pteval & (SOFT_DIRTY | UFFD_WP) | (SWP_EXCLUSIVE if exclusive else 0)
            kernel.swap.add_user(entry)
            pte.ptes.write(pte.base, leaf_pte(Leaf.SWAP, entry, flags))
            mm.counters[MM_ANONPAGES] -= 1
            mm.counters[MM_SWAPENTS] += 1
            folio_remove_rmap_ptes(mem, kernel.this_cpu, folio, page, 1, vma)
            mem.folio_put(folio)


def _discard(kernel: Kernel, folio: Folio, vma: Vma, address: Address) -> bool:
    """Unmap what one table has of a folio from a place on: the PTEs go before references are counted, for
    GUP-fast takes no lock. False: it is in use, or was stored to.

    Kernel: mm/rmap.c, try_to_unmap_one(), folio_unmap_pte_batch(), ttu_anon_lazyfree_folio().
    """
    mem = kernel.mem
    mm = vma.vm_mm
    end = _rest_of_folio(kernel, folio, vma, address)
    with mmu_notifier_invalidate_range(mm, address, end):
        found = _locked_pte(kernel, folio, vma, address)
        if found is None:
            return True
        with unlocked_after(kernel, found) as pte:
            if is_kept_by_mlock(kernel, folio, vma):
                return False
            page, nr, first = page_at(kernel, folio, vma, address), 1, pte.get(0)
            if mem.folio_test_large(folio):
                last = min(end, mm.geometry.pmd_addr(address) + mm.geometry.pmd_size)
                most = (last - address) >> kernel.geometry.page_shift
                nr = folio_pte_batch(pte, 0, first, most, WRITE | SOFT_DIRTY)
            old = [pte.ptes.swap(at, PTE_NONE) for at in range(pte.base, pte.base + nr)]
            flush_tlb_mm_range(mm, address, address + (nr << kernel.geometry.page_shift))
            if any(map(pte_dirty, old)):
                mem.set(folio, PG_DIRTY)
            used = mem.folio_ref_count(folio) != 1 + mem.folio_mapcount(folio)
            if mem.test(folio, PG_DIRTY) or used:
                if mem.test(folio, PG_DIRTY):
                    mem.set(folio, PG_SWAPBACKED)
                # get_and_clear_ptes(): what one of them was used for counts for all.
                set_ptes(pte, 0, Pte(old[0] | reduce(or_, old) & (YOUNG | DIRTY)), nr)
                return False
            for each in range(page, page + nr):
                mem.page_flags.clear_bits(each, PAGE_ANON_EXCLUSIVE)
            mm.counters[MM_ANONPAGES] -= nr
            folio_remove_rmap_ptes(mem, kernel.this_cpu, folio, page, nr, vma)
            mem.folio_put(folio, nr)
    return True


def folio_end_writeback(kernel: Kernel, folio: Folio, entry: int) -> None:
    """End the write of a swap cache folio to its slot.

    Kernel: mm/page_io.c, end_swap_bio_write(); mm/filemap.c, folio_end_writeback().
    """
    mem = kernel.mem
    kernel.swap.contents[entry] = mem.content.read(folio)
    mem.folio_get(folio)
    mem.clear(folio, PG_WRITEBACK)
    mem.folio_put(folio)


def shrink_active_list(kernel: Kernel, folio: Folio) -> None:
    """Take one folio off the LRU, see whether it was used, and give it back.

    Kernel: mm/vmscan.c, shrink_active_list().
    """
    mem = kernel.mem
    if not mem.folio_try_get(folio):
        return
    isolated = folio_isolate_lru(mem, folio)
    mem.folio_put(folio)
    if isolated:
        folio_referenced(kernel, folio)
        folio_putback_lru(mem, kernel.this_cpu, folio)
