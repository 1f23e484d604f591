# SPDX-License-Identifier: GPL-2.0-or-later
"""One address space. Kernel: include/linux/mm_types.h (struct mm_struct)."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from mthp.machine.locks import Hold, Rank, RwSem
from mthp.machine.memory import Cell
from mthp.mm.memcg import MemCgroup
from mthp.mm.mmu_notifier import Subscriber
from mthp.mm.vma import VM_DEFAULT, AnonVma, Vma

if TYPE_CHECKING:
    from mthp.mm.kernel import Kernel
    from mthp.mm.pagetable import PmdPage

MMF_VM_HUGEPAGE: Final = 1 << 0
MMF_DISABLE_THP_COMPLETELY: Final = 1 << 1
MMF_DISABLE_THP_EXCEPT_ADVISED: Final = 1 << 2

MM_ANONPAGES: Final = "MM_ANONPAGES"
MM_SWAPENTS: Final = "MM_SWAPENTS"


class Mm:
    """An address space: its VMAs, page tables, locks and counters.

    number: the process id it stands for. mm_users: 0 once every user is gone. flags: MMF_* bits.
    pmd_pages: PUD index -> page of PMD slots. vmas are guarded by mmap_lock; mm_mt stands for the
    tree that lookups without it read, and counts its changes.
    """

    __slots__ = (
        "_starts",
        "comm",
        "counters",
        "flags",
        "geometry",
        "kernel",
        "machine",
        "memcg",
        "mm_mt",
        "mm_users",
        "mmap_lock",
        "notifiers",
        "number",
        "pmd_pages",
        "vmas",
        "write_locked_vmas",
    )

    def __init__(
        self, kernel: Kernel, number: int, comm: str = "", memcg: MemCgroup | None = None
    ) -> None:
        self.kernel = kernel
        self.machine = kernel.machine
        self.geometry = kernel.geometry
        self.number = number
        self.comm = comm
        self.memcg = memcg
        self.mmap_lock = RwSem(self.machine, f"mm{number}.mmap_lock", Rank.MMAP)
        self.mm_users = Cell(self.machine, f"mm{number}.mm_users", 1)
        self.flags = Cell(self.machine, f"mm{number}.flags", 0)
        self.mm_mt = Cell(self.machine, f"mm{number}.mm_mt", 0)
        self.vmas: list[Vma] = []
        self._starts: list[int] = []
        self.write_locked_vmas: list[Vma] = []
        self.pmd_pages: dict[int, PmdPage] = {}
        self.counters: Counter[str] = Counter()
        self.notifiers: list[Subscriber] = []

    def __repr__(self) -> str:
        return f"Mm({self.number})"

    def mm_flags_test(self, flag: int) -> bool:
        """Kernel: include/linux/mm.h, mm_flags_test()."""
        flags: int = self.flags.read()
        return flags & flag != 0

    def mm_flags_set(self, flag: int) -> None:
        """Kernel: include/linux/mm.h, mm_flags_set()."""
        self.flags.write(self.flags.read() | flag)

    def mm_flags_clear(self, flag: int) -> None:
        """Kernel: include/linux/mm.h, mm_flags_clear()."""
        self.flags.write(self.flags.read() & ~flag)

    # VMAs

    def mmap(
        self,
        start: int,
        end: int,
        vm_flags: int = VM_DEFAULT,
        *,
        file: str | None = None,
        name: str = "",
        anon_vma: AnonVma | None = None,
    ) -> Vma:
        """Add a mapping; ValueError where it is not page aligned or overlaps another.

        No lock: worlds are built with it. Kernel: mm/vma.c, __mmap_region().
        """
        mask = self.geometry.page_size - 1
        if start & mask or end & mask or start >= end:
            raise ValueError(f"not a page-aligned range: {start:#x}-{end:#x}")
        at = bisect_right(self._starts, start)
        if (at and self.vmas[at - 1].vm_end > start) or (
            at < len(self.vmas) and self.vmas[at].vm_start < end
        ):
            raise ValueError(f"{start:#x}-{end:#x} overlaps another mapping")
        self.mm_mt.write(self.mm_mt.value + 1)
        vma = Vma(self, start, end, vm_flags, file=file, name=name)
        insort(self._starts, start)
        self.vmas.insert(at, vma)
        if anon_vma is not None:
            self.link_anon_vma(vma, anon_vma)
        return vma

    def unlink_vma(self, vma: Vma) -> None:
        """Remove a mapping from the tree, page tables left alone. Kernel: mm/vma.c, vma_iter_clear()."""
        self.mm_mt.write(self.mm_mt.value + 1)
        at = self.vmas.index(vma)
        del self.vmas[at], self._starts[at]
        if vma.anon_vma is not None:
            vma.anon_vma.vmas.remove(vma)

    def link_anon_vma(self, vma: Vma, anon_vma: AnonVma | None = None) -> AnonVma:
        """Kernel: mm/rmap.c, __anon_vma_prepare()."""
        if vma.anon_vma is None:
            vma.anon_vma = anon_vma or self.kernel.new_anon_vma()
            vma.anon_vma.vmas.append(vma)
        return vma.anon_vma

    def find_vma(self, address: int) -> Vma | None:
        """The first VMA that ends above address. Kernel: mm/mmap.c, find_vma()."""
        at = bisect_right(self._starts, address)
        if at and self.vmas[at - 1].vm_end > address:
            return self.vmas[at - 1]
        return self.vmas[at] if at < len(self.vmas) else None

    def for_each_vma(self, address: int) -> Iterator[Vma]:
        """VMAs from the one that holds address on. Kernel: for_each_vma()."""
        vma = self.find_vma(address)
        while vma is not None:
            yield vma
            vma = self.find_vma(vma.vm_end)

    # Locks

    def mmap_write_lock(self) -> Hold:
        """Kernel: include/linux/mmap_lock.h, mmap_write_lock()."""
        return self.mmap_lock.write(self._vma_end_write_all)

    def _vma_end_write_all(self) -> None:
        """Every VMA write lock ends with mmap_lock. Kernel: vma_end_write_all()."""
        for vma in self.write_locked_vmas:
            vma.vm_lock.unmark()
        self.write_locked_vmas.clear()

    def mmap_read_lock(self) -> Hold:
        """Kernel: include/linux/mmap_lock.h, mmap_read_lock()."""
        return self.mmap_lock.read()

    def mmap_read_trylock(self) -> Hold | None:
        """Kernel: include/linux/mmap_lock.h, mmap_read_trylock()."""
        return self.mmap_lock.try_read()
