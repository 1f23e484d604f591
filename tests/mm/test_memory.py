# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults, zaps and copies of what is mapped by PTEs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mthp.machine.step import Access
from mthp.machine.store_buffer import Lane, Model, StoreBuffer
from mthp.mm.memory import handle_user_fault, pte_alloc
from mthp.mm.mm_types import PageTable, PmdPage
from mthp.mm.mmu import load, store
from mthp.mm.page_flags import PAGE_ANON_EXCLUSIVE
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import (
    DIRTY,
    NO_ACCESS,
    SOFT_DIRTY,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
    leaf_pte,
    pmd_trans_huge,
    pte_none,
    pte_pfn,
    pte_present,
    pte_write,
)
from mthp.mm.userfaultfd import mfill_atomic
from mthp.mm.vm_flags import VM_DEFAULT, VM_READ, VM_SOFTDIRTY, VM_UFFD_MISSING, VM_UFFD_WP
from mthp.worlds.build import mapped_frame
from tests.small_worlds import (
    TINY,
    Piece,
    World,
    hole,
    huge,
    huge_fault,
    shared,
    small,
    zero,
)
from tests.stages import entry, played


def test_a_fault_fills_a_hole() -> None:
    stage = played("fault")
    page = pte_pfn(entry(stage, 1))
    assert pte_present(entry(stage, 1)) and pte_write(entry(stage, 1))
    assert stage.kernel.mem.content.raw[page] == 201


def test_a_read_fault_maps_the_zero_page() -> None:
    assert pte_pfn(entry(played("zero-fault"), 1)) == 0
    assert pte_present(entry(played("zero-fault"), 1))


@pytest.mark.parametrize(("rival", "content"), [("swap-in", 101), ("swap-in-store", 201)])
def test_swap_in_brings_the_page_back(rival: str, content: int) -> None:
    stage = played(rival)
    assert pte_present(entry(stage, 1))
    assert stage.kernel.mem.content.raw[pte_pfn(entry(stage, 1))] == content


def test_the_whole_window_comes_back_as_one_folio() -> None:
    stage = played("swap-in-large")
    assert stage.kernel.mem.order.raw[pte_pfn(entry(stage, 0))] == 1
    assert pte_pfn(entry(stage, 1)) == pte_pfn(entry(stage, 0)) + 1


def test_part_of_a_large_folio_is_zapped() -> None:
    stage = played("zap-large")
    assert pte_present(entry(stage, 0)) and pte_none(entry(stage, 1))
    assert stage.kernel.mem.large_mapcount.raw[stage.pages[0]] == 1


# Faults


@pytest.mark.parametrize("vma_lock_free", [True, False])
@pytest.mark.parametrize("table", [True, False])
def test_a_fault_in_a_hole(table: bool, vma_lock_free: bool) -> None:
    """A load gets the zero page, a store a page of zeroes; under the VMA lock or mmap_lock."""
    for write in (False, True):
        world = World(geometry=TINY)
        vma = world.vma(*([hole(1)] if table else []))
        vma.vm_lock.value = 0 if vma_lock_free else -1
        before = world.census()
        handle_user_fault(world.mm, world.address(vma, 2), write=write)
        pte = world.table(vma).ptes.raw[2]
        assert pte_present(pte) and bool(pte & WRITE) is write
        assert world.mm.counters["MM_ANONPAGES"] == write
        if write:
            flags = WRITE | DIRTY | YOUNG | SOFT_DIRTY
            assert pte & 0xFFFF & flags == flags
            assert world.mem.content.raw[pte_pfn(pte)] == 0
            assert world.mem.page_flags.raw[pte_pfn(pte)] & PAGE_ANON_EXCLUSIVE
        else:
            assert pte_pfn(pte) == 0
        vma.vm_lock.value = 0 if not vma_lock_free else vma.vm_lock.value
        assert world.check(before.outside) == []


@pytest.mark.parametrize("address", [0x1000, 0x40010000, 0x60000000])
def test_a_fault_outside_every_mapping_does_nothing(address: int) -> None:
    world = World(geometry=TINY)
    world.vma(small(2))
    world.vma(small(2), at=0x50000000)
    before = world.census()
    handle_user_fault(world.mm, address, write=True)
    huge_fault(world.mm, address)
    assert world.census().entries == before.entries
    assert world.check(before.outside) == []
    assert not store(world.mm, address, 1) and load(world.mm, address) is None


@pytest.mark.parametrize("alone", [True, False])
def test_a_store_to_a_read_only_entry_reuses_the_page_or_copies_it(alone: bool) -> None:
    world = World(geometry=TINY, cpus=2)
    vma = world.vma(small(1, without=WRITE, elsewhere=0 if alone else 1))
    folio = world.folio(vma, 0)
    content = world.mem.content.raw[folio]
    assert load(world.mm, vma.vm_start) == content
    before, frames = world.census(), world.mem.nr_frames
    handle_user_fault(world.mm, vma.vm_start, write=True)
    assert (world.mem.nr_frames == frames) is alone
    pte = world.table(vma).ptes.raw[0]
    flags = WRITE | DIRTY | YOUNG | SOFT_DIRTY
    assert pte & flags == flags
    assert (pte_pfn(pte) == folio) is alone
    assert world.mem.content.raw[pte_pfn(pte)] == content
    assert world.mem.page_flags.raw[pte_pfn(pte)] & PAGE_ANON_EXCLUSIVE
    if alone:
        assert world.check(before.outside) == []
    else:
        assert (world.mem.mapcount.raw[folio], world.mem.refcount.raw[folio]) == (1, 1)
        assert not any(entry.vpn == vma.vm_start >> 12 for entry in world.kernel.cpus[1].tlb.value)


def test_a_store_to_the_zero_page_gets_a_page() -> None:
    world = World(geometry=TINY)
    vma = world.vma(zero(1))
    assert store(world.mm, vma.vm_start, 5)
    assert world.mm.counters["MM_ANONPAGES"] == 1
    assert world.check(world.census().outside) == []


@pytest.mark.parametrize(
    ("flags", "pte", "stores"),
    [
        (VM_READ, 0, False),
        (VM_DEFAULT, UFFD_WP, True),
        (VM_DEFAULT | VM_UFFD_WP, 0, True),
        (VM_DEFAULT | VM_UFFD_WP, UFFD_WP, False),
    ],
)
def test_who_may_not_store(flags: int, pte: int, stores: bool) -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(1, without=WRITE, plus=pte), flags=flags)
    before = world.census()
    assert store(world.mm, vma.vm_start, 5) is stores
    assert (world.census().entries == before.entries) is not stores


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("uffd", [0, UFFD_WP])
@pytest.mark.parametrize("mark", [0, SOFT_DIRTY])
@pytest.mark.parametrize("flags", [VM_DEFAULT, VM_DEFAULT | VM_SOFTDIRTY, VM_READ])
def test_a_numa_hint_lets_the_access_through_and_no_more_than_that(
    flags: int, mark: int, uffd: int, alone: bool
) -> None:
    world = World(geometry=TINY)
    piece = small(1, without=WRITE | YOUNG | SOFT_DIRTY, plus=NO_ACCESS | uffd | mark,
                  elsewhere=0 if alone else 1)  # fmt: skip
    vma = world.vma(piece, flags=flags)
    before = world.table(vma).ptes.raw[0]
    handle_user_fault(world.mm, vma.vm_start, write=False)
    tracked = flags & VM_SOFTDIRTY or mark
    writable = WRITE if flags & VM_DEFAULT == VM_DEFAULT and alone and not uffd and tracked else 0
    assert world.table(vma).ptes.raw[0] == before & ~NO_ACCESS | YOUNG | writable


@pytest.mark.parametrize("flags", [VM_DEFAULT, VM_DEFAULT | VM_UFFD_MISSING])
@pytest.mark.parametrize("pages", [16, 15])
def test_a_huge_page_is_given_to_an_empty_table_that_the_mapping_spans(
    pages: int, flags: int
) -> None:
    world = World(geometry=TINY)
    vma = world.vma(pages=pages, flags=flags)
    before = world.census()
    huge_fault(world.mm, vma.vm_start + 0x3000)
    given = pages == 16 and flags == VM_DEFAULT
    assert pmd_trans_huge(world.pmd(vma)) is given
    mapped = 0 if flags & VM_UFFD_MISSING else 16 if given else 1
    assert world.mm.counters["MM_ANONPAGES"] == mapped
    assert vma.vm_lock.value == 0
    assert world.check(before.outside) == []


def test_where_there_is_a_table_a_huge_fault_is_like_any_other() -> None:
    world = World(geometry=TINY)
    vma = world.vma(hole(16))
    huge_fault(world.mm, vma.vm_start + 0x3000)
    assert [bool(pte) for pte in world.table(vma).ptes.raw] == [i == 3 for i in range(16)]


def waits(world: World, act: Callable[[], object]) -> list[int]:
    """The folios whose lock is waited for."""
    found: list[int] = []
    world.kernel.machine.on_step = lambda access, word, index, bits: (
        found.append(index) if access is Access.WAIT else None
    )
    act()
    world.kernel.machine.on_step = None
    return found


@pytest.mark.parametrize("piece", [small(16), huge(4)], ids=["small", "huge"])
def test_a_fault_waits_for_a_page_that_is_on_its_way(piece: Piece) -> None:
    world = World(geometry=TINY)
    vma = world.vma(piece)
    folio = world.folio(vma, 0)
    entry = leaf_pte(Leaf.MIGRATION, folio)
    if piece.order:
        world.set_pmd(vma, entry)
    else:
        world.table(vma).ptes.raw[0] = entry
    before = world.census()
    assert waits(world, lambda: handle_user_fault(world.mm, vma.vm_start, write=True)) == [folio]
    assert world.census().entries == before.entries


@pytest.mark.parametrize("how", ["missing", "zero page", "copied", "huge", "monitor"])
def test_contents_are_seen_before_what_maps_them(how: str) -> None:
    """On a CPU that keeps contents back until smp_wmb(), none are left when an entry is written."""
    world = World(geometry=TINY)
    pieces = {"zero page": [zero(1)], "copied": [shared(1)], "huge": []}.get(how, [hole(1)])
    vma = world.vma(*pieces)
    kernel = world.kernel
    kernel.mem.content.lane = Lane.CONTENTS
    buffer = kernel.machine.current.buffer = StoreBuffer(kernel.machine, "cpu", Model.WEAK, 64)
    left: list[int] = []

    def hook(access: Access, word: object, index: int, bits: int) -> None:
        if access is Access.WRITE and isinstance(getattr(word, "owner", None), PageTable | PmdPage):
            left.append(len(buffer.waiting))

    kernel.machine.on_step = hook
    if how == "huge":
        huge_fault(world.mm, vma.vm_start)
    elif how == "monitor":
        vma.vm_flags |= VM_UFFD_MISSING
        mfill_atomic(world.mm, vma.vm_start, 5)
    else:
        handle_user_fault(world.mm, vma.vm_start, write=True)
    kernel.machine.on_step = None
    assert mapped_frame(world.mm, vma.vm_start)
    assert left and not any(left)


def test_where_there_is_a_table_none_is_made() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(1))
    pmd = pmd_ptr(world.mm, vma.vm_start)
    assert pmd is not None
    steps: list[Access] = []
    world.kernel.machine.on_step = lambda access, word, index, bits: steps.append(access)
    pte_alloc(world.mm, pmd)
    assert steps == [Access.READ]
