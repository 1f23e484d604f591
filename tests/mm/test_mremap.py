# SPDX-License-Identifier: GPL-2.0-or-later
"""mremap(): page tables move with their pages."""

from __future__ import annotations

import errno

import pytest

from mthp.mm.mmu import load, store
from mthp.mm.mremap import do_mremap, relocate_vma_down
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import (
    SOFT_DIRTY,
    pmd_trans_huge,
    pte_none,
    pte_pfn,
)
from mthp.mm.rmap import rmap_walk
from mthp.mm.vm_flags import VM_DEFAULT, VM_STACK_INCOMPLETE
from mthp.races.stage import START
from tests.small_worlds import (
    TINY,
    World,
    hole,
    huge,
    large,
    no_table,
    small,
    swap,
    zero,
)
from tests.stages import after_a_collapse, at, played


@pytest.mark.parametrize(("rival", "shift"), [("mremap", 0), ("mremap-ptes", 4096)])
def test_mremap_moves_pages(rival: str, shift: int) -> None:
    stage = played(rival)
    to = stage.far + shift
    assert pte_pfn(at(stage, to)) == stage.pages[0]
    assert pte_pfn(at(stage, to + 0x2000)) == stage.pages[2]
    assert [vma.vm_start for vma in stage.mm.vmas] == [to]
    places = list(rmap_walk(stage.kernel.mem, stage.pages[0], stage.kernel.anon_vmas))
    assert [address for _, address in places] == [to]


def test_exec_ends_with_a_stack_like_any_other() -> None:
    stage = played("exec-shift")
    (vma,) = stage.mm.vmas
    assert vma.vm_start == START - stage.kernel.geometry.pmd_size
    assert not vma.vm_flags & VM_STACK_INCOMPLETE
    assert pte_pfn(at(stage, vma.vm_start)) == stage.pages[0]


def test_a_huge_page_moves_with_its_pmd() -> None:
    stage = after_a_collapse("mremap")
    moved = pmd_ptr(stage.mm, stage.far)
    assert moved is not None
    assert pmd_trans_huge(moved.page.pmds.raw[moved.slot])


PIECES = [small(3), hole(2), large(2), swap(2), zero(1), large(2), huge(4), no_table(16), small(16)]


@pytest.mark.parametrize("to", [0x50000000, 0x50001000, 0x5000F000, 0x40050000])
@pytest.mark.parametrize("anonymous", [True, False])
def test_everything_moves_and_reads_what_it_read(to: int, anonymous: bool) -> None:
    world = World(geometry=TINY, cpus=2)
    vma = world.vma(*(PIECES if anonymous else []), pages=64, anon_vma=anonymous)
    for page in (0, 16, 63) if anonymous else ():
        assert store(world.mm, world.address(vma, page), page + 900)
    tables = {each.number for each in world.kernel.tables.values()}
    before = world.census()
    do_mremap(world.mm, vma.vm_start, vma.vm_end, to)
    now = world.census()
    (new,) = world.mm.vmas
    assert (new.vm_start, new.vm_end, new.vm_flags) == (to, to + 0x40000, vma.vm_flags)
    for (mm, address), content in before.contents.items():
        moved = address - vma.vm_start + to
        assert now.contents.get((mm, moved), 0) == content
        entry = now.entries.get((mm, moved), 0)
        assert pte_none(entry) or entry & SOFT_DIRTY or to % 0x10000 == 0
        assert pte_none(now.entries.get((mm, address), 0)) or to <= address < to + 0x40000
    assert world.check(before.outside) == []
    if anonymous and to % 0x10000 == 0:  # whole tables moved
        assert tables == {each.number for each in world.kernel.tables.values()}
        assert pmd_trans_huge(world.pmd(new, to + 0x10000))
    if anonymous:
        assert load(world.mm, to + 0x10000) == 916
        assert store(world.mm, to + 0x10000, 5)
        assert vma.anon_vma is not None and vma.anon_vma.vmas == [new]


def test_nothing_moves_from_where_nothing_is_mapped() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(4))
    before = world.census()
    assert do_mremap(world.mm, 0x60000000, 0x60010000, 0x50000000) == -errno.EFAULT
    assert do_mremap(world.mm, vma.vm_start, vma.vm_end, vma.vm_start + 0x1000) == -errno.EINVAL
    assert world.mm.vmas == [vma]
    assert world.census().entries == before.entries
    assert world.check(before.outside) == []


def test_a_stack_is_shifted_and_complete_afterwards() -> None:
    world = World(geometry=TINY)
    world.vma(small(2), at=0x30000000)
    vma = world.vma(small(2), hole(13), small(1), flags=VM_DEFAULT | VM_STACK_INCOMPLETE)
    before = world.census()
    relocate_vma_down(world.mm, vma.vm_start - 0x13000)
    new = world.mm.vmas[1]
    assert (new.vm_start, new.vm_end) == (vma.vm_start - 0x13000, vma.vm_end - 0x13000)
    assert new.vm_flags == VM_DEFAULT
    now = world.census()
    for page in (0, 1, 15):
        old = before.contents[world.mm.number, world.address(vma, page)]
        assert now.contents[world.mm.number, world.address(new, page)] == old
    assert world.check(before.outside) == []
