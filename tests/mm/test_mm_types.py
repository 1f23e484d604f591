# SPDX-License-Identifier: GPL-2.0-or-later
"""Address spaces and their VMAs."""

from __future__ import annotations

import pytest

from tests.small_worlds import TINY, World


@pytest.fixture
def world() -> World:
    return World(geometry=TINY)


def test_vmas_do_not_overlap_and_are_found(world: World) -> None:
    mm = world.mm
    low, high = mm.mmap(0x10000, 0x20000), mm.mmap(0x30000, 0x40000)
    for start, end in (
        (0x1F000, 0x21000),
        (0x2F000, 0x31000),
        (0x10000, 0x10000),
        (0x50001, 0x51000),
    ):
        with pytest.raises(ValueError, match=r"overlaps|page-aligned"):
            mm.mmap(start, end)
    assert mm.find_vma(0) is low
    assert mm.find_vma(0x1FFFF) is low
    assert mm.find_vma(0x20000) is high
    assert mm.find_vma(0x40000) is None
    assert list(mm.for_each_vma(0)) == [low, high]
    mm.unlink_vma(low)
    assert list(mm.for_each_vma(0)) == [high]
