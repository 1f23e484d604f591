# SPDX-License-Identifier: GPL-2.0-or-later
"""A secondary MMU (a guest's) that maps pages of an mm. Kernel: include/linux/kvm_host.h."""

from __future__ import annotations

from mthp.machine.hold import Rank
from mthp.machine.locks import RwSem
from mthp.mm.gup import gup_fast
from mthp.mm.mm_types import Mm
from mthp.mm.reports import StoredTo

MOST_TRIES = 3


class SecondaryMmu:
    """sptes: address -> page, guarded by mmu_lock, as are the invalidation's count and sequence."""

    def __init__(self, mm: Mm) -> None:
        self.mm = mm
        self.mmu_lock = RwSem(mm.machine, f"guest{mm.number}.mmu_lock", Rank.PTE)
        self.sptes: dict[int, int] = {}
        self.invalidating = 0
        self.sequence = 0
        mm.notifiers.append(self)

    # As notifier. Kernel: virt/kvm/kvm_main.c, kvm_mmu_notifier_ops

    def invalidate_range_start(self, mm: Mm, start: int, end: int) -> None:
        """Nothing maps [start, end) any more, and nothing new will until the end."""
        with self.mmu_lock.write():
            self.invalidating += 1
            self.sptes = {a: page for a, page in self.sptes.items() if not start <= a < end}

    def invalidate_range_end(self, mm: Mm, start: int, end: int) -> None:
        """New mappings may come."""
        with self.mmu_lock.write():
            self.sequence += 1
            self.invalidating -= 1

    def test_young(self, mm: Mm, address: int) -> bool:
        """Whether the guest maps the page; it keeps no accessed bits."""
        return address in self.sptes

    # As guest

    def store(self, address: int, value: int) -> None:
        """A store of the guest; a fault of the guest's MMU maps the page first."""
        kernel = self.mm.kernel
        for _ in range(MOST_TRIES):
            with self.mmu_lock.read():
                page = self.sptes.get(address)
                if page is not None:
                    kernel.mem.content.write(page, value)
                    by = kernel.machine.current.name
                    kernel.report(StoredTo(self.mm, address, value, by))
                    return
            self.fault(address)

    def fault(self, address: int) -> None:
        """Map a page, unless an invalidation ran or runs meanwhile. Kernel: kvm_faultin_pfn()."""
        mem = self.mm.kernel.mem
        with self.mmu_lock.read():
            sequence = self.sequence
        page = gup_fast(self.mm, address)
        if page is None:
            return
        with self.mmu_lock.write():
            if not self.invalidating and self.sequence == sequence:
                self.sptes[address] = page
        mem.folio_put(mem.page_folio(page))
