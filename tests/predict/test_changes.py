# SPDX-License-Identifier: GPL-2.0-or-later
"""The least change is the one a person would make, and it does let the pages in."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mthp import example
from mthp.image.runs import PagesState, parse_folio_token, parse_pte_token, parse_runs
from mthp.image.scenario import Scenario
from mthp.image.scenario_values import Advice, ScenarioVma
from mthp.mm.vm_flags import VM_HUGEPAGE
from mthp.predict.changes import candidates
from mthp.predict.find import Finder
from mthp.predict.outcome import Request, run_world
from mthp.predict.passes import Interrupted
from mthp.predict.records import Change, ChangeKind, Outcome, Price, Refusal, Verified
from mthp.predict.trial import Trial
from mthp.report.refusals import change_text, group_refusals, reason_text
from mthp.words.profiles import PMD_ONLY, V7_3, Profile
from mthp.words.settings import Enabled
from mthp.words.units import Geometry
from mthp.worlds.build import build_world
from tests.predict.test_explain import scenarios

START = 1 << 40


_OF_WORLD = ("free_blocks", "largest_block", "memcg")


def scenario(
    folios: str, ptes: str, *, orders: dict[int, Enabled], advice: Advice | None = None,
    enabled: Enabled = Enabled.MADVISE, pages: int = 512, **fields: object,
) -> Scenario:  # fmt: skip
    base = scenarios()[0]
    settings = base.settings.replace(
        sizes={order: orders.get(order, Enabled.NEVER) for order in base.settings.sizes},
        enabled=enabled,
        **{k: v for k, v in fields.items() if k.startswith("max_") or k == "defrag"},
    )
    state = PagesState(
        pages, parse_runs(folios, parse_folio_token), parse_runs(ptes, parse_pte_token)
    )
    rest = {k: v for k, v in fields.items() if not k.startswith("max_") and k != "defrag"}
    world_fields: dict[str, Any] = {k: rest.pop(k) for k in _OF_WORLD if k in rest}
    vma = ScenarioVma(START, pages, state, advice=advice, **rest)  # type: ignore[arg-type]
    return dataclasses.replace(
        base,
        settings=settings,
        vmas=(vma,),
        passes=(),
        target=0,
        **world_fields,
    )


def outcome(of: Scenario) -> Outcome:
    return run_world(build_world(of, V7_3), Request("t", "s", "r"))


def words(refusal: Refusal) -> str:
    """The change, as a report has it."""
    return change_text(refusal.change, Geometry())


FULL = "512:F0.RLaB.xs.m1", "512:PWAD"
ALWAYS, MADVISE, INHERIT = Enabled.ALWAYS, Enabled.MADVISE, Enabled.INHERIT


@pytest.mark.parametrize(
    ("of", "change"),
    [
        (scenario(*FULL, orders={9: ALWAYS}, pins=((7, 1),)), "clear 1 pinned page"),
        (scenario(*FULL, orders={9: ALWAYS}, pins=((7, 3),)), "clear 3 pinned pages"),
        (scenario(*FULL, orders={9: ALWAYS}, locked=((7, 1),)), "unlock 1 page"),
        (scenario(*FULL, orders={9: ALWAYS}, off_lru=((7, 1),)), "put 1 page back on the LRU"),
        (
            scenario("500:F0.RLaB.xs.m1 12:-", "500:PWAD 12:-", orders={9: ALWAYS}, max_ptes_none=5),
            "raise max_ptes_none to 12",
        ),
        (
            scenario("500:F0.RLaB.xs.m1 12:W0", "500:PWAD 12:s", orders={9: ALWAYS}, max_ptes_swap=5),
            "raise max_ptes_swap to 12",
        ),
        (
            scenario(
                "500:F0.RLaB.xs.m1 12:F0.RLaB.s.m2", "512:PWAD", orders={9: ALWAYS},
                max_ptes_shared=5,
            ),
            "raise max_ptes_shared to 12",
        ),
        (scenario(*FULL, orders={9: MADVISE}), "MADV_HUGEPAGE on the mapping"),
        (scenario(*FULL, orders={9: INHERIT}), "MADV_HUGEPAGE on the mapping"),
        (scenario(*FULL, orders={}, enabled=Enabled.NEVER), "enable 2048kB"),
        (scenario(*FULL, orders={9: ALWAYS}, advice=Advice.NOHUGEPAGE), "MADV_HUGEPAGE on the mapping"),
        (
            scenario(*FULL, orders={9: MADVISE}, enabled=Enabled.NEVER),
            "MADV_HUGEPAGE on the mapping",
        ),
        (
            scenario("512:F0.RLaB.s.m2", "512:PWAD", orders={9: ALWAYS}, max_ptes_shared=256),
            "unshare 256 pages",
        ),
        (
            scenario(
                "512:F0.RaL.xs.m1", "512:PWA", orders={9: ALWAYS}),
            "write to 512 pages that MADV_FREE gave up",
        ),
        (
            scenario("16:F0.RLaB.xs.m1 496:-", "16:PWAD 496:-", orders={9: ALWAYS}, max_ptes_none=0),
            "raise max_ptes_none to 496",
        ),
        (scenario("512:F0.LaB.xs.m1", "512:PWD", orders={9: ALWAYS}), "touch 1 page"),
        (
            scenario(
                "511:F0.RLaB.xs.m1 1:G", "511:PWAD 1:s", orders={9: ALWAYS}, max_ptes_none=511,),
            "remove 1 guard or poison entry",
        ),
        (
            scenario(*FULL, orders={9: ALWAYS}, free_blocks={0: 600}, defrag=False),
            "set khugepaged/defrag to 1",
        ),
        (scenario(*FULL, orders={9: ALWAYS}, free_blocks={0: 100}), "free 1 block of 2048kB"),
        (scenario(*FULL, orders={4: ALWAYS}, free_blocks={0: 10}), "free 1 block of 64kB"),
    ],
)  # fmt: skip
def test_least_changes(of: Scenario, change: str) -> None:
    refusals = outcome(of).refusals
    assert words(refusals[0]) == change, refusals
    assert refusals[0].verified is Verified.RUN


def test_a_smaller_size_is_offered() -> None:
    """64kB of pages, one size of 2048kB with no holes allowed."""
    of = scenario(
        "16:F0.RLaB.xs.m1 496:-", "16:PWAD 496:-", orders={9: ALWAYS, 5: ALWAYS}, max_ptes_none=0
    )
    assert words(outcome(of).refusals[0]) == "enable 64kB"


def test_a_pin_that_vetoes_a_table_that_cannot_collapse_whole() -> None:
    """Most of it can: the change says for how much."""
    of = scenario(
        "256:Z 256:F0.RLaB.xs.m1", "256:PA 256:PWAD", orders={4: ALWAYS}, pins=((300, 1),)
    )
    change = outcome(of).refusals[0].change
    assert change is not None and change.grown < change.held
    assert [(each.kind, each.ptes) for each in change.changes][:1] == [
        (ChangeKind.CLEAR_PINS, (300,))
    ]


def least(of: Scenario, kind: ChangeKind) -> Change:
    """The first change of a kind that lets all of the first refusal in."""
    world = build_world(of, V7_3)
    result = run_world(world, Request("t", "s", "r", changes=False))
    refusal, vma = result.refusals[0], world.vmas[0]
    for change in candidates(Trial(vma, START), refusal):
        tried = Finder().tried(vma, START, (change,))
        if change.kind is kind and min(tried.after) == 9:
            return change
    raise AssertionError(f"no change of kind {kind} lets it")


@pytest.mark.parametrize(
    ("of", "kind", "count"),
    [
        (scenario("512:F0.RLaB.s.m2", "512:PWAD", orders={9: ALWAYS}, max_ptes_shared=256),
         ChangeKind.UNSHARE, 256),
        (scenario("300:F0.RLaB.xs.m1 212:W0", "300:PWAD 212:s", orders={9: ALWAYS}, max_ptes_swap=64),
         ChangeKind.BRING_IN, 148),
        (scenario("300:F0.RLaB.xs.m1 212:-", "300:PWAD 212:-", orders={9: ALWAYS}, max_ptes_none=100),
         ChangeKind.FILL, 112),
        (scenario("500:F0.LaB.xs.m1 12:W0", "400:PWD 100:PWAD 12:s", orders={9: ALWAYS}),
         ChangeKind.TOUCH, 156),
    ],
)  # fmt: skip
def test_no_more_pages_than_must_be_are_changed(of: Scenario, kind: ChangeKind, count: int) -> None:
    """The table collapses with them, and with one less it does not."""
    change = least(of, kind)
    assert len(change.ptes) == count
    world = build_world(of, V7_3)
    fewer = dataclasses.replace(change, ptes=change.ptes[:-1])
    assert max(Finder().tried(world.vmas[0], START, (fewer,)).after) == 0


@pytest.mark.parametrize(
    ("of", "price"),
    [
        (scenario(*FULL, orders={9: MADVISE}), Price(0, -511, 512 * 4096)),
        (
            scenario(
                "500:F0.RLaB.xs.m1 12:-", "500:PWAD 12:-", orders={9: ALWAYS}, max_ptes_none=5
            ),
            Price(12 * 4096, -499, 500 * 4096),
        ),
        (
            scenario(
                "500:F0.RLaB.xs.m1 12:W0", "500:PWAD 12:s", orders={9: ALWAYS}, max_ptes_swap=5
            ),
            Price(12 * 4096, -499, 512 * 4096),
        ),
        (  # 412 are freed, the others' owners keep theirs
            scenario(
                "412:F0.RLaB.xs.m1 100:F0.RLaB.s.m2",
                "512:PWAD",
                orders={9: ALWAYS},
                max_ptes_shared=5,
            ),
            Price(100 * 4096, -511, 512 * 4096),
        ),
    ],
)
def test_prices(of: Scenario, price: Price) -> None:
    """Memory added, TLB entries and copying, of the least change; the whole run with it costs as much."""
    world = build_world(of, V7_3)
    result = run_world(world, Request("t", "s", "r"))
    (refusal,) = result.refusals
    assert refusal.change is not None and refusal.change.price == price
    again = world.kernel.settings
    for change in refusal.change.changes:
        if change.kind is ChangeKind.RAISE_KNOB:
            again = again.replace(**{change.knob: change.value})
        else:
            assert change.kind is ChangeKind.ADVISE
            world.vmas[0].vm_flags |= VM_HUGEPAGE
    world.kernel.settings = again
    run = run_world(world, Request("t", "s", "r", changes=False))
    assert (run.memory_added, run.tlb_after - run.tlb_before) == (
        price.memory_added,
        price.tlb_entries,
    )
    assert run.copied_bytes == price.copied_bytes


@pytest.mark.parametrize("profile", [PMD_ONLY, V7_3])
def test_each_point_of_a_curve_is_what_a_run_with_that_limit_gives(profile: Profile) -> None:
    """Over all tables of a real process: what more is in huge pages, and the memory added."""
    image = example()
    settings = image.configured(enabled="always", max_ptes_none=0)
    full = image.run(settings, profile, changes=True).outcome
    own = [r for r in full.refusals if change_text(r.change, Geometry()).startswith("raise")]
    assert len(own) > 5 and all(refusal.verified is Verified.RUN for refusal in own)
    curve = group_refusals(own, Geometry())[0].curve
    for point in (curve[len(curve) // 2], curve[-1]):
        run = image.run(settings.replace(max_ptes_none=point.value), profile).outcome
        assert run.memory_added - full.memory_added == point.price.memory_added
        assert run.tlb_after - full.tlb_after == point.price.tlb_entries
        assert run.copied_bytes - full.copied_bytes == point.price.copied_bytes


def test_sizes_below_the_pmds_need_no_more_holes_than_the_table_has() -> None:
    """12 pages are missing here and there: 511 is not needed, as the whole table may collapse."""
    of = scenario(
        "500:F0.RLaB.xs.m1 12:-", "500:PWAD 12:-", orders={9: ALWAYS, 8: ALWAYS}, max_ptes_none=0
    )
    assert words(outcome(of).refusals[0]) == "raise max_ptes_none to 12"


def test_what_is_written_first_is_in_the_price() -> None:
    """256 pages to un-share are copied and added; the collapse then frees them."""
    of = scenario("512:F0.RLaB.s.m2", "512:PWAD", orders={9: ALWAYS}, max_ptes_shared=256)
    change = least(of, ChangeKind.UNSHARE)
    world = build_world(of, V7_3)
    price = Finder().tried(world.vmas[0], START, (change,)).price
    assert price == Price(512 * 4096, -511, (256 + 512) * 4096)


@pytest.mark.slow
def test_knobs_do_what_is_said_in_a_world_of_their_own() -> None:
    """Independent of trials: the same record with the settings changed, from its first state."""
    checked = 0
    for record in scenarios()[::20]:
        if len(record.vmas) > 1 or record.vmas[0].pages > 512:
            continue
        world = build_world(record, V7_3)
        result = run_world(world, Request("t", "s", "r", changes=False))
        for refusal in result.refusals[:3]:
            found = Finder().find(world.vmas[0], refusal)
            kinds = (ChangeKind.RAISE_KNOB, ChangeKind.ENABLE_SIZE)
            if found is None or found.grown < found.held:
                continue
            if any(change.kind not in kinds for change in found.changes):
                continue
            kernel = world.kernel
            settings = kernel.settings
            for change in found.changes:
                if change.kind is ChangeKind.RAISE_KNOB:
                    settings = settings.replace(**{change.knob: change.value})
                else:
                    sizes = {**settings.sizes, change.order: Enabled.ALWAYS}
                    settings = settings.replace(sizes=sizes)
            old, kernel.settings = kernel.settings, settings
            again = run_world(world, Request("t", "s", "r", changes=False))
            assert again.collapsed_bytes >= refusal.pages * 4096 or again.swapped_in_bytes, (
                record.id, refusal, found,
            )  # fmt: skip
            kernel.settings = old
            checked += 1
            break
    assert checked >= 4


def test_an_interrupt_keeps_what_was_found() -> None:
    """The second world that is tried is one too many: the refusals stand, without their change."""
    tried = []

    def on_try() -> None:
        tried.append(1)
        if len(tried) > 1:
            raise Interrupted

    of = scenario("500:F0.RLaB.xs.m1 12:W0", "500:PWAD 12:s", orders={9: ALWAYS}, max_ptes_swap=5,
                  pins=((7, 1),))  # fmt: skip
    world = build_world(of, V7_3)
    result = run_world(world, Request("t", "s", "r", on_try=on_try))
    assert [(r.change, r.verified) for r in result.refusals] == [(None, Verified.NONE)]
    assert len(tried) == 2


def test_where_userfaultfd_allows_no_hole_that_is_the_reason() -> None:
    """max_ptes_none is at its most: it is not what forbids the hole, and without userfaultfd nothing does."""
    holes = ("500:F0.RLaB.xs.m1 12:-", "500:PWAD 12:-")
    full: dict[str, Any] = {"orders": {9: ALWAYS}, "max_ptes_none": 511}
    (refusal,) = outcome(scenario(*holes, uffd_wp=True, **full)).refusals
    assert "userfaultfd" in reason_text(refusal, Geometry())
    assert words(refusal) == "unregister userfaultfd"
    assert not outcome(scenario(*holes, **full)).refusals
