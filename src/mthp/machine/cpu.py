# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUs: translations they hold, the LRU batches they keep, and the IPI that waits for walkers.

Kernel: mm/mmu_gather.c (tlb_remove_table_sync_one), mm/folio.c (struct cpu_fbatches).
"""

from __future__ import annotations

from typing import NamedTuple

from mthp.machine.memory import Cell
from mthp.machine.step import Access, Machine


class TlbEntry(NamedTuple):
    """One cached translation: 1 << order pages from page number vpn of process mm."""

    mm: int
    vpn: int
    order: int
    entry: int


class IrqsOff(Cell):
    """True while the CPU walks page tables with interrupts off; the sync IPI waits for it."""

    __slots__ = ()

    def may_take(self, index: int) -> bool:
        """The IPI (1) must wait; the CPU itself (0) never does. Not a step."""
        return not (index and self.value)


class Cpu:
    """One CPU. tlb and the two folio batches are Cells that hold tuples.

    irqs_off: a lockless walker (GUP-fast) is inside; the sync IPI waits for it.
    """

    __slots__ = ("irqs_off", "lru_add", "mlock", "number", "tlb")

    def __init__(self, machine: Machine, number: int) -> None:
        self.number = number
        self.tlb = Cell(machine, f"cpu{number}.tlb", ())
        self.lru_add = Cell(machine, f"cpu{number}.lru_add", ())
        self.mlock = Cell(machine, f"cpu{number}.mlock_fbatch", ())
        self.irqs_off = IrqsOff(machine, f"cpu{number}.irqs_off", False)

    def local_irq_save(self) -> None:
        """Kernel: include/linux/irqflags.h, local_irq_save()."""
        self.irqs_off.machine.step(Access.ACQUIRE, self.irqs_off, 0)
        self.irqs_off.value = True

    def local_irq_restore(self) -> None:
        """Kernel: include/linux/irqflags.h, local_irq_restore()."""
        self.irqs_off.machine.step(Access.RELEASE, self.irqs_off, 0)
        self.irqs_off.value = False


def flush_tlb_range(cpus: tuple[Cpu, ...], mm: int, first_vpn: int, last_vpn: int) -> int:
    """Drop every entry that overlaps [first_vpn, last_vpn) on every CPU; how many were lost."""
    lost = 0
    for cpu in cpus:
        entries = cpu.tlb.read()
        if not entries:
            continue
        kept = tuple(
            e
            for e in entries
            if e.mm != mm or e.vpn >= last_vpn or e.vpn + (1 << e.order) <= first_vpn
        )
        if len(kept) != len(entries):
            lost += len(entries) - len(kept)
            cpu.tlb.write(kept)
    return lost


def tlb_remove_table_sync_one(machine: Machine, cpus: tuple[Cpu, ...], this_cpu: int) -> int:
    """Wait until no other CPU walks page tables with interrupts off; the number of IPIs sent.

    Kernel: mm/mmu_gather.c, tlb_remove_table_sync_one().
    """
    sent = 0
    for cpu in cpus:
        if cpu.number == this_cpu:
            continue
        machine.step(Access.IPI, cpu.irqs_off, 1)
        while cpu.irqs_off.value:
            machine.block(cpu.irqs_off)
        sent += 1
    return sent
