# SPDX-License-Identifier: GPL-2.0-or-later
"""The scan's fast twin declines, or agrees with the clear twin in everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mthp.khugepaged.control import Caller, CollapseControl
from mthp.khugepaged.scan import Scan, scan_ptes
from mthp.mm.mm_types import Vma
from mthp.mm.page_alloc import NodeState
from mthp.mm.pgtable import PteMap
from mthp.mm.pgtable_types import pmd_is_table
from mthp.vectorised.collapse import scan_ptes_at_once
from mthp.words.results import Refused, ScanResult
from mthp.words.units import Geometry
from tests.khugepaged.strategies import Recipe, recipes
from tests.small_worlds import TINY, World, hole, large, old, scans, small, zero
from tests.vectorised.calls import code, functions_run


def counted(
    world: World, vma: Vma, page: int, caller: Caller, twin: Callable[[Scan, PteMap], None]
) -> dict[str, Any]:
    """What a twin counts over one table."""
    cc = CollapseControl(caller)
    scan = Scan(vma, world.address(vma, page), cc)
    result = ScanResult.SUCCEED
    with PteMap(world.kernel, world.table(vma, world.address(vma, page)), 0) as pte:
        try:
            twin(scan, pte)
        except Refused as refusal:
            result = refusal.result
    names = ("none_or_zero", "referenced", "unmapped", "failed_pfn")
    return {
        "result": result,
        "present": cc.present_ptes,
        "progress": cc.progress,
        "node_load": {node: n for node, n in cc.node_load.items() if n},
        **{name: getattr(scan, name) for name in names},
    }


def test_the_twins_agree() -> None:
    """Over random worlds, of which many are plain enough for the fast twin and many are not."""
    answers: Counter[str] = Counter()

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(recipes(Geometry(12, 4)), st.sampled_from(list(Caller)))
    def check(recipe: Recipe, caller: Caller) -> None:
        world, vma = recipe.build()
        for page in (0, 16):
            if not pmd_is_table(world.pmd(vma, world.address(vma, page))):
                continue
            with functions_run() as run:
                fast = counted(world, vma, page, caller, scan_ptes_at_once)
            answers["declined" if code(scan_ptes) in run else "agreed"] += 1
            assert fast == counted(world, vma, page, caller, scan_ptes)

    check()
    assert min(answers["declined"], answers["agreed"]) > 20


def test_pages_on_several_nodes() -> None:
    world = World(geometry=TINY, nodes=(NodeState(), NodeState(), NodeState()))
    vma = world.vma(small(3, nid=2), large(2, nid=1), zero(4), hole(4), old(1))
    with functions_run() as run:
        fast = counted(world, vma, 0, Caller.KHUGEPAGED, scan_ptes_at_once)
    assert code(scan_ptes) not in run
    assert Counter(fast["node_load"]) == {2: 3, 1: 4, 0: 1}
    assert fast["referenced"] == 7
    assert fast["present"] == 0b1000_0000_0111_1111
    assert fast == counted(world, vma, 0, Caller.KHUGEPAGED, scan_ptes)


def test_a_watched_scan_takes_the_clear_twin() -> None:
    """Steps are steps where somebody counts them, and the answer is the same."""
    results = []
    for watched in (False, True):
        world = World(geometry=TINY, orders={2, 4}, max_ptes_none=0)
        vma = world.vma(small(13), hole(3))
        if watched:
            table = world.table(vma)
            seen: list[int] = []
            world.kernel.machine.on_step = lambda access, word, index, bits: (
                seen.append(index) if word is table.ptes else None  # noqa: B023
            )
        results.append((scans(world.scan()), world.orders(vma)))
        if watched:
            assert seen[:16] == list(range(16))
    assert results[0] == results[1]
