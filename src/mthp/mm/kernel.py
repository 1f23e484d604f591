# SPDX-License-Identifier: GPL-2.0-or-later
"""One booted kernel of the model: what every part of it shares, and nothing else.

Worlds are built by making a Kernel and giving it mms; khugepaged runs on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mthp.events import Event
from mthp.machine.cpu import Cpu
from mthp.machine.step import Machine
from mthp.mm.allocator import NodeState
from mthp.mm.folio import MemMap
from mthp.mm.lru import lru_add_drain
from mthp.mm.memcg import PAGE_ALLOC_COSTLY_ORDER, Gfp, MemCgroup
from mthp.mm.mm_struct import Mm
from mthp.mm.pagetable import PageTable
from mthp.mm.swap_device import SwapDevice
from mthp.mm.vma import AnonVma, Vma
from mthp.mm.vmstat import VmStat
from mthp.profiles import DEFAULT, Guard, Profile
from mthp.results import KernelBug
from mthp.settings import Settings


class Kernel:
    """Settings, profile, memory, CPUs, counters and the trace of one kernel.

    nodes: what each NUMA node has free. node_reclaim: vm.zone_reclaim_mode is set, and tables whose
    pages are spread over distant nodes are then refused. distances: node_distance() rows.
    witness: told what actors other than khugepaged did, for whoever checks laws.
    pte_maps: tables mapped and not yet unmapped; 0 whenever nobody works.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        profile: Profile = DEFAULT,
        *,
        nr_cpus: int = 1,
        nodes: Sequence[NodeState] = (NodeState(),),
        debug: bool = False,
    ) -> None:
        self.settings = settings or Settings()
        self.profile = profile
        self.geometry = self.settings.geometry
        self.machine = Machine(debug=debug)
        self.cpus = tuple(Cpu(self.machine, n) for n in range(nr_cpus))
        self.vmstat = VmStat()
        self.memcgs: list[MemCgroup] = []
        self.mem = MemMap(
            self.machine, self.vmstat, self.memcgs, tuple(nodes), self.geometry.pmd_order
        )
        self.swap = SwapDevice()
        self.tables: dict[int, PageTable] = {}
        self.anon_vmas: list[AnonVma] = []
        self.mms: list[Mm] = []
        self.node_reclaim = False
        self.node_reclaim_distance = 30
        self.distances: Sequence[Sequence[int]] = ()
        self.pte_maps = 0
        self.events: list[Event] = []
        self.trace: Callable[[Event], None] = self.events.append
        self.warnings: dict[str, str] = {}
        self.witness: Callable[[object], None] = lambda _: None
        self.update_mmu_cache: Callable[[Vma, int, int], None] | None = None

    @property
    def this_cpu(self) -> Cpu:
        """The CPU of the running task."""
        return self.cpus[self.machine.current.cpu]

    # Making things

    def new_mm(self, number: int, comm: str = "", memcg: MemCgroup | None = None) -> Mm:
        """An empty address space."""
        mm = Mm(self, number, comm, memcg)
        self.mms.append(mm)
        return mm

    def new_table(self) -> PageTable:
        """An empty page table. Kernel: pte_alloc_one()."""
        table = PageTable(self, len(self.tables) + 1)
        self.tables[table.number] = table
        return table

    def new_anon_vma(self) -> AnonVma:
        """Kernel: mm/rmap.c, anon_vma_alloc()."""
        anon_vma = AnonVma(self.machine, len(self.anon_vmas))
        self.anon_vmas.append(anon_vma)
        return anon_vma

    def new_memcg(self, name: str, limit: int | None = None, usage: int = 0) -> MemCgroup:
        """A cgroup with a limit and a usage in pages."""
        memcg = MemCgroup(self.machine, len(self.memcgs) + 1, name, limit, usage)
        self.memcgs.append(memcg)
        return memcg

    # What several rooms need

    def charge(self, folio: int, mm: Mm, gfp: Gfp = Gfp.TRANSHUGE) -> bool:
        """Charge a folio to the mm's cgroup; a full one's reclaim empties this CPU's batches first.

        Kernel: mm/memcontrol.c, mem_cgroup_charge(); mm/vmscan.c, lru_gen_shrink_lruvec().
        """
        if mm.memcg is None:
            return True
        if not mm.memcg.charge(self.mem.folio_nr_pages(folio), gfp, self._drain_batches):
            self._warn_of_oom(mm.memcg, self.mem.order.raw[folio], gfp)
            return False
        self.mem.memcg.raw[folio] = mm.memcg.number
        return True

    def _warn_of_oom(self, memcg: MemCgroup, order: int, gfp: Gfp) -> None:
        if memcg.kills(order, gfp):
            self.warn_once(
                f"mem_cgroup_oom {memcg.name}",
                f"cgroup {memcg.name} is full: before khugepaged's charge of order {order} fails, the "
                "kernel kills a process of the cgroup (with defrag 1 and orders up to "
                f"{PAGE_ALLOC_COSTLY_ORDER}); from there on this run is one in which it did not",
            )

    def _drain_batches(self) -> None:
        lru_add_drain(self.mem, self.this_cpu)

    def update_mmu_cache_range(self, vma: Vma, address: int, nr: int) -> None:
        """The architecture's hook after PTEs were set; does nothing unless one is installed."""
        if self.update_mmu_cache is not None:
            self.update_mmu_cache(vma, address, nr)

    def node_distance(self, a: int, b: int) -> int:
        """Kernel: node_distance(); 10 within a node, 20 between unless rows were given."""
        if self.distances:
            return self.distances[a][b]
        return 10 if a == b else 20

    def warn_once(self, site: str, text: str) -> None:
        """Say it the first time this site is reached since boot; silence afterwards."""
        self.warnings.setdefault(site, text)

    def guard(self, site: str, broken: bool, text: str) -> None:
        """The profile's guard on a condition that must not hold. BUG_ON raises KernelBug."""
        if not broken:
            return
        guard = self.profile.guard
        if guard is Guard.BUG_ON:
            raise KernelBug(f"BUG_ON in {site}: {text}")
        if guard is Guard.WARN_ON_ONCE or self.profile.debug_vm:
            self.warn_once(site, text)
