# SPDX-License-Identifier: GPL-2.0-or-later
"""A small capture that was never taken: two processes, one of every kind of entry, all of it lawful."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.image.capture.columns import DEEP_WIDTH, WIDTH, ZERO_FILLED
from mthp.image.capture.pagemap import EXCLUSIVE, FILE, GUARD, HUGE, PRESENT, SWAPPED, ZERO

PTRS, PAGE, PMD = 16, 4096, 64 << 10
BASE = 0x7F00_0000_0000
ANON = 1 << 12 | 1 << 14 | 1 << 5 | 1 << 3
FRAME, LARGE, PMD_FRAME, ZERO_FRAME = 0x10_0000, 0x10_4000, 0x10_8000, 0x1_2345
NOBODY = "never visible: pins (GUP) and other extra references"


class Made(NamedTuple):
    """A snapshot's document and its arrays, to be changed and packed."""

    meta: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    def packed(self, document: bytes | None = None) -> bytes:
        """The file. document: stands in it instead of the meta's."""
        text = json.dumps(self.meta).encode() if document is None else document
        whole = np.frombuffer(text, np.uint8)
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in {"meta": whole, **self.arrays}.items():
                member = io.BytesIO()
                np.lib.format.write_array(member, array, (1, 0), allow_pickle=False)
                archive.writestr(f"{name}.npy", member.getvalue())
        return file.getvalue()


def _vma(start: int, end: int, **more: object) -> dict[str, Any]:
    return {
        "start": start, "end": end, "perms": "rw-p", "offset": 0, "dev": "00:00", "inode": 0, "path": "",
        "flags": "rd wr mr mw me ac hg", "rss": 0, "referenced": 64 << 10, "anonymous": 8 << 10,
        "lazyfree": 0, "anon_huge": 0, "swap": 0, "locked": 0, "thp_eligible": 1, "skipped": None, **more,
    }  # fmt: skip


def _process(pid: int, *vmas: dict[str, Any]) -> dict[str, Any]:
    return {
        "pid": pid, "comm": "made", "cmdline": ["made"], "exe": "/bin/made", "cgroup": "/a", "memcg": None,
        "status": {"Name": "made", "VmRSS": "9 kB"}, "thp_disable": False, "tearing": _STILL,
        "vmas": list(vmas),
    }  # fmt: skip


_STILL = {
    "vmas_changed": 0, "tables_changed": 0, "pages_changed": 0, "tables_read_again": 4, "tables": 4,
}  # fmt: skip


def made() -> Made:
    """Four tables: small pages, folios of order 2 beside others, a huge PMD; a child that shares them."""
    arrays: dict[str, NDArray[Any]] = {
        name: np.zeros((4, PTRS), f"u{width}")
        for name, width in WIDTH.items()
        if name not in DEEP_WIDTH and name != ZERO_FILLED
    }
    arrays["table_address"] = np.array([BASE, BASE + PMD, BASE + 2 * PMD, BASE], np.uint64)
    arrays["table_process"] = np.array([0, 0, 0, 1], np.uint16)
    arrays["table_torn"] = np.zeros(4, np.uint8)
    pte, pfn, flags = arrays["pte"], arrays["pfn"], arrays["kpageflags"]
    count, order = arrays["kpagecount"], arrays["folio_order"]

    def put(row: int, columns: slice, bits: int, frame: int, folio: int = 0, maps: int = 1) -> None:
        pte[row, columns] = bits
        pfn[row, columns] = frame + np.arange(columns.stop - columns.start)
        flags[row, columns], count[row, columns], order[row, columns] = ANON, maps, folio

    put(0, slice(0, 10), PRESENT | EXCLUSIVE, FRAME)
    put(0, slice(10, 12), PRESENT, FRAME + 10, maps=2)
    put(1, slice(0, 4), PRESENT | EXCLUSIVE, LARGE, 2)
    put(1, slice(4, 7), PRESENT | EXCLUSIVE, LARGE + 4, 2)
    pte[1, 8:10], pte[1, 10] = SWAPPED, SWAPPED | GUARD
    pfn[1, 8:10] = 1 << 5, 2 << 5
    pte[1, 12], pfn[1, 12] = PRESENT | ZERO, ZERO_FRAME
    pte[1, 14], pfn[1, 14], flags[1, 14] = PRESENT | FILE, FRAME + 4096, 1 << 5
    put(2, slice(0, PTRS), PRESENT | EXCLUSIVE | HUGE, PMD_FRAME, 4)
    put(3, slice(10, 12), PRESENT, FRAME + 10, maps=2)
    mapping = _vma(BASE, BASE + 3 * PMD)
    file = _vma(BASE + 4 * PMD, BASE + 4 * PMD + PAGE, path="/lib/made.so", skipped="file mapping")
    meta = {
        "schema": "mthp-snapshot/1", "tool": "mthp-snap 1", "time": "2026-01-01T00:00:00Z",
        "hostname": "made", "kernel": "7.3.4-made", "version": "Linux", "machine": "x86_64",
        "sysfs": {
            "enabled": "always [madvise] never", "hugepages-16kB/enabled": "[always] inherit madvise never",
            "hpage_pmd_size": f"{PMD}", "khugepaged/max_ptes_none": "15",
        },
        "buddyinfo": "Node 0, zone   Normal   4897   2097    722    150     28 ",
        "meminfo": {"MemTotal": 1 << 34, "MemFree": 1 << 33, "MemAvailable": 1 << 33},
        "swaps": "Filename\tType", "nodes": {"online": "0"}, "cpus": 2, "page_size": PAGE, "pmd_size": PMD,
        "privilege": dict.fromkeys(("root", "pfn", "kpageflags", "pagemap_scan", "exclusive"), True),
        "unseen": [NOBODY], "tearing": _STILL, "frozen": False, "redacted": False,
        "processes": [_process(100, mapping, file), _process(101, _vma(BASE, BASE + PMD))],
    }  # fmt: skip
    return Made(json.loads(json.dumps(meta)), arrays)


def made_deep() -> Made:
    """The same as a deep capture would have it: everything used, dirty, exclusive where one maps it."""
    it = made()
    pte, order = it.arrays["pte"], it.arrays["folio_order"]
    for name, width in DEEP_WIDTH.items():
        it.arrays[name] = np.zeros((4, PTRS), f"u{width}")
    mapped = (pte & (PRESENT | ZERO)) == PRESENT
    it.arrays["pte_bits"][mapped] = 0b111
    it.arrays["pte_bits"][mapped & (pte & EXCLUSIVE != 0)] = 0b1000111
    it.arrays["folio_mapcount"][mapped] = (it.arrays["kpagecount"] << order)[mapped] + 1
    it.arrays["refcount"][mapped] = it.arrays["folio_mapcount"][mapped]
    it.arrays["mm_ids"][order != 0] = 5
    it.arrays["mm_id_mapcounts"][order != 0] = 2**64 - 2**32 + 1
    it.meta["privilege"]["deep"] = True
    it.meta["deep"] = {"mms": 2, "at": 1, "address": BASE}
    for place, process in enumerate(it.meta["processes"]):
        process["deep"] = {
            "mm_id": 5 + place, "registered": place or None, "disable_thp": "except advised", "pinned": False,
            "empty_tables": [[BASE + 3 * PMD, BASE + 4 * PMD]] if place else [],
        }  # fmt: skip
        for vma in process["vmas"]:
            vma["anon_vma"] = vma["skipped"] is None
    return it
