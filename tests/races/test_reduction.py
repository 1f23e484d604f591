# SPDX-License-Identifier: GPL-2.0-or-later
"""On the engine itself: the reduced search reaches every state, and breaks every law, that plain
enumeration under a bound on preemptions does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mthp.explore.enumerate import Enumerator
from mthp.explore.explore import Explorer, Until
from mthp.explore.outcome import Extent
from mthp.laws.broken import Broken, Kind, Thing
from mthp.races.mutants.rules import MUTANTS
from mthp.races.questions import QUESTIONS
from mthp.races.stage import Size, Stage
from mthp.races.variant import applied
from mthp.races.world import RaceWorld


def state_of(stage: Stage) -> str:
    """Everything that stands in the world, as text."""
    kernel, mem = stage.kernel, stage.kernel.mem
    rows = [mem.flags, mem.refcount, mem.mapcount, mem.large_mapcount, mem.content, mem.page_flags]
    tables = [(n, table.state.name, list(table.ptes.raw)) for n, table in kernel.tables.items()]
    pmds = [list(page.pmds.raw) for mm in kernel.mms for page in mm.pmd_pages.values()]
    tlbs = [cpu.tlb.value for cpu in kernel.cpus]
    return repr(([list(row.raw) for row in rows], tables, pmds, tlbs))


class WithStates:
    """A recipe whose executions leave their last state among what is broken."""

    def __init__(self, world: RaceWorld) -> None:
        self.world = world

    def __call__(self) -> Stage:
        stage = self.world()
        at_rest = stage.at_rest

        def ended() -> None:
            at_rest()
            stage.broken.append(Broken(0, Thing(Kind.TASK, "all"), state_of(stage)))

        stage.at_rest = ended  # type: ignore[method-assign]
        return stage


@pytest.mark.parametrize("size", [Size.PMD, pytest.param(Size.WINDOW, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("rival", "preemptions"),
    [
        ("gup", 2),
        ("store", 1),
        ("fault", 1),
        ("zap", 1),
        ("migrate", 1),
        ("guest", 1),
        ("exit", 1),
        ("ksm", 1),
        *(
            pytest.param(rival, 1, marks=pytest.mark.slow)
            for rival in ("remap", "migrate-neighbour", "swap-out", "referenced", "hwpoison")
        ),
        ("lazyfree", 1),
        ("soft-dirty", 1),
        ("numa-hint", 1),
        ("move-pages", 1),
        ("migrate-large", 1),
        ("split-large", 1),
        ("swap-cache-free", 1),
        ("mremap", 1),
        ("uffd-move-in", 1),
    ],
)
def test_every_state_is_reached(size: Size, rival: str, preemptions: int) -> None:
    recipe = WithStates(RaceWorld(size, "7.3", (rival,)))
    reduced = Explorer(recipe, until=Until.END).explore()
    plain = Enumerator(recipe, preemptions=preemptions).enumerate()
    assert reduced.coverage.kind is Extent.EXHAUSTIVE
    assert plain.coverage.executions > 1 or (size, rival) == (Size.PMD, "migrate-neighbour")
    states = {finding.broken for finding in reduced.findings}
    assert {finding.broken for finding in plain.findings} <= states


_SLOW = [
    ("swap-in",), ("fault", "migrate"), ("store", "zap"), ("guest", "zap-page"), ("fault", "guest"),
    ("migrate", "fork"),
]  # fmt: skip


@pytest.mark.parametrize(
    "rivals",
    [
        ("gup", "zap"),
        *(pytest.param(pair, marks=pytest.mark.slow) for pair in _SLOW),
    ],
    ids="+".join,
)
def test_every_state_of_larger_worlds_is_reached(rivals: tuple[str, ...]) -> None:
    recipe = WithStates(RaceWorld(Size.PMD, "7.3", rivals))
    reduced = Explorer(recipe, until=Until.END).explore()
    plain = Enumerator(recipe, preemptions=1).enumerate()
    assert reduced.coverage.kind is Extent.EXHAUSTIVE
    assert len(plain.findings) > 1
    states = {finding.broken for finding in reduced.findings}
    assert {finding.broken for finding in plain.findings} <= states


def laws(recipe: Callable[[], Stage], preemptions: int) -> tuple[set[int], set[int]]:
    plain = Enumerator(recipe, preemptions=preemptions).enumerate()
    reduced = Explorer(recipe, until=Until.END).explore()
    return (
        {finding.broken.law for finding in plain.findings},
        {finding.broken.law for finding in reduced.findings},
    )


@pytest.mark.parametrize(
    "mutant",
    [
        *("A1", "A6", "A9", "A13", "A21", "U1"),
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ("A4", "A7", "A12", "A16", "F1", "W1", "L1", "R1")
        ),
    ],
)
def test_every_law_that_enumeration_breaks_is_broken(mutant: str) -> None:
    found = MUTANTS[mutant]
    with applied(found.edits):
        plain, reduced = laws(found.world, 1)
    assert plain <= reduced
    assert reduced & set(found.laws)


@pytest.mark.parametrize("rival", ["fault", "store-both"])
def test_a_link_is_stale_even_once_its_table_is_back(rival: str) -> None:
    """In a window world the table is linked again: whether the walk comes before or after that is no
    matter of steps that depend on one another, so it must be none of the law's. SPIN found it.
    """
    with applied(MUTANTS["A13"].edits):
        plain, reduced = laws(RaceWorld(Size.WINDOW, "7.3", (rival,)), 1)
    assert plain == reduced == {6}


@pytest.mark.parametrize("size", list(Size))
def test_a_table_may_be_filled_until_whoever_detached_it_has_its_lock(size: Size) -> None:
    """Before that, whether it is detached is no matter of steps that depend on one another."""
    with applied(QUESTIONS["read-lock"].edits):
        plain, reduced = laws(RaceWorld(size, "7.3", ("uffd-wp",)), 1)
    assert plain == reduced == set()
    with applied(QUESTIONS["no-anon-vma"].edits):
        plain, reduced = laws(RaceWorld(Size.WINDOW, "7.3", ("migrate-neighbour",)), 1)
    assert plain <= reduced
    assert 4 in reduced
