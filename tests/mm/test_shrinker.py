# SPDX-License-Identifier: GPL-2.0-or-later
"""How often and how much shrinkers look at what they may free, and in which order."""

from __future__ import annotations

from mthp.mm.list_lru import Sublist
from mthp.mm.shrinker import do_shrink_slab, drop_slab
from mthp.words.units import Folio
from tests.small_worlds import TINY, World, huge

ROOT = Sublist(0, 0)


def queued(world: World, nr: int, zeroes: int) -> list[Folio]:
    """So many huge pages, on the queue, each with so many pages of zeroes."""
    vma = world.vma(*[huge(4)] * nr)
    found = []
    for i in range(nr):
        folio = world.folio(vma, 16 * i)
        for page in range(zeroes):
            world.mem.content.raw[folio + page] = 0
        world.mem.deferred_split.add(folio, ROOT)
        found.append(folio)
    return found


def test_drop_caches_looks_at_every_queued_folio() -> None:
    """More than two batches of 128 of them."""
    world = World(geometry=TINY, max_ptes_none=3)
    queued(world, 300, 4)
    drop_slab(world.kernel)
    assert world.mem.deferred_split.count(ROOT) == 0
    assert world.kernel.vmstat.events["thp_underused_split_page"] == 300


def test_under_less_pressure_a_part_of_the_queue_is_looked_at_and_the_rest_is_owed() -> None:
    world = World(geometry=TINY, max_ptes_none=3)
    all_of_them = queued(world, 300, 0)
    assert do_shrink_slab(world.kernel, ROOT, 2) == 0
    assert world.mem.deferred_split.count(ROOT) == 300 - 128
    assert world.mem.deferred_split.nr_deferred[ROOT] == (300 >> 2) * 2 - 128
    assert not world.mem.deferred_split.has(all_of_them[127], ROOT)
    assert world.mem.deferred_split.has(all_of_them[128], ROOT)
