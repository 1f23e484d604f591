# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/PID/clear_refs: marks taken away, and left again."""

from __future__ import annotations

import pytest

from mthp.mm.mmu import store
from mthp.mm.pgtable_types import (
    NO_ACCESS,
    SOFT_DIRTY,
    UFFD_WP,
    WRITE,
    pmd_trans_huge,
    pte_present,
    pte_write,
)
from mthp.mm.task_mmu import clear_refs_write
from mthp.mm.vm_flags import VM_SOFTDIRTY
from mthp.words.results import KernelBug
from tests.small_worlds import TINY, World, hole, huge, large, small, swap, zero
from tests.stages import after_a_collapse, entry, played, pmd


def test_a_store_leaves_a_soft_dirty_mark_again() -> None:
    stage = played("soft-dirty")
    assert entry(stage, 0) & SOFT_DIRTY
    assert not entry(stage, 2) & (SOFT_DIRTY | WRITE)


def test_a_huge_page_that_is_ones_own_is_written_again() -> None:
    stage = after_a_collapse("soft-dirty")
    assert pmd_trans_huge(pmd(stage)) and pte_write(pmd(stage))


def test_every_entry_of_a_process_loses_its_mark_and_nothing_else() -> None:
    world = World(geometry=TINY)
    pieces = [small(3, plus=UFFD_WP), swap(2), hole(1), zero(1), large(3), swap(1, shared=True)]
    first = world.vma(*pieces)
    second = world.vma(huge(4), at=0x50000000)
    before = world.census()
    clear_refs_write(world.mm)
    now = world.census()
    for where, old in before.entries.items():
        keeps = ~(SOFT_DIRTY | WRITE) if pte_present(old) else ~SOFT_DIRTY
        assert now.entries[where] == old & keeps, hex(where[1])
    assert not world.pmd(second) & NO_ACCESS
    assert first.vm_lock.value == second.vm_lock.value == 0
    assert world.check(before.outside) == []


@pytest.mark.parametrize("pins", [0, 1023, 1024])
def test_a_pinned_page_keeps_its_mark(pins: int) -> None:
    """Kernel: fs/proc/task_mmu.c, clear_soft_dirty()."""
    world = World(geometry=TINY)
    vma = world.vma(small(4))
    world.pin(vma, 1, pins)
    clear_refs_write(world.mm)
    marked = [bool(pte & SOFT_DIRTY) for pte in world.table(vma).ptes.raw[:4]]
    assert marked == [False, pins >= 1023, False, False]


def test_a_translation_may_not_be_stored_through_afterwards() -> None:
    world = World(geometry=TINY, cpus=2)
    vma = world.vma(small(4), hole(12), huge(4))
    for page in (0, 3, 16, 31):
        assert store(world.mm, world.address(vma, page), 7)
    assert world.kernel.cpus[0].tlb.value
    before = world.census()
    clear_refs_write(world.mm)
    assert world.check(before.outside) == []
    assert store(world.mm, world.address(vma, 3), 8)
    assert [bool(pte & SOFT_DIRTY) for pte in world.table(vma).ptes.raw[:4]] == [0, 0, 0, 1]


def test_flags_of_a_mapping_are_changed_where_nobody_has_it_locked() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(4))
    assert vma.vm_lock.try_enter()
    clear_refs_write(world.mm)
    vma.vm_flags |= VM_SOFTDIRTY
    with pytest.raises(KernelBug, match="waits for"):
        clear_refs_write(world.mm)
    vma.vm_lock.leave()
    clear_refs_write(world.mm)
    assert not vma.vm_flags & VM_SOFTDIRTY
