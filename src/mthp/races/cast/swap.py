# SPDX-License-Identifier: GPL-2.0-or-later
"""Rivals around the swap device: reclaim that takes pages out, and all that brings them back."""

from __future__ import annotations

from mthp.mm.folio import lru_add_drain
from mthp.mm.madvise import MADV_COLD, MADV_FREE, MADV_PAGEOUT, do_madvise
from mthp.mm.memory import handle_user_fault
from mthp.mm.mmu import store
from mthp.mm.page_flags import PG_DIRTY, PG_LOCKED, PG_SWAPCACHE, PG_WRITEBACK
from mthp.mm.pagewalk import folio_walk
from mthp.mm.swapfile import unuse_mm
from mthp.mm.vmscan import folio_end_writeback, shrink_active_list, shrink_folio
from mthp.races.cast.accesses import store_and_load
from mthp.races.cast.rival import (
    BESIDE,
    HOLE,
    IS_LARGE,
    PAGES,
    WINDOW,
    OnStage,
    Rival,
    StagePart,
)
from mthp.races.stage import START, SWAP_SLOT, Stage
from mthp.words.units import Folio

IS_OUT = "below PMD order a window is left alone of which a page is out"
IN_WRITEBACK = HOLE | {StagePart.SWAP}


def _fault_and_rest(stage: Stage) -> None:
    """A store faults, and the page that was read comes to rest on the LRU."""
    handle_user_fault(stage.mm, stage.address(1), write=True)
    lru_add_drain(stage.kernel.mem, stage.kernel.this_cpu)


def _unuse_and_rest(stage: Stage) -> None:
    unuse_mm(stage.mm, stage.address(1))
    lru_add_drain(stage.kernel.mem, stage.kernel.this_cpu)


def _swap_out_beside(stage: Stage) -> None:
    if (page := stage.page_beside) is not None:
        shrink_folio(stage.kernel, page, SWAP_SLOT)


def _age(stage: Stage, page: Folio | None) -> None:
    if page is not None:
        shrink_active_list(stage.kernel, page)


def swapped_hole(stage: Stage) -> None:
    """The empty PTE of the window is a swapped page instead."""
    stage.swap_page(1, SWAP_SLOT + 1)


def _swapped_window(stage: Stage) -> None:
    """Both pages of the window are out, side by side: they come back as one folio where windows are
    smaller than a table.
    """
    stage.unmap_page(0)
    stage.swap_page(0, SWAP_SLOT + 1)
    stage.swap_page(1, SWAP_SLOT + 2)


def _being_read(stage: Stage) -> None:
    """The swapped page's read is under way: its folio is in the swap cache, locked."""
    swapped_hole(stage)
    stage.cache_swapped(1)


def _being_written(stage: Stage) -> None:
    """A page of the window was unmapped by reclaim, and is still being written to its slot."""
    stage.kernel.swap.synchronous = False
    _being_read(stage)
    page, mem = stage.pages[1], stage.kernel.mem
    mem.flags.raw[page] = mem.flags.raw[page] & ~PG_LOCKED | PG_WRITEBACK
    mem.anon_vma.raw[page] = 0
    mem.index.raw[page] = stage.address(1) >> stage.kernel.geometry.page_shift


def _written(stage: Stage) -> None:
    """Put a page in the swap cache whose write has ended already."""
    _being_written(stage)
    stage.kernel.mem.flags.raw[stage.pages[1]] &= ~PG_WRITEBACK


def _back_and_being_written(stage: Stage) -> None:
    """Map a page that was faulted back before its write has ended."""
    swap, mem = stage.kernel.swap, stage.kernel.mem
    swap.synchronous = False
    page = stage.map_page(1)
    mem.flags.raw[page] = mem.flags.raw[page] & ~PG_DIRTY | PG_SWAPCACHE | PG_WRITEBACK
    mem.refcount.raw[page] += 1
    swap.add_to_cache(SWAP_SLOT + 1, page, 1)


def _reuse_slot(stage: Stage) -> None:
    """Back in, stored to, and out again, to the same slot if it is free."""
    store(stage.mm, stage.address(1), 201)
    with stage.mm.mmap_read_lock():
        vma = stage.mm.find_vma(stage.address(1))
        page = folio_walk(vma, stage.address(1)) if vma is not None else None
    if page is None:
        return
    kernel, mem = stage.kernel, stage.kernel.mem
    folio = mem.page_folio(page)
    mem.folio_put(folio)
    lru_add_drain(mem, kernel.this_cpu)
    if not mem.folio_test_large(folio):  # it takes one slot
        shrink_folio(kernel, folio, SWAP_SLOT + 1)


def _of_page(behavior: int) -> OnStage:
    """Advice on the window's first page, which may be a part of a large folio."""
    return lambda stage: do_madvise(stage.mm, stage.window, stage.address(1), behavior)


def _of_table(behavior: int) -> OnStage:
    return lambda stage: do_madvise(stage.mm, START, stage.end, behavior)


def _free_large(stage: Stage) -> None:
    """All of the large folio is given up, and reclaim drops it."""
    do_madvise(stage.mm, stage.window, stage.address(2), MADV_FREE)
    shrink_folio(stage.kernel, stage.pages[0])


def _free_part(stage: Stage) -> None:
    """A page of the large folio is given up, which is split for that, and reclaim drops the page."""
    do_madvise(stage.mm, stage.window, stage.address(1), MADV_FREE)
    lru_add_drain(stage.kernel.mem, stage.kernel.this_cpu)
    shrink_folio(stage.kernel, stage.pages[0])


# fmt: off
SWAP = (
    Rival("swap-out", "reclaim swaps a page of the window out",
        lambda stage: shrink_folio(stage.kernel, stage.pages[0], SWAP_SLOT), reach=PAGES),
    Rival("swap-out-neighbour", "reclaim takes a page beside the window", _swap_out_beside,
        reach=PAGES, needs=BESIDE),
    Rival("referenced", "reclaim looks whether a page of the window was used",
        lambda stage: _age(stage, stage.pages[0]), reach=PAGES),
    Rival("referenced-beside", "the same of a page beside the window",
        lambda stage: _age(stage, stage.page_beside), reach=PAGES, needs=BESIDE),
    Rival("cold", "MADV_COLD of the whole table", _of_table(MADV_COLD)),
    Rival("cold-page", "MADV_COLD of a page of the window", _of_page(MADV_COLD)),
    Rival("cold-part", "MADV_COLD of a page of a large folio", _of_page(MADV_COLD), Stage.map_large,
        WINDOW),
    Rival("pageout", "MADV_PAGEOUT of the whole table", _of_table(MADV_PAGEOUT)),
    Rival("pageout-page", "MADV_PAGEOUT of a page of the window", _of_page(MADV_PAGEOUT)),
    Rival("pageout-part", "MADV_PAGEOUT of a page of a large folio", _of_page(MADV_PAGEOUT),
        Stage.map_large, WINDOW, never_below_pmd=f"{IS_LARGE}, and afterwards a page of it is out"),
    Rival("pageout-large", "MADV_PAGEOUT of the table, where the window is a large folio",
        _of_table(MADV_PAGEOUT), Stage.map_large, WINDOW, never_below_pmd=IS_LARGE),
    Rival("lazyfree-large", "MADV_FREE of a large folio, and reclaim that drops it", _free_large,
        Stage.map_large, WINDOW, never_below_pmd=IS_LARGE),
    Rival("lazyfree-part", "MADV_FREE of a page of a large folio, and reclaim that drops it", _free_part,
        Stage.map_large, WINDOW),
    Rival("swapped", "a page of the window is swapped out", prepare=swapped_hole, takes=HOLE,
        reach=PAGES, never_below_pmd=IS_OUT),
    Rival("swap-in", "a store faults at a swapped page of the window",
        _fault_and_rest, swapped_hole, HOLE),
    Rival("swap-in-store", "the same, with the store and a load through the TLB",
        lambda stage: store_and_load(stage, 1), swapped_hole, HOLE,
        never_below_pmd="what was swapped in waits in a batch of the LRU, with a reference"),
    Rival("swap-in-large", "a store faults where the whole window is swapped out",
        lambda stage: handle_user_fault(stage.mm, stage.window, write=True), _swapped_window, WINDOW,
        never_below_pmd=f"{IS_OUT}, and comes back as a folio as large as the window"),
    Rival("swap-read", "the read of a swapped page of the window ends",
        lambda stage: stage.kernel.mem.folio_unlock(stage.pages[1]), _being_read, HOLE, reach=PAGES,
        never_below_pmd=IS_OUT),
    Rival("swapoff", "swapoff brings a swapped page of the window back",
        _unuse_and_rest, swapped_hole, HOLE),
    Rival("writeback", "the write of a swapped page of the window ends",
        lambda stage: folio_end_writeback(stage.kernel, stage.pages[1], SWAP_SLOT + 1), _being_written,
        IN_WRITEBACK, reach=PAGES, never_below_pmd=IS_OUT),
    Rival("writeback-mapped", "the same of a page that was faulted back meanwhile",
        lambda stage: folio_end_writeback(stage.kernel, stage.pages[1], SWAP_SLOT + 1),
        _back_and_being_written, IN_WRITEBACK, reach=PAGES),
    Rival("swap-cache-free", "reclaim frees a swapped page of the window from the swap cache",
        lambda stage: shrink_folio(stage.kernel, stage.pages[1]), _written, IN_WRITEBACK,
        reach=PAGES, never_below_pmd=IS_OUT),
    Rival("slot-reuse", "a swapped page comes back, changes, and takes its slot again", _reuse_slot,
        swapped_hole, HOLE),
)
# fmt: on
