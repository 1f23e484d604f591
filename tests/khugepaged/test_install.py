# SPDX-License-Identifier: GPL-2.0-or-later
"""The new folio becomes reachable: in which order, and what guards the PMD."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from mthp.machine.step import Access
from mthp.mm.mm_types import Vma
from mthp.mm.page_flags import PG_UPTODATE
from mthp.mm.pgtable_types import PMD_NONE, table_pmd
from mthp.words.profiles import (
    V7_3,
    V16,
    Guard,
)
from mthp.words.results import KernelBug, ScanResult
from tests.small_worlds import TINY, World, small

R = ScanResult


def populate_behind(world: World, vma: Vma, when: int) -> None:
    """Another task breaks the protocol: it puts a table under the PMD that the collapse cleared,
    before the pmd lock is taken for the `when`-th time."""
    page = next(iter(world.mm.pmd_pages.values()))
    other = world.kernel.new_table()

    def act() -> None:
        assert world.pmd(vma) == PMD_NONE
        world.set_pmd(vma, table_pmd(other.number))

    world.before_lock(page.ptl, when, act)


@pytest.mark.parametrize(
    ("guard", "debug_vm", "warnings"),
    [
        (Guard.WARN_ON_ONCE, False, 1),
        (Guard.VM_WARN_ON_ONCE, False, 0),
        (Guard.VM_WARN_ON_ONCE, True, 1),
    ],
)
@pytest.mark.parametrize("poisoned", [False, True])
def test_a_guard_that_only_warns_overwrites_the_pmd(
    guard: Guard, debug_vm: bool, warnings: int, poisoned: bool
) -> None:
    """The other table is lost. On the way back after a refusal the same guard stands."""
    for order in (2, 4):
        profile = dataclasses.replace(V7_3, guard=guard, debug_vm=debug_vm)
        world = World(geometry=TINY, profile=profile, orders={2, 4})
        vma = world.vma(small(15), small(refs=1 if poisoned else 0))
        populate_behind(world, vma, 2)
        page = 12 if poisoned and order == 2 else 0
        result = world.collapse(vma, order, page)
        assert result is (R.PAGE_COUNT if poisoned else R.SUCCEED)
        assert len(world.kernel.warnings) == warnings
        world.kernel.machine.on_step = None
        broken = {each.law for each in world.check(world.census().outside)}
        assert broken == {6} | ({7} if warnings else set())


@pytest.mark.parametrize("order", [2, 4])
def test_bug_on_stops_before_anything_is_lost(order: int) -> None:
    world = World(geometry=TINY, profile=dataclasses.replace(V7_3, guard=Guard.BUG_ON))
    world.settings(sizes=dict.fromkeys((2, 3, 4), "always"))
    vma = world.vma(small(16))
    populate_behind(world, vma, 2)
    with pytest.raises(KernelBug, match="BUG_ON in collapse_huge_page"):
        world.collapse(vma, order)


def test_a_warning_is_silent_after_its_first_hit() -> None:
    world = World(geometry=TINY, profile=V16, orders={2, 4})
    vma = world.vma(small(16))
    populate_behind(world, vma, 2)
    world.collapse(vma, 2)
    first = dict(world.kernel.warnings)
    populate_behind(world, vma, 2)
    world.collapse(vma, 2, 4)
    assert world.kernel.warnings == first
    assert len(first) == 1


def order_of_words(world: World, vma: Vma, collapse: Callable[[], object]) -> list[str]:
    """Which of the watched words were written or released, in order."""
    table = world.table(vma)
    page = next(iter(world.mm.pmd_pages.values()))
    assert vma.anon_vma is not None
    names = {id(page.pmds): "pmd", id(table.ptes): "pte", id(table.ptl): "ptl"}
    names |= {id(world.kernel.machine): "barrier", id(vma.anon_vma.rwsem): "anon_vma"}
    seen: list[str] = []

    def hook(access: Access, word: object, index: int, bits: int) -> None:
        name = names.get(id(word))
        if (
            name
            and access is not Access.READ
            and (not seen or seen[-1] != f"{access.value} {name}")
        ):
            seen.append(f"{access.value} {name}")

    world.kernel.machine.on_step = hook
    collapse()
    world.kernel.machine.on_step = None
    return seen


def test_install_order_below_pmd_order() -> None:
    """v16 sets PTEs under the pmd lock alone, then publishes; 7.3 publishes first, under both."""
    seen = {}
    for profile in (V16, V7_3):
        world = World(geometry=TINY, profile=profile, orders={2})
        vma = world.vma(small(16))
        steps = order_of_words(world, vma, lambda w=world, v=vma: w.collapse(v, 2))  # type: ignore[misc]
        after = steps[len(steps) - 1 - steps[::-1].index("barrier barrier") :]
        seen[profile.name] = after if profile is V7_3 else steps[steps.index("barrier barrier") :]
    assert seen["v16"][:4] == ["barrier barrier", "write pte", "barrier barrier", "write pmd"]
    assert seen["7.3"][:5] == [
        "barrier barrier", "acquire ptl", "write pmd", "write pte", "release ptl",
    ]  # fmt: skip


def test_the_hook_of_the_architecture_meets_a_live_table_only_in_7_3() -> None:
    """What moved the order: update_mmu_cache_range() may walk the page table."""
    for profile, live in ((V16, False), (V7_3, True)):
        world = World(geometry=TINY, profile=profile, orders={2})
        vma = world.vma(small(16))
        met: list[bool] = []
        world.kernel.update_mmu_cache = lambda vma, address, nr, w=world, m=met: m.append(
            w.pmd(vma) != PMD_NONE
        )
        assert world.collapse(vma, 2) is R.SUCCEED
        assert met == [live]


@pytest.mark.parametrize("order", [2, 4])
def test_contents_are_seen_before_the_mapping(order: int) -> None:
    """A barrier stands between the last copy and the first entry that maps the new folio."""
    world = World(geometry=TINY, orders={2, 4})
    vma = world.vma(small(16))
    table, page = world.table(vma), next(iter(world.mm.pmd_pages.values()))
    seen: list[str] = []

    def hook(access: Access, word: object, index: int, bits: int) -> None:
        if access is Access.BARRIER:
            seen.append("barrier")
        elif access is Access.WRITE and word is world.mem.content:
            seen.append("copy")
        elif access is Access.WRITE and (word is page.pmds or word is table.ptes):
            seen.append("map")

    world.kernel.machine.on_step = hook
    assert world.collapse(vma, order) is R.SUCCEED
    copied = len(seen) - 1 - seen[::-1].index("copy")
    barrier = seen.index("barrier", copied)
    last = "map" if order == 2 else seen[-1]
    assert last == "map" and "copy" not in seen[barrier:]
    assert world.mem.flags.raw[world.folio(vma, 0)] & PG_UPTODATE


def test_the_old_table_is_deposited_empty_under_a_huge_pmd() -> None:
    world = World(geometry=TINY)
    vma = world.vma(small(16))
    table = world.table(vma)
    assert world.collapse(vma) is R.SUCCEED
    page = next(iter(world.mm.pmd_pages.values()))
    assert list(page.deposited.values()) == [[table.number]]
    assert not any(table.ptes.raw)
