# SPDX-License-Identifier: GPL-2.0-or-later
"""VMAs are split and merged, and keep their pages' indices."""

from __future__ import annotations

from mthp.mm.madvise import MADV_HUGEPAGE, MADV_NOHUGEPAGE, do_madvise
from mthp.mm.mm_types import Mm, linear_page_index
from mthp.mm.mprotect import do_mprotect
from mthp.mm.mremap import do_mremap
from mthp.mm.vm_flags import VM_ACCOUNT, VM_DEFAULT, VM_HUGEPAGE, VM_READ
from tests.small_worlds import TINY, World, huge, small

PAGE = 0x1000


def spans(mm: Mm, start: int) -> list[tuple[int, int]]:
    return [((vma.vm_start - start) // PAGE, (vma.vm_end - start) // PAGE) for vma in mm.vmas]


def test_advice_splits_a_mapping_and_the_same_advice_to_the_rest_makes_it_one() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(16))
    start, mm = vma.vm_start, world.mm
    anon_vma = vma.anon_vma
    assert do_madvise(mm, start + 4 * PAGE, start + 8 * PAGE, MADV_HUGEPAGE) == 0
    assert spans(mm, start) == [(0, 4), (4, 8), (8, 16)]
    assert [each.vm_flags & VM_HUGEPAGE != 0 for each in mm.vmas] == [False, True, False]
    assert [linear_page_index(each, each.vm_start) - mm.vmas[0].vm_pgoff for each in mm.vmas] == [
        0,
        4,
        8,
    ]
    assert {each.anon_vma for each in mm.vmas} == {anon_vma}
    assert do_madvise(mm, start + 6 * PAGE, start + 12 * PAGE, MADV_HUGEPAGE) == 0
    assert spans(mm, start) == [(0, 4), (4, 12), (12, 16)]
    assert do_madvise(mm, start + 2 * PAGE, start + 4 * PAGE, MADV_HUGEPAGE) == 0
    assert spans(mm, start) == [(0, 2), (2, 12), (12, 16)]
    assert do_madvise(mm, start, start + 16 * PAGE, MADV_HUGEPAGE) == 0
    assert spans(mm, start) == [(0, 16)]
    assert anon_vma is not None and len(anon_vma.vmas) == 1
    assert world.check(world.census().outside) == []


def test_a_gap_is_told_of_and_does_not_end_advice() -> None:
    world = World(geometry=TINY)
    start = world.vma(small(4), pages=4).vm_start
    other = world.vma(small(4), pages=4, at=start + 8 * PAGE)
    assert do_madvise(world.mm, start, start + 12 * PAGE, MADV_NOHUGEPAGE) == -12
    assert other.vm_flags & VM_HUGEPAGE == 0
    assert do_madvise(world.mm, start, start + 4 * PAGE, 77) == -22


def test_a_mapping_that_begins_within_a_huge_page_splits_it() -> None:
    world = World(geometry=TINY)
    vma = world.vma(huge(4), flags=VM_DEFAULT | VM_ACCOUNT)
    assert do_mprotect(world.mm, vma.vm_start, vma.vm_start + 4 * PAGE, VM_READ) == 0
    assert world.kernel.vmstat.events["thp_split_pmd"] == 1
    assert do_mprotect(world.mm, vma.vm_start, vma.vm_start + 4 * PAGE, VM_DEFAULT) == 0
    assert len(world.mm.vmas) == 1
    assert world.check(world.census().outside) == []


def test_a_part_is_moved_and_the_rest_stays() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(16))
    start, far = vma.vm_start, vma.vm_start + 64 * PAGE
    folios = [world.folio(vma, i) for i in range(16)]
    assert do_mremap(world.mm, start + 4 * PAGE, start + 6 * PAGE, far) == 0
    assert spans(world.mm, start) == [(0, 4), (6, 16), (64, 66)]
    moved = world.mm.vma_lookup(far)
    assert moved is not None and [world.folio(moved, i) for i in range(2)] == folios[4:6]
    assert do_mremap(world.mm, start, start + 4 * PAGE, start + 2 * PAGE) == -22
    assert do_mremap(world.mm, start + 4 * PAGE, start + 5 * PAGE, far) == -14
    assert world.check(world.census().outside) == []
