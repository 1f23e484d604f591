# SPDX-License-Identifier: GPL-2.0-or-later
"""Every result the anonymous path can return, each from a smallest world that returns it.

A case builds its world, runs one scan or one collapse, and says which function answered. After each
the laws hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from mthp.mm.mm_types import MMF_DISABLE_THP_COMPLETELY, Vma
from mthp.mm.page_alloc import NodeState
from mthp.mm.page_flags import PG_ANON, PG_LRU, PG_UPTODATE, PG_ZONE_DEVICE
from mthp.mm.pgtable_types import (
    KIND_SHIFT,
    PFN_SHIFT,
    PMD_NONE,
    SPECIAL,
    UFFD_WP,
    Leaf,
    leaf_pte,
)
from mthp.mm.vm_flags import VM_DEFAULT, VM_NOHUGEPAGE, VM_UFFD_WP
from mthp.words.results import FILE_ONLY, ScanResult
from tests.small_worlds import (
    BAD_PMD,
    TINY,
    Piece,
    World,
    hole,
    huge,
    large,
    lazyfree,
    leaf,
    no_table,
    old,
    scans,
    shared,
    small,
    swap,
    zero,
)

R = ScanResult


@dataclass(frozen=True)
class Case:
    """result, from which function, and the world it takes. run: gives the result."""

    result: ScanResult
    where: str
    run: Callable[[], tuple[World, ScanResult]]


def scan_of(*pieces: Piece, flags: int = VM_DEFAULT, meddle: object = None, **world: object):  # type: ignore[no-untyped-def]
    """The scan's answer over one table."""

    def run() -> tuple[World, ScanResult]:
        made = World(geometry=TINY, **world)  # type: ignore[arg-type]
        vma = made.vma(*pieces, flags=flags)
        if callable(meddle):
            meddle(made, vma)
        before = made.census()
        result = scans(made.scan())[0]
        made.assert_sound(before, aborted=result is not R.SUCCEED)
        return made, result

    return run


def collapse_of(  # type: ignore[no-untyped-def]
    *pieces: Piece,
    order: int = 4,
    page: int = 0,
    unmapped: int = 0,
    meddle: object = None,
    flags: int = VM_DEFAULT,
    **world: object,
):
    """collapse_huge_page()'s answer, called on a world of its own."""

    def run() -> tuple[World, ScanResult]:
        made = World(geometry=TINY, **{"orders": {2, 3, 4}, **world})  # type: ignore[arg-type]
        vma = made.vma(*pieces, flags=flags)
        if callable(meddle):
            meddle(made, vma)
        before = made.census()
        result = made.collapse(vma, order, page, unmapped=unmapped)
        made.kernel.machine.on_step = None
        made.assert_sound(before, aborted=result is not R.SUCCEED)
        return made, result

    return run


def after_allocating(change: Callable[[World, Vma], None]) -> Callable[[World, Vma], None]:
    """Change the world before mmap_lock is taken for reading."""
    return lambda world, vma: world.before_lock(world.mm.mmap_lock, 1, lambda: change(world, vma))


def between_locks(change: Callable[[World, Vma], None]) -> Callable[[World, Vma], None]:
    """Change the world after mmap_lock was dropped, before it is taken for writing."""
    return lambda world, vma: world.before_lock(world.mm.mmap_lock, 2, lambda: change(world, vma))


def unmap(world: World, vma: Vma) -> None:
    world.mm.unlink_vma(vma)


def shrink(world: World, vma: Vma) -> None:
    world.mm.vma_set_range(vma, vma.vm_start, vma.vm_end - world.geometry.page_size)


def advise_against(world: World, vma: Vma) -> None:
    vma.vm_flags |= VM_NOHUGEPAGE


def exit_process(world: World, vma: Vma) -> None:
    world.mm.mm_users.write(0)


def disable_thp(world: World, vma: Vma) -> None:
    world.mm.mm_flags_set(MMF_DISABLE_THP_COMPLETELY)


def become_file(world: World, vma: Vma) -> None:
    """Unmapped, and a file mapped there instead: the orders allow nothing."""
    vma.file = "libc.so"


def lose_anon_vma(world: World, vma: Vma) -> None:
    vma.anon_vma = None


def other_pmd_page(world: World, vma: Vma) -> None:
    """Page tables were freed and built anew: the same address, another page of PMDs."""
    pages = world.mm.pmd_pages
    number, page = next(iter(pages.items()))
    copy = type(page)(world.kernel, "another")
    copy.pmds.raw[:] = page.pmds.raw[:]
    pages[number] = copy


def pmd_goes(value: int) -> Callable[[World, Vma], None]:
    return lambda world, vma: world.set_pmd(vma, value)


def distant_nodes(world: World, vma: Vma) -> None:
    world.kernel.node_reclaim = True
    world.kernel.distances = ((10, 40), (40, 10))


def device_page(world: World, vma: Vma) -> None:
    world.mem.flags.raw[world.folio(vma, 3)] |= PG_ZONE_DEVICE


def deferred_memcg(world: World, vma: Vma) -> None:
    world.mm.memcg = world.kernel.new_memcg("deferred")
    world.mm.memcg.defer = True


def full_memcg(world: World, vma: Vma) -> None:
    world.mm.memcg = world.kernel.new_memcg("full", limit=100, usage=90)


MIGRATING = Leaf.MIGRATION << KIND_SHIFT | 1 << PFN_SHIFT
TWO_NODES = (NodeState(), NodeState())
NOT_ANON = PG_UPTODATE | PG_LRU


CASES = [
    # Anything that ended well or said nothing in particular
    Case(R.SUCCEED, "scan", scan_of(small(16))),
    Case(R.SUCCEED, "collapse, PMD order", collapse_of(small(16))),
    Case(R.SUCCEED, "collapse, below", collapse_of(small(16), order=2, page=8)),
    Case(R.FAIL, "mthp_collapse: no candidate", scan_of(small(3), hole(13), orders={2}, max_ptes_none=0)),
    Case(R.FAIL, "swapin: guard", collapse_of(small(15), leaf(Leaf.GUARD), unmapped=1)),
    Case(
        R.FAIL,
        "swapin: guard, through the scan",
        scan_of(small(15), leaf(Leaf.GUARD), max_ptes_swap=1),
    ),
    Case(
        R.FAIL,
        "check_pmd_still_valid: another PMD",
        collapse_of(small(16), meddle=between_locks(other_pmd_page)),
    ),
    # No table to look at
    Case(R.NO_PTE_TABLE, "scan: no page of PMDs", scan_of(no_table(16))),
    Case(R.NO_PTE_TABLE, "scan: none", scan_of(meddle=pmd_goes(PMD_NONE))),
    Case(R.NO_PTE_TABLE, "scan: bad", scan_of(meddle=pmd_goes(BAD_PMD))),
    Case(
        R.NO_PTE_TABLE, "scan: not present", scan_of(meddle=pmd_goes(leaf_pte(Leaf.DEVICE, 1)))
    ),
    Case(R.NO_PTE_TABLE, "find_pmd", collapse_of(meddle=pmd_goes(PMD_NONE))),
    # Huge already
    Case(R.PMD_MAPPED, "scan: huge", scan_of(huge(4))),
    Case(R.PMD_MAPPED, "scan: migration", scan_of(meddle=pmd_goes(MIGRATING))),
    Case(R.PMD_MAPPED, "find_pmd: huge", collapse_of(huge(4))),
    Case(R.PMD_MAPPED, "find_pmd: migration", collapse_of(meddle=pmd_goes(MIGRATING))),
    # Budgets
    Case(R.EXCEED_NONE_PTE, "scan", scan_of(small(13), hole(3), max_ptes_none=2)),
    Case(R.EXCEED_NONE_PTE, "scan: zero page", scan_of(small(13), zero(3), max_ptes_none=2)),
    Case(R.EXCEED_NONE_PTE, "scan: uffd armed", scan_of(small(15), hole(), flags=VM_DEFAULT | VM_UFFD_WP)),
    Case(R.EXCEED_NONE_PTE, "isolate", collapse_of(small(15), hole(), max_ptes_none=0)),
    Case(R.EXCEED_NONE_PTE, "isolate, below", collapse_of(hole(), small(3), order=2, max_ptes_none=3)),
    Case(
        R.EXCEED_NONE_PTE,
        "isolate: uffd armed, mTHP enabled",
        scan_of(hole(8), small(7), hole(), orders={4, 3}, flags=VM_DEFAULT | VM_UFFD_WP),
    ),
    Case(R.EXCEED_SWAP_PTE, "scan", scan_of(small(14), swap(2), max_ptes_swap=1)),
    Case(R.EXCEED_SWAP_PTE, "swapin", collapse_of(small(3), swap(), order=2, unmapped=1)),
    Case(R.EXCEED_SWAP_PTE, "scan: guard counts", scan_of(small(15), leaf(Leaf.GUARD), max_ptes_swap=0)),
    Case(R.EXCEED_SHARED_PTE, "scan", scan_of(small(14), shared(2), max_ptes_shared=1)),
    Case(R.EXCEED_SHARED_PTE, "scan: large", scan_of(small(12), large(2, elsewhere=1), max_ptes_shared=3)),
    Case(R.EXCEED_SHARED_PTE, "isolate", collapse_of(small(14), shared(2), max_ptes_shared=1)),
    Case(R.EXCEED_SHARED_PTE, "isolate, below", collapse_of(small(3), shared(), order=2)),
    # What one entry or page answers
    Case(R.PTE_NON_PRESENT, "isolate", collapse_of(small(15), swap())),
    Case(R.PTE_NON_PRESENT, "isolate, below", collapse_of(small(3), swap(), order=2)),
    Case(R.PTE_UFFD, "scan", scan_of(small(15), small(plus=UFFD_WP))),
    Case(R.PTE_UFFD, "scan: swapped", scan_of(small(15), swap(uffd=True))),
    Case(R.PTE_UFFD, "scan: marker", scan_of(small(15), leaf(Leaf.UFFD_WP_MARKER))),
    Case(R.PTE_UFFD, "isolate", collapse_of(small(15), small(plus=UFFD_WP))),
    Case(R.PTE_MAPPED_HUGEPAGE, "isolate, below", collapse_of(large(2), order=2)),
    Case(R.PTE_MAPPED_HUGEPAGE, "isolate: one page of a larger", collapse_of(small(3), large(3, 1), order=2)),
    Case(R.LACK_REFERENCED_PAGE, "scan", scan_of(old(16))),
    Case(R.LACK_REFERENCED_PAGE, "scan: half, with swap", scan_of(small(7), old(8), swap())),
    Case(R.LACK_REFERENCED_PAGE, "isolate", collapse_of(old(4), small(12), order=2)),
    Case(R.PAGE_NULL, "scan: special", scan_of(small(15), small(plus=SPECIAL))),
    Case(R.PAGE_NULL, "scan: device", scan_of(small(16), meddle=device_page)),
    Case(R.PAGE_NULL, "isolate: special", collapse_of(small(15), small(plus=SPECIAL))),
    Case(R.PAGE_NULL, "isolate: device", collapse_of(small(16), meddle=device_page)),
    Case(
        R.SCAN_ABORT,
        "scan: nodes too far apart",
        scan_of(small(15), small(nid=1), nodes=TWO_NODES, meddle=distant_nodes),
    ),
    Case(R.PAGE_COUNT, "scan", scan_of(small(15), small(refs=1))),
    Case(R.PAGE_COUNT, "scan: large", scan_of(small(8), large(3, refs=1))),
    Case(R.PAGE_COUNT, "isolate", collapse_of(small(15), small(refs=1024))),
    Case(R.PAGE_LRU, "scan", scan_of(small(15), small(flags_without=PG_LRU))),
    Case(R.PAGE_LOCK, "scan", scan_of(small(16), meddle=lambda w, v: w.lock(v, 5))),
    Case(R.PAGE_LOCK, "isolate", collapse_of(small(16), meddle=lambda w, v: w.lock(v, 5))),
    Case(
        R.PAGE_LOCK,
        "swapin: retry",
        collapse_of(
            small(15), swap(), unmapped=1, meddle=lambda w, v: w.cache_swapped(v, 15, locked=True)
        ),
    ),
    Case(R.PAGE_ANON, "scan", scan_of(small(15), small(flags_without=PG_ANON))),
    Case(R.PAGE_LAZYFREE, "scan", scan_of(small(15), lazyfree())),
    Case(R.PAGE_LAZYFREE, "isolate", collapse_of(small(15), lazyfree())),
    Case(R.DEL_PAGE_LRU, "isolate", collapse_of(small(16), meddle=lambda w, v: w.off_lru(v, 9))),
    # The process and its mapping, before either lock
    Case(R.ANY_PROCESS, "first: exit", collapse_of(small(16), meddle=after_allocating(exit_process))),
    Case(R.ANY_PROCESS, "second: prctl", collapse_of(small(16), meddle=between_locks(disable_thp))),
    Case(R.VMA_NULL, "first", collapse_of(small(16), meddle=after_allocating(unmap))),
    Case(R.VMA_NULL, "second", collapse_of(small(16), meddle=between_locks(unmap))),
    Case(R.VMA_CHECK, "first", collapse_of(small(16), meddle=after_allocating(advise_against))),
    Case(R.VMA_CHECK, "second", collapse_of(small(16), meddle=between_locks(advise_against))),
    Case(R.VMA_CHECK, "second: a file", collapse_of(small(16), meddle=between_locks(become_file))),
    Case(R.VMA_CHECK, "first: anon_vma", collapse_of(small(16), meddle=after_allocating(lose_anon_vma))),
    Case(R.ADDRESS_RANGE, "first", collapse_of(small(16), meddle=after_allocating(shrink))),
    Case(R.ADDRESS_RANGE, "second, below", collapse_of(small(16), order=2, meddle=between_locks(shrink))),
    # The new folio
    Case(
        R.ALLOC_HUGE_PAGE_FAIL, "no block, defrag off", collapse_of(small(16), free={0: 64}, defrag=False)
    ),
    Case(R.ALLOC_HUGE_PAGE_FAIL, "no frames, defrag on", collapse_of(small(16), free={0: 15})),
    Case(R.ALLOC_HUGE_PAGE_FAIL, "deferred memcg", collapse_of(small(16), meddle=deferred_memcg)),
    Case(R.ALLOC_HUGE_PAGE_FAIL, "scan", scan_of(small(16), free={2: 4}, defrag=False)),
    Case(R.CGROUP_CHARGE_FAIL, "limit", collapse_of(small(16), meddle=full_memcg)),
    Case(R.CGROUP_CHARGE_FAIL, "scan", scan_of(small(16), meddle=full_memcg)),
    Case(R.COPY_MC, "PMD order", collapse_of(small(15), small(poisoned=True))),
    Case(R.COPY_MC, "below", collapse_of(small(3), small(poisoned=True), small(12), order=2)),
    Case(R.COPY_MC, "large", collapse_of(small(8), large(3, poisoned=True))),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.result.name}-{case.where}")
def test_result(case: Case) -> None:
    _, result = case.run()
    assert result is case.result


def test_every_result_of_the_anonymous_path_has_a_world() -> None:
    assert {case.result for case in CASES} == set(ScanResult) - FILE_ONLY
