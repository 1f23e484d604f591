# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUs: translations they hold, the LRU batches they keep, and the IPI that waits for walkers.

Kernel: mm/mmu_gather.c (tlb_remove_table_sync_one), mm/folio.c (struct cpu_fbatches).
"""

from __future__ import annotations

from typing import NamedTuple

from mthp.machine.memory import Cell
from mthp.machine.step import Access
from mthp.machine.store_buffer import Slot
from mthp.machine.task import Machine


class TlbEntry(NamedTuple):
    """One cached translation: 1 << order pages from page number vpn of process mm."""

    mm: int
    vpn: int
    order: int
    entry: int


class Busy(Cell):
    """Whether the CPU is in the middle of something that an IPI to it waits for.

    unseen: what the CPU has stored by its end, and what may be late.
    """

    __slots__ = ("unseen",)

    def __init__(self, machine: Machine, name: str, value: bool) -> None:
        super().__init__(machine, name, value)
        self.unseen: tuple[Slot, ...] = ()

    def may_take(self, index: int) -> bool:
        """Whether an IPI (1) may go ahead; the CPU itself (0) always may. Not a step."""
        return not (index and self.value)

    def enter(self) -> None:
        """Let IPIs wait from here on."""
        self.machine.step(Access.ACQUIRE, self, 0)
        self.value = True

    def leave(self) -> None:
        """Let IPIs through again."""
        self.machine.step(Access.RELEASE, self, 0)
        self.value = False
        buffer = self.machine.current.buffer
        if buffer is not None:
            self.unseen = tuple(buffer.waiting)

    def wait(self) -> None:
        """Send an IPI: one step, once the CPU is at rest."""
        buffer = self.machine.current.buffer
        if buffer is not None:
            buffer.before_release()
        self.machine.step(Access.IPI, self, 1)
        while self.value:
            self.machine.block(self)

    def settle(self) -> None:
        """After the IPI: wait for what the CPU had stored by then."""
        for slot in self.unseen:
            slot.seen.wait()


class Cpu:
    """One CPU: what it caches, what it has queued, and what an IPI to it waits for.

    tlb and the three folio batches are Cells that hold tuples. irqs_off: a lockless walker (GUP-fast)
    is inside; the sync IPI waits for it. instruction: a load or store of user space is under way; a
    flush waits for it. tlb and walk_cache change within an instruction, or by a flush between two.
    walk_cache: (mm, PMD index, table number) links.
    """

    __slots__ = (
        "instruction", "irqs_off", "lru_add", "lru_lazyfree", "mlock", "number", "tlb", "walk_cache",
    )  # fmt: skip

    def __init__(self, machine: Machine, number: int) -> None:
        self.number = number
        self.tlb = Cell(machine, f"cpu{number}.tlb", ())
        self.lru_add = Cell(machine, f"cpu{number}.lru_add", ())
        self.lru_lazyfree = Cell(machine, f"cpu{number}.lru_lazyfree", ())
        self.mlock = Cell(machine, f"cpu{number}.mlock_fbatch", ())
        self.irqs_off = Busy(machine, f"cpu{number}.irqs_off", False)
        self.instruction = Busy(machine, f"cpu{number}.instruction", False)
        self.walk_cache: tuple[tuple[int, int, int], ...] = ()

    def local_irq_save(self) -> None:
        """Begin a lockless walk. Kernel: include/linux/irqflags.h, local_irq_save()."""
        self.irqs_off.enter()

    def local_irq_restore(self) -> None:
        """End a lockless walk. Kernel: include/linux/irqflags.h, local_irq_restore()."""
        self.irqs_off.leave()


def flush_tlb_range(
    cpus: tuple[Cpu, ...], mm: int, first_vpn: int, last_vpn: int, this_cpu: int = 0
) -> int:
    """Drop every entry that overlaps [first_vpn, last_vpn), and the links of mm, on every CPU.
    Returns how many entries were lost. Waits for the instruction another CPU is in."""
    lost = 0
    for cpu in cpus:
        if cpu.number != this_cpu:
            cpu.instruction.wait()
        if cpu.walk_cache:
            cpu.walk_cache = tuple(link for link in cpu.walk_cache if link[0] != mm)
        entries = cpu.tlb.value
        if entries:
            cpu.tlb.value = kept = tuple(
                e
                for e in entries
                if e.mm != mm or e.vpn >= last_vpn or e.vpn + (1 << e.order) <= first_vpn
            )
            lost += len(entries) - len(kept)
        if cpu.number != this_cpu:
            cpu.instruction.settle()
    return lost


def tlb_remove_table_sync_one(cpus: tuple[Cpu, ...], this_cpu: int) -> int:
    """Wait until no other CPU walks tables with interrupts off; returns how many IPIs were sent.

    Kernel: mm/mmu_gather.c, tlb_remove_table_sync_one().
    """
    sent = 0
    for cpu in cpus:
        if cpu.number == this_cpu:
            continue
        cpu.irqs_off.wait()
        cpu.irqs_off.settle()
        sent += 1
    return sent
