# SPDX-License-Identifier: GPL-2.0-or-later
"""What an exhaustive search claims, looked at on random executions: nothing is wrong, and what was wrong
once is seen by each of the three ways of looking."""

from __future__ import annotations

from random import Random

import pytest

from mthp.check.scorecard import default_worlds
from mthp.check.self_check import SelfCheck, Subject, broken_laws, missed, pairs, subjects
from mthp.explore.enumerate import Enumerator
from mthp.explore.explore import Explorer, Until
from mthp.laws.ghost import Ghost
from mthp.races.cast.all import LAWFUL
from mthp.races.edits import Edit
from mthp.races.mutants.mutant import Mutant
from mthp.races.stage import Size
from mthp.races.variant import applied
from mthp.races.world import RaceWorld

PARTS = 4
UNORDERED = ("T4:", "T7:")
"""Mutants that take away what orders looks at a VMA's fields, which are no steps."""

_ALLOC = ("mm.swap_state", "_swap_cache_alloc")
ADDED_LATE = (
    Edit(*_ALLOC, "error = swap.add_check(entry, nr)", "error = None"),
    Edit(
        *_ALLOC,
        "error = swap.add_folio(folio, entry, nr)",
        "from mthp.machine.step import Access\n"
        "swap._step(Access.RMW, entry, nr)\nerror = swap._check(entry, nr)\n"
        "mem.set(folio, PG_SWAPBACKED)\nif error is None: swap.add_to_cache(entry & -nr, folio, nr)",
    ),
)
"""The slot was looked at in one step, and the folio added after another, at an unrelated word."""
JUDGED_AT_ONCE = Edit("laws.ghost", "page_is_written", "copy.is_kept", "True")
"""A store after the copy broke law 2, unless the trace event of the failure, no step, had come before."""
SWAPOFF = RaceWorld(Size.PMD, "7.3", ("swapoff",))
POISONED = RaceWorld(Size.PMD, "7.3", ("store-poisoned",))
PAIRS = [("exec-shift", "migrate"), ("mremap-ptes", "slot-reuse")]
"""Flags that walks by rmap look at were changed in no step; a mapping was looked up without mmap_lock."""
WORLDS = [
    *(f"{world}+ptes+flags+each" for world in ("pmd+lkmm", "window+lkmm", "window+tso")),
    "window+weak+ptes+flags",
]
LATE = [
    *(each for each in subjects() if each.name.startswith("X4:")),
    *(
        Subject(RaceWorld.parse(WORLDS[n], "7.3", (rival,)))
        for n, rival in enumerate(("ksm", "ksm", "split"))
    ),
]
"""Nothing orders a store that others see later, and the PMD that shows its table, or that a walk reads."""


def ordered() -> list[Subject]:
    """All but those of which a search is not exhaustive, as docs/races-reference.md says."""
    return [each for each in subjects() if not each.name.startswith(UNORDERED)]


def looked_at(what: list[Subject], executions: int, moves: int, seed: int = 1) -> SelfCheck:
    check = SelfCheck(Random(seed))
    for each in what:
        check.look_at(each, executions, moves)
    return check


def changed(world: RaceWorld, *edits: Edit) -> Subject:
    return Subject(world, Mutant("old", "", "", world, (), edits))


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, PARTS))]
)
def test_worlds_and_mutants_are_as_claimed(part: int) -> None:
    some = Random(part).sample(pairs(), 15)
    check = looked_at([*ordered()[part :: 8 * PARTS], *some], 1, 1, seed=part)
    assert check.defects == {}
    assert check.moves > check.executions // 3


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_all_of_them_are(part: int) -> None:
    assert looked_at(ordered()[part::PARTS], 10, 4, seed=100 + part).defects == {}


@pytest.mark.parametrize("subject", LATE, ids=lambda subject: subject.name)
def test_worlds_with_late_stores_are(subject: Subject) -> None:
    """What a late store may do is judged when it is made: when it is seen, nothing orders it and what
    others do to PMDs.
    """
    assert looked_at([subject], 12, 2).defects == {}


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["7.3", "v16"])
@pytest.mark.parametrize("name", WORLDS)
def test_all_worlds_with_late_stores_are(name: str, profile: str) -> None:
    worlds = [RaceWorld.parse(name, profile, (rival,)) for rival in LAWFUL]
    some = [Subject(world) for world in worlds if world.is_for_all]
    assert looked_at(some, 3, 4, seed=300).defects == {}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_pair_is(part: int) -> None:
    assert looked_at(pairs()[part::PARTS], 3, 2, seed=200 + part).defects == {}


@pytest.mark.slow
@pytest.mark.parametrize("world", default_worlds("7.3"), ids=lambda world: Subject(world).name)
def test_enumeration_finds_nothing_more(world: RaceWorld) -> None:
    """Every execution with two preemptions, of large worlds the first some thousand."""
    plain = Enumerator(world, preemptions=2, most_executions=5000).enumerate()
    laws = broken_laws(world, (each.broken for each in plain.findings))
    assert list(missed(world, laws)) == []


@pytest.mark.parametrize(
    ("executions", "ways"), [(12, 2), pytest.param(60, 3, marks=pytest.mark.slow)]
)
def test_an_access_that_rides_on_another_step_is_seen(executions: int, ways: int) -> None:
    found = list(looked_at([changed(SWAPOFF, *ADDED_LATE)], executions, 4, seed=3).defects)
    assert any("SwapDevice.cache" in each and "nothing orders" in each for each in found)
    said = ("nothing orders", "moved", "the search does not find it")[:ways]
    assert [each for each in said if not any(each in defect for defect in found)] == []


def test_a_verdict_by_what_is_no_step_is_seen_in_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with applied([JUDGED_AT_ONCE]):
        plain = Enumerator(POISONED, preemptions=1).enumerate()
        reduced = Explorer(POISONED, until=Until.END).explore()
    assert {each.broken.law for each in plain.findings} == {2} and not reduced.findings
    check = looked_at([changed(POISONED, JUDGED_AT_ONCE)], 40, 3)
    assert any("moved" in each and "can still write page" in each for each in check.defects)
    assert "law 2 is broken, and the search does not find it" in check.defects
    assert not any("nothing orders" in each for each in check.defects)
    monkeypatch.setattr(Ghost, "COMMUTES", {})
    check = looked_at([changed(POISONED, JUDGED_AT_ONCE)], 20, 0)
    assert any("Ghost.copies" in each for each in check.defects)


def test_what_cannot_be_recorded_is_said() -> None:
    """A lock of a kind that the recorder has made for locks it knows."""
    own = "pmd.page.ptl.__class__(pmd.page.ptl.machine, 'other', pmd.page.ptl.rank).lock()"
    check = looked_at(
        [changed(SWAPOFF, Edit("mm.pgtable", "pmd_lock", "pmd.page.ptl.lock()", own))], 1, 1
    )
    assert any(each.startswith("cannot be looked at: SpinLock.machine") for each in check.defects)
    assert looked_at([Subject(SWAPOFF)], 1, 1).defects == {}


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_what_is_done_to_mappings_is_ordered(pair: tuple[str, str]) -> None:
    assert looked_at([Subject(RaceWorld(Size.PMD, "7.3", pair))], 12, 1).defects == {}


@pytest.mark.parametrize("world", [SWAPOFF, POISONED], ids=lambda world: world.rivals[0])
def test_both_are_as_claimed_now(world: RaceWorld) -> None:
    assert looked_at([Subject(world)], 25, 3).defects == {}
    assert not Enumerator(world, preemptions=1).enumerate().findings
