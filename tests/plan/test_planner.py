# SPDX-License-Identifier: GPL-2.0-or-later
"""A plan is what the engine makes of the same image: held against it, image by image."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from mthp.image.scenario import load
from mthp.mm.page_alloc import NodeState
from mthp.mm.vm_flags import VM_DEFAULT
from mthp.plan.blocks import has_blocks_for
from mthp.plan.planner import Planner
from mthp.predict.outcome import Request, run_world
from mthp.words.profiles import DEFAULT, PROFILES
from mthp.words.settings import Enabled, Settings
from mthp.worlds.arrays import ImageVma, WorldArrays
from mthp.worlds.build import arrays_of, build_arrays
from tests.plan.held import compare, engine
from tests.plan.images import (
    PTRS,
    always,
    fill,
    made_process,
    random_image,
    random_profile,
    random_settings,
)

DATA = Path(__file__).parents[1] / "data"


def random_images(seed: int, number: int) -> Counter[str]:
    """Compare random images; returns by whom tables were decided."""
    rnd = Random(seed)
    by: Counter[str] = Counter()
    for _ in range(number):
        image = random_image(rnd)
        settings = [random_settings(rnd) for _ in range(3)]
        for plan in compare(image, settings, random_profile(rnd)):
            by["counted"] += plan.counted_tables
            by["engine"] += plan.engine_tables
            by[plan.all_engine] += 1
            by["collapsed"] += sum(plan.windows.values()) > 0
    return by


def test_a_plan_is_what_the_engine_makes_of_random_images() -> None:
    by = random_images(1, 45)
    assert min(by["counted"], by["engine"]) > 50
    assert by["collapsed"] > 20
    assert by["memory might run out"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_plan_is_what_the_engine_makes_of_many_random_images(seed: int) -> None:
    assert random_images(seed, 2000)["collapsed"]


STATES = sorted(path.name for path in DATA.glob("l[ai][bn]*7.3.4*.jsonl.xz"))


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("share", [40, pytest.param(1, marks=pytest.mark.slow)])
def test_a_plan_is_what_the_engine_makes_of_recorded_states(name: str, share: int) -> None:
    rnd, plans = Random(name), 0
    states = list(load(DATA / name))
    for scenario in states[:: max(min(share, len(states) // 4), 1)]:
        settings = [scenario.settings]
        if scenario.geometry == settings[0].geometry:
            settings.append(random_settings(rnd))
        plans += len([*compare(arrays_of(scenario), settings, PROFILES["7.3"])])
    assert plans


def test_without_defrag_the_engine_says_where_a_block_is_free() -> None:
    image = random_image(Random(3))
    nodes = (NodeState({0: 1 << 20, 9: 1}),)
    settings = Settings(max_ptes_none=511, defrag=False)
    (plan,) = compare(replace(image, nodes=nodes), [settings], DEFAULT)
    assert plan.all_engine == "without defrag a block has to be free"


def test_without_defrag_tables_are_counted_where_large_blocks_are_enough() -> None:
    rnd, counted = Random(5), 0
    for _ in range(8):
        image = replace(random_image(rnd), nodes=(NodeState({0: 7, 4: 3, 9: 30}, reserve=100),))
        settings = [
            Settings(enabled=Enabled.ALWAYS, max_ptes_none=none, defrag=False) for none in (0, 511)
        ]
        for plan in compare(image, settings, DEFAULT):
            assert plan.all_engine != "without defrag a block has to be free"
            counted += plan.counted_tables
    assert counted > 10


@pytest.mark.parametrize("pages_to_scan", [1, 100, 511, 512, 513, 4096, 5000, 1 << 20])
@pytest.mark.parametrize("profile", ["7.3", "pmd-only"])
def test_the_last_collapse_is_within_the_time_and_not_long_before(
    pages_to_scan: int, profile: str
) -> None:
    owner = made_process(0, 100)
    for row in range(100):
        fill(owner, row, slice(0, PTRS), 4096 + row * PTRS)
    settings = Settings(enabled=Enabled.ALWAYS, pages_to_scan=pages_to_scan)
    arrays = WorldArrays((NodeState(None),), [owner])
    (plan,) = compare(arrays, [settings], PROFILES[profile])
    last = engine(arrays, settings, PROFILES[profile]).last_collapse_ms
    assert plan.last_collapse_ms is not None and last is not None
    assert last <= plan.last_collapse_ms <= max(1.4 * last, last + 10_000)


def test_partly_mapped_folios_are_those_of_the_world() -> None:
    rnd, folios = Random(11), 0
    for _ in range(60):
        arrays = random_image(rnd)
        arrays = replace(arrays, processes=[*arrays.processes])
        settings, profile = random_settings(rnd), random_profile(rnd)
        found = Planner(arrays, profile, settings).partly_mapped
        world = build_arrays(arrays, settings, profile)
        outcome = run_world(world, Request("", "", "", passes=1, changes=False))
        assert found == outcome.partly_before
        folios += found.folios
    assert folios > 20


def test_pages_of_zeros_are_counted_once_and_not_where_nobody_looked() -> None:
    owner, other = made_process(0, 2), made_process(1, 1)
    fill(owner, 0, slice(0, 512), 1 << 13)
    owner.tables.folio_order[0] = 9
    fill(owner, 1, slice(0, 8), 4096, mapcount=2)
    fill(other, 0, slice(0, 8), 4096, mapcount=2)
    arrays = WorldArrays((NodeState(None),), [owner, other])
    assert Planner(arrays, DEFAULT, Settings()).zero_filled is None
    looked = []
    for process in (owner, other):
        zeros = np.zeros(process.tables.pte.shape, np.bool_)
        zeros[:, :5] = True
        looked.append(replace(process, tables=replace(process.tables, zero_filled=zeros)))
    planner = Planner(replace(arrays, processes=looked), DEFAULT, Settings())
    assert planner.zero_filled == (10 * 4096, 5 * 4096)


def test_a_mapping_may_end_where_addresses_do() -> None:
    owner = made_process(0, 2)
    fill(owner, 0, slice(0, PTRS), 4096)
    last = ImageVma(2**64 - (10 << 20), 2**64 - 4096, VM_DEFAULT, False, "[vsyscall]", "x", place=1)
    arrays = WorldArrays((NodeState(None),), [replace(owner, vmas=(*owner.vmas, last))])
    settings = Settings(enabled=Enabled.ALWAYS)
    assert Planner(arrays, DEFAULT, settings).plan(settings).windows == {9: 1}


def test_the_last_collapse_is_in_the_wakeup_that_comes_to_its_table() -> None:
    """And not later, where tables after it are scanned in vain or others end early; see wakeups.py."""
    owner = made_process(0, 60)
    for row in range(60):
        fill(owner, row, slice(0, PTRS if row < 20 else 40), 4096 + row * PTRS)
    arrays = WorldArrays((NodeState(None),), [owner])
    for pages_to_scan, none, wakeups in (
        (1026, 0, 10),
        (1026, 511, 30),
        (3 * 512, 0, 7),
    ):
        settings = always(9, max_ptes_none=none, pages_to_scan=pages_to_scan)
        (plan,) = compare(arrays, [settings], DEFAULT)
        assert (plan.last_collapse_ms or 0) // settings.scan_sleep_millisecs == wakeups
        assert engine(arrays, settings, DEFAULT).last_collapse_ms == plan.last_collapse_ms


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 9))]
)
def test_no_wakeup_is_later_than_is_said(seed: int) -> None:
    rnd, exact = Random(seed), 0
    for _ in range(10 if seed == 1 else 300):
        image = random_image(rnd)
        settings = [
            random_settings(rnd).replace(pages_to_scan=rnd.choice((1, 400, 520, 700, 1500)))
            for _ in range(2)
        ]
        for plan, each in zip(compare(image, settings, random_profile(rnd)), settings, strict=True):
            assert plan.settings == each
            exact += plan.last_collapse_ms is not None
    assert exact


def test_for_how_much_a_block_is_free_now() -> None:
    """The largest folios first, and what is left of their blocks for the smaller ones."""
    owner = made_process(0, 3)
    for row, pages in enumerate((PTRS, PTRS, 64)):
        fill(owner, row, slice(0, pages), 4096 + row * PTRS)
    settings = always(4, 9, max_ptes_none=0)
    for blocks, pages in (
        ({0: 4000, 3: 9}, 0),
        ({4: 3}, 48),
        ({4: 3, 9: 1}, 512 + 48),
        ({10: 1, 5: 1}, 1024 + 32),
        ({10: 2}, 1024 + 64),
    ):
        planner = Planner(WorldArrays((NodeState(blocks),), [owner]), DEFAULT, settings)
        plan = planner.plan(settings)
        if not plan.windows:  # too little memory for all
            plan = replace(plan, windows={4: 4, 9: 2})
        assert has_blocks_for(plan, planner.arrays.nodes) == pages * 4096
    endless = Planner(WorldArrays((NodeState(None),), [owner]), DEFAULT, settings)
    plan = endless.plan(settings)
    assert plan.windows == {4: 4, 9: 2}
    assert has_blocks_for(plan, endless.arrays.nodes) is None
