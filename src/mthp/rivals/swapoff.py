# SPDX-License-Identifier: GPL-2.0-or-later
"""swapoff: every swapped page comes back. Kernel: mm/swapfile.c."""

from __future__ import annotations

from mthp.machine.step import Access
from mthp.mm.folio import PG_ANON, PG_UPTODATE
from mthp.mm.mm_struct import MM_ANONPAGES, MM_SWAPENTS, Mm
from mthp.mm.pagetable import (
    PmdPtr,
    mm_find_pmd,
    pmdp_get_lockless,
    pte_offset_map,
    pte_offset_map_lock,
)
from mthp.mm.pte import (
    SOFT_DIRTY,
    SWP_EXCLUSIVE,
    UFFD_WP,
    Leaf,
    leaf_kind,
    mk_pte,
    pte_none,
    pte_pfn,
    pte_present,
)
from mthp.mm.rmap import folio_add_anon_rmap_ptes, folio_add_new_anon_rmap
from mthp.mm.swap import folio_free_swap
from mthp.mm.swap_state import swapin_sync
from mthp.mm.vma import Vma
from mthp.rivals.walk import folio_lock, unlocked_after


def unuse_mm(mm: Mm, address: int) -> None:
    """Bring one page back. Kernel: mm/swapfile.c, unuse_mm(), unuse_pte_range()."""
    kernel = mm.kernel
    with mm.mmap_read_lock():
        vma = mm.find_vma(address)
        pmd = mm_find_pmd(mm, address)
        if vma is None or address < vma.vm_start or pmd is None:
            return
        pte = pte_offset_map(kernel, pmdp_get_lockless(pmd), address)
        if pte is None:
            return
        with pte:
            pteval = pte.get(0)
        if pte_none(pteval) or pte_present(pteval) or leaf_kind(pteval) is not Leaf.SWAP:
            return
        folio = _swap_cache_folio(vma, pmd, address, pteval)
        if folio is None:
            return
        folio_lock(kernel, folio)
        unuse_pte(vma, pmd, address, pteval, folio)
        folio_free_swap(kernel, folio)
        kernel.mem.folio_unlock(folio)
        kernel.mem.folio_put(folio)


def _swap_cache_folio(vma: Vma, pmd: PmdPtr, address: int, pteval: int) -> int | None:
    """The folio of the entry with a reference, read if need be; None: somebody else deals with it.

    Kernel: mm/swap_state.c, swap_cache_get_folio(), swapin_readahead().
    """
    kernel = vma.vm_mm.kernel
    entry = pte_pfn(pteval)
    kernel.machine.step(Access.READ, kernel.swap, entry)
    folio = kernel.swap.cache.get(entry)
    if folio is not None:
        return folio if kernel.mem.folio_try_get(folio) else None
    return swapin_sync(vma.vm_mm, vma, address, pmd, pteval)


def unuse_pte(vma: Vma, pmd: PmdPtr, address: int, entry: int, folio: int) -> None:
    """Map a locked swap cache folio where its entry still stands.

    Kernel: mm/swapfile.c, unuse_pte().
    """
    mm = vma.vm_mm
    kernel = mm.kernel
    mem = kernel.mem
    if kernel.swap.cache.get(pte_pfn(entry)) != folio or not mem.test(folio, PG_UPTODATE):
        return
    found = pte_offset_map_lock(mm, pmd, address)
    if found is None:
        return
    with unlocked_after(kernel, found) as pte:
        old = pte.get(0)
        if old != entry:
            return
        mm.counters[MM_SWAPENTS] -= 1
        mm.counters[MM_ANONPAGES] += 1
        mem.folio_get(folio)
        exclusive = old & SWP_EXCLUSIVE != 0
        if mem.test(folio, PG_ANON):
            pages = range(folio, folio + 1)
            folio_add_anon_rmap_ptes(mem, kernel.this_cpu, folio, pages, vma, exclusive=exclusive)
        else:
            folio_add_new_anon_rmap(mem, folio, vma, address, exclusive=exclusive)
        pte.ptes.write(pte.base, mk_pte(folio, old & (SOFT_DIRTY | UFFD_WP)))
        kernel.machine.step(Access.WRITE, kernel.swap, pte_pfn(entry))
        kernel.swap.put_users(pte_pfn(entry), 1)
