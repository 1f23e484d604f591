# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of a host's settings, and of a target under them, for rules to look at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mthp.image.scenario import Scenario
from mthp.image.snapshot import Pte, Snapshot
from mthp.mm.huge_mm import Tva, VmaGate, allowable_orders, sysfs_orders
from mthp.mm.mm_types import Vma, vma_is_anonymous
from mthp.mm.vm_flags import VM_HUGEPAGE
from mthp.words.profiles import Orders, Profile
from mthp.words.settings import TRANSPARENT_HUGEPAGE, Settings
from mthp.words.settings_text import runs_of_orders
from mthp.words.units import Geometry
from mthp.worlds.arrays import ImageMemcg, ImageProcess
from mthp.worlds.build import arrays_of, build_arrays
from mthp.worlds.free_memory import free_blocks


@dataclass(frozen=True)
class Examined:
    """What is known of a host, and of a target. None where something is not.

    shrinker: the kernel has shrink_underused. swap: there is a swap device. cmdline: of the boot.
    free_blocks: order -> blocks. vmas, memcgs: of the target. tables: those that a full scan looks through.
    """

    settings: Settings
    profile: Profile
    shrinker: bool = True
    swap: bool | None = None
    cmdline: str | None = None
    free_blocks: Mapping[int, int] | None = None
    vmas: tuple[Vma, ...] | None = None
    memcgs: tuple[ImageMemcg, ...] | None = None
    tables: int | None = None

    @property
    def geometry(self) -> Geometry:
        return self.settings.geometry

    @property
    def pmd(self) -> int:
        """The PMD's order, as a bitmap."""
        return 1 << self.geometry.pmd_order

    @property
    def on(self) -> int:
        """The orders that a mapping may have if it is advised (bitmap)."""
        return sysfs_orders(self.settings, VM_HUGEPAGE)

    @property
    def collapsed_to(self) -> int:
        """Those of them that khugepaged collapses to (bitmap)."""
        return self.on if self.profile.orders is Orders.ANON else self.on & self.pmd

    @property
    def below(self) -> int:
        """Those of the latter below the PMD's (bitmap)."""
        return self.collapsed_to & ~self.pmd

    def sizes(self, orders: int) -> str:
        """The sizes of a bitmap of orders: 16kB, 64kB-512kB."""
        return ", ".join(
            "-".join(self.geometry.size_name(order) for order in dict.fromkeys(run))
            for run in runs_of_orders(members(orders))
        )

    def switches(self, orders: int) -> tuple[tuple[str, str], ...]:
        """The files that switch the orders of a bitmap, with what they say."""
        return tuple(
            (self.switch(order), self.settings.size_enabled(order).value)
            for order in members(orders)
        )

    def switch(self, order: int) -> str:
        """The file that switches an order."""
        return f"{TRANSPARENT_HUGEPAGE}/hugepages-{self.geometry.size_name(order)}/enabled"

    def number(self, name: str) -> tuple[str, str]:
        """The file of one of khugepaged's numbers or flags, with what it says."""
        return khugepaged(name), str(int(getattr(self.settings, name)))


def khugepaged(name: str) -> str:
    """The file of one of khugepaged's settings."""
    return f"{TRANSPARENT_HUGEPAGE}/khugepaged/{name}"


def members(orders: int) -> list[int]:
    """The orders of a bitmap."""
    return [order for order in range(orders.bit_length()) if orders >> order & 1]


def holds(vma: Vma, order: int) -> bool:
    """Whether an aligned range of the order lies in the mapping."""
    size = vma.vm_mm.geometry.order_bytes(order)
    return -(-vma.vm_start // size) * size + size <= vma.vm_end


def examined_host(
    settings: Settings, profile: Profile, facts: Mapping[str, Any], cmdline: str | None
) -> Examined:
    """What a host tells of itself. facts: as the capture has them. cmdline: of its boot, where known."""
    free: dict[int, int] = {}
    for blocks in free_blocks(facts.get("buddyinfo")).values():
        for order, nr in blocks.items():
            free[order] = free.get(order, 0) + nr
    swap = (facts.get("meminfo") or {}).get("SwapTotal")
    return Examined(
        settings,
        profile,
        shrinker="shrink_underused" in facts["sysfs"] or profile.orders is Orders.ANON,
        swap=None if swap is None else swap > 0,
        cmdline=cmdline,
        free_blocks=free if any(free.values()) else None,
    )


def examined_image(
    settings: Settings, profile: Profile, image: Snapshot | Scenario, cmdline: str | None
) -> Examined:
    """The same of a target's host, and what there is of the target itself."""
    if isinstance(image, Scenario):
        case = Examined(settings, profile, free_blocks=image.free_blocks)
    else:
        case = examined_host(settings, profile, image.meta, cmdline)
    arrays = arrays_of(image)
    tables = []

    def emptied(processes: Iterable[ImageProcess]) -> Iterator[ImageProcess]:
        """The processes without their pages: mappings are all that is asked for."""
        for process in processes:
            small = ((process.tables.pte & np.uint16(Pte.HUGE)) == 0).any(axis=1)
            empty = np.array(process.empty_tables, np.uint64)
            tables.append(np.sort(np.concatenate([process.tables.table_address[small], empty])))
            none = process.tables.rows(slice(0, 0))
            vmas = tuple(vma._replace(known=None) for vma in process.vmas)
            yield replace(process, tables=none, vmas=vmas, pins=(), empty_tables=())

    world = build_arrays(replace(arrays, processes=emptied(arrays.processes)), settings, profile)
    of_mm = dict(zip(world.kernel.mms, tables, strict=True))
    return replace(
        case,
        vmas=tuple(world.vmas),
        memcgs=arrays.memcgs,
        tables=sum(
            _tables_within(vma, of_mm[vma.vm_mm])
            for vma in world.vmas
            if is_scanned(vma, case.collapsed_to)
        ),
    )


def is_scanned(vma: Vma, orders: int) -> bool:
    """Whether khugepaged looks at the mapping, once something is written to it.

    orders: those that it collapses to. Kernel: mm/khugepaged.c, collapse_scan_mm_slot().
    """
    if not (orders and vma_is_anonymous(vma) and holds(vma, vma.vm_mm.geometry.pmd_order)):
        return False
    answer = allowable_orders(vma, vma.vm_flags, Tva.KHUGEPAGED, orders)
    return answer is VmaGate.NO_ANON_VMA or not isinstance(answer, VmaGate)


def _tables_within(vma: Vma, addresses: np.ndarray[Any, np.dtype[np.uint64]]) -> int:
    """How many of the tables lie in the mapping as a whole."""
    geometry = vma.vm_mm.geometry
    ends = geometry.pmd_align_up(vma.vm_start), geometry.pmd_addr(vma.vm_end)
    first, last = np.searchsorted(addresses, np.array(ends, np.uint64))
    return int(last - first)
