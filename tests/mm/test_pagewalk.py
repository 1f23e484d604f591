# SPDX-License-Identifier: GPL-2.0-or-later
"""folio_walk(): the page behind an address, with a reference on its folio."""

from __future__ import annotations

import pytest

from mthp.mm.pagewalk import folio_walk
from mthp.mm.pgtable_types import Leaf
from tests.small_worlds import TINY, World, hole, huge, large, leaf, small, swap, zero


@pytest.mark.parametrize("page", [0, 1, 4, 7])
def test_a_mapped_page_is_given_with_a_reference_on_its_folio(page: int) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(4), large(2), hole(8))
    folio = world.folio(vma, page)
    before = world.mem.refcount.raw[folio]
    assert folio_walk(vma, world.address(vma, page)) == folio + (page - 4 if page > 4 else 0)
    assert world.mem.refcount.raw[folio] == before + 1
    assert world.kernel.pte_maps == 0
    assert world.kernel.machine.current.held == []


@pytest.mark.parametrize("page", [0, 5, 15])
def test_a_page_of_a_huge_one(page: int) -> None:
    world = World(geometry=TINY)
    vma = world.vma(huge(4))
    folio = world.folio(vma, 0)
    assert folio_walk(vma, world.address(vma, page)) == folio + page
    assert world.mem.refcount.raw[folio] == 2
    assert world.kernel.machine.current.held == []


def test_nothing_is_given_where_no_page_is_mapped() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(1), hole(), zero(), swap(), leaf(Leaf.MIGRATION), pages=64)
    before = world.census()
    for page in (1, 2, 3, 4, 20, 40):
        assert folio_walk(vma, world.address(vma, page)) is None
    assert world.kernel.pte_maps == 0
    assert world.kernel.machine.current.held == []
    assert world.check(before.outside) == []
