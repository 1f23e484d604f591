# SPDX-License-Identifier: GPL-2.0-or-later
"""What was learnt before the locks is looked at again."""

from __future__ import annotations

import pytest

from mthp.khugepaged.control import Caller, CollapseControl
from mthp.khugepaged.revalidate import (
    Expect,
    check_pmd_state,
    check_pmd_still_valid,
    find_pmd_or_thp_or_none,
    hugepage_vma_revalidate,
)
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import (
    Leaf,
    huge_pmd,
    leaf_pte,
    table_pmd,
)
from mthp.mm.vm_flags import VM_DEFAULT, VM_HUGEPAGE
from mthp.words.results import KernelBug, Refused, ScanResult
from mthp.words.settings import Enabled
from tests.small_worlds import (
    BAD_PMD,
    TINY,
    World,
    small,
)


def test_revalidation_wants_an_anon_vma_where_one_is_expected() -> None:
    """PAGE_ANON of revalidation is out of reach of the orders test; called with a VMA whose orders
    are allowed by smaps' rules alone it would be. Here: the VMA check answers first."""
    world = World(geometry=TINY)
    vma = world.vma(small(16))
    vma.anon_vma = None
    assert world.collapse(vma) is ScanResult.VMA_CHECK


@pytest.mark.parametrize(
    ("pmd", "result"),
    [
        (table_pmd(1), None),
        (0, ScanResult.NO_PTE_TABLE),
        (leaf_pte(Leaf.MIGRATION, 16), ScanResult.PMD_MAPPED),
        (leaf_pte(Leaf.DEVICE, 16), ScanResult.NO_PTE_TABLE),
        (huge_pmd(16, 0), ScanResult.PMD_MAPPED),
        (BAD_PMD, ScanResult.NO_PTE_TABLE),
    ],
)
def test_only_a_table_will_do(pmd: int, result: ScanResult | None) -> None:
    world = World(geometry=TINY)
    vma = world.vma()
    world.set_pmd(vma, pmd)
    slot = pmd_ptr(world.mm, vma.vm_start)
    assert slot is not None
    for look in (
        lambda: check_pmd_state(slot),
        lambda: find_pmd_or_thp_or_none(world.mm, vma.vm_start),
        lambda: check_pmd_still_valid(world.mm, vma.vm_start, slot),
    ):
        if result is None:
            look()
        else:
            with pytest.raises(Refused) as refusal:
                look()
            assert refusal.value.result is result


def test_the_slot_is_found_or_there_is_no_table() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(16))
    assert find_pmd_or_thp_or_none(world.mm, vma.vm_start) == pmd_ptr(world.mm, vma.vm_start)
    with pytest.raises(Refused, match=ScanResult.NO_PTE_TABLE.string):
        find_pmd_or_thp_or_none(world.mm, vma.vm_start + (1 << 30))


def test_another_slot_is_a_failure() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(32))
    other = pmd_ptr(world.mm, vma.vm_start + 0x10000)
    assert other is not None
    check_pmd_still_valid(world.mm, vma.vm_start + 0x10000, other)
    with pytest.raises(Refused, match=ScanResult.FAIL.string):
        check_pmd_still_valid(world.mm, vma.vm_start, other)


def test_the_vma_that_stands_there_now_is_given() -> None:
    world = World(geometry=TINY, orders={2})
    vma = world.vma(small(16))
    cc = CollapseControl(Caller.KHUGEPAGED)
    with pytest.raises(KernelBug, match="mmap_lock must be held"):
        hugepage_vma_revalidate(world.mm, vma.vm_start, Expect.ANON, cc, 2)
    with world.mm.mmap_read_lock():
        assert hugepage_vma_revalidate(world.mm, vma.vm_start, Expect.ANON, cc, 2) is vma


def test_it_must_span_the_whole_table_at_any_order() -> None:
    world = World(geometry=TINY, orders={2})
    vma = world.vma(small(12), pages=12)
    cc = CollapseControl(Caller.KHUGEPAGED)
    with world.mm.mmap_read_lock(), pytest.raises(Refused, match=ScanResult.ADDRESS_RANGE.string):
        hugepage_vma_revalidate(world.mm, vma.vm_start, Expect.ANON, cc, 2)


def test_the_order_must_still_be_allowed_to_whoever_asks() -> None:
    world = World(geometry=TINY, orders={2}, enabled=Enabled.NEVER)
    vma = world.vma(small(16), flags=VM_DEFAULT | VM_HUGEPAGE)
    khugepaged, madvise = map(CollapseControl, Caller)
    with world.mm.mmap_read_lock():
        for cc, order in ((khugepaged, 2), (madvise, 4)):
            assert hugepage_vma_revalidate(world.mm, vma.vm_start, Expect.ANY, cc, order) is vma
        for order in (3, 4):
            with pytest.raises(Refused, match=ScanResult.VMA_CHECK.string):
                hugepage_vma_revalidate(world.mm, vma.vm_start, Expect.ANY, khugepaged, order)
