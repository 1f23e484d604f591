# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands in a world: its page tables, batches and swap cache, counted without a step."""

from __future__ import annotations

from collections import Counter, abc
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from mthp.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, Kernel, Mm, Vma
from mthp.mm.page_flags import PG_LOCKED, PG_LRU, PG_SWAPCACHE
from mthp.mm.pgtable_types import (
    PFN_SHIFT,
    WRITE,
    Leaf,
    leaf_kind,
    pmd_is_migration_entry,
    pmd_is_table,
    pmd_none,
    pmd_pgtable,
    pmd_present,
    pte_none,
    pte_pfn,
    pte_present,
)

Where = tuple[int, int]
"""(process, address)."""


@dataclass(frozen=True)
class Outside:
    """What actors outside the world hold and keep: pins, and the mappings of other processes.

    references: folio -> references that nothing in the world explains. mappings, huge_mappings:
    page, folio -> mappings by page tables elsewhere. locked, off_lru: folios others have.
    """

    references: abc.Mapping[int, int] = field(default_factory=dict)
    mappings: abc.Mapping[int, int] = field(default_factory=dict)
    huge_mappings: abc.Mapping[int, int] = field(default_factory=dict)
    locked: frozenset[int] = frozenset()
    off_lru: frozenset[int] = frozenset()


class Mapping(NamedTuple):
    """An entry that is not none. vma: what lies there, None: nothing. page: 0 where it maps none, or
    the zero page.
    """

    mm: Mm
    vma: Vma | None
    address: int
    entry: int
    page: int


class Census:
    """Everything that stands in a world at this moment.

    entries: (process, address) -> PTE word, a huge PMD as one entry per page. contents: the same ->
    what a load would see, 0 for a hole or the zero page; None where a load would fail.
    pte_mappings, pmd_mappings: page, folio -> how often the world's page tables map it. counted:
    (process, name of a counter) -> what it counts; books: what the counter says. swapped: slot -> PTEs
    that name it; users: what the device says. deposits: (process, start of a PMD's range) -> how many tables
    should wait under the PMD, and how many do. vmas: (process, start) -> all else of a VMA. outside:
    what others must have been holding then, if the world was sound.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.entries: dict[Where, int] = {}
        self.contents: dict[Where, int | None] = {}
        self.pte_mappings: Counter[int] = Counter()
        self.pmd_mappings: Counter[int] = Counter()
        self.writable: Counter[int] = Counter()
        self.linked: Counter[int] = Counter()
        self.deposited: Counter[int] = Counter()
        self.deposits: dict[Where, tuple[int, int]] = {}
        self.counted: Counter[tuple[int, str]] = Counter()
        self.swapped: Counter[int] = Counter()
        self.migrating: set[int] = set()
        self.batched: Counter[int] = Counter()
        for mm in kernel.mms:
            self._walk(mm)
        for cpu in kernel.cpus:
            self.batched.update(cpu.lru_add.value)
            self.batched.update(cpu.lru_lazyfree.value)
            self.batched.update(folio for folio, _ in cpu.mlock.value)
        mem = kernel.mem
        self.folios = [
            pfn for pfn, head in enumerate(mem.head.raw) if head == pfn and not mem.is_free(head)
        ]
        self.orders = {folio: mem.order.raw[folio] for folio in self.folios}
        self.flags = {folio: mem.flags.raw[folio] for folio in self.folios}
        self.vmas = {
            (mm.number, vma.vm_start): (vma.vm_end, vma.vm_flags, vma.vm_pgoff, vma.file)
            for mm in kernel.mms
            for vma in mm.vmas
        }
        self.books = {
            (mm.number, name): mm.counters[name]
            for mm in kernel.mms
            for name in (MM_ANONPAGES, MM_SWAPENTS)
        }
        self.users = dict(kernel.swap.users)
        self.gauges = kernel.vmstat.mthp.copy()
        self.usage = [memcg.charged + memcg.reclaimable for memcg in kernel.memcgs]
        self.charged: Counter[int] = Counter()
        for folio in self.folios:
            if mem.memcg.raw[folio]:
                self.charged[mem.memcg.raw[folio] - 1] += 1 << mem.order.raw[folio]
        self.outside = self._outside()

    def _walk(self, mm: Mm) -> None:
        geometry = mm.geometry
        for index, page in mm.pmd_pages.items():
            for slot, pmd in enumerate(page.pmds.raw):
                deposited = page.deposited.get(slot, ())
                self.deposited.update(deposited)
                if pmd_none(pmd) and not deposited:
                    continue
                start = (index * geometry.ptrs_per_pte + slot) << geometry.pmd_shift
                wanted = not pmd_none(pmd) and not pmd_is_table(pmd)
                self.deposits[mm.number, start] = int(wanted), len(deposited)
                if pmd_is_table(pmd):
                    self.linked[pmd_pgtable(pmd)] += 1
                    table = self.kernel.tables.get(pmd_pgtable(pmd))
                    if table is None:
                        continue
                    for i, pte in enumerate(table.ptes.raw):
                        self._entry(mm, start + (i << geometry.page_shift), pte)
                elif pmd_present(pmd):
                    self._huge(mm, start, pmd)
                elif pmd_is_migration_entry(pmd):
                    self.migrating.add(pte_pfn(pmd))
        for vma in mm.vmas:
            if vma.file in self.kernel.files:
                self._holes(vma, self.kernel.files[vma.file])

    def _holes(self, vma: Vma, content: int) -> None:
        """What is missing of a file mapping is read from the file."""
        for address in range(vma.vm_start, vma.vm_end, vma.vm_mm.geometry.page_size):
            where = vma.vm_mm.number, address
            if pte_none(self.entries.get(where, 0)):
                self.contents[where] = content

    def _entry(self, mm: Mm, address: int, pte: int) -> None:
        self.entries[mm.number, address] = pte
        self.contents[mm.number, address] = self._load(pte)
        if pte_present(pte) and pte_pfn(pte):
            self.pte_mappings[pte_pfn(pte)] += 1
            self.writable[pte_pfn(pte)] += pte & WRITE != 0
            self.counted[mm.number, MM_ANONPAGES] += 1
        elif not pte_present(pte) and leaf_kind(pte) is Leaf.MIGRATION:
            self.migrating.add(pte_pfn(pte))
        elif not pte_present(pte) and leaf_kind(pte) is Leaf.SWAP:
            self.swapped[pte_pfn(pte)] += 1
            self.counted[mm.number, MM_SWAPENTS] += 1

    def _huge(self, mm: Mm, start: int, pmd: int) -> None:
        mem = self.kernel.mem
        folio = pte_pfn(pmd)
        if not folio:  # the huge zero page
            for address in range(start, start + mm.geometry.pmd_size, mm.geometry.page_size):
                self.entries[mm.number, address], self.contents[mm.number, address] = pmd, 0
            return
        self.pmd_mappings[folio] += 1
        for i in range(mm.geometry.ptrs_per_pte):
            where = mm.number, start + (i << mm.geometry.page_shift)
            self.entries[where] = pmd + (i << PFN_SHIFT)
            self.writable[folio + i] += pmd & WRITE != 0
            self.contents[where] = mem.content.raw[folio + i]
        self.counted[mm.number, MM_ANONPAGES] += mm.geometry.ptrs_per_pte

    def _load(self, pte: int) -> int | None:
        """What a load through a PTE sees; a fault brings swapped pages back."""
        mem, swap = self.kernel.mem, self.kernel.swap
        if pte_none(pte):
            return 0
        if pte_present(pte):
            return mem.content.raw[pte_pfn(pte)] if pte_pfn(pte) else 0
        kind = leaf_kind(pte)
        if kind is Leaf.SWAP:
            entry = pte_pfn(pte)
            folio = swap.cache.get(entry)
            if folio is None:
                return swap.contents.get(entry, 0)
            return mem.content.raw[folio + entry - swap.entry_of[folio]]
        return mem.content.raw[pte_pfn(pte)] if kind is Leaf.MIGRATION else None

    @cached_property
    def mappings(self) -> list[Mapping]:
        """What page tables hold and VMAs there are, a huge PMD as one entry a page. As long as nothing
        has changed since the census.
        """
        found = []
        mms = {mm.number: mm for mm in self.kernel.mms}
        for (number, address), entry in self.entries.items():
            if not pte_none(entry):
                vma = mms[number].vma_lookup(address)
                page = pte_pfn(entry) if pte_present(entry) else 0
                found.append(Mapping(mms[number], vma, address, entry, page))
        return found

    def explained_references(self, folio: int) -> int:
        """References that mappings, the swap cache and batches account for."""
        mem = self.kernel.mem
        large = mem.order.raw[folio]
        mapcount = (mem.large_mapcount if large else mem.mapcount).raw[folio]
        swapcache = mem.flags.raw[folio] & PG_SWAPCACHE != 0
        return mapcount + (swapcache << large) + self.batched[folio]

    def _outside(self) -> Outside:
        """What others must be holding, if the world is sound as it stands."""
        mem = self.kernel.mem
        references, mappings, huge = {}, {}, {}
        for folio in self.folios:
            extra = mem.refcount.raw[folio] - self.explained_references(folio)
            if extra:
                references[folio] = extra
            elsewhere = mem.entire_mapcount.raw[folio] - self.pmd_mappings[folio]
            if elsewhere:
                huge[folio] = elsewhere
            for page in range(folio, folio + (1 << mem.order.raw[folio])):
                elsewhere = mem.mapcount.raw[page] - self.pte_mappings[page]
                if elsewhere:
                    mappings[page] = elsewhere
        return Outside(
            references,
            mappings,
            huge,
            frozenset(f for f, flags in self.flags.items() if flags & PG_LOCKED),
            frozenset(f for f, flags in self.flags.items() if not flags & PG_LRU),
        )
