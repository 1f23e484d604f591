# SPDX-License-Identifier: GPL-2.0-or-later
"""On the engine itself: the compiled explorer makes the executions that the reference makes, and each
is what the real tasks do."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from mthp.check.scorecard import default_worlds
from mthp.explore.compiled import integers
from mthp.explore.compiled.automaton import STEP
from mthp.explore.compiled.explorer import CompiledExplorer, Speed
from mthp.explore.compiled.integers import BROKEN, DEPTH, FATE, Code, SearchState
from mthp.explore.explore import Explorer, Until
from mthp.explore.tasks import STOP, Ending, Execution
from mthp.races.cast.all import LAWFUL
from mthp.races.mutants.rules import MUTANTS
from mthp.races.stage import Size
from mthp.races.variant import applied
from mthp.races.world import RaceWorld
from tests.races.test_reduction import WithStates

MOST = 250
PARTS = 4
"""In which all worlds are looked at."""


def is_alike(world: RaceWorld, until: Until = Until.END) -> None:
    reference = Explorer(world, until=until, most_executions=MOST)
    compiled = CompiledExplorer(world, until=until, most_executions=MOST, speed=Speed.PLAIN)
    assert compiled.explore() == reference.explore(), world
    assert compiled.counts == reference.counts


@pytest.mark.parametrize("size", list(Size))
@pytest.mark.parametrize(
    "rival",
    [
        *("fault", "gup", "guest", "exit", "uffd-wp"),
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ("fork", "swap-out", "remap", "ksm")
        ),
    ],
)
def test_worlds_are_searched_alike(size: Size, rival: str) -> None:
    is_alike(RaceWorld(size, "7.3", (rival,)))


@pytest.mark.parametrize(
    "name", ["pmd+tso", "window+lkmm+ptes+flags+each", "pmd+weak+ptes", "pmd+scan", "window+hook"]
)
def test_so_are_other_worlds(name: str) -> None:
    is_alike(RaceWorld.parse(name, "v16", ("store",)))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("profile", ["v16", "7.3", "pmd-only"])
def test_every_default_world_is_searched_alike(profile: str, part: int) -> None:
    for world in default_worlds(profile)[part::PARTS]:
        is_alike(world)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_mutant_is_searched_alike(mutant: str) -> None:
    found = MUTANTS[mutant]
    with applied(found.edits):
        for until in Until:
            is_alike(found.world, until)


def test_every_state_is_reached_by_both() -> None:
    recipe = WithStates(RaceWorld(Size.WINDOW, "7.3", ("migrate",)))
    reference = Explorer(recipe, until=Until.END, most_executions=MOST).explore()
    assert CompiledExplorer(recipe, until=Until.END, most_executions=MOST).explore() == reference
    assert len(reference.findings) > 1


class Checked:
    """Does every execution of a compiled search again with the real tasks, step by step."""

    def __init__(self, world: RaceWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        self.explorer = CompiledExplorer(
            world, until=Until.END, most_executions=40, speed=Speed.PLAIN
        )
        self.world = world
        self.checked = 0
        ended = integers.ended

        def observed(state: SearchState) -> int:
            self.check(self.explorer._code(), state)
            return ended(state)

        monkeypatch.setattr(integers, "ended", observed)

    def check(self, code: Code, state: SearchState) -> None:
        depth, fate = state.at[DEPTH], state.at[FATE]
        known, tasks = self.explorer.ops.known, len(state.node)
        taken: list[int] = []

        def choose(execution: Execution) -> int:
            at = len(taken)
            if at == depth:
                return STOP
            nodes = state.nodes[at * tasks : (at + 1) * tasks]
            twins = [known[code.arg[n]] if code.kind[n] == STEP else None for n in nodes]
            assert twins == execution.ops
            assert all(
                execution.may_go(task, op) == (state.enabled[at] >> task & 1)
                for task, op in enumerate(execution.ops)
                if op is not None
            )
            taken.append(state.task[at])
            return taken[-1]

        stage = self.world()
        execution = Execution(stage, choose)
        ending = execution.run()
        verdict = self.explorer._recorded.recorder.values[state.cell[state.at[BROKEN]]]
        assert tuple(stage.broken) == verdict
        assert list(Ending)[fate] is ending
        self.checked += 1


@pytest.mark.parametrize(
    "rival", ["store-both", "migrate", "swap-in", "zap-locked", "madv-collapse"]
)
def test_executions_are_what_the_tasks_do(rival: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = Checked(RaceWorld(Size.WINDOW, "v16", (rival,)), monkeypatch)
    checked.explorer.explore()
    assert checked.checked == checked.explorer.counts.executions + checked.explorer.counts.pruned


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [None, *MUTANTS])
def test_executions_of_all_rivals_and_mutants(
    mutant: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = MUTANTS[mutant] if mutant else None
    worlds = [found.world] if found else [RaceWorld(Size.PMD, "7.3", (each,)) for each in LAWFUL]
    with applied(found.edits) if found else nullcontext():
        for world in worlds:
            with monkeypatch.context() as patch:
                checked = Checked(world, patch)
                checked.explorer.explore()
                assert checked.checked
