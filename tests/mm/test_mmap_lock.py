# SPDX-License-Identifier: GPL-2.0-or-later
"""mmap_lock, and the locks of VMAs that end with it."""

from __future__ import annotations

import pytest

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
