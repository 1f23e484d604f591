# SPDX-License-Identifier: GPL-2.0-or-later
"""The new folio: from which node, charged to whom, and put back where nothing came of it."""

from __future__ import annotations

from collections import Counter

import pytest

from mthp.khugepaged.alloc import NewFolio, alloc_charge_folio, collapse_find_target_node
from mthp.khugepaged.control import Caller, CollapseControl
from mthp.mm.page_alloc import NodeState
from mthp.words.profiles import (
    PROFILES,
    V7_3,
    Profile,
)
from mthp.words.results import Refused, ScanResult
from tests.small_worlds import TINY, World, small

R = ScanResult
EVERY = pytest.mark.parametrize("profile", list(PROFILES.values()), ids=lambda each: each.name)


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


def control(*loads: int, caller: Caller = Caller.KHUGEPAGED) -> CollapseControl:
    """A scan that saw so many pages on each node."""
    cc = CollapseControl(caller)
    cc.node_load = Counter(dict(enumerate(loads)))
    return cc


@pytest.mark.parametrize(
    ("loads", "node", "allowed"),
    [
        ((5, 3, 2), 0, {0}),
        ((3, 5, 2), 1, {1}),
        ((2, 5, 5), 1, {1, 2}),
        ((4, 4, 4), 0, {0, 1, 2}),
        ((0, 0, 0), 0, {0, 1, 2}),
        ((0, 0, 1), 2, {2}),
    ],
)
def test_the_node_with_the_most_pages_is_the_target(
    loads: tuple[int, ...], node: int, allowed: set[int]
) -> None:
    world = World(geometry=TINY, nodes=(NodeState(), NodeState(), NodeState()))
    cc = control(*loads)
    assert collapse_find_target_node(world.kernel, cc) == node
    assert cc.alloc_nmask == allowed


def test_nodes_that_tied_before_stay_allowed() -> None:
    """Kernel: nodes are added to the mask for as long as one table is worked on."""
    world = World(geometry=TINY, nodes=(NodeState(), NodeState()))
    cc = control(1, 1)
    collapse_find_target_node(world.kernel, cc)
    cc.node_load[0] += 1
    assert collapse_find_target_node(world.kernel, cc) == 0
    assert cc.alloc_nmask == {0, 1}


def test_the_folio_comes_from_the_target_node() -> None:
    world = World(geometry=TINY, nodes=(NodeState(), NodeState()))
    with alloc_charge_folio(world.mm, control(1, 2), 3) as new:
        assert world.mem.folio_nid(new.folio) == 1
        assert world.mem.order.raw[new.folio] == 3
        assert world.mem.refcount.raw[new.folio] == 1


@pytest.mark.parametrize("defrag", [False, True])
@pytest.mark.parametrize("caller", list(Caller))
def test_compaction_is_for_defrag_and_for_whoever_asked_for_the_collapse(
    defrag: bool, caller: Caller
) -> None:
    world = World(geometry=TINY, free={0: 16}, defrag=defrag)
    compacts = defrag or caller is Caller.MADVISE
    stat = world.kernel.vmstat
    if compacts:
        with alloc_charge_folio(world.mm, control(1, caller=caller), 4):
            pass
    else:
        with pytest.raises(Refused, match=ScanResult.ALLOC_HUGE_PAGE_FAIL.string):
            alloc_charge_folio(world.mm, control(1, caller=caller), 4)
    name = "thp_collapse_alloc" if compacts else "thp_collapse_alloc_failed"
    assert stat.events == {name: 1}
    assert stat.mthp == {(4, name.removeprefix("thp_")): 1}


@pytest.mark.parametrize("defrag", [False, True])
def test_without_defrag_a_charge_may_not_reclaim(defrag: bool) -> None:
    world = World(geometry=TINY, defrag=defrag)
    memcg = world.mm.memcg = world.kernel.new_memcg("g", limit=16, usage=16)
    memcg.reclaimable = 16
    if defrag:
        with alloc_charge_folio(world.mm, control(1), 4) as new:
            assert world.mem.memcg.raw[new.folio] == memcg.number
        assert memcg.usage.value == 0
    else:
        with pytest.raises(Refused, match=ScanResult.CGROUP_CHARGE_FAIL.string):
            alloc_charge_folio(world.mm, control(1), 4)
        assert memcg.usage.value == 16


def test_a_folio_that_cannot_be_charged_is_counted_and_given_back() -> None:
    world = World(geometry=TINY, free={4: 1})
    world.mm.memcg = world.kernel.new_memcg("full", limit=15)
    with pytest.raises(Refused, match=ScanResult.CGROUP_CHARGE_FAIL.string):
        alloc_charge_folio(world.mm, control(1), 4)
    assert world.kernel.vmstat.events == {"thp_collapse_alloc": 1}
    assert world.mem.allocator.nodes[0].free_frames() == 16


@pytest.mark.parametrize("installed", [False, True])
def test_a_folio_that_was_not_installed_is_freed_on_every_way_out(installed: bool) -> None:
    world = World(geometry=TINY, free={4: 1})
    folio = world.mem.folio_alloc(4)
    assert folio is not None
    with pytest.raises(ZeroDivisionError), NewFolio(world.kernel, folio) as new:
        new.installed = installed
        raise ZeroDivisionError
    assert world.mem.allocator.nodes[0].free_frames() == (0 if installed else 16)


def test_an_abandoned_execution_frees_nothing() -> None:
    world = World(geometry=TINY, free={4: 1})
    folio = world.mem.folio_alloc(4)
    assert folio is not None
    with NewFolio(world.kernel, folio):
        world.kernel.machine.abandoned = True
    assert world.mem.allocator.nodes[0].free_frames() == 0
