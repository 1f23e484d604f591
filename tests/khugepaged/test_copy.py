# SPDX-License-Identifier: GPL-2.0-or-later
"""Contents go to the new folio, and the sources are let go."""

from __future__ import annotations

import pytest

from mthp.khugepaged.copy import copy_mc_user_highpage, folio_pte_batch
from mthp.mm.mm_types import MM_ANONPAGES
from mthp.mm.page_flags import (
    PAGE_HWPOISON,
)
from mthp.mm.pgtable import PteMap
from mthp.mm.pgtable_types import DIRTY, SOFT_DIRTY, UFFD_WP, WRITE, YOUNG
from mthp.words.events import Copied
from mthp.words.results import ScanResult
from tests.small_worlds import TINY, World, hole, large, small, zero

R = ScanResult


def test_holes_become_memory_and_are_counted() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(3), hole(10), zero(3))
    assert world.mm.counters[MM_ANONPAGES] == 3
    world.collapse(vma)
    assert world.mm.counters[MM_ANONPAGES] == 16
    assert [e for e in world.kernel.events if isinstance(e, Copied)] == [
        Copied(1000, vma.vm_start, 4, 3, 13)
    ]


def test_a_large_source_is_left_partly_mapped_and_queued() -> None:
    world = World(geometry=TINY, orders={2, 3})
    vma = world.vma(large(1), small(2), large(3), small(4))
    world.zap(vma, 6, 2)
    before = world.census()
    old = world.folio(vma, 4)
    assert world.collapse(vma, 2, 0) is R.SUCCEED
    assert world.orders(vma)[:2] == [2, 3]
    assert world.kernel.vmstat.mthp[3, "nr_anon_partially_mapped"] == 1
    assert world.mem.refcount.raw[old] == 6
    world.assert_sound(before)


def test_contents_are_copied_unless_the_source_failed() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(2))
    one, two = world.folio(vma, 0), world.folio(vma, 1)
    content = world.mem.content.raw[one]
    assert copy_mc_user_highpage(world.mem, two, one)
    assert world.mem.content.raw[two] == content
    world.mem.page_flags.raw[one] |= PAGE_HWPOISON
    world.mem.content.raw[one] = 7
    assert not copy_mc_user_highpage(world.mem, two, one)
    assert world.mem.content.raw[two] == content


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize(
    ("bit", "ends"),
    [(YOUNG, 8), (DIRTY, 8), (SOFT_DIRTY, 8), (WRITE, 8), (UFFD_WP, 5)],
)
def test_a_batch_goes_on_over_what_may_differ(bit: int, ends: int, watched: bool) -> None:
    """Pages 0 to 7 of one folio of which page 5 is mapped differently."""
    world = World(geometry=TINY)
    vma = world.vma(large(3), small(8))
    table = world.table(vma)
    table.ptes.raw[5] ^= bit
    if watched:
        world.kernel.machine.on_step = lambda access, word, index, bits: None
    pte = PteMap(world.kernel, table, 0)
    folio = world.folio(vma, 0)
    for i in range(8):
        expected = (ends if i < ends else min(ends + 1, 8)) - i if ends < 8 and i <= 5 else 8 - i
        if i == 5:
            expected = 1 if ends < 8 else 3
        assert folio_pte_batch(world.mem, folio, pte, i, pte.get(i), 16 - i) == expected
    assert folio_pte_batch(world.mem, folio, pte, 0, pte.get(0), 3) == 3
    pte.unmap()


@pytest.mark.parametrize("watched", [False, True])
def test_a_batch_ends_with_the_folio_and_where_its_pages_are_not_in_turn(watched: bool) -> None:
    world = World(geometry=TINY)
    vma = world.vma(large(2), large(2, 2, first=1), hole(10))
    table = world.table(vma)
    first, second = world.folio(vma, 0), world.folio(vma, 4)
    table.ptes.raw[2], table.ptes.raw[3] = table.ptes.raw[3], table.ptes.raw[2]
    if watched:
        world.kernel.machine.on_step = lambda access, word, index, bits: None
    pte = PteMap(world.kernel, table, 0)
    lengths = [folio_pte_batch(world.mem, first, pte, i, pte.get(i), 16) for i in range(4)]
    assert lengths == [2, 1, 1, 1]
    assert folio_pte_batch(world.mem, second, pte, 4, pte.get(4), 12) == 2
    pte.unmap()


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("order", [2, 4])
def test_after_poison_everything_is_where_it_was(order: int, watched: bool) -> None:
    world = World(geometry=TINY, orders={2, 4})
    vma = world.vma(small(2), large(1, poisoned=True), zero(1), hole(1), small(10))
    before = world.census()
    if watched:
        world.kernel.machine.on_step = lambda access, word, index, bits: None
    assert world.collapse(vma, order) is ScanResult.COPY_MC
    world.kernel.machine.on_step = None
    world.assert_sound(before, aborted=True)
