# SPDX-License-Identifier: GPL-2.0-or-later
"""What must hold whenever nobody works: one function and one sentence for each law.

A Census counts what stands in a world, from its page tables, batches and swap cache alone; the laws
compare it with the counts the engine keeps, with what actors outside the world hold (Outside), and
with a Census taken earlier. None of this steps. Numbers are those of the project's list of laws.
Laws 10 and 12 speak of what happens between two steps and have no form at rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mthp.khugepaged.daemon import Khugepaged
from mthp.machine.locks import Lock
from mthp.mm.mm_types import MM_ANONPAGES, MMF_VM_HUGEPAGE, Kernel, Mm, TableState
from mthp.mm.page_flags import (
    ENTIRELY_MAPPED,
    PAGE_ANON_EXCLUSIVE,
    PG_ANON,
    PG_ISOLATED,
    PG_LOCKED,
    PG_LRU,
    PG_PARTIALLY_MAPPED,
    PG_SWAPCACHE,
)
from mthp.mm.pgtable_types import (
    KIND_MASK,
    KIND_SHIFT,
    NO_ACCESS,
    PFN_SHIFT,
    PRESENT,
    SOFT_DIRTY,
    UFFD_WP,
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
    """What actors that are no part of the world hold, and keep: pins, other processes' mappings.

    references: folio -> references that nothing in the world explains. mappings, huge_mappings:
    page, folio -> mappings by page tables elsewhere. locked, off_lru: folios others have.
    """

    references: Mapping[int, int] = field(default_factory=dict)
    mappings: Mapping[int, int] = field(default_factory=dict)
    huge_mappings: Mapping[int, int] = field(default_factory=dict)
    locked: frozenset[int] = frozenset()
    off_lru: frozenset[int] = frozenset()


class Census:
    """Everything that stands in a world now.

    entries: (process, address) -> PTE word, a huge PMD as one entry per page. contents: the same ->
    what a load would see, 0 for a hole or the zero page; None where a load would fail.
    pte_mappings, pmd_mappings: page, folio -> how often the world's page tables map it. outside:
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
        self.anon_pages: Counter[int] = Counter()
        self.migrating: set[int] = set()
        self.batched: Counter[int] = Counter()
        for mm in kernel.mms:
            self._walk(mm)
        for cpu in kernel.cpus:
            self.batched.update(cpu.lru_add.value)
            self.batched.update(folio for folio, _ in cpu.mlock.value)
        mem = kernel.mem
        self.folios = [
            pfn for pfn, refs in enumerate(mem.refcount.raw) if refs and mem.head.raw[pfn] == pfn
        ]
        self.orders = {folio: mem.order.raw[folio] for folio in self.folios}
        self.flags = {folio: mem.flags.raw[folio] for folio in self.folios}
        self.books = {mm.number: mm.counters[MM_ANONPAGES] for mm in kernel.mms}
        self.gauges = kernel.vmstat.mthp.copy()
        self.usage = [memcg.charged + memcg.reclaimable for memcg in kernel.memcgs]
        self.charged = Counter(
            {n: self._charged(n + 1) for n in range(len(kernel.memcgs))},
        )
        self.outside = self._outside()

    def _charged(self, number: int) -> int:
        mem = self.kernel.mem
        return sum(1 << mem.order.raw[f] for f in self.folios if mem.memcg.raw[f] == number)

    def _walk(self, mm: Mm) -> None:
        geometry = mm.geometry
        for index, page in mm.pmd_pages.items():
            for slot, pmd in enumerate(page.pmds.raw):
                self.deposited.update(page.deposited.get(slot, ()))
                if pmd_none(pmd):
                    continue
                start = (index * geometry.ptrs_per_pte + slot) << geometry.pmd_shift
                if pmd_is_table(pmd):
                    self.linked[pmd_pgtable(pmd)] += 1
                    table = self.kernel.tables.get(pmd_pgtable(pmd))
                    if table is None:
                        continue
                    for i, pte in enumerate(table.ptes.raw):
                        self._entry(mm, start + (i << geometry.page_shift), pte)
                elif pmd_present(pmd) and pte_pfn(pmd):
                    self._huge(mm, start, pmd)
                elif pmd_is_migration_entry(pmd):
                    self.migrating.add(pte_pfn(pmd))

    def _entry(self, mm: Mm, address: int, pte: int) -> None:
        self.entries[mm.number, address] = pte
        self.contents[mm.number, address] = self._load(pte)
        if pte_present(pte) and pte_pfn(pte):
            self.pte_mappings[pte_pfn(pte)] += 1
            self.writable[pte_pfn(pte)] += pte & WRITE != 0
            self.anon_pages[mm.number] += 1
        elif not pte_present(pte) and leaf_kind(pte) is Leaf.MIGRATION:
            self.migrating.add(pte_pfn(pte))

    def _huge(self, mm: Mm, start: int, pmd: int) -> None:
        mem = self.kernel.mem
        folio = pte_pfn(pmd)
        self.pmd_mappings[folio] += 1
        for i in range(mm.geometry.ptrs_per_pte):
            where = mm.number, start + (i << mm.geometry.page_shift)
            self.entries[where] = pmd + (i << PFN_SHIFT)
            self.contents[where] = mem.content.raw[folio + i]
        self.anon_pages[mm.number] += mm.geometry.ptrs_per_pte

    def _load(self, pte: int) -> int | None:
        """What a load through a PTE sees; a fault brings swapped pages back."""
        mem, swap = self.kernel.mem, self.kernel.swap
        if pte_none(pte):
            return 0
        if pte_present(pte):
            return mem.content.raw[pte_pfn(pte)] if pte_pfn(pte) else 0
        kind = (pte & KIND_MASK) >> KIND_SHIFT
        if kind == Leaf.SWAP:
            entry = pte_pfn(pte)
            folio = swap.cache.get(entry)
            if folio is None:
                return swap.contents.get(entry, 0)
            return mem.content.raw[folio + entry - swap.entry_of[folio]]
        return mem.content.raw[pte_pfn(pte)] if kind == Leaf.MIGRATION else None

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


# At rest


def law_1_freed_memory_is_unreachable(now: Census) -> Iterator[str]:
    """1. Nothing maps, queues or caches a frame that was freed, and every table in use exists."""
    mem = now.kernel.mem
    reached = {"mapped": now.pte_mappings, "mapped by a PMD": now.pmd_mappings}
    reached |= {"in a batch": now.batched, "in the swap cache": Counter(now.kernel.swap.entry_of)}
    for how, pages in reached.items():
        for page in pages:
            if mem.refcount.raw[mem.head.raw[page]] <= 0:
                yield f"page {page} is free and {how}"


def law_2_tlbs_agree_with_the_page_table(now: Census) -> Iterator[str]:
    """2. No CPU keeps a translation, or a right to store, that the page table no longer gives."""
    shift = now.kernel.geometry.page_shift
    for cpu in now.kernel.cpus:
        for entry in cpu.tlb.value:
            for i in range(1 << entry.order):
                pte = now.entries.get((entry.mm, entry.vpn + i << shift), 0)
                if not pte & PRESENT or pte_pfn(pte) != pte_pfn(entry.entry) + i:
                    yield f"CPU {cpu.number} translates page {entry.vpn + i:#x} to a frame it lost"
                elif pte & NO_ACCESS or entry.entry & WRITE & ~pte:
                    yield f"CPU {cpu.number} keeps a right to page {entry.vpn + i:#x} that was taken"


def law_4_mapcounts_are_mappings(now: Census, outside: Outside) -> Iterator[str]:
    """4. Every mapcount equals the page table entries that map the page, here and elsewhere."""
    mem = now.kernel.mem
    for folio in now.folios:
        nr = 1 << mem.order.raw[folio]
        pages = range(folio, folio + nr)
        for page in pages:
            want = now.pte_mappings[page] + outside.mappings.get(page, 0)
            if mem.mapcount.raw[page] != want:
                yield f"page {page}: mapcount {mem.mapcount.raw[page]}, mappings {want}"
        if nr == 1:
            continue
        entire = now.pmd_mappings[folio] + outside.huge_mappings.get(folio, 0)
        ptes = sum(mem.mapcount.raw[folio : folio + nr])
        mapped = sum(count > 0 for count in mem.mapcount.raw[folio : folio + nr])
        counts = {
            "entire_mapcount": (mem.entire_mapcount.raw[folio], entire),
            "large_mapcount": (mem.large_mapcount.raw[folio], ptes + entire),
            "nr_pages_mapped": (
                mem.nr_pages_mapped.raw[folio],
                mapped + (ENTIRELY_MAPPED if entire else 0),
            ),
        }
        if folio in mem.mm_mapcounts:
            by_mm = sum(mem.mm_mapcounts[folio].values())
            counts["mappings by process"] = by_mm, ptes + entire
        for name, (have, want) in counts.items():
            if have != want:
                yield f"folio {folio}: {name} {have}, should be {want}"


def law_5_references_are_explained(now: Census, outside: Outside) -> Iterator[str]:
    """5. Every refcount equals mappings, swap cache, batches and what others hold; none isolated."""
    mem = now.kernel.mem
    for folio in {*now.folios, *outside.references}:
        want = now.explained_references(folio) + outside.references.get(folio, 0)
        if mem.refcount.raw[folio] != want:
            yield f"folio {folio}: refcount {mem.refcount.raw[folio]}, explained {want}"
    for folio in now.folios:
        flags = mem.flags.raw[folio]
        if flags & PG_ISOLATED:
            yield f"folio {folio} is left isolated"
        mapped = now.explained_references(folio) > now.batched[folio]
        if mapped and not (flags & PG_LRU or now.batched[folio] or folio in outside.off_lru):
            yield f"folio {folio} is neither on the LRU nor in a batch"


def law_6_every_table_is_linked_or_deposited(now: Census) -> Iterator[str]:
    """6. Every table that is not freed is linked or deposited once; a deposited one is empty."""
    for number, table in now.kernel.tables.items():
        linked, deposited = now.linked[number], now.deposited[number]
        if linked + deposited != (table.state is TableState.LIVE):
            yield f"table {number} is linked {linked} times and deposited {deposited} times"
        if deposited and any(table.ptes.raw):
            yield f"table {number} is deposited and not empty"


def law_7_nothing_is_overwritten_or_mapped_twice(now: Census) -> Iterator[str]:
    """7. No PMD was overwritten, and a page that is exclusive or writable is mapped once."""
    mem = now.kernel.mem
    if "collapse_huge_page" in now.kernel.warnings:
        yield now.kernel.warnings["collapse_huge_page"]
    for page, mappings in now.pte_mappings.items():
        mappings += now.pmd_mappings[mem.head.raw[page]]
        exclusive = mem.page_flags.raw[page] & PAGE_ANON_EXCLUSIVE
        if mappings > 1 and (exclusive or now.writable[page]):
            yield f"page {page} is exclusive or writable, and mapped {mappings} times"


def law_9_locks_balance(now: Census, khugepaged: Khugepaged, outside: Outside) -> Iterator[str]:
    """9. No lock is held, no table is mapped, and no folio is locked but by others."""
    kernel = now.kernel
    for hold in kernel.machine.current.held:
        yield f"{kernel.machine.current.name} still holds {hold}"
    locks: list[Lock] = [khugepaged.mm_lock, *(each.rwsem for each in kernel.anon_vmas)]
    locks += [table.ptl for table in kernel.tables.values()]
    for mm in kernel.mms:
        locks += [mm.mmap_lock, *(page.ptl for page in mm.pmd_pages.values())]
        for vma in mm.vmas:
            if vma.vm_lock.value:
                yield f"{vma}: the VMA lock is {vma.vm_lock.value}"
    for lock in locks:
        if lock.word.value:
            yield f"{lock} is {lock.word.value}"
    if kernel.pte_maps:
        yield f"{kernel.pte_maps} page tables are still mapped"
    for folio in now.folios:
        if kernel.mem.flags.raw[folio] & PG_LOCKED and folio not in outside.locked:
            yield f"folio {folio} is left locked"


def law_13_only_live_mms_are_scanned(now: Census, khugepaged: Khugepaged) -> Iterator[str]:
    """13. The daemon's list holds each registered mm once, and the cursor stands in it."""
    for mm, count in Counter(khugepaged.mm_slots).items():
        if count != 1 or not mm.flags.value & MMF_VM_HUGEPAGE:
            yield f"{mm} is {count} times in the list, flags {mm.flags.value:#x}"
    if khugepaged.mm_slot is not None and khugepaged.mm_slot not in khugepaged.mm_slots:
        yield f"the cursor stands at {khugepaged.mm_slot}, which is not in the list"


# Against an earlier census


def law_3_loads_see_what_was_stored(before: Census, now: Census) -> Iterator[str]:
    """3. A load sees what it would have seen before; holes and zero pages read 0."""
    for where in before.contents.keys() | now.contents.keys():
        old, new = before.contents.get(where, 0), now.contents.get(where, 0)
        if old != new:
            yield f"mm {where[0]}, {where[1]:#x}: reads {new}, was {old}"


def law_8_marks_survive(before: Census, now: Census) -> Iterator[str]:
    """8. Whoever was uffd write-protected or soft-dirty still is."""
    for where, old in before.entries.items():
        new = now.entries.get(where, 0)
        lost = old & ~new & (UFFD_WP | SOFT_DIRTY)
        if lost and old >> PFN_SHIFT:
            names = [name for bit, name in _MARKS.items() if lost & bit]
            yield f"mm {where[0]}, {where[1]:#x}: lost {' and '.join(names)}"


_MARKS = {UFFD_WP: "its write protection", SOFT_DIRTY: "its soft-dirty mark"}


def law_5_books_are_kept(before: Census, now: Census) -> Iterator[str]:
    """5. Process counters, gauges and cgroup charges moved exactly as what they count."""
    for mm, pages in now.books.items():
        counted = pages - before.books.get(mm, 0)
        really = now.anon_pages[mm] - before.anon_pages[mm]
        if counted != really:
            yield f"mm {mm}: MM_ANONPAGES moved by {counted}, mapped pages by {really}"
    for name, flag in (("nr_anon", PG_ANON), ("nr_anon_partially_mapped", PG_PARTIALLY_MAPPED)):
        moved = _by_order(now, flag)
        moved.subtract(_by_order(before, flag))
        for order in range(2, now.kernel.geometry.pmd_order + 1):
            counted = now.gauges[order, name] - before.gauges[order, name]
            if counted != moved[order]:
                yield f"order {order}: {name} moved by {counted}, folios by {moved[order]}"
    for n, usage in enumerate(before.usage):
        counted = now.usage[n] - usage
        if counted != now.charged[n] - before.charged[n]:
            yield f"memcg {n + 1}: usage moved by {counted}, not as its folios did"


def _by_order(census: Census, flag: int) -> Counter[int]:
    """Folios with a flag, by order."""
    return Counter(census.orders[f] for f, flags in census.flags.items() if flags & flag)


def law_11_an_abort_leaves_everything(before: Census, now: Census) -> Iterator[str]:
    """11. An aborted collapse changed no entry and no folio, but for pages it swapped in."""
    came_in = set()
    for where in before.entries.keys() | now.entries.keys():
        old, new = before.entries.get(where, 0), now.entries.get(where, 0)
        if not pte_none(old) and not pte_present(old) and pte_present(new):
            came_in.add(pte_pfn(new))
        elif old != new:
            yield f"mm {where[0]}, {where[1]:#x}: entry {new:#x}, was {old:#x}"
    for folio in before.flags.keys() - came_in:
        flags = before.flags[folio]
        if folio not in now.flags:
            yield f"folio {folio} is gone"
        elif now.flags[folio] != flags and not now.batched[folio] and not before.batched[folio]:
            yield f"folio {folio}: flags {now.flags[folio]:#x}, were {flags:#x}"


AT_REST: tuple[Callable[[Census], Iterator[str]], ...] = (
    law_1_freed_memory_is_unreachable,
    law_2_tlbs_agree_with_the_page_table,
    law_6_every_table_is_linked_or_deposited,
    law_7_nothing_is_overwritten_or_mapped_twice,
)
COMPARED: tuple[Callable[[Census, Census], Iterator[str]], ...] = (
    law_3_loads_see_what_was_stored,
    law_5_books_are_kept,
    law_8_marks_survive,
)


def _named(law: Callable[..., Iterator[str]], *arguments: object) -> Iterable[str]:
    number = law.__name__.split("_")[1]
    return (f"law {number}: {text}" for text in law(*arguments))


def check_quiescent(
    kernel: Kernel, khugepaged: Khugepaged, outside: Outside | None = None
) -> list[str]:
    """Every law that a world at rest breaks, one line each; empty if it is sound."""
    now = Census(kernel)
    outside = outside or Outside()
    broken = [line for law in AT_REST for line in _named(law, now)]
    broken += _named(law_4_mapcounts_are_mappings, now, outside)
    broken += _named(law_5_references_are_explained, now, outside)
    broken += _named(law_9_locks_balance, now, khugepaged, outside)
    broken += _named(law_13_only_live_mms_are_scanned, now, khugepaged)
    return broken


def check_collapse(before: Census, kernel: Kernel) -> list[str]:
    """Every law that khugepaged broke since `before`, if nobody else worked meanwhile."""
    now = Census(kernel)
    return [line for law in COMPARED for line in _named(law, before, now)]


def check_books(before: Census, now: Census) -> list[str]:
    """Whether counters, gauges and charges moved as what they count, whoever worked meanwhile."""
    return list(_named(law_5_books_are_kept, before, now))


def check_aborted(before: Census, kernel: Kernel) -> list[str]:
    """As check_collapse(), of a collapse that did not succeed."""
    now = Census(kernel)
    broken = [line for law in COMPARED for line in _named(law, before, now)]
    return [*broken, *_named(law_11_an_abort_leaves_everything, before, now)]
