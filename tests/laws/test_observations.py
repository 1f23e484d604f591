# SPDX-License-Identifier: GPL-2.0-or-later
"""What rivals say is held against the world in the end: each fact can be found broken."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mthp.check.drawing import replay
from mthp.laws.observations import Observations
from mthp.mm.gup import PIN
from mthp.mm.mm_types import Mm
from mthp.mm.pgtable import pmd_ptr, pmdp_get_lockless
from mthp.mm.pgtable_types import PFN_SHIFT, SOFT_DIRTY, YOUNG, Leaf, leaf_pte, zero_pte
from mthp.mm.reports import (
    Discarding,
    Forked,
    Gone,
    Moving,
    Pinned,
    Poisoned,
    Registered,
    SoftDirtyCleared,
    StoredTo,
    StoresForbidden,
    Zapped,
)
from mthp.mm.vm_flags import VM_DEFAULT
from mthp.races.stage import START, Size, Stage
from mthp.races.world import RaceWorld
from tests.small_worlds import TINY, World, hole, huge, no_table, small

END = START + 0x2000
FAR = START + 0x8000


def stage() -> Stage:
    return RaceWorld(Size.PMD, "7.3", ("gup",))()


def laws(stage: Stage) -> set[int]:
    """The laws broken at rest."""
    stage.watch.at_rest([task for task, _ in stage.tasks])
    return {each.law for each in stage.broken}


def lose_store(stage: Stage, mm: Mm) -> None:
    stage.kernel.report(StoredTo(mm, START, 200, "store"))


def survive_zap(stage: Stage, mm: Mm) -> None:
    stage.kernel.report(Zapped(mm, START, END, "zap"))


def stay(stage: Stage, mm: Mm) -> None:
    stage.kernel.report(Moving(mm, START, FAR, 0x2000, "mremap"))


def map_failed(stage: Stage, mm: Mm) -> None:
    stage.kernel.mem.refcount.raw[stage.pages[0]] += 1
    stage.kernel.report(Poisoned(stage.pages[0], unmapped=True))


def fill(stage: Stage, mm: Mm) -> None:
    stage.kernel.report(Registered(mm, START, END))
    stage.table.ptes.raw[1] = zero_pte()


def lose_mark(stage: Stage, mm: Mm) -> None:
    stage.kernel.report(SoftDirtyCleared(mm, START, END, "soft-dirty"))
    stage.kernel.report(StoredTo(mm, START, 100, "soft-dirty"))
    stage.table.ptes.raw[0] &= ~SOFT_DIRTY


def forbid_stores(stage: Stage, mm: Mm) -> None:
    (vma,) = mm.vmas
    stage.kernel.report(StoresForbidden(mm, vma))


def share_store(stage: Stage, mm: Mm) -> None:
    """What is stored after fork() is read in the child."""
    child = stage.kernel.new_mm(5, "child")
    page = stage.map_elsewhere(child, START, VM_DEFAULT, 100)
    stage.kernel.report(Forked(mm, child, "store"))
    stage.kernel.report(StoredTo(mm, START, 100, "store"))
    stage.kernel.mem.content.raw[page] = 100


@pytest.mark.parametrize(
    ("breach", "law"),
    [
        (lose_store, 3),
        (survive_zap, 12),
        (stay, 3),
        (map_failed, 1),
        (fill, 8),
        (lose_mark, 8),
        (forbid_stores, 14),
        (share_store, 3),
    ],
)
def test_a_fact_can_be_found_broken(breach: Callable[[Stage, Mm], None], law: int) -> None:
    world = stage()
    breach(world, world.mm)
    assert laws(world) == {law}


def test_a_world_nobody_talks_about_is_sound() -> None:
    assert laws(stage()) == set()


def test_a_page_of_failed_memory_reads_nothing() -> None:
    world = stage()
    page = world.pages[0]
    mem = world.kernel.mem
    world.kernel.report(Poisoned(page, unmapped=True))
    world.table.ptes.raw[0] = leaf_pte(Leaf.HWPOISON, page)
    world.mm.counters["MM_ANONPAGES"] -= 1
    mem.mapcount.raw[page] = 0
    assert laws(world) == set()


def test_a_page_that_was_given_up_may_be_there_or_not() -> None:
    world = stage()
    world.kernel.report(Discarding(world.mm, START, END, "x"))
    assert laws(world) == set()


@pytest.mark.parametrize(("by", "kept"), [("x", True), ("y", False)])
def test_what_its_giver_has_stored_since_must_be_there(by: str, kept: bool) -> None:
    """Another's store may have come before, and be gone."""
    world = stage()
    world.kernel.report(Discarding(world.mm, START, END, "x"))
    world.kernel.report(StoredTo(world.mm, START, 7, by))
    page = world.pages[0]
    for read in (7, 0):
        world.kernel.mem.content.raw[page] = read
        assert laws(world) == ({3} if kept and not read else set())
        world.watch.broken.clear()


def test_a_store_before_the_marks_were_cleared_leaves_none() -> None:
    world = stage()
    world.kernel.report(StoredTo(world.mm, START, 100, "soft-dirty"))
    world.kernel.report(SoftDirtyCleared(world.mm, START, END, "soft-dirty"))
    world.table.ptes.raw[0] &= ~SOFT_DIRTY
    assert laws(world) == set()


def test_an_mm_that_has_ended_may_not_be_walked() -> None:
    world = stage()
    world.kernel.report(Gone(world.mm))
    pmd = pmd_ptr(world.mm, START)
    assert pmd is not None
    world.machine.on_step = lambda access, word, index, bits: world.before(access, word, index)
    pmdp_get_lockless(pmd)
    assert {each.law for each in world.broken} == {13}


def test_what_the_monitor_moved_in_is_asked_for() -> None:
    world = stage()
    world.kernel.report(Registered(world.mm, START, END))
    world.kernel.report(Moving(world.mm, FAR, START + 0x1000, 0x1000, "uffd-move-in"))
    world.table.ptes.raw[1] = zero_pte(YOUNG)
    assert laws(world) == set()


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("what", ["moved", "zapped", "swapped out", "kept"])
def test_an_exclusively_pinned_page_stays_the_mapped_page(what: str, exclusive: bool) -> None:
    """Law 3's clause about pins. A page that is shared may be replaced, and a zap takes any away."""
    world = stage()
    mem, page = world.kernel.mem, world.pages[0]
    world.kernel.report(Pinned(world.mm, START, page, exclusive, "device"))
    mem.refcount.raw[page] += PIN
    if what in ("moved", "zapped"):
        copy = mem.new_frames(0, 0)
        mem.prep_folio(copy, 0)
        for row in (mem.content, mem.flags, mem.mapcount, mem.page_flags):
            row.raw[copy] = row.raw[page]
        mem.mapcount.raw[page] = 0
        mem.refcount.raw[page] -= 1
        world.table.ptes.raw[0] += (copy - page) << PFN_SHIFT
    elif what == "swapped out":
        mem.mapcount.raw[page] = 0
        mem.refcount.raw[page] -= 1
        world.mm.counters["MM_ANONPAGES"] -= 1
        world.kernel.swap.contents[7] = mem.content.raw[page]
        world.table.ptes.raw[0] = leaf_pte(Leaf.SWAP, 7, SOFT_DIRTY)
    if what == "zapped":
        world.kernel.report(Zapped(world.mm, START, START + 0x1000, "zap"))
        world.kernel.report(StoredTo(world.mm, START, 100, "zap"))
    world.watch.at_rest([task for task, _ in world.tasks])
    if what == "moved" and exclusive:
        (broken,) = [each for each in world.broken if each.law == 3]
        assert f"page {page} is pinned and {START:#x} maps {page + copy - page} now" in broken.text
    else:
        assert {each.law for each in world.broken} & {3} == set()


def test_the_monitor_is_to_fill_what_is_missing_then() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(1), hole(15), no_table(16), huge(4), pages=48)
    seen = Observations(world.kernel, world.census())
    seen.add(Registered(world.mm, vma.vm_start, vma.vm_end))
    assert seen.missing == {(world.mm.number, world.address(vma, n)) for n in range(1, 32)}


def test_an_entry_that_a_walk_by_rmap_has_in_hand_is_not_missing() -> None:
    """A migration has cleared the PTE, and has not put its entry there, when userfaultfd takes charge."""
    violation = replay("as-is:7.3:window:migrate+uffd-register:a8b6a36b10c3b17c1b19")
    assert violation.breaches == ()
