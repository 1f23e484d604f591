# SPDX-License-Identifier: GPL-2.0-or-later
"""A tiny world with a collapse in it, built afresh for every execution.

PMD worlds have two PTEs a table, window worlds four of which two are the window: enough for every
race known, and small enough to try every order of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from enum import Enum
from functools import partial
from typing import Any, Final

from mthp.khugepaged.daemon import Khugepaged
from mthp.laws.broken import Broken
from mthp.laws.watch import Watch
from mthp.machine.step import Access
from mthp.machine.store_buffer import Lane, Late, Model, StoreBuffer
from mthp.machine.task import Endless, Machine, Task
from mthp.mm.mem_map import MemMap
from mthp.mm.mm_types import (
    MM_ANONPAGES,
    MM_SWAPENTS,
    Kernel,
    Mm,
    PageTable,
    Vma,
    linear_page_index,
)
from mthp.mm.page_alloc import Allocator
from mthp.mm.page_flags import (
    ENTIRELY_MAPPED,
    ON_LRU,
    PAGE_ANON_EXCLUSIVE,
    PG_DIRTY,
    PG_KSM,
    PG_LOCKED,
    PG_MLOCKED,
    PG_SWAPCACHE,
    PG_UNEVICTABLE,
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
    huge_pmd,
    leaf_pte,
    mk_pte,
    pmd_is_table,
    pmd_pgtable,
    table_pmd,
)
from mthp.mm.rmap import new_anon_folio
from mthp.mm.swap_clusters import SwapClusters
from mthp.mm.vm_flags import VM_DEFAULT, VM_LOCKED, VM_READ, VM_WRITE
from mthp.races.secondary_mmu import SecondaryMmu
from mthp.words.profiles import Profile
from mthp.words.settings import Enabled, Settings
from mthp.words.units import Folio, Geometry, Pfn

START: Final = 0x40000
"""Where the mapping and its table begin."""
FILE: Final = "file"
"""A file that may be mapped; each of its pages holds the same."""
SWAP_SLOT: Final = 1
"""The slot a page is swapped out to; the next one holds a page that is out from the start."""
GARBAGE: Final = 666
"""What a fresh page holds before it is written to."""
_ARENA: Final = 16
"""Frames each task may allocate, and slots."""
_FIRST_SLOT: Final = 16

USED: Final = WRITE | YOUNG | DIRTY | SOFT_DIRTY
WRITTEN: Final = ON_LRU | PG_DIRTY


class Size(Enum):
    """What is collapsed."""

    PMD = "a whole table of two PTEs"
    WINDOW = "two of a table's four PTEs"


class Layout(Enum):
    """Where the window stands in its table, whose the table is, and what kind of mapping it is."""

    PLAIN = "the window is the first of a table that one mapping has to itself"
    SECOND = "the window is the second of its table"
    BOTH = "both windows of the table are collapsed, one after the other"
    TWO_VMAS = "the mapping begins a table before, and ends in the middle, where another one begins"
    FILE = "the mapping is a file's, with a page of the process's own"
    MEMCG = "the process is in a memory cgroup, with room for one more collapse and one page"
    LOCKED = "the mapping is locked (VM_LOCKED)"
    READ_ONLY = "the mapping may be read only, and its page was written before"
    HUGE = "the table is mapped huge already"

    @property
    def never_collapses(self) -> str:
        """Why no collapse succeeds, where none does; empty where one can in any case."""
        return _NEVER.get(self, "")


_NEVER: Final = {
    Layout.TWO_VMAS: "a table of which another mapping has a part is left alone",
    Layout.FILE: "file mappings are left alone",
    Layout.HUGE: "a huge mapping is left alone until it is split",
}
_SIZES: Final = {
    Layout.SECOND: Size.WINDOW,
    Layout.BOTH: Size.WINDOW,
    Layout.HUGE: Size.PMD,
}
"""Layouts that one size alone has."""


def has_layout(size: Size, layout: Layout) -> bool:
    """Whether worlds of the size can be laid out like this."""
    return _SIZES.get(layout, size) is size


_VM_FLAGS: Final = {Layout.LOCKED: VM_DEFAULT | VM_LOCKED, Layout.READ_ONLY: VM_READ}
_GEOMETRY: Final = {Size.PMD: Geometry(12, 1, 1), Size.WINDOW: Geometry(12, 2, 1)}


def _settings(size: Size, layout: Layout) -> Settings:
    geometry = _GEOMETRY[size]
    sizes = dict.fromkeys(geometry.anon_orders, Enabled.ALWAYS)
    if layout is Layout.BOTH:
        sizes[geometry.pmd_order] = Enabled.NEVER
    return Settings(
        geometry=geometry,
        sizes=sizes,
        max_ptes_none=geometry.ptrs_per_pte - 1,
        max_ptes_swap=geometry.ptrs_per_pte - 1,
    )


_SETTINGS: Final = {(size, layout): _settings(size, layout) for size in Size for layout in Layout}


class _TableNumbers:
    """Each task numbers the tables it makes: a number does not depend on what others make."""

    def __init__(self, machine: Machine, names: Sequence[str], first: int) -> None:
        self.machine = machine
        later_first = [*names[1:], names[0]]
        self.next = {name: first + at * _ARENA for at, name in enumerate(later_first)}

    def __call__(self) -> int:
        """The running task's next one."""
        name = self.machine.current.name
        self.next[name] += 1
        return self.next[name] - 1


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


class Slots(SwapClusters):
    """Each task has slots of its own to swap out to, as it has frames."""

    def __init__(self, machine: Machine, names: Sequence[str]) -> None:
        super().__init__(0, 0)
        self.machine = machine
        self.of = {name: _FIRST_SLOT + at * _ARENA for at, name in enumerate(names)}

    def alloc(self, order: int) -> int:
        """The next aligned ones of the running task's slots."""
        name = self.machine.current.name
        first = -(-self.of[name] >> order) << order
        self.of[name] = first + (1 << order)
        return first

    def put(self, entry: int) -> None:
        """Nothing: it is never given out again."""


TaskBody = Callable[[], object]
Observer = Callable[[Access, Any, int], None]


class Stage:
    """The world and its tasks, as schedulers want them (schedulers.tasks.Setup).

    Pages are counted from the window's first one on, so that those before it are negative.

    order: of the window. pages: page -> frame of the small pages there. swapped: page -> slot of the
    pages that are out. beside: a page of the table outside the window; None where the window is the
    table. end: where the table's range ends. start, stop: where the mapping does. elsewhere: a page
    outside the table, for the rival that put it there. alone: only the collapser does anything.
    children: mms for fork() to fill, by who forks.
    """

    def __init__(
        self,
        size: Size,
        profile: Profile,
        cpus: int,
        vm_flags: int = VM_DEFAULT,
        layout: Layout = Layout.PLAIN,
        tables: int = 1,
    ) -> None:
        self.kernel = kernel = Kernel(_SETTINGS[size, layout], profile, nr_cpus=cpus, debug=True)
        kernel.fault_orders = 0  # large ones come by the rivals that are named for them
        self.machine = kernel.machine
        self.size = size
        self.layout = layout
        self.order = 1
        self.tables = tables
        self.first = 2 if layout is Layout.SECOND else 0
        beside = 0 if layout is Layout.SECOND else 2
        self.beside = beside - self.first if size is Size.WINDOW else None
        kernel.files[FILE] = 700
        self.khugepaged = Khugepaged(kernel)
        memcg = kernel.new_memcg("cgroup") if layout is Layout.MEMCG else None
        self.mm = kernel.new_mm(1, "mm", memcg)
        self.khugepaged.khugepaged_enter(self.mm)
        self.end = START + kernel.geometry.pmd_size
        self.start, self.stop = START, START + tables * kernel.geometry.pmd_size
        if layout is Layout.TWO_VMAS:
            self.start, self.stop = (
                START - kernel.geometry.pmd_size,
                START + kernel.geometry.pmd_size // 2,
            )
        self.table = self.table_at(self.mm, START)
        self.vma = self._map_range(vm_flags)
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
        self.raised: Callable[[Task, Exception | Endless], None]
        self.stuck: Callable[[Sequence[tuple[Task, Any]]], None]
        self.map_page(0)
        if self.beside is not None:
            self.map_page(self.beside)
        if tables > 1:
            self.map_page((tables - 1) * kernel.geometry.ptrs_per_pte)
        if layout is Layout.HUGE:
            self.map_huge()

    def _map_range(self, vm_flags: int) -> Vma:
        """The mapping of the window, and whichever else the layout has."""
        mm = self.mm
        vm_flags = vm_flags & ~VM_DEFAULT | _VM_FLAGS.get(self.layout, VM_DEFAULT)
        if self.layout is Layout.TWO_VMAS:
            mm.link_anon_vma(mm.mmap(self.stop, self.end, vm_flags))
        vma = mm.mmap(
            self.start, self.stop, vm_flags, file=FILE if self.layout is Layout.FILE else None
        )
        mm.link_anon_vma(vma)
        return vma

    def table_at(self, mm: Mm, address: int) -> PageTable:
        """The table of address, which is empty if there was none."""
        pmd = pmd_ptr(mm, address, create=True)
        assert pmd is not None
        value = pmd.page.pmds.raw[pmd.slot]
        if pmd_is_table(value):
            return self.kernel.tables[pmd_pgtable(value)]
        table = self.kernel.new_table()
        pmd.page.pmds.raw[pmd.slot] = table_pmd(table.number)
        return table

    @property
    def window(self) -> int:
        """The address of the window's first page."""
        return self.address(0)

    @property
    def page_beside(self) -> Folio | None:
        """The frame of the page beside the window, if one is mapped there."""
        return None if self.beside is None else self.pages.get(self.beside)

    @property
    def last(self) -> int:
        """The address of the mapping's last table."""
        return START + (self.tables - 1) * self.kernel.geometry.pmd_size

    @property
    def windows(self) -> list[int]:
        """The addresses of the windows that are collapsed, in their order."""
        both = range(2 if self.layout is Layout.BOTH else 1)
        return [self.address(number << self.order) for number in both]

    @property
    def far(self) -> int:
        """An address whose PMD stands in another page of PMDs than the mapping's, and is none."""
        geometry = self.kernel.geometry
        pages = 1 + self.tables // geometry.ptrs_per_pte
        return START + pages * geometry.pmd_size * geometry.ptrs_per_pte

    # Building

    def address(self, index: int) -> int:
        """The address of a page of the mapping."""
        return START + ((self.first + index) << self.kernel.geometry.page_shift)

    def map_page(self, index: int) -> Folio:
        """A small page with contents of its own (100 + index); its frame."""
        self.pages[index] = page = self._map_new(self.mm, self.address(index), 100 + index)
        return page

    def _map_new(
        self, mm: Mm, address: int, content: int, flags: int = WRITTEN, order: int = 0
    ) -> Folio:
        """A folio at an address of a mapping, mapped by PTEs."""
        mem = self.kernel.mem
        vma = mm.vma_lookup(address)
        assert vma is not None and vma.anon_vma is not None
        if vma.vm_flags & VM_LOCKED:
            flags |= PG_MLOCKED | PG_UNEVICTABLE
        index, anon_vma = linear_page_index(vma, address), vma.anon_vma.number
        folio = new_anon_folio(mem, order, flags=flags, anon_vma=anon_vma, index=index)
        self._charge(mm, folio)
        bits = YOUNG if flags & PG_KSM else USED if vma.vm_flags & VM_WRITE else USED & ~WRITE
        table, slot = self.table_at(mm, address), self.kernel.geometry.pte_index(address)
        for i in range(1 << order):
            mem.content.raw[folio + i] = content + i
            table.ptes.raw[slot + i] = mk_pte(folio + i, bits)
        mm.counters[MM_ANONPAGES] += 1 << order
        return folio

    def map_elsewhere(
        self, mm: Mm, start: int, vm_flags: int, content: int | None, flags: int = WRITTEN
    ) -> Folio:
        """A mapping as large as a table, in this mm or another, with one small page (or none) at its
        begin; the page.
        """
        vma = mm.mmap(start, start + self.kernel.geometry.pmd_size, vm_flags)
        mm.link_anon_vma(vma)
        self.table_at(mm, start)
        if content is None:
            return Folio(ZERO_PFN)
        return self._map_new(mm, start, content, flags)

    def map_large(self, order: int = 1, first: int = 0) -> None:
        """One folio of 1 << order pages, mapped by PTEs from page `first` on, in the place of what is
        there.
        """
        pages = range(first, first + (1 << order))
        for index in self.pages.keys() & pages:
            self.unmap_page(index)
        head = self._map_new(self.mm, self.address(first), 100 + first, order=order)
        self.pages |= {index: Folio(Pfn(head + index - first)) for index in pages}

    def map_huge(self) -> None:
        """A huge page, as a collapse leaves it, in the place of the first page."""
        mem, geometry = self.kernel.mem, self.kernel.geometry
        self.map_large()
        folio = self.pages[0]
        pmd = pmd_ptr(self.mm, START)
        assert pmd is not None
        for i in range(geometry.ptrs_per_pte):
            self.table.ptes.raw[i] = mem.mapcount.raw[folio + i] = 0
            mem.page_flags.raw[folio + i] = 0
        mem.page_flags.raw[folio] = PAGE_ANON_EXCLUSIVE
        mem.refcount.raw[folio] = 1
        mem.entire_mapcount.raw[folio] = mem.large_mapcount.raw[folio] = 1
        mem.nr_pages_mapped.raw[folio] = ENTIRELY_MAPPED
        pmd.page.deposited[pmd.slot] = [self.table.number]
        pmd.page.pmds.raw[pmd.slot] = huge_pmd(folio, USED)

    def unmap_page(self, index: int) -> None:
        """Take a small page away again, as if it had never been."""
        mem = self.kernel.mem
        old = self.pages.pop(index)
        for row in (mem.refcount, mem.mapcount, mem.flags, mem.page_flags, mem.memcg):
            row.raw[old] = 0
        self.table.ptes.raw[self.first + index] = 0
        self.mm.counters[MM_ANONPAGES] -= 1

    def swap_page(self, index: int, slot: int) -> None:
        """A page that was swapped out before."""
        self.kernel.swap.contents[slot] = 100 + index
        self.kernel.swap.add_user(slot)
        self.table.ptes.raw[self.first + index] = leaf_pte(
            Leaf.SWAP, slot, SWP_EXCLUSIVE | SOFT_DIRTY
        )
        self.mm.counters[MM_SWAPENTS] += 1
        self.swapped[index] = slot

    def cache_swapped(self, index: int) -> None:
        """The swapped page is in the swap cache, locked until its contents are read."""
        mem = self.kernel.mem
        flags = ON_LRU | PG_SWAPCACHE | PG_LOCKED
        page = self.pages[index] = new_anon_folio(mem, flags=flags, mapcount=0)
        self._charge(self.mm, page)
        mem.content.raw[page] = 100 + index
        self.kernel.swap.add_to_cache(self.swapped[index], page, 1)

    def _charge(self, mm: Mm, folio: Folio) -> None:
        if mm.memcg is not None:
            self.kernel.mem.memcg.raw[folio] = mm.memcg.number

    def add_task(self, name: str, body: TaskBody) -> None:
        """A task on a CPU of its own."""
        self.tasks.append((Task(name, len(self.tasks)), body))

    def store_late(self, model: Model, late: Collection[Late]) -> None:
        """CPUs have store buffers of as many places as the window has pages: the first task's, or each."""
        if model is Model.SC:
            return
        kernel, places = self.kernel, 1 << self.order
        kernel.mem.content.lane = Lane.CONTENTS
        kernel.mem.refcount.lane = Lane.COUNTS
        kernel.mem.flags.lane = Lane.LATE if Late.FLAGS in late else None
        for mm in kernel.mms:
            for page in mm.pmd_pages.values():
                page.pmds.lane = Lane.TABLES
        kernel.lane_of_ptes = Lane.LATE if Late.PTES in late else Lane.TABLES
        for table in kernel.tables.values():
            table.ptes.lane = kernel.lane_of_ptes
        owners = [task for task, _ in self.tasks]
        for owner in owners if Late.EACH in late else owners[:1]:
            owner.buffer = StoreBuffer(self.machine, owner.name, model, places)
            for place in range(places):
                task = Task(f"store-buffer-{len(self.tasks) - len(owners)}", owner.cpu)
                task.background = True
                self.tasks.append((task, partial(owner.buffer.drain, place, task)))

    def ready(self, collapsers: Sequence[str]) -> Stage:
        """Everything is in place: frames for each task, and the laws look on from here."""
        kernel, mem = self.kernel, self.kernel.mem
        for memcg in kernel.memcgs:
            charged = (pfn for pfn, number in enumerate(mem.memcg.raw) if number)
            memcg.usage.value = sum(1 << mem.order.raw[pfn] for pfn in charged)
            memcg.limit = memcg.usage.value + (1 << self.order) + 1
        names = [task.name for task, _ in self.tasks]
        mem.allocator = Arenas(mem, self.machine, names)
        kernel.swap.clusters = Slots(self.machine, names)
        kernel.table_numbers = _TableNumbers(self.machine, names, len(kernel.tables) + 1)
        self.watch = Watch(kernel, self.khugepaged, collapsers)
        self.before, self.after = self.watch.before, self.watch.after
        self.raised, self.stuck = self.watch.raised, self.watch.stuck
        return self

    @property
    def broken(self) -> list[Broken]:
        """The laws broken so far."""
        return self.watch.broken

    @property
    def results(self) -> list[str]:
        """What the collapses came to."""
        return self.watch.results

    def at_rest(self) -> None:
        """Every task has ended."""
        self.watch.at_rest([task for task, _ in self.tasks])
        if self.alone:
            self.watch.alone_at_rest()
