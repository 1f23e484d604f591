# SPDX-License-Identifier: GPL-2.0-or-later
"""collapse_huge_page(): its contract, its locks, its account, and other geometries."""

from __future__ import annotations

import pytest

from mthp.khugepaged.control import Caller, CollapseControl
from mthp.khugepaged.isolate import __collapse_huge_page_isolate as isolate
from mthp.khugepaged.revalidate import Expect, hugepage_vma_revalidate
from mthp.khugepaged.scan import collapse_scan_pmd
from mthp.machine.cpu import TlbEntry
from mthp.machine.locks import Lock
from mthp.machine.step import Access
from mthp.mm.folio import lru_add_drain
from mthp.mm.mm_types import MM_ANONPAGES, Mm
from mthp.mm.page_flags import (
    PG_ACTIVE,
    PG_DIRTY,
    PG_LRU,
    PG_SWAPBACKED,
    PG_UNEVICTABLE,
    PG_UPTODATE,
)
from mthp.mm.pgtable import PteMap
from mthp.mm.pgtable_types import DIRTY, SOFT_DIRTY, UFFD_WP, WRITE, YOUNG, mk_pte, pte_pfn
from mthp.mm.vm_flags import VM_DEFAULT, VM_LOCKED, VM_READ
from mthp.words.events import CollapseHugePage, Isolate, PmdFlush
from mthp.words.results import KernelBug, ScanResult
from mthp.words.units import Geometry
from tests.small_worlds import TINY, World, attempts, hole, small, zero

R = ScanResult


def cc() -> CollapseControl:
    return CollapseControl(Caller.KHUGEPAGED)


# The contract


@pytest.mark.parametrize("mode", ["read", "write"])
def test_mmap_lock_must_not_be_held(mode: str) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(16))
    hold = world.mm.mmap_read_lock() if mode == "read" else world.mm.mmap_write_lock()
    with (
        hold,
        pytest.raises(KernelBug, match=f"mmap_lock must not be held, and is held for {mode}"),
    ):
        world.collapse(vma)
    assert world.kernel.events == []


@pytest.mark.parametrize(("order", "page"), [(4, 4), (2, 3), (3, 4)])
def test_the_start_must_be_aligned_to_the_window(order: int, page: int) -> None:
    world = World(geometry=TINY, orders={2, 3, 4})
    vma = world.vma(small(16))
    with pytest.raises(KernelBug, match=f"not aligned to order {order}"):
        world.collapse(vma, order, page)


def test_what_it_calls_wants_its_locks() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(16))
    with pytest.raises(KernelBug, match="mmap_lock must be held"):
        hugepage_vma_revalidate(world.mm, vma.vm_start, Expect.ANON, cc(), 4)
    hold = world.mm.mmap_read_lock()
    hold.release()
    with pytest.raises(KernelBug, match="mmap_lock must be held"):
        collapse_scan_pmd(world.mm, vma, vma.vm_start, hold, cc())
    with world.mm.mmap_read_lock() as hold, pytest.raises(KernelBug, match="not PMD aligned"):
        collapse_scan_pmd(world.mm, vma, vma.vm_start + 0x1000, hold, cc())
    with (
        PteMap(world.kernel, world.table(vma), 0) as pte,
        pytest.raises(KernelBug, match="ptl must be held"),
    ):
        isolate(vma, vma.vm_start, pte, cc(), 4)


@pytest.mark.parametrize("order", [2, 4])
def test_locks_held_at_each_step(order: int) -> None:
    """What a reviewer draws: the locks in the order they are taken and given back."""
    world = World(geometry=TINY, orders={2, 4})
    vma = world.vma(small(16))
    taken: list[str] = []

    def hook(access: Access, word: object, index: int, bits: int) -> None:
        if isinstance(word, Lock) and access in (Access.ACQUIRE, Access.RELEASE):
            name = (
                word.name.split(".")[-1]
                if "table" in word.name or "mm" in word.name
                else "anon_vma"
            )
            name = "pmd" if "pmd" in word.name else name
            taken.append(("+" if access is Access.ACQUIRE else "-") + name)

    world.kernel.machine.on_step = hook
    assert world.collapse(vma, order) is R.SUCCEED
    copied = ["+ptl", "-ptl"] * (1 << order)
    detach = ["+mmap_lock", "-mmap_lock", "+mmap_lock", "+anon_vma", "+pmd", "-pmd", "+ptl", "-ptl"]
    if order == 4:
        assert taken == [*detach, "-anon_vma", *copied, "+pmd", "-pmd", "-mmap_lock"]
    else:
        nested = ["+pmd", "+ptl", "-ptl", "-pmd"]
        assert taken == [*detach, *copied, *nested, "-anon_vma", "-mmap_lock"]


def test_the_vma_is_write_locked_until_mmap_lock_is_released() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(16))
    seen: set[int] = set()
    world.kernel.machine.on_step = lambda access, word, index, bits: seen.add(vma.vm_lock.value)
    world.collapse(vma)
    assert seen == {0, -1}
    assert vma.vm_lock.value == 0
    assert world.mm.write_locked_vmas == []


def test_a_vma_reader_is_waited_for() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(16))
    vma.vm_lock.value = 1
    waited: list[object] = []

    def release(lock: object) -> None:
        waited.append(lock)
        vma.vm_lock.value = 0

    world.kernel.machine.on_block = release
    assert world.collapse(vma) is R.SUCCEED
    assert waited == [vma.vm_lock]


# What it does


@pytest.mark.parametrize("order", [2, 3, 4])
def test_a_window_becomes_one_folio_and_its_neighbours_stay(order: int) -> None:
    world = World(geometry=TINY, orders={2, 3, 4})
    vma = world.vma(small(16))
    before = world.census()
    entries = list(world.table(vma).ptes.raw)
    assert world.collapse(vma, order, 0) is R.SUCCEED
    new = world.folio(vma, 0)
    if order < 4:
        table = world.table(vma).ptes.raw
        assert list(table[1 << order :]) == entries[1 << order :]
        flags = WRITE | YOUNG | DIRTY | SOFT_DIRTY
        assert list(table[: 1 << order]) == [mk_pte(new + i, flags) for i in range(1 << order)]
    else:
        assert pte_pfn(world.pmd(vma)) == new
    assert world.mem.flags.raw[new] & (PG_LRU | PG_UPTODATE | PG_SWAPBACKED) == (
        PG_LRU | PG_UPTODATE | PG_SWAPBACKED
    )
    assert not world.mem.flags.raw[new] & (PG_DIRTY | PG_ACTIVE)
    assert world.kernel.vmstat.mthp[order, "nr_anon"] == 1
    world.assert_sound(before)


def test_a_read_only_vma_gives_read_only_entries() -> None:
    world = World(geometry=TINY, orders={2, 4})
    vma = world.vma(small(16, without=WRITE), flags=VM_READ)
    world.collapse(vma, 2)
    assert world.table(vma).ptes.raw[0] & (WRITE | DIRTY | YOUNG) == YOUNG
    world.collapse(vma, 4)
    assert world.pmd(vma) & (WRITE | DIRTY | YOUNG) == DIRTY | YOUNG


def test_a_locked_vma_gets_a_locked_folio() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(16), flags=VM_DEFAULT | VM_LOCKED)
    before = world.census()
    assert world.collapse(vma) is R.SUCCEED
    assert world.mem.flags.raw[world.folio(vma, 0)] & PG_UNEVICTABLE
    assert world.kernel.this_cpu.mlock.value == ()
    world.assert_sound(before)


def test_the_whole_pmd_range_is_flushed() -> None:
    world = World(geometry=TINY, orders={2}, cpus=2)
    vma = world.vma(small(15), hole())
    other = world.vma(small(16), at=0x50000000)
    first, far = vma.vm_start >> 12, other.vm_start >> 12
    pte = world.table(vma).ptes.raw[0]
    entries = tuple(
        TlbEntry(1000, vpn, 0, mk_pte(pte_pfn(pte) + vpn - first, 0)) for vpn in (first, first + 15)
    )
    stays = (TlbEntry(1000, far, 0, world.table(other).ptes.raw[0]), TlbEntry(1001, first, 0, pte))
    for cpu in world.kernel.cpus:
        cpu.tlb.value = entries + stays
    world.collapse(vma, 2, 4)
    assert [cpu.tlb.value for cpu in world.kernel.cpus] == [stays, stays]
    assert [e for e in world.kernel.events if isinstance(e, PmdFlush)] == [
        PmdFlush(1000, vma.vm_start + 0x4000, 2, 4, 11, 1)
    ]


class Guest:
    """A secondary MMU that writes down what it is told."""

    invalidating = 0

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []
        self.young: set[int] = set()

    def invalidate_range_start(self, mm: Mm, start: int, end: int) -> None:
        self.told.append(("start", start, end))

    def invalidate_range_end(self, mm: Mm, start: int, end: int) -> None:
        self.told.append(("end", start, end))

    def test_young(self, mm: Mm, address: int) -> bool:
        return address in self.young


def test_a_secondary_mmu_is_told_of_the_window_alone_and_asked_for_age() -> None:
    world = World(geometry=TINY, orders={2})
    vma = world.vma(small(16, without=YOUNG))
    guest = Guest()
    world.mm.notifiers.append(guest)
    assert world.collapse(vma, 2, 4) is R.LACK_REFERENCED_PAGE
    lru_add_drain(world.mem, world.kernel.this_cpu)
    guest.young.add(vma.vm_start + 0x5000)
    assert world.collapse(vma, 2, 4) is R.SUCCEED
    window = vma.vm_start + 0x4000, vma.vm_start + 0x8000
    assert guest.told == [("start", *window), ("end", *window)] * 2


def test_uffd_bits_are_not_carried_into_the_new_entries() -> None:
    """A table with a write-protected page is refused, so there is nothing to carry."""
    world = World(geometry=TINY, orders={2})
    vma = world.vma(small(4, plus=UFFD_WP), small(12))
    assert world.collapse(vma, 2) is R.PTE_UFFD
    assert world.collapse(vma, 2, 4) is R.SUCCEED
    assert not world.table(vma).ptes.raw[4] & UFFD_WP


def test_events_of_one_attempt() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(12), hole(4))
    first = world.folio(vma, 11)
    world.collapse(vma)
    isolated = [e for e in world.kernel.events if isinstance(e, Isolate)]
    assert isolated == [Isolate(1000, vma.vm_start, first, 4, 12, R.SUCCEED, 4)]
    assert world.kernel.events[-1] == CollapseHugePage(1000, vma.vm_start, 1, R.SUCCEED, 4)


# Other geometries


@pytest.mark.parametrize(
    ("geometry", "order"),
    [(Geometry(14, 11), 4), (Geometry(16, 13), 5), (Geometry(12, 9), 4), (Geometry(12, 2), 2)],
    ids=str,
)
def test_every_geometry_collapses_below_and_at_pmd_order(geometry: Geometry, order: int) -> None:
    nr = geometry.ptrs_per_pte
    world = World(geometry=geometry, orders={order}, max_ptes_none=nr - 1)
    at = 16 * geometry.pmd_size
    vma = world.vma(small(3), zero(1), hole(nr - 4), at=at)
    before = world.census()
    assert attempts(world.scan()) == [(order, R.SUCCEED)]
    assert world.orders(vma)[0] == order
    world.assert_sound(before)
    pmd = World(geometry=geometry, max_ptes_none=nr - 1)
    vma = pmd.vma(small(3), zero(1), hole(nr - 4), at=at)
    before = pmd.census()
    assert attempts(pmd.scan()) == [(geometry.pmd_order, R.SUCCEED)]
    assert pmd.orders(vma) == [geometry.pmd_order]
    assert pmd.mm.counters[MM_ANONPAGES] == nr
    pmd.assert_sound(before)


def test_a_slot_beyond_the_first_page_of_pmds() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(16), at=0x7F0000000000)
    assert attempts(world.scan()) == [(4, R.SUCCEED)]
    assert world.orders(vma) == [4]
