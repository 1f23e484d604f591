# SPDX-License-Identifier: GPL-2.0-or-later
"""Which orders a VMA may be mapped with, and the gate that says no."""

from __future__ import annotations

import pytest

from mthp.khugepaged.eligibility import collapse_possible_orders
from mthp.mm.huge_mm import Tva, VmaGate, allowable_orders, sysfs_orders, thp_vma_suitable_order
from mthp.mm.mm_types import MMF_DISABLE_THP_COMPLETELY, MMF_DISABLE_THP_EXCEPT_ADVISED
from mthp.mm.vm_flags import (
    VM_DEFAULT,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_IO,
    VM_MIXEDMAP,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_STACK_INCOMPLETE,
)
from mthp.words.settings import Enabled, Settings
from tests.small_worlds import TINY, World, small

E = Enabled


def world_with(enabled: Enabled, **sizes: Enabled) -> World:
    """TINY with o2, o3, o4 set."""
    world = World(geometry=TINY, orders=())
    chosen = dict.fromkeys((2, 3, 4), E.NEVER) | {int(k[1:]): v for k, v in sizes.items()}
    world.kernel.settings = Settings(geometry=TINY, enabled=enabled, sizes=chosen)
    return world


@pytest.mark.parametrize("everywhere", [E.ALWAYS, E.MADVISE, E.NEVER])
@pytest.mark.parametrize("size", [E.ALWAYS, E.MADVISE, E.INHERIT, E.NEVER])
@pytest.mark.parametrize("advised", [False, True])
def test_the_three_switches(everywhere: Enabled, size: Enabled, advised: bool) -> None:
    world = world_with(everywhere, o3=size)
    effective = everywhere if size is E.INHERIT else size
    allowed = effective is E.ALWAYS or (effective is E.MADVISE and advised)
    flags = VM_DEFAULT | (VM_HUGEPAGE if advised else 0)
    assert sysfs_orders(world.kernel.settings, flags) == (1 << 3 if allowed else 0)
    # The PMD size is off: a smaller size alone is enough.
    vma = world.vma(small(16), flags=flags)
    assert collapse_possible_orders(vma, flags, Tva.KHUGEPAGED) == (1 << 3 if allowed else 0)


@pytest.mark.parametrize(
    ("flags", "mm_flag", "gate"),
    [
        (VM_NOHUGEPAGE, 0, VmaGate.NOHUGEPAGE),
        (0, MMF_DISABLE_THP_COMPLETELY, VmaGate.THP_DISABLED),
        (VM_HUGEPAGE, MMF_DISABLE_THP_COMPLETELY, VmaGate.THP_DISABLED),
        (0, MMF_DISABLE_THP_EXCEPT_ADVISED, VmaGate.NOT_ADVISED),
        (VM_HUGEPAGE, MMF_DISABLE_THP_EXCEPT_ADVISED, None),
        (VM_IO, 0, VmaGate.SPECIAL),
        (VM_PFNMAP, 0, VmaGate.SPECIAL),
        (VM_MIXEDMAP, 0, VmaGate.SPECIAL),
        (VM_HUGETLB, 0, VmaGate.SPECIAL),
        (VM_STACK_INCOMPLETE, 0, VmaGate.TEMPORARY_STACK),
        (0, 0, None),
    ],
)
def test_gates(flags: int, mm_flag: int, gate: VmaGate | None) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(16), flags=VM_DEFAULT | flags)
    world.mm.mm_flags_set(mm_flag)
    answer = allowable_orders(vma, vma.vm_flags, Tva.KHUGEPAGED, 1 << 4)
    assert answer == (1 << 4 if gate is None else gate)


@pytest.mark.parametrize(
    ("at", "pages", "orders"),
    [
        (0x40000000, 16, {2, 3, 4}),
        (0x40000000, 15, {2}),  # the last aligned 8 pages would end behind it
        (0x40001000, 3, set()),
        (0x40001000, 7, {2}),
        (0x40008000, 8, {2, 3}),
        (0x40004000, 28, {2, 3, 4}),
        (0x40000000, 31, {2}),
    ],
)
def test_the_end_of_the_vma_decides_which_orders_fit(at: int, pages: int, orders: set[int]) -> None:
    """The kernel asks whether an aligned range fits at the end, from the largest order down, and
    keeps every smaller order once one fits."""
    world = world_with(E.NEVER, o2=E.ALWAYS, o3=E.ALWAYS, o4=E.ALWAYS)
    vma = world.vma(pages=pages, at=at)
    end = at + pages * 0x1000
    fitting = [
        order
        for order in (4, 3, 2)
        if (last := end - (0x1000 << order) & -(0x1000 << order)) >= at
        and last + (0x1000 << order) <= end
    ]
    expected = {order for order in (2, 3, 4) if fitting and order <= fitting[0]}
    answer = collapse_possible_orders(vma, vma.vm_flags, Tva.KHUGEPAGED)
    assert answer == sum(1 << order for order in expected)
    assert bool(answer) is bool(orders)


def test_suitable_orders_are_aligned_and_inside() -> None:
    world = World(geometry=TINY)
    vma = world.vma(pages=20, at=0x40004000)
    assert not thp_vma_suitable_order(vma, 0x40004000, 4)
    assert thp_vma_suitable_order(vma, 0x40017FFF, 2)
    assert thp_vma_suitable_order(vma, 0x40008000, 3)
    assert not thp_vma_suitable_order(vma, 0x40010000, 4)


def test_files_and_unwritten_memory() -> None:
    world = World(geometry=TINY)
    vma = world.vma(pages=16, anon_vma=False)
    assert allowable_orders(vma, vma.vm_flags, Tva.KHUGEPAGED, 1 << 4) is VmaGate.NO_ANON_VMA
    assert allowable_orders(vma, vma.vm_flags, Tva.SMAPS, 1 << 4) == 1 << 4
    file = world.mm.mmap(0x50000000, 0x50010000, VM_DEFAULT, file="libc.so")
    assert allowable_orders(file, file.vm_flags, Tva.KHUGEPAGED, 1 << 4) is VmaGate.FILE
