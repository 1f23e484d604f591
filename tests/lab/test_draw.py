# SPDX-License-Identifier: GPL-2.0-or-later
"""Drawn programs: legal, always the same, and of every kind there is."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import cache

import pytest

from mthp.image.scenario_values import Action
from mthp.lab.draw import FAMILIES, LATER_FAMILIES, NODE_FAMILIES, draw
from mthp.lab.program.declared import declare, problem
from mthp.lab.program.program import REMOTE, SHMEM_ENABLED, Draft, Madv, Verb, parse
from mthp.lab.program.walk import walk

NUMBER = 500


@cache
def drafts() -> tuple[Draft, ...]:
    return tuple(draw(1, index) for index in range(NUMBER))


@pytest.mark.parametrize("family", [*FAMILIES, *LATER_FAMILIES, *NODE_FAMILIES])
@pytest.mark.parametrize("seed", [1, 2])
def test_every_draft_is_legal(family: str, seed: int) -> None:
    for index in range(12):
        drawn = draw(seed, index, family, nodes=2)
        assert drawn.family == family
        assert problem(drawn) == "", (drawn.id, [str(each) for each in drawn.program()])


def test_a_draft_depends_on_seed_and_index_alone() -> None:
    assert draw(1, 7) == drafts()[7]
    assert draw(1, 7) != draw(1, 8)
    assert draw(1, 7).ops != draw(2, 7).ops


def test_a_seed_draws_what_it_always_drew() -> None:
    """Recorded campaigns name their states by seed and index."""
    first = [drawn for drawn in drafts()[:100] if drawn.family not in LATER_FAMILIES]
    text = "".join(json.dumps(drawn.to_json(), sort_keys=True) for drawn in first)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "91a9b3e82a713270"
    assert len(first) == 97


def test_on_several_nodes_some_states_are_spread_over_them_and_the_others_stay() -> None:
    spread = 0
    for index, alone in enumerate(drafts()[:100]):
        drawn = draw(1, index, nodes=3)
        if drawn == alone:
            continue
        assert drawn.family == "nodes"
        nodes = [each.numbers[0] for each in drawn.ops if each.verb is Verb.NODE]
        assert set(nodes) <= {0, 1, 2} and nodes[-1] == 0
        spread += 1
    assert 3 < spread < 20
    kinds = {each.kind for each in draw(1, 3, "nodes", nodes=3).ops}
    assert "node" in kinds


def test_drafts_round_trip_through_text() -> None:
    for drawn in drafts()[:100]:
        assert parse(map(str, drawn.program())) == drawn.program()
        assert Draft.from_json(drawn.to_json()) == drawn


def test_unregistered_processes_were_mostly_there_before_any_size_was_enabled() -> None:
    later = 0
    for index in range(40):
        lines = [str(each) for each in draw(1, index, "unregistered").ops]
        off, on = f"w {SHMEM_ENABLED} never", f"w {SHMEM_ENABLED} advise"
        assert (off in lines) == (on in lines)
        if off in lines:
            later += 1
            assert lines.index(off) < lines.index("new") < lines.index(on)
            between = lines[lines.index("new") : lines.index(on)]
            assert not any(line.startswith("w ") for line in between), "no size, so no large folio"
    assert 20 < later < 40


def test_every_family_is_drawn() -> None:
    assert {drawn.family for drawn in drafts()} == {*FAMILIES, *LATER_FAMILIES}


EVERY_KIND = {str(verb) for verb in Verb} - {"adv", "padv", "node"} | {
    *(f"adv {int(advice)}" for advice in Madv),
    *(f"padv {int(advice)}" for advice in REMOTE),
}


def test_every_kind_of_operation_is_drawn() -> None:
    kinds = Counter(kind for drawn in drafts() for kind in {op.kind for op in drawn.program()})
    assert EVERY_KIND - set(kinds) == set()


def test_poison_is_rare_since_its_pages_never_come_back() -> None:
    poisoned = sum(
        op.pages for drawn in drafts() for op in drawn.ops if op.kind == f"adv {Madv.HWPOISON}"
    )
    assert 0 < poisoned < NUMBER // 10


def test_most_of_what_is_drawn_can_be_collapsed() -> None:
    """Some mapping holds a whole table, and an order is enabled for it when khugepaged comes."""
    able = 0
    for drawn in drafts():
        world = walk(drawn.program())
        able += any(
            vma.pages >= 512 and world.eligible_orders(process, vma)
            for process in world.processes.values()
            for vma in process.space.vmas
        )
    assert able > NUMBER * 0.8


def test_programs_are_short() -> None:
    lengths = sorted(len(drawn.program()) for drawn in drafts())
    assert lengths[NUMBER // 2] < 60
    assert lengths[-1] < 250


def test_actions_passes_and_settings_are_spread() -> None:
    assert Counter(drawn.action for drawn in drafts())[Action.MADVISE_COLLAPSE] > NUMBER // 20
    assert set(Counter(drawn.passes for drawn in drafts())) == {1, 2, 3}
    for order in range(2, 10):
        modes = {drawn.settings.sizes[order].value for drawn in drafts()}
        assert modes == {"always", "madvise", "inherit", "never"}
    assert {drawn.settings.enabled.value for drawn in drafts()} == {"always", "madvise", "never"}
    assert {drawn.settings.defrag for drawn in drafts()} == {True, False}
    assert len({drawn.settings.max_ptes_none for drawn in drafts()}) > 15


def test_the_order_of_the_scan_names_every_process() -> None:
    for drawn in drafts():
        found = declare(drawn)
        assert sorted({vma.mm for vma in found.vmas}) == list(range(len(found.processes)))
