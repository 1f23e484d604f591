# SPDX-License-Identifier: GPL-2.0-or-later
"""Pins: taken without locks, and written through."""

from __future__ import annotations

import pytest

from mthp.mm.gup import (
    GET,
    PIN,
    folio_maybe_dma_pinned,
    gup_fast,
    pin_and_write,
    try_grab_folio_fast,
)
from mthp.mm.mm_types import Vma
from mthp.mm.page_flags import PG_DIRTY
from mthp.mm.pgtable import pmd_ptr
from mthp.mm.pgtable_types import NO_ACCESS, SPECIAL, WRITE, Leaf
from tests.small_worlds import (
    TINY,
    Piece,
    World,
    hole,
    huge,
    large,
    leaf,
    no_table,
    small,
    swap,
    zero,
)
from tests.stages import played


def test_a_pin_is_held_and_written_through() -> None:
    stage = played("gup")
    assert stage.kernel.mem.refcount.raw[stage.pages[0]] == 1 + PIN
    assert stage.kernel.mem.content.raw[stage.pages[0]] == 300
    assert not stage.kernel.cpus[1].irqs_off.value


def test_a_plain_reference_is_put_once_the_page_was_written() -> None:
    stage = played("get")
    mem, page = stage.kernel.mem, stage.pages[0]
    assert (mem.refcount.raw[page], mem.content.raw[page]) == (1, 310)
    assert mem.test(page, PG_DIRTY)


def found(world: World, vma: Vma, page: int) -> int | None:
    """GUP-fast of a page; interrupts are on again and nothing is mapped afterwards."""
    result = gup_fast(world.mm, world.address(vma, page))
    assert not world.kernel.this_cpu.irqs_off.value
    assert world.kernel.pte_maps == 0
    return result


@pytest.mark.parametrize("piece", [small(16), large(3), huge(4)], ids=lambda e: e.kind.name)
@pytest.mark.parametrize("page", [0, 5])
def test_a_writable_page_is_got_with_a_reference(piece: Piece, page: int) -> None:
    world = World(geometry=TINY)
    vma = world.vma(piece)
    folio = world.folio(vma, page)
    before = world.mem.refcount.raw[folio]
    got = found(world, vma, page)
    assert got == (folio if piece.order == 0 else folio + page)
    assert world.mem.refcount.raw[folio] == before + GET


@pytest.mark.parametrize(
    "pieces",
    [
        [small(1, without=WRITE)], [small(1, plus=SPECIAL)], [small(1, plus=NO_ACCESS)], [hole(1)],
        [swap(1)], [zero(1)], [leaf(Leaf.MIGRATION)], [no_table(1)], [huge(4, without=WRITE)],
        [huge(4, plus=NO_ACCESS)],
    ],
)  # fmt: skip
def test_the_slow_path_must_be_taken(pieces: list[Piece]) -> None:
    world = World(geometry=TINY)
    vma = world.vma(*pieces)
    before = world.census()
    assert found(world, vma, 0) is None
    assert found(world, vma, 4096) is None
    assert world.check(before.outside) == []


@pytest.mark.parametrize("what", ["PTE", "PMD", "huge PMD", "freed", "split"])
def test_after_the_reference_everything_must_be_what_it_was(what: str) -> None:
    world = World(geometry=TINY)
    vma = world.vma(huge(4) if what == "huge PMD" else large(3) if what == "split" else small(16))
    folio = world.folio(vma, 4)
    refs = world.mem.refcount.raw[folio]
    slot = pmd_ptr(world.mm, vma.vm_start)
    assert slot is not None

    def meddle(access: object, word: object, index: int, bits: int) -> None:
        if word is not world.mem.refcount:
            return
        world.kernel.machine.on_step = None
        if what == "PTE":
            world.table(vma).ptes.raw[4] ^= WRITE
        elif what == "freed":
            world.mem.refcount.raw[folio] = 0
        elif what == "split":
            world.mem.head.raw[folio + 4] = folio + 4
        else:
            slot.page.pmds.raw[slot.slot] ^= NO_ACCESS

    world.kernel.machine.on_step = meddle
    assert found(world, vma, 4) is None
    assert world.mem.refcount.raw[folio] == (0 if what == "freed" else refs)


def test_what_counts_as_pinned() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(1))
    folio = world.folio(vma, 0)
    assert try_grab_folio_fast(world.kernel, folio, PIN - 2) == folio
    assert not folio_maybe_dma_pinned(world.kernel, folio)
    assert try_grab_folio_fast(world.kernel, folio) == folio
    assert folio_maybe_dma_pinned(world.kernel, folio)


def test_nothing_is_pinned_where_nothing_is_mapped() -> None:
    world = World(geometry=TINY)
    vma = world.vma(hole(1))
    facts: list[object] = []
    world.kernel.report = facts.append
    pin_and_write(world.mm, vma.vm_start, 5)
    assert facts == []
