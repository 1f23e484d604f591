# SPDX-License-Identifier: GPL-2.0-or-later
"""What is assumed of a snapshot's pages."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mthp.image.snapshot import Kpf, ProcessTables, Pte, Snapshot, load
from mthp.mm.pgtable_types import PFN_SHIFT
from mthp.words.profiles import DEFAULT
from mthp.words.settings import Settings
from mthp.worlds.build import build_world
from mthp.worlds.free_memory import free_memory
from mthp.worlds.render import render_state
from mthp.worlds.unseen import LIKELY, young_pages
from tests.worlds.captured import HEAP, heap_of

REDIS = Path(__file__).parents[2] / "src/mthp/data/redis.npz"


@pytest.fixture
def image() -> Snapshot:
    """A heap of three tables, nothing flagged as referenced, and no other mapping counted."""
    image = load(REDIS)
    process = image.processes[0]
    rows = np.arange(3)
    address = np.uint64(0x7F0000000000) + rows.astype(np.uint64) * np.uint64(2 << 20)
    vma = next(vma for vma in process.vmas if vma.anonymous)
    heap = vma._replace(start=int(address[0]), end=int(address[-1]) + (2 << 20), referenced=0)
    assert process.kpageflags is not None and process.pfn is not None
    flags = process.kpageflags[rows] & ~np.uint64(1 << Kpf.REFERENCED) | np.uint64(1 << Kpf.ANON)
    pte = np.full((3, 512), int(Pte.PRESENT | Pte.EXCLUSIVE), np.uint16)
    changed = dataclasses.replace(
        process,
        table_address=address,
        pte=pte,
        pfn=process.pfn.max() + np.arange(pte.size, dtype=np.uint64).reshape(pte.shape),
        kpageflags=flags,
        kpagecount=np.ones(pte.shape, np.uint32),
        folio_order=np.zeros(pte.shape, np.uint8),
        vmas=(heap,),
    )
    return dataclasses.replace(image, processes=(changed,))


def young_of(image: Snapshot, referenced: int) -> list[int]:
    """Pages taken to be young in each table, where smaps counts so many."""
    process = image.processes[0]
    heap = process.vmas[0]._replace(referenced=referenced << 12)
    counted: ProcessTables = dataclasses.replace(process, vmas=(heap,))
    return [int(count) for count in young_pages(image, counted, LIKELY).sum(axis=1)]


def test_unnamed_young_pages_are_spread_evenly(image: Snapshot) -> None:
    assert young_of(image, 0) == [0, 0, 0]
    assert young_of(image, 30) == [10, 10, 10]
    assert young_of(image, 5000) == [512, 512, 512]


def test_pages_alone_among_swapped_ones_come_first(image: Snapshot) -> None:
    image.processes[0].pte[1, :500] = int(Pte.SWAPPED)
    assert young_of(image, 3) == [0, 3, 0]
    assert young_of(image, 12) == [0, 12, 0]
    assert young_of(image, 32) == [10, 12, 10]
    image.processes[0].pte[1, 100:500] = int(Pte.PRESENT)
    assert young_of(image, 4) == [2, 1, 1], "most of that table is there: nothing to tell"


@pytest.mark.parametrize(("merged", "shown"), [(512, 512), (3 * 512, 0)])
def test_a_kernel_that_shows_every_page_as_merged_is_not_believed(
    image: Snapshot, merged: int, shown: int
) -> None:
    process = image.processes[0]
    assert process.kpageflags is not None
    flags = process.kpageflags.copy()
    flags.reshape(-1)[:merged] |= np.uint64(1 << Kpf.KSM)
    changed = dataclasses.replace(process, kpageflags=flags)
    world = build_world(dataclasses.replace(image, processes=(changed,)), DEFAULT)
    (state,) = render_state(world.kernel, world.vmas)
    found = sum(count for count, token in state.folios if "K" in token.flags)
    assert found == shown


def test_every_folio_is_charged_to_the_cgroup_of_its_process(image: Snapshot) -> None:
    process = image.processes[0]
    order = process.folio_order
    assert order is not None and process.pfn is not None
    order = order[:3].copy()
    order[1] = 4
    order[2] = 9
    process.pte[2] |= np.uint16(Pte.HUGE)
    pfn = np.arange(3 * 512, dtype=process.pfn.dtype).reshape(3, 512) + (1 << 20)
    meta = {**process.meta, "cgroup": "/db", "memcg": {"limit": 64 << 20, "usage": 6 << 20}}
    once = np.ones((3, 512), np.uint32)
    charged = dataclasses.replace(process, pfn=pfn, folio_order=order, kpagecount=once, meta=meta)
    world = build_world(dataclasses.replace(image, processes=(charged,)), DEFAULT, Settings())
    mem = world.kernel.mem
    heads = {
        mem.head.raw[page] for page in range(len(mem.mapcount.raw)) if mem.mapcount.raw[page] > 0
    }
    huge = {mem.head.raw[p] for p in range(len(mem.order.raw)) if mem.order.raw[p] == 9}
    assert sorted(Counter(mem.order.raw[h] for h in heads | huge).items()) == [
        (0, 512),
        (4, 32),
        (9, 1),
    ]
    assert {mem.memcg.raw[head] for head in heads | huge} == {world.kernel.memcgs[0].number}


GIB = 1 << 30


@pytest.mark.parametrize(
    ("blocks", "memfree", "asked", "order_10", "words"),
    [
        (1024, 4 * GIB, None, 1024, "4 GiB of memory are free, as buddyinfo says;"),
        (1024, 20 * GIB, None, 5120, "as MemFree says; buddyinfo shows 4 GiB of it"),
        (0, 20 * GIB, None, 5120, "as MemFree says; buddyinfo shows none of it"),
        (
            5120,
            1 * GIB,
            None,
            5120,
            "20 GiB of memory are free, as buddyinfo says (MemFree is 1 GiB",
        ),
        (1024, 20 * GIB, 8 * GIB, 2048, "8 GiB of memory are free, as asked"),
        (1024, 20 * GIB, 0, 0, "0 B of memory are free, as asked"),
    ],
)
def test_free_memory_is_what_is_said(
    image: Snapshot, blocks: int, memfree: int, asked: int | None, order_10: int, words: str
) -> None:
    """Where buddyinfo and MemFree do not agree, it is said which is believed."""
    zone = f"Node 0, zone Normal {'0 ' * 10}{blocks}"
    meminfo = {"MemFree": memfree, "MemAvailable": memfree + 4096}
    meta = {**image.meta, "buddyinfo": zone, "meminfo": meminfo}
    (node,), said = free_memory(dataclasses.replace(image, meta=meta, free_memory=asked))
    assert node.free_blocks is not None
    assert node.free_blocks[10] == order_10 and node.free_blocks.get(0, 0) == (asked is None)
    assert words in said and "--free-memory" in said


def test_what_zones_keep_is_not_handed_out(image: Snapshot) -> None:
    """Unless the user says what is free. The lowest zone is not counted at all."""
    zones = [
        {"node": 0, "zone": "DMA", "min": 11, "kept": 31844, "pcp_high": 0},
        {"node": 0, "zone": "DMA32", "min": 2095, "kept": 28870, "pcp_high": 1300},
        {"node": 0, "zone": "Normal", "min": 20400, "kept": 0, "pcp_high": 600},
    ]
    zone = f"Node 0, zone Normal {'0 ' * 10}1024"
    meta = {**image.meta, "buddyinfo": zone, "meminfo": {}, "zones": zones}
    (node,), _ = free_memory(dataclasses.replace(image, meta=meta))
    assert (node.reserve, node.pcp_high) == (2095 + 28870 + 20400, 1300)
    (node,), _ = free_memory(dataclasses.replace(image, meta=meta, free_memory=1 << 30))
    assert (node.reserve, node.pcp_high) == (0, None)


def test_free_memory_that_nobody_tells(image: Snapshot) -> None:
    meta = {**image.meta, "buddyinfo": None, "meminfo": {}}
    (node,), said = free_memory(dataclasses.replace(image, meta=meta))
    assert node.free_blocks is None and "as much memory is free as is asked for" in said


def test_a_threads_stack_is_named(image: Snapshot) -> None:
    """MAP_STACK gave VM_NOHUGEPAGE to the stack and to what guards its end; advice is given to one."""
    heap = image.processes[0].vmas[0]
    vma = heap._replace(name="", flags=frozenset({"rd", "wr", "nh"}))
    for flags, name in (({"nh"}, "[thread stack]"), (set[str](), "")):
        guard = vma._replace(start=vma.start - 4096, end=vma.start, flags=frozenset(flags))
        process = dataclasses.replace(image.processes[0], vmas=(guard, vma))
        world = build_world(dataclasses.replace(image, processes=(process,)), DEFAULT, Settings())
        assert [each.name for each in world.vmas] == ["", name]


def on_nodes(*nodes: tuple[tuple[int, int], ...]) -> Snapshot:
    """A heap of four tables in so many mappings of equal size, with these pages by node."""
    image = heap_of(4)
    process = image.processes[0]
    heap, size = process.vmas[0], (8 << 20) // len(nodes)
    vmas = tuple(
        heap._replace(start=HEAP + k * size, end=HEAP + (k + 1) * size, nodes=each)
        for k, each in enumerate(nodes)
    )
    return dataclasses.replace(image, processes=(dataclasses.replace(process, vmas=vmas),))


def test_pages_of_a_plain_capture_lie_on_the_node_that_has_most_of_their_mapping() -> None:
    world = build_world(on_nodes(((1, 1024),), ((0, 1000), (2, 24))), DEFAULT)
    mem = world.kernel.mem
    nodes = {
        row: {mem.folio_nid(int(word) >> PFN_SHIFT) for word in table.ptes.raw}
        for row, table in enumerate(sorted(world.kernel.tables.values(), key=lambda t: t.number))
    }
    assert nodes == {0: {1}, 1: {1}, 2: {0}, 3: {0}}
    assert any("1 mappings lie on several nodes" in each for each in world.assumptions)
    alone = build_world(on_nodes(((1, 2048),)), DEFAULT)
    assert not any("node" in each for each in alone.assumptions)
