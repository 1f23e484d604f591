# SPDX-License-Identifier: GPL-2.0-or-later
"""A large folio becomes small ones where it is."""

from __future__ import annotations

import pytest

from mthp.mm.huge_memory_split import deferred_split_scan, split_huge_pages_pid
from mthp.mm.pgtable_types import (
    pmd_is_table,
    pte_pfn,
)
from mthp.words.results import KernelBug
from tests.small_worlds import TINY, World, large
from tests.stages import after_a_collapse, at, entry, played, pmd


def test_a_large_folio_is_split_where_it_is() -> None:
    stage = played("split-large")
    first = stage.pages[0]
    assert [pte_pfn(entry(stage, i)) for i in range(2)] == [first, first + 1]
    assert list(stage.kernel.mem.order.raw[first : first + 2]) == [0, 0]
    assert list(stage.kernel.mem.refcount.raw[first : first + 2]) == [1, 1]
    assert list(stage.kernel.mem.mapcount.raw[first : first + 2]) == [1, 1]


@pytest.mark.parametrize("rival", ["split", "ksm", "uffd-move"])
def test_a_huge_page_is_split_into_pages(rival: str) -> None:
    stage = after_a_collapse(rival)
    assert pmd_is_table(pmd(stage))
    page = pte_pfn(at(stage, stage.address(1)))
    assert stage.kernel.mem.order.raw[page] == 0


def test_a_folio_that_was_freed_is_not_split() -> None:
    world = World(geometry=TINY)
    folio = world.folio(world.vma(large(2)), 0)
    world.mem.refcount.raw[folio] = 0
    flags = world.mem.flags.raw[folio]
    deferred_split_scan(world.kernel, folio)
    assert (world.mem.refcount.raw[folio], world.mem.flags.raw[folio]) == (0, flags)


@pytest.mark.parametrize("lock", ["mmap_lock", "anon_vma"])
def test_a_split_waits_for_mmap_lock_and_anon_vma(lock: str) -> None:
    world = World(geometry=TINY)
    vma = world.vma(large(2))
    assert vma.anon_vma is not None
    sem = world.mm.mmap_lock if lock == "mmap_lock" else vma.anon_vma.rwsem
    world.held_by_another(sem.write)
    with pytest.raises(KernelBug, match="waits for"):
        split_huge_pages_pid(world.mm, vma.vm_start)
    assert world.orders(vma)[0] == 2
