# SPDX-License-Identifier: GPL-2.0-or-later
"""How many empty, shared and swapped entries a collapse may take in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from mthp.khugepaged.control import Caller, CollapseControl
from mthp.khugepaged.limits import (
    collapse_max_ptes_none,
    collapse_max_ptes_shared,
    collapse_max_ptes_swap,
    count_collapse_event,
)
from mthp.mm.mm_types import Kernel
from mthp.mm.vm_flags import VM_DEFAULT, VM_UFFD_MISSING, VM_UFFD_RWP, VM_UFFD_WP
from mthp.words.profiles import V7_3, IntermediateNone
from tests.small_worlds import TINY, World

KHUGEPAGED, MADVISE = map(CollapseControl, Caller)
PMD = TINY.pmd_order
Limit = Callable[[Kernel, CollapseControl, int], int]


@pytest.mark.parametrize("none", [0, 1, 7, 14, 15])
def test_at_pmd_order_the_knob_says_how_many_may_be_empty(none: int) -> None:
    world = World(geometry=TINY, max_ptes_none=none)
    assert collapse_max_ptes_none(world.kernel, KHUGEPAGED, None, PMD) == none
    assert world.kernel.warnings == {}


@pytest.mark.parametrize("order", [2, 3])
def test_below_it_there_is_all_but_one_or_nothing(order: int) -> None:
    most = World(geometry=TINY, max_ptes_none=15)
    assert collapse_max_ptes_none(most.kernel, KHUGEPAGED, None, order) == (1 << order) - 1
    none = World(geometry=TINY, max_ptes_none=0)
    assert collapse_max_ptes_none(none.kernel, KHUGEPAGED, None, order) == 0
    assert most.kernel.warnings == none.kernel.warnings == {}


@pytest.mark.parametrize("what", list(IntermediateNone))
def test_between_the_two_the_profile_decides(what: IntermediateNone) -> None:
    profile = dataclasses.replace(V7_3, intermediate_none=what)
    world = World(geometry=TINY, profile=profile, max_ptes_none=14)
    refuses = what is IntermediateNone.REFUSE
    limit = collapse_max_ptes_none(world.kernel, KHUGEPAGED, None, 2)
    assert limit == (None if refuses else 0)
    said = [] if refuses else [
        "mTHP collapse does not support max_ptes_none values other than 0 or 15, defaulting to 0."
    ]  # fmt: skip
    assert list(world.kernel.warnings.values()) == said


@pytest.mark.parametrize("flag", [VM_UFFD_WP, VM_UFFD_MISSING, VM_UFFD_RWP])
@pytest.mark.parametrize("cc", [KHUGEPAGED, MADVISE])
def test_in_userfaultfds_charge_nothing_may_be_empty(flag: int, cc: CollapseControl) -> None:
    world = World(geometry=TINY, max_ptes_none=15)
    armed, plain = world.vma(flags=VM_DEFAULT | flag), world.vma(at=0x50000000)
    for order in (2, PMD):
        assert collapse_max_ptes_none(world.kernel, cc, armed, order) == 0
        assert collapse_max_ptes_none(world.kernel, cc, plain, order) != 0


@pytest.mark.parametrize("limit", [collapse_max_ptes_shared, collapse_max_ptes_swap])
def test_the_other_knobs_are_for_the_pmd_order_alone(limit: Limit) -> None:
    world = World(geometry=TINY, max_ptes_shared=5, max_ptes_swap=5)
    assert limit(world.kernel, KHUGEPAGED, PMD) == 5
    assert limit(world.kernel, KHUGEPAGED, 3) == 0


def test_each_of_them_is_its_own() -> None:
    kernel = World(geometry=TINY, max_ptes_shared=3, max_ptes_swap=4).kernel
    assert collapse_max_ptes_shared(kernel, KHUGEPAGED, PMD) == 3
    assert collapse_max_ptes_swap(kernel, KHUGEPAGED, PMD) == 4


def test_whoever_asked_for_the_collapse_has_no_limit() -> None:
    kernel = World(geometry=TINY, max_ptes_none=0, max_ptes_shared=0, max_ptes_swap=0).kernel
    for order in (2, PMD):
        assert collapse_max_ptes_none(kernel, MADVISE, None, order) == 16
        assert collapse_max_ptes_shared(kernel, MADVISE, order) == 16
        assert collapse_max_ptes_swap(kernel, MADVISE, order) == 16


def test_only_the_pmd_order_is_in_vmstat_too() -> None:
    kernel = World(geometry=TINY).kernel
    for order in (2, PMD):
        count_collapse_event(kernel, order, "thp_collapse_alloc", "collapse_alloc")
    assert kernel.vmstat.events == {"thp_collapse_alloc": 1}
    assert kernel.vmstat.mthp == {(2, "collapse_alloc"): 1, (PMD, "collapse_alloc"): 1}
