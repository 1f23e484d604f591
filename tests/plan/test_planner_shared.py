# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans where tables decide about each other: by shared pages, by memory that runs out, by order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from mthp.image.snapshot import Kpf, Pte
from mthp.mm.page_alloc import NodeState
from mthp.mm.pgtable_types import DIRTY, YOUNG
from mthp.plan.planner import Planner
from mthp.plan.records import BulkVerdict
from mthp.words.profiles import DEFAULT, PROFILES
from mthp.words.settings import Enabled, Settings
from mthp.words.units import Geometry
from mthp.worlds.arrays import ImageProcess, WorldArrays
from tests.plan.held import compare, engine, said
from tests.plan.images import (
    BASE,
    PAGE,
    PTRS,
    SIZE,
    always,
    fill,
    forked_image,
    made_process,
    random_profile,
    swap_out,
)

ENDLESS = (NodeState(None),)


def plan_of(processes: list[ImageProcess], settings: Settings) -> BulkVerdict:
    """The plan for an image with memory without end, which is held against the engine."""
    (plan,) = compare(WorldArrays(ENDLESS, processes), [settings], DEFAULT)
    return plan


def test_a_page_that_another_process_has_pinned_refuses_this_ones_table() -> None:
    mine, other = (
        made_process(0, 1),
        replace(made_process(1, 1), place=None, pins=((BASE, BASE + PAGE),)),
    )
    fill(mine, 0, slice(0, PTRS), 4096)
    mine.tables.kpagecount[0, 0] = 2
    fill(other, 0, slice(0, 1), 4096, mapcount=2)
    assert not plan_of([mine, other], always(9)).windows
    assert plan_of([mine, replace(other, pins=())], always(9)).windows == {9: 1}


def test_a_table_is_passed_by_for_shared_pages_until_others_have_copied_theirs() -> None:
    many, few = made_process(0, 1), made_process(1, 1)
    fill(many, 0, slice(0, PTRS), 4096)
    many.tables.kpagecount[0, :300] = 2
    fill(few, 0, slice(0, 200), 4096, mapcount=2)
    settings = always(9, max_ptes_shared=256, max_ptes_none=511)
    assert plan_of([many, few], settings).windows == {9: 2}
    assert plan_of([many, few], settings.replace(max_ptes_shared=199)).windows == {}


def test_memory_that_a_later_table_frees_is_not_there_for_an_earlier_one() -> None:
    owner = made_process(0, 40)
    for row in range(20):
        fill(owner, row, slice(0, 1), 4096 + row)
    for row in range(20, 40):
        fill(owner, row, slice(0, 1), (row + 1) << 13)
        owner.tables.folio_order[row, 0] = 9
    nodes = (NodeState({9: 14}),)
    settings = always(9, max_ptes_none=511, scan_sleep_millisecs=1)
    (plan,) = compare(WorldArrays(nodes, [owner]), [settings], DEFAULT)
    assert plan.all_engine == "memory might run out"


def test_a_large_folio_is_freed_when_a_window_takes_its_pages_and_not_before() -> None:
    owner = made_process(0, 1)
    fill(owner, 0, slice(0, 64), 1 << 13)
    owner.tables.folio_order[0, :64] = 6
    fill(owner, 0, slice(16, 32), 4096)
    owner.tables.folio_order[0, 16:32] = 0
    fill(owner, 0, slice(40, 42), 3 << 13)
    owner.tables.folio_order[0, 40:42] = 2
    assert plan_of([owner], always(4)).memory_added == 0
    assert plan_of([owner], always(9, max_ptes_none=511)).memory_added == (512 - 64 - 16 - 4) * PAGE


def test_a_folio_comes_from_the_node_of_its_pages() -> None:
    owner = made_process(0, 20)
    for row in range(20):
        fill(owner, row, slice(0, PTRS), 4096 + row * PTRS)
    full = WorldArrays((NodeState({0: 10}), NodeState({9: 100})), [owner])
    (plan,) = compare(full, [always(9)], DEFAULT)
    assert plan.all_engine == "memory might run out"
    assert plan.windows == {}


def test_memory_is_added_to_whom_the_cursor_comes_to_first() -> None:
    owners = [made_process(number, 1) for number in range(2)]
    for owner in owners:
        fill(owner, 0, slice(0, 500), 4096, mapcount=2)
    settings = always(9, max_ptes_shared=511)
    for cursor, first, second in ((None, 100, 101), ((1, BASE), 101, 100)):
        arrays = WorldArrays(ENDLESS, owners, cursor=cursor)
        (plan,) = compare(arrays, [settings], DEFAULT)
        assert plan.counted_tables == 2
        assert plan.added_by_vma == {(first, BASE): SIZE, (second, BASE): 12 * PAGE}


def test_what_is_mapped_is_what_the_mappings_have() -> None:
    owner = made_process(0, 4)
    owner.tables.pte[0] = Pte.PRESENT | Pte.HUGE | Pte.ZERO
    fill(owner, 1, slice(0, 8), 4096)
    owner.tables.kpageflags[1, 0] &= ~np.uint64(1 << Kpf.ANON)
    fill(owner, 2, slice(0, PTRS), 8192)
    owner.tables.pte[2] |= np.uint16(Pte.HUGE)
    owner.tables.folio_order[2] = 9
    fill(owner, 3, slice(0, 8), 6144)
    anonymous, of_file = (
        owner.vmas[0]._replace(end=BASE + 2 * SIZE),
        owner.vmas[0]._replace(start=BASE + 2 * SIZE, file="a", anon_vma=False, place=1),
    )
    plan = plan_of([replace(owner, vmas=(anonymous, of_file))], always(9))
    assert (plan.before, plan.translations) == ({0: 8 * PAGE}, 8)
    written = of_file._replace(anon_vma=True)
    plan = plan_of([replace(owner, vmas=(anonymous, written))], always(9))
    assert (plan.before, plan.translations) == ({0: 16 * PAGE, 9: SIZE}, 17)


def test_tables_of_two_pages_have_a_limit_as_well() -> None:
    geometry = Geometry(12, 1)
    owner = made_process(0, 3, geometry)
    for row in range(3):
        fill(owner, row, slice(0, 1), 4096 + 2 * row)
    settings = Settings(geometry=geometry, enabled=Enabled.ALWAYS, max_ptes_none=1)
    assert plan_of([owner], settings).windows == {1: 3}


def test_what_another_table_left_in_an_lru_batch_is_not_seen() -> None:
    """What the engine of all tables makes of a window at the place of a larger one that was refused in its
    middle depends on how full the batch was; a plan takes it as the tables that it runs leave it.
    """
    owner = made_process(0, 2)
    fill(owner, 0, slice(0, 16), 4096, used=0)
    fill(owner, 0, slice(100, 101), 5000)
    fill(owner, 1, slice(0, PTRS), 8192)
    owner.tables.kpagecount[1, 31] = 2
    arrays, settings = WorldArrays(ENDLESS, [owner]), always(4, 8, max_ptes_none=0)
    plan = Planner(arrays, DEFAULT, settings).plan(settings)
    facts = engine(arrays, settings, DEFAULT).facts
    assert said(plan) != facts
    assert (plan.windows, facts["windows"]) == ({4: 15, 8: 1}, {4: 14, 8: 1})


def test_limits_between_which_no_table_has_its_holes_are_run_once() -> None:
    owner, other = made_process(0, 2), replace(made_process(1, 1), place=None)
    for row, pages in ((0, 500), (1, 300)):
        fill(owner, row, slice(0, pages), 4096 + row * PTRS, mapcount=1)
        owner.tables.kpagecount[row, 0] = 2
    for row in (0, 1):
        fill(other, 0, slice(row, row + 1), 4096 + row * PTRS, mapcount=2)
    owner = replace(
        owner,
        pins=((BASE + 511 * PAGE, BASE + 512 * PAGE), (BASE + SIZE + 511 * PAGE, BASE + 2 * SIZE)),
    )
    arrays = WorldArrays(ENDLESS, [owner, other])
    settings = [always(9, max_ptes_none=none) for none in (11, 12, 100, 211, 212, 400, 511)]
    planner = Planner(arrays, DEFAULT, settings[0])
    found = [planner.plan(each).windows for each in settings]
    assert found == [{}, {9: 1}, {9: 1}, {9: 1}, {9: 2}, {9: 2}, {9: 2}]
    assert len(planner.runs) == 3
    for each in settings:
        assert said(planner.plan(each)) == engine(arrays, each, DEFAULT).facts


def shared_outside(rnd: Random) -> WorldArrays:
    """A process whose pages, large folios apart, another one that is not in the image maps too, here and
    there; with holes, and pages that were not used lately."""
    owner = made_process(0, 5)
    tables = owner.tables
    for row in range(5):
        fill(owner, row, slice(0, PTRS), 4096 + row * 2 * PTRS)
        for order in rnd.sample((2, 4, 6), rnd.choice((0, 0, 2))):
            at = rnd.randrange(PTRS >> order) << order
            part = slice(at, at + (1 << order))
            if tables.folio_order[row, part].any():
                continue
            fill(owner, row, part, (100 + row) * 2 * PTRS + at)
            tables.folio_order[row, part] = order
        few = rnd.choice((1, 3, 200, 512))
        for at in rnd.sample(range(PTRS), few):
            if not tables.folio_order[row, at]:
                tables.kpagecount[row, at] = rnd.choice((2, 3))
        for at in rnd.sample(range(PTRS), rnd.choice((0, 0, 5, 100, 400))):
            if not tables.folio_order[row, at]:
                for column in (tables.pte, tables.pfn, tables.kpageflags, tables.kpagecount):
                    column[row, at] = 0
        if rnd.random() < 0.3:
            tables.bits[row, rnd.randrange(PTRS) :] = DIRTY
    return WorldArrays(ENDLESS, [owner])


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 20))]
)
def test_pages_that_others_outside_map_are_counted_where_that_says_all(seed: int) -> None:
    rnd, by = Random(seed), Counter[str]()
    for _ in range(8):
        arrays = shared_outside(rnd)
        masks = [(9,), (4,), (2,), (2, 9), (6, 9), (2, 3, 4)]
        settings = [
            always(
                *rnd.choice(masks),
                max_ptes_none=rnd.choice((0, 5, 64, 511)),
                max_ptes_shared=rnd.choice((0, 2, 256, 511)),
            )
            for _ in range(4)
        ]
        for each in settings:
            orders = sum(order < 9 for order, mode in each.sizes.items() if mode is Enabled.ALWAYS)
            if orders > 1:
                # What was refused in its middle waits in an LRU batch: decision 0015 names the difference.
                continue
            for plan in compare(arrays, [each], random_profile(rnd)):
                assert not plan.engine_tables
                by["windows"] += sum(plan.windows.values())
                by["added"] += plan.memory_added
                by["counted"] += plan.counted_tables
    assert min(by["windows"], by["counted"]) > 40
    assert by["added"]


def forked_images(seed: int, number: int) -> Counter[str]:
    """Compare images of forked processes, one size or PMDs as well; returns by whom tables were decided."""
    rnd, by = Random(seed), Counter[str]()
    for _ in range(number):
        arrays = forked_image(rnd)
        settings = [
            always(
                *rnd.choice([(9,), (9,), (4,), (2,), (4, 9), (2, 9)]),
                max_ptes_none=rnd.choice((0, 0, 5, 200, 511)),
                max_ptes_shared=rnd.choice((0, 5, 200, 256, 511)),
                max_ptes_swap=rnd.choice((0, 64, 64, 511)),
            )
            for _ in range(3)
        ]
        for plan in compare(arrays, settings, random_profile(rnd)):
            by["counted"] += plan.counted_tables
            by["engine"] += plan.engine_tables
            by["windows"] += sum(plan.windows.values())
    return by


def test_a_plan_is_what_the_engine_makes_of_processes_that_share() -> None:
    by = forked_images(7, 3)
    assert by["counted"] and by["windows"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_plan_is_what_the_engine_makes_of_many_processes_that_share(seed: int) -> None:
    assert forked_images(seed, 1000)["windows"]


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_a_slot_that_two_name_at_different_places_is_the_engines(profile: str) -> None:
    """The second has a copy, which is not in the swap cache. Kernel: ksm_might_need_to_copy()."""
    owners = [made_process(number, 1) for number in range(2)]
    for number, owner in enumerate(owners):
        fill(owner, 0, slice(0, PTRS), 4096 * (number + 1))
        swap_out(owner, 0, 3 + number, 7, exclusive=False)
    arrays = WorldArrays(ENDLESS, owners)
    (plan,) = compare(arrays, [always(9)], PROFILES[profile])
    assert (plan.windows, plan.engine_tables) == ({9: 2}, 2)


def test_a_slot_of_its_own_is_read_where_half_of_the_pages_are_in_use() -> None:
    for used, few, windows in ((256, 64, {9: 1}), (255, 64, {}), (256, 65, {})):
        owner = made_process(0, 1)
        fill(owner, 0, slice(0, PTRS), 4096, used=0)
        owner.tables.bits[0, :used] |= YOUNG
        for at in range(400, 400 + few):
            swap_out(owner, 0, at, at)
        plan = plan_of([owner], always(9, max_ptes_none=0))
        assert (plan.windows, plan.counted_tables, plan.engine_tables) == (windows, 1, 0)
        assert plan.copied_bytes == (SIZE if windows else 0)
        assert plan.memory_added == (64 * PAGE if windows else 0)


def test_where_several_small_sizes_are_on_shared_tables_are_the_engines() -> None:
    owner = made_process(0, 2)
    for row in range(2):
        fill(owner, row, slice(0, PTRS), 4096 + row * PTRS)
        owner.tables.kpagecount[row, 7] = 2
    owner.tables.pte[1, 100] = 0
    arrays = WorldArrays(ENDLESS, [owner])
    small = always(2, 4, max_ptes_none=0)
    (plan,) = compare(arrays, [small], DEFAULT)
    assert plan.engine_tables == 2
    (plan,) = compare(arrays, [always(2, 4, 9, max_ptes_none=0)], DEFAULT)
    assert (plan.engine_tables, plan.counted_tables) == (1, 1)


def test_a_page_is_freed_for_the_last_of_several_that_give_it_up() -> None:
    """The pages that one table has copied do not hold up the next: its new folio empties the batch. The first
    two share a page, the second and third another, so that the third is the last to have it."""
    owners = [made_process(number, 1) for number in range(3)]
    for number, owner in enumerate(owners):
        fill(owner, 0, slice(0, PTRS), 4096 * (number + 1))
    for at, sharers in ((3, (0, 1)), (4, (1, 2))):
        for each in sharers:
            fill(owners[each], 0, slice(at, at + 1), 1 << 20 | at, mapcount=2)
    plan = plan_of(owners, always(9, max_ptes_shared=511))
    assert plan.added_by_vma == {(100, BASE): PAGE, (101, BASE): PAGE}
    assert plan.last_collapse_ms is not None
