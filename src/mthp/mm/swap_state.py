# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading swapped pages into the swap cache: which size of folio, and what it falls back to.

Kernel: mm/swap_state.c, mm/memory.c (thp_swapin_suitable_orders).
"""

from __future__ import annotations

from mthp.mm.folio import folio_add_lru
from mthp.mm.huge_mm import (
    Tva,
    highest_order,
    next_orders,
    thp_vma_allowable_orders,
    thp_vma_suitable_orders,
)
from mthp.mm.memcontrol import mem_cgroup_charge
from mthp.mm.mm_types import Kernel, Mm, PmdPtr, Vma, userfaultfd_armed
from mthp.mm.page_flags import PG_LOCKED, PG_SWAPBACKED, PG_SWAPCACHE, PG_UPTODATE
from mthp.mm.pgtable import PteMap, pmdp_get_lockless, pte_offset_map
from mthp.mm.pgtable_types import PFN_SHIFT, Pte, pte_pfn
from mthp.mm.swap_table import SwapError, swp_offset
from mthp.mm.vm_flags import VM_HUGEPAGE
from mthp.words.profiles import DeferredMemcg, SwapIn
from mthp.words.units import Address, Folio, Order


def swap_cache_get_folio(kernel: Kernel, entry: int) -> Folio | None:
    """The slot's folio with a reference, which may stand for another slot until it is locked.

    Divergence: where it is being freed the kernel looks again until it is gone. Kernel:
    mm/swap_state.c, swap_cache_get_folio().
    """
    folio = kernel.swap.folio_at(entry)
    return folio if folio is not None and kernel.mem.folio_try_get(folio) else None


def folio_matches_swap_entry(kernel: Kernel, folio: Folio, entry: int) -> bool:
    """Whether a locked folio is in the swap cache, and the entry is one of its slots.

    Kernel: mm/swap.h, folio_matches_swap_entry().
    """
    if not kernel.mem.test(folio, PG_SWAPCACHE):
        return False
    return kernel.swap.entry_of[folio] == entry & -kernel.mem.folio_nr_pages(folio)


def swapin_sync(
    mm: Mm, vma: Vma, address: Address, pmd: PmdPtr, orig_pte: Pte
) -> Folio | SwapError:
    """Read the slot of orig_pte, and those around it where a larger folio may hold them, into a new
    folio in the swap cache; or the folio that somebody else has just put there. It is returned
    unlocked and with a reference. EXISTS: that folio is being freed.

    Kernel: mm/swap_state.c, swapin_sync().
    """
    kernel = mm.kernel
    mem, swap = kernel.mem, kernel.swap
    orders = 1
    entry = pte_pfn(orig_pte)
    if swap.synchronous and (kernel.profile.swapin is SwapIn.CACHED or swap.count(entry) == 1):
        orders |= _thp_swapin_suitable_orders(kernel, vma, address, pmd, orig_pte)
    folio = _swap_cache_alloc_folio(mm, vma, entry, orders)
    if isinstance(folio, SwapError):
        there = None
        if folio is SwapError.EXISTS:
            there = swap_cache_get_folio(kernel, entry)
        return folio if there is None else there
    first = swap.entry_of[folio]
    slots = range(first, first + mem.folio_nr_pages(folio))
    for page, slot in enumerate(slots, folio):
        mem.content.write(page, swap.contents.get(slot, 0))
    if swap.failing.isdisjoint(slots):
        kernel.machine.smp_wmb()  # folio_mark_uptodate(), as where other folios get their contents
        mem.set(folio, PG_UPTODATE)
        if first not in swap.zeroes:
            mem.vmstat.count_mthp_stat(mem.folio_order(folio), "swpin")
    mem.folio_unlock(folio)
    return folio


def _thp_swapin_suitable_orders(
    kernel: Kernel, vma: Vma, address: Address, pmd: PmdPtr, orig_pte: Pte
) -> int:
    """Orders below PMD order that switches, VMA, offset and table allow (bitmap).

    Kernel: mm/memory.c, thp_swapin_suitable_orders().
    Divergence: zswap is taken never to have been on, which would leave single pages alone.
    """
    if userfaultfd_armed(vma):
        return 0
    below_pmd = (1 << kernel.geometry.pmd_order) - 1
    orders = thp_vma_allowable_orders(vma, vma.vm_flags, Tva.PAGEFAULT, below_pmd)
    orders = thp_vma_suitable_orders(vma, address, orders)
    orders = _thp_swap_suitable_orders(kernel, pte_pfn(orig_pte), address, orders)
    if not orders:
        return 0
    start = kernel.geometry.pmd_addr(address)
    pte = pte_offset_map(kernel, pmdp_get_lockless(pmd), start)
    if pte is None:
        return 0
    with pte, pte.table.ptl.lock():
        place = kernel.geometry.pte_index(address)
        while orders and not _can_swapin_thp(pte, place, orig_pte, 1 << highest_order(orders)):
            orders = next_orders(orders)
    return orders


def _thp_swap_suitable_orders(kernel: Kernel, entry: int, address: Address, orders: int) -> int:
    """Those whose window starts at an offset as much aligned as its address.

    Kernel: mm/memory.c, thp_swap_suitable_orders().
    """
    offset = swp_offset(entry)
    if offset is None:
        return 0
    page = address >> kernel.geometry.page_shift
    while orders and (page - offset) % (1 << highest_order(orders)):
        orders = next_orders(orders)
    return orders


def _can_swapin_thp(pte: PteMap, place: int, orig_pte: Pte, nr: int) -> bool:
    """Whether the window of nr PTEs around `place` has entries side by side and alike.

    Kernel: mm/memory.c, can_swapin_thp().
    """
    index = place % nr
    return swap_ptes_run_on(pte, place - index, nr, orig_pte - (index << PFN_SHIFT))


def swap_ptes_run_on(pte: PteMap, first: int, nr: int, value: int) -> bool:
    """nr PTEs from `first` on are swap entries one after the other, alike in all bits, the first
    being `value`. Kernel: mm/internal.h, swap_pte_batch().
    """
    return all(pte.get(first + i) == value + (i << PFN_SHIFT) for i in range(nr))


def swap_pte_batch(pte: PteMap, i: int, max_nr: int, pteval: Pte) -> int:
    """How many PTEs from `i` on, which holds pteval, name one slot after the other, alike in all bits.

    Kernel: mm/internal.h, swap_pte_batch().
    """
    nr = 1
    while nr < max_nr and pte.get(i + nr) == pteval + (nr << PFN_SHIFT):
        nr += 1
    return nr


def _swap_cache_alloc_folio(mm: Mm, vma: Vma, entry: int, orders: int) -> Folio | SwapError:
    """A new locked folio in the swap cache, of the highest of `orders` (a bitmap with bit 0) that
    can be had.

    Kernel: mm/swap_state.c, swap_cache_alloc_folio().
    """
    while True:
        order = highest_order(orders)
        folio = _swap_cache_alloc(mm, vma, entry, order)
        orders = next_orders(orders)
        if not orders or folio not in (SwapError.BUSY, SwapError.NO_MEMORY):
            return folio
        mm.kernel.vmstat.count_mthp_stat(order, "swpin_fallback")


def _swap_cache_alloc(mm: Mm, vma: Vma, entry: int, order: Order) -> Folio | SwapError:
    """The slots are looked at before anything is allocated, and again when the folio is added.

    Kernel: mm/swap_state.c, __swap_cache_alloc().
    """
    kernel = mm.kernel
    mem, swap = kernel.mem, kernel.swap
    nr = 1 << order
    error = swap.add_check(entry, nr)
    if error is not None:
        return error
    # vma_thp_gfp_mask(): with the usual defrag=madvise only advised memory may compact for it.
    compact = not order or vma.vm_flags & VM_HUGEPAGE != 0
    folio = mem.folio_alloc(order, compact=compact)
    if folio is None:
        return SwapError.NO_MEMORY
    mem.flags.set_bits(folio, PG_LOCKED | PG_SWAPBACKED)
    error = swap.add_folio(folio, entry, nr)
    if error is not None:
        mem.folio_unlock(folio)
        mem.folio_put(folio)
        return error
    mem.folio_ref_add(folio, nr)
    mem.set(folio, PG_SWAPCACHE)
    if not mem_cgroup_charge(folio, mm):
        kernel.vmstat.count_mthp_stat(order, "swpin_fallback_charge")
        return _take_back(kernel, folio)
    if order > 1 and _deferred_fails(mm):
        return _take_back(kernel, folio)
    folio_add_lru(mem, kernel.this_cpu, folio)
    return folio


def _deferred_fails(mm: Mm) -> bool:
    """folio_memcg_alloc_deferred() has no memory, in kernels that ask it."""
    asked = mm.kernel.profile.deferred_memcg is DeferredMemcg.CHECKED
    return asked and mm.memcg is not None and mm.memcg.defer


def _take_back(kernel: Kernel, folio: Folio) -> SwapError:
    mem = kernel.mem
    nr = mem.folio_nr_pages(folio)
    kernel.swap.del_folio(folio, nr)
    mem.clear(folio, PG_SWAPCACHE)
    mem.folio_unlock(folio)
    mem.folio_put(folio, nr + 1)
    return SwapError.NO_MEMORY


def swap_cache_del_folio(kernel: Kernel, folio: Folio) -> None:
    """Caller holds the folio lock. Kernel: mm/swap_state.c, swap_cache_del_folio()."""
    mem = kernel.mem
    nr = mem.folio_nr_pages(folio)
    kernel.swap.del_folio(folio, nr)
    mem.clear(folio, PG_SWAPCACHE)
    mem.folio_put(folio, nr)
