# SPDX-License-Identifier: GPL-2.0-or-later
"""Random programs of two processes and of the kernel behind their back, one call after the other.

After each call memory reads what was stored last, the laws hold, swap slots are named as often as
they say, and no lock is held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mthp.laws.census import Census, Outside
from mthp.laws.table import Moment, broken_at
from mthp.mm.folio import lru_add_drain_all
from mthp.mm.fork import dup_mmap, exit_mm
from mthp.mm.gup import gup_fast
from mthp.mm.huge_memory_split import split_folio, split_huge_pages_pid
from mthp.mm.ksm import ksm_do_scan
from mthp.mm.madvise import MADV_DONTNEED, MADV_FREE, LockMode, do_madvise
from mthp.mm.migrate import migrate_folio, move_page
from mthp.mm.mm_types import MM_SWAPENTS, Mm
from mthp.mm.mmu import load, store
from mthp.mm.mprotect import task_numa_work
from mthp.mm.mremap import do_mremap
from mthp.mm.page_flags import PG_SWAPCACHE
from mthp.mm.pgtable_types import (
    DIRTY,
    SOFT_DIRTY,
    WRITE,
    ZERO_PFN,
    Leaf,
    leaf_kind,
    pte_none,
    pte_pfn,
    pte_present,
)
from mthp.mm.swapfile import unuse_mm
from mthp.mm.task_mmu import clear_refs_write
from mthp.mm.userfaultfd import move_pages
from mthp.mm.vm_flags import VM_DEFAULT, VM_LOCKED, VM_MERGEABLE, VM_SOFTDIRTY, VM_UFFD_WP
from mthp.mm.vmscan import shrink_active_list, shrink_folio
from mthp.words.profiles import V7_3
from mthp.words.units import Folio
from tests.small_worlds import TINY, Piece, World, hole, huge, huge_fault, large, small, swap, zero

PAGES = 32
PLACES = (0x40000000, 0x50000000, 0x50005000)
"""Where the mapping may lie: in whole tables, and across three."""

LAYOUTS: dict[str, list[Piece]] = {
    "empty": [],
    "small": [small(16), hole(8), zero(4), swap(4)],
    "large": [large(2), large(3), small(2), hole(2), large(4)],
    "huge": [huge(4), small(8), hole(8)],
    "mixed": [large(3), swap(3), zero(5), huge(4)],
}


@dataclass
class Program:
    """What the processes' memory must read. given_up: pages that may read 0 instead."""

    world: World
    parent: Mm
    child: Mm | None = None
    place: dict[int, int] = field(default_factory=dict)
    contents: dict[tuple[int, int], int] = field(default_factory=dict)
    given_up: set[tuple[int, int]] = field(default_factory=set)
    next_value: int = 1000
    next_slot: int = 5000

    def processes(self) -> list[Mm]:
        return [self.parent] if self.child is None else [self.parent, self.child]

    def address(self, mm: Mm, page: int) -> int:
        return self.place[mm.number] + page * 0x1000

    def folio(self, mm: Mm, page: int) -> Folio | None:
        """The folio behind a page now, if there is one."""
        entry = Census(self.world.kernel).entries.get((mm.number, self.address(mm, page)), 0)
        pfn = pte_pfn(entry) if pte_present(entry) else ZERO_PFN
        return self.world.mem.page_folio(pfn) if pfn else None


Call = Callable[[Program, Mm, int], None]


def stores(program: Program, mm: Mm, page: int) -> None:
    program.next_value += 1
    value = program.next_value if page % 4 else 0
    assert store(mm, program.address(mm, page), value)
    program.contents[mm.number, page] = value
    program.given_up.discard((mm.number, page))
    entry = Census(program.world.kernel).entries[mm.number, program.address(mm, page)]
    assert entry & DIRTY and entry & SOFT_DIRTY


def loads(program: Program, mm: Mm, page: int) -> None:
    wanted = {program.contents[mm.number, page]}
    if (mm.number, page) in program.given_up:
        wanted.add(0)
    assert load(mm, program.address(mm, page)) in wanted


def huge_faults(program: Program, mm: Mm, page: int) -> None:
    huge_fault(mm, program.address(mm, page))


def empties(program: Program, mm: Mm, page: int) -> None:
    """MADV_DONTNEED to the end of the table, or of one page, under either lock."""
    start = program.address(mm, page)
    table_end = (start | 0xFFFF) + 1
    last = min(table_end, program.address(mm, PAGES)) if page % 3 else start + 0x1000
    lock_mode = LockMode.MMAP_READ if page % 2 else LockMode.VMA_READ
    do_madvise(mm, start, last, MADV_DONTNEED, lock_mode)
    if mm.vmas[0].vm_flags & VM_LOCKED:  # EINVAL
        return
    for each in range(page, page + (last - start >> 12)):
        program.contents[mm.number, each] = 0
        program.given_up.discard((mm.number, each))


def gives_up(program: Program, mm: Mm, page: int) -> None:
    address = program.address(mm, page)
    do_madvise(mm, address, address + 0x1000, MADV_FREE)
    program.given_up.add((mm.number, page))


def forks(program: Program, mm: Mm, page: int) -> None:
    """Once, with every page in memory: dup_mmap() leaves swapped ones out."""
    if program.child is not None:
        return
    for each in range(PAGES):
        unuse_mm(program.parent, program.address(program.parent, each))
    child = program.child = program.world.kernel.new_mm(2000)
    dup_mmap(child, program.parent, program.world.khugepaged.khugepaged_enter)
    program.place[child.number] = program.place[program.parent.number]
    for each in range(PAGES):
        program.contents[child.number, each] = program.contents[program.parent.number, each]
        if (program.parent.number, each) in program.given_up:
            program.given_up.add((child.number, each))


def exits(program: Program, mm: Mm, page: int) -> None:
    if program.child is None:
        return
    exit_mm(program.child, program.world.khugepaged.khugepaged_exit)
    program.world.kernel.mms.remove(program.child)
    if program.child in program.world.khugepaged.mm_slots:
        program.world.khugepaged.mm_slots.remove(program.child)
    program.contents = {k: v for k, v in program.contents.items() if k[0] == program.parent.number}
    program.given_up = {k for k in program.given_up if k[0] == program.parent.number}
    program.child = None


def moves(program: Program, mm: Mm, page: int) -> None:
    """mremap() to another place."""
    to = PLACES[(PLACES.index(program.place[mm.number]) + 1 + page % 2) % 3]
    if abs(to - program.place[mm.number]) < PAGES * 0x1000:
        to = PLACES[0]
    start = program.place[mm.number]
    do_mremap(mm, start, start + (PAGES << 12), to)
    program.place[mm.number] = to


def of_folio(act: Callable[[Program, Folio], None]) -> Call:
    """What the kernel does to a folio, if one is there."""

    def call(program: Program, mm: Mm, page: int) -> None:
        folio = program.folio(mm, page)
        if folio is not None:
            act(program, folio)

    return call


def swaps_out(program: Program, folio: Folio) -> None:
    if not program.world.mem.order.raw[folio]:
        program.next_slot += 2
        shrink_folio(program.world.kernel, folio, program.next_slot)


def drops(program: Program, folio: Folio) -> None:
    if not program.world.mem.order.raw[folio]:
        shrink_folio(program.world.kernel, folio)


def migrates(program: Program, folio: Folio) -> None:
    if not program.world.mem.order.raw[folio]:
        migrate_folio(program.world.kernel, folio)


def ages(program: Program, folio: Folio) -> None:
    if not program.world.mem.order.raw[folio]:
        shrink_active_list(program.world.kernel, folio)


def splits(program: Program, folio: Folio) -> None:
    kernel, mem = program.world.kernel, program.world.mem
    if mem.folio_try_get(folio):
        if mem.folio_test_large(folio) and mem.folio_trylock(folio):
            split_folio(kernel, folio, folio)
            mem.folio_unlock(folio)
        mem.folio_put(folio)


def gets(program: Program, mm: Mm, page: int) -> None:
    """GUP-fast for writing, and the reference is put again."""
    found = gup_fast(mm, program.address(mm, page))
    if found is not None:
        mem = program.world.mem
        assert mem.content.raw[found] == program.contents[mm.number, page]
        mem.folio_put(mem.page_folio(found))


def merges(program: Program, mm: Mm, page: int) -> None:
    """KSM: a page that reads 0 becomes the zero page, any other stays what it is."""
    ksm_do_scan(mm, program.address(mm, page), Folio(ZERO_PFN))


def user_moves(program: Program, mm: Mm, page: int) -> None:
    """UFFDIO_MOVE of a page to another place of the mapping, if nothing stands there."""
    to = (page * 5 + 7) % PAGES
    before = Census(program.world.kernel).entries
    source, target = program.address(mm, page), program.address(mm, to)
    move_pages(mm, target, source)
    after = Census(program.world.kernel).entries
    was_there = not pte_none(before.get((mm.number, source), 0))
    if was_there and pte_none(after.get((mm.number, source), 0)):
        assert pte_none(before.get((mm.number, target), 0))
        program.contents[mm.number, to] = program.contents[mm.number, page]
        program.contents[mm.number, page] = 0
        if (mm.number, page) in program.given_up:
            program.given_up.add((mm.number, to))


def hints(program: Program, mm: Mm, page: int) -> None:
    start = program.address(mm, page)
    task_numa_work(mm, start, min((start | 0xFFFF) + 1, program.address(mm, PAGES)))


CALLS: dict[str, Call] = {
    "stores": stores,
    "loads": loads,
    "faults in a huge page": huge_faults,
    "empties": empties,
    "gives up": gives_up,
    "forks": forks,
    "exits": exits,
    "moves the mapping": moves,
    "gets a page": gets,
    "merges": merges,
    "moves a page": user_moves,
    "hints": hints,
    "clears soft-dirty": lambda program, mm, page: clear_refs_write(mm),
    "swapoff": lambda program, mm, page: unuse_mm(mm, program.address(mm, page)),
    "move_pages": lambda program, mm, page: move_page(mm, program.address(mm, page)),
    "splits by address": lambda program, mm, page: split_huge_pages_pid(
        mm, program.address(mm, page)
    ),
    "splits": of_folio(splits),
    "swaps out": of_folio(swaps_out),
    "drops": of_folio(drops),
    "migrates": of_folio(migrates),
    "ages": of_folio(ages),
    "collapses": lambda program, mm, page: program.world.khugepaged.khugepaged_do_scan(),
}


FLAGS = {
    "plain": VM_DEFAULT,
    "userfaultfd and KSM": VM_DEFAULT | VM_UFFD_WP | VM_MERGEABLE,
    "locked": VM_DEFAULT | VM_LOCKED,
    "marked": VM_DEFAULT | VM_SOFTDIRTY,
}


def started(layout: str, place: int, flags: str) -> Program:
    world = World(
        geometry=TINY, profile=V7_3, orders={2, 3, 4}, max_ptes_none=15, max_ptes_swap=15, cpus=2
    )
    mm = world.mm
    program = Program(world, mm)
    program.place[mm.number] = PLACES[place]
    pieces = LAYOUTS[layout] if place < 2 else [p for p in LAYOUTS[layout] if p.kind.name != "HUGE"]
    vma = world.vma(*pieces, at=PLACES[place], pages=PAGES, flags=FLAGS[flags])
    mm.counters[MM_SWAPENTS] = len(world.kernel.swap.users)
    census = Census(world.kernel)
    for page in range(PAGES):
        value = census.contents.get((mm.number, world.address(vma, page)), 0)
        assert value is not None
        program.contents[mm.number, page] = value
    return program


class SecondaryMmu:
    """Keeps the ranges that it was told to let go of."""

    invalidating = 0

    def __init__(self) -> None:
        self.open: list[tuple[int, int]] = []
        self.told: list[tuple[int, int]] = []

    def invalidate_range_start(self, mm: Mm, start: int, end: int) -> None:
        self.open.append((start, end))
        self.told.append((start, end))

    def invalidate_range_end(self, mm: Mm, start: int, end: int) -> None:
        self.open.remove((start, end))

    def test_young(self, mm: Mm, address: int) -> bool:
        return False


def check_told(mmu: SecondaryMmu, mm: Mm, before: Census, now: Census) -> None:
    """Whatever is mapped differently, or may not be written any more, was said to go."""
    assert mmu.open == []
    for (number, address), old in before.entries.items():
        new = now.entries.get((number, address), 0)
        lost = pte_pfn(old) != pte_pfn(new) or not pte_present(new) or old & WRITE & ~new
        if number == mm.number and pte_present(old) and lost:
            assert any(start <= address < end for start, end in mmu.told), hex(address)
    mmu.told.clear()


def check(program: Program, before: Census) -> None:
    """What must be so after every call."""
    world = program.world
    kernel = world.kernel
    lru_add_drain_all(kernel.mem, kernel.cpus)
    world.kernel.machine.on_step = None
    assert kernel.machine.current.held == []
    assert world.check(Outside()) == []
    now = world.census()
    assert list(broken_at(Moment.COUNTED, before, now)) == []
    named: Counter[int] = Counter()
    for mm in program.processes():
        entries = [now.entries.get((mm.number, program.address(mm, n)), 0) for n in range(PAGES)]
        swapped = [
            pte_pfn(entry)
            for entry in entries
            if not pte_none(entry) and not pte_present(entry) and leaf_kind(entry) is Leaf.SWAP
        ]
        assert mm.counters[MM_SWAPENTS] == len(swapped)
        named.update(swapped)
        for page in range(PAGES):
            wanted = {program.contents[mm.number, page]}
            if (mm.number, page) in program.given_up:
                wanted.add(0)
            assert now.contents.get((mm.number, program.address(mm, page)), 0) in wanted
    assert kernel.swap.users == named
    cached = {f for f, flags in now.flags.items() if flags & PG_SWAPCACHE}
    assert set(kernel.swap.cache.values()) == cached
    assert [mm for mm in kernel.mms if len(mm.vmas) != 1] == []


@pytest.mark.parametrize("watched", [False, True])
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(list(LAYOUTS)),
    st.integers(0, 2),
    st.sampled_from(list(FLAGS)),
    st.lists(
        st.tuples(st.sampled_from(list(CALLS)), st.booleans(), st.integers(0, PAGES - 1)),
        max_size=14,
    ),
)
def test_every_program_leaves_memory_as_it_was_written(
    watched: bool, layout: str, place: int, flags: str, calls: list[tuple[str, bool, int]]
) -> None:
    """watched: the calls take steps, and the vectorised ways are not gone."""
    program = started(layout, place, flags)
    mmu = SecondaryMmu()
    program.parent.notifiers.append(mmu)
    for name, of_child, page in calls:
        mm = program.child if of_child and program.child is not None else program.parent
        before = program.world.census()
        if watched:
            program.world.kernel.machine.on_step = lambda access, word, index, bits: None
        CALLS[name](program, mm, page)
        check(program, before)
        if name != "forks":  # of which a secondary MMU is not told here
            check_told(mmu, program.parent, before, program.world.census())
        mmu.told.clear()
