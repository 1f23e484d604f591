# SPDX-License-Identifier: GPL-2.0-or-later
"""The grid of settings, and the choice among what they give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mthp.cli.options import VARIED
from mthp.image.snapshot import load
from mthp.mm.page_alloc import NodeState
from mthp.plan.doctor import examine
from mthp.plan.examined import examined_image
from mthp.plan.planner import Planner
from mthp.plan.records import BulkVerdict, Wanted, Wish
from mthp.plan.sweep import (
    Sweeper,
    Varied,
    choose_plan,
    front_of,
    grid,
    notes_of,
    soon_enough,
    sooner_than,
    with_sizes,
)
from mthp.words.profiles import DEFAULT, PROFILES
from mthp.words.settings import Enabled, Settings
from mthp.worlds.arrays import WorldArrays
from mthp.worlds.build import arrays_of
from tests.plan.images import BASE, PAGE, PTRS, always, fill, made_process

REDIS = Path(__file__).parents[2] / "src/mthp/data/redis.npz"


@pytest.fixture(scope="module")
def plans() -> list[BulkVerdict]:
    """Redis under the grid, by price."""
    profile = PROFILES["7.3"]
    planner = Planner(arrays_of(load(REDIS)), profile, Settings())
    found = [planner.plan(settings) for settings in grid(Settings(), profile)]
    return sorted(found, key=lambda plan: plan.price)


def test_the_grid_has_no_setting_twice_and_starts_from_what_is_set() -> None:
    base = Settings(enabled=Enabled.MADVISE, max_ptes_none=30, pages_to_scan=77)
    for name, number in (("7.3", 99 + 14), ("pmd-only", 1 + 7)):
        tried = [*grid(base, PROFILES[name])]
        assert len(tried) == len(set(tried)) == number
        assert {each.pages_to_scan for each in tried} == {77}
        assert {each.size_enabled(4) for each in tried} <= {Enabled.ALWAYS, Enabled.NEVER}


def test_what_is_varied_comes_after_what_is_set_and_not_twice() -> None:
    base, profile = Settings(pages_to_scan=100, defrag=False), PROFILES["7.3"]
    plain = [*grid(base, profile)]
    for vary, times in (({Varied.DEFRAG}, 2), ({Varied.RATE}, 4), ({*Varied}, 8)):
        tried = [*grid(base, profile, vary)]
        assert len(tried) == len(set(tried)) == times * len(plain)
        assert tried[: len(plain)] == plain
    assert {(each.pages_to_scan, each.scan_sleep_millisecs) for each in tried} == {
        (pages, sleep) for pages in (100, 1600) for sleep in (1000, 10_000)
    }
    fast = Settings(scan_sleep_millisecs=1000)
    assert len([*grid(fast, profile, {Varied.RATE})]) == 2 * len([*grid(fast, profile)])
    assert tuple(Varied) == VARIED


def test_the_front_is_what_no_other_betters(plans: list[BulkVerdict]) -> None:
    front = [plan.price[:3] for plan, is_on in zip(plans, front_of(plans), strict=True) if is_on]
    assert len(front) == len(set(front)) > 3
    for plan in plans:
        here = plan.price[:3]
        assert any(all(map(int.__le__, other, here)) for other in front)
        if here in front:
            assert not any(
                all(map(int.__le__, other.price, here))
                for other in plans
                if other.price[:3] != here
            )


def test_the_choice_holds_to_the_wish_and_nothing_that_does_is_cheaper(
    plans: list[BulkVerdict],
) -> None:
    wish = Wish(added=0.01, large=0.5)
    chosen, nearest = choose_plan(plans, wish)
    assert chosen is nearest is not None
    mapped = sum(chosen.before.values())
    holding = [
        plan
        for plan in plans
        if plan.memory_added <= 0.01 * mapped and plan.large >= 0.5 * plan.mapped
    ]
    assert chosen.price == min(plan.price for plan in holding)
    assert len(holding) < len(plans)


def test_a_wish_that_none_holds_to_is_missed_by_the_nearest(plans: list[BulkVerdict]) -> None:
    wish = Wish(added=0.0, large=0.99)
    chosen, nearest = choose_plan(plans, wish)
    assert chosen is None
    assert 0 < wish.missed_by(nearest) == min(map(wish.missed_by, plans))


def test_pages_to_scan_is_raised_as_far_as_a_wish_takes() -> None:
    planner = Planner(arrays_of(load(REDIS)), PROFILES["7.3"], Settings())
    settings = Settings(enabled=Enabled.ALWAYS, max_ptes_none=511)
    slow = planner.plan(settings)
    assert slow.last_collapse_ms is not None
    sleep = settings.scan_sleep_millisecs
    assert slow.last_collapse_ms > 3 * sleep
    assert soon_enough(planner, settings, Wish()) == slow
    fast = soon_enough(planner, settings, Wish(within=2 * sleep + 1000))
    assert fast.last_collapse_ms is not None
    assert fast.last_collapse_ms <= 2 * sleep + 1000
    halved = fast.settings.replace(pages_to_scan=fast.settings.pages_to_scan // 2)
    assert (planner.plan(halved).last_collapse_ms or 0) > 2 * sleep + 1000
    assert fast.windows == slow.windows
    never = soon_enough(planner, settings, Wish(within=sleep // 2))
    assert never.last_collapse_ms is not None
    assert sleep < never.last_collapse_ms < 2 * sleep


def test_what_several_processes_find_is_what_one_finds_in_the_same_order() -> None:
    owner = replace(made_process(0, 2), pins=((BASE, BASE + PAGE),))
    for row, pages in enumerate((512, 300)):
        fill(owner, row, slice(0, pages), 4096 + row * PTRS)
    arrays, wish = WorldArrays((NodeState(None),), [owner]), Wish(within=1)
    tried = [always(4, 9), always(4), always(9), always(2), always(4, max_ptes_none=0)]
    tried += [each.replace(pages_to_scan=777) for each in tried]
    planner, told = Planner(arrays, DEFAULT, tried[0]), list[int]()
    found = Sweeper(planner, wish, jobs=3, alone=0, tell=told.append).plans(tried)
    assert any(plan.engine_tables and plan.windows for plan in found)
    assert not planner.runs  # it was not this process that ran the engine
    assert told == sorted(told) and told[-1] == len(tried)
    assert [plan.settings.sizes for plan in found] == [settings.sizes for settings in tried]
    assert Sweeper(planner, wish).plans(tried) == found
    assert planner.runs


def test_each_thing_that_is_missed_is_told_with_how_far_off(plans: list[BulkVerdict]) -> None:
    plan = max(plans, key=lambda each: each.memory_added)
    assert plan.last_collapse_ms is not None
    found = plan.memory_added / sum(plan.before.values())
    wish = Wish(added=found / 2, large=1.0, reach=1.0, within=plan.last_collapse_ms // 2)
    missed = {miss.wanted: miss for miss in wish.misses(plan)}
    assert [*missed] == [*Wanted]
    assert missed[Wanted.ADDED].found == found
    assert missed[Wanted.ADDED].by == pytest.approx(found / 2)
    assert missed[Wanted.REACH].by == pytest.approx(1 - plan.reach)
    assert missed[Wanted.WITHIN].by == pytest.approx(1, rel=0.01)
    kept = Wish(found, plan.large / plan.mapped, plan.reach, plan.last_collapse_ms)
    assert not kept.misses(plan)
    assert not Wish().misses(plan)


def test_notes_are_what_the_doctor_finds_in_these_settings_and_not_in_those_that_are_set() -> None:
    image, profile = load(REDIS), PROFILES["7.3"]
    base = Settings(enabled=Enabled.MADVISE)
    planner = Planner(arrays_of(image), profile, base, image)
    for settings in (
        with_sizes(base, frozenset({2, 9})).replace(max_ptes_none=63),
        with_sizes(base, frozenset({4})),
        base,
    ):
        notes = notes_of(planner, settings, base)
        found, _, _ = examine(examined_image(settings, profile, image, None))
        known, _, _ = examine(examined_image(base, profile, image, None))
        rules = {each.rule for each in found} - {each.rule for each in known}
        assert {each.rule for each in notes} == rules - {"a-round-takes-days"}
        assert bool(notes) == (settings is not base)
        assert all(each in found for each in notes)


def test_the_same_is_had_sooner_at_other_rates() -> None:
    planner = Planner(arrays_of(load(REDIS)), PROFILES["7.3"], Settings())
    plan = planner.plan(with_sizes(Settings(), frozenset({9})))
    found = sooner_than(planner, plan)
    times = [each.last_collapse_ms or 0 for each in (plan, *found)]
    assert len(found) == 3 and times == sorted(set(times), reverse=True)
    assert {each.collapsed_bytes for each in found} == {plan.collapsed_bytes}
    assert not sooner_than(planner, found[-1])
    never = planner.plan(with_sizes(Settings(), frozenset()))
    assert not sooner_than(planner, never)
