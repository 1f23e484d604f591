# SPDX-License-Identifier: GPL-2.0-or-later
"""A CPU in user space: loads and stores through its TLB, its walk cache and the page table.

An instruction is atomic towards TLB flushes: the flush's IPI (or its completion, where flushes are
broadcast) waits for it. Its page table walk has steps of its own, which others may come between.
"""

from __future__ import annotations

from mthp.machine.cpu import Cpu, TlbEntry
from mthp.mm.memory import handle_user_fault
from mthp.mm.mm_types import Mm
from mthp.mm.pgtable import mm_find_pmd, pmdp_get_lockless
from mthp.mm.pgtable_types import (
    DIRTY,
    NO_ACCESS,
    YOUNG,
    Pte,
    pmd_is_table,
    pmd_page,
    pmd_pgtable,
    pte_pfn,
    pte_present,
    pte_write,
)
from mthp.mm.reports import InstructionEnds, LoadedFrom, StoredTo
from mthp.words.units import Address

MOST_FAULTS = 4
"""Faults an access of these worlds may need, with room; it is given up after more."""


def lookup(cpu: Cpu, mm: Mm, vpn: int, *, write: bool) -> int | None:
    """The frame a cached translation gives, None if none does.

    A store through one that is not dirty walks, as the hardware does to set the bit in the table.
    """
    entries: tuple[TlbEntry, ...] = cpu.tlb.value
    for entry in entries:
        if entry.mm == mm.number and entry.vpn <= vpn < entry.vpn + (1 << entry.order):
            pteval = Pte(entry.entry)
            if write and not (pte_write(pteval) and pteval & DIRTY):
                return None
            return pmd_page(pteval, vpn - entry.vpn) if entry.order else pte_pfn(pteval)
    return None


def walk(cpu: Cpu, mm: Mm, address: Address, *, write: bool) -> int | None:
    """Walk the page table as the hardware does, set young and dirty, cache what was found."""
    kernel = mm.kernel
    geometry = kernel.geometry
    pmd_index = address >> geometry.pmd_shift
    number = next((t for m, i, t in cpu.walk_cache if (m, i) == (mm.number, pmd_index)), None)
    if number is None:
        pmd = mm_find_pmd(mm, address)
        if pmd is None:
            return None
        pmdval = pmdp_get_lockless(pmd)
        while not pmd_is_table(pmdval):
            if not _permits(pmdval, write=write):
                return None
            used = _used(pmdval, write=write)
            if used == pmdval or pmd.page.pmds.replace(pmd.slot, pmdval, used):
                first = pmd_index << geometry.pmd_order
                _cache(cpu, TlbEntry(mm.number, first, geometry.pmd_order, used))
                return pmd_page(used, geometry.pte_index(address))
            pmdval = pmdp_get_lockless(pmd)
        number = pmd_pgtable(pmdval)
        cpu.walk_cache = (*cpu.walk_cache, (mm.number, pmd_index, number))
    ptes = kernel.tables[number].ptes
    index = geometry.pte_index(address)
    while True:
        pteval = ptes.read(index)
        if not _permits(pteval, write=write):
            return None
        used = _used(pteval, write=write)
        if used == pteval or ptes.replace(index, pteval, used):
            _cache(cpu, TlbEntry(mm.number, address >> geometry.page_shift, 0, used))
            return pte_pfn(used)


def _permits(entry: Pte, *, write: bool) -> bool:
    return pte_present(entry) and not entry & NO_ACCESS and (pte_write(entry) or not write)


def _used(entry: Pte, *, write: bool) -> Pte:
    return Pte(entry | YOUNG | (DIRTY if write else 0))


def _cache(cpu: Cpu, entry: TlbEntry) -> None:
    cpu.tlb.value = (*(e for e in cpu.tlb.value if e.mm != entry.mm or e.vpn != entry.vpn), entry)


def _translate(cpu: Cpu, mm: Mm, address: Address, *, write: bool) -> int | None:
    frame = lookup(cpu, mm, address >> mm.geometry.page_shift, write=write)
    if frame is None:
        frame = walk(cpu, mm, address, write=write)
        mm.kernel.report(InstructionEnds(cpu.number))
    return frame


def store(mm: Mm, address: Address, value: int) -> bool:
    """Store to user memory, faulting as often as it takes; returns whether it was done."""
    kernel = mm.kernel
    cpu = kernel.this_cpu
    for _ in range(MOST_FAULTS):
        cpu.instruction.enter()
        frame = _translate(cpu, mm, address, write=True)
        if frame is not None:
            kernel.mem.content.write(frame, value)
            kernel.report(StoredTo(mm, address, value, kernel.machine.current.name))
        cpu.instruction.leave()
        if frame is not None:
            return True
        handle_user_fault(mm, address, write=True)
    return False


def load(mm: Mm, address: Address) -> int | None:
    """Load from user memory; None if it was given up."""
    kernel = mm.kernel
    cpu = kernel.this_cpu
    for _ in range(MOST_FAULTS):
        cpu.instruction.enter()
        frame = _translate(cpu, mm, address, write=False)
        value = None
        if frame is not None:
            value = kernel.mem.content.read(frame) if frame else 0
            kernel.report(LoadedFrom(mm, address, value, kernel.machine.current.name))
        cpu.instruction.leave()
        if frame is not None:
            return value
        handle_user_fault(mm, address, write=False)
    return None
