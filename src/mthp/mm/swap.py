# SPDX-License-Identifier: GPL-2.0-or-later
"""Swap: a device, its slots, the swap cache, and the fault that brings a page back.

Kernel: mm/memory.c (do_swap_page), mm/swap_state.c, mm/swapfile.c.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

from mthp.machine.locks import Hold
from mthp.machine.step import Access
from mthp.mm.folio import (
    PAGE_HWPOISON,
    PG_DIRTY,
    PG_LOCKED,
    PG_MLOCKED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_UPTODATE,
)
from mthp.mm.lru import folio_add_lru
from mthp.mm.mm_struct import MM_ANONPAGES, MM_SWAPENTS, Mm
from mthp.mm.pagetable import PmdPtr, pmdp_get_lockless, pte_offset_map
from mthp.mm.pte import (
    SOFT_DIRTY,
    SWP_EXCLUSIVE,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
    leaf_kind,
    mk_pte,
    pte_pfn,
)
from mthp.mm.rmap import folio_add_anon_rmap_pte, folio_add_new_anon_rmap
from mthp.mm.vma import VM_LOCKED, VM_WRITE, Vma

if TYPE_CHECKING:
    from mthp.mm.kernel import Kernel


GONE: Final = 0
"""No folio: frame 0 is the zero page."""


class VmFault(Enum):
    """How a fault ended. Kernel: vm_fault_t, as far as swap-in tells them apart."""

    DONE = "done"
    RETRY = "retry"
    ERROR = "error"


@dataclass(slots=True)
class SwapDevice:
    """A swap area. Slots are named by the entry a PTE holds.

    synchronous: SWP_SYNCHRONOUS_IO (zram): the swap cache copy is given up at once.
    contents, cache: entry -> content, entry -> folio in the swap cache. users: entry -> PTEs that
    still name it, where fork() made them more than one. failing: entries that cannot be read. gone:
    slots that no PTE names any more.
    """

    synchronous: bool = True
    contents: dict[int, int] = field(default_factory=dict)
    cache: dict[int, int] = field(default_factory=dict)
    entry_of: dict[int, int] = field(default_factory=dict)
    users: dict[int, int] = field(default_factory=dict)
    failing: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    name: str = "swap"

    def add_to_cache(self, entry: int, folio: int) -> None:
        """Kernel: mm/swap_state.c, __swap_cache_add_folio()."""
        self.cache[entry] = folio
        self.entry_of[folio] = entry

    def drop_user(self, entry: int) -> None:
        """One PTE less names the entry. Kernel: mm/swapfile.c, folio_put_swap()."""
        left = self.users.pop(entry, 1) - 1
        if left:
            self.users[entry] = left
        else:
            self.gone.add(entry)

    def folio_swapped(self, folio: int) -> bool:
        """Whether PTEs still name the slot of a swap cache folio. Kernel: folio_maybe_swapped()."""
        return self.entry_of[folio] in self.users

    def remove_from_cache(self, folio: int) -> None:
        """Kernel: mm/swap_state.c, swap_cache_del_folio()."""
        del self.cache[self.entry_of.pop(folio)]


def do_swap_page(
    mm: Mm, vma: Vma, address: int, pmd: PmdPtr, orig_pte: int, mmap_lock: Hold
) -> VmFault:
    """Bring one non-present PTE back. RETRY: mmap_lock was released here; else it is still held.

    Kernel: mm/memory.c, do_swap_page().
    Divergence: folios come back one page at a time, with no readahead.
    """
    kernel = mm.kernel
    kind = leaf_kind(orig_pte)
    if kind is Leaf.MIGRATION:
        # migration_entry_wait(): over by itself once migration ends; the entry is read again later.
        return VmFault.DONE
    if kind is not Leaf.SWAP:
        return VmFault.ERROR
    entry = pte_pfn(orig_pte)
    swap = kernel.swap
    kernel.machine.step(Access.READ, swap, entry)
    folio = swap.cache.get(entry)
    if folio is None:
        folio = _swapin_sync(mm, entry)
        if folio is None:
            return VmFault.ERROR
        if folio == GONE:
            return VmFault.DONE
    else:
        if not kernel.mem.folio_try_get(folio):
            return VmFault.DONE
        if not kernel.mem.folio_trylock(folio):
            # folio_lock_or_retry(): FAULT_FLAG_ALLOW_RETRY lets go of mmap_lock before it waits.
            mmap_lock.release()
            kernel.mem.folio_wait_locked(folio)
            kernel.mem.folio_put(folio)
            return VmFault.RETRY
    return _map_swapped_in(mm, vma, address, pmd, orig_pte, folio)


def _swapin_sync(mm: Mm, entry: int) -> int | None:
    """Read a slot into a new locked folio in the swap cache; None: no memory; GONE: somebody else
    put one there meanwhile, or nobody needs the slot any more, and the entry is read again later.

    Kernel: mm/swap_state.c, swapin_sync().
    """
    kernel = mm.kernel
    mem = kernel.mem
    folio = mem.folio_alloc(0)
    if folio is None:
        return None
    if not kernel.charge(folio, mm):
        mem.folio_put(folio)
        return None
    kernel.machine.step(Access.RMW, kernel.swap, entry)
    if entry in kernel.swap.cache or entry in kernel.swap.gone:
        mem.folio_put(folio)
        return GONE
    uptodate = 0 if entry in kernel.swap.failing else PG_UPTODATE
    mem.flags.set_bits(folio, PG_LOCKED | PG_SWAPBACKED | PG_SWAPCACHE | uptodate)
    mem.content.write(folio, kernel.swap.contents.get(entry, 0))
    kernel.swap.add_to_cache(entry, folio)
    mem.folio_ref_add(folio, 1)
    folio_add_lru(mem, kernel.this_cpu, folio)
    kernel.vmstat.count_vm_event("pgmajfault")
    return folio


def _map_swapped_in(
    mm: Mm, vma: Vma, address: int, pmd: PmdPtr, orig_pte: int, folio: int
) -> VmFault:
    """Map a locked swap cache folio where orig_pte still stands; consumes the caller's reference."""
    kernel = mm.kernel
    mem = kernel.mem
    pte = pte_offset_map(kernel, pmdp_get_lockless(pmd), address)
    if pte is None:
        return _drop(kernel, folio, VmFault.DONE)
    with pte, pte.table.ptl.lock():
        if pte.get(0) != orig_pte:
            return _drop(kernel, folio, VmFault.DONE)
        usable = mem.test(folio, PG_UPTODATE) and not mem.page_flags.raw[folio] & PAGE_HWPOISON
        if not usable:
            return _drop(kernel, folio, VmFault.ERROR)
        exclusive = orig_pte & SWP_EXCLUSIVE != 0
        flags = YOUNG | orig_pte & (SOFT_DIRTY | UFFD_WP)
        if exclusive and vma.vm_flags & VM_WRITE and not orig_pte & UFFD_WP:
            flags |= WRITE
        if mem.folio_mapcount(folio):
            folio_add_anon_rmap_pte(mem, folio, folio, vma, exclusive=exclusive)
        else:
            folio_add_new_anon_rmap(mem, folio, vma, address, exclusive=exclusive)
        mm.counters[MM_ANONPAGES] += 1
        mm.counters[MM_SWAPENTS] -= 1
        kernel.swap.drop_user(pte_pfn(orig_pte))
        pte.ptes.write(pte.base, mk_pte(folio, flags))
        if kernel.swap.synchronous or vma.vm_flags & VM_LOCKED or mem.test(folio, PG_MLOCKED):
            folio_free_swap(kernel, folio)
        mem.folio_unlock(folio)
        kernel.update_mmu_cache_range(vma, address, 1)
    return VmFault.DONE


def _drop(kernel: Kernel, folio: int, outcome: VmFault) -> VmFault:
    kernel.mem.folio_unlock(folio)
    kernel.mem.folio_put(folio)
    return outcome


def folio_free_swap(kernel: Kernel, folio: int) -> None:
    """Give up the swap slot of a folio that is in memory; it is dirty from then on. A slot that
    other PTEs still name stays.

    Caller holds the folio lock. Kernel: mm/swapfile.c, folio_free_swap().
    """
    mem = kernel.mem
    if not mem.test(folio, PG_SWAPCACHE) or kernel.swap.folio_swapped(folio):
        return
    kernel.machine.step(Access.WRITE, kernel.swap, kernel.swap.entry_of[folio])
    kernel.swap.remove_from_cache(folio)
    mem.flags.clear_bits(folio, PG_SWAPCACHE)
    mem.flags.set_bits(folio, PG_DIRTY)
    mem.folio_put(folio, mem.folio_nr_pages(folio))


def free_swap_cache(kernel: Kernel, folio: int) -> None:
    """Give up the swap slot of a folio nobody maps any more. Kernel: mm/swap_state.c."""
    mem = kernel.mem
    if not mem.test(folio, PG_SWAPCACHE) or mem.folio_mapcount(folio):
        return
    if mem.folio_trylock(folio):
        folio_free_swap(kernel, folio)
        mem.folio_unlock(folio)
