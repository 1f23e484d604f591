# SPDX-License-Identifier: GPL-2.0-or-later
"""Each law of single mappings fires on a stage made wrong in the way it forbids, and on nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mthp.laws.census import Census
from mthp.laws.watch import check_collapse
from mthp.mm.mm_types import MM_SWAPENTS
from mthp.mm.page_flags import (
    PAGE_ANON_EXCLUSIVE,
    PG_ANON,
    PG_KSM,
    PG_MLOCKED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_UPTODATE,
    PG_ZONE_DEVICE,
)
from mthp.mm.pgtable_types import UFFD_WP, WRITE, zero_pte
from mthp.mm.reports import Discarding, Moving
from mthp.mm.vm_flags import VM_DROPPABLE, VM_LOCKED, VM_READ, VM_UFFD_WP
from mthp.races.stage import START, Size, Stage
from mthp.races.world import RaceWorld

Change = Callable[[Stage], object]


def stage(rival: str = "load") -> Stage:
    return RaceWorld(Size.WINDOW, "7.3", (rival,))()


def broken(stage: Stage) -> list[tuple[int, str]]:
    """At rest: the laws broken, and what is said."""
    stage.watch.at_rest([task for task, _ in stage.tasks])
    return [(each.law, each.text) for each in stage.broken]


def end_before_second_page(stage: Stage) -> None:
    stage.mm.vma_set_range(stage.vma, stage.vma.vm_start, stage.address(2))


def forbid_stores(stage: Stage) -> None:
    stage.vma.vm_flags = VM_READ


def make_zero_page_writable(stage: Stage) -> None:
    stage.table.ptes.raw[1] = zero_pte() | WRITE


def protect(stage: Stage) -> None:
    stage.table.ptes.raw[0] |= UFFD_WP


def protect_for_a_monitor(stage: Stage) -> None:
    stage.vma.vm_flags |= VM_UFFD_WP
    protect(stage)


def move_index(stage: Stage) -> None:
    stage.kernel.mem.index.raw[stage.pages[0]] += 1


def move_to_another_anon_vma(stage: Stage) -> None:
    stage.kernel.mem.anon_vma.raw[stage.pages[0]] = stage.kernel.new_anon_vma().number


def leave_to_ksm(stage: Stage) -> None:
    move_index(stage)
    stage.kernel.mem.flags.raw[stage.pages[0]] |= PG_KSM


def share_writable_page(stage: Stage) -> None:
    stage.kernel.mem.page_flags.raw[stage.pages[0]] &= ~PAGE_ANON_EXCLUSIVE


def share_page(stage: Stage) -> None:
    share_writable_page(stage)
    stage.table.ptes.raw[0] &= ~WRITE


def flip(flag: int) -> Change:
    """Turn a flag of the first page round."""

    def change(stage: Stage) -> None:
        stage.kernel.mem.flags.raw[stage.pages[0]] ^= flag

    return change


AT_REST: list[tuple[Change, list[tuple[int, str]]]] = [
    (end_before_second_page, [(14, "mapped where there is no VMA")]),
    (forbid_stores, [(14, "may be stored to, and is of a VMA that may not be")] * 2),
    (make_zero_page_writable, [(14, "may be stored to, and is of the zero page")]),
    (protect, [(14, "is write-protected for no userfaultfd")]),
    (protect_for_a_monitor, []),
    (move_index, [(15, f"to {START:#x}, which maps it")]),
    (move_to_another_anon_vma, [(15, f"to {START:#x}, which maps it")]),
    (leave_to_ksm, []),
    (share_writable_page, [(16, "may be stored to and is not marked exclusive")]),
    (share_page, []),
    (flip(PG_ANON), [(16, "mapped and not marked anonymous")]),
]


@pytest.mark.parametrize(("change", "said"), AT_REST)
def test_a_stage_made_wrong(change: Change, said: list[tuple[int, str]]) -> None:
    world = stage()
    assert broken(world) == []
    change(world)
    found = broken(world)
    for law, text in said:
        assert any(each[0] == law and text in each[1] for each in found), found
    assert len(found) == len(said)


@pytest.mark.parametrize(("flag", "cached"), [(PG_SWAPCACHE, False), (0, True)])
def test_the_mark_of_the_swap_cache(flag: int, cached: bool) -> None:
    world = stage()
    flip(flag)(world)
    if cached:
        world.kernel.swap.entry_of[world.pages[0]] = 1
    assert (16, f"folio {world.pages[0]}: its mark and the swap cache do not agree") in broken(
        world
    )


def made(world: Stage) -> int:
    """A page that was not there when it began."""
    return world.map_page(1)


@pytest.mark.parametrize(
    ("flag", "vm_flags", "name"),
    [
        (PG_UPTODATE, 0, "not up to date"),
        (PG_SWAPBACKED, 0, "not swap-backed"),
        (PG_KSM, 0, "a merged page"),
        (PG_ZONE_DEVICE, 0, "a device's"),
        (PG_SWAPBACKED, VM_DROPPABLE, ""),
    ],
)
def test_a_new_folio_has_the_flags_its_vma_wants(flag: int, vm_flags: int, name: str) -> None:
    world = stage()
    page = made(world)
    world.vma.vm_flags |= vm_flags
    world.kernel.mem.flags.raw[page] ^= flag
    said = [text for law, text in broken(world) if law == 16]
    assert said == ([f"folio {page} was mapped at {START + 0x1000:#x} and is {name}"] * bool(name))


@pytest.mark.parametrize("locked", [0, VM_LOCKED])
@pytest.mark.parametrize("mlocked", [0, PG_MLOCKED])
def test_a_new_folio_of_a_locked_mapping_is_mlocked(locked: int, mlocked: int) -> None:
    world = stage()
    before = Census(world.kernel)
    page = made(world)
    world.vma.vm_flags |= locked
    world.kernel.mem.flags.raw[page] |= mlocked
    said = [each.text for each in check_collapse(before, world.kernel) if each.law == 16]
    assert len(said) == (bool(locked) != bool(mlocked))
    assert all(f"folio {page} was mapped at {START + 0x1000:#x} and is" in each for each in said)


def test_a_page_that_was_swapped_in_need_not_be_mlocked_yet() -> None:
    world = stage("swapped")
    before = Census(world.kernel)
    made(world)
    world.vma.vm_flags |= VM_LOCKED
    assert 16 not in {each.law for each in check_collapse(before, world.kernel)}


@pytest.mark.parametrize("moved", [False, True])
def test_what_was_given_up_need_not_be_swap_backed(moved: bool) -> None:
    world = stage()
    world.kernel.mem.flags.raw[made(world)] &= ~PG_SWAPBACKED
    start, size = world.address(3 if moved else 1), world.kernel.geometry.page_size
    world.kernel.report(Discarding(world.mm, start, start + size, "x"))
    if moved:
        world.kernel.report(Moving(world.mm, start, world.address(1), size, "mover"))
    assert 16 not in {law for law, _ in broken(world)}


def test_what_a_cgroups_process_maps_is_charged() -> None:
    world = stage()
    world.mm.memcg = world.kernel.new_memcg("group")
    said = [text for law, text in broken(world) if law == 5]
    pages = world.pages.values()
    assert said == [
        f"folio {page} is mapped by mm 1 and not charged to its cgroup" for page in pages
    ]
    world = stage()
    memcg = world.mm.memcg = world.kernel.new_memcg("group")
    for page in world.pages.values():
        world.kernel.mem.memcg.raw[page] = memcg.number
    world.watch.begun = Census(world.kernel)
    assert broken(world) == []


def miscount_swapped(stage: Stage) -> None:
    stage.mm.counters[MM_SWAPENTS] += 1


def forget_user(stage: Stage) -> None:
    stage.kernel.swap.put_users(stage.swapped[1], 1)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (miscount_swapped, "mm 1: MM_SWAPENTS moved by 1, swapped ones by 0"),
        (forget_user, "swap slot 2: its users moved by -1, PTEs that name it by 0"),
    ],
)
def test_swapped_pages_are_counted(change: Change, text: str) -> None:
    world = stage("swapped")
    assert broken(world) == []
    change(world)
    assert broken(world) == [(5, text)]


@pytest.mark.parametrize(
    ("field", "value"),
    [("vm_flags", VM_READ), ("vm_pgoff", 7), ("vm_end", START + 0x3000), ("file", "f")],
)
def test_a_collapse_leaves_vmas_as_they_are(field: str, value: object) -> None:
    world = RaceWorld(Size.PMD, "7.3", ())()
    setattr(world.vma, field, value)
    world.watch.alone_at_rest()
    assert [each.law for each in world.broken] == [14]
