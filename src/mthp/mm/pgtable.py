# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables: rows of PTEs, pages of PMD slots, and the ways to reach and replace them.

Kernel: include/linux/pgtable.h, mm/pgtable-generic.c, mm/memory.c, include/linux/mm.h
(pte_offset_map, pte_unmap_unlock, pmd_alloc), include/linux/rcupdate.h (rcu_read_lock),
arch/x86/include/asm/pgalloc.h (pmd_populate).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from mthp.machine.cpu import flush_tlb_range
from mthp.machine.hold import Hold
from mthp.mm.mm_types import Kernel, Mm, PageTable, PmdPage, PmdPtr, TableState, Vma
from mthp.mm.pgtable_types import (
    DIRTY,
    PFN_SHIFT,
    PMD_NONE,
    PTE_NONE,
    SOFT_DIRTY,
    WRITE,
    YOUNG,
    Pmd,
    Pte,
    pmd_is_table,
    pmd_pgtable,
    pte_pfn,
    table_pmd,
)
from mthp.words.results import KernelBug, Rule
from mthp.words.units import Address


class GivenUp:
    """Stands where something was that a task has given up: in debug mode any use is a KernelBug."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __repr__(self) -> str:
        return self._what

    def __getattr__(self, name: str) -> NoReturn:
        raise KernelBug(Rule.USE, f"{self._what} is used after it was unmapped")


class PteMap:
    """A mapped PTE table, from one entry on. Must be unmapped once, and not be used then; the task
    that maps it keeps count.

    Kernel: pte_offset_map() and pte_unmap(), which pair like rcu_read_lock().
    """

    __slots__ = ("base", "kernel", "mapped", "ptes", "table")

    def __init__(self, kernel: Kernel, table: PageTable, base: int) -> None:
        self.kernel = kernel
        self.table = table
        self.ptes = table.ptes
        self.base = base
        self.mapped = True
        kernel.machine.current.maps.append(table.number)

    def get(self, i: int) -> Pte:
        """Kernel: ptep_get()."""
        return self.ptes.read(self.base + i)

    def unmap(self) -> None:
        """Kernel: pte_unmap(). Unmapping twice is a KernelBug."""
        if not self.mapped:
            raise KernelBug(Rule.MAPS, "a table is unmapped twice")
        self.mapped = False
        machine, number = self.kernel.machine, self.table.number
        machine.current.maps.remove(number)
        if machine.debug:
            gone: Any = GivenUp(f"table {number}")
            self.ptes = self.table = gone

    def __enter__(self) -> PteMap:
        return self

    def __exit__(self, *_: object) -> None:
        if self.mapped:
            self.unmap()


# Finding


def pmd_ptr(mm: Mm, address: Address, *, create: bool = False) -> PmdPtr | None:
    """The slot of address; made if `create`. Kernel: pmd_offset(), pmd_alloc()."""
    index = address >> mm.geometry.pmd_shift
    number, slot = divmod(index, mm.geometry.ptrs_per_pte)
    page = mm.pmd_pages.get(number)
    if page is None:
        if not create:
            return None
        page = mm.pmd_pages[number] = PmdPage(mm.kernel, f"mm{mm.number}.pmd{number}")
        insort(mm.pmd_numbers, number)
    return PmdPtr(page, slot)


def mm_find_pmd(mm: Mm, address: Address) -> PmdPtr | None:
    """Kernel: mm/rmap.c, mm_find_pmd()."""
    return pmd_ptr(mm, address)


def pmdp_get_lockless(pmd: PmdPtr) -> Pmd:
    """Kernel: pmdp_get_lockless()."""
    return pmd.page.pmds.read(pmd.slot)


def pmd_lock(pmd: PmdPtr) -> Hold:
    """Kernel: include/linux/mm.h, pmd_lock()."""
    return pmd.page.ptl.lock()


def pte_offset_map(kernel: Kernel, pmdval: Pmd, address: Address) -> PteMap | None:
    """Map the table a PMD value points to, at address; None if it points to none.

    Kernel: mm/pgtable-generic.c, __pte_offset_map().
    """
    if not pmd_is_table(pmdval):
        return None
    table = kernel.tables[pmd_pgtable(pmdval)]
    return PteMap(kernel, table, kernel.geometry.pte_index(address))


def pte_offset_map_lock(mm: Mm, pmd: PmdPtr, address: Address) -> tuple[PteMap, Hold] | None:
    """Map the table of a slot and take its lock; None if it points to none, also by then.

    Kernel: mm/pgtable-generic.c, pte_offset_map_lock().
    """
    while True:
        pmdval = pmdp_get_lockless(pmd)
        pte = pte_offset_map(mm.kernel, pmdval, address)
        if pte is None:
            return None
        ptl = pte.table.ptl.lock()
        if pmdp_get_lockless(pmd) == pmdval:
            return pte, ptl
        ptl.release()
        pte.unmap()


# Changing


def pte_free(table: PageTable) -> None:
    """Free a table at once: nobody may be inside. Kernel: include/asm-generic/pgalloc.h, pte_free()."""
    for i in range(len(table.ptes.raw)):
        table.ptes.free(i)
        table.ptes.raw[i] = PTE_NONE
    table.state = TableState.FREED


def pte_free_defer(table: PageTable) -> None:
    """Free a table once every walker that may be inside has left; its words stay until then.

    Divergence: the end of that time is never seen. Kernel: mm/pgtable-generic.c, pte_free_defer().
    """
    table.state = TableState.DEFERRED


def pmd_populate(pmd: PmdPtr, table: int) -> None:
    """Point a slot at a table. Caller holds the pmd lock. Kernel: pmd_populate()."""
    pmd.page.ptl.assert_held()
    pmd.page.pmds.write(pmd.slot, table_pmd(table))


def pmdp_collapse_flush(vma: Vma, pmd_addr: Address, pmd: PmdPtr) -> Pmd:
    """Clear a slot that points to a table and flush the whole PMD range; the old value.

    Kernel: mm/pgtable-generic.c, pmdp_collapse_flush().
    """
    pmd.page.ptl.assert_held()
    mm = vma.vm_mm
    old = pmd.page.pmds.swap(pmd.slot, PMD_NONE)
    flush_tlb_mm_range(mm, pmd_addr, pmd_addr + mm.geometry.pmd_size)
    return old


def pgtable_trans_huge_deposit(pmd: PmdPtr, table: int) -> None:
    """Keep a table for a later split. Kernel: mm/pgtable-generic.c."""
    pmd.page.ptl.assert_held()
    pmd.page.deposited.setdefault(pmd.slot, []).append(table)


def pgtable_trans_huge_withdraw(pmd: PmdPtr) -> int:
    """Take a deposited table back. Kernel: mm/pgtable-generic.c."""
    pmd.page.ptl.assert_held()
    tables = pmd.page.deposited[pmd.slot]
    table = tables.pop()
    if not tables:
        del pmd.page.deposited[pmd.slot]
    return table


def set_ptes(pte: PteMap, i: int, first: Pte, nr: int) -> None:
    """Write nr PTEs of consecutive frames, the first being `first`. Kernel: set_ptes()."""
    step = 1 << PFN_SHIFT
    pte.ptes.write_run(pte.base + i, range(first, first + nr * step, step))


def pte_range_none(pte: PteMap, i: int, nr: int) -> bool:
    """Whether nr PTEs from i on are none. Kernel: mm/memory.c, pte_range_none()."""
    if pte.kernel.machine.on_step is None:
        first = pte.base + i
        return not any(pte.ptes.raw[first : first + nr])
    return all(pte.get(at) == PTE_NONE for at in range(i, i + nr))


def clear_ptes(pte: PteMap, i: int, nr: int) -> None:
    """Make nr PTEs none. Kernel: include/linux/pgtable.h, clear_ptes()."""
    pte.ptes.fill(pte.base + i, nr, PTE_NONE)


def clear_full_ptes(pte: PteMap, i: int, nr: int) -> None:
    """Make nr PTEs none, each at once with what CPUs set in it. Kernel: include/linux/pgtable.h."""
    for at in range(pte.base + i, pte.base + i + nr):
        pte.ptes.swap(at, PTE_NONE)


def folio_pte_batch(pte: PteMap, i: int, pteval: Pte, max_nr: int, respect: int = 0) -> int:
    """How many PTEs from `i` on, which holds pteval, map one page of the same large folio after the
    other. They may differ in bits that CPUs set and in the right to write, but for those to respect.

    Kernel: mm/internal.h, folio_pte_batch_flags(); mm/util.c, folio_pte_batch().
    """
    mem, first = pte.kernel.mem, pte_pfn(pteval)
    folio = mem.page_folio(first)
    kept = ~((WRITE | YOUNG | DIRTY | SOFT_DIRTY) & ~respect)
    for k in range(1, min(max_nr, folio + mem.folio_nr_pages(folio) - first)):
        if pte.get(i + k) & kept != (pteval & kept) + (k << PFN_SHIFT):
            return k
    return min(max_nr, folio + mem.folio_nr_pages(folio) - first)


# Flushing


def flush_tlb_mm_range(mm: Mm, start: Address, end: Address) -> None:
    """Forget the translations of [start, end) on every CPU; bytes. A drawing names who flushes."""
    kernel, shift = mm.kernel, mm.geometry.page_shift
    flush_tlb_range(kernel.cpus, mm.number, start >> shift, end >> shift, kernel.this_cpu.number)


def flush_tlb_page(mm: Mm, address: Address) -> None:
    """Kernel: arch/x86/include/asm/tlbflush.h, flush_tlb_page()."""
    flush_tlb_mm_range(mm, address, address + mm.geometry.page_size)


def ptep_clear_flush(mm: Mm, pte: PteMap, address: Address) -> Pte:
    """Empty a locked PTE, flush it, and give what it held.

    Kernel: mm/pgtable-generic.c, ptep_clear_flush().
    """
    pteval = pte.ptes.swap(pte.base, PTE_NONE)
    flush_tlb_page(mm, address)
    return pteval


@contextmanager
def unlocked_after(kernel: Kernel, found: tuple[PteMap, Hold]) -> Iterator[PteMap]:
    """Kernel: pte_unmap_unlock()."""
    pte, ptl = found
    yield pte
    if not kernel.machine.abandoned:
        ptl.release()
        pte.unmap()
