# SPDX-License-Identifier: GPL-2.0-or-later
"""A world read back as a scenario's strings."""

from __future__ import annotations

from pathlib import Path

import pytest

from mthp.image.runs import PagesState, parse_folio_token, parse_runs
from mthp.image.scenario import load
from mthp.words.profiles import V7_3
from mthp.worlds.build import build_world
from mthp.worlds.render import canonical, render_state

DATA = Path(__file__).parents[1] / "data"


def state(text: str) -> PagesState:
    return PagesState(8, parse_runs(text, parse_folio_token), None)


def test_canonical_forgets_the_names_of_folios() -> None:
    one = [state("4:F2.L.x.m1.f9.i0 4:F2.L.x.m1.f3.i0"), state("8:F3.L.x.m1.f9.i0")]
    two = [state("4:F2.L.x.m1.f0.i0 4:F2.L.x.m1.f1.i0"), state("8:F3.L.x.m1.f0.i0")]
    other = [two[0], state("8:F3.L.x.m1.f1.i0")]
    assert canonical(one) == canonical(two)
    assert canonical(one) != canonical(other)


@pytest.mark.parametrize("name", ["lab-7.3.4.jsonl.xz", "lab-mem-7.3.4.jsonl.xz"])
def test_a_world_before_it_runs_reads_as_its_scenario(name: str) -> None:
    """Forks, mlock, swap slots that are shared, huge PMDs, several processes."""
    for scenario in load(DATA / name):
        world = build_world(scenario, V7_3)
        ours = canonical(render_state(world.kernel, world.vmas))
        theirs = canonical([vma.initial for vma in scenario.vmas])
        for mine, recorded in zip(ours, theirs, strict=True):
            assert list(mine.folio_pages()) == list(recorded.folio_pages()), scenario.id
            if recorded.ptes is not None:
                assert list(mine.pte_pages()) == list(recorded.pte_pages()), scenario.id
