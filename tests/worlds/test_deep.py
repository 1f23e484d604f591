# SPDX-License-Identifier: GPL-2.0-or-later
"""The worlds of deep captures: what was read stands in the place of what would be assumed."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any

import numpy as np

from mthp.image.snapshot import (
    DeepProcess,
    DisableThp,
    FolioState,
    Kpf,
    ProcessTables,
    PteBit,
    Snapshot,
)
from mthp.mm.mm_types import MMF_DISABLE_THP_EXCEPT_ADVISED
from mthp.mm.page_flags import PG_LRU, PG_MAPPED_SHARED, PG_REFERENCED, PG_SWAPBACKED
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import DIRTY, PFN_SHIFT, SOFT_DIRTY, WRITE, YOUNG, pmd_trans_huge
from mthp.predict.bounds import unknowns
from mthp.words.profiles import DEFAULT
from mthp.words.settings import Enabled, Settings
from mthp.words.units import Folio
from mthp.worlds.build import BuiltWorld, build_world
from mthp.worlds.from_snapshot import USUAL_ASSUMPTIONS
from mthp.worlds.unseen import LIKELY
from tests.worlds.captured import HEAP, heap_of

NOBODY = 2**32 - 1
EMPTY = ((HEAP + (4 << 20), HEAP + (8 << 20)),)
SHARED = 1 << 63


def deep(
    image: Snapshot, process: ProcessTables, *, registered: int | None = 0, at: int | None = None
) -> Snapshot:
    """A deep capture of one process, in which every page was used, and is mapped once."""
    shape = process.pte.shape
    bits = PteBit.YOUNG | PteBit.DIRTY | PteBit.WRITABLE | PteBit.EXCLUSIVE
    ones = np.ones(shape, np.uint32)
    assert process.folio_order is not None
    pages = ones << process.folio_order
    made = dataclasses.replace(
        process,
        deep=DeepProcess(
            7, registered, DisableThp.EXCEPT_ADVISED, pinned=False, empty_tables=EMPTY
        ),
        pte_bits=np.full(shape, int(bits), np.uint8),
        refcount=pages.copy(),
        folio_mapcount=pages,
        folio_state=np.zeros(shape, np.uint16),
        mm_ids=np.where(process.folio_order != 0, 7, 0).astype(np.uint64),
        mm_id_mapcounts=np.uint64(NOBODY << 32) | pages.astype(np.uint64) - np.uint64(1),
        node=np.zeros(shape, np.uint8),
        vmas=tuple(vma._replace(anon_vma=True) for vma in process.vmas),
    )
    meta = {**image.meta, "deep": {"mms": 3, "at": at, "address": process.vmas[0].start + 4096}}
    privilege = dataclasses.replace(image.privilege, deep=True)
    return dataclasses.replace(
        image, meta=MappingProxyType(meta), privilege=privilege, processes=(made,)
    )


def deep_heap(tables: int = 1, **meta: Any) -> tuple[Snapshot, Any]:
    image = heap_of(tables)
    image = deep(image, image.processes[0], **meta)
    return image, image.processes[0]


def pages_of(world: BuiltWorld) -> tuple[list[int], list[Folio]]:
    """The entries of the first table, and the folio of each."""
    table = min(world.kernel.tables.values(), key=lambda table: table.number)
    entries = [int(word) for word in table.ptes.raw]
    return entries, [world.kernel.mem.head.raw[word >> PFN_SHIFT] for word in entries]


def test_bits_are_those_of_the_entries() -> None:
    image, process = deep_heap()
    process.pte_bits[0, 1] = PteBit.YOUNG
    process.pte_bits[0, 2] = PteBit.WRITABLE | PteBit.SOFT_DIRTY
    entries, _ = pages_of(build_world(image, DEFAULT))
    of = WRITE | YOUNG | DIRTY | SOFT_DIRTY
    assert [entry & of for entry in entries[:3]] == [
        WRITE | YOUNG | DIRTY,
        YOUNG,
        WRITE | SOFT_DIRTY,
    ]
    assert list(unknowns(image, LIKELY)) == []
    assert not USUAL_ASSUMPTIONS & set(build_world(image, DEFAULT).assumptions)


def test_a_folio_with_pg_young_was_used() -> None:
    image, process = deep_heap(2)
    process.pte_bits[:] &= ~np.uint8(PteBit.YOUNG)
    process.folio_state[1, 7] = FolioState.YOUNG
    free = dataclasses.replace(process.deep, disable_thp=DisableThp.NO)
    image = dataclasses.replace(image, processes=(dataclasses.replace(process, deep=free),))
    world = build_world(image, DEFAULT, Settings(enabled=Enabled.ALWAYS))
    world.khugepaged.khugepaged_do_scan()
    slots = [pmd_ptr(world.kernel.mms[0], HEAP + (row << 21)) for row in range(2)]
    huge = [slot is not None and pmd_trans_huge(slot.page.pmds.raw[slot.slot]) for slot in slots]
    assert huge == [False, True]


def test_which_pages_hold_zeros_and_which_folios_wait_to_be_split() -> None:
    image, process = deep_heap(2)
    order = process.folio_order.copy()
    order[1], process.pfn[1] = 9, np.arange(1 << 12, (1 << 12) + 512)
    process.folio_state[1] = FolioState.ON_DEFERRED_LIST
    zeros = np.zeros(process.pte.shape, np.uint8)
    zeros[0, 3] = zeros[1, 7] = 1
    process = dataclasses.replace(process, folio_order=order, zero_filled=zeros)
    mem = build_world(dataclasses.replace(image, processes=(process,)), DEFAULT).kernel.mem
    (queued,) = (folio for folios in mem.deferred_split.lists.values() for folio in folios)
    used = [frame for frame in range(1, mem.nr_frames) if mem.head.raw[frame]]
    assert mem.folio_order(queued) == 9 and len(used) == 1024
    assert [frame for frame in used if mem.content.raw[frame] == 0] == [4, queued + 7]
    image, _ = deep_heap()
    mem = build_world(image, DEFAULT).kernel.mem
    assert all(mem.content.raw[1:513]) and not any(mem.deferred_split.lists.values())


def test_references_beyond_mappings_stay_and_those_of_batches_go() -> None:
    image, process = deep_heap()
    process.refcount[0, :4] = (2, 2, 3, 1025)
    process.folio_state[0, 1] = FolioState.LRU_ADD
    process.folio_state[0, 2] = FolioState.MLOCK
    process.kpageflags[0, 1] &= ~np.uint64(1 << Kpf.LRU)
    process.kpageflags[0, 3] &= ~np.uint64(1 << Kpf.LRU)
    world = build_world(image, DEFAULT)
    _, folios = pages_of(world)
    mem = world.kernel.mem
    assert [mem.refcount.raw[folio] for folio in folios[:5]] == [2, 1, 2, 1025, 1]
    assert [bool(mem.flags.raw[folio] & PG_LRU) for folio in folios[:4]] == [
        True,
        True,
        True,
        False,
    ]


def test_what_waits_to_be_given_up_or_deactivated_is_so_once_drained() -> None:
    image, process = deep_heap()
    process.kpageflags[0, :3] |= np.uint64(1 << Kpf.REFERENCED | 1 << Kpf.ACTIVE)
    process.folio_state[0, 0] = FolioState.LRU_LAZYFREE
    process.folio_state[0, 1] = FolioState.LRU_DEACTIVATE
    world = build_world(image, DEFAULT)
    _, folios = pages_of(world)
    flags = [
        world.kernel.mem.flags.raw[folio] & (PG_REFERENCED | PG_SWAPBACKED) for folio in folios
    ]
    assert flags[:3] == [0, PG_SWAPBACKED, PG_REFERENCED | PG_SWAPBACKED]


def test_a_large_folio_knows_whom_the_kernel_says() -> None:
    image = heap_of(1)
    assert image.processes[0].folio_order is not None
    image.processes[0].folio_order[:] = 4
    image = deep(image, image.processes[0])
    process: Any = image.processes[0]
    process.mm_ids[0, 16:32] = SHARED
    process.mm_id_mapcounts[0, 16:32] = NOBODY << 32 | NOBODY
    process.mm_ids[0, 32:48] = SHARED | 9 << 32 | 7
    process.mm_id_mapcounts[0, 32:48] = 3 << 32 | 15
    process.folio_mapcount[0, 32:48] = process.refcount[0, 32:48] = 20
    process.kpagecount[0, 32:36] = 2
    world = build_world(image, DEFAULT)
    _, folios = pages_of(world)
    mem = world.kernel.mem
    first, lost, both = folios[0], folios[16], folios[32]
    assert first not in mem.mm_mapcounts and not mem.flags.raw[first] & PG_MAPPED_SHARED
    assert mem.mm_mapcounts[lost] == {} and mem.flags.raw[lost] & PG_MAPPED_SHARED
    assert sorted(mem.mm_mapcounts[both].values()) == [4, 16]
    assert mem.mm_mapcounts[both][process.pid] == 16


def test_tables_with_nothing_in_them_are_there() -> None:
    world = build_world(deep_heap(2)[0], DEFAULT)
    mm = world.kernel.mms[0]
    slots = [pmd_ptr(mm, HEAP + (k << 21)) for k in range(5)]
    assert [bool(slot and slot.page.pmds.raw[slot.slot]) for slot in slots] == [True] * 4 + [False]
    assert len(world.kernel.tables) == 4


def test_nodes_and_their_distances() -> None:
    image, process = deep_heap()
    process.node[0, 5] = 1
    nodes = {"distance": {"node0": [10, 40], "node1": [40, 10]}, "zone_reclaim_mode": 1}
    image = dataclasses.replace(image, meta=MappingProxyType({**image.meta, "nodes": nodes}))
    world = build_world(image, DEFAULT)
    _, folios = pages_of(world)
    assert [world.kernel.mem.folio_nid(folio) for folio in folios[4:7]] == [0, 1, 0]
    assert (world.kernel.node_distance(0, 1), world.kernel.node_reclaim) == (40, True)


def test_khugepaged_goes_on_where_it_stood() -> None:
    image, process = deep_heap(registered=1, at=1)
    daemon = build_world(image, DEFAULT).khugepaged
    assert (daemon.mm_slots, daemon.mm_slot) == ([daemon.kernel.mms[0]], daemon.kernel.mms[0])
    assert daemon.address == process.vmas[0].start + 4096
    behind = build_world(deep_heap(registered=0, at=1)[0], DEFAULT).khugepaged
    assert (len(behind.mm_slots), behind.mm_slot) == (1, None)
    before = build_world(deep_heap(registered=2, at=1)[0], DEFAULT).khugepaged
    assert (before.mm_slot, before.address) == (before.kernel.mms[0], 0)
    absent = build_world(deep_heap(registered=None)[0], DEFAULT)
    assert absent.khugepaged.mm_slots == []
    assert absent.kernel.mms[0].mm_flags_test(MMF_DISABLE_THP_EXCEPT_ADVISED)


def test_a_host_of_many_nodes() -> None:
    """A capture has their numbers up to 255, and so have worlds."""
    image, process = deep_heap()
    process.node[...] = 200
    world = build_world(image, DEFAULT)
    _, folios = pages_of(world)
    assert {world.kernel.mem.folio_nid(folio) for folio in folios if folio} == {200}
    world.khugepaged.khugepaged_do_scan()
