# SPDX-License-Identifier: GPL-2.0-or-later
"""mmap_lock, and the locks of VMAs that end with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mthp.mm.fork import dup_mmap
from mthp.mm.mm_types import Mm
from mthp.mm.mmap import do_mmap, vm_munmap
from mthp.mm.mprotect import do_mprotect
from mthp.mm.mremap import do_mremap, relocate_vma_down
from mthp.mm.userfaultfd import userfaultfd_register
from mthp.mm.vm_flags import VM_DEFAULT, VM_READ, VM_STACK_INCOMPLETE
from mthp.words.results import KernelBug
from tests.small_worlds import TINY, World, small


@pytest.fixture
def world() -> World:
    return World(geometry=TINY)


def test_vma_write_locks_end_with_mmap_lock(world: World) -> None:
    from mthp.mm.mmap_lock import vma_start_write

    vma = world.vma(small(1))
    with pytest.raises(KernelBug, match="must be held"):
        vma_start_write(vma)
    with world.mm.mmap_write_lock():
        vma_start_write(vma)
        assert vma.vm_lock.value == -1
    assert vma.vm_lock.value == 0


START, END = 0x40000000, 0x40010000


@pytest.mark.parametrize(
    "change",
    [
        lambda mm: do_mremap(mm, START, END, 0x50000000),
        lambda mm: do_mprotect(mm, START, END, VM_READ),
        lambda mm: vm_munmap(mm, START, END),
        lambda mm: do_mmap(mm, START, END, VM_DEFAULT),
        lambda mm: vm_munmap(mm, START + 0x1000, END),
        lambda mm: relocate_vma_down(mm, START - 0x10000),
        lambda mm: userfaultfd_register(mm, START),
        lambda mm: dup_mmap(mm.kernel.new_mm(7), mm, lambda child: None),
    ],
)
def test_whatever_changes_a_mapping_waits_for_faults_under_its_lock(
    world: World, change: Callable[[Mm], object]
) -> None:
    vma = world.vma(small(4), at=START, flags=VM_DEFAULT | VM_STACK_INCOMPLETE)
    assert vma.vm_lock.try_enter()
    before = list(world.table(vma).ptes.raw)
    with pytest.raises(KernelBug, match="waits for"):
        change(world.mm)
    assert list(world.table(vma).ptes.raw) == before
