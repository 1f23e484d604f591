# SPDX-License-Identifier: GPL-2.0-or-later
"""A scenario's run-length states as the arrays that a snapshot has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from mthp.image.runs import FolioToken, PageKind, PteState, PteToken
from mthp.image.scenario import Scenario
from mthp.image.scenario_values import Advice, CachedFolio, KnownMm, Prctl, ScenarioVma
from mthp.image.snapshot import KPF_OF_LETTER, Pte
from mthp.mm import vm_flags as vm
from mthp.mm.mm_types import MMF_DISABLE_THP_COMPLETELY, MMF_DISABLE_THP_EXCEPT_ADVISED
from mthp.mm.page_alloc import NodeState
from mthp.mm.pgtable_types import DIRTY, WRITE, YOUNG
from mthp.mm.swap_table import swp_entry
from mthp.words.units import Geometry
from mthp.worlds.arrays import (
    ImageCached,
    ImageMemcg,
    ImageProcess,
    ImageVma,
    TableArrays,
    WorldArrays,
)
from mthp.worlds.mm_ids import words_of

PTE_LETTERS = {"W": WRITE, "A": YOUNG, "D": DIRTY}

_PRCTL = {
    None: 0,
    Prctl.DISABLE: MMF_DISABLE_THP_COMPLETELY,
    Prctl.EXCEPT_ADVISED: MMF_DISABLE_THP_EXCEPT_ADVISED,
}
_PTE_OF_KIND = {
    PageKind.NONE: Pte(0),
    PageKind.ZERO: Pte.PRESENT | Pte.ZERO,
    PageKind.HUGE_ZERO: Pte.PRESENT | Pte.ZERO,
    PageKind.GUARD: Pte.SWAPPED | Pte.GUARD,
    PageKind.SWAP: Pte.SWAPPED,
    PageKind.FOLIO: Pte.PRESENT,
}
FIRST_PID = 1000


def image_of_scenario(scenario: Scenario) -> WorldArrays:
    """The arrays of a scenario's first state."""
    expansion = _Expansion(scenario)
    memcg = scenario.memcg
    node = NodeState(
        scenario.free_blocks,
        scenario.reserve,
        scenario.largest_block,
        pcp_high=scenario.pcp_high,
    )
    processes = [expansion.process(mm) for mm in dict.fromkeys(v.mm for v in scenario.vmas)]
    return WorldArrays(
        nodes=(node,) * max(1, len(scenario.distances)),
        processes=processes,
        memcgs=(ImageMemcg("scenario", memcg.limit_pages, memcg.usage_pages),) if memcg else (),
        outside=expansion.outside,
        synchronous=scenario.synchronous,
        swap_cache=tuple(map(expansion.cached, scenario.swap_cache)),
        distances=scenario.distances,
        node_reclaim=scenario.node_reclaim,
    )


class _Expansion:
    """Numbers the frames while the states are expanded: in the order in which they are met."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.geometry = scenario.geometry
        self.next_frame = 1
        self.heads: dict[int, int] = {}
        self.outside: dict[int, int] = {}
        mms = dict.fromkeys(vma.mm for vma in scenario.vmas)
        self.ids = {mm: number for number, mm in enumerate(mms, 1)}
        self.known = {folio: words_of(self.mms(of)) for folio, of in scenario.mm_ids.items()}

    def mms(self, known: Iterable[KnownMm]) -> Iterator[tuple[int, int]]:
        """(id, mappings) of processes that a folio knows. Two that are not in the scenario have ids too."""
        other = len(self.ids)
        for mm, mappings in known:
            other += 1
            yield other if mm is None else self.ids[mm], mappings

    def cached(self, folio: CachedFolio) -> ImageCached:
        """A folio in the swap cache, when all processes are expanded."""
        return ImageCached(
            swp_entry(folio.type, folio.offset),
            folio.order,
            _kpageflags(folio.flags),
            None if folio.folio is None else self.heads[folio.folio],
        )

    def process(self, mm: int) -> ImageProcess:
        """Expand everything of one mm."""
        scenario, geometry = self.scenario, self.geometry
        of_mm = [(place, vma) for place, vma in enumerate(scenario.vmas) if vma.mm == mm]
        bases = sorted({base for _, vma in of_mm for base in _tables(vma, geometry)})
        tables = TableArrays.blank(np.array(bases, np.uint64), geometry)
        if self.known:
            shape = tables.pte.shape
            ids, counts = np.zeros(shape, np.uint64), np.zeros(shape, np.uint64)
            tables = replace(tables, mm_ids=ids, mm_id_mapcounts=counts)
        if scenario.distances:
            tables = replace(tables, node=np.zeros(tables.pte.shape, np.uint8))
        for _, vma in of_mm:
            self.expand(vma, tables)
        modes = scenario.prctl
        return ImageProcess(
            pid=FIRST_PID + mm,
            name="scenario",
            mm_flags=_PRCTL[modes[mm]] if mm < len(modes) else 0,
            memcg=None if scenario.memcg is None else 0,
            vmas=tuple(_vma(vma, place, geometry) for place, vma in of_mm),
            tables=tables,
            age=mm,
            mm_id=self.ids[mm],
            place=None if scenario.registered[mm:] and not scenario.registered[mm] else mm,
        )

    def expand(self, vma: ScenarioVma, tables: TableArrays) -> None:
        """Write one mapping's runs into the arrays of its process."""
        geometry = self.geometry
        page = (vma.start >> geometry.page_shift) + np.arange(vma.pages)
        bases = (tables.table_address >> np.uint64(geometry.pmd_shift)).astype(np.int64)
        table, index = page >> geometry.pmd_order, page & (geometry.ptrs_per_pte - 1)
        row = np.minimum(np.searchsorted(bases, table), max(len(bases) - 1, 0))
        here = bases[row] == table if len(bases) else np.zeros(vma.pages, np.bool_)
        where = row[here], index[here]
        counts = [count for count, _ in vma.initial.folios]
        rows = [self.folio_run(count, token) for count, token in vma.initial.folios]
        columns = np.array(rows, np.uint64).reshape(len(rows), _FOLIO_COLUMNS)
        pte, pfn, step, flags, mapcount, order, *known = np.repeat(columns, counts, axis=0)[here].T
        offset = np.arange(vma.pages) - np.repeat(np.cumsum(counts) - counts, counts)
        counts = [count for count, _ in vma.initial.entries]
        entries = np.array([_entry_run(entry) for _, entry in vma.initial.entries], np.uint16)
        entry, bits = np.repeat(entries.reshape(len(counts), 2), counts, axis=0)[here].T
        tables.pte[where] = pte.astype(np.uint16) | entry
        tables.bits[where] = bits
        tables.pfn[where] = pfn + step * offset[here].astype(np.uint64)
        tables.kpageflags[where] = flags
        tables.kpagecount[where] = mapcount
        tables.folio_order[where] = order
        if tables.mm_ids is not None and tables.mm_id_mapcounts is not None:
            tables.mm_ids[where], tables.mm_id_mapcounts[where] = known
        if tables.node is not None:
            counts = [count for count, _ in vma.initial.nodes]
            nodes = np.array([node or 0 for _, node in vma.initial.nodes], np.uint8)
            tables.node[where] = np.repeat(nodes, counts)[here]

    def folio_run(self, count: int, token: FolioToken) -> tuple[int, ...]:
        """pte, pfn and its rise from page to page, kpageflags, kpagecount, order, and the words of mm ids of
        a run."""
        pte = int(_PTE_OF_KIND[token.kind])
        letters = token.pagemap or token.swap_letters
        pte |= Pte.UFFD_WP if "w" in letters else 0
        if token.kind is PageKind.SWAP:
            return self.swap_run(count, token, pte)
        pte |= Pte.SOFT_DIRTY if "s" in letters else 0
        pte |= Pte.EXCLUSIVE if "x" in letters else 0
        if token.kind is not PageKind.FOLIO:
            return pte, 0, 0, 0, 0, 0, 0, 0
        flags = _kpageflags(token.flags)
        known = 0, 0
        if token.folio is None:
            first, self.next_frame = self.next_frame, self.next_frame + count
        else:
            if token.folio not in self.heads:
                head = -(-self.next_frame >> token.order) << token.order
                self.heads[token.folio], self.next_frame = head, head + (1 << token.order)
            first = self.heads[token.folio] + token.index
            known = self.known.get(token.folio, known)
        return pte, first, 1, flags, token.mapcount, token.order, *known

    def swap_run(self, count: int, token: FolioToken, pte: int) -> tuple[int, ...]:
        """The same for swap entries; type and offset stand where pagemap has them."""
        swap_type = token.swap_type or 0
        if token.special_swap is None:
            pte |= 0 if "f" in token.swap_letters else Pte.EXCLUSIVE
            pte |= 0 if "c" in token.swap_letters else Pte.SOFT_DIRTY
        offset = token.swap_offset
        if offset is None:
            return pte, swap_type, 0, 0, 0, 0, 0, 0
        if token.swap_outside:
            first = swp_entry(swap_type, offset)
            self.outside |= dict.fromkeys(range(first, first + count), token.swap_outside)
        return pte, swap_type | offset << 5, 1 << 5, 0, 0, 0, 0, 0


_FOLIO_COLUMNS = 8


def _kpageflags(letters: str) -> int:
    return sum(1 << KPF_OF_LETTER[each] for each in letters)


def _entry_run(entry: PteToken) -> tuple[int, int]:
    """The pte and the bits of one kind of entry."""
    pte = Pte.HUGE if entry.state is PteState.HUGE else 0
    pte |= Pte.UFFD_WP if entry.uffd_wp else 0
    return pte, sum(bit for letter, bit in PTE_LETTERS.items() if letter in entry.letters)


def _tables(vma: ScenarioVma, geometry: Geometry) -> Iterator[int]:
    """The addresses of the tables that a mapping has."""
    page = vma.start >> geometry.page_shift
    for count, entry in vma.initial.entries:
        if entry.state is not PteState.NO_TABLE:
            last = (page + count - 1) >> geometry.pmd_order
            for table in range(page >> geometry.pmd_order, last + 1):
                yield table << geometry.pmd_shift
        page += count


def _vma(vma: ScenarioVma, place: int, geometry: Geometry) -> ImageVma:
    flags = vm.VM_DEFAULT
    flags |= vm.VM_SOFTDIRTY if _soft_dirty(vma) else 0
    flags |= vm.VM_HUGEPAGE if vma.advice is Advice.HUGEPAGE else 0
    flags |= vm.VM_NOHUGEPAGE if vma.advice is Advice.NOHUGEPAGE else 0
    flags |= vm.VM_LOCKED if vma.mlocked else 0
    flags |= vm.VM_UFFD_WP if vma.uffd_wp else 0
    flags |= vm.VM_DROPPABLE if vma.droppable else 0
    flags &= ~(vm.VM_WRITE if vma.read_only else 0)
    flags |= vm.VM_MERGEABLE if vma.ksm else 0
    return ImageVma(vma.start, vma.end(geometry), flags, vma.anon_vma, place=place, known=vma)


def _soft_dirty(vma: ScenarioVma) -> bool:
    """Whether VM_SOFTDIRTY is set, as the record says; else whether it may be: then no page of a
    folio shows as soft-clean.

    Kernel: fs/proc/task_mmu.c, pte_to_pagemap_entry().
    """
    if vma.softdirty is not None:
        return vma.softdirty
    return all("s" in run.pagemap for _, run in vma.initial.folios if run.kind is PageKind.FOLIO)
