# SPDX-License-Identifier: GPL-2.0-or-later
"""Several processes count and find what one does."""

from __future__ import annotations

import random

import pytest

from mthp.explore.compiled import explorer
from mthp.explore.compiled.explorer import CompiledExplorer, Speed
from mthp.explore.explore import Explorer, Stop, Until
from mthp.explore.parallel import ParallelExplorer, SearchPart, by_reference, by_twin
from mthp.explore.part import Key, Part, Standing
from mthp.explore.tasks import Recipe
from mthp.races.mutants.rules import MUTANTS
from mthp.races.stage import Size
from mthp.races.variant import applied
from mthp.races.world import RaceWorld
from tests.explore.test_part import TALL, WIDE
from tests.litmus.programs import recipe
from tests.litmus.test_explore import random_program


def alone(program: Recipe) -> Part:
    search = Explorer(program, until=Until.END)
    search.search()
    return search.part()


def by(kind: str, program: Recipe, until: Until = Until.END) -> SearchPart:
    """How each process searches: by the reference, by a twin that knows nothing yet, or by one that has
    searched before the processes are forked.
    """
    if kind == "reference":
        return by_reference(program, until)
    twin = CompiledExplorer(program, until=until, speed=Speed.PLAIN)
    twin.open()
    if kind == "warm":
        twin.search_part(Part(), {})
    return by_twin(twin)


LONG = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("cold", "warm")]


@pytest.mark.parametrize("kind", ["reference", "cold", "warm"])
@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "program",
    [
        recipe(*WIDE),
        recipe(*TALL),
        recipe(*[[("write", 0)]] * 5),
        recipe(*random_program(random.Random(5))),
        pytest.param(RaceWorld(Size.PMD, "7.3", ("store", "fault")), marks=pytest.mark.slow),
        pytest.param(RaceWorld(Size.PMD, "7.3", ("migrate", "fork")), marks=pytest.mark.slow),
    ],
    ids=["wide", "tall", "flat", "random", "store+fault", "migrate+fork"],
)
def test_several_processes_are_one_search(
    program: Recipe, processes: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explorer, "QUANTUM", 500)
    expected = alone(program)
    used = 0

    def look(search: ParallelExplorer) -> bool:
        nonlocal used
        used = max(used, len(search.parts))
        return True

    search = ParallelExplorer(by(kind, program), processes, may_continue=look, turn=0.001)
    assert search.search() is Stop.END
    assert (search.whole.counts, search.whole.findings) == (expected.counts, expected.findings)
    assert used > 1 or expected.counts.executions < 400


@pytest.mark.parametrize("kind", ["reference", *LONG])
def test_a_search_stops_and_another_goes_on(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "QUANTUM", 100)
    program = recipe(*WIDE)
    expected = alone(program)
    search = ParallelExplorer(by(kind, program), 2, turn=0.001)
    while not search.whole.done:
        search = ParallelExplorer(
            by(kind, program),
            2,
            search.parts,
            turn=0.001,
            may_continue=lambda _: False,
        )
        search.search()
        assert 0 <= Standing.of(search.parts).fraction <= 1
    assert (search.whole.counts, search.whole.findings) == (expected.counts, expected.findings)
    assert list(search.parts) == [Key()]


@pytest.mark.parametrize("kind", ["reference", "cold"])
def test_a_search_stops_at_the_first_breach(kind: str) -> None:
    mutant = MUTANTS["A2"]
    with applied(mutant.edits):
        search_part = by(kind, mutant.world, Until.FIRST)
        search = ParallelExplorer(search_part, 2, until=Until.FIRST, turn=0.01)
        assert search.search() is Stop.FIRST
    laws = {each.broken.law for part in search.parts.values() for each in part.findings}
    assert laws & set(mutant.laws)


def test_where_a_search_stands() -> None:
    search = Explorer(recipe(*TALL), until=Until.END, most_executions=20)
    search.search()
    part = search.part()
    standing = Standing.of({Key(): part})
    assert standing.executions == 20
    assert standing.depth == len(part.places)
    assert 0 < standing.left <= standing.depth
    assert standing.total == 20 / standing.fraction
    assert Standing.of({Key(): Part()}).total == float("inf")
