# SPDX-License-Identifier: GPL-2.0-or-later
"""Recorded programs of a real 7.3.4 kernel, compared after every operation."""

from __future__ import annotations

from pathlib import Path

from mthp.compare.programs import run_programs
from mthp.life.program import load
from mthp.words.profiles import V7_3

RECORDED = Path(__file__).parent.parent / "data" / "life-7.3.4.jsonl.xz"
AGREED = 79
"""So many of the 80 programs agree after every operation. It may only grow."""


def test_programs_agree_after_every_operation() -> None:
    score = run_programs(load(RECORDED), V7_3)
    assert score.programs == 80
    assert score.agreed >= AGREED, [each.to_json() for each in score.differences]
