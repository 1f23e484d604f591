# SPDX-License-Identifier: GPL-2.0-or-later
"""Each point where the profiles differ matters: a world in which it is seen."""

from __future__ import annotations

import dataclasses
import errno

import pytest

from mthp.khugepaged.madvise import madvise_collapse
from mthp.machine.step import Access
from mthp.mm.vm_flags import VM_DEFAULT, VM_DROPPABLE
from mthp.words.profiles import (
    PMD_ONLY,
    PROFILES,
    REASONS,
    V7_3,
    V16,
    Profile,
    differences,
    profile_for_release,
)
from mthp.words.results import ScanResult
from tests.small_worlds import (
    TINY,
    World,
    attempts,
    hole,
    lazyfree,
    no_table,
    scans,
    small,
    windows,
)

R = ScanResult
EVERY = pytest.mark.parametrize("profile", list(PROFILES.values()), ids=lambda each: each.name)


def test_the_points_are_those_of_the_profile() -> None:
    fields = {field.name for field in dataclasses.fields(Profile)}
    assert fields - {"name", "kernels", "debug_vm"} == set(REASONS)
    assert {point for point, *_ in differences(V16, V7_3)} == {
        "install", "guard", "intermediate_none", "unmap_order", "deferred_memcg", "pmd_modify",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("release", "profile"),
    [
        ("7.3.4-cloud-amd64", V7_3), ("7.2.0", V7_3), ("7.1.9", PMD_ONLY), ("6.1.0-18", PMD_ONLY),
        (f"{'9' * 5000}.1", V7_3),
    ],
)  # fmt: skip
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


@EVERY
def test_madvise_behind_a_missing_table(profile: Profile) -> None:
    world = World(geometry=TINY, profile=profile)
    vma = world.vma(no_table(16), small(16))
    assert madvise_collapse(vma, vma.vm_start, vma.vm_end) == -errno.EINVAL
    assert world.orders(vma)[16:] == ([0] * 16 if profile is PMD_ONLY else [4])
