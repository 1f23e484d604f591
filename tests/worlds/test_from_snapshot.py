# SPDX-License-Identifier: GPL-2.0-or-later
"""What is assumed of a snapshot's pages."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mthp.image.snapshot import Kpf, ProcessTables, Pte, Snapshot, load
from mthp.words.profiles import DEFAULT
from mthp.words.settings import Settings
from mthp.worlds.build import build_world
from mthp.worlds.from_snapshot import Young, young_pages

REDIS = Path(__file__).parents[2] / "src/mthp/data/redis.npz"


@pytest.fixture
def image() -> Snapshot:
    """A heap of three tables, nothing flagged as referenced, and no other mapping counted."""
    image = load(REDIS)
    process = image.processes[0]
    rows = np.arange(3)
    address = np.uint64(0x7F0000000000) + rows.astype(np.uint64) * np.uint64(2 << 20)
    vma = next(vma for vma in process.vmas if vma.anonymous)
    heap = dataclasses.replace(
        vma, start=int(address[0]), end=int(address[-1]) + (2 << 20), referenced=0
    )
    assert process.kpageflags is not None and process.pfn is not None
    flags = process.kpageflags[rows] & ~np.uint64(1 << Kpf.REFERENCED) | np.uint64(1 << Kpf.ANON)
    pte = np.full((3, 512), int(Pte.PRESENT | Pte.EXCLUSIVE), np.uint16)
    changed = dataclasses.replace(
        process,
        table_address=address,
        pte=pte,
        pfn=process.pfn[rows],
        kpageflags=flags,
        vmas=(heap,),
    )
    return dataclasses.replace(image, processes=(changed,))


def young_of(image: Snapshot, referenced: int) -> list[int]:
    """Pages taken to be young in each table, where smaps counts so many."""
    process = image.processes[0]
    heap = dataclasses.replace(process.vmas[0], referenced=referenced << 12)
    counted: ProcessTables = dataclasses.replace(process, vmas=(heap,))
    return [int(count) for count in young_pages(image, counted, Young.CAPTURED).sum(axis=1)]


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
