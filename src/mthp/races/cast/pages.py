# SPDX-License-Identifier: GPL-2.0-or-later
"""Rivals that do something to a page where it stands, or to the right to reach it."""

from __future__ import annotations

from functools import partial
from typing import Final

from mthp.mm.folio import lru_add_drain
from mthp.mm.ksm import ksm_do_scan
from mthp.mm.madvise import madvise_dontneed_vma_locked, madvise_free
from mthp.mm.memory import handle_user_fault
from mthp.mm.memory_failure import memory_failure
from mthp.mm.mmu import store
from mthp.mm.mprotect import mprotect, task_numa_work
from mthp.mm.page_flags import (
    PG_ANON,
    PG_KSM,
    PG_LOCKED,
    PG_LRU,
    PG_SWAPBACKED,
    PG_UPTODATE,
    PG_WRITEBACK,
)
from mthp.mm.pagewalk import folio_walk
from mthp.mm.swapfile import unuse_mm
from mthp.mm.task_mmu import clear_refs_write
from mthp.mm.userfaultfd import mfill_atomic, userfaultfd_register
from mthp.mm.vm_flags import VM_DEFAULT, VM_MERGEABLE, VM_UFFD_MISSING
from mthp.mm.vmscan import (
    discard_folio,
    folio_end_writeback,
    free_swapped,
    shrink_active_list,
    shrink_folio,
)
from mthp.races.cast.rival import ELSEWHERE, FIRST, HOLE, WINDOW, Rival, Spot, Who
from mthp.races.lockless_walker import perf_get_page_size
from mthp.races.stage import START, SWAP_SLOT, Stage

KSM_PAGE: Final = PG_UPTODATE | PG_LRU | PG_ANON | PG_SWAPBACKED | PG_KSM


def age(index: int, stage: Stage) -> None:
    """Reclaim looks whether a page was used."""
    if index in stage.pages:
        shrink_active_list(stage.kernel, stage.pages[index])


def merged_page(stage: Stage) -> None:
    """A page of the same contents, which ksmd has merged in another process."""
    other = stage.kernel.new_mm(9, "other")
    stage.elsewhere = stage.map_elsewhere(other, START, VM_DEFAULT, 100, KSM_PAGE)


def zeroes(stage: Stage) -> None:
    """The first page holds nothing but zeroes."""
    stage.kernel.mem.content.raw[stage.pages[0]] = 0


def merge(stage: Stage) -> None:
    """ksmd merges the first page with one that holds the same."""
    ksm_do_scan(stage.mm, START, stage.elsewhere)


def fail_memory(stage: Stage) -> None:
    """The first page's memory fails."""
    memory_failure(stage.kernel, stage.pages[0])


def hint_and_store(stage: Stage) -> None:
    """NUMA hints for the table, and a store that hits one."""
    task_numa_work(stage.mm, START, stage.end)
    store(stage.mm, START, 200)


def read_only(stage: Stage) -> None:
    """mprotect(PROT_READ) of the mapping."""
    mprotect(stage.mm, START, stage.end)


def clear_and_store(stage: Stage) -> None:
    """Soft-dirty marks are cleared, then a page is stored to."""
    clear_refs_write(stage.mm)
    store(stage.mm, START, 200)


def look(stage: Stage) -> None:
    """perf asks for the size of the first page."""
    perf_get_page_size(stage.mm, START)


def copy_in(stage: Stage) -> None:
    """UFFDIO_COPY fills the hole."""
    mfill_atomic(stage.mm, stage.address(1), 500)


def register(stage: Stage) -> None:
    """userfaultfd takes the mapping's holes in charge."""
    userfaultfd_register(stage.mm, START)


def zap_vma_locked(stage: Stage) -> None:
    """MADV_DONTNEED of the table, under the VMA lock."""
    madvise_dontneed_vma_locked(stage.mm, START, stage.end)


def zap_page_vma_locked(stage: Stage) -> None:
    """MADV_DONTNEED of the first page, under the VMA lock."""
    madvise_dontneed_vma_locked(stage.mm, START, stage.address(1))


def give_up(stage: Stage) -> None:
    """MADV_FREE of the first page, and reclaim that drops it."""
    madvise_free(stage.mm, START, stage.address(1))
    discard_folio(stage.kernel, stage.pages[0])


def swapped_out(stage: Stage) -> None:
    """The empty PTE of the window is a swapped page instead."""
    stage.swap_page(1, SWAP_SLOT + 1)


def both_swapped_out(stage: Stage) -> None:
    """Both pages of the window are out, side by side: they come back as one folio where windows are
    smaller than a table.
    """
    stage.unmap_page(0)
    stage.swap_page(0, SWAP_SLOT + 1)
    stage.swap_page(1, SWAP_SLOT + 2)


def swap_off(stage: Stage) -> None:
    """swapoff brings the swapped page back."""
    unuse_mm(stage.mm, stage.address(1))


def fault_first(stage: Stage) -> None:
    """A store to the first page, as far as its fault."""
    handle_user_fault(stage.mm, START, write=True)


def being_written(stage: Stage) -> None:
    """A page of the window was unmapped by reclaim, and is still being written to its slot."""
    stage.kernel.swap.synchronous = False
    swapped_out(stage)
    stage.cache_swapped(1)
    page = stage.pages[1]
    flags = stage.kernel.mem.flags.raw[page] & ~PG_LOCKED
    stage.kernel.mem.flags.raw[page] = flags | PG_WRITEBACK
    stage.kernel.mem.anon_vma.raw[page] = 0
    stage.kernel.mem.index.raw[page] = stage.address(1) >> stage.kernel.geometry.page_shift


def end_of_write(stage: Stage) -> None:
    """The write ends."""
    folio_end_writeback(stage.kernel, stage.pages[1], SWAP_SLOT + 1)


def written(stage: Stage) -> None:
    """The same, where the write has ended already."""
    being_written(stage)
    stage.kernel.mem.flags.raw[stage.pages[1]] &= ~PG_WRITEBACK


def free_written(stage: Stage) -> None:
    """Reclaim frees the page, if nobody has taken it from the swap cache again."""
    free_swapped(stage.kernel, stage.pages[1], SWAP_SLOT + 1)


def reuse_slot(stage: Stage) -> None:
    """A swapped page comes back, is stored to, and goes out again, to the same slot if it is free."""
    store(stage.mm, stage.address(1), 201)
    vma = stage.mm.find_vma(stage.address(1))
    page = folio_walk(vma, stage.address(1)) if vma is not None else None
    if page is None:
        return
    mem = stage.kernel.mem
    mem.folio_put(mem.page_folio(page))
    lru_add_drain(mem, stage.kernel.this_cpu)
    if not mem.folio_test_large(mem.page_folio(page)):
        shrink_folio(stage.kernel, page, SWAP_SLOT + 1)


PAGES = (
    Rival(
        "referenced",
        "reclaim looks whether a page of the window was used",
        partial(age, 0),
        who=Who.PAGES,
    ),
    Rival(
        "referenced-beside",
        "the same of a page beside the window",
        partial(age, 2),
        who=Who.PAGES,
    ),
    Rival(
        "ksm",
        "ksmd merges a page of the window with another process's",
        merge,
        VM_MERGEABLE,
        merged_page,
        ELSEWHERE,
    ),
    Rival(
        "ksm-zero",
        "ksmd puts the zero page in the place of a page of zeroes",
        merge,
        VM_MERGEABLE,
        zeroes,
        FIRST | ELSEWHERE,
    ),
    Rival("hwpoison", "the memory of a page of the window fails", fail_memory, who=Who.PAGES),
    Rival("numa-hint", "NUMA hints are given to the table, and a store hits one", hint_and_store),
    Rival("mprotect", "mprotect() takes the right to store away", read_only),
    Rival("soft-dirty", "soft-dirty marks are cleared, then a page is stored to", clear_and_store),
    Rival("perf", "perf walks the table without a lock", look),
    Rival("uffd-copy", "UFFDIO_COPY fills the window's empty PTE", copy_in, VM_UFFD_MISSING),
    Rival("uffd-register", "userfaultfd takes the window's empty PTE in charge", register),
    Rival("zap-vma", "MADV_DONTNEED of the whole table under the VMA lock", zap_vma_locked),
    Rival("zap-page-vma", "the same of one page of the window", zap_page_vma_locked),
    Rival("lazyfree", "MADV_FREE of a page, and reclaim that drops it", give_up),
    Rival(
        "swapoff",
        "swapoff brings a swapped page of the window back",
        swap_off,
        prepare=swapped_out,
        takes=HOLE,
    ),
    Rival(
        "swap-in-large",
        "a store faults where the whole window is swapped out",
        fault_first,
        prepare=both_swapped_out,
        takes=WINDOW,
    ),
    Rival(
        "writeback",
        "the write of a swapped page of the window ends",
        end_of_write,
        prepare=being_written,
        takes=HOLE | {Spot.SWAP},
        who=Who.PAGES,
    ),
    Rival(
        "swap-cache-free",
        "reclaim frees a swapped page of the window from the swap cache",
        free_written,
        prepare=written,
        takes=HOLE | {Spot.SWAP},
        who=Who.PAGES,
    ),
    Rival(
        "slot-reuse",
        "a swapped page comes back, changes, and takes its slot again",
        reuse_slot,
        prepare=swapped_out,
        takes=HOLE,
    ),
)
