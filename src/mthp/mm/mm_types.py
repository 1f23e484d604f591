# SPDX-License-Identifier: GPL-2.0-or-later
"""The structures of memory management: VMAs, address spaces, page tables, and their kernel.

Kernel: include/linux/mm_types.h (struct mm_struct, struct vm_area_struct), include/linux/rmap.h
(struct anon_vma), include/linux/mmu_notifier.h, include/linux/mm.h (for_each_vma),
include/linux/mmap_lock.h (vma_end_write_all), include/asm-generic/pgalloc.h (pte_alloc_one),
include/linux/topology.h (node_distance). Kernel objects are made here too: see Kernel.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar, Final, NamedTuple, Protocol

from mthp.machine.cpu import Cpu
from mthp.machine.hold import Hold, Rank
from mthp.machine.locks import RwSem, SpinLock, WriteMark
from mthp.machine.memory import Cell, Words
from mthp.machine.store_buffer import Lane
from mthp.machine.task import NO_TWINS, Machine, Task, Twins
from mthp.mm.mem_map import MemMap
from mthp.mm.page_alloc import NodeState
from mthp.mm.page_counter import MemCgroup
from mthp.mm.pgtable_types import Pmd, Pte
from mthp.mm.swap_table import SwapDevice
from mthp.mm.vm_flags import VM_DEFAULT, VM_UFFD_MISSING, VM_UFFD_RWP, VM_UFFD_WP
from mthp.mm.vmstat import VmStat
from mthp.words.events import Event, OrderPolicy, PassedBy, singly
from mthp.words.profiles import DEFAULT, Guard, Profile
from mthp.words.results import KernelBug, Rule
from mthp.words.settings import Settings
from mthp.words.units import Address


class AnonVma:
    """The VMAs that may map an anonymous folio: those whose own pages belong to it, and copies that fork()
    made of them. rwsem is the root's, which has all of a family.

    num_children: how many anon_vmas were made for copies, and one more of a root. num_active_vmas: how many
    VMAs have it as the one that their new pages belong to. Kernel: struct anon_vma.
    """

    __slots__ = ("num_active_vmas", "num_children", "number", "parent", "rwsem", "vmas")

    def __init__(self, machine: Machine, number: int, parent: AnonVma | None = None) -> None:
        self.number = number
        self.parent = parent
        name = f"anon_vma{number}"
        self.rwsem: RwSem
        self.rwsem = RwSem(machine, name, Rank.ANON_VMA) if parent is None else parent.rwsem
        self.vmas: list[Vma] = []
        self.num_children = 1 if parent is None else 0
        self.num_active_vmas = 0
        if parent is not None:
            parent.num_children += 1


class Vma:
    """A mapping [vm_start, vm_end) of one mm; bytes.

    file: a name for a file mapping, None for anonymous memory. anon_vma: None until the first write.
    vm_lock is written under mmap_lock (write) by vma_start_write() and ends with it. freed: it was
    unlinked, and mmap_lock was let go since. anon_vma_chain: the anon_vmas whose folios it may map.
    """

    __slots__ = (
        "anon_vma", "anon_vma_chain", "detached", "file", "freed", "name", "vm_end", "vm_flags",
        "vm_lock", "vm_mm", "vm_pgoff", "vm_start",
    )  # fmt: skip

    def __init__(
        self,
        mm: Mm,
        vm_start: Address,
        vm_end: Address,
        vm_flags: int = VM_DEFAULT,
        *,
        file: str | None = None,
        name: str = "",
    ) -> None:
        self.vm_mm = mm
        self.vm_start = vm_start
        self.vm_end = vm_end
        self.vm_flags = vm_flags
        self.vm_pgoff = vm_start >> mm.geometry.page_shift
        self.anon_vma: AnonVma | None = None
        self.file = file
        self.name = name
        self.anon_vma_chain: list[AnonVma] = []
        self.freed = self.detached = False
        self.vm_lock = WriteMark(mm.machine, f"vma{vm_start:x}.vm_lock", self)

    def __repr__(self) -> str:
        return f"Vma({self.vm_start:#x}-{self.vm_end:#x})"


class GuardedVma(Vma):
    """A VMA of a kernel in debug mode. While laws look on, a task that uses it must hold what keeps it:
    mmap_lock, the VMA's own lock, or its anon_vma's.
    """

    __slots__ = ()
    _KEPT = frozenset({"anon_vma", "file", "vm_end", "vm_flags", "vm_pgoff", "vm_start"})

    def __getattribute__(self, name: str) -> Any:
        if name in GuardedVma._KEPT:
            machine = self.vm_mm.machine
            if machine.guards and machine.on_step is not None and not machine.abandoned:
                self._check(machine.current, super().__getattribute__("anon_vma"))
        return super().__getattribute__(name)

    def _check(self, task: Task, anon_vma: AnonVma | None) -> None:
        locks = [hold.lock for hold in task.held]
        is_kept = self.vm_mm.mmap_lock in locks or self.vm_lock in task.entered
        if not is_kept and (anon_vma is None or anon_vma.rwsem not in locks):
            raise KernelBug(Rule.USE, f"{task.name} uses {self} and holds no lock that keeps it")
        if self.freed:
            raise KernelBug(Rule.USE, f"{task.name} uses {self}, which was unmapped and freed")

    def __repr__(self) -> str:
        start, end = map(super().__getattribute__, ("vm_start", "vm_end"))
        return f"Vma({start:#x}-{end:#x})"


def vma_is_anonymous(vma: Vma) -> bool:
    """Whether it maps no file. Kernel: include/linux/mm.h, vma_is_anonymous()."""
    return vma.file is None


def userfaultfd_armed(vma: Vma) -> bool:
    """Whether userfaultfd has it. Kernel: include/linux/userfaultfd_k.h, userfaultfd_armed()."""
    return vma.vm_flags & (VM_UFFD_WP | VM_UFFD_MISSING | VM_UFFD_RWP) != 0


def linear_page_index(vma: Vma, address: Address) -> int:
    """The index that rmap knows a page by. Kernel: include/linux/pagemap.h, linear_page_index()."""
    return ((address - vma.vm_start) >> vma.vm_mm.geometry.page_shift) + vma.vm_pgoff


MMF_VM_HUGEPAGE: Final = 1 << 0
MMF_DISABLE_THP_COMPLETELY: Final = 1 << 1
MMF_DISABLE_THP_EXCEPT_ADVISED: Final = 1 << 2
MM_ANONPAGES: Final = "MM_ANONPAGES"
MM_SWAPENTS: Final = "MM_SWAPENTS"
FLOOR: Final = 0
CEILING: Final = 1 << 64
"""Before and after every mapping. Kernel: FIRST_USER_ADDRESS, USER_PGTABLES_CEILING."""


class Mm:
    """An address space: its VMAs, page tables, locks and counters.

    number: the process id it stands for. mm_users: 0 once every user is gone. flags: MMF_* bits.
    pmd_pages: PUD index -> page of PMD slots; pmd_numbers: the indices, ascending. vmas are guarded
    by mmap_lock; mm_mt stands for the tree that lookups without it read, and counts its changes. start_brk,
    brk: where the heap begins and ends.
    """

    __slots__ = (
        "_ends", "_starts", "brk", "comm", "counters", "flags", "geometry", "kernel", "machine", "memcg",
        "mm_mt", "mm_users", "mmap_lock", "notifiers", "number", "pmd_numbers", "pmd_pages",
        "start_brk", "unlinked_vmas", "vmas", "write_locked_vmas",
    )  # fmt: skip

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
        self.unlinked_vmas: list[Vma] = []
        self._starts: list[Address] = []
        self._ends: list[Address] = []
        self.write_locked_vmas: list[Vma] = []
        self.pmd_pages: dict[int, PmdPage] = {}
        self.pmd_numbers: list[int] = []
        self.counters: Counter[str] = Counter()
        self.notifiers: list[Subscriber] = []
        self.start_brk: Address = Address(0)
        self.brk: Address = Address(0)

    def __repr__(self) -> str:
        return f"Mm({self.number})"

    def mm_flags_test(self, flag: int) -> bool:
        """Kernel: include/linux/mm.h, mm_flags_test()."""
        flags: int = self.flags.read()
        return flags & flag != 0

    def mm_flags_set(self, flag: int) -> None:
        """Kernel: include/linux/mm.h, mm_flags_set()."""
        self.flags.update(lambda flags: flags | flag)

    def mm_flags_clear(self, flag: int) -> None:
        """Kernel: include/linux/mm.h, mm_flags_clear()."""
        self.flags.update(lambda flags: flags & ~flag)

    # VMAs

    def mmap(
        self,
        start: Address,
        end: Address,
        vm_flags: int = VM_DEFAULT,
        *,
        file: str | None = None,
        name: str = "",
        anon_vma: AnonVma | None = None,
    ) -> Vma:
        """Add a mapping; ValueError where it is not page aligned or overlaps another.

        No lock: worlds are built with it. Kernel: mm/vma.c, __mmap_region().
        """
        vma = self.new_vma(start, end, vm_flags, file=file, name=name)
        self.insert_vma(vma)
        if anon_vma is not None:
            self.link_anon_vma(vma, anon_vma)
        return vma

    def new_vma(
        self, start: Address, end: Address, vm_flags: int, *, file: str | None, name: str = ""
    ) -> Vma:
        """Make a mapping that no lookup finds yet; ValueError where it is not page aligned. Kernel:
        vm_area_alloc().
        """
        mask = self.geometry.page_size - 1
        if start & mask or end & mask or start >= end:
            raise ValueError(f"not a page-aligned range: {start:#x}-{end:#x}")
        kind = GuardedVma if self.machine.debug else Vma
        return kind(self, start, end, vm_flags, file=file, name=name)

    def insert_vma(self, vma: Vma) -> None:
        """Let lookups find a mapping; ValueError where another one is. Kernel: vma_iter_store_new()."""
        start, end = vma.vm_start, vma.vm_end
        at = bisect_right(self._starts, start)
        if (at and self._ends[at - 1] > start) or (at < len(self.vmas) and self._starts[at] < end):
            raise ValueError(f"{start:#x}-{end:#x} overlaps another mapping")
        self.mm_mt.write(self.mm_mt.value + 1)
        self._starts.insert(at, start)
        self._ends.insert(at, end)
        self.vmas.insert(at, vma)

    def unlink_vma(self, vma: Vma) -> None:
        """Let neither lookup nor rmap walk find a mapping any more, page tables left alone."""
        self.detach_vmas((vma,))
        self.leave_anon_vmas(vma)

    def detach_vmas(self, vmas: Sequence[Vma]) -> None:
        """Remove neighbours from the tree. Kernel: mm/vma.c, vma_iter_clear(), vma_mark_detached()."""
        if not vmas:
            return
        self.mm_mt.write(self.mm_mt.value + 1)
        at = self.vmas.index(vmas[0])
        gone = slice(at, at + len(vmas))
        del self.vmas[gone], self._starts[gone], self._ends[gone]
        for vma in vmas:
            self.unlinked_vmas.append(vma)
            vma.detached = True

    def leave_anon_vmas(self, vma: Vma) -> None:
        """Let no rmap walk find a VMA any more."""
        for each in vma.anon_vma_chain:
            each.vmas.remove(vma)
            if not each.vmas and each.parent is not None:
                each.parent.num_children -= 1
        vma.anon_vma_chain.clear()
        if vma.anon_vma is not None:
            vma.anon_vma.num_active_vmas -= 1

    def vma_set_range(self, vma: Vma, start: Address, end: Address) -> None:
        """A mapping begins or ends elsewhere; its pages keep their indices. Kernel: mm/vma.c,
        vma_set_range().
        """
        self.mm_mt.write(self.mm_mt.value + 1)
        at = self.vmas.index(vma)
        vma.vm_pgoff += (start - vma.vm_start) >> self.geometry.page_shift
        self._starts[at] = vma.vm_start = start
        self._ends[at] = vma.vm_end = end

    def gap_around(self, address: Address) -> tuple[Address, Address]:
        """Where the mapping before an address that lies in none ends, and the one after begins."""
        at = bisect_right(self._starts, address)
        ends, starts = self._ends[at - 1 : at], self._starts[at : at + 1]
        return next(iter(ends), FLOOR), next(iter(starts), CEILING)

    def vma_before(self, vma: Vma) -> Vma | None:
        """The mapping before one. Kernel: include/linux/mm.h, vma_prev()."""
        at = self.vmas.index(vma)
        return self.vmas[at - 1] if at else None

    def vma_after(self, vma: Vma) -> Vma | None:
        """The mapping after one. Kernel: include/linux/mm.h, vma_next()."""
        return next(iter(self.vmas[self.vmas.index(vma) + 1 :]), None)

    def link_anon_vma(self, vma: Vma, anon_vma: AnonVma | None = None) -> AnonVma:
        """Link the VMA to an anon_vma. Kernel: mm/rmap.c, __anon_vma_prepare()."""
        if vma.anon_vma is None:
            vma.anon_vma = anon_vma or self.kernel.new_anon_vma()
            vma.anon_vma.vmas.append(vma)
            vma.anon_vma.num_active_vmas += 1
            vma.anon_vma_chain.insert(0, vma.anon_vma)
        return vma.anon_vma

    def find_vma(self, address: Address) -> Vma | None:
        """The first VMA that ends above address. Kernel: mm/mmap.c, find_vma()."""
        at = self._at(address)
        return self.vmas[at] if at < len(self.vmas) else None

    def _at(self, address: Address) -> int:
        """Where among the VMAs the first one stands that ends above address."""
        at = bisect_right(self._starts, address)
        return at - 1 if at and self._ends[at - 1] > address else at

    def vma_lookup(self, address: Address) -> Vma | None:
        """The VMA that holds address. Kernel: include/linux/mm.h, vma_lookup()."""
        at = bisect_right(self._starts, address)
        return self.vmas[at - 1] if at and self._ends[at - 1] > address else None

    def for_each_vma(self, address: Address) -> Iterator[Vma]:
        """VMAs from the one that holds address on. Kernel: for_each_vma()."""
        at = self._at(address)
        while at < len(self.vmas):
            vma = self.vmas[at]
            yield vma
            unchanged = at < len(self.vmas) and self.vmas[at] is vma
            at = at + 1 if unchanged else self._at(vma.vm_end)

    # Locks

    def mmap_write_lock(self) -> Hold:
        """Kernel: include/linux/mmap_lock.h, mmap_write_lock()."""
        return self.mmap_lock.write(self._vma_end_write_all)

    def _vma_end_write_all(self) -> None:
        """End every VMA write lock with mmap_lock, and free what was unlinked under it.

        Kernel: vma_end_write_all(); mm/vma.c, remove_vma().
        """
        for vma in self.write_locked_vmas:
            vma.vm_lock.unmark()
        self.write_locked_vmas.clear()
        for vma in self.unlinked_vmas:
            vma.freed = True
        self.unlinked_vmas.clear()

    def mmap_read_lock(self) -> Hold:
        """Kernel: include/linux/mmap_lock.h, mmap_read_lock()."""
        return self.mmap_lock.read()

    def mmap_read_trylock(self) -> Hold | None:
        """Kernel: include/linux/mmap_lock.h, mmap_read_trylock()."""
        return self.mmap_lock.try_read()


class TableState(Enum):
    """Where a table stands in its life."""

    LIVE = "live"
    DEFERRED = "freed once no walker can be inside"
    FREED = "freed"


class PageTable:
    """One table of PTEs. ptes is guarded by ptl, or by being detached from its PMD."""

    __slots__ = ("number", "ptes", "ptl", "state")

    def __init__(self, kernel: Kernel, number: int) -> None:
        self.number = number
        self.state = TableState.LIVE
        size = kernel.geometry.ptrs_per_pte
        self.ptes: Words[Pte] = Words(kernel.machine, f"table{number}", "Q", size, self)
        self.ptes.lane = kernel.lane_of_ptes
        self.ptl = SpinLock(kernel.machine, f"table{number}.ptl", Rank.PTE)


class PmdPage:
    """One page of PMD slots. pmds is guarded by ptl. deposited: slot -> table numbers."""

    __slots__ = ("deposited", "pmds", "ptl")

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.pmds: Words[Pmd] = Words(kernel.machine, name, "Q", kernel.geometry.ptrs_per_pte, self)
        self.ptl = SpinLock(kernel.machine, f"{name}.ptl", Rank.PMD)
        self.deposited: dict[int, list[int]] = {}


class PmdPtr(NamedTuple):
    """A pmd_t pointer: a slot of a page. Two are equal if they name the same slot."""

    page: PmdPage
    slot: int


class Subscriber(Protocol):
    """A secondary MMU of one mm. invalidating: how many ranges it must not map before it is told of their
    end. Kernel: struct mmu_notifier_ops.
    """

    invalidating: int

    def invalidate_range_start(self, mm: Mm, start: Address, end: Address) -> None:
        """Drop what maps [start, end) and let nothing new in until the end."""

    def invalidate_range_end(self, mm: Mm, start: Address, end: Address) -> None:
        """Let [start, end) be mapped again."""

    def test_young(self, mm: Mm, address: Address) -> bool:
        """Whether the page at address was used through this MMU."""


class Kernel:
    """Settings, profile, memory, CPUs, counters and the trace of one kernel.

    table_numbers: gives the next table its number.
    trace_row: is called with tables that are passed by, a row at a time.
    nodes: what each NUMA node has free. node_reclaim: vm.zone_reclaim_mode is set, and tables whose
    pages are spread over distant nodes are then refused. distances: node_distance() rows. report:
    is called with the facts of mm.reports, which laws need and no word of memory holds. twins: what
    may be done at once where no scheduler watches steps (vectorised/ has them). files: file -> what
    each of its pages holds, on file systems with large folios. order_policy: chooses windows in the
    kernel's place. lane_of_ptes: how PTEs are stored to where CPUs have store buffers. fault_orders:
    orders that a page fault may try (bitmap), besides single pages, if settings and VMA allow them.
    khugepaged_enter_vma: the daemon is told of a VMA that may be collapsed, and of its flags.
    """

    COMMUTES: ClassVar[Mapping[str, str]] = {
        "anon_vmas": "only added to; whoever looks for one knows its number by something made later"
    }

    def __init__(
        self,
        settings: Settings | None = None,
        profile: Profile = DEFAULT,
        *,
        nr_cpus: int = 1,
        nodes: Sequence[NodeState] = (NodeState(),),
        debug: bool = False,
        twins: Twins = NO_TWINS,
    ) -> None:
        self.settings = settings or Settings()
        self.profile = profile
        self.geometry = self.settings.geometry
        self.machine = Machine(debug=debug, twins=twins)
        self.cpus = tuple(Cpu(self.machine, n) for n in range(nr_cpus))
        self.vmstat = VmStat()
        self.memcgs: list[MemCgroup] = []
        self.mem = MemMap(
            self.machine, self.vmstat, self.memcgs, tuple(nodes), self.geometry.pmd_order
        )
        self.swap = SwapDevice(self.machine)
        self.tables: dict[int, PageTable] = {}
        self.anon_vmas: list[AnonVma] = []
        self.table_numbers: Callable[[], int] = lambda: len(self.tables) + 1
        self.mms: list[Mm] = []
        self.node_reclaim = False
        self.node_reclaim_distance = 30
        self.distances: Sequence[Sequence[int]] = ()
        self.files: dict[str | None, int] = {}
        self.events: list[Event] = []
        self.trace: Callable[[Event], None] = self.events.append
        self.trace_row: Callable[[PassedBy], None] = self._trace_singly
        self.warnings: dict[str, str] = {}
        self.report: Callable[[object], None] = lambda _: None
        self.update_mmu_cache: Callable[[Vma, int, int], None] | None = None
        self.order_policy: OrderPolicy | None = None
        self.lane_of_ptes: Lane | None = None
        self.fault_orders = ~0
        self.khugepaged_enter_vma: Callable[[Vma, int], None] = lambda *_: None

    @property
    def this_cpu(self) -> Cpu:
        """The CPU of the running task."""
        return self.cpus[self.machine.current.cpu]

    @property
    def pte_maps(self) -> int:
        """Tables that the running task has mapped; 0 between operations."""
        return len(self.machine.current.maps)

    # Making things

    def new_mm(self, number: int, comm: str = "", memcg: MemCgroup | None = None) -> Mm:
        """Make an empty address space."""
        mm = Mm(self, number, comm, memcg)
        self.mms.append(mm)
        return mm

    def new_table(self) -> PageTable:
        """Make an empty page table. Kernel: pte_alloc_one()."""
        table = PageTable(self, self.table_numbers())
        self.tables[table.number] = table
        return table

    def new_anon_vma(self, parent: AnonVma | None = None) -> AnonVma:
        """Make an anon_vma, for a copy of a VMA that has one or for a VMA that has none. Kernel: mm/rmap.c,
        anon_vma_alloc().
        """
        anon_vma = AnonVma(self.machine, len(self.anon_vmas), parent)
        self.anon_vmas.append(anon_vma)
        return anon_vma

    def new_memcg(self, name: str, limit: int | None = None, usage: int = 0) -> MemCgroup:
        """Make a cgroup with a limit and a usage in pages."""
        memcg = MemCgroup(self.machine, len(self.memcgs) + 1, name, limit, usage)
        self.memcgs.append(memcg)
        return memcg

    # What several rooms need

    def _trace_singly(self, row: PassedBy) -> None:
        """Trace what a row of tables stands for."""
        for event in singly((row,)):
            self.trace(event)

    def update_mmu_cache_range(self, vma: Vma, address: Address, nr: int) -> None:
        """The architecture's hook after PTEs were set; does nothing unless one is installed."""
        if self.update_mmu_cache is not None:
            self.update_mmu_cache(vma, address, nr)

    def node_distance(self, a: int, b: int) -> int:
        """Kernel: node_distance(); 10 within a node, 20 between unless rows were given."""
        if self.distances:
            return self.distances[a][b]
        return 10 if a == b else 20

    def warn_once(self, site: str, text: str) -> None:
        """Warn the first time this site is reached since boot, and never again."""
        self.warnings.setdefault(site, text)

    def guard(self, site: str, broken: bool, text: str) -> None:
        """Do as the profile does where a condition holds that must not; BUG_ON raises KernelBug."""
        if not broken:
            return
        guard = self.profile.guard
        if guard is Guard.BUG_ON:
            raise KernelBug(Rule.STATE, f"BUG_ON in {site}: {text}")
        if guard is Guard.WARN_ON_ONCE or self.profile.debug_vm:
            self.warn_once(site, text)
