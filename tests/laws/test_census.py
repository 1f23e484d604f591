# SPDX-License-Identifier: GPL-2.0-or-later
"""A census: what stands in a world, counted from page tables, batches and the swap cache."""

from __future__ import annotations

from mthp.laws.census import Census
from mthp.mm.folio import folio_add_lru
from mthp.mm.pgtable_types import WRITE, Leaf, leaf_pte, mk_pte, table_pmd
from mthp.races.stage import FILE
from mthp.races.world import RaceWorld
from tests.small_worlds import TINY, World, hole, huge, large, leaf, shared, small, swap, zero


def test_every_entry_and_what_a_load_would_see() -> None:
    world = World(geometry=TINY)
    vma = world.vma(
        small(1), large(2), zero(1), hole(1), swap(2), leaf(Leaf.GUARD), hole(6), huge(4)
    )
    moving = world.folio(vma, 0)
    cached = world.cache_swapped(vma, 7)
    world.mem.content.raw[cached] = 55
    world.table(vma).ptes.raw[10] = leaf_pte(Leaf.MIGRATION, moving)
    now = Census(world.kernel)
    mem, number = world.mem, world.mm.number
    entries = [now.entries[number, world.address(vma, page)] for page in range(32)]
    assert entries[:16] == list(world.table(vma).ptes.raw)
    pmd = world.pmd(vma, world.address(vma, 16))
    assert entries[16:] == [pmd + mk_pte(i, 0) - mk_pte(0, 0) for i in range(16)]
    contents = [now.contents[number, world.address(vma, page)] for page in range(32)]
    first, big, whole = moving, world.folio(vma, 1), world.folio(vma, 16)
    assert contents[0] == contents[10] == mem.content.raw[first]
    assert contents[1:5] == list(mem.content.raw[big : big + 4])
    assert contents[5:7] == [0, 0]
    assert contents[7:9] == [55, world.kernel.swap.contents[3]]
    assert contents[9] is None
    assert contents[16:] == list(mem.content.raw[whole : whole + 16])
    assert now.migrating == {moving}


def test_what_is_missing_of_a_file_mapping_is_read_from_the_file() -> None:
    stage = RaceWorld.parse("pmd+file", "7.3", ())()
    contents = Census(stage.kernel).contents
    assert [contents[1, stage.address(i)] for i in range(2)] == [100, stage.kernel.files[FILE]]


def test_mappings_folios_and_tables_are_counted() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(2), shared(1), large(2), zero(1), swap(1), hole(7), huge(4))
    child = world.fork(vma)
    world.zap(vma, 0, 1)
    batched = world.folio(vma, 1)
    folio_add_lru(world.mem, world.kernel.this_cpu, batched)
    world.table(vma).ptes.raw[1] |= WRITE
    gone = world.folio(child, 0)
    now = Census(world.kernel)
    pages = [world.folio(vma, page) for page in (1, 2, 3)]
    assert now.pte_mappings[gone] == 1
    assert [now.pte_mappings[page] for page in pages] == [2, 2, 2]
    assert now.pte_mappings[pages[2] + 3] == 2
    assert (now.writable[batched], now.writable[gone]) == (1, 0)
    whole = world.folio(vma, 16)
    assert now.pmd_mappings == {whole: 2}
    assert now.folios == sorted({gone, *pages, whole})
    assert now.orders == {gone: 0, pages[0]: 0, pages[1]: 0, pages[2]: 2, whole: 4}
    assert now.batched == {batched: 1}
    assert [now.counted[mm.number, "MM_ANONPAGES"] for mm in (world.mm, child.vm_mm)] == [22, 23]
    assert now.linked == {world.table(each).number: 1 for each in (vma, child)}
    assert sum(now.deposited.values()) == 2
    assert now.explained_references(batched) == 3


def test_what_others_must_be_holding() -> None:
    world = World(geometry=TINY)
    vma = world.vma(
        small(1), small(1, refs=2), small(2, elsewhere=3), hole(12), huge(4, elsewhere=1)
    )
    world.lock(vma, 0)
    world.off_lru(vma, 1)
    outside = Census(world.kernel).outside
    one, two, three = (world.folio(vma, page) for page in range(3))
    assert outside.references == {two: 2}
    assert outside.mappings == {three: 3, world.folio(vma, 3): 3}
    assert outside.huge_mappings == {world.folio(vma, 16): 1}
    assert outside.locked == {one}
    assert outside.off_lru == {two}


def test_charges_and_books() -> None:
    world = World(geometry=TINY)
    memcg = world.kernel.new_memcg("g", usage=30)
    memcg.reclaimable = 5
    vma = world.vma(small(2), large(3))
    for page in (0, 2):
        world.mem.memcg.raw[world.folio(vma, page)] = memcg.number
    now = Census(world.kernel)
    assert now.charged == {0: 9}
    assert now.usage == [35]
    assert now.books == {(1000, "MM_ANONPAGES"): 10, (1000, "MM_SWAPENTS"): 0}


def test_a_link_to_a_table_that_is_gone_is_counted_and_not_followed() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(2))
    world.set_pmd(vma, table_pmd(999))
    now = Census(world.kernel)
    assert now.linked == {999: 1} and now.entries == {}
