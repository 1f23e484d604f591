# SPDX-License-Identifier: GPL-2.0-or-later
"""Who plays: the collapser and its rivals by name, each put on a stage by one function."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from functools import partial
from types import MappingProxyType

from mthp.khugepaged import collapse
from mthp.khugepaged.control import Caller, CollapseControl
from mthp.khugepaged.scan import collapse_scan_pmd
from mthp.mm.fork import dup_mmap, dup_mmap_failing, exit_mm
from mthp.mm.gup import pin_and_write
from mthp.mm.madvise import madvise_dontneed
from mthp.mm.memory import handle_mm_fault, handle_user_fault
from mthp.mm.migrate import migrate_folio
from mthp.mm.mmu import load, store
from mthp.mm.page_flags import PAGE_HWPOISON, PG_LOCKED
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.userfaultfd import mwriteprotect_range
from mthp.mm.vm_flags import VM_DEFAULT, VM_STACK_INCOMPLETE, VM_UFFD_WP
from mthp.mm.vma import munmap_and_mmap
from mthp.mm.vmscan import shrink_folio
from mthp.races.cast.huge import HUGE
from mthp.races.cast.moves import MOVES
from mthp.races.cast.pages import PAGES
from mthp.races.cast.rival import FIRST, HOLE, WINDOW, Act, Rival, Who
from mthp.races.secondary_mmu import SecondaryMmu
from mthp.races.stage import START, SWAP_SLOT, Size, Stage


def collapser(stage: Stage) -> None:
    """khugepaged, from the allocation of the new folio on."""
    cc = CollapseControl(Caller.KHUGEPAGED)
    unmapped = len(stage.swapped)
    collapse.collapse_huge_page(stage.mm, START, 1, unmapped, cc, stage.order)


def scan(stage: Stage) -> None:
    """khugepaged, from the scan of the table on."""
    cc = CollapseControl(Caller.KHUGEPAGED)
    with stage.mm.mmap_read_lock() as mmap_lock:
        vma = stage.mm.find_vma(START)
        if vma is not None:
            collapse_scan_pmd(stage.mm, vma, START, mmap_lock, cc)


def scan_all(stage: Stage) -> None:
    """khugepaged's daemon: one full scan of every registered mm, twice."""
    stage.khugepaged.khugepaged_do_scan()
    stage.khugepaged.khugepaged_do_scan()


class Start(Enum):
    """Where khugepaged begins."""

    COLLAPSE = "collapse_huge_page()"
    SCAN = "collapse_scan_pmd()"
    DAEMON = "khugepaged_do_scan()"

    @property
    def act(self) -> Act:
        """What its task does."""
        acts = {Start.COLLAPSE: collapser, Start.SCAN: scan, Start.DAEMON: scan_all}
        return acts[self]


def second_collapser(stage: Stage) -> None:
    """MADV_COLLAPSE of the same table."""
    cc = CollapseControl(Caller.MADVISE)
    collapse.collapse_huge_page(stage.mm, START, 1, 0, cc, stage.order)


def fault_swapped(stage: Stage) -> None:
    """A store to the swapped page, as far as its fault: it comes back."""
    handle_user_fault(stage.mm, stage.address(1), write=True)


def store_page(index: int, stage: Stage) -> None:
    """Store to a page, and load it again."""
    store(stage.mm, stage.address(index), 200 + index)
    load(stage.mm, stage.address(index))


def load_page(stage: Stage) -> None:
    """Load from the first page."""
    load(stage.mm, START)


def store_twice(stage: Stage) -> None:
    """Two stores: the second through whatever the first left in the TLB."""
    store(stage.mm, START, 200)
    store(stage.mm, START, 201)


def fault_hole(stage: Stage) -> None:
    """Touch the empty PTE of the window."""
    store_page(1, stage)


def read_fault(stage: Stage) -> None:
    """Read the empty PTE of the window: the zero page."""
    handle_user_fault(stage.mm, stage.address(1), write=False)


def gup(stage: Stage) -> None:
    """Pin the first page, and let a device write to it."""
    pin_and_write(stage.mm, START, 300)


def zap(stage: Stage) -> None:
    """MADV_DONTNEED over the whole table."""
    madvise_dontneed(stage.mm, START, stage.end)


def zap_page(stage: Stage) -> None:
    """MADV_DONTNEED over the first page."""
    madvise_dontneed(stage.mm, START, stage.address(1))


def store_neighbour(stage: Stage) -> None:
    """Two stores to a page of the same table outside the window."""
    if stage.size is Size.WINDOW:
        store(stage.mm, stage.address(2), 200)
        store(stage.mm, stage.address(2), 201)


def swap_out_neighbour(stage: Stage) -> None:
    """Reclaim takes a page of the same table outside the window."""
    if stage.size is Size.WINDOW:
        shrink_folio(stage.kernel, stage.pages[2], SWAP_SLOT)


def migrate(stage: Stage) -> None:
    """Migrate the first page of the window."""
    migrate_folio(stage.kernel, stage.pages[0])


def migrate_neighbour(stage: Stage) -> None:
    """Migrate a page of the same table outside the window."""
    if stage.size is Size.WINDOW:
        migrate_folio(stage.kernel, stage.pages[2])


def unmap_and_map(stage: Stage) -> None:
    """munmap(), and mmap() of the same range."""
    munmap_and_mmap(stage.mm, START, stage.end)


def store_both(stage: Stage) -> None:
    """A store that caches the link to the table, and one that uses it."""
    store(stage.mm, START, 200)
    store(stage.mm, stage.address(1), 201)


def lock_first_page(stage: Stage) -> None:
    """Somebody holds the lock of the first page: the scan will stop at it."""
    stage.kernel.mem.flags.raw[stage.pages[0]] |= PG_LOCKED
    stage.kernel.mem.refcount.raw[stage.pages[0]] += 1


def zap_locked(stage: Stage) -> None:
    """The holder unlocks the page, then MADV_DONTNEED frees it."""
    stage.kernel.mem.folio_unlock(stage.pages[0])
    stage.kernel.mem.folio_put(stage.pages[0])
    zap(stage)


def poison(stage: Stage) -> None:
    """The first page cannot be read any more."""
    stage.kernel.mem.page_flags.raw[stage.pages[0]] |= PAGE_HWPOISON


def large_source(stage: Stage) -> None:
    """The window is one large folio."""
    stage.map_large()


def poison_second(stage: Stage) -> None:
    """One large folio, whose second page cannot be read."""
    stage.map_large()
    stage.kernel.mem.page_flags.raw[stage.pages[1]] |= PAGE_HWPOISON


def nothing(stage: Stage) -> None:
    """No rival: the mapping is what is special."""


def fork_all(stage: Stage) -> None:
    """fork() of the process."""
    child = stage.children["fork"]
    dup_mmap(child, stage.mm, stage.khugepaged.khugepaged_enter)


def fork_failing(stage: Stage) -> None:
    """fork() that fails half way."""
    child = stage.children["fork-fails"]
    dup_mmap_failing(child, stage.mm, stage.vma, stage.khugepaged.khugepaged_enter)


def add_child(name: str, stage: Stage) -> None:
    """An empty mm, with the page that will hold its PMDs."""
    child = stage.children[name] = stage.kernel.new_mm(2 + len(stage.children), name)
    pmd_ptr(child, START, create=True)


def leave(stage: Stage) -> None:
    """The process exits."""
    exit_mm(stage.mm, stage.khugepaged.khugepaged_exit)


def swap_out(stage: Stage) -> None:
    """Reclaim takes the first page."""
    shrink_folio(stage.kernel, stage.pages[0], SWAP_SLOT)


def swap_page(stage: Stage) -> None:
    """The empty PTE of the window is a swapped page instead."""
    stage.swap_page(1, SWAP_SLOT + 1)


def read_swap(stage: Stage) -> None:
    """The swapped page's read is under way: its folio is in the swap cache, locked."""
    swap_page(stage)
    stage.cache_swapped(1)


def end_of_read(stage: Stage) -> None:
    """The read ends."""
    stage.kernel.mem.folio_unlock(stage.pages[1])


def fill_window(stage: Stage) -> None:
    """The window has no empty PTE."""
    stage.map_page(1)


def write_protect(stage: Stage) -> None:
    """userfaultfd write-protects the first page."""
    mwriteprotect_range(stage.mm, START)


def add_guest(stage: Stage) -> None:
    """A guest that maps the first page already."""
    stage.guest = SecondaryMmu(stage.mm)
    stage.guest.sptes[START] = stage.pages[0]


def guest_store(stage: Stage) -> None:
    """The guest stores to the first page."""
    assert stage.guest is not None
    stage.guest.store(START, 400)


def fault_without_locks(stage: Stage) -> None:
    """A fault that takes neither mmap_lock nor the VMA lock, as a core dumper's once did."""
    handle_mm_fault(stage.vma, stage.address(1), write=True)


_RIVALS = (
    Rival("store", "a CPU stores to a page of the window", partial(store_page, 0)),
    Rival("store-twice", "a CPU stores twice, the second time through its TLB", store_twice),
    Rival("fault", "a CPU stores to the window's empty PTE", fault_hole),
    Rival("zero-fault", "a CPU reads the window's empty PTE", read_fault),
    Rival("load", "a CPU loads from a page of the window", load_page),
    Rival("gup", "GUP-fast pins a page, a device writes to it later", gup),
    Rival("zap", "MADV_DONTNEED of the whole table", zap),
    Rival("zap-page", "MADV_DONTNEED of one page of the window", zap_page),
    Rival("migrate", "migration of a page of the window", migrate, who=Who.PAGES),
    Rival(
        "migrate-neighbour",
        "migration of a page beside the window",
        migrate_neighbour,
        who=Who.PAGES,
    ),
    Rival("remap", "munmap() and mmap() of the same range", unmap_and_map),
    Rival("fork", "fork() of the process", fork_all, prepare=partial(add_child, "fork")),
    Rival(
        "fork-fails",
        "fork() that fails half way",
        fork_failing,
        prepare=partial(add_child, "fork-fails"),
    ),
    Rival("exit", "the process exits", leave, who=Who.ALONE),
    Rival("swap-out", "reclaim swaps a page of the window out", swap_out, who=Who.PAGES),
    Rival(
        "swap-in",
        "a store faults at a swapped page of the window",
        fault_swapped,
        prepare=swap_page,
        takes=HOLE,
    ),
    Rival(
        "swap-in-store",
        "the same, with the store and a load through the TLB",
        fault_hole,
        prepare=swap_page,
        takes=HOLE,
    ),
    Rival(
        "swap-read",
        "the read of a swapped page of the window ends",
        end_of_read,
        prepare=read_swap,
        takes=HOLE,
        who=Who.PAGES,
    ),
    Rival(
        "uffd-wp",
        "userfaultfd write-protects a page of the window",
        write_protect,
        VM_UFFD_WP,
        fill_window,
        HOLE,
    ),
    Rival("guest", "a guest stores to a page its MMU maps", guest_store, prepare=add_guest),
    Rival("fault-unlocked", "a fault that takes no lock (a core dumper's)", fault_without_locks),
    Rival("store-both", "a CPU stores to both pages, the second through a cached link", store_both),
    Rival("exec", "exec builds its temporary stack here", nothing, VM_STACK_INCOMPLETE),
    Rival(
        "swapped",
        "a page of the window is swapped out",
        nothing,
        prepare=swap_page,
        takes=HOLE,
        who=Who.PAGES,
    ),
    Rival(
        "zap-locked",
        "a locked page is unlocked and zapped",
        zap_locked,
        prepare=lock_first_page,
        takes=FIRST,
    ),
    Rival("store-neighbour", "a CPU stores twice to a page beside the window", store_neighbour),
    Rival(
        "swap-out-neighbour",
        "reclaim takes a page beside the window",
        swap_out_neighbour,
        who=Who.PAGES,
    ),
    Rival(
        "poisoned",
        "a page of the window is poisoned, and migrated",
        migrate,
        prepare=poison,
        takes=FIRST,
        who=Who.PAGES,
    ),
    Rival("large", "the window is a large folio", nothing, prepare=large_source, takes=WINDOW),
    Rival(
        "large-poisoned",
        "the same, with a poisoned page",
        nothing,
        prepare=poison_second,
        takes=WINDOW,
    ),
    Rival(
        "gup-large",
        "GUP-fast pins a page of a large folio",
        gup,
        prepare=large_source,
        takes=WINDOW,
    ),
    Rival("madv-collapse", "MADV_COLLAPSE of the same window", second_collapser),
)
RIVALS: Mapping[str, Rival] = MappingProxyType(
    {rival.name: rival for rival in (*_RIVALS, *PAGES, *MOVES, *HUGE)}
)
COLLAPSER = "khugepaged"


def get_along(a: str, b: str) -> bool:
    """Whether two rivals can be in one world."""
    return RIVALS[a].gets_along(RIVALS[b])


UNLAWFUL = frozenset({"fault-unlocked"})
"""Rivals that keep no rules; only mutants have them."""
LAWFUL = tuple(name for name in RIVALS if name not in UNLAWFUL)


def vm_flags(rivals: tuple[Rival, ...]) -> int:
    """What the mapping must be."""
    flags = VM_DEFAULT
    for rival in rivals:
        flags |= rival.vm_flags
    return flags
