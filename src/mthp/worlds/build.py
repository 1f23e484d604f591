# SPDX-License-Identifier: GPL-2.0-or-later
"""Put a scenario's initial state into a world: folios, tables, VMAs, as a kernel would have them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mthp.image.runs import FolioToken, PageKind, PteState, PteToken
from mthp.image.scenario import Scenario
from mthp.image.scenario_values import Advice, Prctl, ScenarioVma
from mthp.khugepaged.daemon import Khugepaged
from mthp.mm import page_flags as pg
from mthp.mm.mm_types import (
    MMF_DISABLE_THP_COMPLETELY,
    MMF_DISABLE_THP_EXCEPT_ADVISED,
    Kernel,
    Mm,
    PageTable,
    Vma,
)
from mthp.mm.page_alloc import NodeState
from mthp.mm.page_counter import MemCgroup
from mthp.mm.page_flags import ENTIRELY_MAPPED, PAGE_ANON_EXCLUSIVE, PAGE_HWPOISON
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import (
    DIRTY,
    SOFT_DIRTY,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
    huge_pmd,
    leaf_pte,
    mk_pte,
    pmd_is_table,
    pmd_none,
    pmd_pgtable,
    table_pmd,
    zero_pte,
)
from mthp.mm.rmap import UNKNOWN_MM, share_large_folio
from mthp.mm.vm_flags import (
    VM_DEFAULT,
    VM_DROPPABLE,
    VM_HUGEPAGE,
    VM_LOCKED,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    VM_SOFTDIRTY,
    VM_UFFD_WP,
    VM_WRITE,
)
from mthp.words.profiles import Profile
from mthp.worlds.build_swap import SwapSlots

GUP_PIN_COUNTING_BIAS = 1024
"""References that one pin adds to a small folio. Kernel: include/linux/mm.h."""

PAGE_FLAGS = {
    "l": pg.PG_LOCKED,
    "R": pg.PG_REFERENCED,
    "D": pg.PG_DIRTY,
    "L": pg.PG_LRU,
    "A": pg.PG_ACTIVE,
    "a": pg.PG_ANON,
    "C": pg.PG_SWAPCACHE,
    "B": pg.PG_SWAPBACKED,
    "V": pg.PG_UNEVICTABLE,
    "M": pg.PG_MLOCKED,
    "K": pg.PG_KSM,
}
"""kpageflags letters of the scenario format and the flags they stand for."""

_PTE_LETTERS = {"W": WRITE, "A": YOUNG, "D": DIRTY, "U": UFFD_WP}


@dataclass(slots=True)
class BuiltWorld:
    """A kernel, its daemon, and the mappings a scenario or an image put into it."""

    kernel: Kernel
    khugepaged: Khugepaged
    vmas: list[Vma]


def table_at(mm: Mm, address: int) -> PageTable:
    """The page table of address, made if there is none. Not a step; ValueError under a huge PMD."""
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


@dataclass(slots=True)
class _KnownFolio:
    """A folio with an identity, while its pages are being met."""

    head: int
    token: FolioToken
    mapcounts: dict[int, int] = field(default_factory=dict)
    """Page's place in the folio -> its mapcount, from every process there is."""
    ptes: Counter[int] = field(default_factory=Counter)
    """Page's place in the folio -> PTE mappings in this world."""
    visible: Counter[int] = field(default_factory=Counter)
    """mm number -> mappings in this world, a PMD's being one."""
    pmd_mapped: int = 0


class ScenarioBuilder:
    """Builds one scenario's world. Every page gets its own contents (its frame's number)."""

    def __init__(self, scenario: Scenario, profile: Profile) -> None:
        self.scenario = scenario
        nodes = (NodeState(scenario.free_blocks, largest=scenario.largest_block),)
        self.kernel = Kernel(scenario.settings, profile, nodes=nodes)
        self.mem = self.kernel.mem
        self.khugepaged = Khugepaged(self.kernel)
        self.known: dict[int, _KnownFolio] = {}
        self.mms: dict[int, Mm] = {}
        self.slots = SwapSlots(self.kernel, scenario)

    def build(self) -> BuiltWorld:
        """The world as it stands before the first pass."""
        vmas = [self.add_vma(vma) for vma in self.scenario.vmas]
        for spec, vma in zip(self.scenario.vmas, vmas, strict=True):
            self.fill(spec, vma)
        for folio in self.known.values():
            self.finish_folio(folio)
        self.slots.finish()
        for spec, vma in zip(self.scenario.vmas, vmas, strict=True):
            self.add_references(spec, vma)
        for mm in self.mms.values():
            self.khugepaged.khugepaged_enter(mm)
        self.kernel.vmstat.mthp.clear()
        return BuiltWorld(self.kernel, self.khugepaged, vmas)

    def mm(self, index: int) -> Mm:
        """The mm of a process of the scenario."""
        if index not in self.mms:
            mm = self.kernel.new_mm(1000 + index, "scenario", self.memcg())
            modes = self.scenario.prctl
            mode = modes[index] if index < len(modes) else None
            if mode is Prctl.DISABLE:
                mm.mm_flags_set(MMF_DISABLE_THP_COMPLETELY)
            elif mode is Prctl.EXCEPT_ADVISED:
                mm.mm_flags_set(MMF_DISABLE_THP_EXCEPT_ADVISED)
            self.mms[index] = mm
        return self.mms[index]

    def memcg(self) -> MemCgroup | None:
        """The one cgroup of the scenario's processes."""
        wanted = self.scenario.memcg
        if wanted is None:
            return None
        if not self.kernel.memcgs:
            self.kernel.new_memcg("scenario", wanted.limit_pages, wanted.usage_pages)
        return self.kernel.memcgs[0]

    def add_vma(self, spec: ScenarioVma) -> Vma:
        """One mapping with its flags."""
        flags = VM_DEFAULT
        flags |= VM_SOFTDIRTY if _soft_dirty(spec) else 0
        flags |= VM_HUGEPAGE if spec.advice is Advice.HUGEPAGE else 0
        flags |= VM_NOHUGEPAGE if spec.advice is Advice.NOHUGEPAGE else 0
        flags |= VM_LOCKED if spec.mlocked else 0
        flags |= VM_UFFD_WP if spec.uffd_wp else 0
        flags |= VM_DROPPABLE if spec.droppable else 0
        flags &= ~(VM_WRITE if spec.read_only else 0)
        flags |= VM_MERGEABLE if spec.ksm else 0
        mm = self.mm(spec.mm)
        vma = mm.mmap(spec.start, spec.end(self.scenario.geometry), flags)
        if spec.anon_vma:
            mm.link_anon_vma(vma)
        return vma

    def fill(self, spec: ScenarioVma, vma: Vma) -> None:
        """Page tables, entries and folios of one mapping."""
        geometry = self.scenario.geometry
        mm = vma.vm_mm
        pages = zip(spec.initial.folio_pages(), spec.initial.pte_pages(), strict=True)
        for i, (token, entry) in enumerate(pages):
            address = spec.start + (i << geometry.page_shift)
            if entry.state is PteState.NO_TABLE:
                continue
            slot = geometry.pte_index(address)
            if entry.state is PteState.HUGE:
                if slot == 0:
                    pfn = self.huge_frame(token, mm)
                    map_huge(mm, address, pfn, self.pte_flags(token, entry))
                if token.kind is PageKind.FOLIO:
                    self.known_folio(token).mapcounts[token.index] = token.mapcount
                continue
            value = self.pte_value(token, entry, vma, address)
            table_at(mm, address).ptes.raw[slot] = value

    def huge_frame(self, token: FolioToken, mm: Mm) -> int:
        """The first frame behind a huge PMD."""
        if token.kind is PageKind.HUGE_ZERO:
            return 0
        folio = self.known_folio(token)
        folio.pmd_mapped += 1
        folio.visible[mm.number] += 1
        return folio.head

    def pte_flags(self, token: FolioToken, entry: PteToken) -> int:
        """PTE bits from both tokens."""
        flags = sum(bit for letter, bit in _PTE_LETTERS.items() if letter in entry.letters)
        if "s" in token.pagemap:
            flags |= SOFT_DIRTY
        if "w" in token.pagemap:
            flags |= UFFD_WP
        return flags

    def pte_value(self, token: FolioToken, entry: PteToken, vma: Vma, address: int) -> int:
        """The word of one entry."""
        match token.kind:
            case PageKind.NONE:
                return 0
            case PageKind.ZERO | PageKind.HUGE_ZERO:
                return zero_pte(self.pte_flags(token, entry))
            case PageKind.GUARD:
                return leaf_pte(Leaf.GUARD)
            case PageKind.SWAP:
                return self.slots.pte(token)
            case PageKind.FOLIO:
                page = self.page(token, vma, address)
                return mk_pte(page, self.pte_flags(token, entry))

    def page(self, token: FolioToken, vma: Vma, address: int) -> int:
        """The frame a PTE maps; a small page without an identity gets a folio of its own."""
        mem = self.mem
        pgoff = (address >> self.scenario.geometry.page_shift) - token.index
        if token.folio is not None:
            known = self.known_folio(token)
            page = self.map_known(known, token, vma)
            head = known.head
        else:
            head = page = mem.new_frames(0, 0)
            self.prepare(page, token)
            mem.mapcount.raw[page] = token.mapcount
            mem.refcount.raw[page] = token.mapcount + ("C" in token.flags)
        if mem.index.raw[head] == 0 and vma.anon_vma is not None:
            mem.index.raw[head] = pgoff
            mem.anon_vma.raw[head] = vma.anon_vma.number
        if "C" in token.flags:
            self.slots.meet(head, 1 << token.order, token.index, address)
        if "x" in token.pagemap:
            mem.page_flags.raw[page] |= PAGE_ANON_EXCLUSIVE
        return page

    def map_known(self, known: _KnownFolio, token: FolioToken, vma: Vma) -> int:
        """One more PTE of this world maps a page of a folio; the page."""
        known.mapcounts[token.index] = token.mapcount
        known.ptes[token.index] += 1
        known.visible[vma.vm_mm.number] += 1
        return known.head + token.index

    def known_folio(self, token: FolioToken) -> _KnownFolio:
        """The folio of a token with an identity, made when it is met first."""
        assert token.folio is not None
        if token.folio not in self.known:
            head = self.mem.new_frames(0, token.order)
            self.prepare(head, token)
            self.known[token.folio] = _KnownFolio(head, token)
        return self.known[token.folio]

    def prepare(self, head: int, token: FolioToken) -> None:
        """A folio's frames, flags and contents."""
        mem = self.mem
        mem.prep_folio(head, token.order)
        flags = pg.PG_UPTODATE
        for letter in token.flags:
            flags |= PAGE_FLAGS.get(letter, 0)
        mem.flags.raw[head] = flags
        mem.memcg.raw[head] = len(self.kernel.memcgs)
        for page in range(head, head + (1 << token.order)):
            mem.content.raw[page] = page
            if "P" in token.flags:
                mem.page_flags.raw[page] |= PAGE_HWPOISON

    def finish_folio(self, known: _KnownFolio) -> None:
        """Counts that need all mappings of a folio."""
        if known.token.order:
            self.finish_large(known)
            return
        mapcount = self.mem.mapcount.raw[known.head] = known.mapcounts[0]
        self.mem.refcount.raw[known.head] = mapcount + ("C" in known.token.flags)

    def finish_large(self, large: _KnownFolio) -> None:
        """Counts that need all pages of a large folio.

        Mappings that no process of this world has are another's: of the whole folio by a PMD as far
        as every page has one and we see a PMD of it here, of single pages otherwise.
        """
        mem = self.mem
        head, nr = large.head, 1 << large.token.order
        others = {
            index: mapcount - large.pmd_mapped - large.ptes[index]
            for index, mapcount in large.mapcounts.items()
        }
        other_pmds = min(others.values()) if large.pmd_mapped else 0
        entire = large.pmd_mapped + other_pmds
        for index, mapcount in large.mapcounts.items():
            mem.mapcount.raw[head + index] = mapcount - entire
        ptes = sum(mem.mapcount.raw[head : head + nr])
        mapped = sum(1 for n in mem.mapcount.raw[head : head + nr] if n)
        if entire:
            mem.entire_mapcount.raw[head] = entire
            mapped += ENTIRELY_MAPPED
        mem.large_mapcount.raw[head] = ptes + entire
        mem.nr_pages_mapped.raw[head] = mapped
        mem.refcount.raw[head] = ptes + entire + (nr if "C" in large.token.flags else 0)
        outside = other_pmds + sum(count - other_pmds for count in others.values())
        if outside > 0:
            large.visible[UNKNOWN_MM] = outside
        if len(large.visible) > 1:
            share_large_folio(mem, head, large.visible)
        if outside <= 0 and 0 < mapped < nr and "C" not in large.token.flags:
            # Every mapping is in this world, so some of its pages have none: they were unmapped.
            mem.flags.raw[head] |= pg.PG_PARTIALLY_MAPPED

    def add_references(self, spec: ScenarioVma, vma: Vma) -> None:
        """Pins, extra references, locks, poison and missing LRU membership, by page ranges."""
        for first, count in spec.pins:
            for folio in self.folios(spec, vma, first, count):
                large = self.mem.order.raw[folio] > 0
                self.mem.refcount.raw[folio] += 1 if large else GUP_PIN_COUNTING_BIAS
        for first, count, refs in spec.extra_refs:
            for folio in self.folios(spec, vma, first, count):
                self.mem.refcount.raw[folio] += refs
        for first, count in spec.locked:
            for folio in self.folios(spec, vma, first, count):
                self.mem.flags.raw[folio] |= pg.PG_LOCKED
        for first, count in spec.off_lru:
            for folio in self.folios(spec, vma, first, count):
                self.mem.flags.raw[folio] &= ~pg.PG_LRU
        for first, count in spec.poisoned:
            for pfn in self.frames(spec, vma, first, count):
                self.mem.page_flags.raw[pfn] |= PAGE_HWPOISON

    def frames(self, spec: ScenarioVma, vma: Vma, first: int, count: int) -> list[int]:
        """The frames mapped by a range of pages."""
        found = []
        shift = self.scenario.geometry.page_shift
        for i in range(first, first + count):
            pfn = mapped_frame(vma.vm_mm, spec.start + (i << shift))
            if pfn:
                found.append(pfn)
        return found

    def folios(self, spec: ScenarioVma, vma: Vma, first: int, count: int) -> list[int]:
        """The folios of a range of pages, each once."""
        frames = self.frames(spec, vma, first, count)
        return list(dict.fromkeys(self.mem.head.raw[pfn] for pfn in frames))


def _soft_dirty(spec: ScenarioVma) -> bool:
    """VM_SOFTDIRTY, as the record says; else whether it may be set: then no page of a folio shows as
    soft-clean.

    Kernel: fs/proc/task_mmu.c, pte_to_pagemap_entry().
    """
    if spec.softdirty is not None:
        return spec.softdirty
    return all("s" in run.pagemap for _, run in spec.initial.folios if run.kind is PageKind.FOLIO)


def mapped_frame(mm: Mm, address: int) -> int | None:
    """The frame address maps now, 0 for the zero page, None for nothing. Not a step."""
    geometry = mm.geometry
    pmd = pmd_ptr(mm, address)
    if pmd is None:
        return None
    value = pmd.page.pmds.raw[pmd.slot]
    if value & 1 == 0:
        return None
    if not pmd_is_table(value):
        return (value >> 16) + geometry.pte_index(address)
    entry = mm.kernel.tables[pmd_pgtable(value)].ptes.raw[geometry.pte_index(address)]
    return entry >> 16 if entry & 1 else None


def build_scenario(scenario: Scenario, profile: Profile) -> BuiltWorld:
    """The world of a scenario, registered with khugepaged and ready for its first pass."""
    return ScenarioBuilder(scenario, profile).build()
