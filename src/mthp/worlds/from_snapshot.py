# SPDX-License-Identifier: GPL-2.0-or-later
"""A snapshot's arrays, with what the capture could not see assumed; every assumption is a sentence.

docs/decisions/0005-what-a-capture-cannot-see.md gives the reasons.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mthp.image.snapshot import Kpf, ProcessTables, Pte, Snapshot, SnapshotVma
from mthp.mm import vm_flags as vm
from mthp.mm.mm_types import MMF_DISABLE_THP_COMPLETELY
from mthp.mm.page_alloc import NodeState
from mthp.mm.pgtable_types import DIRTY, WRITE, YOUNG
from mthp.worlds.arrays import ImageMemcg, ImageProcess, ImageVma, TableArrays, WorldArrays, span

VM_FLAG_CODES = {
    "rd": vm.VM_READ, "wr": vm.VM_WRITE, "ex": vm.VM_EXEC, "sh": vm.VM_SHARED,
    "hg": vm.VM_HUGEPAGE, "nh": vm.VM_NOHUGEPAGE, "lo": vm.VM_LOCKED, "io": vm.VM_IO,
    "pf": vm.VM_PFNMAP, "mm": vm.VM_MIXEDMAP, "de": vm.VM_DONTEXPAND, "ht": vm.VM_HUGETLB,
    "dp": vm.VM_DROPPABLE, "uw": vm.VM_UFFD_WP, "um": vm.VM_UFFD_MISSING,
    "ui": vm.VM_UFFD_MISSING, "sd": vm.VM_SOFTDIRTY, "mg": vm.VM_MERGEABLE,
}  # fmt: skip
"""VmFlags codes of smaps. Kernel: fs/proc/task_mmu.c, show_smap_vma_flags()."""

YOUNG_AS_COUNTED = (
    "young are as many pages as smaps counts as referenced in a mapping, spread evenly"
)
YOUNG_AS_FLAGGED = (
    "young are pages with PG_referenced, and as many pages as smaps counts as referenced in a mapping, "
    "spread evenly"
)
NO_PINS = "no page is pinned or locked for a moment, but those the capture saw locked"
NO_BATCHES = "every folio that was in a per-CPU LRU batch is taken to be on the LRU"
USUAL_ASSUMPTIONS = frozenset({YOUNG_AS_COUNTED, YOUNG_AS_FLAGGED, NO_PINS, NO_BATCHES})
"""What is assumed of every capture, unless it is asked for otherwise."""

_LRU = np.uint64(1 << Kpf.LRU)
_ASSUMED_FLAGS = 1 << Kpf.LRU | 1 << Kpf.ANON | 1 << Kpf.SWAPBACKED | 1 << Kpf.UPTODATE


class Young(StrEnum):
    """What decides which pages are taken to be young."""

    CAPTURED = "captured"
    ALL = "all"
    NONE = "none"


def image_of_snapshot(snapshot: Snapshot, young: Young) -> WorldArrays:
    """The arrays of a snapshot; a process's are made when the builder comes to it."""
    shift = snapshot.geometry.page_shift
    memcgs: dict[str, ImageMemcg] = {}
    for process in snapshot.processes:
        memcg = _memcg(process, shift)
        if memcg is not None:
            memcgs.setdefault(memcg.name, memcg)
    swaps = str(snapshot.meta.get("swaps") or "").splitlines()[1:]
    return WorldArrays(
        nodes=free_memory(snapshot),
        processes=_processes(snapshot, list(memcgs), young),
        memcgs=tuple(memcgs.values()),
        nr_cpus=max(1, int(snapshot.meta.get("cpus") or 1)),
        synchronous=all("zram" in line for line in swaps),
        assumptions=tuple(_assumptions(snapshot, memcgs, young)),
    )


def _assumptions(
    snapshot: Snapshot, memcgs: Mapping[str, ImageMemcg], young: Young
) -> Iterator[str]:
    for name, memcg in memcgs.items():
        if memcg.reclaimable:
            yield (
                f"cgroup {name} at its limit gives back {memcg.reclaimable} pages of cache and "
                "slab, and swaps nothing out"
            )
        else:
            yield f"cgroup {name} reclaims nothing when it is at its limit"
    if young is Young.CAPTURED:
        yield YOUNG_AS_FLAGGED if snapshot.privilege.kpageflags else YOUNG_AS_COUNTED
    else:
        yield f"every page is taken to be {'young' if young is Young.ALL else 'old'}"
    yield NO_PINS
    yield NO_BATCHES
    if not snapshot.privilege.kpageflags:
        yield "every page is a folio of order 0, swap-backed and on the LRU"
        yield "a page that is not mapped exclusively is shared by two processes"


def _memcg(process: ProcessTables, shift: int) -> ImageMemcg | None:
    """The tightest limit above the process, in pages, and what it could give back."""
    known = process.meta.get("memcg")
    if not isinstance(known, dict) or not isinstance(known.get("limit"), int):
        return None
    pages = [int(known.get(key) or 0) >> shift for key in ("limit", "usage", "reclaimable")]
    return ImageMemcg(str(process.meta.get("cgroup") or "memcg"), *pages)


def _processes(snapshot: Snapshot, memcgs: list[str], young: Young) -> Iterator[ImageProcess]:
    shared = _shared_slots(snapshot)
    next_frame = snapshot.geometry.ptrs_per_pte
    for process in snapshot.processes:
        memcg = _memcg(process, snapshot.geometry.page_shift)
        tables = _tables(snapshot, process, shared, young, next_frame)
        next_frame += process.pte.size
        yield ImageProcess(
            pid=process.pid,
            name=process.name,
            mm_flags=MMF_DISABLE_THP_COMPLETELY if process.thp_disabled else 0,
            memcg=None if memcg is None else memcgs.index(memcg.name),
            vmas=tuple(_vma(snapshot, process, vma) for vma in process.vmas),
            tables=tables,
        )


def _vma(snapshot: Snapshot, process: ProcessTables, vma: SnapshotVma) -> ImageVma:
    """Make one mapping; those of files are kept so that addresses mean what they meant, and with the
    anonymous pages of private ones.

    A mapping with anonymous pages has an anon_vma, whatever smaps said a moment earlier.
    """
    flags = 0
    for code in vma.flags:
        flags |= VM_FLAG_CODES.get(code, 0)
    written = vma.captured and bool(vma.anonymous_bytes or vma.swap_bytes)
    if vma.captured and not written:
        own = span(process.table_address, snapshot.geometry, vma.start, vma.end)
        pte = process.pte.reshape(-1)[own]
        written = bool(((pte & (Pte.PRESENT | Pte.ZERO | Pte.FILE)) == Pte.PRESENT).any())
    file = None if vma.anonymous else (vma.name or vma.skipped or "file")
    return ImageVma(vma.start, vma.end, flags, written, vma.name, file)


def _tables(
    snapshot: Snapshot,
    process: ProcessTables,
    shared: NDArray[np.uint64],
    young: Young,
    next_frame: int,
) -> TableArrays:
    """The arrays of one process. next_frame: numbers from here on are free for unseen frames."""
    if process.pfn is None or process.kpageflags is None:
        process = _unseen(snapshot, process, next_frame)
    assert process.pfn is not None and process.kpageflags is not None
    assert process.kpagecount is not None and process.folio_order is not None
    pte = process.pte.copy()
    swapped = (pte & Pte.SWAPPED) != 0
    pte[swapped] |= np.where(np.isin(process.pfn[swapped], shared), 0, int(Pte.EXCLUSIVE)).astype(
        np.uint16
    )
    # Compound tails carry no LRU flag of their own, and batches are taken to be drained.
    anon = process.kpageflags >> np.uint64(Kpf.ANON) & np.uint64(1)
    kpageflags = process.kpageflags | anon * _LRU
    if young is Young.NONE:
        kpageflags &= ~np.uint64(1 << Kpf.REFERENCED)
    return TableArrays(
        table_address=process.table_address,
        pte=pte,
        bits=_bits(snapshot, process, young),
        pfn=process.pfn,
        kpageflags=kpageflags,
        kpagecount=process.kpagecount,
        folio_order=process.folio_order,
    )


def _unseen(snapshot: Snapshot, process: ProcessTables, next_frame: int) -> ProcessTables:
    """Assume, without root, that each mapped page is a folio of order 0, but under a huge PMD."""
    pte = process.pte
    here = (pte & (Pte.PRESENT | Pte.ZERO)) == Pte.PRESENT
    huge = here & ((pte & Pte.HUGE) != 0).all(axis=1)[:, None]
    flags = np.where(here, _ASSUMED_FLAGS, 0).astype(np.uint64)
    flags[(pte & Pte.FILE) != 0] &= ~np.uint64(1 << Kpf.ANON | 1 << Kpf.SWAPBACKED)
    counts = here.astype(np.uint32)
    if snapshot.privilege.exclusive:
        counts[here & ~huge & ((pte & Pte.EXCLUSIVE) == 0)] = 2
    frames = next_frame + np.arange(pte.size, dtype=np.uint64).reshape(pte.shape)
    return replace(
        process,
        pfn=np.where(here, frames, 0).astype(np.uint64),
        kpageflags=flags,
        kpagecount=counts,
        folio_order=np.where(huge, snapshot.geometry.pmd_order, 0).astype(np.uint8),
    )


def _bits(snapshot: Snapshot, process: ProcessTables, young: Young) -> NDArray[np.uint8]:
    """The WRITE, YOUNG and DIRTY bits of every entry that maps something."""
    pte = process.pte
    present, zero = (pte & Pte.PRESENT) != 0, (pte & Pte.ZERO) != 0
    huge = ((pte & Pte.HUGE) != 0).all(axis=1)[:, None]
    writable = np.zeros(pte.size, np.bool_)
    for vma in process.vmas:
        if "wr" in vma.flags:
            own = span(process.table_address, snapshot.geometry, vma.start, vma.end)
            writable[own] = True
    written = huge | (((pte & Pte.EXCLUSIVE) != 0) & writable.reshape(pte.shape))
    used = zero | huge | young_pages(snapshot, process, young)
    bits: NDArray[np.uint8] = (present & used) * np.uint8(YOUNG)
    bits |= (present & written & ~zero) * np.uint8(WRITE | DIRTY)
    return bits


def young_pages(snapshot: Snapshot, process: ProcessTables, assumed: Young) -> NDArray[np.bool_]:
    """Whether each PTE is taken to be young, as (n, PTRS).

    PG_referenced where it was seen. What smaps counts as referenced beyond that it does not
    name: taken are first the pages that stand alone in tables mostly swapped out, for they
    stayed or came back because they were used, then the mapping's others; evenly spread.
    """
    shape = process.pte.shape
    if assumed is not Young.CAPTURED:
        return np.full(shape, assumed is Young.ALL, np.bool_)
    seen = process.page_flag(Kpf.REFERENCED)
    young: NDArray[np.bool_] = np.zeros(shape, np.bool_) if seen is None else seen.copy()
    mapped = (process.pte & (Pte.PRESENT | Pte.ZERO)) == Pte.PRESENT
    young &= mapped
    flat_young, flat_mapped = young.reshape(-1), mapped.reshape(-1)
    swapped = np.count_nonzero(process.pte & Pte.SWAPPED, axis=1)
    mostly = swapped > np.count_nonzero(mapped, axis=1)
    alone = (mapped & mostly[:, None]).reshape(-1)
    for vma in process.vmas:
        if not vma.captured or not vma.referenced:
            continue
        own = span(process.table_address, snapshot.geometry, vma.start, vma.end)
        part = flat_young[own]
        missing = (vma.referenced >> snapshot.geometry.page_shift) - int(part.sum())
        others = flat_mapped[own] & ~part
        for pages in (others & alone[own], others & ~alone[own]):
            missing -= _spread(missing, part, np.flatnonzero(pages))
    return young


def _spread(count: int, marks: NDArray[np.bool_], pages: NDArray[np.intp]) -> int:
    """Mark so many of the pages, evenly spread, or all; returns how many."""
    count = max(0, min(count, len(pages)))
    if count:
        marks[pages[np.arange(count) * len(pages) // count]] = True
    return count


def _shared_slots(snapshot: Snapshot) -> NDArray[np.uint64]:
    """Swap entries, as captured, that several page table entries name."""
    named = [
        process.pfn[(process.pte & Pte.SWAPPED) != 0]
        for process in snapshot.processes
        if process.pfn is not None
    ]
    slots, times = np.unique(np.concatenate([*named, np.zeros(0, np.uint64)]), return_counts=True)
    shared: NDArray[np.uint64] = slots[(times > 1) & (slots > 0)]
    return shared


def free_memory(snapshot: Snapshot) -> tuple[NodeState, ...]:
    """What each node has free, from buddyinfo; reclaimable memory is added as single frames."""
    blocks: dict[int, dict[int, int]] = {}
    for match in re.finditer(
        r"Node\s+(\d+), zone\s+\S+((?:\s+\d+)+)", str(snapshot.meta.get("buddyinfo"))
    ):
        node = blocks.setdefault(int(match[1]), {})
        for order, count in enumerate(match[2].split()):
            node[order] = node.get(order, 0) + int(count)
    if not blocks:
        return (NodeState(),)
    meminfo: Mapping[str, Any] = snapshot.meta.get("meminfo") or {}
    reclaimable = int(meminfo.get("MemAvailable") or 0) - int(meminfo.get("MemFree") or 0)
    pages = max(0, reclaimable) >> snapshot.geometry.page_shift
    for node in blocks.values():
        node[0] = node.get(0, 0) + pages // len(blocks)
    return tuple(NodeState(blocks.get(nid, {})) for nid in range(max(blocks) + 1))
