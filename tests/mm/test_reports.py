# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts are reported by those who make them true, in the order in which they become true."""

from __future__ import annotations

from mthp.mm.gup import pin_and_write
from mthp.mm.madvise import MADV_DONTNEED, do_madvise
from mthp.mm.mmu import load, store
from mthp.mm.reports import InstructionEnds, LoadedFrom, Pinned, StoredTo, Zapped, Zapping
from tests.small_worlds import TINY, World, small


def reported(world: World) -> list[object]:
    facts: list[object] = []
    world.kernel.report = facts.append
    return facts


def test_a_load_and_a_store_say_what_they_saw_and_wrote() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(16))
    content = world.mem.content.raw[world.folio(vma, 0)]
    facts = reported(world)
    assert load(world.mm, vma.vm_start) == content
    assert store(world.mm, vma.vm_start, 77)
    assert load(world.mm, vma.vm_start) == 77
    by = world.kernel.machine.current.name
    assert facts == [
        InstructionEnds(0),
        LoadedFrom(world.mm, vma.vm_start, content, by),
        StoredTo(world.mm, vma.vm_start, 77, by),
        LoadedFrom(world.mm, vma.vm_start, 77, by),
    ]


def test_a_zap_says_when_it_begins_and_when_it_has_returned() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(16))
    facts = reported(world)
    end = vma.vm_start + 0x2000
    do_madvise(world.mm, vma.vm_start, end, MADV_DONTNEED)
    by = world.kernel.machine.current.name
    assert facts == [Zapping(world.mm, vma.vm_start, end), Zapped(world.mm, vma.vm_start, end, by)]


def test_a_pin_says_whether_the_page_is_exclusive() -> None:
    for shared in (False, True):
        world = World(geometry=TINY)
        vma = world.vma(small(16, elsewhere=1 if shared else 0))
        facts = reported(world)
        page = world.folio(vma, 0)
        pin_and_write(world.mm, vma.vm_start, 5)
        assert facts == [
            Pinned(world.mm, vma.vm_start, page, not shared, world.kernel.machine.current.name),
            StoredTo(world.mm, vma.vm_start, 5, world.kernel.machine.current.name),
        ]
