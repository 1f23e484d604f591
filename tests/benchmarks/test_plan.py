# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m benchmarks.plan, of few tables: what it says, not how fast."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import plan
from mthp.plan.planner import Planner
from mthp.words.profiles import PROFILES
from mthp.words.settings import Settings


def test_the_figures_are_one_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"TABLES": 9000, "SWEEP_TABLES": 32, "SETTINGS": 9, "ROUNDS": 1}.items():
        monkeypatch.setattr(plan, name, value)
    monkeypatch.setattr(sys, "argv", ["plan", "--json"])
    plan.main()
    found = json.loads(capsys.readouterr().out)
    assert found["bitmap_bytes"] == 9000 * 64
    for name in ("ratio_numpy", "ratio_compiled", "ratio_sweep", "bitmaps_numpy"):
        assert found[name] > 0


def test_the_tables_of_a_sweep_are_of_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SWEEP_TABLES", 64)
    settings = Settings()
    planner = Planner(plan.image(), PROFILES["7.3"], settings)
    simple, others = planner.plain[0]
    assert (len(simple.row), len(others.row)) == (60, 4)
    assert len({*plan.grid(settings)}) == plan.SETTINGS
