# SPDX-License-Identifier: GPL-2.0-or-later
"""Between what an answer lies where a capture leaves open which pages are meant."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mthp.image.snapshot import Kpf, Pte, Snapshot
from mthp.predict.bounds import unknowns, with_bounds, with_unknowns
from mthp.predict.image import Image
from mthp.predict.outcome import run_world
from mthp.predict.records import Bounds, Outcome, Unknown
from mthp.words.profiles import DEFAULT
from mthp.words.settings import Enabled, Settings
from mthp.worlds.unseen import LIKELY, Assumed, Young
from tests.worlds.captured import heap_of

MIB = 1 << 20
FULL = Settings(max_ptes_none=0)
BOTH = FULL.replace(sizes={4: Enabled.ALWAYS, 9: Enabled.ALWAYS})
SMALL = FULL.replace(sizes={4: Enabled.ALWAYS, 9: Enabled.NEVER})


def outcome_of(snapshot: Snapshot, settings: Settings, assumed: Assumed = LIKELY) -> Outcome:
    image = Image(snapshot, "heap", "made")
    world, request = image.prepared(settings, DEFAULT, "as asked", assumed)
    request.changes = False
    outcome = run_world(world, request)
    return with_bounds(
        outcome,
        request.windows,
        snapshot,
        assumed,
        lambda other: image.prepared(settings, DEFAULT, "as asked", other),
    )


def swap_out(snapshot: Snapshot, row: int, pages: int) -> None:
    process = snapshot.processes[0]
    assert process.pfn is not None and process.kpageflags is not None
    process.pte[row, :pages] = int(Pte.SWAPPED)
    process.pfn[row, :pages] = np.arange(1, pages + 1, dtype=np.uint64) << np.uint64(5)
    process.kpageflags[row, :pages] = 0


def bounds_of(snapshot: Snapshot, settings: Settings = FULL) -> Bounds:
    bounds = outcome_of(snapshot, settings).bounds
    assert bounds is not None
    return bounds


@pytest.mark.parametrize(
    ("referenced", "least", "most"),
    [(1, 2, 2), (8, 2, 16), (512, 2, 16), (513, 4, 16), (4 * 512 + 1, 10, 16), (5, 2, 10)],
)
def test_young_pages_lie_in_as_few_tables_as_can_be_or_in_as_many(
    referenced: int, least: int, most: int
) -> None:
    bounds = bounds_of(heap_of(8, referenced=referenced))
    assert bounds == ((Unknown.YOUNG,), (least * MIB, most * MIB))


@pytest.mark.parametrize(
    "settings", [FULL, FULL.replace(max_ptes_none=511), SMALL.replace(max_ptes_none=511), BOTH]
)
def test_every_placement_of_the_young_pages_lies_between(settings: Settings) -> None:
    image = heap_of(4, referenced=40)
    process = image.processes[0]
    process.pte[1, 100:400] = int(Pte.PRESENT | Pte.ZERO)
    process.pte[2, ::37] = 0
    swap_out(image, 3, 60)
    bounds = bounds_of(image, settings)
    mapped = np.flatnonzero((process.pte & (Pte.PRESENT | Pte.ZERO)) == Pte.PRESENT)
    random = np.random.default_rng(7)
    scattered = random.choice(mapped, 40, replace=False)
    for places in (mapped[:40], mapped[600:640], scattered):
        marks = np.zeros(process.pte.shape, np.bool_)
        marks.reshape(-1)[places] = True
        is_so = outcome_of(image, settings, Assumed(Young.NONE, marks={process.pid: marks}))
        assert bounds.ends is not None
        assert bounds.ends[0] <= is_so.collapsed_bytes <= bounds.ends[1]


def test_a_table_to_be_read_in_from_swap_needs_half_of_it_young() -> None:
    image = heap_of(2, referenced=300)
    swap_out(image, 0, 60)
    assert bounds_of(image).ends == (2 * MIB, 4 * MIB)
    fewer = heap_of(1, referenced=255)
    swap_out(fewer, 0, 60)
    assert bounds_of(fewer).ends == (0, 0)
    one_more = heap_of(1, referenced=256)
    swap_out(one_more, 0, 60)
    assert bounds_of(one_more).ends == (2 * MIB, 2 * MIB)


def test_pages_known_to_be_referenced_let_theirs_pass_for_certain() -> None:
    image = heap_of(4, referenced=3)
    flags = image.processes[0].kpageflags
    assert flags is not None
    flags[2, 9] |= np.uint64(1 << Kpf.REFERENCED)
    assert bounds_of(image).ends == (2 * MIB, 6 * MIB)


def test_nothing_is_open_where_all_or_none_is_counted_or_the_user_says() -> None:
    for referenced in (0, 2 * 512, 5000):
        assert outcome_of(heap_of(2, referenced=referenced), FULL).bounds is None
    open_image = heap_of(2, referenced=7)
    assert outcome_of(open_image, FULL, Assumed(Young.ALL)).bounds is None
    assert outcome_of(open_image, FULL.replace(enabled=Enabled.NEVER)).bounds is None


def test_what_is_open_is_said_where_neither_end_is_run() -> None:
    for referenced, unknown in ((7, (Unknown.YOUNG,)), (2 * 512, None)):
        image = heap_of(2, referenced=referenced)
        bounds = with_unknowns(outcome_of(image, FULL), image, LIKELY).bounds
        assert bounds == (None if unknown is None else (unknown, None))


def test_clean_and_written_again_pages_of_madv_free() -> None:
    image = heap_of(4, referenced=4 * 512, lazyfree=2)
    flags = image.processes[0].kpageflags
    assert flags is not None
    flags[:3, :2] &= ~np.uint64(1 << Kpf.SWAPBACKED)
    assert bounds_of(image) == ((Unknown.LAZYFREE,), (4 * MIB, 6 * MIB))


def test_pins_of_which_nobody_knows_the_place() -> None:
    image = heap_of(4, referenced=4 * 512, status={"VmPin": "12 kB"})
    assert bounds_of(image) == ((Unknown.PINNED,), (2 * MIB, 8 * MIB))


@pytest.mark.parametrize(
    ("pinned", "piped", "likely", "least"),
    [(4096, (), 2, 0), (0, (3 << 12,), 3, 1), (4096, (3 << 12,), 1, 0), (0, (1, 4097), 2, 1)],
)
def test_hidden_pins_lie_together_and_at_the_ends_apart_or_nowhere(
    pinned: int, piped: tuple[int, ...], likely: int, least: int
) -> None:
    image = heap_of(4, referenced=4 * 512, status={"VmPin": f"{pinned} kB"})
    process = dataclasses.replace(image.processes[0], piped=piped)
    held = dataclasses.replace(image, processes=(process,))
    assert outcome_of(held, FULL).collapsed_bytes == 2 * MIB * likely
    assert bounds_of(held) == ((Unknown.PINNED,), (2 * MIB * least, 8 * MIB))


def test_one_held_page_of_a_large_folio_refuses_it() -> None:
    image = heap_of(1, referenced=512, status={"VmPin": "4 kB"})
    order = image.processes[0].folio_order
    assert order is not None
    order[:] = 4
    assert outcome_of(image, FULL).collapsed_bytes == 0


def test_large_folios_of_a_fork_may_still_count_as_shared() -> None:
    settings = FULL.replace(max_ptes_shared=0)

    def large(*, forked: bool) -> Snapshot:
        image = heap_of(1, referenced=512, forked=forked)
        order = image.processes[0].folio_order
        assert order is not None
        order[:] = 4
        return image

    assert list(unknowns(large(forked=False), LIKELY)) == []
    assert bounds_of(large(forked=True), settings) == ((Unknown.SHARED,), (0, 2 * MIB))


def test_both_answers_where_sizes_were_enabled_later() -> None:
    image = heap_of(2, referenced=2 * 512, started=300)
    image = dataclasses.replace(image, meta={**image.meta, "khugepaged": {"started": 500}})
    outcome = outcome_of(image, FULL)
    assert (outcome.collapsed_bytes, [*outcome.taken_off]) == (0, [image.processes[0].pid])
    assert outcome.bounds == ((Unknown.REGISTERED,), (0, 4 * MIB))
    for registered in (True, False):
        settled = outcome_of(image, FULL, Assumed(registered=registered))
        assert settled.collapsed_bytes == 4 * MIB * registered
        assert settled.bounds is None and not settled.taken_off
    spread = dataclasses.replace(image, processes=heap_of(2, referenced=1, started=300).processes)
    assert bounds_of(spread) == ((Unknown.REGISTERED, Unknown.YOUNG), (0, 2 * MIB))


def test_an_unregistered_process_is_refused_by_name() -> None:
    outcome = outcome_of(heap_of(1, referenced=512), FULL, Assumed(registered=False))
    assert outcome.clock.full_scans == 0
    assert {refusal.status.name for refusal in outcome.refusals} == {"NOT_REGISTERED"}
    assert dataclasses.replace(outcome, registered={}).collapsed_bytes == 0
