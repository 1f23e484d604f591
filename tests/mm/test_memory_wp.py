# SPDX-License-Identifier: GPL-2.0-or-later
"""A store to a read-only page: reused where nothing else refers to its folio, else copied."""

from __future__ import annotations

import pytest

from mthp.mm.memory import handle_user_fault
from mthp.mm.page_flags import PAGE_ANON_EXCLUSIVE
from mthp.mm.pgtable_types import pte_pfn
from tests.small_worlds import TINY, World, large, shared, small


def stored(world: World, address: int, head: int) -> int:
    """The distance between the page behind address after a store and the folio that was there."""
    handle_user_fault(world.mm, address, write=True)
    vma = world.mm.vmas[0]
    return pte_pfn(world.table(vma).ptes.raw[world.geometry.pte_index(address)]) - head


@pytest.mark.parametrize("references", [0, 1])
def test_a_small_folio_with_one_reference_is_reused(references: int) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(1), small(1))
    folio = world.folio(vma, 0)
    world.table(vma).ptes.raw[0] &= ~2
    world.mem.page_flags.raw[folio] &= ~PAGE_ANON_EXCLUSIVE
    world.mem.refcount.raw[folio] += references
    assert (stored(world, vma.vm_start, folio) == 0) is not references
    if not references:
        assert world.mem.page_flags.raw[folio] & PAGE_ANON_EXCLUSIVE


@pytest.mark.parametrize(("pages", "reused"), [(4, True), (2, True), (1, False)])
@pytest.mark.parametrize("references", [0, 1])
def test_a_large_folio_is_reused_if_mappings_are_all_references(
    pages: int, reused: bool, references: int
) -> None:
    """One page that is left of it is copied, so that the folio can be freed."""
    world = World(geometry=TINY)
    vma = world.vma(large(2, pages))
    folio = world.folio(vma, 0)
    for i in range(pages):
        world.table(vma).ptes.raw[i] &= ~2
        world.mem.page_flags.raw[folio + i] &= ~PAGE_ANON_EXCLUSIVE
    world.mem.refcount.raw[folio] += references
    assert (stored(world, vma.vm_start, folio) == 0) is (reused and not references)


def test_what_another_process_maps_is_copied() -> None:
    world = World(geometry=TINY)
    vma = world.vma(shared(1))
    folio = world.folio(vma, 0)
    assert stored(world, vma.vm_start, folio) != 0
    assert world.mem.mapcount.raw[folio] == 1
