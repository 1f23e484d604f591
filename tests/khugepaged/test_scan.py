# SPDX-License-Identifier: GPL-2.0-or-later
"""The scan of one table: what it counts, and where it stops."""

from __future__ import annotations

import pytest

from mthp.khugepaged.control import Caller, CollapseControl
from mthp.khugepaged.scan import collapse_scan_abort, collapse_scan_pmd
from mthp.mm.page_alloc import NodeState
from mthp.mm.page_flags import PG_LRU
from mthp.mm.pgtable_types import (
    PMD_NONE,
    UFFD_WP,
    YOUNG,
)
from mthp.words.events import NO_PFN, ScanPmd
from mthp.words.results import KernelBug, ScanResult
from tests.small_worlds import (
    BAD_PMD,
    TINY,
    Piece,
    World,
    attempts,
    hole,
    old,
    scans,
    small,
    swap,
    zero,
)


def test_a_table_that_went_while_its_pmd_was_looked_at_is_no_table() -> None:
    """The PMD is read twice, without a lock: here another task frees the table between the reads."""
    for caller in ("scan", "swapin"):
        world = World(geometry=TINY)
        vma = world.vma(small(15), swap())
        before = world.census()
        reads = 0

        def hook(access: object, word: object, index: int, bits: int, world: World = world) -> None:
            nonlocal reads
            pages = world.mm.pmd_pages.values()
            if any(word is page.pmds for page in pages):
                reads += 1
                if reads == 2:
                    world.set_pmd(vma, PMD_NONE)  # noqa: B023

        value = world.pmd(vma)
        world.kernel.machine.on_step = hook
        if caller == "scan":
            result = scans(world.scan())[0]
        else:
            result = world.collapse(vma, unmapped=1)
        world.kernel.machine.on_step = None
        world.set_pmd(vma, value)
        assert result is ScanResult.NO_PTE_TABLE, caller
        world.assert_sound(before, aborted=True)


def test_a_young_pte_is_enough() -> None:
    world = World(geometry=TINY)
    vma = world.vma(old(15), small(without=0, plus=YOUNG))
    assert scans(world.scan()) == [ScanResult.SUCCEED]
    assert world.orders(vma) == [4]


def scanned(world: World) -> ScanPmd:
    """The tracepoint of the first table that the next wakeup scans."""
    return next(event for event in world.scan() if isinstance(event, ScanPmd))


def test_the_tracepoint_tells_what_was_counted() -> None:
    world = World(geometry=TINY, max_ptes_swap=2)
    vma = world.vma(small(9), old(2), zero(1), hole(2), swap(2))
    event = scanned(world)
    assert (event.address, event.scan_pfn) == (vma.vm_start, NO_PFN)
    assert (event.referenced, event.none_or_zero, event.unmapped) == (9, 3, 2)
    assert event.status is ScanResult.SUCCEED


def test_a_refusal_names_the_folio_and_what_was_counted_before_it() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(3), hole(1), small(flags_without=PG_LRU), small(11))
    event = scanned(world)
    assert event.status is ScanResult.PAGE_LRU
    assert event.scan_pfn == world.folio(vma, 4)
    assert (event.referenced, event.none_or_zero, event.unmapped) == (3, 1, 0)


@pytest.mark.parametrize(("young", "passes"), [(7, False), (8, True)])
def test_with_swapped_pages_half_the_table_must_be_in_use(young: int, passes: bool) -> None:
    world = World(geometry=TINY, max_ptes_swap=1)
    world.vma(small(young), old(15 - young), swap(1))
    assert (scanned(world).status is ScanResult.SUCCEED) is passes


def test_nodes_that_are_too_far_apart_stop_the_scan() -> None:
    kernel = World(geometry=TINY, nodes=(NodeState(), NodeState(), NodeState())).kernel
    kernel.distances = ((10, 30, 40), (30, 10, 20), (40, 20, 10))
    cc = CollapseControl(Caller.KHUGEPAGED)
    cc.node_load[0] = 1
    assert not any(collapse_scan_abort(kernel, node, cc) for node in range(3))
    kernel.node_reclaim = True
    assert [collapse_scan_abort(kernel, node, cc) for node in range(3)] == [False, False, True]
    cc.node_load[2] = 1  # seen before: the answer was given then
    assert not collapse_scan_abort(kernel, 2, cc)
    assert collapse_scan_abort(kernel, 1, cc) is False


def test_its_contract() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(32))
    cc = CollapseControl(Caller.KHUGEPAGED)
    with world.mm.mmap_read_lock() as mmap_lock:
        with pytest.raises(KernelBug, match="is not PMD aligned"):
            collapse_scan_pmd(world.mm, vma, vma.vm_start + 0x1000, mmap_lock, cc)
        assert collapse_scan_pmd(world.mm, vma, vma.vm_start, mmap_lock, cc) is ScanResult.SUCCEED
        assert not mmap_lock.active
    with pytest.raises(KernelBug, match="must be held"):
        collapse_scan_pmd(world.mm, vma, vma.vm_start, mmap_lock, cc)


def test_a_refused_scan_keeps_mmap_lock() -> None:
    world = World(geometry=TINY)
    vma = world.vma(old(16))
    cc = CollapseControl(Caller.KHUGEPAGED)
    with world.mm.mmap_read_lock() as mmap_lock:
        result = collapse_scan_pmd(world.mm, vma, vma.vm_start, mmap_lock, cc)
        assert result is ScanResult.LACK_REFERENCED_PAGE
        assert mmap_lock.active


def test_what_the_last_table_held_is_forgotten() -> None:
    world = World(geometry=TINY, nodes=(NodeState(), NodeState()))
    vma = world.vma(small(16, nid=1), old(16))
    cc = CollapseControl(Caller.MADVISE)
    for start in (vma.vm_start, vma.vm_start + 0x10000):
        with world.mm.mmap_read_lock() as mmap_lock:
            collapse_scan_pmd(world.mm, vma, start, mmap_lock, cc)
    assert +cc.node_load == {0: 16}
    assert cc.present_ptes == 0xFFFF


def test_a_table_that_cannot_be_scanned_costs_one() -> None:
    world = World(geometry=TINY)
    vma = world.vma()
    world.set_pmd(vma, BAD_PMD)
    cc = CollapseControl(Caller.KHUGEPAGED)
    with world.mm.mmap_read_lock() as mmap_lock:
        result = collapse_scan_pmd(world.mm, vma, vma.vm_start, mmap_lock, cc)
    assert (result, cc.progress) == (ScanResult.NO_PTE_TABLE, 1)


@pytest.mark.parametrize(
    "piece", [small(1, plus=UFFD_WP), swap(1, uffd=True)], ids=["page", "swap"]
)
def test_what_userfaultfd_protects_stops_the_scan(piece: Piece) -> None:
    world = World(geometry=TINY)
    world.vma(small(3), piece, small(12))
    events = world.scan()
    assert scans(events) == [ScanResult.PTE_UFFD]
    assert attempts(events) == []
