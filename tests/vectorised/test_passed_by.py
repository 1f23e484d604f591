# SPDX-License-Identifier: GPL-2.0-or-later
"""Passing by rows of tables equals walking over them one by one: the same progress, wakeups, sleeps
and events; and what it costs does not grow with how many are not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mthp.khugepaged.daemon import collapse_scan_tables, wake_up
from mthp.khugepaged.madvise import madvise_collapse, pass_by_tables
from mthp.mm.mm_types import MMF_DISABLE_THP_COMPLETELY
from mthp.mm.vm_flags import VM_DEFAULT, VM_NOHUGEPAGE
from mthp.predict.passes import RunEnd, Tally, run_full_scans
from mthp.vectorised.glance import _with_many_holes, glances, passes
from mthp.vectorised.passed_by import collapse_scan_tables_at_once, wake_up_at_once
from mthp.vectorised.twins import TWINS
from mthp.words.events import Event, PassedBy, singly
from mthp.words.profiles import PMD_ONLY, V7_3, Profile
from mthp.words.results import ScanResult
from mthp.words.settings import Enabled
from tests.small_worlds import (
    TINY,
    World,
    hole,
    huge,
    large,
    lazyfree,
    old,
    shared,
    small,
    swap,
    zero,
)
from tests.vectorised.calls import code, functions_run

NR = TINY.ptrs_per_pte
NOHUGE = VM_DEFAULT | VM_NOHUGEPAGE
WALKING = {
    clear: fast for clear, fast in TWINS.items() if clear not in (wake_up, collapse_scan_tables)
}
TABLES = {
    "missing": (),
    "full": (small(NR),),
    "old": (old(NR),),
    "one": (small(1), hole(NR - 1)),
    "zero pages": (zero(2), old(1), small(1), hole(1), zero(NR - 5)),
    "used behind": (old(2), hole(NR - 3), small(1)),
    "shared": (shared(1), hole(NR - 1)),
    "shared behind": (old(1), hole(NR - 2), shared(1)),
    "swapped": (swap(1), hole(NR - 1)),
    "given up": (lazyfree(1), hole(NR - 1)),
    "large": (large(2), hole(NR - 4)),
    "huge": (huge(4),),
}


@dataclass(frozen=True)
class Mapping:
    """tables: of each table of its range, how many of them in a row and their kind. gap: tables between
    it and the one before. head, tail: pages before the first whole table, and behind the last.
    """

    tables: tuple[tuple[int, str], ...]
    head: int = 0
    tail: int = 0
    flags: int = VM_DEFAULT
    gap: int = 1
    anon_vma: bool = True


@dataclass(frozen=True)
class Recipe:
    """processes: the mappings of each, from low addresses on. free: free blocks of the PMD order."""

    processes: tuple[tuple[Mapping, ...], ...]
    profile: Profile = V7_3
    pages_to_scan: int = 4096
    max_ptes_none: int = 0
    free: int | None = None
    refuses: bool = False


def cook(recipe: Recipe) -> World:
    world = World(
        geometry=TINY,
        profile=recipe.profile,
        pages_to_scan=recipe.pages_to_scan,
        max_ptes_none=recipe.max_ptes_none,
        free=None if recipe.free is None else {4: recipe.free},
        defrag=False,
        scan_sleep_millisecs=7,
        alloc_sleep_millisecs=1000,
    )
    for mappings in recipe.processes:
        mm, at = world.process(), 1 << 30
        for mapping in mappings:
            at += mapping.gap * TINY.pmd_size
            head = mapping.head if mapping.gap else 0
            start = at - head * TINY.page_size
            pages = head + NR * sum(nr for nr, _ in mapping.tables) + mapping.tail
            vma = world.vma(
                mm=mm,
                flags=mapping.flags,
                at=start,
                pages=max(pages, 1),
                anon_vma=mapping.anon_vma,
            )
            page = head
            for nr, kind in mapping.tables:
                for first in range(page, page + NR * nr, NR) if kind != "missing" else ():
                    world.fill(vma, first, *TABLES[kind])
                page += NR * nr
            at = TINY.pmd_align_up(vma.vm_end)
    if recipe.refuses:
        world.khugepaged.mm_slots[-1].mm_flags_set(MMF_DISABLE_THP_COMPLETELY)
    return world


def run(world: World, passes: int | None) -> tuple[RunEnd, Tally, list[Event | PassedBy]]:
    kept: list[Event | PassedBy] = []
    tally = Tally(world.kernel, keep=kept)
    return run_full_scans(world.kernel, world.khugepaged, tally, passes, most=6), tally, kept


def state(world: World) -> dict[str, Any]:
    daemon = world.khugepaged
    return {
        "cursor": (daemon.mm_slot and daemon.mm_slot.number, daemon.address),
        "sums": (daemon.cc, daemon.pages_collapsed, daemon.full_scans, daemon.wakeups),
        "tables": [list(table.ptes.raw) for table in world.kernel.tables.values()],
        "counters": world.kernel.vmstat,
        "batches": [cpu.lru_add.value for cpu in world.kernel.cpus],
        "held": world.kernel.machine.current.held,
    }


mappings = st.builds(
    Mapping,
    tables=st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 15, 16, 17, 60]), st.just("missing"))
        | st.tuples(st.integers(1, 2), st.sampled_from(sorted(TABLES)))
        | st.tuples(st.just(3), st.sampled_from(["one", "zero pages", "used behind"]))
        | st.tuples(st.sampled_from([3, 16, 40]), st.just("huge")),
        max_size=5,
    ).map(tuple),
    head=st.sampled_from([0, 0, 1, NR - 1]),
    tail=st.sampled_from([0, 0, 1, NR - 1]),
    flags=st.sampled_from([VM_DEFAULT] * 3 + [NOHUGE]),
    gap=st.sampled_from([0, 0, 1, 20]),
    anon_vma=st.sampled_from([True, True, True, False]),
)
recipes = st.builds(
    Recipe,
    processes=st.lists(
        st.lists(mappings, min_size=1, max_size=3).map(tuple), min_size=1, max_size=2
    ).map(tuple),
    profile=st.sampled_from([V7_3, PMD_ONLY, PMD_ONLY]),
    pages_to_scan=st.sampled_from([1, 2, 3, NR, NR + 1, 2 * NR + 1, 5 * NR, 4096]),
    max_ptes_none=st.sampled_from([0, 0, 1, 3, NR - 2, NR - 1]),
    free=st.sampled_from([None, 0, 1]),
    refuses=st.booleans(),
)


ADJACENT = (Mapping(((60, "missing"),)), Mapping(((60, "missing"),), flags=NOHUGE, gap=0))
"""Wakeups end where the second mapping begins, which is not scanned."""


@settings(deadline=None, max_examples=80)
@example(Recipe((ADJACENT,), pages_to_scan=21), None)
@given(recipes, st.sampled_from([None, None, 1, 2]))
def test_leaping_equals_walking(recipe: Recipe, passes: int | None) -> None:
    leaping, walking = cook(recipe), cook(recipe)
    walking.kernel.machine.twins = WALKING
    ended, tally, kept = run(leaping, passes)
    ended_there, tally_there, kept_there = run(walking, passes)
    assert not any(isinstance(event, PassedBy) for event in kept_there)
    assert list(singly(kept)) == kept_there
    assert ended == ended_there
    assert tally.sleeps == tally_there.sleeps
    assert state(leaping) == state(walking)


@pytest.mark.parametrize(("profile", "progress"), [(V7_3, 1), (PMD_ONLY, NR)])
def test_a_mapping_a_thousand_times_as_long_has_no_more_events(
    profile: Profile, progress: int
) -> None:
    """A full scan of it takes as many more wakeups, and as much more sleep, as it costs progress."""
    kept, wakeups = [], []
    for missing in (1 << 10, 1 << 20):
        tables = ((1, "old"), (missing, "missing"), (1, "one"))
        world = cook(Recipe(((Mapping(tables),),), profile, pages_to_scan=64))
        ended, tally, events = run(world, 1)
        rows = [event for event in events if isinstance(event, PassedBy)]
        assert sum(row.nr - len(row.there) for row in rows) == missing
        kept.append(len(events))
        wakeups.append(ended.wakeups)
        assert tally.sleeps["scan_sleep"] == 7 * (ended.wakeups - 1)
    assert kept[1] == kept[0]
    each = -(-63 // progress)
    assert wakeups[1] - wakeups[0] in range((1023 << 10) // each, (1023 << 10) // each + 2)


def test_both_leaps_are_taken() -> None:
    """Or this file would compare the walk with itself."""
    world = cook(Recipe(((Mapping(((60, "missing"), (1, "old"))),),), pages_to_scan=16))
    with functions_run() as seen:
        _, _, kept = run(world, None)
    assert {code(collapse_scan_tables_at_once), code(wake_up_at_once)} <= seen
    assert any(isinstance(event, PassedBy) and event.wakeup is not None for event in kept)


@pytest.mark.parametrize("profile", [V7_3, PMD_ONLY])
def test_tables_that_are_refused_for_their_holes_are_in_rows(profile: Profile) -> None:
    tables = ((4, "missing"), (3, "one"), (2, "zero pages"), (1, "old"))
    world = cook(Recipe(((Mapping(tables),),), profile))
    _, tally, kept = run(world, 1)
    rows = [event for event in kept if isinstance(event, PassedBy)]
    said = [event.status for row in rows for event in row.there]
    assert said == [ScanResult.EXCEED_NONE_PTE] * 5
    assert [log.scan.status for log in tally.last_pass.values() if log.scan][:5] == said


@pytest.mark.parametrize(("kind", "closely"), [("full", False), ("one", True)])
def test_a_table_is_looked_at_closely_where_it_has_too_many_holes(kind: str, closely: bool) -> None:
    world = cook(Recipe(((Mapping(((3, kind),)),),)))
    with functions_run() as seen:
        run(world, 1)
    assert code(passes) in seen and (code(glances) in seen) is closely
    assert (code(_with_many_holes) in seen) is closely


def put_in_a_batch(world: World) -> None:
    """A folio off the LRU that only the batch and its mapping hold."""
    vma = world.khugepaged.mm_slots[1].vmas[0]
    world.off_lru(vma, 0)
    world.mem.refcount.raw[world.folio(vma, 0)] += 1
    world.kernel.this_cpu.lru_add.value = (world.folio(vma, 0),)


def forbid(world: World) -> None:
    world.khugepaged.mm_slots[1].vmas[0].vm_flags |= VM_NOHUGEPAGE


CHANGES: dict[str, Callable[[World], object]] = {
    "nothing": lambda world: None,
    "a batch": put_in_a_batch,
    "a busy mm": lambda world: world.held_by_another(world.khugepaged.mm_slots[1].mmap_write_lock),
    "the last user left": lambda world: world.khugepaged.mm_slots[1].mm_users.write(0),
    "prctl": lambda world: world.khugepaged.mm_slots[1].mm_flags_set(MMF_DISABLE_THP_COMPLETELY),
    "nothing enabled": lambda world: world.settings(enabled=Enabled.NEVER, sizes={}),
    "madvise": forbid,
    "pages_to_scan": lambda world: world.settings(pages_to_scan=3),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("last", ["missing", "huge"])
def test_what_changed_before_a_leap_is_seen(what: str, last: str) -> None:
    """It leaves behind what so many wakeups would, one by one."""
    made: list[World] = []
    for leaps in (True, False):
        tables = ((1, "old"), (3, "huge"), (20, "missing"), (36, last), (1, "old"))
        world = cook(Recipe(((Mapping(tables),),), pages_to_scan=20))
        daemon = world.khugepaged
        daemon.khugepaged_do_scan()
        CHANGES[what](world)
        while daemon.wakeups < (2 if leaps else made[0].khugepaged.wakeups):
            (wake_up_at_once if leaps else wake_up)(daemon)
        made.append(world)
    one, other = made
    assert state(one) == state(other)
    assert one.kernel.events == other.kernel.events
    assert one.mem.refcount.raw == other.mem.refcount.raw
    assert (one.khugepaged.wakeups > 2) is (what in ("nothing", "a batch", "pages_to_scan"))


@pytest.mark.parametrize("last", ["missing", "huge", "old"])
def test_a_visit_answers_what_its_last_table_did(last: str) -> None:
    answers = []
    for twins in (TWINS, WALKING):
        world = cook(Recipe(((Mapping(((2, "huge"), (2, "missing"), (1, last))),),)))
        world.kernel.machine.twins = twins
        world.khugepaged.mm_slot = mm = world.khugepaged.mm_slots[1]
        answers.append(world.khugepaged.collapse_scan_mm_slot(mm, 4096))
    assert answers[0] is answers[1]


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.tuples(st.integers(1, 8), st.sampled_from(sorted(TABLES))), min_size=1, max_size=4),
    st.sampled_from([V7_3, PMD_ONLY]),
)
def test_madvise_passes_by_the_same_tables(tables: list[tuple[int, str]], profile: Profile) -> None:
    """With every window asked in turn, and with rows passed by: the same answer, and the same events."""
    seen = []
    for twins in (TWINS, {k: v for k, v in TWINS.items() if k is not pass_by_tables}):
        world = cook(Recipe(((Mapping(tuple(tables)),),), profile))
        world.kernel.machine.twins = twins
        (vma,) = world.kernel.mms[-1].vmas
        answer = madvise_collapse(vma, vma.vm_start, vma.vm_end)
        seen.append((answer, list(world.kernel.events), world.orders(vma)))
    assert seen[0] == seen[1]
