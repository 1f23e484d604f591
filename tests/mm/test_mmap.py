# SPDX-License-Identifier: GPL-2.0-or-later
"""mmap() and munmap() of any range."""

from __future__ import annotations

from mthp.mm.mm_types import Mm
from mthp.mm.mmap import do_mmap, vm_munmap
from mthp.mm.vm_flags import VM_DEFAULT, VM_READ
from tests.small_worlds import TINY, World, huge, small

PAGE = 0x1000


def spans(mm: Mm) -> list[tuple[int, int]]:
    return [(vma.vm_start // PAGE, vma.vm_end // PAGE) for vma in mm.vmas]


def test_a_mapping_grows_over_a_range_beside_it_that_is_alike() -> None:
    mm = World(geometry=TINY).mm
    do_mmap(mm, 0x40 * PAGE, 0x44 * PAGE, VM_DEFAULT)
    do_mmap(mm, 0x48 * PAGE, 0x4C * PAGE, VM_DEFAULT)
    do_mmap(mm, 0x4C * PAGE, 0x50 * PAGE, VM_READ)
    assert spans(mm) == [(0x40, 0x44), (0x48, 0x4C), (0x4C, 0x50)]
    do_mmap(mm, 0x44 * PAGE, 0x48 * PAGE, VM_DEFAULT)
    assert spans(mm) == [(0x40, 0x4C), (0x4C, 0x50)]
    assert all(mm.vma_lookup(at * PAGE) is mm.vmas[0] for at in range(0x40, 0x4C))


def test_what_a_mapping_was_put_over_is_gone() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(16))
    do_mmap(world.mm, vma.vm_start + 4 * PAGE, vma.vm_start + 8 * PAGE, VM_DEFAULT)
    assert world.mm.counters["MM_ANONPAGES"] == 12
    assert len(spans(world.mm)) == 1, "the rest on both sides takes the new mapping in"
    assert world.check(world.census().outside) == []


def test_a_hole_in_a_mapping_splits_it_and_its_huge_page() -> None:
    world = World(geometry=TINY)
    vma = world.vma(huge(4))
    start = vma.vm_start
    vm_munmap(world.mm, start + 3 * PAGE, start + 5 * PAGE)
    assert spans(world.mm) == [
        (start // PAGE, start // PAGE + 3),
        (start // PAGE + 5, start // PAGE + 16),
    ]
    assert world.mm.counters["MM_ANONPAGES"] == 14
    assert world.kernel.vmstat.events["thp_split_pmd"] == 1
    assert [bool(pte) for pte in world.table(vma).ptes.raw] == [not 3 <= i < 5 for i in range(16)]
