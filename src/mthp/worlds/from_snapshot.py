# SPDX-License-Identifier: GPL-2.0-or-later
"""A snapshot's arrays, with what the capture could not see assumed; every assumption is a sentence.

docs/decisions/0005-what-a-capture-cannot-see.md gives the reasons.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mthp.image.snapshot import (
    FolioState,
    Kpf,
    ProcessTables,
    Pte,
    PteBit,
    Snapshot,
    SnapshotVma,
)
from mthp.image.sparse import kept, over, picked
from mthp.mm import vm_flags as vm
from mthp.mm.page_alloc import NodeState
from mthp.mm.pgtable_types import DIRTY, WRITE, YOUNG
from mthp.words.reading import check_memory
from mthp.words.settings import NUMBERS
from mthp.words.units import Geometry, human_bytes
from mthp.worlds.arrays import (
    ImageMemcg,
    ImageProcess,
    ImageVma,
    TableArrays,
    WorldArrays,
    painted,
    span,
    spans,
)
from mthp.worlds.deduced import is_registered, is_taken_on, mm_flags
from mthp.worlds.free_memory import free_memory
from mthp.worlds.torn import ASSUMED_FLAGS, settled
from mthp.worlds.unseen import (
    Assumed,
    Leaning,
    Pages,
    Young,
    clean_lazyfree,
    given_up_pages,
    held_pages,
    hidden_pins,
    young_pages,
)

VM_FLAG_CODES = {
    "rd": vm.VM_READ, "wr": vm.VM_WRITE, "ex": vm.VM_EXEC, "sh": vm.VM_SHARED,
    "hg": vm.VM_HUGEPAGE, "nh": vm.VM_NOHUGEPAGE, "lo": vm.VM_LOCKED, "io": vm.VM_IO,
    "pf": vm.VM_PFNMAP, "mm": vm.VM_MIXEDMAP, "de": vm.VM_DONTEXPAND, "ht": vm.VM_HUGETLB,
    "dp": vm.VM_DROPPABLE, "uw": vm.VM_UFFD_WP, "um": vm.VM_UFFD_MISSING, "ur": vm.VM_UFFD_RWP,
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
NO_PINS = "no page is pinned or locked for a moment, but those the capture saw so"
NO_BATCHES = "every folio that was in a per-CPU LRU batch is taken to be on the LRU"
NO_PRCTL = (
    "no process keeps huge pages to advised mappings (PR_THP_DISABLE_EXCEPT_ADVISED), which shows only "
    "where others are eligible"
)
USUAL_ASSUMPTIONS = frozenset({YOUNG_AS_COUNTED, YOUNG_AS_FLAGGED, NO_PINS, NO_BATCHES, NO_PRCTL})
"""What is assumed of every capture, unless it is asked for otherwise."""

_LRU = np.uint64(1 << Kpf.LRU)


_SETTINGS = ("enabled", *(f"khugepaged/{name}" for name in ("defrag", *NUMBERS)))
"""Files of settings that every kernel has."""


_SYNCHRONOUS = re.compile(r"/dev/(zram|ram|pmem)\d")
"""Devices of /proc/swaps that have a page as soon as they are asked for it.
Kernel: BLK_FEAT_SYNCHRONOUS, in drivers/block/ and drivers/nvdimm/."""


def image_of_snapshot(snapshot: Snapshot, assumed: Assumed) -> WorldArrays:
    """The arrays of a snapshot; a process's are made when the builder comes to it."""
    snapshot, torn = settled(snapshot)
    shift = snapshot.geometry.page_shift
    memcgs: dict[str, ImageMemcg] = {}
    for process in snapshot.processes:
        memcg = _memcg(process, shift)
        if memcg is not None:
            memcgs.setdefault(memcg.name, memcg)
    swaps = str(snapshot.meta.get("swaps") or "").splitlines()[1:]
    nodes, free = free_memory(snapshot)
    seen = (_nodes(snapshot, process) for process in snapshot.processes)
    highest = max((int(each.max(initial=0)) for each in seen if each is not None), default=0)
    nodes += (NodeState({}),) * (highest + 1 - len(nodes))
    if len(nodes) > 1 and not snapshot.privilege.deep:
        free = "; ".join((*_nodes_open(snapshot), free))
    return WorldArrays(
        nodes=nodes,
        processes=_processes(snapshot, list(memcgs), assumed),
        memcgs=tuple(memcgs.values()),
        nr_cpus=max(1, int(snapshot.meta.get("cpus") or 1)),
        synchronous=all(_SYNCHRONOUS.match(line) for line in swaps),
        torn=torn,
        assumptions=(*_assumptions(snapshot, memcgs, assumed), free),
        cursor=_cursor(snapshot),
        distances=_distances(snapshot, len(nodes)),
        node_reclaim=bool((snapshot.meta.get("nodes") or {}).get("zone_reclaim_mode")),
    )


def _assumptions(
    snapshot: Snapshot, memcgs: Mapping[str, ImageMemcg], assumed: Assumed
) -> Iterator[str]:
    for name, memcg in memcgs.items():
        if memcg.reclaimable:
            yield (
                f"cgroup {name} at its limit gives back {memcg.reclaimable} pages of cache and "
                "slab, and swaps nothing out"
            )
        else:
            yield f"cgroup {name} reclaims nothing when it is at its limit"
    yield from _settings_hidden(snapshot)
    if assumed.young is Young.CAPTURED and not snapshot.privilege.deep:
        yield YOUNG_AS_FLAGGED if snapshot.privilege.kpageflags else YOUNG_AS_COUNTED
    elif assumed.young is not Young.CAPTURED:
        yield f"every page is taken to be {'young' if assumed.young is Young.ALL else 'old'}"
    if snapshot.privilege.deep:
        return
    if len(snapshot.processes) > 1:
        yield "khugepaged comes to the processes in the order in which they started"
    yield from _taken_off(snapshot, assumed)
    yield NO_PINS
    for process in snapshot.processes:
        hidden, piped = hidden_pins(process), sum(process.piped)
        if hidden:
            yield (
                f"process {process.pid} has pinned {human_bytes(hidden)} more (VmPin) than is known of: "
                "taken to lie together in its fullest tables, which are refused"
            )
        if piped:
            yield (
                f"{human_bytes(piped)} wait in pipes that process {process.pid} can write to: taken to be "
                "its own memory (vmsplice), for each pipe together in one of its fullest tables, which is "
                "refused"
            )
    yield NO_BATCHES
    if any(mm_flags(snapshot, process) is None for process in snapshot.processes):
        yield NO_PRCTL
    yield from _sharing(snapshot)
    if not snapshot.privilege.kpageflags:
        yield "every page is a folio of order 0, swap-backed and on the LRU"
    if any(process.kpagecount is None for process in snapshot.processes):
        yield "a page that is not mapped exclusively is shared by two processes"


def _taken_off(snapshot: Snapshot, assumed: Assumed) -> Iterator[str]:
    """Say which processes are taken not to be on khugepaged's list, and why."""
    of = [
        process.pid
        for process in snapshot.processes
        if is_registered(snapshot, process, assumed) is None
        if not is_taken_on(snapshot, process, assumed)
    ]
    if of:
        one = len(of) == 1
        yield (
            f"{f'process {of[0]} is' if one else f'{len(of)} of the processes are'} taken not to be on "
            f"khugepaged's list: {'it was' if one else 'they were'} there before any size was enabled, which "
            "registers nobody, and no large folio has come since (--registered yes)"
        )


def _settings_hidden(snapshot: Snapshot) -> Iterator[str]:
    """Say which settings could not be read."""
    hidden = [path for path in _SETTINGS if path not in snapshot.sysfs]
    if hidden:
        named = (
            "no setting"
            if len(hidden) == len(_SETTINGS)
            else f"not all settings ({', '.join(hidden)})"
        )
        yield (
            f"{named} could be read: they are the kernel's defaults where not given (--enabled, "
            "--max-ptes-none and the like)"
        )


def _sharing(snapshot: Snapshot) -> Iterator[str]:
    """What is assumed of large folios that several processes map, or did."""
    of = [
        process.pid
        for process in snapshot.processes
        if process.forked and process.folio_order is not None and process.folio_order.any()
    ]
    if of:
        whose = f"process {of[0]} is" if len(of) == 1 else f"{len(of)} of the processes are"
        yield (
            f"{whose} a fork's: large folios that it inherited may still count as shared when nobody "
            "else maps them, as a folio knows two processes; they are taken to be the first two"
        )


def _memcg(process: ProcessTables, shift: int) -> ImageMemcg | None:
    """The tightest limit above the process, in pages, and what it could give back."""
    known = process.meta.get("memcg")
    if not isinstance(known, dict) or not isinstance(known.get("limit"), int):
        return None
    pages = [int(known.get(key) or 0) >> shift for key in ("limit", "usage", "reclaimable")]
    return ImageMemcg(str(process.meta.get("cgroup") or "memcg"), *pages)


def _processes(snapshot: Snapshot, memcgs: list[str], assumed: Assumed) -> Iterator[ImageProcess]:
    by_age = sorted(snapshot.processes, key=lambda process: (process.started, process.pid))
    shared = _shared_slots(snapshot)
    next_frame = snapshot.geometry.ptrs_per_pte
    for process in snapshot.processes:
        memcg = _memcg(process, snapshot.geometry.page_shift)
        tables = _tables(snapshot, process, shared, assumed, next_frame)
        next_frame += process.pte.size
        yield ImageProcess(
            pid=process.pid,
            name=process.name,
            mm_flags=mm_flags(snapshot, process) or 0,
            memcg=None if memcg is None else memcgs.index(memcg.name),
            vmas=tuple(_vma(snapshot, process, vma) for vma in _named(process.vmas)),
            tables=tables,
            pins=() if process.refcount is not None else process.pins,
            age=1 + by_age.index(process) if process.forked else 0,
            lost=process.forked and assumed.leaning is Leaning.LEAST,
            place=_place(snapshot, process, assumed),
            mm_id=None if process.deep is None else process.deep.mm_id,
            empty_tables=_empty_tables(snapshot, process),
        )


def _cursor(snapshot: Snapshot) -> tuple[int, int] | None:
    """Where khugepaged goes on, if the capture says."""
    if not snapshot.privilege.deep or snapshot.meta["deep"]["at"] is None:
        return None
    return snapshot.meta["deep"]["at"], snapshot.meta["deep"]["address"]


def _distances(snapshot: Snapshot, nodes: int) -> tuple[tuple[int, ...], ...]:
    """The rows of node_distance(), by node; none where some nodes have none."""
    rows = (snapshot.meta.get("nodes") or {}).get("distance") or {}
    found = tuple(tuple(rows.get(f"node{nid}", ())) for nid in range(len(rows)))
    return found if nodes <= len(rows) and {*map(len, found)} == {len(rows)} else ()


def _empty_tables(snapshot: Snapshot, process: ProcessTables) -> tuple[int, ...]:
    """The tables of a deep capture with nothing in them. FileError: more than there is memory for."""
    ranges = () if process.deep is None else process.deep.empty_tables
    size = snapshot.geometry.pmd_size
    tables = [range(start, end, size) for start, end in ranges]
    check_memory(sum(map(len, tables)) * snapshot.geometry.page_size)
    known = {*process.table_address.tolist()}
    return tuple(at for each in tables for at in each if at not in known)


def _place(snapshot: Snapshot, process: ProcessTables, assumed: Assumed) -> int | None:
    """The place on khugepaged's list; None where the process is taken not to be there."""
    if not is_taken_on(snapshot, process, assumed):
        return None
    if process.deep is not None and process.deep.registered is not None:
        return process.deep.registered
    return assumed.places.get(process.pid, process.started)


def _named(vmas: Sequence[SnapshotVma]) -> Iterator[SnapshotVma]:
    """The mappings, with threads' stacks named so: MAP_STACK reserved them with what guards their end."""
    for guard, vma in pairwise((*vmas[:1], *vmas)):
        if (
            guard.end == vma.start
            and "nh" in guard.flags & vma.flags
            and not {"rd", "wr"} & guard.flags
            and guard.anonymous
            and vma.anonymous
            and not vma.name
        ):
            yield vma._replace(name="[thread stack]")
        else:
            yield vma


@cache
def _vm_flags(codes: frozenset[str]) -> int:
    """The bits of a VMA's codes."""
    flags = 0
    for code in codes:
        flags |= VM_FLAG_CODES.get(code, 0)
    return flags


def _vma(snapshot: Snapshot, process: ProcessTables, vma: SnapshotVma) -> ImageVma:
    """Make one mapping; those of files are kept so that addresses mean what they meant, and with the
    anonymous pages of private ones.

    A mapping with anonymous pages has an anon_vma, whatever smaps said a moment earlier.
    """
    flags = _vm_flags(vma.flags)
    written = vma.captured and bool(vma.anonymous_bytes or vma.swap_bytes)
    if vma.anon_vma is not None:
        written = vma.anon_vma
    elif vma.captured and not written:
        own = span(process.table_address, snapshot.geometry, vma.start, vma.end)
        pte = process.pte.reshape(-1)[own]
        written = bool(
            ((pte & np.uint16(Pte.PRESENT | Pte.ZERO | Pte.FILE)) == np.uint16(Pte.PRESENT)).any()
        )
    file = None if vma.anonymous else (vma.name or vma.skipped or "file")
    return ImageVma(vma.start, vma.end, flags, written, vma.name, file)


def _tables(
    snapshot: Snapshot,
    process: ProcessTables,
    shared: NDArray[np.uint64],
    assumed: Assumed,
    next_frame: int,
) -> TableArrays:
    """The arrays of one process. next_frame: numbers from here on are free for unseen frames."""
    if kept(process, "pfn") is None or kept(process, "kpageflags") is None:
        process = _unseen(snapshot, process, next_frame)
    assert process.folio_order is not None
    counts = kept(process, "kpagecount")
    if counts is None:
        counts = _unseen_counts(snapshot, process)
    pte = process.pte
    swapped = (pte & np.uint16(Pte.SWAPPED)) != 0
    if process.pte_bits is not None:
        exclusive = (process.pte_bits[swapped] & np.uint8(PteBit.EXCLUSIVE)) != 0
        soft_dirty = np.where(
            process.pte_bits & np.uint8(PteBit.SOFT_DIRTY), int(Pte.SOFT_DIRTY), 0
        )
        pte = (pte & ~np.uint16(Pte.SOFT_DIRTY)) | soft_dirty.astype(np.uint16)
    elif swapped.any():
        pte, exclusive = pte.copy(), ~np.isin(picked(process, "pfn", swapped), shared)
    if swapped.any():
        pte[swapped] |= np.where(exclusive, int(Pte.EXCLUSIVE), 0).astype(np.uint16)
    kpageflags = kept(process, "kpageflags") if process.deep is None else drained(process)
    return TableArrays(
        table_address=process.table_address,
        pte=pte,
        bits=_bits(snapshot, process, assumed),
        pfn=kept(process, "pfn"),
        kpageflags=over(kpageflags, partial(_flags, batches=process.deep is None, assumed=assumed)),
        kpagecount=counts,
        folio_order=process.folio_order,
        references=_references(process, assumed, snapshot.geometry),
        mm_ids=process.mm_ids,
        mm_id_mapcounts=process.mm_id_mapcounts,
        node=_nodes(snapshot, process),
        young=_folios_young(process, assumed),
        queued=_queued(process),
        zero_filled=None if process.zero_filled is None else process.zero_filled != 0,
    )


def _flags(
    kpageflags: NDArray[np.uint64], *, batches: bool, assumed: Assumed
) -> NDArray[np.uint64]:
    """The flags that pages are taken to have. batches: those of the CPUs are taken to be drained.

    Compound tails carry no LRU flag of their own.
    """
    anon = kpageflags >> np.uint64(Kpf.ANON) & np.uint64(1)
    if batches:
        kpageflags = kpageflags | anon * _LRU
    if assumed.young is Young.NONE:
        kpageflags = kpageflags & ~np.uint64(1 << Kpf.REFERENCED)
    merged = kpageflags >> np.uint64(Kpf.KSM) & np.uint64(1)
    if (merged >= anon).all():  # Linux 6.18 shows every anonymous page as merged by KSM
        kpageflags = kpageflags & ~np.uint64(1 << Kpf.KSM)
    return kpageflags


def _queued(process: ProcessTables) -> Pages | None:
    """Which pages' folios are on the deferred-split queue, as a deep capture tells."""
    if process.folio_state is None:
        return None
    queued: Pages = (process.folio_state & np.uint16(FolioState.ON_DEFERRED_LIST)) != 0
    return queued


def _folios_young(process: ProcessTables, assumed: Assumed) -> Pages | None:
    """Which pages' folios have PG_young, which reading page_idle's bitmap leaves; a plain capture has it
    among what smaps counts as referenced."""
    if process.folio_state is None or assumed.young is not Young.CAPTURED:
        return None
    young: Pages = (process.folio_state & np.uint16(FolioState.YOUNG)) != 0
    return young


def _nodes(snapshot: Snapshot, process: ProcessTables) -> NDArray[np.uint8] | None:
    """The NUMA node of each page; by mapping, that which has the most of its pages, in plain captures."""
    if process.node is not None or not any(vma.nodes for vma in process.vmas):
        return process.node
    nodes = np.zeros(process.pte.size, np.uint8)
    for vma in process.vmas:
        if vma.nodes:
            own = span(process.table_address, snapshot.geometry, vma.start, vma.end)
            nodes[own] = max(vma.nodes, key=lambda each: each[1])[0]
    return nodes.reshape(process.pte.shape)


def _nodes_open(snapshot: Snapshot) -> Iterator[str]:
    """Say what a plain capture leaves open of the nodes that pages lie on."""
    captured = [vma for each in snapshot.processes for vma in each.vmas if vma.captured]
    if not any(vma.nodes for vma in captured):
        yield "every page is taken to lie on node 0"
    elif split := sum(len(vma.nodes) > 1 for vma in captured):
        yield (
            f"the pages of {split} mappings lie on several nodes (numa_maps): each is taken to lie on that "
            "with the most of its mapping"
        )


def drained(process: ProcessTables) -> NDArray[np.uint64]:
    """The kpageflags of a deep capture when the CPUs' batches have been drained, as every wakeup of
    khugepaged begins.

    Kernel: mm/folio.c, lru_add(), lru_activate(), lru_deactivate(), lru_lazyfree().
    """
    assert process.kpageflags is not None and process.folio_state is not None
    flags = process.kpageflags.copy()

    state = process.folio_state

    def waits(batch: FolioState, needs: Kpf, *excluded: Kpf) -> NDArray[np.bool_]:
        """Whether each folio waits there to be changed, as it has a flag and none of others."""
        bad = np.uint64(sum(1 << kpf for kpf in excluded))
        found: NDArray[np.bool_] = (state & np.uint16(batch)) != 0
        found &= (flags >> np.uint64(needs) & np.uint64(1) != 0) & (flags & bad == 0)
        return found

    used = np.uint64(1 << Kpf.ACTIVE | 1 << Kpf.REFERENCED)
    flags[waits(FolioState.LRU_ADD, Kpf.ANON)] |= _LRU
    flags[waits(FolioState.LRU_ACTIVATE, Kpf.LRU, Kpf.UNEVICTABLE)] |= np.uint64(1 << Kpf.ACTIVE)
    flags[waits(FolioState.LRU_DEACTIVATE, Kpf.ACTIVE, Kpf.UNEVICTABLE)] &= ~used
    given_up = waits(FolioState.LRU_LAZYFREE, Kpf.SWAPBACKED, Kpf.SWAPCACHE, Kpf.UNEVICTABLE)
    flags[given_up] &= ~(used | np.uint64(1 << Kpf.SWAPBACKED))
    return flags


_BATCHES = (
    FolioState.LRU_ADD, FolioState.LRU_DEACTIVATE, FolioState.LRU_LAZYFREE, FolioState.LRU_ACTIVATE,
    FolioState.MLOCK,
)  # fmt: skip


def _references(
    process: ProcessTables, assumed: Assumed, geometry: Geometry
) -> NDArray[np.int64] | None:
    """What each page's folio is referenced beyond mappings, the swap cache and the batches it waits in."""
    if process.refcount is None or process.folio_mapcount is None or process.folio_state is None:
        held = held_pages(process, assumed, geometry)
        return held.astype(np.int64) if held.any() else None
    cached = process.page_flag(Kpf.SWAPCACHE)
    assert cached is not None and process.folio_order is not None
    explained = process.folio_mapcount.astype(np.int64)
    explained += cached.astype(np.int64) << process.folio_order
    for batch in _BATCHES:
        explained += (process.folio_state & np.uint16(batch)) != 0
    more: NDArray[np.int64] = np.maximum(process.refcount.astype(np.int64) - explained, 0)
    return more


def _unseen(snapshot: Snapshot, process: ProcessTables, next_frame: int) -> ProcessTables:
    """Assume, without root, that each mapped page is a folio of order 0, but under a huge PMD."""
    pte = process.pte
    here = (pte & np.uint16(Pte.PRESENT | Pte.ZERO)) == np.uint16(Pte.PRESENT)
    huge = here & ((pte & np.uint16(Pte.HUGE)) != 0).all(axis=1)[:, None]
    flags = np.where(here, ASSUMED_FLAGS, 0).astype(np.uint64)
    frames = next_frame + np.arange(pte.size, dtype=np.uint64).reshape(pte.shape)
    return replace(
        process,
        pfn=np.where(here, frames, 0).astype(np.uint64),
        kpageflags=flags,
        folio_order=np.where(huge, snapshot.geometry.pmd_order, 0).astype(np.uint8),
    )


def _unseen_counts(snapshot: Snapshot, process: ProcessTables) -> NDArray[np.uint32]:
    """Assume that two processes map what this one does not map alone, but by a huge PMD."""
    here = (process.pte & np.uint16(Pte.PRESENT | Pte.ZERO)) == np.uint16(Pte.PRESENT)
    counts: NDArray[np.uint32] = here.astype(np.uint32)
    if snapshot.privilege.exclusive:
        huge = ((process.pte & np.uint16(Pte.HUGE)) != 0).all(axis=1)[:, None]
        counts[here & ~huge & ((process.pte & np.uint16(Pte.EXCLUSIVE)) == 0)] = 2
    return counts


def _bits(snapshot: Snapshot, process: ProcessTables, assumed: Assumed) -> NDArray[np.uint8]:
    """The WRITE, YOUNG and DIRTY bits of every entry that maps something."""
    pte = process.pte
    present, zero = (pte & np.uint16(Pte.PRESENT)) != 0, (pte & np.uint16(Pte.ZERO)) != 0
    if process.pte_bits is not None:
        bits: NDArray[np.uint8] = np.zeros(pte.shape, np.uint8)
        for seen, bit in ((PteBit.WRITABLE, WRITE), (PteBit.YOUNG, YOUNG), (PteBit.DIRTY, DIRTY)):
            bits |= np.where(process.pte_bits & np.uint8(seen), bit, 0).astype(np.uint8)
        if assumed.young is not Young.CAPTURED:
            bits &= ~np.uint8(YOUNG)
            bits |= (present & (assumed.young is Young.ALL)) * np.uint8(YOUNG)
        return bits
    huge = ((pte & np.uint16(Pte.HUGE)) != 0).all(axis=1)[:, None]
    ranges = ((vma.start, vma.end) for vma in process.vmas if "wr" in vma.flags)
    starts, ends = spans(process.table_address, snapshot.geometry, ranges)
    writable = painted(pte.size, starts, ends, np.ones(len(starts), np.bool_))
    written = huge | (((pte & np.uint16(Pte.EXCLUSIVE)) != 0) & writable.reshape(pte.shape))
    used = zero | huge | young_pages(snapshot, process, assumed)
    clean = clean_lazyfree(snapshot, process, assumed.leaning)
    bits = (present & used) * np.uint8(YOUNG)
    bits |= (present & written & ~zero) * np.uint8(WRITE)
    bits |= (((present & written & ~zero) | given_up_pages(process)) & ~clean) * np.uint8(DIRTY)
    return bits


def _shared_slots(snapshot: Snapshot) -> NDArray[np.uint64]:
    """Swap entries, as captured, that several page table entries name."""
    named = [
        picked(process, "pfn", (process.pte & np.uint16(Pte.SWAPPED)) != 0)
        for process in snapshot.processes
        if kept(process, "pfn") is not None
    ]
    slots, times = np.unique(np.concatenate([*named, np.zeros(0, np.uint64)]), return_counts=True)
    shared: NDArray[np.uint64] = slots[(times > 1) & (slots > 0)]
    return shared
