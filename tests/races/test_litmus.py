# SPDX-License-Identifier: GPL-2.0-or-later
"""The publish patterns: the files emitted, what our machines say, and what herd7 says of the files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mthp.check.litmus import compare, observation
from mthp.lab.kernels.herd import parse_observations, run_herd
from mthp.machine.store_buffer import Model
from mthp.races.litmus import PATTERNS, Observation

FILES = Path(__file__).parents[2] / "docs" / "litmus"
RECORDED = Path(__file__).parent / "golden" / "herd7-7.58.txt"
"""What herd7 7.58 printed about the files under the memory model of Linux 7.3.4."""
MODEL_DIR = os.environ.get("LKMM_DIR", "")


def test_the_files_are_what_the_patterns_emit() -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        for name, pattern in PATTERNS.items():
            (FILES / f"{name}.litmus").write_text(pattern.text, encoding="utf-8")
    files = {path.stem: path.read_text(encoding="utf-8") for path in FILES.glob("*.litmus")}
    assert files == {name: pattern.text for name, pattern in PATTERNS.items()}


@pytest.mark.parametrize("name", PATTERNS)
def test_our_lkmm_machine_says_what_is_expected(name: str) -> None:
    assert observation(PATTERNS[name], Model.LKMM) is PATTERNS[name].expected


@pytest.mark.parametrize("name", PATTERNS)
def test_each_machine_allows_what_a_stronger_one_does(name: str) -> None:
    order = [Model.SC, Model.TSO, Model.LKMM, Model.WEAK]
    stale = [observation(PATTERNS[name], model) is not Observation.NEVER for model in order]
    assert stale == sorted(stale)


def test_only_the_barrier_holds_on_the_weakest_machine() -> None:
    never = {
        name
        for name, each in PATTERNS.items()
        if observation(each, Model.WEAK) is Observation.NEVER
    }
    assert never == {"publish-wmb", "ptes-wmb"}


def test_says() -> None:
    assert Observation.of([True, True]) is Observation.ALWAYS
    assert Observation.of([True, False]) is Observation.SOMETIMES
    assert Observation.of([False]) is Observation.NEVER


def test_herd7_agreed_when_it_was_asked() -> None:
    said = parse_observations(RECORDED.read_text(encoding="utf-8"))
    assert said == {name: pattern.expected.value for name, pattern in PATTERNS.items()}


@pytest.mark.skipif(
    shutil.which("herd7") is None or not MODEL_DIR,
    reason="herd7, or LKMM_DIR (tools/memory-model of a kernel), is not at hand",
)
def test_herd7_agrees() -> None:
    results = compare(Path(MODEL_DIR))
    assert {each.name: each.herd for each in results} == run_herd(
        {name: pattern.text for name, pattern in PATTERNS.items()}, Path(MODEL_DIR)
    )
    assert all(each.agrees and each.herd for each in results)
