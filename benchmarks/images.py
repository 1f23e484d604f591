# SPDX-License-Identifier: GPL-2.0-or-later
"""A snapshot file of a large process, written with numpy alone: docs/snapshot-format.md, by rote.

Deterministic: the same size gives the same file but for its name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE, PTRS = 4096, 512
TABLE = PAGE * PTRS
START = 0x7F00_0000_0000
GIB = 1 << 30

PRESENT, SWAPPED, HUGE, SOFT_DIRTY, EXCLUSIVE = 1, 2, 16, 32, 128
"""Bits of `pte`."""
_ANON_PAGE = sum(1 << bit for bit in (3, 5, 11, 12, 14))  # UPTODATE LRU MMAP ANON SWAPBACKED
_REFERENCED, _HEAD, _TAIL, _THP = 1 << 2, 1 << 15, 1 << 16, 1 << 22
_SIZES = ("16", "32", "64", "128", "256", "512", "1024", "2048")


@dataclass
class Row:
    """What one table holds: arrays of PTRS."""

    frame: int
    pte: NDArray[Any]
    pfn: NDArray[Any]
    flags: NDArray[Any]
    count: NDArray[Any]
    order: NDArray[Any]


def small(row: Row, rng: np.random.Generator, filled: NDArray[Any]) -> None:
    """Small folios in scattered frames of the row's own 512, some used lately."""
    nr = int(np.count_nonzero(filled))
    row.pte[filled] = PRESENT | SOFT_DIRTY | EXCLUSIVE
    row.pfn[filled] = row.frame + rng.permutation(PTRS)[:nr]
    row.flags[filled] = np.where(rng.random(nr) < 0.3, _ANON_PAGE | _REFERENCED, _ANON_PAGE)
    row.count[filled] = 1


def full(row: Row, rng: np.random.Generator) -> None:
    """512 small folios."""
    small(row, rng, np.ones(PTRS, np.bool_))


def holes(row: Row, rng: np.random.Generator) -> None:
    """Small folios in runs, with runs of nothing between them."""
    ends = np.cumsum(rng.geometric(1 / 24, PTRS))
    small(row, rng, np.searchsorted(ends, np.arange(PTRS)) % 4 != 3)


def mixed(row: Row, rng: np.random.Generator) -> None:
    """Folios of order 0 and 2 to 8, some of them mapped only in part."""
    full(row, rng)
    at = 0
    while at < PTRS:
        order = int(
            rng.choice([0, 2, 3, 4, 5, 6, 7, 8], p=[0.2, 0.2, 0.1, 0.25, 0.1, 0.05, 0.05, 0.05])
        )
        nr = 1 << order
        if order and at % nr == 0:
            part = slice(at, at + nr)
            row.pfn[part] = row.frame + np.arange(at, at + nr)
            row.order[part] = order
            row.flags[part] = _ANON_PAGE | _THP | _TAIL | (_REFERENCED if rng.random() < 0.5 else 0)
            row.flags[at] ^= _TAIL | _HEAD
            if rng.random() < 0.05:
                for array in (row.pte, row.pfn, row.flags, row.count, row.order):
                    array[at + nr // 2 : at + nr] = 0
        else:
            nr = 4
            # a frame of another range of the same row: its own are the large folios'
            row.pfn[at : at + nr] = row.frame + PTRS + np.arange(at, at + nr)
        at += nr


def shared(row: Row, rng: np.random.Generator) -> None:
    """Small folios, a run of them mapped by another process too (after a fork)."""
    full(row, rng)
    first, nr = int(rng.integers(0, 384)), int(rng.integers(16, 128))
    row.pte[first : first + nr] ^= EXCLUSIVE
    row.count[first : first + nr] = 2


def swapped(row: Row, rng: np.random.Generator) -> None:
    """Small folios, some swapped out: few in one half of the tables, many in the other."""
    full(row, rng)
    gone = rng.random(PTRS) < (0.05 if rng.random() < 0.5 else 0.4)
    row.pte[gone] = SWAPPED | SOFT_DIRTY | EXCLUSIVE
    row.pfn[gone] = (row.frame + np.arange(PTRS)[gone]) << 5
    row.flags[gone] = row.count[gone] = 0


def huge(row: Row, rng: np.random.Generator) -> None:
    """Mapped by its PMD."""
    row.pte[:] = PRESENT | SOFT_DIRTY | EXCLUSIVE | HUGE
    row.pfn[:] = row.frame + np.arange(PTRS)
    row.flags[:] = _ANON_PAGE | _THP | _TAIL
    row.flags[0] ^= _TAIL | _HEAD
    row.count[:] = 1
    row.order[:] = 9


KINDS: dict[Callable[[Row, np.random.Generator], None], float] = {
    full: 0.22, holes: 0.25, mixed: 0.25, shared: 0.06, swapped: 0.07, huge: 0.15,
}  # fmt: skip
"""Share of the populated tables."""


def _vma(start: int, end: int, rss: int, swap: int) -> dict[str, Any]:
    return {
        "start": start, "end": end, "perms": "rw-p", "offset": 0, "dev": "00:00", "inode": 0,
        "path": "", "flags": "rd wr mr mw me ac sd", "rss": rss, "anonymous": rss,
        "referenced": rss // 2, "swap": swap, "anon_huge": 0, "lazyfree": 0, "locked": 0,
        "thp_eligible": 1, "skipped": None,
    }  # fmt: skip


def write_image(path: Path, size: int = 8 * GIB, vmas: int = 4) -> dict[str, int]:
    """A process with `size` bytes of anonymous mappings, half of them populated, as root sees it.

    Returns tables, pages present and pages swapped.
    """
    rng = np.random.default_rng(1)
    pages = size // PAGE // 2
    names = list(KINDS)
    addresses = np.sort(rng.choice(size // TABLE, size // TABLE * 5 // 8, replace=False))
    rows: list[Row] = []
    have = 0
    for number in range(len(addresses)):
        row = Row((1 << 20) + number * 2 * PTRS, *(np.zeros(PTRS, t) for t in "HQQIB"))
        if have < pages:
            names[int(rng.choice(len(names), p=list(KINDS.values())))](row, rng)
        have += int(np.count_nonzero(row.pte))
        rows.append(row)
    used = [k for k, row in enumerate(rows) if row.pte.any()]
    at: NDArray[np.uint64] = START + addresses[used].astype(np.uint64) * TABLE
    pte = np.array([rows[k].pte for k in used])
    step = size // vmas
    mappings = []
    for k in range(vmas):
        inside = (at >= START + k * step) & (at < START + (k + 1) * step)
        rss = int(np.count_nonzero(pte[inside] & PRESENT)) * PAGE
        swap = int(np.count_nonzero(pte[inside] & SWAPPED)) * PAGE
        mappings.append(_vma(START + k * step, START + (k + 1) * step, rss, swap))
    meta = _meta(mappings)
    np.savez_compressed(
        path,
        meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
        table_address=at.astype(np.uint64),
        table_process=np.zeros(len(used), np.uint16),
        pte=pte,
        pfn=np.array([rows[k].pfn for k in used]),
        kpageflags=np.array([rows[k].flags for k in used]),
        kpagecount=np.array([rows[k].count for k in used]),
        folio_order=np.array([rows[k].order for k in used]),
    )
    return {
        "tables": len(used),
        "present": int(np.count_nonzero(pte & PRESENT)),
        "swapped": int(np.count_nonzero(pte & SWAPPED)),
    }


def _meta(mappings: list[dict[str, Any]]) -> dict[str, Any]:
    sysfs = {
        "enabled": "[always] madvise never",
        "defrag": "always defer defer+madvise [madvise] never",
        "khugepaged/defrag": "1",
        "khugepaged/max_ptes_none": "511",
        "khugepaged/max_ptes_swap": "64",
        "khugepaged/max_ptes_shared": "256",
        "khugepaged/pages_to_scan": "4096",
        "khugepaged/scan_sleep_millisecs": "10000",
        "khugepaged/alloc_sleep_millisecs": "60000",
    }
    for kb in _SIZES:
        sysfs[f"hugepages-{kb}kB/enabled"] = "always [inherit] madvise never"
    process = {
        "pid": 4242, "comm": "bigimage", "cmdline": ["bigimage"], "exe": "/bigimage",
        "cgroup": "/", "memcg": None, "status": {}, "thp_disable": None, "vmas": mappings,
        "tearing": {"vmas_changed": 0, "pages_changed": 0, "tables_changed": 0},
    }  # fmt: skip
    return {
        "schema": "mthp-snapshot/1", "tool": "benchmarks/images.py", "time": "", "hostname": "",
        "kernel": "7.3.4", "version": "", "machine": "x86_64", "page_size": PAGE,
        "pmd_size": TABLE, "sysfs": sysfs,
        "buddyinfo": "Node 0, zone   Normal " + " ".join(["4096"] * 10 + ["6144"]),
        "swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 8388604 0 100\n",
        "meminfo": {"MemTotal": 64 * GIB, "MemFree": 24 * GIB, "MemAvailable": 24 * GIB,
                    "SwapTotal": 8 * GIB, "SwapFree": 7 * GIB},
        "nodes": {"online": "0", "distance": {"0": [10]}, "zone_reclaim_mode": 0}, "cpus": 8,
        "privilege": {"root": True, "pfn": True, "kpageflags": True, "pagemap_scan": True,
                      "exclusive": True},
        "unseen": [], "tearing": {"vmas_changed": 0, "pages_changed": 0, "tables_changed": 0,
                                  "tables_read_again": 0, "tables": 0, "how": "written by rote"},
        "frozen": True, "redacted": False, "processes": [process],
    }  # fmt: skip
