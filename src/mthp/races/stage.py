# SPDX-License-Identifier: GPL-2.0-or-later
"""A tiny world with a collapse in it, built afresh for every execution.

PMD worlds have two PTEs a table, window worlds four of which the first two are the window: enough
for every race known, and small enough to try every order of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Final

from mthp.khugepaged.daemon import Khugepaged
from mthp.laws.broken import Broken
from mthp.laws.watch import Watch
from mthp.machine.step import Access
from mthp.machine.store_buffer import Lane, Model, StoreBuffer
from mthp.machine.task import Machine, Task
from mthp.mm.mem_map import MemMap
from mthp.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, Kernel, Mm, PageTable, Vma
from mthp.mm.page_alloc import Allocator
from mthp.mm.page_flags import (
    ON_LRU,
    PG_DIRTY,
    PG_KSM,
    PG_LOCKED,
    PG_SWAPCACHE,
)
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import (
    DIRTY,
    SOFT_DIRTY,
    SWP_EXCLUSIVE,
    WRITE,
    YOUNG,
    ZERO_PFN,
    Leaf,
    leaf_pte,
    mk_pte,
    table_pmd,
)
from mthp.mm.rmap import new_anon_folio
from mthp.mm.vm_flags import VM_DEFAULT
from mthp.races.secondary_mmu import SecondaryMmu
from mthp.words.profiles import Profile
from mthp.words.settings import Enabled, Settings
from mthp.words.units import Folio, Geometry, Pfn

START: Final = 0x40000
"""Where the one mapping begins."""
SWAP_SLOT: Final = 1
"""The slot a page is swapped out to; the next one holds a page that is out from the start."""
GARBAGE: Final = 666
"""What a fresh page holds before anybody writes to it."""
_ARENA: Final = 16
"""Frames each task may allocate."""

USED: Final = WRITE | YOUNG | DIRTY | SOFT_DIRTY
WRITTEN: Final = ON_LRU | PG_DIRTY


class Size(Enum):
    """What is collapsed."""

    PMD = "a whole table of two PTEs"
    WINDOW = "the first two of a table's four PTEs"


_GEOMETRY: Final = {Size.PMD: Geometry(12, 1, 1), Size.WINDOW: Geometry(12, 2, 1)}
_SETTINGS: Final = {
    size: Settings(
        geometry=geometry,
        sizes=dict.fromkeys(geometry.anon_orders, Enabled.ALWAYS),
        max_ptes_none=geometry.ptrs_per_pte - 1,
        max_ptes_swap=geometry.ptrs_per_pte - 1,
    )
    for size, geometry in _GEOMETRY.items()
}


class Arenas(Allocator):
    """Each task has frames of its own, and none is used twice: which frame an allocation gets does
    not depend on what others do, and what was freed stays freed.
    """

    def __init__(self, mem: MemMap, machine: Machine, names: Sequence[str]) -> None:
        self.machine = machine
        self.next = {name: mem.new_frames(0, _ARENA.bit_length() - 1) for name in names}
        for first in self.next.values():
            for page in range(first, first + _ARENA):
                mem.content.raw[page] = GARBAGE
        self.nodes = mem.allocator.nodes

    def alloc(
        self, order: int, nid: int, allowed: frozenset[int], direct_compact: bool
    ) -> int | None:
        """The next aligned block of the running task's frames."""
        name = self.machine.current.name
        first = -(-self.next[name] >> order) << order
        self.next[name] = first + (1 << order)
        return first

    def free(self, pfn: int, order: int) -> None:
        """Nothing: it is never handed out again."""


TaskBody = Callable[[], object]
Observer = Callable[[Access, Any, int], None]


class Stage:
    """The world and its tasks, as schedulers want them (schedulers.tasks.Setup).

    order: of the window. pages: PTE index -> frame of the small pages there. swapped: PTE index ->
    slot of the pages that are out. elsewhere: a page outside the table, for the rival that put it there.
    alone: only the collapser does anything.
    children: mms for fork() to fill, by who forks.
    """

    def __init__(self, size: Size, profile: Profile, cpus: int, vm_flags: int = VM_DEFAULT) -> None:
        self.kernel = kernel = Kernel(_SETTINGS[size], profile, nr_cpus=cpus, debug=True)
        self.machine = kernel.machine
        self.size = size
        self.order = 1
        self.khugepaged = Khugepaged(kernel)
        self.mm = kernel.new_mm(1, "mm")
        self.khugepaged.khugepaged_enter(self.mm)
        self.end = START + kernel.geometry.pmd_size
        self.vma = self.mm.mmap(START, self.end, vm_flags)
        self.mm.link_anon_vma(self.vma)
        self.table = self.table_at(self.mm, START)
        self.pages: dict[int, Folio] = {}
        self.swapped: dict[int, int] = {}
        self.elsewhere = Folio(ZERO_PFN)
        self.guest: SecondaryMmu | None = None
        self.alone = False
        self.children: dict[str, Mm] = {}
        self.tasks: list[tuple[Task, TaskBody]] = []
        self.watch: Watch
        self.before: Observer
        self.after: Observer
        self.raised: Callable[[Task, Exception], None]
        self.stuck: Callable[[Sequence[tuple[Task, Any]]], None]

    def table_at(self, mm: Mm, address: int) -> PageTable:
        """A new empty table for address."""
        pmd = pmd_ptr(mm, address, create=True)
        assert pmd is not None
        table = self.kernel.new_table()
        pmd.page.pmds.raw[pmd.slot] = table_pmd(table.number)
        return table

    @property
    def far(self) -> int:
        """An address whose PMD stands in another page of PMDs than START's, and is none."""
        geometry = self.kernel.geometry
        return START + geometry.pmd_size * geometry.ptrs_per_pte

    # Building

    def address(self, index: int) -> int:
        """Of a page of the mapping."""
        return START + (index << self.kernel.geometry.page_shift)

    def map_page(self, index: int) -> Folio:
        """A small page with contents of its own (100 + index); its frame."""
        self.pages[index] = page = self._map_new(self.vma, self.table, index, 100 + index)
        return page

    def _map_new(
        self, vma: Vma, table: PageTable, slot: int, content: int, flags: int = WRITTEN
    ) -> Folio:
        """A small page in a slot of the mapping's first table."""
        mem = self.kernel.mem
        assert vma.anon_vma is not None
        index, anon_vma = vma.vm_pgoff + slot, vma.anon_vma.number
        page = new_anon_folio(mem, flags=flags, anon_vma=anon_vma, index=index)
        mem.content.raw[page] = content
        table.ptes.raw[slot] = mk_pte(page, YOUNG if flags & PG_KSM else USED)
        vma.vm_mm.counters[MM_ANONPAGES] += 1
        return page

    def map_elsewhere(
        self, mm: Mm, start: int, vm_flags: int, content: int | None, flags: int = WRITTEN
    ) -> Folio:
        """A mapping as large as the first one, in this mm or another, with one small page (or none)
        at its begin; the page.
        """
        vma = mm.mmap(start, start + self.kernel.geometry.pmd_size, vm_flags)
        mm.link_anon_vma(vma)
        table = self.table_at(mm, start)
        if content is None:
            return Folio(ZERO_PFN)
        return self._map_new(vma, table, 0, content, flags)

    def map_large(self) -> None:
        """One folio of two pages, mapped by PTEs, in the place of the first page."""
        mem = self.kernel.mem
        self.unmap_page(0)
        head = new_anon_folio(mem, 1, flags=WRITTEN, index=self.vma.vm_pgoff)
        for i in range(2):
            mem.content.raw[head + i] = 100 + i
            self.table.ptes.raw[i] = mk_pte(head + i, USED)
            self.pages[i] = Folio(Pfn(head + i))
        self.mm.counters[MM_ANONPAGES] += 2

    def unmap_page(self, index: int) -> None:
        """Take a small page away again, as if it had never been."""
        mem = self.kernel.mem
        old = self.pages.pop(index)
        for row in (mem.refcount, mem.mapcount, mem.flags, mem.page_flags):
            row.raw[old] = 0
        self.table.ptes.raw[index] = 0
        self.mm.counters[MM_ANONPAGES] -= 1

    def swap_page(self, index: int, slot: int) -> None:
        """A page that was swapped out before."""
        self.kernel.swap.contents[slot] = 100 + index
        self.kernel.swap.add_user(slot)
        self.table.ptes.raw[index] = leaf_pte(Leaf.SWAP, slot, SWP_EXCLUSIVE | SOFT_DIRTY)
        self.mm.counters[MM_SWAPENTS] += 1
        self.swapped[index] = slot

    def cache_swapped(self, index: int) -> None:
        """The swapped page is in the swap cache, locked until its contents are read."""
        mem = self.kernel.mem
        flags = ON_LRU | PG_SWAPCACHE | PG_LOCKED
        page = self.pages[index] = new_anon_folio(mem, flags=flags, mapcount=0)
        mem.content.raw[page] = 100 + index
        self.kernel.swap.add_to_cache(self.swapped[index], page, 1)

    def add_task(self, name: str, body: TaskBody) -> None:
        """A task on a CPU of its own."""
        self.tasks.append((Task(name, len(self.tasks)), body))

    def store_late(self, model: Model) -> None:
        """The first task's CPU has a store buffer."""
        if model is Model.SC:
            return
        owner = self.tasks[0][0]
        pages = 1 << self.order
        owner.buffer = StoreBuffer(self.machine, owner.name, model, pages)
        self.kernel.mem.content.lane = Lane.CONTENTS
        self.kernel.mem.refcount.lane = Lane.COUNTS
        for mm in self.kernel.mms:
            for page in mm.pmd_pages.values():
                page.pmds.lane = Lane.TABLES
        for table in self.kernel.tables.values():
            table.ptes.lane = Lane.TABLES
        for number, slot in enumerate(owner.buffer.free):
            task = Task(f"store-buffer-{number}", owner.cpu)
            task.background = True
            self.tasks.append((task, slot.drain))

    def ready(self, collapsers: Sequence[str]) -> Stage:
        """Everything is in place: frames for each task, and the laws look on from here."""
        kernel = self.kernel
        names = [task.name for task, _ in self.tasks]
        kernel.mem.allocator = Arenas(kernel.mem, self.machine, names)
        self.watch = Watch(kernel, self.khugepaged, collapsers)
        self.before, self.after = self.watch.before, self.watch.after
        self.raised, self.stuck = self.watch.raised, self.watch.stuck
        return self

    @property
    def broken(self) -> list[Broken]:
        """The laws broken so far."""
        return self.watch.broken

    def at_rest(self) -> None:
        """Every task has ended."""
        self.watch.at_rest([task for task, _ in self.tasks])
        if self.alone:
            self.watch.alone_at_rest()
