# SPDX-License-Identifier: GPL-2.0-or-later
"""userfaultfd: write protection, pages filled and moved."""

from __future__ import annotations

from typing import Any

import pytest

from mthp.machine.step import Access
from mthp.mm.mm_types import Vma
from mthp.mm.mmu import load, store
from mthp.mm.page_flags import PAGE_ANON_EXCLUSIVE
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import (
    DIRTY,
    SOFT_DIRTY,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
    leaf_pte,
    pte_none,
    pte_pfn,
    pte_write,
)
from mthp.mm.reports import Moving, Registered, WriteProtected
from mthp.mm.rmap import rmap_walk
from mthp.mm.userfaultfd import mfill_atomic, move_pages, mwriteprotect_range, userfaultfd_register
from mthp.mm.vm_flags import VM_DEFAULT, VM_READ, VM_UFFD_MISSING, VM_UFFD_WP
from tests.mm.test_mmu_notifier import Guest
from tests.small_worlds import (
    TINY,
    Piece,
    World,
    hole,
    huge,
    large,
    leaf,
    small,
    swap,
    zero,
)
from tests.stages import at, entry, played


def test_write_protection_is_set() -> None:
    stage = played("uffd-wp")
    assert entry(stage, 0) & UFFD_WP
    assert not pte_write(entry(stage, 0))


def test_userfaultfd_fills_the_hole() -> None:
    stage = played("uffd-copy")
    assert stage.kernel.mem.content.raw[pte_pfn(entry(stage, 1))] == 500


def test_a_hole_in_userfaultfds_charge_is_not_filled_by_a_fault() -> None:
    stage = played("uffd-register")
    assert not store(stage.mm, stage.address(1), 1)
    assert pte_none(entry(stage, 1))


def test_userfaultfd_moves_a_page_out() -> None:
    stage = played("uffd-move")
    assert pte_none(entry(stage, 0))
    assert pte_pfn(at(stage, stage.far)) == stage.pages[0]
    places = list(rmap_walk(stage.kernel.mem, stage.pages[0], stage.kernel.anon_vmas))
    assert [address for _, address in places] == [stage.far]


def test_userfaultfd_moves_a_page_in() -> None:
    stage = played("uffd-move-in")
    assert pte_pfn(entry(stage, 1)) == stage.elsewhere
    assert pte_none(at(stage, stage.far))


ARMED = VM_DEFAULT | VM_UFFD_WP


def reported(world: World) -> list[object]:
    facts: list[object] = []
    world.kernel.report = facts.append
    return facts


def test_a_page_is_protected_and_it_is_said_so() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(3), hole(1), flags=ARMED)
    facts = reported(world)
    for page in (1, 3, 4096):
        mwriteprotect_range(world.mm, world.address(vma, page))
    mwriteprotect_range(world.mm, 0x1000)
    assert [bool(pte & UFFD_WP) for pte in world.table(vma).ptes.raw[:4]] == [0, 1, 0, 0]
    assert facts == [WriteProtected(world.mm, world.address(vma, 1))]
    assert not store(world.mm, world.address(vma, 1), 5)
    assert store(world.mm, world.address(vma, 2), 5)


def test_what_is_missing_becomes_the_monitors() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(1))
    facts = reported(world)
    for start in (vma.vm_end, 0x1000):
        userfaultfd_register(world.mm, start)
    assert (facts, vma.vm_flags) == ([], VM_DEFAULT)
    userfaultfd_register(world.mm, vma.vm_start + 0x1000)
    assert vma.vm_flags == VM_DEFAULT | VM_UFFD_MISSING
    assert facts == [Registered(world.mm, vma.vm_start, vma.vm_end)]
    assert vma.vm_lock.value == 0


@pytest.mark.parametrize("table", [True, False])
def test_the_monitor_fills_a_hole_and_nothing_else(table: bool) -> None:
    world = World(geometry=TINY)
    vma = world.vma(*([small(1), hole(1)] if table else []), flags=VM_DEFAULT | VM_UFFD_MISSING)
    before = world.census()
    content = before.contents.get((world.mm.number, vma.vm_start), 0)
    for page in (0, 1) if table else (1,):
        mfill_atomic(world.mm, world.address(vma, page), 42)
    assert load(world.mm, world.address(vma, 1)) == 42
    assert not table or load(world.mm, vma.vm_start) == content
    assert world.mm.counters["MM_ANONPAGES"] == 1 + table
    assert world.check(before.outside) == []


def armed(*pieces: Piece, at: int = 0x50000000, **how: int) -> tuple[World, Vma, Vma]:
    """A mapping with these pages, and an empty one in a monitor's charge."""
    world = World(geometry=TINY, cpus=2)
    source = world.vma(*pieces, pages=32)
    target = world.vma(at=at, flags=how.get("flags", ARMED), pages=32)
    return world, source, target


@pytest.mark.parametrize("piece", [small(1), large(2), huge(4), swap(1), zero(1)],
                         ids=lambda each: f"{each.kind.name}{each.order}")  # fmt: skip
@pytest.mark.parametrize("same", [False, True])
def test_a_page_moves_to_where_nothing_stands(piece: Piece, same: bool) -> None:
    if same:
        world = World(geometry=TINY, cpus=2)
        source = target = world.vma(piece, pages=32, flags=ARMED)
    else:
        world, source, target = armed(piece)
    content = load(world.mm, source.vm_start) if piece.kind.name != "SWAP" else None
    if content:
        assert store(world.mm, source.vm_start, content)
    before = world.census()
    was = before.contents[world.mm.number, source.vm_start]
    facts = reported(world)
    to = world.address(target, 19)
    move_pages(world.mm, to, source.vm_start)
    now = world.census()
    assert now.contents[world.mm.number, to] == was
    assert pte_none(now.entries.get((world.mm.number, source.vm_start), 0))
    by = world.kernel.machine.current.name
    assert facts[0] == Moving(world.mm, source.vm_start, to, 0x1000, by)
    assert world.kernel.machine.current.held == []
    assert source.vm_lock.value == target.vm_lock.value == world.mm.mmap_lock.word.value == 0
    assert world.check(before.outside) == []
    assert load(world.mm, to) == was
    if piece.kind.name == "PAGE":
        folio = world.folio(target, 19)
        assert target.anon_vma is not None
        assert world.mem.anon_vma.raw[folio] == target.anon_vma.number
        assert world.mem.index.raw[folio] == to >> 12


@pytest.mark.parametrize(
    "why",
    ["shared", "pinned", "occupied", "hole", "no table", "not armed", "read-only", "guard",
     "swap shared", "cached", "huge target", "no source", "no target"],
)  # fmt: skip
def test_what_does_not_move(why: str) -> None:
    pieces = {
        "shared": [small(1, elsewhere=1)], "hole": [hole(1), small(1)], "no table": [],
        "guard": [leaf(Leaf.GUARD)], "swap shared": [swap(1, shared=True)], "cached": [swap(1)],
    }  # fmt: skip
    flags = {"not armed": VM_DEFAULT, "read-only": VM_READ | VM_UFFD_WP}.get(why, ARMED)
    world, source, target = armed(*pieces.get(why, [small(1)]), flags=flags)
    source_at, target_at = source.vm_start, target.vm_start
    if why == "pinned":
        world.pin(source, 0, 1024)
    elif why == "occupied":
        world.fill(target, 0, small(1))
    elif why == "huge target":
        world.fill(target, 0, huge(4))
    elif why == "cached":
        world.cache_swapped(source, 0)
    elif why == "no source":
        source_at = 0x60000000
    elif why == "no target":
        target_at = 0x60000000
    before = world.census()
    move_pages(world.mm, target_at, source_at)
    now = world.census()
    assert {w: e for w, e in now.entries.items() if e} == {
        w: e for w, e in before.entries.items() if e
    }
    assert world.check(before.outside) == []
    assert source.vm_lock.value == target.vm_lock.value == world.mm.mmap_lock.word.value == 0


def test_where_a_vma_is_locked_for_writing_mmap_lock_is_taken() -> None:
    for busy in ("source", "target"):
        world, source, target = armed(small(1))
        (source if busy == "source" else target).vm_lock.value = -1
        before = world.census()
        move_pages(world.mm, target.vm_start, source.vm_start)
        now = world.census()
        assert not pte_none(now.entries[world.mm.number, target.vm_start])
        assert (
            now.contents[world.mm.number, target.vm_start]
            == (before.contents[world.mm.number, source.vm_start])
        )
        assert world.mm.mmap_lock.word.value == 0
        assert sorted((source.vm_lock.value, target.vm_lock.value)) == [-1, 0]


def test_an_exclusive_page_alone_moves_with_its_mark() -> None:
    world, source, target = armed(small(1))
    folio = world.folio(source, 0)
    move_pages(world.mm, target.vm_start, source.vm_start)
    assert world.folio(target, 0) == folio
    assert world.mem.page_flags.raw[folio] & PAGE_ANON_EXCLUSIVE
    wanted = DIRTY | YOUNG | SOFT_DIRTY | WRITE
    assert world.table(target).ptes.raw[0] & (wanted | UFFD_WP) == wanted
    assert store(world.mm, target.vm_start, 3)


@pytest.mark.parametrize(("end", "nth"), [("source", 2), ("target", 3)])
def test_a_table_that_is_gone_for_a_moment_is_looked_for_again(end: str, nth: int) -> None:
    world, source, target = armed(small(1))
    world.fill(target, 0, hole(1))
    vma = source if end == "source" else target
    content = world.mem.content.raw[world.folio(source, 0)]
    pmd, table = pmd_ptr(world.mm, vma.vm_start), world.pmd(vma)
    assert pmd is not None
    seen = 0

    def hook(access: Access, word: Any, index: int, bits: int) -> None:
        nonlocal seen
        if word is pmd.page.pmds and index == pmd.slot:
            seen += 1
            word.raw[index] = leaf_pte(Leaf.MIGRATION, 1) if seen == nth else table

    world.kernel.machine.on_step = hook
    move_pages(world.mm, target.vm_start, source.vm_start)
    world.kernel.machine.on_step = None
    assert seen > nth
    assert load(world.mm, target.vm_start) == content


def test_both_entries_are_read_under_the_locks_of_their_tables() -> None:
    world, source, target = armed(small(1))
    world.fill(target, 0, hole(1))
    tables = [world.table(each) for each in (target, source)]
    first: list[bool] = []

    def hook(access: Access, word: object, index: int, bits: int) -> None:
        for table in tables:
            if word is table.ptes and access is Access.READ and len(first) < 2:
                first.append(table.ptl.held_mode() is not None)

    world.kernel.machine.on_step = hook
    move_pages(world.mm, target.vm_start, source.vm_start)
    assert first == [True, True]


@pytest.mark.parametrize("pinned", [False, True])
def test_a_page_is_tried_once_where_nobody_interferes(pinned: bool) -> None:
    """Whether it moves or not; a secondary MMU hears of each try."""
    world, source, target = armed(small(1))
    told: list[tuple[str, str, int, int]] = []
    world.mm.notifiers.append(Guest("guest", told))
    start, end = source.vm_start, source.vm_start + 0x1000
    if pinned:
        world.pin(source, 0, 1024)
    move_pages(world.mm, target.vm_start, start)
    assert told == [("guest", "start", start, end), ("guest", "end", start, end)]
    assert pte_none(world.table(target).ptes.raw[0]) is pinned
