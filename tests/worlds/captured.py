# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots of one heap, made for tests of what is assumed of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from mthp.image.snapshot import Kpf, Pte, Snapshot, load
from mthp.words.settings import Settings
from mthp.worlds.torn import ASSUMED_FLAGS

REDIS = Path(__file__).parents[2] / "src/mthp/data/redis.npz"
HEAP = 0x7F0000000000


def heap_of(
    tables: int,
    *,
    referenced: int = 0,
    lazyfree: int = 0,
    settings: Settings | None = None,
    kernel: str = "7.3.4",
    **meta: Any,
) -> Snapshot:
    """A process with so many full tables of base pages of its own in one mapping, captured by root.

    referenced, lazyfree: pages that smaps counts so. settings: of the host. meta: of the process.
    """
    image = load(REDIS)
    process = image.processes[0]
    address = np.uint64(HEAP) + np.arange(tables, dtype=np.uint64) * np.uint64(2 << 20)
    vma = next(vma for vma in process.vmas if vma.anonymous)
    heap = vma._replace(
        start=HEAP,
        end=HEAP + tables * (2 << 20),
        referenced=referenced << 12,
        lazyfree=lazyfree << 12,
        anonymous_bytes=tables * (2 << 20),
        thp_eligible=None,
    )
    shape = tables, 512
    flags = np.full(shape, ASSUMED_FLAGS | 1 << Kpf.SWAPBACKED, np.uint64)
    made = dataclasses.replace(
        process,
        meta=MappingProxyType({**process.meta, **meta}),
        vmas=(heap,),
        table_address=address,
        table_torn=None,
        pte=np.full(shape, int(Pte.PRESENT | Pte.EXCLUSIVE), np.uint16),
        pfn=(1 << 20) + np.arange(tables * 512, dtype=np.uint64).reshape(shape),
        kpageflags=flags,
        kpagecount=np.ones(shape, np.uint32),
        folio_order=np.zeros(shape, np.uint8),
    )
    sysfs = (settings or Settings()).to_sysfs()
    return dataclasses.replace(
        image,
        kernel=kernel,
        meta=MappingProxyType({**image.meta, "sysfs": sysfs}),
        processes=(made,),
    )
