# SPDX-License-Identifier: GPL-2.0-or-later
"""Rivals whose faults give folios of every order, or find one that may not be stored to."""

from __future__ import annotations

from mthp.mm.fork import dup_mmap
from mthp.mm.madvise import MADV_DONTNEED, LockMode, do_madvise
from mthp.mm.mmu import load, store
from mthp.mm.page_flags import PAGE_ANON_EXCLUSIVE
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import WRITE, pmd_folio, pmd_trans_huge, pte_pfn, pte_present
from mthp.races.cast.accesses import store_and_load
from mthp.races.cast.rival import BESIDE, BESIDE_WINDOW, IS_LARGE, TABLES, WINDOW, Rival
from mthp.races.stage import START, Stage


def _every_order(stage: Stage) -> None:
    """A fault may try each size that the settings allow."""
    stage.kernel.fault_orders = ~0


def _room_beside(stage: Stage) -> None:
    """Nothing stands beside the window, so that one folio may take all of it."""
    _every_order(stage)
    if stage.beside is not None:
        stage.unmap_page(stage.beside)


def zap(stage: Stage, start: int, end: int, lock_mode: LockMode = LockMode.MMAP_READ) -> None:
    """MADV_DONTNEED; under mmap_lock as before Linux 6.16, or where the VMA's lock does not suffice."""
    do_madvise(stage.mm, start, end, MADV_DONTNEED, lock_mode)


def _zap_and_store(stage: Stage) -> None:
    zap(stage, START, stage.end)
    store(stage.mm, stage.window, 200)


def _zap_load_and_store(stage: Stage) -> None:
    """The load is given the huge zero page, which the store does not leave there."""
    zap(stage, START, stage.end)
    load(stage.mm, stage.window)
    store(stage.mm, stage.window, 200)


def _zap_window_and_store(stage: Stage) -> None:
    end = stage.window + stage.kernel.geometry.order_bytes(stage.order)
    zap(stage, stage.window, end)
    store(stage.mm, stage.window, 200)


def _store_beside(stage: Stage) -> None:
    if stage.beside is not None:
        store_and_load(stage, stage.beside)


def _store_to_missing_table(stage: Stage) -> None:
    store(stage.mm, START + stage.kernel.geometry.pmd_size, 200)


def add_child(stage: Stage, name: str) -> None:
    """An empty mm, with the page that will hold its PMDs."""
    child = stage.children[name] = stage.kernel.new_mm(2 + len(stage.children), name)
    pmd_ptr(child, START, create=True)


def _large_and_child(stage: Stage) -> None:
    stage.map_large()
    add_child(stage, "fork-store-large")


def _fork_and_store(stage: Stage, name: str) -> None:
    dup_mmap(stage.children[name], stage.mm, stage.khugepaged.khugepaged_enter)
    store(stage.mm, stage.window, 230)


def _was_shared(stage: Stage) -> None:
    """Let what the mapping has be as fork() left it, whose child has ended: read-only, and not known to be
    this process's alone.
    """
    mem, pmd = stage.kernel.mem, pmd_ptr(stage.mm, START)
    assert pmd is not None
    pmdval = pmd.page.pmds.raw[pmd.slot]
    if pmd_trans_huge(pmdval):
        pmd.page.pmds.raw[pmd.slot] &= ~WRITE
        mem.page_flags.raw[pmd_folio(pmdval)] &= ~PAGE_ANON_EXCLUSIVE
    for i, pteval in enumerate(stage.table.ptes.raw):
        if pte_present(pteval) and pte_pfn(pteval):
            stage.table.ptes.raw[i] = pteval & ~WRITE
            mem.page_flags.raw[pte_pfn(pteval)] &= ~PAGE_ANON_EXCLUSIVE


def _large_was_shared(stage: Stage) -> None:
    stage.map_large()
    _was_shared(stage)


# fmt: off
FAULTS = (
    Rival("any-fault", "a CPU stores to the window's empty PTE, and the fault may give a large folio",
        lambda stage: store_and_load(stage, 1), _every_order),
    Rival("huge-fault", "the table is zapped, and a store's fault puts a huge page there",
        _zap_and_store, _every_order),
    Rival("huge-zero-fault",
        "the table is zapped, a load is given the huge zero page, and a store a huge page in its place",
        _zap_load_and_store, _every_order),
    Rival("large-fault", "the window is zapped, and a store's fault puts a large folio there",
        _zap_window_and_store, _every_order, needs=BESIDE),
    Rival("large-fault-beside", "a store's fault puts a large folio beside the window",
        _store_beside, _room_beside, BESIDE_WINDOW, needs=BESIDE),
    Rival("table-fault", "a store's fault puts a huge page where there is no table",
        _store_to_missing_table, _every_order, needs=TABLES),
    Rival("fork-store", "fork(), and then a store to a page of the window",
        lambda stage: _fork_and_store(stage, "fork-store"),
        lambda stage: add_child(stage, "fork-store")),
    Rival("fork-store-large", "the same where the window is a large folio",
        lambda stage: _fork_and_store(stage, "fork-store-large"), _large_and_child, WINDOW,
        never_below_pmd=IS_LARGE),
    Rival("reuse", "a store to a page that was shared with a child, which has ended",
        lambda stage: store_and_load(stage, 0), _was_shared),
    Rival("reuse-large", "the same where the window is a large folio",
        lambda stage: store_and_load(stage, 0), _large_was_shared, WINDOW, never_below_pmd=IS_LARGE),
)
# fmt: on
