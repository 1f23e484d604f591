# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own cases, under their names, with their contexts and their defaults.

Kernel: tools/testing/selftests/mm/khugepaged.c. K is khugepaged, M is MADV_COLLAPSE, T is khugepaged
with one size below the PMD's. What the original reads from smaps and checks byte by byte, we read
from the page table and the law that a load sees what it saw before.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest

from mthp.laws.census import Census
from mthp.mm.mm_types import Vma
from mthp.mm.vm_flags import VM_DEFAULT, VM_HUGEPAGE
from mthp.words.settings import Enabled
from tests.small_worlds import World, hole, huge, large, shared, small, swap

NR = 512
MTHP_ORDER = 4


class Context(Enum):
    K = "khugepaged"
    M = "madvise"
    T = "mthp"


class Area:
    """A 2 MiB area of a process, and the context's way to collapse it."""

    def __init__(self, context: Context, **knobs: Any) -> None:
        order = MTHP_ORDER if context is Context.T else 9
        self.context = context
        self.order = order
        settings = {"max_ptes_none": 511, "max_ptes_swap": 64, "max_ptes_shared": 256}
        self.world = World(orders={order}, enabled=Enabled.NEVER, **{**settings, **knobs})
        self.vma: Vma
        self.before: Census

    def fault(self, *pieces: Any, flags: int = VM_DEFAULT | VM_HUGEPAGE) -> Area:
        self.vma = self.world.vma(*pieces, flags=flags, pages=NR)
        self.before = self.world.census()
        return self

    def collapse(self, vma: Vma | None = None) -> list[int]:
        """Collapse as the context does; the orders that stand afterwards, data intact."""
        vma = vma or self.vma
        if self.context is Context.M:
            self.error = self.world.madvise(vma)
        else:
            full_scans = self.world.khugepaged.full_scans
            while self.world.khugepaged.full_scans < full_scans + 2:
                self.world.scan()
        self.world.assert_sound(self.before)
        return self.world.orders(vma)

    @property
    def everything(self) -> list[int]:
        """The orders of a whole collapse in this context."""
        return [self.order] * (NR >> self.order)


ALL = pytest.mark.parametrize("context", list(Context), ids=lambda context: context.value)
PMD = pytest.mark.parametrize("context", [Context.K, Context.M], ids=lambda context: context.value)


@ALL
def test_collapse_full(context: Context) -> None:
    area = Area(context).fault(small(NR))
    assert area.collapse() == area.everything


@ALL
def test_collapse_empty(context: Context) -> None:
    area = Area(context).fault()
    assert area.collapse() == [-1] * NR
    assert area.world.kernel.vmstat.events["thp_collapse_alloc"] == 0


def test_collapse_single_mthp() -> None:
    area = Area(Context.T).fault(small(1 << MTHP_ORDER), hole(NR - (1 << MTHP_ORDER)))
    assert area.collapse() == [MTHP_ORDER] + [-1] * (NR - (1 << MTHP_ORDER))


@PMD
def test_collapse_single_pte_entry(context: Context) -> None:
    area = Area(context).fault(small(1))
    assert area.collapse() == [9]
    assert area.world.mem.content.raw[area.world.folio(area.vma, 0) + 1] == 0


@PMD
def test_collapse_max_ptes_none(context: Context) -> None:
    area = Area(context, max_ptes_none=256).fault(small(NR - 257))
    assert area.collapse() == ([9] if context is Context.M else [0] * 255 + [-1] * 257)
    if context is Context.K:
        area = Area(context, max_ptes_none=256).fault(small(NR - 256))
        assert area.collapse() == [9]


@PMD
def test_collapse_swapin_single_pte(context: Context) -> None:
    area = Area(context).fault(small(1), swap(), small(NR - 2))
    assert area.collapse() == [9]


@PMD
def test_collapse_max_ptes_swap(context: Context) -> None:
    area = Area(context).fault(swap(65), small(NR - 65))
    assert area.collapse() == ([9] if context is Context.M else [-1] * 65 + [0] * (NR - 65))
    if context is Context.K:
        area = Area(context).fault(swap(64), small(NR - 64))
        assert area.collapse() == [9]


@PMD
def test_collapse_single_pte_entry_compound(context: Context) -> None:
    """A THP of which all but one page was dropped collapses into a new one."""
    area = Area(context).fault(huge(9))
    world, vma = area.world, area.vma
    old = world.folio(vma, 0)
    world.split_pmd(vma)
    world.zap(vma, 1, NR - 1)
    area.before = world.census()
    assert world.orders(vma) == [9] + [-1] * (NR - 1)
    assert area.collapse() == [9]
    assert world.folio(vma, 0) != old


@PMD
def test_collapse_full_of_compound(context: Context) -> None:
    area = Area(context).fault(huge(9))
    world, vma = area.world, area.vma
    world.split_pmd(vma)
    area.before = world.census()
    old = world.folio(vma, 0)
    assert area.collapse() == [9]
    assert world.folio(vma, 0) != old
    assert world.mem.refcount.raw[old] == 0


@PMD
def test_collapse_compound_extreme(context: Context) -> None:
    """512 entries, each a page of another THP, as mremap() puts them together."""
    area = Area(context).fault(*(large(9, 1, first=i) for i in range(NR)))
    world = area.world
    assert world.orders(area.vma) == [9] * NR
    assert area.collapse() == [9]
    assert world.kernel.vmstat.mthp[9, "nr_anon"] == 1 - NR


@PMD
def test_collapse_fork(context: Context) -> None:
    """One page is shared with the child; the child collapses, the parent's stays small."""
    area = Area(context).fault(small(1))
    child = area.world.fork(area.vma)
    area.world.khugepaged.khugepaged_exit(area.world.mm)
    area.before = area.world.census()
    assert area.collapse(child) == [9]
    assert area.world.orders(area.vma)[:2] == [0, -1]


@PMD
def test_collapse_fork_compound(context: Context) -> None:
    """The child splits the PMD of a shared THP; it collapses anew, the parent's stays huge."""
    area = Area(context).fault(huge(9))
    world, parent = area.world, area.vma
    child = world.fork(parent)
    world.split_pmd(child)
    world.settings(max_ptes_shared=511)
    world.khugepaged.khugepaged_exit(world.mm)
    # The child writes its first page: 512 shared ones would be more than the limit can be.
    world.zap(child, 0, 1)
    world.fill(child, 0, small(1))
    area.before = world.census()
    assert area.collapse(child) == [9]
    assert world.folio(child, 0) != world.folio(parent, 0)
    assert world.pmd(parent) & 1 << 8


@PMD
def test_collapse_max_ptes_shared(context: Context) -> None:
    """257 pages shared with the parent are one too many for khugepaged; 256 are not."""
    for own, refused in ((255, True), (256, False)):
        area = Area(context).fault(huge(9))
        world, parent = area.world, area.vma
        child = world.fork(parent)
        world.split_pmd(child)
        world.zap(child, 0, own)
        world.fill(child, 0, small(own))
        world.khugepaged.khugepaged_exit(world.mm)
        area.before = world.census()
        orders = area.collapse(child)
        if context is Context.K and refused:
            assert orders == [0] * own + [9]
        else:
            assert orders == [9]
        assert world.pmd(parent) & 1 << 8


def test_madvise_collapse_existing_thps() -> None:
    area = Area(Context.M).fault(small(NR))
    assert area.collapse() == [9]
    assert area.error == 0
    folio = area.world.folio(area.vma, 0)
    assert area.collapse() == [9]
    assert area.error == 0
    assert area.world.folio(area.vma, 0) == folio


@ALL
def test_a_table_of_shared_pages_is_for_madvise_alone(context: Context) -> None:
    """Not in the original: where the limit is 0, and always below PMD order."""
    area = Area(context, max_ptes_shared=0).fault(shared(NR))
    assert area.collapse() == ([9] if context is Context.M else [0] * NR)
