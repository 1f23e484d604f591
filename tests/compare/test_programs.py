# SPDX-License-Identifier: GPL-2.0-or-later
"""Recorded programs of real kernels, compared after every operation; the comparison would notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mthp.compare.programs import first_difference, run_programs
from mthp.compare.records import DifferenceKind
from mthp.life.program import LifeProgram, ProgramStep, load
from mthp.words.profiles import V7_3, profile_for_release

DATA = Path(__file__).parent.parent / "data"
RECORDED = DATA / "life-7.3.4.jsonl.xz"
OUTSIDE = {"life-share-1"}
"""Its drop_caches split a huge page of a process that it does not show: nr_anon falls, no page changes."""


def test_programs_agree_after_every_operation() -> None:
    score = run_programs(load(RECORDED), V7_3)
    assert score.programs == 80
    assert {each.id for each in score.differences} == OUTSIDE, score.differences
    assert score.agreed == 79


@pytest.mark.parametrize(
    ("release", "programs", "operations"), [("7.3.4", 79, 874), ("6.18.15", 52, 610)]
)
def test_drawn_programs_agree_with_their_mappings_and_page_table_entries(
    release: str, programs: int, operations: int
) -> None:
    recorded = list(load(DATA / f"programs-{release}.jsonl.xz"))
    score = run_programs(recorded, profile_for_release(recorded[0].kernel))
    assert [each.to_json() for each in score.differences] == []
    assert (score.agreed, score.operations) == (programs, operations)


def test_another_kernels_rules_are_another_kernels() -> None:
    recorded = load(DATA / "programs-6.18.15.jsonl.xz")
    assert run_programs(recorded, V7_3).agreed < 10


Change = Callable[[ProgramStep], ProgramStep]
CHANGES: dict[DifferenceKind, Change] = {
    DifferenceKind.ANSWER: lambda step: replace(step, failure=22),
    DifferenceKind.COUNTERS: lambda step: replace(step, delta={**step.delta, "9.split": 77}),
    DifferenceKind.FRAMES: lambda step: replace(step, frames=(step.frames or 0) + 1),
    DifferenceKind.MEMORY: lambda step: replace(
        step, memory={n: replace(m, swap=m.swap + 1) for n, m in step.memory.items()}
    ),
    DifferenceKind.MAPPINGS: lambda step: replace(
        step, processes={n: m[:-1] for n, m in (step.processes or {}).items()}
    ),
    DifferenceKind.PAGES: lambda step: replace(
        step,
        processes={
            n: tuple(
                replace(
                    each,
                    state=replace(
                        each.state,
                        folios=tuple(
                            (c, replace(t, mapcount=t.mapcount + 1)) for c, t in each.state.folios
                        ),
                    ),
                )
                for each in m
            )
            for n, m in (step.processes or {}).items()
        },
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_every_kind_of_difference_is_noticed(kind: DifferenceKind) -> None:
    program = next(load(DATA / "programs-7.3.4.jsonl.xz"))
    last = len(program.steps) - 1
    steps = (*program.steps[:-1], CHANGES[kind](program.steps[-1]))
    changed: LifeProgram = replace(program, steps=steps)
    found = first_difference(changed, V7_3)
    assert found is not None and (found.step, found.kind) == (last, kind)
