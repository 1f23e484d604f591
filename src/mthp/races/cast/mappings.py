# SPDX-License-Identifier: GPL-2.0-or-later
"""Rivals that change mappings: what is mapped, where, with which rights, and for how long."""

from __future__ import annotations

from mthp.mm.folio import lru_add_drain
from mthp.mm.fork import dup_mmap, dup_mmap_failing, exit_mm
from mthp.mm.madvise import MADV_FREE, LockMode, do_madvise
from mthp.mm.mmap import do_munmap, mmap_region, vm_munmap
from mthp.mm.mmu import store
from mthp.mm.mprotect import do_mprotect, task_numa_work
from mthp.mm.mremap import do_mremap, relocate_vma_down
from mthp.mm.page_flags import PG_LOCKED
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.reports import StoredTo
from mthp.mm.task_mmu import clear_refs_write
from mthp.mm.vm_flags import VM_DEFAULT, VM_NORESERVE, VM_READ, VM_SOFTDIRTY, VM_STACK_INCOMPLETE
from mthp.mm.vmscan import shrink_folio
from mthp.races.cast.faults import add_child, zap
from mthp.races.cast.rival import (
    ELSEWHERE,
    FIRST,
    IS_LARGE,
    TABLES,
    WINDOW,
    Reach,
    Rival,
)
from mthp.races.stage import FILE, START, Stage


def _lock_first_page(stage: Stage) -> None:
    """Another task holds the lock of the first page: the scan will stop at it."""
    stage.kernel.mem.flags.raw[stage.pages[0]] |= PG_LOCKED
    stage.kernel.mem.refcount.raw[stage.pages[0]] += 1


def _zap_locked(stage: Stage) -> None:
    stage.kernel.mem.folio_unlock(stage.pages[0])
    stage.kernel.mem.folio_put(stage.pages[0])
    zap(stage, START, stage.end)


def _put_and_zap(stage: Stage) -> None:
    stage.kernel.mem.folio_put(stage.pages[0])
    zap(stage, START, stage.end, LockMode.VMA_READ)


def _store_and_rest(stage: Stage, address: int, value: int) -> None:
    """The page that the store faults in comes to rest on the LRU, where a collapse may take it."""
    store(stage.mm, address, value)
    lru_add_drain(stage.kernel.mem, stage.kernel.this_cpu)


def _map_over(stage: Stage, start: int, vm_flags: int, file: str | None = None) -> None:
    """As do_mmap(), with an anon_vma from the start: anon_vma_prepare() would give it one in no step, while
    others look whether it has one."""
    mm = stage.mm
    with mm.mmap_write_lock():
        do_munmap(mm, start, stage.stop)
        mm.link_anon_vma(mmap_region(mm, start, stage.stop, vm_flags, file))


def _map_again(stage: Stage, start: int) -> None:
    """What the mapping has from start on becomes another mapping's, which is stored to."""
    _map_over(stage, start, VM_DEFAULT | VM_NORESERVE | VM_SOFTDIRTY)
    _store_and_rest(stage, max(start, stage.window), 220)


def _map_file(stage: Stage) -> None:
    mm, kernel = stage.mm, stage.kernel
    _map_over(stage, stage.start, VM_DEFAULT | VM_SOFTDIRTY, FILE)
    for address in range(stage.start, stage.stop, mm.geometry.page_size):
        kernel.report(StoredTo(mm, address, kernel.files[FILE], kernel.machine.current.name))
    _store_and_rest(stage, stage.window, 210)


def _zap_second(stage: Stage) -> None:
    zap(stage, stage.address(1), stage.address(2))


def _free_lazily(stage: Stage) -> None:
    do_madvise(stage.mm, stage.window, stage.address(1), MADV_FREE)
    lru_add_drain(stage.kernel.mem, stage.kernel.this_cpu)
    shrink_folio(stage.kernel, stage.pages[0])


def _free_and_store(stage: Stage) -> None:
    """What was stored after it must be there once reclaim has come by."""
    store(stage.mm, stage.window, 200)
    do_madvise(stage.mm, stage.window, stage.address(1), MADV_FREE)
    lru_add_drain(stage.kernel.mem, stage.kernel.this_cpu)
    store(stage.mm, stage.window, 201)
    shrink_folio(stage.kernel, stage.pages[0])


def _hint_and_store(stage: Stage) -> None:
    task_numa_work(stage.mm, START, stage.end)
    store(stage.mm, stage.window, 200)


def _clear_and_store(stage: Stage) -> None:
    clear_refs_write(stage.mm)
    store(stage.mm, stage.window, 200)


def _fork_fails(stage: Stage) -> None:
    child = stage.children["fork-fails"]
    dup_mmap_failing(child, stage.mm, stage.khugepaged.khugepaged_enter)


def _reach_far(stage: Stage) -> None:
    """There are PMDs there already: that they appear is no step, and walks by rmap look for them."""
    pmd_ptr(stage.mm, stage.far, create=True)


STACK = "exec's temporary stack is left alone, and is elsewhere once it is shifted"

# fmt: off
MAPPINGS = (
    Rival("zap", "MADV_DONTNEED of the whole table",
        lambda stage: zap(stage, START, stage.end)),
    Rival("zap-page", "MADV_DONTNEED of one page of the window",
        lambda stage: zap(stage, stage.window, stage.address(1))),
    Rival("zap-second", "MADV_DONTNEED of the window's second page", _zap_second),
    Rival("zap-vma", "MADV_DONTNEED of the whole table under the VMA lock",
        lambda stage: zap(stage, START, stage.end, LockMode.VMA_READ)),
    Rival("zap-page-vma", "the same of one page of the window",
        lambda stage: zap(stage, stage.window, stage.address(1), LockMode.VMA_READ)),
    Rival("zap-locked", "a locked page is unlocked and zapped", _zap_locked, _lock_first_page, FIRST),
    Rival("zap-put", "a reference to a page is put, and the table zapped and given back", _put_and_zap,
        lambda stage: stage.kernel.mem.refcount.take(stage.pages[0], 1), FIRST),
    Rival("zap-large", "MADV_DONTNEED of a page of a large folio", _zap_second, Stage.map_large,
        WINDOW, never_below_pmd=IS_LARGE),
    Rival("lazyfree", "MADV_FREE of a page, and reclaim that drops it", _free_lazily),
    Rival("lazyfree-store", "MADV_FREE of a page between two stores, and then reclaim", _free_and_store),
    Rival("remap", "mmap() over the whole mapping, and a store there",
        lambda stage: _map_again(stage, stage.start)),
    Rival("remap-file", "mmap() of a file over the mapping, of which a page is stored to", _map_file),
    Rival("remap-tail", "mmap() over all but the first page of the window, and a store there",
        lambda stage: _map_again(stage, stage.address(1))),
    Rival("remap-last", "mmap() over the mapping's last table, and a store there",
        lambda stage: _map_again(stage, stage.last), needs=TABLES),
    Rival("shrink-last", "munmap() of the mapping's last table",
        lambda stage: vm_munmap(stage.mm, stage.last, stage.stop), needs=TABLES),
    Rival("shrink", "munmap() of all but the first page of the window",
        lambda stage: vm_munmap(stage.mm, stage.address(1), stage.stop)),
    Rival("mremap", "mremap() moves the whole table elsewhere",
        lambda stage: do_mremap(stage.mm, stage.start, stage.stop, stage.far), _reach_far, takes=ELSEWHERE),
    Rival("mremap-ptes", "mremap() moves the table's pages one by one",
        lambda stage: do_mremap(stage.mm, stage.start, stage.stop,
            stage.far + stage.kernel.geometry.page_size),
        _reach_far, takes=ELSEWHERE),
    Rival("mprotect", "mprotect() takes the right to store away",
        lambda stage: do_mprotect(stage.mm, START, stage.end, VM_READ)),
    Rival("numa-hint", "NUMA hints are given to the table, and a store hits one", _hint_and_store),
    Rival("soft-dirty", "soft-dirty marks are cleared, then a page is stored to", _clear_and_store),
    Rival("fork", "fork() of the process",
        lambda stage: dup_mmap(stage.children["fork"], stage.mm, stage.khugepaged.khugepaged_enter),
        lambda stage: add_child(stage, "fork")),
    Rival("fork-fails", "fork() that fails half way", _fork_fails,
        lambda stage: add_child(stage, "fork-fails")),
    Rival("exec", "exec builds its temporary stack here", vm_flags=VM_STACK_INCOMPLETE,
        never_collapses=STACK),
    Rival("exec-shift", "exec shifts its temporary stack",
        lambda stage: relocate_vma_down(stage.mm, 2 * stage.start - stage.stop),
        vm_flags=VM_STACK_INCOMPLETE, reach=Reach.ALONE, never_collapses=STACK),
    Rival("exit", "the process exits",
        lambda stage: exit_mm(stage.mm, stage.khugepaged.khugepaged_exit), reach=Reach.ALONE),
)
# fmt: on
