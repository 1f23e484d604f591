# SPDX-License-Identifier: GPL-2.0-or-later
"""The laws of a world in which no task works: one function a law.

Each compares a Census with the counts that the engine keeps and with what actors outside the world
hold, or with a Census taken earlier. None of this steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mthp.khugepaged.daemon import Khugepaged
from mthp.laws.broken import Broken, Kind, Thing
from mthp.laws.census import Census, Outside, Where
from mthp.machine.locks import Lock
from mthp.machine.task import Task
from mthp.mm.mm_types import MM_ANONPAGES, MMF_VM_HUGEPAGE, TableState
from mthp.mm.page_flags import (
    ENTIRELY_MAPPED,
    PAGE_ANON_EXCLUSIVE,
    PG_ANON,
    PG_ISOLATED,
    PG_LOCKED,
    PG_LRU,
    PG_MAPPED_SHARED,
    PG_PARTIALLY_MAPPED,
    PG_UPTODATE,
)
from mthp.mm.pgtable_types import (
    NO_ACCESS,
    PFN_SHIFT,
    PRESENT,
    SOFT_DIRTY,
    UFFD_WP,
    WRITE,
    pmd_page,
    pte_none,
    pte_pfn,
    pte_present,
)


class Rest(NamedTuple):
    """A world at rest. now: what stands in it. outside: what others hold. tasks: those that worked."""

    now: Census
    khugepaged: Khugepaged
    outside: Outside
    tasks: Sequence[Task]


def law_1_freed_memory_is_unreachable(rest: Rest) -> Iterator[Broken]:
    """Nothing maps, queues or caches a frame that was freed."""
    now = rest.now
    mem = now.kernel.mem
    reached = {"mapped": now.pte_mappings, "mapped by a PMD": now.pmd_mappings}
    reached |= {"in a batch": now.batched, "in the swap cache": Counter(now.kernel.swap.entry_of)}
    for how, pages in reached.items():
        for page in pages:
            if mem.is_free(mem.head.raw[page]):
                yield Broken(1, Thing(Kind.PAGE, page), f"page {page} is free and {how}")


def law_2_tlbs_agree_with_the_page_table(rest: Rest) -> Iterator[Broken]:
    """No CPU keeps a translation, or a right to store, that the page table no longer gives."""
    kernel, entries = rest.now.kernel, rest.now.entries
    for cpu in kernel.cpus:
        who = Thing(Kind.CPU, cpu.number)
        for entry in cpu.tlb.value:
            for i in range(1 << entry.order):
                vpn = entry.vpn + i
                pte = entries.get((entry.mm, vpn << kernel.geometry.page_shift), 0)
                frame = pmd_page(entry.entry, i) if entry.order else pte_pfn(entry.entry)
                if not pte & PRESENT or pte_pfn(pte) != frame:
                    text = f"CPU {cpu.number} translates page {vpn:#x} to a frame it lost"
                    yield Broken(2, who, text)
                elif pte & NO_ACCESS or entry.entry & WRITE & ~pte:
                    text = f"CPU {cpu.number} keeps a right to page {vpn:#x} that was taken"
                    yield Broken(2, who, text)


def law_4_mapcounts_are_mappings(rest: Rest) -> Iterator[Broken]:
    """Every mapcount equals the page table entries that map the page, here and elsewhere."""
    now, outside = rest.now, rest.outside
    mem = now.kernel.mem
    for folio in now.folios:
        nr = 1 << mem.order.raw[folio]
        for page in range(folio, folio + nr):
            want = now.pte_mappings[page] + outside.mappings.get(page, 0)
            if mem.mapcount.raw[page] != want:
                text = f"page {page}: mapcount {mem.mapcount.raw[page]}, mappings {want}"
                yield Broken(4, Thing(Kind.PAGE, page), text)
        if nr > 1:
            for name, (have, want) in _large_counts(rest, folio, nr).items():
                if have != want:
                    text = f"folio {folio}: {name} {have}, should be {want}"
                    yield Broken(4, Thing(Kind.FOLIO, folio), text)


def _large_counts(rest: Rest, folio: int, nr: int) -> dict[str, tuple[int, int]]:
    """The counts of a large folio: name -> (what it is, what it should be)."""
    mem = rest.now.kernel.mem
    entire = rest.now.pmd_mappings[folio] + rest.outside.huge_mappings.get(folio, 0)
    mapcounts = mem.mapcount.raw[folio : folio + nr]
    ptes, mapped = sum(mapcounts), sum(count > 0 for count in mapcounts)
    counts = {
        "entire_mapcount": (mem.entire_mapcount.raw[folio], entire),
        "large_mapcount": (mem.large_mapcount.raw[folio], ptes + entire),
        "nr_pages_mapped": (
            mem.nr_pages_mapped.raw[folio],
            mapped + (ENTIRELY_MAPPED if entire else 0),
        ),
    }
    by_mm = mem.mm_mapcounts.get(mem.head.raw[folio])
    if by_mm is not None:
        # Those of further mms are nobody's; but without them nothing is shared.
        have = sum(by_mm.values())
        shared = mem.flags.raw[folio] & PG_MAPPED_SHARED
        want = min(have, ptes + entire) if shared else ptes + entire
        counts["mappings by process"] = have, want
    return counts


def law_5_references_are_explained(rest: Rest) -> Iterator[Broken]:
    """Every refcount equals mappings, swap cache, batches and what others hold; none is isolated."""
    now, outside = rest.now, rest.outside
    mem = now.kernel.mem
    for folio in {*now.folios, *outside.references}:
        want = now.explained_references(folio) + outside.references.get(folio, 0)
        if not mem.refcount.raw[folio]:
            yield Broken(5, Thing(Kind.FOLIO, folio), f"folio {folio} is left frozen")
        elif mem.refcount.raw[folio] != want:
            text = f"folio {folio}: refcount {mem.refcount.raw[folio]}, explained {want}"
            yield Broken(5, Thing(Kind.FOLIO, folio), text)
    for folio in now.folios:
        flags = mem.flags.raw[folio]
        if flags & PG_ISOLATED:
            yield Broken(5, Thing(Kind.FOLIO, folio), f"folio {folio} is left isolated")
        mapped = now.explained_references(folio) > now.batched[folio]
        if mapped and not (flags & PG_LRU or now.batched[folio] or folio in outside.off_lru):
            text = f"folio {folio} is neither on the LRU nor in a batch"
            yield Broken(5, Thing(Kind.FOLIO, folio), text)


def law_6_every_table_is_linked_or_deposited(rest: Rest) -> Iterator[Broken]:
    """Every table that is not freed is linked or deposited once; a deposited one is empty; one waits under
    each huge PMD, and under no other.
    """
    for number, table in rest.now.kernel.tables.items():
        what = Thing(Kind.TABLE, number)
        linked, deposited = rest.now.linked[number], rest.now.deposited[number]
        if linked + deposited != (table.state is TableState.LIVE):
            text = f"table {number} is linked {linked} times and deposited {deposited} times"
            yield Broken(6, what, text)
        if deposited and any(table.ptes.raw):
            yield Broken(6, what, f"table {number} is deposited and not empty")
    for where, (wanted, found) in rest.now.deposits.items():
        if wanted != found:
            text = f"{_name(where)}: {found} tables wait under the PMD, and should be {wanted}"
            yield Broken(6, Thing(Kind.PMD, _name(where)), text)


def law_7_nothing_is_overwritten_or_mapped_twice(rest: Rest) -> Iterator[Broken]:
    """No PMD was overwritten, and a page that is exclusive or writable is mapped once."""
    now = rest.now
    mem = now.kernel.mem
    if "collapse_huge_page" in now.kernel.warnings:
        warning = now.kernel.warnings["collapse_huge_page"]
        yield Broken(7, Thing(Kind.PMD, "collapse_huge_page"), warning)
    for page in sorted({*now.pte_mappings, *now.pmd_mappings}):
        mappings = now.pte_mappings[page] + now.pmd_mappings[mem.head.raw[page]]
        exclusive = mem.page_flags.raw[page] & PAGE_ANON_EXCLUSIVE
        if mappings > 1 and (exclusive or now.writable[page]):
            text = f"page {page} is exclusive or writable, and mapped {mappings} times"
            yield Broken(7, Thing(Kind.PAGE, page), text)


def law_9_locks_balance(rest: Rest) -> Iterator[Broken]:
    """No lock is held, no table is mapped, and no folio is locked except by others."""
    kernel = rest.now.kernel
    for task in rest.tasks:
        for hold in task.held:
            yield Broken(9, Thing(Kind.LOCK, str(hold)), f"{task.name} still holds {hold}")
    for mm in kernel.mms:
        for vma in mm.vmas:
            if vma.vm_lock.value:
                text = f"{vma}: the VMA lock is {vma.vm_lock.value}"
                yield Broken(9, Thing(Kind.VMA, str(vma)), text)
        if mm.vmas and any(each.invalidating for each in mm.notifiers):
            text = f"a secondary MMU of mm {mm.number} is not told that it may map again"
            yield Broken(9, Thing(Kind.MM, mm.number), text)
    for lock in _locks(rest):
        if lock.word.value:
            yield Broken(9, Thing(Kind.LOCK, str(lock)), f"{lock} is {lock.word.value}")
    maps = sum(len(task.maps) for task in rest.tasks)
    if maps:
        yield Broken(9, Thing(Kind.COUNTER, "pte_maps"), f"{maps} page tables are still mapped")
    for folio in rest.now.folios:
        if kernel.mem.flags.raw[folio] & PG_LOCKED and folio not in rest.outside.locked:
            yield Broken(9, Thing(Kind.FOLIO, folio), f"folio {folio} is left locked")


def _locks(rest: Rest) -> Iterator[Lock]:
    kernel = rest.now.kernel
    yield rest.khugepaged.mm_lock
    yield from (each.rwsem for each in kernel.anon_vmas)
    yield from (table.ptl for table in kernel.tables.values())
    for mm in kernel.mms:
        yield mm.mmap_lock
        yield from (page.ptl for page in mm.pmd_pages.values())


def law_13_only_live_mms_are_scanned(rest: Rest) -> Iterator[Broken]:
    """The daemon's list holds each registered mm once, and the cursor stands in it."""
    khugepaged = rest.khugepaged
    for mm, count in Counter(khugepaged.mm_slots).items():
        if count != 1 or not mm.flags.value & MMF_VM_HUGEPAGE:
            text = f"{mm} is {count} times in the list, flags {mm.flags.value:#x}"
            yield Broken(13, Thing(Kind.MM, mm.number), text)
    if khugepaged.mm_slot is not None and khugepaged.mm_slot not in khugepaged.mm_slots:
        text = f"the cursor stands at {khugepaged.mm_slot}, which is not in the list"
        yield Broken(13, Thing(Kind.MM_LIST, "cursor"), text)


# Where other tasks may have worked too: what must be so in the end


def law_3_mapped_pages_are_up_to_date(rest: Rest) -> Iterator[Broken]:
    """Nothing is mapped whose contents were never written."""
    mem = rest.now.kernel.mem
    for page in sorted({*rest.now.pte_mappings, *rest.now.pmd_mappings}):
        if not mem.flags.raw[mem.head.raw[page]] & PG_UPTODATE:
            yield Broken(3, Thing(Kind.PAGE, page), f"page {page} is mapped and not up to date")


def law_13_ended_mms_are_not_listed(rest: Rest) -> Iterator[Broken]:
    """An mm that has ended has left the daemon's list, unless the cursor stands at it."""
    for mm in rest.khugepaged.mm_slots:
        if not mm.mm_users.value and mm is not rest.khugepaged.mm_slot:
            text = f"{mm} has ended, and is left in the list behind the cursor"
            yield Broken(13, Thing(Kind.MM, mm.number), text)


def law_4_migrations_have_ended(rest: Rest) -> Iterator[Broken]:
    """No migration entry outlives its migration."""
    for page in sorted(rest.now.migrating):
        yield Broken(4, Thing(Kind.PAGE, page), f"a migration entry of page {page} is stranded")


# Against an earlier census


def law_3_loads_see_what_was_stored(before: Census, now: Census) -> Iterator[Broken]:
    """A load sees what it would have seen before; holes and zero pages read 0."""
    for where in before.contents.keys() | now.contents.keys():
        old, new = before.contents.get(where, 0), now.contents.get(where, 0)
        if old != new:
            name = _name(where)
            yield Broken(3, Thing(Kind.ADDRESS, name), f"{name}: reads {new}, was {old}")


def law_5_books_are_kept(before: Census, now: Census) -> Iterator[Broken]:
    """Process counters, gauges and cgroup charges moved exactly as what they count."""
    for (mm, name), pages in now.books.items():
        counted = pages - before.books.get((mm, name), 0)
        really = now.counted[mm, name] - before.counted[mm, name]
        if counted != really:
            what = "mapped pages" if name == MM_ANONPAGES else "swapped ones"
            text = f"mm {mm}: {name} moved by {counted}, {what} by {really}"
            yield Broken(5, Thing(Kind.COUNTER, f"{name} of mm {mm}"), text)
    for entry in before.swapped | now.swapped:
        counted = now.users.get(entry, 0) - before.users.get(entry, 0)
        really = now.swapped[entry] - before.swapped[entry]
        if counted != really:
            text = f"swap slot {entry}: its users moved by {counted}, PTEs that name it by {really}"
            yield Broken(5, Thing(Kind.COUNTER, f"users of slot {entry}"), text)
    for name, flag in (("nr_anon", PG_ANON), ("nr_anon_partially_mapped", PG_PARTIALLY_MAPPED)):
        moved = _by_order(now, flag)
        moved.subtract(_by_order(before, flag))
        for order in range(2, now.kernel.geometry.pmd_order + 1):
            counted = now.gauges[order, name] - before.gauges[order, name]
            if counted != moved[order]:
                text = f"order {order}: {name} moved by {counted}, folios by {moved[order]}"
                yield Broken(5, Thing(Kind.COUNTER, f"{name} of order {order}"), text)
    for n, usage in enumerate(before.usage):
        counted = now.usage[n] - usage
        if counted != now.charged[n] - before.charged[n]:
            text = f"memcg {n + 1}: usage moved by {counted}, not as its folios did"
            yield Broken(5, Thing(Kind.COUNTER, f"memcg {n + 1}"), text)


def _by_order(census: Census, flag: int) -> Counter[int]:
    """Folios with a flag, by order."""
    return Counter(census.orders[f] for f, flags in census.flags.items() if flags & flag)


def law_8_marks_survive(before: Census, now: Census) -> Iterator[Broken]:
    """What was write-protected by userfaultfd or soft-dirty still is."""
    for where, old in before.entries.items():
        lost = old & ~now.entries.get(where, 0) & (UFFD_WP | SOFT_DIRTY)
        if lost and old >> PFN_SHIFT:
            names = [name for bit, name in _MARKS.items() if lost & bit]
            kind = Kind.WRITE_PROTECTED if lost & UFFD_WP else Kind.SOFT_DIRTY_MARK
            text = f"{_name(where)}: lost {' and '.join(names)}"
            yield Broken(8, Thing(kind, _name(where)), text)


_MARKS = {UFFD_WP: "its write protection", SOFT_DIRTY: "its soft-dirty mark"}


def law_11_an_abort_leaves_everything(before: Census, now: Census) -> Iterator[Broken]:
    """An aborted collapse changed no entry and no folio, except for pages that it swapped in."""
    came_in = set()
    for where in before.entries.keys() | now.entries.keys():
        old, new = before.entries.get(where, 0), now.entries.get(where, 0)
        if not pte_none(old) and not pte_present(old) and pte_present(new):
            came_in.add(pte_pfn(new))
        elif old != new:
            text = f"{_name(where)}: entry {new:#x}, was {old:#x}"
            yield Broken(11, Thing(Kind.ADDRESS, _name(where)), text)
    for folio in before.flags.keys() - came_in:
        flags, what = before.flags[folio], Thing(Kind.FOLIO, folio)
        if folio not in now.flags:
            yield Broken(11, what, f"folio {folio} is gone")
        elif now.flags[folio] != flags and not now.batched[folio] and not before.batched[folio]:
            text = f"folio {folio}: flags {now.flags[folio]:#x}, were {flags:#x}"
            yield Broken(11, what, text)


def _name(where: Where) -> str:
    return f"mm {where[0]}, {where[1]:#x}"
