# SPDX-License-Identifier: GPL-2.0-or-later
"""Which orders a VMA may be collapsed to, and the gate that says no."""

from __future__ import annotations

import pytest

from mthp.khugepaged.eligibility import collapse_possible_orders, hugepage_enabled, requested_orders
from mthp.mm.huge_mm import Tva, VmaGate, allowable_orders
from mthp.mm.mm_types import MMF_DISABLE_THP_EXCEPT_ADVISED
from mthp.words.profiles import PMD_ONLY, V16
from mthp.words.settings import Enabled, Settings
from tests.small_worlds import TINY, World, small

E = Enabled


def world_with(enabled: Enabled, **sizes: Enabled) -> World:
    """TINY with o2, o3, o4 set."""
    world = World(geometry=TINY, orders=())
    chosen = dict.fromkeys((2, 3, 4), E.NEVER) | {int(k[1:]): v for k, v in sizes.items()}
    world.kernel.settings = Settings(geometry=TINY, enabled=enabled, sizes=chosen)
    return world


@pytest.mark.parametrize(
    ("everywhere", "size", "runs"),
    [
        (E.ALWAYS, E.NEVER, True),
        (E.MADVISE, E.NEVER, True),
        (E.NEVER, E.ALWAYS, True),
        (E.NEVER, E.MADVISE, True),
        (E.NEVER, E.INHERIT, False),
        (E.NEVER, E.NEVER, False),
    ],
)
def test_what_starts_the_daemon(everywhere: Enabled, size: Enabled, runs: bool) -> None:
    assert hugepage_enabled(world_with(everywhere, o2=size).kernel) is runs


def test_madvise_passes_the_switches_and_the_except_advised_mode() -> None:
    world = world_with(E.NEVER)
    vma = world.vma(small(16))
    world.mm.mm_flags_set(MMF_DISABLE_THP_EXCEPT_ADVISED)
    assert collapse_possible_orders(vma, vma.vm_flags, Tva.KHUGEPAGED) == 0
    assert collapse_possible_orders(vma, vma.vm_flags, Tva.FORCED_COLLAPSE) == 1 << 4
    assert allowable_orders(vma, vma.vm_flags, Tva.KHUGEPAGED, 1 << 4) is VmaGate.NOT_ENABLED


def test_requested_orders_by_profile_and_caller() -> None:
    anon = 0b11100
    for profile, khugepaged in ((V16, anon), (PMD_ONLY, 1 << 4), (World().kernel.profile, anon)):
        kernel = World(geometry=TINY, profile=profile).kernel
        assert requested_orders(kernel, Tva.KHUGEPAGED) == khugepaged
        assert requested_orders(kernel, Tva.FORCED_COLLAPSE) == 1 << 4
