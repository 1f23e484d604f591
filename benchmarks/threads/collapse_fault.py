# SPDX-License-Identifier: GPL-2.0-or-later
"""The world `pmd` of `mthp check --rivals fault` as two plain Python threads, for frontrun.

Needs nothing of the project: `python collapse_fault.py SECONDS` prints one JSON document. Words are
attributes of objects, kernel locks are locks of `threading`, and an atomic of the kernel is a change
under the folio's own lock, since a thread may lose its turn between any two bytecodes here. The steps
are those of benchmarks/spin/collapse_fault.pml.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

LOCKED, LRU, DIRTY, SWAPBACKED, UPTODATE, SWAPCACHE, ANON = 1, 2, 16, 32, 256, 512, 1024
NONE, TABLE, HUGE = 0, 1, 2
MOST_FAULTS = 4
STORED = 201


class Folio:
    """flags, refcount, mapcount, contents by page."""

    def __init__(self, flags: int = 0, refcount: int = 0, pages: int = 1) -> None:
        self.atomic = threading.Lock()
        self.flags = flags
        self.refcount = refcount
        self.mapcount = 0
        self.pages = pages
        self.first = self.second = 666

    def set(self, bits: int) -> int:
        """The old flags."""
        with self.atomic:
            old = self.flags
            self.flags = old | bits
        return old

    def clear(self, bits: int) -> int:
        """The old flags."""
        with self.atomic:
            old = self.flags
            self.flags = old & ~bits
        return old

    def get(self) -> None:
        """One reference more."""
        with self.atomic:
            self.refcount = self.refcount + 1

    def put(self) -> None:
        """One reference less."""
        with self.atomic:
            self.refcount = self.refcount - 1
            left = self.refcount
        if not left:
            self.free()

    def free(self) -> None:
        """Nobody refers to it any more."""
        assert not self.mapcount
        self.clear(0)
        self.clear(-1)


class RwLock:
    """A semaphore for readers and one writer, made of locks: the first reader shuts writers out."""

    def __init__(self) -> None:
        self.counting, self.writing = threading.Lock(), threading.Lock()
        self.readers = 0

    def read(self) -> None:
        """Wait for a writer to leave, then hold for reading."""
        with self.counting:
            if not self.readers:
                self.writing.acquire()
            self.readers += 1

    def try_read(self) -> bool:
        """Hold for reading, unless there is a writer."""
        with self.counting:
            if not self.readers and not self.writing.acquire(blocking=False):
                return False
            self.readers += 1
            return True

    def unread(self) -> None:
        """A reader leaves."""
        with self.counting:
            self.readers -= 1
            if not self.readers:
                self.writing.release()

    def write(self) -> None:
        """Wait for everybody to leave, then hold for writing."""
        self.writing.acquire()

    def unwrite(self) -> None:
        """The writer leaves."""
        self.writing.release()


class World:
    """Two PTEs, of which the first maps a page."""

    def __init__(self) -> None:
        self.mmap_lock, self.vm_lock = RwLock(), RwLock()
        self.anon_vma, self.pmd_lock, self.ptl = (threading.Lock() for _ in range(3))
        self.instruction, self.irqs_off = threading.Lock(), threading.Lock()
        self.mm_users, self.mm_flags, self.mm_mt = 1, 0, 0
        self.pmd = TABLE
        self.deposited = False
        self.source = Folio(UPTODATE | LRU | ANON | SWAPBACKED | DIRTY, 1)
        self.source.mapcount = 1
        self.source.first = 100
        self.new = Folio(0, 1, 2)
        self.first_pte: Folio | None = self.source
        self.second_pte: Folio | None = None
        self.tlb: Folio | None = None
        self.link = False
        self.succeeded = False
        self.loaded = -1
        self.stored = False
        self.broken: list[str] = []

    def pte(self, index: int) -> Folio | None:
        """What a PTE maps."""
        return self.second_pte if index else self.first_pte


# --- khugepaged -----------------------------------------------------------------------------


def revalidate(world: World) -> None:
    """hugepage_vma_revalidate()."""
    assert world.mm_users
    assert not world.mm_flags
    assert not world.mm_flags
    assert not world.mm_flags


def collapse(world: World) -> None:
    """collapse_huge_page()."""
    batch: list[Folio] = []
    world.mmap_lock.read()
    revalidate(world)
    valid = world.pmd == TABLE
    world.mmap_lock.unread()
    if valid:
        world.mmap_lock.write()
        revalidate(world)
        world.vm_lock.write()
        if world.pmd == TABLE:
            replace(world, batch)
        world.vm_lock.unwrite()
        world.mmap_lock.unwrite()
    if not world.succeeded:
        world.new.put()


def replace(world: World, batch: list[Folio]) -> None:
    """Its part under anon_vma."""
    world.anon_vma.acquire()
    world.pmd_lock.acquire()
    world.pmd = NONE
    with world.instruction:
        world.tlb = None
        world.link = False
    world.pmd_lock.release()
    with world.irqs_off:
        pass
    world.ptl.acquire()
    isolated = isolate(world)
    if not isolated:
        undo(world, batch)
    world.ptl.release()
    if not isolated:
        with world.pmd_lock:
            if world.pmd != NONE:
                world.broken.append("law 7")
            world.pmd = TABLE
        world.anon_vma.release()
        return
    world.anon_vma.release()
    copy(world)
    let_go(world, batch)
    world.new.set(UPTODATE)
    with world.pmd_lock:
        if world.pmd != NONE:
            world.broken.append("law 7")
        world.deposited = True
        world.new.set(ANON | SWAPBACKED)
        world.new.mapcount = 1
        add_lru(world.new, batch)
        move(batch)
        world.pmd = HUGE
    world.succeeded = True


def isolate(world: World) -> bool:
    """__collapse_huge_page_isolate(): whether every page was locked and taken off the LRU."""
    for index in range(2):
        folio = world.pte(index)
        if folio is None:
            continue
        assert folio.flags >= 0 and folio.mapcount <= 1
        if folio.set(LOCKED) & LOCKED:
            return False
        expected = (folio.flags & SWAPCACHE != 0) + folio.mapcount
        if expected != folio.refcount or not folio.clear(LRU) & LRU:
            folio.clear(LOCKED)
            return False
        folio.get()
        assert folio.flags >= 0
    return True


def undo(world: World, batch: list[Folio]) -> None:
    """release_pte_pages(): of this window only the first page can have been isolated."""
    folio = world.pte(0)
    assert folio is not None
    release(folio, batch)


def release(folio: Folio, batch: list[Folio]) -> None:
    """release_pte_folio()."""
    folio.clear(LOCKED)
    add_lru(folio, batch)
    folio.put()


def add_lru(folio: Folio, batch: list[Folio]) -> None:
    """folio_add_lru()."""
    folio.get()
    batch.append(folio)


def copy(world: World) -> None:
    """__collapse_huge_page_copy(), the contents."""
    for index in range(2):
        folio = world.pte(index)
        contents = folio.first if folio is not None else 0
        if index:
            world.new.second = contents
        else:
            world.new.first = contents


def let_go(world: World, batch: list[Folio]) -> None:
    """__collapse_huge_page_copy_succeeded()."""
    for index in range(2):
        folio = world.pte(index)
        if folio is None:
            continue
        release(folio, batch)
        with world.ptl:
            if index:
                world.second_pte = None
            else:
                world.first_pte = None
            with folio.atomic:
                folio.mapcount = folio.mapcount - 1
        assert not folio.flags & SWAPCACHE
        folio.put()


def move(batch: list[Folio]) -> None:
    """folio_batch_move_lru()."""
    dead: list[Folio] = []
    alive: list[Folio] = []
    for folio in batch:
        with folio.atomic:
            frozen = folio.refcount == 1
            if frozen:
                folio.refcount = 0
        if frozen:
            folio.clear(0)
            dead.append(folio)
        else:
            assert folio.flags >= 0
            folio.clear(0)
            folio.set(LRU)
            alive.append(folio)
    batch.clear()
    for folio in dead:
        folio.free()
    for folio in alive:
        folio.put()


# --- a CPU ----------------------------------------------------------------------------------


def translate(world: World) -> Folio | None:
    """The folio the second page is in, by TLB, walk cache or page table."""
    if world.tlb is None:
        if not world.link:
            pmd = world.pmd
            if pmd == NONE:
                return None
            if pmd == HUGE:
                world.tlb = world.new
                return world.new
            world.link = True
        world.tlb = world.second_pte
    return world.tlb


def store_and_load(world: World) -> None:
    """A store to the second page, then a load from it, faulting as often as it takes."""
    batch: list[Folio] = []
    for loading in (False, True):
        for _ in range(MOST_FAULTS):
            if access(world, loading):
                break
            fault(world, batch)


def access(world: World, loading: bool) -> bool:
    """One instruction; whether it found the page."""
    with world.instruction:
        folio = translate(world)
        if folio is None:
            return False
        if loading:
            world.loaded = folio.second if folio.pages == 2 else folio.first
        elif folio.pages == 2:
            folio.second = STORED
        else:
            folio.first = STORED
        world.stored = True
        return True


def fault(world: World, batch: list[Folio]) -> None:
    """Under the VMA lock, else under mmap_lock."""
    assert not world.mm_mt
    under_vma_lock = world.vm_lock.try_read()
    if not under_vma_lock:
        world.mmap_lock.read()
        if world.pmd == TABLE:
            world.pte(1)
    handle(world, batch)
    (world.vm_lock if under_vma_lock else world.mmap_lock).unread()


def handle(world: World, batch: list[Folio]) -> None:
    """handle_pte_fault() and do_anonymous_page()."""
    pmd = world.pmd
    if pmd == HUGE:
        with world.pmd_lock:
            world.pmd = pmd  # it is young and dirty already
        return
    if pmd == TABLE and world.second_pte is not None:
        return
    if world.pmd == NONE:
        world.broken.append("a table is allocated")
        return
    folio = Folio(0, 1)
    folio.first = 0
    folio.set(UPTODATE | SWAPBACKED)
    if world.pmd != TABLE:
        folio.put()
        return
    with world.ptl:
        if world.pmd == TABLE and world.second_pte is None:
            folio.set(ANON | SWAPBACKED)
            folio.mapcount = 1
            add_lru(folio, batch)
            world.second_pte = folio
            return
    folio.put()


# --- laws at rest ---------------------------------------------------------------------------


def lawful(world: World) -> bool:
    """Nothing was broken, and both pages read what was stored there last."""
    if world.pmd == HUGE:
        reads = world.new.first, world.new.second
    else:
        mapped = [folio.first if folio is not None else 0 for folio in map(world.pte, (0, 1))]
        reads = mapped[0], mapped[1]
    counted = world.new.mapcount == (world.pmd == HUGE)
    return not world.broken and counted and reads == (100, STORED) and world.loaded == STORED


def ends(world: World) -> tuple[Any, ...]:
    """The final state, as far as this model has one."""
    return (
        world.pmd,
        world.succeeded,
        world.first_pte is not None,
        world.second_pte is not None,
        world.source.refcount,
        world.source.flags,
        world.new.refcount,
        world.loaded,
    )


def main(seconds: float) -> None:
    """Explore for so long, without a bound on preemptions."""
    import frontrun  # type: ignore[import-not-found,unused-ignore]

    seen: set[tuple[Any, ...]] = set()

    def look(world: World) -> bool:
        seen.add(ends(world))
        return lawful(world)

    begin = time.perf_counter()
    result = frontrun.explore(
        setup=World,
        workers=[collapse, store_and_load],
        invariant=look,
        preemption_bound=None,
        stop_on_first=False,
        detect_io=False,
        total_timeout=seconds,
        timeout_per_run=60.0,
        reproduce_on_failure=0,
    )
    document = {
        "holds": result.property_holds,
        "executions": result.num_explored,
        "seconds": time.perf_counter() - begin,
        "ends": sorted(map(list, seen)),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main(float(sys.argv[1]))
