# SPDX-License-Identifier: GPL-2.0-or-later
"""What a call of MADV_COLLAPSE is said to do, above all where it meets what is not modelled."""

from __future__ import annotations

import errno

import pytest

from mthp.mm.huge_mm import VmaGate
from mthp.mm.vm_flags import VM_DEFAULT, VM_DONTEXPAND, VM_NOHUGEPAGE
from mthp.predict.madvise import run_madvise
from mthp.predict.outcome import Request
from mthp.predict.passes import Interrupted
from mthp.predict.records import Advised
from mthp.words.results import ScanResult
from mthp.worlds.build import BuiltWorld
from tests.small_worlds import TINY, World, hole, huge, no_table, small

NR = 16
START = 0x40000000


def call(world: World, start: int, end: int) -> Advised:
    built = BuiltWorld(world.kernel, world.khugepaged, world.mm.vmas)
    (advised,) = run_madvise(built, Request("", "", ""), [(world.mm, start, end)]).ranges
    return advised


def test_a_mapping_in_every_state() -> None:
    world = World(geometry=TINY)
    vma = world.vma(huge(4), small(12), hole(4), no_table(NR), small(NR))
    advised = call(world, vma.vm_start, vma.vm_end)
    assert (advised.windows, advised.already_huge, advised.collapsed) == (4, 1, 2)
    assert advised.refused == {ScanResult.NO_PTE_TABLE: 1} and advised.not_tried == 0
    assert advised.error == errno.EINVAL and advised.gate is None
    assert advised.memory_added == 4 * TINY.page_size


@pytest.mark.parametrize(
    ("flags", "tables", "error", "gate"),
    [
        (VM_DEFAULT, 1, None, VmaGate.FILE),
        (VM_DEFAULT | VM_NOHUGEPAGE, 1, errno.EINVAL, VmaGate.NOHUGEPAGE),
        (VM_DEFAULT | VM_DONTEXPAND, 1, errno.EINVAL, VmaGate.SPECIAL),
        (VM_DEFAULT, 0.5, errno.EINVAL, VmaGate.TOO_SHORT),
    ],
)
def test_a_file_mapping(flags: int, tables: float, error: int | None, gate: VmaGate) -> None:
    """What the kernel would do with the file is not known, but it refuses some before it looks."""
    world = World(geometry=TINY)
    size = world.geometry.pmd_size
    world.vma(small(NR))
    file = world.mm.mmap(START + size, START + size + int(tables * size), flags, file="x")
    last = world.vma(small(NR), at=START + 2 * size)
    advised = call(world, START, last.vm_end)
    assert (advised.error, advised.gate, advised.collapsed) == (error, gate, 1)
    assert advised.not_tried == 1 + int(tables) and world.orders(last) == [0] * NR
    assert call(world, file.vm_start, file.vm_end).error == error


def test_what_ends_before_a_file_mapping_is_known() -> None:
    world = World(geometry=TINY)
    size = world.geometry.pmd_size
    world.vma(small(15), small(refs=1))
    world.mm.mmap(START + size, START + 2 * size, VM_DEFAULT, file="x")
    advised = call(world, START, START + 2 * size)
    assert (advised.error, advised.gate) == (errno.EAGAIN, None)
    assert call(world, START, START + size).error == errno.EAGAIN


def test_an_interrupt_ends_it() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(NR), small(NR))
    built = BuiltWorld(world.kernel, world.khugepaged, world.mm.vmas)
    request = Request("", "", "")

    def stop() -> None:
        raise Interrupted

    request.on_table = stop
    outcome = run_madvise(built, request, [(world.mm, vma.vm_start, vma.vm_end)])
    assert not outcome.complete and outcome.ranges == ()
