# SPDX-License-Identifier: GPL-2.0-or-later
"""Put a snapshot of real processes into a world, whole tables at a time.

What the capture could not see is assumed, and every assumption is said (`Assumptions.said`).
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mthp.image.snapshot import Kpf, ProcessTables, Pte, Snapshot, SnapshotVma
from mthp.khugepaged.daemon import Khugepaged
from mthp.mm.mm_types import MMF_DISABLE_THP_COMPLETELY, Kernel, Mm
from mthp.mm.page_alloc import NodeState
from mthp.mm.page_counter import MemCgroup
from mthp.mm.pgtable_types import (
    DIRTY,
    KIND_SHIFT,
    PFN_SHIFT,
    PRESENT,
    SOFT_DIRTY,
    SPECIAL,
    SWP_EXCLUSIVE,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
)
from mthp.mm.swap_table import swp_entry
from mthp.mm.vm_flags import (
    VM_DONTEXPAND,
    VM_DROPPABLE,
    VM_EXEC,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_IO,
    VM_LOCKED,
    VM_MERGEABLE,
    VM_MIXEDMAP,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_SOFTDIRTY,
    VM_UFFD_MISSING,
    VM_UFFD_WP,
    VM_WRITE,
)
from mthp.words.profiles import Profile
from mthp.words.settings import Settings
from mthp.worlds.build import BuiltWorld, map_huge, table_at
from mthp.worlds.image_frames import ASSUMED_FLAGS, Assumptions, ImageFrames, Young

VM_FLAG_CODES = {
    "rd": VM_READ, "wr": VM_WRITE, "ex": VM_EXEC, "sh": VM_SHARED, "hg": VM_HUGEPAGE,
    "nh": VM_NOHUGEPAGE, "lo": VM_LOCKED, "io": VM_IO, "pf": VM_PFNMAP, "mm": VM_MIXEDMAP,
    "de": VM_DONTEXPAND, "ht": VM_HUGETLB, "dp": VM_DROPPABLE, "uw": VM_UFFD_WP,
    "um": VM_UFFD_MISSING, "ui": VM_UFFD_MISSING, "sd": VM_SOFTDIRTY, "mg": VM_MERGEABLE,
}  # fmt: skip
"""VmFlags codes of smaps. Kernel: fs/proc/task_mmu.c, show_smap_vma_flags()."""

_SPECIAL_SWAP_TYPE = 24


class ImageBuilder:
    """Builds the world of one snapshot."""

    def __init__(
        self, snapshot: Snapshot, settings: Settings, profile: Profile, assume: Assumptions
    ) -> None:
        self.snapshot = snapshot
        self.assume = assume
        self.kernel = Kernel(
            settings,
            profile,
            nr_cpus=max(1, int(snapshot.meta.get("cpus") or 1)),
            nodes=free_memory(snapshot),
        )
        self.mem = self.kernel.mem
        swaps = str(snapshot.meta.get("swaps") or "").splitlines()[1:]
        self.kernel.swap.synchronous = all("zram" in line for line in swaps)
        self.khugepaged = Khugepaged(self.kernel)
        self.shared_slots = _shared_slots(snapshot)
        self.folios = ImageFrames(snapshot, self.kernel, assume)

    def build(self) -> BuiltWorld:
        """All processes, registered with khugepaged in the order captured."""
        vmas = []
        for process in self.snapshot.processes:
            mm = self.kernel.new_mm(process.pid, process.name, self.memcg(process))
            if process.thp_disabled:
                mm.mm_flags_set(MMF_DISABLE_THP_COMPLETELY)
            vmas += [self.add_vma(mm, image) for image in process.vmas]
            self.fill(mm, process)
            self.khugepaged.khugepaged_enter(mm)
        self.folios.finish_large()
        self.say()
        self.kernel.vmstat.mthp.clear()
        return BuiltWorld(self.kernel, self.khugepaged, vmas)

    def say(self) -> None:
        """Put the assumptions into words."""
        said = self.assume.said
        if self.assume.young is not Young.CAPTURED:
            said.append(
                f"every page is taken to be {'young' if self.assume.young is Young.ALL else 'old'}"
            )
        else:
            flagged = "pages with PG_referenced, and " if self.snapshot.privilege.kpageflags else ""
            said.append(
                f"young are {flagged}as many pages as smaps counts as referenced in a mapping, "
                "spread evenly"
            )
        said.append("no page is pinned or locked for a moment, but those the capture saw locked")
        said.append(self.assume.lru_batches)
        if not self.snapshot.privilege.kpageflags:
            said.append("every page is a folio of order 0, swap-backed and on the LRU")
            said.append("a page that is not mapped exclusively is shared by two processes")

    def memcg(self, process: ProcessTables) -> MemCgroup | None:
        """The tightest limit above the process, in pages, and what it could give back."""
        known = process.meta.get("memcg")
        if not isinstance(known, dict) or not isinstance(known.get("limit"), int):
            return None
        shift = self.kernel.geometry.page_shift
        name = str(process.meta.get("cgroup") or "memcg")
        for memcg in self.kernel.memcgs:
            if memcg.name == name:
                return memcg
        limit, usage, spare = (
            int(known.get(key) or 0) >> shift for key in ("limit", "usage", "reclaimable")
        )
        self.assume.said.append(
            f"cgroup {name} at its limit gives back {spare} pages of cache and slab, and swaps "
            "nothing out"
            if spare
            else f"cgroup {name} reclaims nothing when it is at its limit"
        )
        memcg = self.kernel.new_memcg(name, limit, usage)
        memcg.reclaimable = spare
        return memcg

    def add_vma(self, mm: Mm, image: SnapshotVma) -> Any:
        """One mapping; file mappings are kept so that addresses mean what they meant."""
        flags = 0
        for code in image.flags:
            flags |= VM_FLAG_CODES.get(code, 0)
        file = None if image.anonymous else (image.name or image.skipped or "file")
        vma = mm.mmap(image.start, image.end, flags, file=file, name=image.name)
        if image.anonymous and (image.anonymous_bytes or image.swap_bytes):
            mm.link_anon_vma(vma)
        return vma

    def fill(self, mm: Mm, process: ProcessTables) -> None:
        """Every populated table of one process."""
        pte = process.pte
        huge_rows = ((pte & Pte.HUGE) != 0).all(axis=1)
        frames = self.folios.frames(mm, process, ~huge_rows)
        words = self.words(process, frames)
        for row, address in enumerate(process.table_address.tolist()):
            if huge_rows[row]:
                self.map_huge_row(mm, process, row, address)
                continue
            table = table_at(mm, address)
            table.ptes.raw[:] = type(table.ptes.raw)("Q", words[row].tobytes())
        self.link_by_pages(mm, process)

    def link_by_pages(self, mm: Mm, process: ProcessTables) -> None:
        """A mapping with anonymous pages has an anon_vma, whatever smaps said a moment earlier."""
        geometry = self.kernel.geometry
        anon = (process.pte & (Pte.PRESENT | Pte.ZERO | Pte.FILE)) == Pte.PRESENT
        rows, columns = np.nonzero(anon)
        addresses = process.table_address[rows] + (columns << geometry.page_shift).astype(np.uint64)
        for vma in mm.vmas:
            if vma.file is None and vma.anon_vma is None:
                at = np.searchsorted(addresses, np.uint64(vma.vm_start))
                if at < len(addresses) and int(addresses[at]) < vma.vm_end:
                    mm.link_anon_vma(vma)

    def map_huge_row(self, mm: Mm, process: ProcessTables, row: int, address: int) -> None:
        """A range that is mapped by its PMD."""
        bits = int(process.pte[row, 0])
        flags = YOUNG | (SOFT_DIRTY if bits & Pte.SOFT_DIRTY else 0)
        if bits & Pte.ZERO:
            map_huge(mm, address, 0, flags)
            return
        order = self.kernel.geometry.pmd_order
        if process.pfn is not None and process.kpageflags is not None:
            here = np.zeros(process.pte.shape, np.bool_)
            here[row, 0] = True
            head = self.folios.large_folio(
                mm, int(process.pfn[row, 0]), order, int(self.folios.page_flags(process, here)[0])
            )
        else:
            head = self.folios.large_folio(mm, -address - (mm.number << 52), order, ASSUMED_FLAGS)
        self.mem.entire_mapcount.raw[head] += 1
        mine = self.folios.mappings[head]
        mine[mm.number] = mine.get(mm.number, 0) + 1
        map_huge(mm, address, head, flags | WRITE | DIRTY)

    def words(self, process: ProcessTables, frames: NDArray[np.int64]) -> NDArray[np.uint64]:
        """(n, PTRS) the PTE words."""
        pte = process.pte.astype(np.int64)
        present = (pte & Pte.PRESENT) != 0
        zero = present & ((pte & Pte.ZERO) != 0)
        words = np.where(present, frames << PFN_SHIFT | PRESENT, 0)
        words |= np.where(zero, SPECIAL | YOUNG, 0)
        mapped = present & ~zero
        words |= np.where(mapped & self.young(process), YOUNG, 0)
        exclusive = (pte & Pte.EXCLUSIVE) != 0
        words |= np.where(mapped & exclusive & self.writable(process), WRITE | DIRTY, 0)
        words |= np.where((pte & Pte.SOFT_DIRTY) != 0, SOFT_DIRTY, 0) * (pte != 0)
        words |= np.where((pte & Pte.UFFD_WP) != 0, UFFD_WP, 0)
        swapped = np.argwhere((pte & Pte.SWAPPED) != 0)
        for row, column in swapped.tolist():
            words[row, column] = self.swap_word(process, row, column)
        return words.astype(np.uint64)

    def young(self, process: ProcessTables) -> NDArray[np.bool_]:
        """(n, PTRS) whether the PTE is taken to be young.

        PG_referenced where it was seen. What smaps counts as referenced beyond that it does not
        name: taken are first the pages that stand alone in tables mostly swapped out, for they
        stayed or came back because they were used, then the mapping's others; evenly spread.
        """
        shape = process.pte.shape
        if self.assume.young is not Young.CAPTURED:
            return np.full(shape, self.assume.young is Young.ALL, np.bool_)
        seen = process.page_flag(Kpf.REFERENCED)
        young: NDArray[np.bool_] = np.zeros(shape, np.bool_) if seen is None else seen.copy()
        mapped = (process.pte & (Pte.PRESENT | Pte.ZERO)) == Pte.PRESENT
        young &= mapped
        flat_young, flat_mapped = young.reshape(-1), mapped.reshape(-1)
        swapped = np.count_nonzero(process.pte & Pte.SWAPPED, axis=1)
        mostly = swapped > np.count_nonzero(mapped, axis=1)
        alone = (mapped & mostly[:, None]).reshape(-1)
        addresses = self.addresses(process).reshape(-1)
        for vma in process.vmas:
            if not vma.anonymous or not vma.referenced:
                continue
            first, end = np.searchsorted(addresses, [vma.start, min(vma.end, 2**63 - 1)])
            part = flat_young[first:end]
            missing = (vma.referenced >> self.kernel.geometry.page_shift) - int(part.sum())
            others = flat_mapped[first:end] & ~part
            for pages in (others & alone[first:end], others & ~alone[first:end]):
                missing -= _spread(missing, part, np.flatnonzero(pages))
        return young

    def addresses(self, process: ProcessTables) -> NDArray[np.int64]:
        """(n, PTRS) the address of each PTE."""
        geometry = self.kernel.geometry
        offsets = np.arange(geometry.ptrs_per_pte, dtype=np.int64) << geometry.page_shift
        return process.table_address.astype(np.int64)[:, None] + offsets

    def writable(self, process: ProcessTables) -> NDArray[np.bool_]:
        """(n, PTRS) whether the PTE's mapping may be written."""
        return self.by_vma(process, ["wr" in vma.flags for vma in process.vmas])

    def by_vma(self, process: ProcessTables, values: list[bool]) -> NDArray[np.bool_]:
        """(n, PTRS) each PTE's value by its VMA."""
        if not process.vmas:
            return np.zeros(process.pte.shape, np.bool_)
        addresses = self.addresses(process)
        starts = np.array([min(vma.start, 2**63 - 1) for vma in process.vmas], np.int64)
        at = np.searchsorted(starts, addresses, side="right") - 1
        answer: NDArray[np.bool_] = np.array(values, np.bool_)[np.maximum(at, 0)]
        return answer

    def swap_word(self, process: ProcessTables, row: int, column: int) -> int:
        """A non-present entry: a slot, a guard, a marker or poison."""
        bits = int(process.pte[row, column])
        marks = (SOFT_DIRTY if bits & Pte.SOFT_DIRTY else 0) | (
            UFFD_WP if bits & Pte.UFFD_WP else 0
        )
        if bits & Pte.GUARD:
            return Leaf.GUARD << KIND_SHIFT
        if bits & Pte.MIGRATION:
            return Leaf.MIGRATION << KIND_SHIFT | marks
        captured = int(process.pfn[row, column]) if process.pfn is not None else 0
        if captured and captured & 31 >= _SPECIAL_SWAP_TYPE:
            kind = Leaf.UFFD_WP_MARKER if marks & UFFD_WP else Leaf.HWPOISON
            return kind << KIND_SHIFT | marks
        slot = swp_entry(captured & 31, captured >> 5) if captured else self.folios.new_slot()
        self.kernel.swap.hold(slot)
        exclusive = 0 if captured in self.shared_slots else SWP_EXCLUSIVE
        return slot << PFN_SHIFT | Leaf.SWAP << KIND_SHIFT | marks | exclusive


def _spread(count: int, marks: NDArray[np.bool_], pages: NDArray[np.intp]) -> int:
    """Mark so many of the pages, evenly spread, or all; how many that are."""
    count = max(0, min(count, len(pages)))
    if count:
        marks[pages[np.arange(count) * len(pages) // count]] = True
    return count


def _shared_slots(snapshot: Snapshot) -> frozenset[int]:
    """Swap entries, as captured, that several page table entries name."""
    named = [
        process.pfn[(process.pte & Pte.SWAPPED) != 0]
        for process in snapshot.processes
        if process.pfn is not None
    ]
    if not named:
        return frozenset()
    slots, times = np.unique(np.concatenate(named), return_counts=True)
    return frozenset(slots[(times > 1) & (slots > 0)].tolist())


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
    meminfo = snapshot.meta.get("meminfo") or {}
    reclaimable = int(meminfo.get("MemAvailable") or 0) - int(meminfo.get("MemFree") or 0)
    pages = max(0, reclaimable) >> snapshot.geometry.page_shift
    for node in blocks.values():
        node[0] = node.get(0, 0) + pages // len(blocks)
    return tuple(NodeState(blocks.get(nid, {})) for nid in range(max(blocks) + 1))


def build_image(
    snapshot: Snapshot, settings: Settings, profile: Profile, assume: Assumptions
) -> BuiltWorld:
    """The world of a snapshot, registered with khugepaged."""
    return ImageBuilder(snapshot, settings, profile, assume).build()
