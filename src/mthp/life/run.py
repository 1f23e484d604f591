# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs are run: each process's operations on the engine, straight through.

Kernel: what the system calls of a process lead to; mm/khugepaged.c for its scans.
"""

from __future__ import annotations

import errno
from functools import singledispatchmethod
from typing import Final

from mthp.khugepaged.daemon import Khugepaged
from mthp.khugepaged.madvise import do_madvise_collapse
from mthp.life.program import (
    BASE,
    HEAP,
    Brk,
    DropCaches,
    Fork,
    FullScan,
    Kill,
    Knob,
    LifeProgram,
    Limited,
    Madvise,
    Mmap,
    Mprotect,
    Mremap,
    Munmap,
    Operation,
    SetSizes,
    Touches,
    Touching,
)
from mthp.life.touch import touch
from mthp.mm.fork import dup_mmap, exit_mm
from mthp.mm.madvise import MADV_COLLAPSE, do_madvise
from mthp.mm.mm_types import Kernel, Mm
from mthp.mm.mmap import do_brk, do_mmap, vm_munmap
from mthp.mm.mprotect import do_mprotect
from mthp.mm.mremap import do_mremap
from mthp.mm.shrinker import drop_slab
from mthp.mm.swap_clusters import SwapClusters
from mthp.mm.vm_flags import VM_NORESERVE, VM_READ, VM_WRITE
from mthp.vectorised.twins import TWINS
from mthp.words.profiles import DEFAULT, Profile
from mthp.words.settings import Enabled, Settings
from mthp.words.units import Address

ENDLESS_PAGES_TO_SCAN: Final = 2**32 - 1
"""With so many pages_to_scan one wakeup is one full scan."""
PATTERN: Final = 1
"""What a store leaves in a page that is not all zeroes."""
SWAP_SLOTS: Final = 1 << 18
"""Slots of the swap area: more than a program needs."""
_DROPS: Final = 8
"""So often drop_caches is written: all is split that can be."""
_SHRINKERS: Final = 2
"""The bit of vm.drop_caches that asks the shrinkers. Kernel: fs/drop_caches.c."""


class Life:
    """Processes that begin empty, and the kernel that they run on. mms: name -> address space."""

    def __init__(self, settings: Settings | None = None, profile: Profile = DEFAULT) -> None:
        settings = (settings or Settings()).replace(pages_to_scan=ENDLESS_PAGES_TO_SCAN)
        self.kernel = Kernel(settings, profile, twins=TWINS)
        self.kernel.swap.clusters = SwapClusters(SWAP_SLOTS, self.kernel.geometry.pmd_order)
        self.khugepaged = Khugepaged(self.kernel)
        self.kernel.khugepaged_enter_vma = self.khugepaged.khugepaged_enter_vma
        self.mms: dict[str, Mm] = {}

    @classmethod
    def of_program(cls, program: LifeProgram, profile: Profile = DEFAULT) -> Life:
        """The life of a program before its first operation."""
        life = cls(settings_of(program), profile)
        for operation in program.pre:
            life.perform(operation)
        return life

    def mm(self, process: str) -> Mm:
        """The address space of a process, which begins to exist where it is first named."""
        if process not in self.mms:
            mm = self.kernel.new_mm(len(self.kernel.mms) + 1, process)
            mm.start_brk = mm.brk = Address(self.address(HEAP))
            self.mms[process] = mm
        return self.mms[process]

    def address(self, page: int) -> int:
        """The address of a page of a process."""
        return BASE + (page << self.kernel.geometry.page_shift)

    def span(self, start: int, pages: int) -> tuple[int, int]:
        """The addresses of a range of pages."""
        return self.address(start), self.address(start + pages)

    @singledispatchmethod
    def perform(self, operation: Operation) -> int:
        """Perform one operation: 0, or the negative errno that the process sees."""
        raise NotImplementedError(operation)

    @perform.register
    def _(self, operation: Mmap) -> int:
        span = self.span(operation.start, operation.pages)
        return do_mmap(self.mm(operation.process), *span, VM_READ | VM_WRITE | VM_NORESERVE)

    @perform.register
    def _(self, operation: Munmap) -> int:
        return vm_munmap(self.mm(operation.process), *self.span(operation.start, operation.pages))

    @perform.register
    def _(self, operation: Brk) -> int:
        return do_brk(self.mm(operation.process), self.address(HEAP + operation.pages))

    @perform.register
    def _(self, operation: Madvise) -> int:
        mm, (start, end) = self.mm(operation.process), self.span(operation.start, operation.pages)
        if operation.advice == MADV_COLLAPSE:
            return do_madvise_collapse(mm, start, end - start)
        return do_madvise(mm, start, end, operation.advice)

    @perform.register
    def _(self, operation: Mprotect) -> int:
        span = self.span(operation.start, operation.pages)
        rights = (VM_READ, VM_WRITE)
        vm_flags = sum(flag for bit, flag in enumerate(rights) if operation.protection & 1 << bit)
        return do_mprotect(self.mm(operation.process), *span, vm_flags)

    @perform.register
    def _(self, operation: Mremap) -> int:
        span = self.span(operation.start, operation.pages)
        return do_mremap(self.mm(operation.process), *span, self.address(operation.to))

    @perform.register
    def _(self, operation: Touches) -> int:
        mm, content = self.mm(operation.process), None
        if operation.access is not Touching.READ:
            content = PATTERN if operation.access is Touching.WRITE else 0
        for page in range(operation.start, operation.start + operation.pages, operation.step):
            if not touch(mm, self.address(page), content):
                return -errno.EFAULT
        return 0

    @perform.register
    def _(self, operation: Limited) -> int:
        mm = self.mm(operation.process)
        if not self.kernel.memcgs:
            self.kernel.new_memcg("g")
        mm.memcg = memcg = self.kernel.memcgs[0]
        memcg.limit = memcg.usage.value + operation.room
        stored = touch(mm, self.address(operation.page), PATTERN)
        memcg.limit = None
        return 0 if stored else -errno.EFAULT

    @perform.register
    def _(self, operation: Fork) -> int:
        parent = self.mm(operation.process)
        number = len(self.kernel.mms) + 1
        child = self.mms[operation.child] = self.kernel.new_mm(number, memcg=parent.memcg)
        dup_mmap(child, parent, lambda mm: self.khugepaged.khugepaged_fork(mm, parent))
        return 0

    @perform.register
    def _(self, operation: Kill) -> int:
        child = self.mms.pop(operation.child, None)
        if child is None:
            return -errno.ESRCH
        exit_mm(child, self.khugepaged.khugepaged_exit)
        return 0

    @perform.register
    def _(self, _: FullScan) -> int:
        self.khugepaged.khugepaged_do_scan()
        return 0

    @perform.register
    def _(self, operation: DropCaches) -> int:
        if operation.what & _SHRINKERS:
            for _ in range(_DROPS):
                drop_slab(self.kernel)
        return 0

    @perform.register
    def _(self, operation: Knob) -> int:
        """Kernel: mm/huge_memory.c, defrag_store() and its neighbours."""
        files = {**self.kernel.settings.to_sysfs(), operation.path: operation.value}
        self.kernel.settings = Settings.from_sysfs(files, self.kernel.geometry)
        return 0

    @perform.register
    def _(self, operation: SetSizes) -> int:
        sizes = switched(self.kernel.settings.geometry.anon_orders, operation.orders)
        self.kernel.settings = self.kernel.settings.replace(
            sizes=sizes, max_ptes_none=operation.max_ptes_none
        )
        return 0


def switched(every: frozenset[int], orders: int) -> dict[int, Enabled]:
    """The switch of every order: those of the bitmap are at madvise."""
    return {order: Enabled.MADVISE if orders >> order & 1 else Enabled.NEVER for order in every}


def settings_of(program: LifeProgram) -> Settings:
    """What a program's sizes and limit say; its further settings are operations."""
    sizes = switched(Settings().geometry.anon_orders, sum(1 << order for order in program.orders))
    return Settings(enabled=Enabled.MADVISE, sizes=sizes, max_ptes_none=program.max_ptes_none)
