# SPDX-License-Identifier: GPL-2.0-or-later
"""Costs and time of a run: allocations that fail, a cgroup's limit, wakeups and sleeping, the TLB."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import pytest

from mthp.image.scenario_values import Memcg
from mthp.predict.measure import TlbModel
from mthp.predict.outcome import Request, run_world
from mthp.predict.records import Outcome
from mthp.words.profiles import V7_3
from mthp.words.results import ScanResult
from mthp.words.settings import Enabled
from mthp.worlds.build import build_world
from tests.predict.test_changes import FULL, outcome, scenario, words

ALWAYS = Enabled.ALWAYS


def test_no_free_block() -> None:
    """The first failure sleeps alloc_sleep_millisecs, the second ends the wakeup."""
    result = outcome(scenario(*FULL, orders={9: ALWAYS}, free_blocks={0: 600}, defrag=False))
    assert result.fixed_point and not result.collapsed_bytes
    assert result.attempts == {(9, ScanResult.ALLOC_HUGE_PAGE_FAIL): result.refused.attempts}
    assert (
        result.clock.alloc_sleep_ms == result.settings.alloc_sleep_millisecs * result.clock.wakeups
    )
    assert result.refused.allocated_bytes == 0
    (refusal,) = result.refusals
    assert (refusal.status, refusal.pages) == (ScanResult.ALLOC_HUGE_PAGE_FAIL, 512)


def test_as_many_blocks_as_are_free() -> None:
    """Ten blocks of 64kB, and nothing between them to merge: ten collapses, 22 refused."""
    result = outcome(scenario(*FULL, orders={4: ALWAYS}, free_blocks={4: 10}, defrag=False))
    assert result.collapsed_bytes >= 10 * 65536
    left = sum(refusal.pages for refusal in result.refusals)
    assert left * 4096 == (2 << 20) - result.collapsed_bytes


def test_a_cgroup_at_its_limit() -> None:
    """An allocation that cannot be charged was made, and is wasted."""
    result = outcome(scenario(*FULL, orders={9: ALWAYS}, memcg=Memcg(600, 512)))
    assert {status for _, status in result.attempts} == {ScanResult.CGROUP_CHARGE_FAIL}
    assert result.refused.allocated_bytes == result.refused.attempts << 21
    assert words(result.refusals[0]) == "raise the memory cgroup's limit by 424 pages"


@pytest.mark.parametrize(("order", "defrag", "kills"), [(3, True, 1), (4, True, 0), (3, False, 0)])
def test_a_charge_that_would_kill_is_said(order: int, defrag: bool, kills: int) -> None:
    """Seen on 7.3.4: memory.events counts one oom_kill in the first of these, none in the others."""
    full: dict[str, Any] = {"memcg": Memcg(512, 512), "defrag": defrag}
    result = outcome(scenario(*FULL, orders={order: ALWAYS}, **full))
    assert result.attempts == {(order, ScanResult.CGROUP_CHARGE_FAIL): 1}
    assert len(result.warnings) == kills
    assert all("the kernel kills a process" in words for words in result.warnings)


def test_a_cgroup_gets_back_what_a_collapse_frees() -> None:
    """Room for one window is room for all: the sources of each are uncharged."""
    result = outcome(scenario(*FULL, orders={4: ALWAYS}, memcg=Memcg(528, 512)))
    assert result.attempts[(4, ScanResult.SUCCEED)] == 32
    assert (4, ScanResult.CGROUP_CHARGE_FAIL) not in result.attempts


@pytest.mark.slow
def test_no_block_above_the_largest() -> None:
    """512 pages are freed, and never make a block of 64kB where something lies in each."""
    free: dict[str, Any] = {"free_blocks": {3: 200}, "largest_block": 3, "defrag": False}
    result = outcome(scenario(*FULL, orders={3: ALWAYS, 4: ALWAYS}, **free))
    statuses = {order: {s for o, s in result.attempts if o == order} for order in (3, 4)}
    assert statuses[4] == {ScanResult.ALLOC_HUGE_PAGE_FAIL}
    assert ScanResult.SUCCEED in statuses[3]


def run_with(pages_to_scan: int) -> Outcome:
    of = scenario(*FULL, orders={4: ALWAYS})
    world = build_world(of, V7_3)
    world.kernel.settings = of.settings.replace(pages_to_scan=pages_to_scan)
    return run_world(world, Request("t", "s", "r", changes=False))


def test_wakeups_and_full_scans() -> None:
    """A small budget takes more wakeups and sleeps more; what collapses is the same."""
    many, few = run_with(1), run_with(100_000)
    assert many.orders_after == few.orders_after
    assert many.clock.wakeups > few.clock.wakeups
    for result in (many, few):
        assert result.clock.wakeups >= result.clock.full_scans
        slept = result.settings.scan_sleep_millisecs * (result.clock.wakeups - 1)
        assert result.clock.scan_sleep_ms == slept


def test_translations() -> None:
    """One for a huge PMD, else one for a PTE; contpte: 16 aligned PTEs of a folio share one."""
    for tlb, order, expected in (
        (TlbModel.PLAIN, 9, 1),
        (TlbModel.PLAIN, 4, 512),
        (TlbModel.CONTPTE, 4, 32),
        (TlbModel.CONTPTE, 5, 32),
        (TlbModel.CONTPTE, 3, 512),
    ):
        world = build_world(scenario(*FULL, orders={order: ALWAYS}), V7_3)
        result = run_world(world, Request("t", "s", "r", tlb=tlb, changes=False))
        assert (result.tlb_before, result.tlb_after) == (512, expected), (tlb, order)
        assert result.collapsed_bytes == 2 << 20


def test_what_a_table_that_collapses_adds() -> None:
    """Its new frames' rows, and little more: 12 GiB of small pages have 6,144 such tables."""
    added = []
    for tables in (32, 128):
        pages = 512 * tables
        of = scenario(f"{pages}:F0.RLaB.xs.m1", f"{pages}:PWAD", orders={9: ALWAYS}, pages=pages)
        tracemalloc.start()
        world = build_world(of, V7_3)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        result = run_world(world, Request("t", "s", "r", changes=False))
        gc.collect()
        added.append(tracemalloc.get_traced_memory()[0] - before)
        tracemalloc.stop()
        assert result.orders_after[9].folios == tables
    assert added[1] - added[0] < 96 * 36_000
