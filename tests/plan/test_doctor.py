# SPDX-License-Identifier: GPL-2.0-or-later
"""Each rule fires on settings made for it and not on their neighbours; the engine shows what rules claim."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mthp.image.scenario import load_one
from mthp.image.snapshot import load
from mthp.mm.page_alloc import NodeState
from mthp.mm.pgtable_types import Leaf
from mthp.mm.vm_flags import VM_DEFAULT, VM_HUGEPAGE, VM_NOHUGEPAGE
from mthp.plan.doctor import DAY, RULES, examine
from mthp.plan.examined import Examined, examined_image
from mthp.plan.records import SettingFinding
from mthp.predict.measure import frames_in_use
from mthp.predict.outcome import Request, run_world
from mthp.words.events import ScanPmd, Slept
from mthp.words.profiles import PMD_ONLY, V7_3, V16, Profile
from mthp.words.results import ScanResult
from mthp.words.settings import TRANSPARENT_HUGEPAGE, Enabled, Settings
from mthp.worlds.arrays import ImageMemcg
from mthp.worlds.build import build_world
from tests.small_worlds import TINY, World, attempts, hole, large, leaf, scans, shared, small, swap

ALWAYS, MADVISE, INHERIT, NEVER = Enabled.ALWAYS, Enabled.MADVISE, Enabled.INHERIT, Enabled.NEVER
SMALL: dict[str, Any] = {"sizes": {4: ALWAYS, 9: NEVER}, "max_ptes_none": 0}
"""64kB alone."""
ROOT = Path(__file__).parents[2]
OOM = str(ROOT / "docs/findings/oom-order-2.jsonl")
REDIS = ROOT / "src/mthp/data/redis.npz"
FULL = ImageMemcg("/db", 512, 510, 0)


def made(profile: Profile = V7_3, known: Mapping[str, Any] | None = None, **knobs: Any) -> Examined:
    """What is known where settings are so."""
    return Examined(Settings(**knobs), profile, **(known or {}))


def of_world(world: World, **known: Any) -> Examined:
    """What is known of a small world."""
    kernel = world.kernel
    return Examined(kernel.settings, kernel.profile, vmas=tuple(world.mm.vmas), **known)


def findings(case: Examined) -> dict[str, SettingFinding]:
    """What is found, by rule."""
    return {finding.rule: finding for finding in examine(case)[0]}


BOOT = {"cmdline": "quiet thp_anon=64K:always -- thp_anon=2M:always"}
PAIRS: list[tuple[str, Examined, Examined]] = [
    ("never-sleeps", made(scan_sleep_millisecs=0), made(scan_sleep_millisecs=1)),
    ("never-sleeps", made(scan_sleep_millisecs=0), made(scan_sleep_millisecs=0, enabled=NEVER)),
    ("memory-is-only-added", made(sizes={4: ALWAYS}), made(sizes={4: ALWAYS}, max_ptes_none=510)),
    ("memory-is-only-added", made(sizes={4: MADVISE}), made(sizes={9: ALWAYS})),
    ("memory-is-only-added", made(V16, sizes={4: ALWAYS}), made(PMD_ONLY, sizes={4: ALWAYS})),
    ("on-under-never", made(enabled=NEVER, sizes={4: ALWAYS}), made(sizes={4: ALWAYS})),
    ("on-under-never", made(enabled=NEVER, sizes={9: MADVISE}), made(enabled=NEVER)),
    ("underused-is-split", made(max_ptes_none=510), made()),
    ("underused-is-split", made(max_ptes_none=0), made(max_ptes_none=0, shrink_underused=False)),
    ("underused-is-split", made(max_ptes_none=0), made(max_ptes_none=0, known={"shrinker": False})),
    ("underused-is-split", made(max_ptes_none=0), made(**SMALL)),
    ("thp-anon", made(sizes={9: NEVER}, known=BOOT), made(known=BOOT)),
    ("thp-anon", made(sizes={9: NEVER}, known=BOOT),
     made(sizes={9: NEVER}, known={"cmdline": "thp_anon=64K:always;2M:never"})),
    ("thp-anon", made(known={"cmdline": '"thp_anon=3K:always"'}), made(known={"cmdline": "thp=1"})),
    ("no-size-is-on", made(sizes={9: NEVER}), made()),
    ("no-size-is-on", made(sizes={9: NEVER}), made(sizes={9: NEVER}, enabled=NEVER)),
    ("counts-as-zero", made(sizes={4: ALWAYS}, max_ptes_none=409), made(max_ptes_none=409)),
    ("counts-as-zero", made(sizes={4: ALWAYS}, max_ptes_none=1), made(sizes={4: ALWAYS}, max_ptes_none=0)),
    ("counts-as-zero", made(sizes={4: ALWAYS}, max_ptes_none=510), made(sizes={4: ALWAYS})),
    ("off-at-inherit", made(enabled=NEVER, sizes={4: INHERIT}), made(enabled=NEVER)),
    ("off-at-inherit", made(enabled=NEVER, sizes={4: INHERIT}), made(enabled=MADVISE, sizes={4: INHERIT})),
    ("page-faults-alone", made(PMD_ONLY, sizes={4: ALWAYS}), made(V7_3, sizes={4: ALWAYS})),
    ("page-faults-alone", made(PMD_ONLY, sizes={4: ALWAYS}), made(PMD_ONLY)),
    ("free-memory-is-in-pieces", made(defrag=False, known={"free_blocks": {0: 513, 9: 1}}),
     made(defrag=False, known={"free_blocks": {0: 512, 9: 1}})),
    ("free-memory-is-in-pieces", made(defrag=False, known={"free_blocks": {0: 513}}),
     made(known={"free_blocks": {0: 513}})),
    ("a-round-takes-days", made(known={"tables": 69_120}), made(known={"tables": 69_112})),
    ("tries-again-often", made(pages_to_scan=4097, **SMALL), made(**SMALL)),
    ("tries-again-often", made(scan_sleep_millisecs=9999, **SMALL), made(scan_sleep_millisecs=9999)),
    ("tries-again-often", made(V16, pages_to_scan=4097, **SMALL),
     made(PMD_ONLY, pages_to_scan=4097, **SMALL)),
    ("limits-of-whole-tables", made(**SMALL), made(**SMALL | {"sizes": {4: ALWAYS}})),
    ("no-swap-to-limit", made(max_ptes_swap=9, known={"swap": False}), made(known={"swap": False})),
    ("no-swap-to-limit", made(max_ptes_swap=9, known={"swap": False}),
     made(max_ptes_swap=9, known={"swap": True})),
    ("oom-for-khugepaged", made(sizes={2: ALWAYS}, known={"memcgs": (FULL,)}),
     made(sizes={2: ALWAYS}, defrag=False, known={"memcgs": (FULL,)})),
    ("oom-for-khugepaged", made(sizes={3: ALWAYS}, known={"memcgs": (FULL,)}),
     made(sizes={4: ALWAYS}, known={"memcgs": (FULL,)})),
    ("oom-for-khugepaged", made(sizes={2: ALWAYS}, known={"memcgs": (FULL,)}),
     made(sizes={2: ALWAYS}, known={"memcgs": (replace(FULL, reclaimable=2),)})),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "case", "neighbour"), PAIRS)
def test_a_rule_fires_on_its_setting_and_not_on_the_neighbour(
    rule: str, case: Examined, neighbour: Examined
) -> None:
    assert rule in findings(case)
    assert rule not in findings(neighbour)


def test_every_rule_is_tried() -> None:
    silent = {
        rule.about
        for rule in RULES
        if not any(
            list(rule.find(case))
            for _, case, _ in PAIRS
            if not rule.needs or getattr(case, rule.needs) is not None
        )
    }
    assert silent == {"sizes that no mapping may have"}, "which has tests of its own below"


def test_the_kernels_defaults_mean_what_they_seem_to() -> None:
    for profile in (V7_3, V16, PMD_ONLY):
        known = {"swap": False, "cmdline": "quiet", "free_blocks": {0: 9, 9: 9}, "memcgs": (FULL,)}
        assert not findings(made(profile, known | {"tables": 1000}))
        assert not findings(made(profile, known, enabled=NEVER))


def test_what_is_not_known_is_not_looked_at() -> None:
    _, looked_at, left_out = examine(made())
    assert {about for about, _ in left_out}.isdisjoint(looked_at)
    assert len(looked_at) + len(left_out) == len(RULES)
    assert len(left_out) == sum(bool(rule.needs) for rule in RULES)


# --- what rules claim, shown by the engine ----------------------------------------------------


def test_one_page_in_use_is_enough_and_adds_memory() -> None:
    world = World(orders={4}, max_ptes_none=511)
    vma = world.vma(small(), hole(511))
    assert "memory-is-only-added" in findings(of_world(world))
    before = frames_in_use(world.kernel)
    world.scan()
    assert world.orders(vma)[0] == 4
    assert frames_in_use(world.kernel) - before == 15
    strict = World(orders={4}, max_ptes_none=0)
    strict.vma(small(15), hole(497))
    assert not attempts(strict.scan())


def test_below_the_pmds_order_a_limit_between_counts_as_zero() -> None:
    for profile, collapsed in ((V7_3, [(4, ScanResult.SUCCEED)]), (V16, [])):
        world = World(orders={4}, max_ptes_none=409, profile=profile)
        world.vma(small(16), hole(), small(15), hole(480))
        assert "counts-as-zero" in findings(of_world(world))
        assert attempts(world.scan()) == collapsed
        assert bool(world.kernel.warnings) == bool(collapsed)


def test_never_is_for_sizes_at_inherit() -> None:
    on = World(orders={4}, enabled=NEVER)
    on.vma(small(16), hole(496))
    assert "on-under-never" in findings(of_world(on))
    assert attempts(on.scan()) == [(4, ScanResult.SUCCEED)]
    for enabled, rule in ((NEVER, "off-at-inherit"), (ALWAYS, "")):
        off = World(orders={4})
        off.settings(enabled=enabled, sizes={4: INHERIT, 9: NEVER})
        off.vma(small(16), hole(496))
        assert ("off-at-inherit" in findings(of_world(off))) == bool(rule)
        assert bool(attempts(off.scan())) == (not rule)


def test_without_a_size_that_is_on_nothing_is_scanned() -> None:
    world = World(orders=set(), enabled=ALWAYS)
    world.vma(small(512))
    assert "no-size-is-on" in findings(of_world(world))
    assert not scans(world.scan())


def test_before_7_2_khugepaged_knows_one_size() -> None:
    world = World(orders={4}, profile=PMD_ONLY)
    world.vma(small(512))
    assert "page-faults-alone" in findings(of_world(world))
    assert not attempts(world.scan())


@pytest.mark.parametrize(("piece", "name"), [(swap, "max_ptes_swap"), (shared, "max_ptes_shared")])
def test_limits_below_the_pmds_order_are_of_whole_tables(piece: Any, name: str) -> None:
    for limit, collapsed in ((19, []), (20, 30 * [(4, ScanResult.SUCCEED)])):
        world = World(orders={4}, max_ptes_none=0)
        world.settings(**{name: limit})
        vma = world.vma(small(480), piece(20), small(12))
        assert "limits-of-whole-tables" in findings(of_world(world))
        ended = attempts(world.scan())
        assert [each for each in ended if each[1] is ScanResult.SUCCEED] == collapsed
        assert len(world.orders(vma)) == (512 if limit == 19 else 30 + 32)


def test_without_defrag_a_block_has_to_be_free() -> None:
    for defrag, succeeded in ((False, 1), (True, 2)):
        free = {0: 2000, 9: 1}
        world = World(nodes=(NodeState(free),), defrag=defrag)
        world.vma(small(1024))
        case = of_world(world, free_blocks=free)
        assert ("free-memory-is-in-pieces" in findings(case)) == (not defrag)
        ended = attempts(world.scan())
        assert ended.count((9, ScanResult.SUCCEED)) == succeeded


def test_what_counts_against_max_ptes_swap_without_swap() -> None:
    for limit, status in ((1, ScanResult.EXCEED_SWAP_PTE), (2, ScanResult.FAIL)):
        world = World(max_ptes_swap=limit)
        world.vma(small(510), leaf(Leaf.GUARD, 2))
        assert "no-swap-to-limit" in findings(of_world(world, swap=False))
        assert scans(world.scan()) == [status]


@pytest.mark.parametrize("pages", [1, 16, 17, 18, 33, 34, 64])
def test_how_long_a_round_takes(pages: int) -> None:
    tables = 60
    sleep = 2 * DAY // tables * 8
    world = World(geometry=TINY, pages_to_scan=pages, scan_sleep_millisecs=sleep, max_ptes_none=0)
    world.vma(*[small(15), hole()] * tables)
    finding = findings(of_world(world, tables=tables))["a-round-takes-days"]
    while not world.khugepaged.full_scans:
        world.scan()
        assert world.khugepaged.wakeups <= 2 * tables
    said = re.search(r"some ([\d.]+) days", finding.means)
    assert said is not None
    assert float(said[1]) * DAY / sleep == pytest.approx(world.khugepaged.wakeups, abs=1.3)
    assert finding.write is not None
    world.settings(pages_to_scan=int(finding.write[1]))
    assert "a-round-takes-days" not in findings(of_world(world, tables=tables))
    world.scan(2)
    assert world.khugepaged.full_scans >= 2, "in one wakeup, as a sleep is longer than an hour"


def test_what_is_large_already_is_tried_again_at_every_full_scan() -> None:
    world = World(orders={4}, max_ptes_none=0, scan_sleep_millisecs=1000)
    vma = world.vma(*[large(4)] * 32)
    assert findings(of_world(world))["tries-again-often"].write == (
        (f"{TRANSPARENT_HUGEPAGE}/khugepaged/scan_sleep_millisecs",), "10000",
    )  # fmt: skip
    for _ in range(2):
        events = world.scan()
        assert attempts(events) == 32 * [(4, ScanResult.PTE_MAPPED_HUGEPAGE)]
    assert world.orders(vma) == 32 * [4]


def test_nothing_sleeps_with_a_sleep_of_0() -> None:
    world = World(scan_sleep_millisecs=0)
    world.vma(small(512))
    world.khugepaged.khugepaged_wait_work()
    assert [e.millisecs for e in world.kernel.events if isinstance(e, Slept)] == [0]


def test_the_oom_killer_is_asked_where_the_rule_says_so() -> None:
    scenario = load_one(OOM)
    told = []
    for knobs in ({}, {"defrag": False}, {"sizes": {2: NEVER, 4: ALWAYS, 9: NEVER}}):
        settings = scenario.settings.replace(**knobs)
        case = examined_image(settings, V7_3, scenario, None)
        outcome = run_world(
            build_world(scenario, V7_3, settings), Request("", "", "", changes=False)
        )
        told.append("oom-for-khugepaged" in findings(case))
        assert any("kills a process" in warning for warning in outcome.warnings) == told[-1]
    assert told == [True, False, False]


# --- mappings -----------------------------------------------------------------------------------


def test_a_size_that_no_mapping_may_have() -> None:
    world = World(orders=set(), enabled=NEVER)
    world.settings(sizes={4: MADVISE, 9: ALWAYS})
    world.vma(pages=100)
    world.vma(pages=200, at=0x44000000)
    world.vma(pages=512, at=0x50000000, flags=VM_DEFAULT | VM_NOHUGEPAGE)
    finding, pmd = (each for each in examine(of_world(world))[0] if each.rule == "no-mapping")
    assert (
        "(of 2048kB, no aligned range of that size: 2, MADV_NOHUGEPAGE or MAP_STACK: 1)"
        in pmd.means
    )
    assert pmd.write is None
    assert (
        "(of 64kB, not advised (MADV_HUGEPAGE): 2, MADV_NOHUGEPAGE or MAP_STACK: 1)"
        in finding.means
    )
    assert finding.write is not None and finding.write[1] == "always"
    assert [value for _, value in finding.read] == ["madvise"]
    world.vma(pages=16, at=0x60000000, flags=VM_DEFAULT | VM_HUGEPAGE)
    (finding,) = (each for each in examine(of_world(world))[0] if each.rule == "no-mapping")
    assert [value for _, value in finding.read] == ["always"], "2048kB"
    assert finding.write is None
    world.vma(pages=512, at=0x70000000)
    assert "no-mapping" not in findings(of_world(world))


def test_khugepaged_looks_at_whole_tables_at_any_size() -> None:
    world = World(orders={4}, max_ptes_none=0)
    world.vma(small(500), pages=500)
    assert "no-mapping-for-khugepaged" in findings(of_world(world))
    assert not scans(world.scan())
    world.vma(small(512), at=0x60000000)
    assert "no-mapping-for-khugepaged" not in findings(of_world(world))
    assert len(attempts(world.scan())) == 32


def test_tables_are_counted_that_khugepaged_looks_through() -> None:
    snapshot = load(REDIS)
    advised = Settings.from_sysfs(snapshot.sysfs)
    assert examined_image(advised, V7_3, snapshot, None).tables == 0
    settings = advised.replace(enabled=ALWAYS, max_ptes_none=0)
    case = examined_image(settings, V7_3, snapshot, None)
    world = build_world(snapshot, V7_3, settings)
    while not world.khugepaged.full_scans:
        world.khugepaged.khugepaged_do_scan()
    looked = {
        each.address
        for each in world.kernel.events
        if isinstance(each, ScanPmd) and each.status is not ScanResult.NO_PTE_TABLE
    }
    assert case.tables == len(looked) == 26
