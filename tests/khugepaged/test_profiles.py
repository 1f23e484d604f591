# SPDX-License-Identifier: GPL-2.0-or-later
"""Each point where the profiles differ matters: a world in which it is seen."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable

import pytest

from mthp.khugepaged.madvise import madvise_collapse
from mthp.machine.step import Access
from mthp.mm.mm_types import Vma
from mthp.mm.pgtable_types import PMD_NONE, table_pmd
from mthp.mm.vm_flags import VM_DEFAULT, VM_DROPPABLE
from mthp.words.profiles import (
    PMD_ONLY,
    PROFILES,
    REASONS,
    V7_3,
    V16,
    Guard,
    Profile,
    differences,
    profile_for_release,
)
from mthp.words.results import KernelBug, ScanResult
from tests.small_worlds import TINY, World, attempts, hole, lazyfree, scans, small, windows

R = ScanResult
EVERY = pytest.mark.parametrize("profile", list(PROFILES.values()), ids=lambda each: each.name)


def test_the_points_are_those_of_the_profile() -> None:
    fields = {field.name for field in dataclasses.fields(Profile)}
    assert fields - {"name", "kernels", "debug_vm"} == set(REASONS)
    assert {point for point, *_ in differences(V16, V7_3)} == {
        "install", "guard", "intermediate_none", "unmap_order", "deferred_memcg",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("release", "profile"),
    [("7.3.4-cloud-amd64", V7_3), ("7.2.0", V7_3), ("7.1.9", PMD_ONLY), ("6.1.0-18", PMD_ONLY)],
)
def test_a_release_says_its_profile(release: str, profile: Profile) -> None:
    assert profile_for_release(release) is profile


@EVERY
def test_orders(profile: Profile) -> None:
    world = World(geometry=TINY, profile=profile, orders={2, 4}, max_ptes_none=0)
    vma = world.vma(small(4), hole(12))
    events = world.scan()
    if profile is PMD_ONLY:
        assert scans(events) == [R.EXCEED_NONE_PTE]
    else:
        assert windows(events, vma) == [(0, 2)]


@EVERY
@pytest.mark.parametrize("none", [0, 7, 15])
def test_intermediate_max_ptes_none(profile: Profile, none: int) -> None:
    if profile is PMD_ONLY:
        return
    world = World(geometry=TINY, profile=profile, orders={2}, max_ptes_none=none)
    vma = world.vma(small(7), hole(9))
    tried = {0: [(0, 2)], 7: [] if profile is V16 else [(0, 2)], 15: [(0, 2), (4, 2)]}
    assert windows(world.scan(), vma) == tried[none]
    assert bool(world.kernel.warnings) is (none == 7 and profile is V7_3)


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


@EVERY
def test_unmap_order(profile: Profile) -> None:
    """pte_unmap against the anon_vma unlock: read off the number of mapped tables at that point."""
    if profile is PMD_ONLY:
        profile = dataclasses.replace(profile, orders=V7_3.orders)
    world = World(geometry=TINY, profile=profile, orders={2})
    vma = world.vma(small(16))
    assert vma.anon_vma is not None
    maps: list[int] = []

    def hook(access: Access, word: object, index: int, bits: int) -> None:
        if access is Access.RELEASE and vma.anon_vma is not None and word is vma.anon_vma.rwsem:
            maps.append(world.kernel.pte_maps)

    world.kernel.machine.on_step = hook
    assert world.collapse(vma, 2) is R.SUCCEED
    assert maps == ([1] if profile.name == "v16" else [0])


@EVERY
def test_deferred_memcg(profile: Profile) -> None:
    """Counted as allocated, refused as not: only where it is looked for."""
    world = World(geometry=TINY, profile=profile)
    vma = world.vma(small(16))
    world.mm.memcg = world.kernel.new_memcg("deferred")
    world.mm.memcg.defer = True
    result = world.collapse(vma)
    assert result is (R.ALLOC_HUGE_PAGE_FAIL if profile is V7_3 else R.SUCCEED)
    assert world.kernel.vmstat.events["thp_collapse_alloc"] == 1
    assert world.kernel.vmstat.events["thp_collapse_alloc_failed"] == 0


@EVERY
def test_lazyfree(profile: Profile) -> None:
    world = World(geometry=TINY, profile=profile)
    vma = world.vma(small(15), lazyfree())
    assert scans(world.scan()) == [R.SUCCEED if profile is PMD_ONLY else R.PAGE_LAZYFREE]
    droppable = World(geometry=TINY, profile=profile)
    droppable.vma(small(15), lazyfree(), flags=VM_DEFAULT | VM_DROPPABLE)
    assert scans(droppable.scan()) == [R.SUCCEED]
    assert vma.vm_start


@EVERY
def test_progress(profile: Profile) -> None:
    world = World(geometry=TINY, profile=profile, max_ptes_none=0)
    world.vma(small(3), hole(13))
    world.scan()
    # A visit is one, and the refused table four entries or all of them.
    assert world.khugepaged.cc.progress == (1 + 16 if profile is PMD_ONLY else 1 + 4)


@EVERY
def test_a_pmd_collapse_is_the_same_in_all(profile: Profile) -> None:
    world = World(geometry=TINY, profile=profile)
    vma = world.vma(small(10), hole(6))
    before = world.census()
    assert attempts(world.scan()) == [(4, R.SUCCEED)]
    assert world.orders(vma) == [4]
    world.assert_sound(before)


@EVERY
def test_an_empty_range(profile: Profile) -> None:
    world = World(geometry=TINY, profile=profile)
    vma = world.vma(small(16))
    behind = madvise_collapse(vma, vma.vm_start + 0x1000, vma.vm_start + 0x3000)
    assert behind == (-errno.EINVAL if profile is PMD_ONLY else 0)
    assert madvise_collapse(vma, vma.vm_start, vma.vm_start + 0x3000) == 0
    assert world.kernel.events == []
