# SPDX-License-Identifier: GPL-2.0-or-later
"""Every PTE outside a folio of the highest order is in exactly one refusal; the end is a fixed
point; a number of passes is that many full scans. Over recorded states, settings and profiles.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from io import BytesIO
from pathlib import Path

import pytest

from mthp.image.runs import PageKind, PteState
from mthp.image.scenario import Scenario, load
from mthp.image.snapshot import read_snapshot
from mthp.mm.mem_map import MemMap
from mthp.predict.explain import highest_order
from mthp.predict.outcome import Request, run_world
from mthp.predict.records import Outcome, TimePoint
from mthp.words.profiles import DEFAULT, PROFILES
from mthp.words.settings import Enabled, Settings
from mthp.worlds.build import BuiltWorld, build_world
from mthp.worlds.render import canonical, render_state
from tests.image.made import made

DATA = Path(__file__).parent.parent / "data"


@cache
def scenarios() -> tuple[Scenario, ...]:
    return tuple(s for path in sorted(DATA.glob("linux-*.jsonl.xz")) for s in load(path))


def request(passes: int | None = None) -> Request:
    return Request("target", "source", "reason", passes=passes, changes=False)


def drawn(seed: int, count: int) -> list[tuple[Scenario, BuiltWorld]]:
    """Random records under random profiles, half of them under random settings."""
    rnd = random.Random(seed)
    found = []
    for scenario in rnd.sample(scenarios(), count):
        settings = scenario.settings
        if rnd.random() < 0.5:
            settings = settings.replace(
                max_ptes_none=rnd.choice([0, 100, 511]),
                max_ptes_swap=rnd.choice([0, 64, 511]),
                max_ptes_shared=rnd.choice([0, 256, 511]),
                sizes={order: rnd.choice(list(Enabled)) for order in settings.sizes},
                enabled=rnd.choice([Enabled.ALWAYS, Enabled.MADVISE, Enabled.NEVER]),
            )
        if rnd.random() < 0.3:
            settings = settings.replace(pages_to_scan=rnd.choice([1, 100, 512, 1000]))
        world = build_world(scenario, PROFILES[rnd.choice(["v16", "7.3", "pmd-only"])])
        world.kernel.settings = settings
        found.append((scenario, world))
    return found


def uncovered(world: BuiltWorld, outcome: Outcome) -> list[str]:
    """What is wrong with the refusals, found from the rendered state alone."""
    page = world.kernel.geometry.page_size
    wrong = []
    counted: Counter[int] = Counter()
    for vma, state in zip(world.vmas, render_state(world.kernel, world.vmas), strict=True):
        highest = highest_order(world.kernel, vma)
        pairs = zip(state.folio_pages(), state.pte_pages(), strict=True)
        for i, (token, entry) in enumerate(pairs):
            if token.kind is PageKind.NONE:
                continue
            address = vma.vm_start + i * page
            huge = token.kind is PageKind.HUGE_ZERO or entry.state is PteState.HUGE
            done = huge or (token.kind is PageKind.FOLIO and token.order >= highest)
            owners = [
                k
                for k, r in enumerate(outcome.refusals)
                if r.pid == vma.vm_mm.number and 0 <= address - r.address < r.span * page
            ]
            if not done:
                counted.update(owners)
                if len(owners) != 1:
                    wrong.append(f"{address:#x} is in {len(owners)} refusals")
    wrong += [
        f"{refusal} holds {counted[k]} pages"
        for k, refusal in enumerate(outcome.refusals)
        if refusal.pages != counted[k]
    ]
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_each_page_has_one_refusal_and_the_end_is_a_fixed_point(seed: int) -> None:
    for scenario, world in drawn(seed, 40):
        outcome = run_world(world, request())
        assert uncovered(world, outcome)[:3] == [], scenario.id
        assert outcome.fixed_point and outcome.complete
        before = canonical(render_state(world.kernel, world.vmas))
        again = run_world(world, request())
        assert canonical(render_state(world.kernel, world.vmas)) == before, scenario.id
        assert (again.collapsed_bytes, again.swapped_in_bytes) == (0, 0)


def test_a_page_of_two_processes_is_counted_once() -> None:
    """Of the twelve pages of the first table the child maps two."""
    image = read_snapshot(BytesIO(made().packed()), "made")
    settings = Settings(image.geometry, sizes={4: Enabled.ALWAYS}, max_ptes_none=0)
    refused = run_world(build_world(image, DEFAULT, settings), request()).refusals
    assert [(each.pid, each.mapped, each.distinct) for each in refused] == [
        (100, 12, 12),
        (101, 2, 0),
    ]


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_passes_are_full_scans(passes: int) -> None:
    for scenario, world in drawn(passes, 12):
        outcome = run_world(world, request(passes))
        assert outcome.clock.full_scans in (0, passes), scenario.id
        assert world.khugepaged.full_scans == outcome.clock.full_scans
        assert outcome.clock.wakeups >= outcome.clock.full_scans > 0 or not outcome.clock.full_scans
        assert uncovered(world, outcome)[:3] == [], scenario.id


def test_memory_adds_up() -> None:
    """Folio bytes against the rendered states, and memory added against the frames in use."""
    for scenario, world in drawn(9, 40):
        page = world.kernel.geometry.page_size
        mem = world.kernel.mem

        def held(world: BuiltWorld = world) -> Counter[int]:
            return Counter(
                token.order
                for state in render_state(world.kernel, world.vmas)
                for token in state.folio_pages()
                if token.kind is PageKind.FOLIO
            )

        def frames_in_use(mem: MemMap = mem) -> int:
            counts = mem.refcount.raw[: mem.nr_frames]
            return sum(1 << mem.order.raw[folio] for folio, count in enumerate(counts) if count > 0)

        before, in_use = held(), frames_in_use()
        outcome = run_world(world, request())
        after = held()
        for orders, tokens in ((outcome.orders_before, before), (outcome.orders_after, after)):
            assert {o: use.bytes for o, use in orders.items()} == {
                o: n * page for o, n in tokens.items()
            }, scenario.id
        assert outcome.memory_added == (frames_in_use() - in_use) * page, scenario.id
        last = outcome.timeline[-1] if outcome.timeline else TimePoint(0, 0, 0)
        assert last[1:] == (outcome.memory_added, outcome.collapsed_bytes), scenario.id
