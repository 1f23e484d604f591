# SPDX-License-Identifier: GPL-2.0-or-later
"""The one builder of worlds: an image's arrays become folios, tables and VMAs of a kernel.

A snapshot and a scenario come here in the same form (mthp.worlds.arrays), so that each fact is
derived once: which PG_* flag a kpageflags bit is, what a page-table entry's word is, and what the
mappings of a large folio add up to.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mthp.image.runs import special_swap
from mthp.image.scenario import Scenario
from mthp.image.scenario_values import ScenarioVma
from mthp.image.snapshot import Kpf, Pte, Snapshot
from mthp.khugepaged.daemon import Khugepaged
from mthp.mm import page_flags as pg
from mthp.mm.gup import PIN
from mthp.mm.mm_types import Kernel, Mm, PageTable, Vma
from mthp.mm.page_flags import ENTIRELY_MAPPED, PAGE_ANON_EXCLUSIVE, PAGE_HWPOISON
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import (
    PFN_SHIFT,
    PRESENT,
    PTE_FLAGS_MASK,
    SOFT_DIRTY,
    SPECIAL,
    SWP_EXCLUSIVE,
    UFFD_WP,
    Leaf,
    huge_pmd,
    leaf_pte,
    pmd_is_table,
    pmd_none,
    pmd_pgtable,
    pmd_present,
    pte_pfn,
    pte_present,
    table_pmd,
)
from mthp.mm.rmap import UNKNOWN_MM, new_anon_folio, share_large_folio
from mthp.mm.swap_table import swp_entry, unplaced_entry
from mthp.vectorised.twins import TWINS
from mthp.words.profiles import Profile
from mthp.words.settings import Settings
from mthp.words.units import Folio, Pfn
from mthp.worlds.arrays import (
    ImageProcess,
    ImageVma,
    TableArrays,
    WorldArrays,
    painted,
    span,
    spans,
)
from mthp.worlds.contents import note_contents
from mthp.worlds.from_scenario import image_of_scenario
from mthp.worlds.from_snapshot import image_of_snapshot
from mthp.worlds.mm_ids import known_by_age, known_by_id
from mthp.worlds.swap_cache import PG_OF_KPF, firsts_of_cached, unmapped_folio
from mthp.worlds.unseen import LIKELY, Assumed

_SPECIAL_LEAVES = {
    "hwpoison": Leaf.HWPOISON, "migration": Leaf.MIGRATION,
    "device": Leaf.DEVICE, "marker": Leaf.HWPOISON,
}  # fmt: skip
"""What swap types that are no device stand for. A marker is userfaultfd's, or stands for poison."""
_SWAP_TYPE_BITS = 5
_TABLES_AT_ONCE = 128
"""Tables whose frames are made together; what is needed for that lives no longer."""


@dataclass(slots=True)
class BuiltWorld:
    """A kernel, its daemon, and the mappings of the image in the image's order.

    torn: tables (pid, address) that changed while they were read. assumptions: sentences on what the
    image could not say.
    """

    kernel: Kernel
    khugepaged: Khugepaged
    vmas: list[Vma]
    torn: frozenset[tuple[int, int]] = frozenset()
    assumptions: tuple[str, ...] = ()


def build_world(
    image: Snapshot | Scenario,
    profile: Profile,
    settings: Settings | None = None,
    assumed: Assumed = LIKELY,
) -> BuiltWorld:
    """The world of an image, with khugepaged ready for its first pass.

    settings: those the image was captured with unless given. assumed: of what a snapshot leaves open; a
    scenario knows. Every page gets contents of its own (its frame's number).
    """
    if isinstance(image, Scenario):
        settings = settings or image.settings
    elif settings is None:
        settings = Settings.from_sysfs(image.sysfs, image.geometry)
    return build_arrays(arrays_of(image, assumed), settings, profile)


def arrays_of(image: Snapshot | Scenario, assumed: Assumed = LIKELY) -> WorldArrays:
    """The arrays of an image, whichever it is."""
    if isinstance(image, Scenario):
        return image_of_scenario(image)
    return image_of_snapshot(image, assumed)


def build_arrays(arrays: WorldArrays, settings: Settings, profile: Profile) -> BuiltWorld:
    """As build_world(), of an image's arrays."""
    return _Builder(arrays, settings, profile).build()


def table_at(mm: Mm, address: int) -> PageTable:
    """Find the page table of address, or make it. Not a step; ValueError under a huge PMD."""
    pmd = pmd_ptr(mm, address, create=True)
    assert pmd is not None
    value = pmd.page.pmds.raw[pmd.slot]
    if pmd_none(value):
        table = mm.kernel.new_table()
        pmd.page.pmds.raw[pmd.slot] = table_pmd(table.number)
        return table
    if not pmd_is_table(value):
        raise ValueError(f"no page table at {address:#x}: the PMD holds something else")
    return mm.kernel.tables[pmd_pgtable(value)]


def map_huge(mm: Mm, address: int, pfn: int, flags: int) -> None:
    """Map a PMD-sized folio at address, with a deposited table. Not a step."""
    pmd = pmd_ptr(mm, address, create=True)
    assert pmd is not None
    if not pmd_none(pmd.page.pmds.raw[pmd.slot]):
        raise ValueError(f"the PMD of {address:#x} is taken")
    pmd.page.pmds.raw[pmd.slot] = huge_pmd(pfn, flags)
    pmd.page.deposited.setdefault(pmd.slot, []).append(mm.kernel.new_table().number)


def mapped_frame(mm: Mm, address: int) -> int | None:
    """The frame that address maps now, 0 for the zero page, None for nothing. Not a step."""
    geometry = mm.geometry
    pmd = pmd_ptr(mm, address)
    value = pmd.page.pmds.raw[pmd.slot] if pmd is not None else 0
    if not pmd_present(value):
        return None
    if not pmd_is_table(value):
        head = pte_pfn(value)
        return head and head + geometry.pte_index(address)
    entry = mm.kernel.tables[pmd_pgtable(value)].ptes.raw[geometry.pte_index(address)]
    return pte_pfn(entry) if pte_present(entry) else None


@dataclass(slots=True)
class _Mapped:
    """The mapped pages of some tables, one value of each array a page.

    first: the page of the mapping at which the folio begins, or would. anon_vma: a number.
    """

    pfn: NDArray[np.int64]
    order: NDArray[np.uint8]
    flags: NDArray[np.int64]
    counts: NDArray[np.int64]
    poisoned: NDArray[np.bool_]
    anon_vma: NDArray[np.int32]
    address: NDArray[np.uint64]
    mm_ids: NDArray[np.uint64]
    mm_id_mapcounts: NDArray[np.uint64]
    node: NDArray[np.uint8]

    @property
    def head(self) -> NDArray[np.int64]:
        """The image's number of each folio's first frame."""
        return self.pfn >> self.order << self.order

    def of(self, which: NDArray[np.bool_]) -> _Mapped:
        """Choose some of the pages."""
        return _Mapped(*(getattr(self, name)[which] for name in _Mapped.__slots__))


def _or_zeroes(column: NDArray[Any] | None, here: NDArray[np.bool_]) -> NDArray[Any]:
    """The values of some pages; zeroes where the image has none."""
    return np.zeros(np.count_nonzero(here), np.uint8) if column is None else column[here]


@dataclass(slots=True)
class _LargeFolio:
    """How a large folio is mapped in this world. visible: mm number -> mappings, a PMD's being one.
    mm_ids: the words of TableArrays.mm_ids and mm_id_mapcounts, 0 where the image has none.
    """

    mm_ids: tuple[int, int]
    visible: Counter[int] = field(default_factory=Counter)
    pmds: int = 0


class _Builder:
    """Builds the world of one image.

    heads: the image's head frame -> our folio, for folios that may be met again. large: our large
    folios. by_ptes: pages of large folios that PTEs of this world map, as often as they do. processes:
    mm number -> its process. references: pages, and what their folios are referenced beyond the usual.
    """

    def __init__(self, image: WorldArrays, settings: Settings, profile: Profile) -> None:
        self.image = image
        self.kernel = Kernel(
            settings, profile, nr_cpus=image.nr_cpus, nodes=image.nodes, twins=TWINS
        )
        self.mem = self.kernel.mem
        self.geometry = self.kernel.geometry
        self.kernel.swap.synchronous = image.synchronous
        self.kernel.distances = image.distances
        self.kernel.node_reclaim = image.node_reclaim
        self.heads: dict[int, int] = {}
        self.large: dict[Folio, _LargeFolio] = {}
        self.by_ptes: list[NDArray[np.int32]] = []
        self.processes: dict[int, ImageProcess] = {}
        self.references: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self.next_slot = 1
        self.shared_slots: dict[int, int] = {}
        self.cached: list[tuple[Folio, int, int]] = []
        self.named: dict[int, tuple[Mm, int]] = {}

    def build(self) -> BuiltWorld:
        """Build all processes, those registered with khugepaged in the image's order."""
        kernel = self.kernel
        for each in self.image.memcgs:
            kernel.new_memcg(each.name, each.limit, each.usage).reclaimable = each.reclaimable
        built: list[tuple[ImageVma, Vma]] = []
        pinned: list[tuple[Mm, NDArray[np.uint64]]] = []
        for process in self.image.processes:
            memcg = None if process.memcg is None else kernel.memcgs[process.memcg]
            mm = kernel.new_mm(process.pid, process.name, memcg)
            mm.mm_flags_set(process.mm_flags)
            self.processes[mm.number] = process
            built += [(vma, self.add_vma(mm, vma)) for vma in process.vmas]
            self.fill(mm, process)
            for address in process.empty_tables:
                table_at(mm, address)
            pinned += [(mm, self.mapped_in(process.tables, *pin)) for pin in process.pins]
        self.finish_large()
        self.finish_references()
        self.finish_swap()
        for mm, addresses in pinned:
            frames = (mapped_frame(mm, address) for address in addresses.tolist())
            self.pin(dict.fromkeys(self.mem.head.raw[pfn] for pfn in frames if pfn))
        for image, vma in built:
            if image.known is not None:
                self.add_references(image.known, vma)
        khugepaged = Khugepaged(kernel)
        self.register(khugepaged)
        kernel.vmstat.mthp.clear()
        built.sort(key=lambda pair: pair[0].place)
        vmas = [vma for _, vma in built]
        return BuiltWorld(kernel, khugepaged, vmas, self.image.torn, self.image.assumptions)

    def register(self, khugepaged: Khugepaged) -> None:
        """Put the processes on khugepaged's list that are there, and the cursor where it stands."""
        places = [
            (process.place, mm)
            for mm in self.kernel.mms
            if (process := self.processes[mm.number]).place is not None
        ]
        places.sort(key=lambda each: each[0])
        for _, mm in places:
            khugepaged.khugepaged_enter(mm)
        if self.image.cursor is not None:
            at, address = self.image.cursor
            for place, mm in places:
                if place >= at:
                    khugepaged.mm_slot = mm
                    khugepaged.address = address if place == at else 0
                    break

    def add_vma(self, mm: Mm, image: ImageVma) -> Vma:
        """Add one mapping."""
        vma = mm.mmap(image.start, image.end, image.vm_flags, file=image.file, name=image.name)
        if image.anon_vma:
            mm.link_anon_vma(vma)
        return vma

    # Tables

    def fill(self, mm: Mm, process: ImageProcess) -> None:
        """Fill every populated table of one process, some at a time."""
        tables = process.tables
        linked = [(vma, vma.anon_vma.number) for vma in mm.vmas if vma.anon_vma is not None]
        ranges = ((vma.vm_start, vma.vm_end) for vma, _ in linked)
        starts, ends = spans(tables.table_address, self.geometry, ranges)
        numbers = np.array([number for _, number in linked], np.int32)
        anon_vmas = painted(tables.pte.size, starts, ends, numbers).reshape(tables.pte.shape)
        alone = (tables.pte & np.uint16(Pte.PRESENT | Pte.ZERO) == np.uint16(Pte.PRESENT)) & (
            tables.kpagecount < 2
        )
        self.mem.make_room(int(np.count_nonzero(alone)))
        for first in range(0, len(tables.table_address), _TABLES_AT_ONCE):
            rows = slice(first, first + _TABLES_AT_ONCE)
            self.fill_tables(mm, tables.rows(rows), anon_vmas[rows])

    def fill_tables(self, mm: Mm, tables: TableArrays, anon_vmas: NDArray[np.int32]) -> None:
        """Make frames, then entries, then the tables that hold them."""
        huge = ((tables.pte & np.uint16(Pte.HUGE)) != 0).all(axis=1)
        frames = self.frames(mm, tables, anon_vmas, huge)
        words = self.words(mm, tables, frames)
        for row, address in enumerate(tables.table_address.tolist()):
            if huge[row]:
                word = int(words[row, 0])
                map_huge(mm, address, pte_pfn(word), word & PTE_FLAGS_MASK & ~SPECIAL)
            else:
                table = table_at(mm, address)
                table.ptes.raw[:] = array("Q", words[row].tobytes())

    def words(self, mm: Mm, tables: TableArrays, frames: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Make the PTE words, as (n, PTRS)."""
        pte = tables.pte
        present, zero = (pte & np.uint16(Pte.PRESENT)) != 0, (pte & np.uint16(Pte.ZERO)) != 0
        words = np.where(present, frames << PFN_SHIFT | tables.bits | PRESENT, 0)
        words |= np.where(present & zero, SPECIAL, 0)
        populated = (pte & np.uint16(Pte.PRESENT | Pte.SWAPPED)) != 0
        words |= np.where(populated & ((pte & np.uint16(Pte.SOFT_DIRTY)) != 0), SOFT_DIRTY, 0)
        words |= np.where(populated & ((pte & np.uint16(Pte.UFFD_WP)) != 0), UFFD_WP, 0)
        page_size = self.geometry.page_size
        for row, column in np.argwhere((pte & np.uint16(Pte.SWAPPED)) != 0).tolist():
            words[row, column] = self.leaf(
                mm,
                int(pte[row, column]),
                int(words[row, column]),
                int(tables.pfn[row, column]),
                int(tables.table_address[row]) + column * page_size,
            )
        return words.astype(np.uint64)

    def leaf(self, mm: Mm, pte: int, marks: int, captured: int, address: int) -> int:
        """The word of an entry that is neither present nor none: a slot, a guard or a marker."""
        if pte & Pte.GUARD:
            return leaf_pte(Leaf.GUARD)
        swap_type, offset = captured & ((1 << _SWAP_TYPE_BITS) - 1), captured >> _SWAP_TYPE_BITS
        special = special_swap(swap_type)
        if special == "marker" and marks & UFFD_WP:
            return leaf_pte(Leaf.UFFD_WP_MARKER, 0, marks)
        if special is not None:
            return leaf_pte(_SPECIAL_LEAVES[special], 0, marks)
        entry = swp_entry(swap_type, offset) if offset else self.unplaced(swap_type, 1)
        self.kernel.swap.hold(entry)
        self.named[entry] = mm, address
        if pte & Pte.EXCLUSIVE:
            return leaf_pte(Leaf.SWAP, entry, marks | SWP_EXCLUSIVE)
        if offset:
            self.shared_slots[address] = entry
        return leaf_pte(Leaf.SWAP, entry, marks)

    def frames(
        self,
        mm: Mm,
        tables: TableArrays,
        anon_vmas: NDArray[np.int32],
        huge: NDArray[np.bool_],
    ) -> NDArray[np.int64]:
        """Make the frame each PTE maps, as (n, PTRS); 0 where it maps none or the zero page."""
        here = (tables.pte & np.uint16(Pte.PRESENT | Pte.ZERO)) == np.uint16(Pte.PRESENT)
        rows, columns = np.nonzero(here)
        raw = tables.kpageflags[here]
        flags = np.full(len(raw), pg.PG_UPTODATE, np.int64)
        for kpf, flag in PG_OF_KPF.items():
            flags |= np.where(raw >> np.uint64(kpf) & np.uint64(1), flag, 0)
        flags |= np.where(_or_zeroes(tables.young, here), pg.PG_YOUNG, 0)
        pages = _Mapped(
            tables.pfn[here].astype(np.int64),
            tables.folio_order[here],
            flags,
            np.maximum(tables.kpagecount[here].astype(np.int64), 1),
            raw >> np.uint64(Kpf.HWPOISON) & np.uint64(1) != 0,
            anon_vmas[here],
            tables.table_address[rows] + (columns << self.geometry.page_shift).astype(np.uint64),
            _or_zeroes(tables.mm_ids, here),
            _or_zeroes(tables.mm_id_mapcounts, here),
            _or_zeroes(tables.node, here),
        )
        frames = np.zeros(tables.pte.shape, np.int64)
        found = np.empty(len(raw), np.int64)
        small = pages.order == 0
        found[small] = self.small_frames(mm, pages.of(small))
        found[~small] = self.large_frames(mm, pages.of(~small), huge[rows[~small]])
        frames[here] = found
        note_contents(self.mem, tables, here, found)
        if tables.references is not None:
            self.references.append((found, tables.references[here]))
        in_cache = np.flatnonzero(flags & pg.PG_SWAPCACHE)
        for page, address in zip(
            found[in_cache].tolist(), pages.address[in_cache].tolist(), strict=True
        ):
            head = self.mem.head.raw[page]
            self.cached.append((head, page - head, address))
        return frames

    def small_frames(self, mm: Mm, pages: _Mapped) -> NDArray[np.int64]:
        """Make folios of order 0: one frame for each distinct PFN, also across processes."""
        distinct, first, inverse, uses = np.unique(
            pages.pfn, return_index=True, return_inverse=True, return_counts=True
        )
        known = np.array([self.heads.get(pfn, 0) for pfn in distinct.tolist()], np.int64)
        fresh = np.flatnonzero(known == 0)
        at = first[fresh]
        mapcounts = np.maximum(pages.counts[at], uses[fresh])
        mem = self.mem
        start = mem.append_frames(0, len(fresh))
        new = slice(start, start + len(fresh))
        known[fresh] = np.arange(new.start, new.stop)
        mem.head.view()[new] = known[fresh]
        mem.flags.view()[new] = pages.flags[at]
        mem.mapcount.view()[new] = mapcounts
        mem.refcount.view()[new] = mapcounts + (pages.flags[at] & pg.PG_SWAPCACHE != 0)
        mem.page_flags.view()[new] = self.page_flags(mapcounts, pages.poisoned[at])
        mem.content.view()[new] = known[fresh]
        mem.anon_vma.view()[new] = pages.anon_vma[at]
        mem.index.view()[new] = pages.address[at] >> np.uint64(self.geometry.page_shift)
        mem.memcg.view()[new] = mm.memcg.number if mm.memcg is not None else 0
        mem.nid.view()[new] = pages.node[at]
        for k in fresh[pages.counts[at] > 1].tolist():
            self.heads[int(distinct[k])] = int(known[k])
        found: NDArray[np.int64] = known[inverse]
        return found

    def page_flags(
        self, mapcounts: NDArray[np.int64], poisoned: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """Make the flags that belong to each page itself."""
        exclusive = np.where(mapcounts <= 1, PAGE_ANON_EXCLUSIVE, 0).astype(np.int64)
        return exclusive | np.where(poisoned, PAGE_HWPOISON, 0).astype(np.int64)

    def large_frames(self, mm: Mm, pages: _Mapped, huge: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Make the frames of pages of large folios; huge: which of them a PMD maps.

        The mapcount row keeps what the image says of a page, with PMDs, until finish_large().
        """
        if not len(pages.pfn):
            return np.zeros(0, np.int64)
        mem = self.mem
        all_heads = pages.head
        heads, first, inverse = np.unique(all_heads, return_index=True, return_inverse=True)
        for k in first.tolist():
            self.large_folio(mm, pages, k)
        ours = np.array([self.heads[head] for head in heads.tolist()], np.int64)
        found: NDArray[np.int64] = ours[inverse] + (pages.pfn - all_heads)
        counts = np.maximum(mem.mapcount.view()[found], pages.counts)
        mem.mapcount.view()[found] = counts
        mem.page_flags.view()[found] |= self.page_flags(counts, pages.poisoned).astype(np.uint8)
        self.by_ptes.append(found[~huge].astype(np.int32))
        uses = np.bincount(inverse[~huge], minlength=len(heads))
        pmds = np.bincount(inverse[huge], minlength=len(heads)) >> self.geometry.pmd_order
        for folio, ptes, entire in zip(ours.tolist(), uses.tolist(), pmds.tolist(), strict=True):
            large = self.large[folio]
            large.visible[mm.number] += ptes + entire
            large.pmds += entire
        return found

    def large_folio(self, mm: Mm, pages: _Mapped, k: int) -> None:
        """Make the folio of a page when it is met first; it is charged where mm is."""
        order = int(pages.order[k])
        head = int(pages.pfn[k]) >> order << order
        if head in self.heads:
            return
        mem = self.mem
        place = int(pages.address[k]) >> self.geometry.page_shift
        folio = self.heads[head] = new_anon_folio(
            mem,
            order,
            flags=int(pages.flags[k]),
            nid=int(pages.node[k]),
            mapcount=0,
            anon_vma=int(pages.anon_vma[k]),
            index=place - (int(pages.pfn[k]) - head),
        )
        mem.memcg.raw[folio] = mm.memcg.number if mm.memcg is not None else 0
        ids, counts = int(pages.mm_ids[k]), int(pages.mm_id_mapcounts[k])
        self.large[folio] = _LargeFolio(mm_ids=(ids, counts))

    def finish_large(self) -> None:
        """Set counts and sharing of every large folio, when all of its mappings have been met.

        Mappings that no process of this world has are another's: of the whole folio by a PMD as far
        as every page has one and we see a PMD of it here, of single pages otherwise.
        """
        mem = self.mem
        pages = np.concatenate([*self.by_ptes, np.zeros(0, np.int32)])
        met = np.bincount(pages, minlength=mem.nr_frames)
        numbers = {process.mm_id: number for number, process in self.processes.items()}
        for folio, large in self.large.items():
            nr = mem.folio_nr_pages(folio)
            counts, by_ptes = mem.mapcount.view()[folio : folio + nr], met[folio : folio + nr]
            seen = counts > 0
            others = np.maximum(counts - by_ptes - large.pmds, 0)[seen]
            other_pmds = int(others.min()) if large.pmds else 0
            entire = large.pmds + other_pmds
            counts[seen] = by_ptes[seen] + others - other_pmds
            ptes, mapped = int(counts.sum()), int(np.count_nonzero(counts))
            outside = int(others.sum()) - other_pmds * (len(others) - 1)
            swapcache = mem.flags.raw[folio] & pg.PG_SWAPCACHE
            mem.entire_mapcount.raw[folio] = entire
            mem.large_mapcount.raw[folio] = ptes + entire
            mem.nr_pages_mapped.raw[folio] = mapped + (ENTIRELY_MAPPED if entire else 0)
            mem.refcount.raw[folio] = ptes + entire + (nr if swapcache else 0)
            if outside:
                large.visible[UNKNOWN_MM] = outside
            known = (
                known_by_id(numbers, *large.mm_ids)
                if large.mm_ids[0]
                else known_by_age(self.processes, large.visible)
            )
            if known.shared:
                share_large_folio(mem, folio, known.mappings)
            elif known.mappings.keys() != large.visible.keys():
                mem.mm_mapcounts[folio] = known.mappings
            if not outside and not entire and 0 < mapped < nr and not swapcache:
                # Every mapping is in this world, so some of its pages have none: they were unmapped.
                mem.flags.raw[folio] |= pg.PG_PARTIALLY_MAPPED
                mem.deferred_split.add(folio, mem.sublist_of(folio))

    def finish_references(self) -> None:
        """Add what folios are referenced beyond their mappings and the swap cache."""
        more = np.zeros(self.mem.nr_frames, np.int32)
        for pages, references in self.references:
            np.maximum.at(more, self.mem.head.view()[pages], references.astype(np.int32))
        self.mem.refcount.view()[: len(more)] += more

    # Swap

    def unplaced(self, swap_type: int, nr: int) -> int:
        """Slots of their own for nr pages of unknown offset."""
        number, self.next_slot = self.next_slot, self.next_slot + nr
        return unplaced_entry(swap_type, number)

    def finish_swap(self) -> None:
        """Say who else names slots, and fill the swap cache."""
        swap = self.kernel.swap
        for entry, users in self.image.outside.items():
            swap.users[entry] += users
        firsts = firsts_of_cached(self.cached, self.shared_slots)
        for each in self.image.swap_cache:
            if each.pfn is None:
                unmapped = unmapped_folio(self.kernel, each, self.named)
                if unmapped is not None:
                    firsts[unmapped] = each.entry
            elif each.pfn in self.heads:
                firsts[Folio(Pfn(self.heads[each.pfn]))] = each.entry
        for folio, first in firsts.items():
            nr = self.mem.folio_nr_pages(folio)
            if first is None:
                first = self.unplaced(0, nr)
                if swap.synchronous:
                    # Another process names it: else it would not be in the swap cache any more.
                    swap.add_user(first)
            swap.add_to_cache(first, folio, nr)

    # References

    def add_references(self, known: ScenarioVma, vma: Vma) -> None:
        """Add pins, extra references, locks, poison and missing LRU membership, by page ranges."""
        mem = self.mem
        for pages in known.pins:
            self.pin(self.folios(vma, pages))
        for first, count, refs in known.extra_refs:
            for folio in self.folios(vma, (first, count)):
                mem.refcount.raw[folio] += refs
        for pages in known.locked:
            for folio in self.folios(vma, pages):
                mem.flags.raw[folio] |= pg.PG_LOCKED
        for pages in known.off_lru:
            for folio in self.folios(vma, pages):
                mem.flags.raw[folio] &= ~pg.PG_LRU
        for pages in known.poisoned:
            for pfn in self.mapped_frames(vma, pages):
                mem.page_flags.raw[pfn] |= PAGE_HWPOISON

    def pin(self, folios: Iterable[int]) -> None:
        """Pin each of some folios once."""
        mem = self.mem
        for folio in folios:
            mem.refcount.raw[folio] += 1 if mem.order.raw[folio] else PIN

    def mapped_in(self, tables: TableArrays, start: int, end: int) -> NDArray[np.uint64]:
        """The addresses in [start, end), in bytes, that map something."""
        own = span(tables.table_address, self.geometry, start, end)
        at = np.flatnonzero(tables.pte.reshape(-1)[own] & np.uint16(Pte.PRESENT)) + own.start
        pages = (at & (self.geometry.ptrs_per_pte - 1)) << self.geometry.page_shift
        found: NDArray[np.uint64] = tables.table_address[at >> self.geometry.pmd_order]
        found += pages.astype(np.uint64)
        return found

    def mapped_frames(self, vma: Vma, pages: tuple[int, int]) -> Iterator[int]:
        """The frames mapped by a range of pages."""
        first, count = pages
        for i in range(first, first + count):
            pfn = mapped_frame(vma.vm_mm, vma.vm_start + (i << self.geometry.page_shift))
            if pfn:
                yield pfn

    def folios(self, vma: Vma, pages: tuple[int, int]) -> list[int]:
        """The folios of a range of pages, each once."""
        heads = self.mem.head.raw
        return list(dict.fromkeys(heads[pfn] for pfn in self.mapped_frames(vma, pages)))
