# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of pairs."""

from __future__ import annotations

from mthp.check.records import WorldResult
from mthp.explore.outcome import Coverage, Extent
from mthp.report.check import pairs_lines


def row(executions: int, bound: str, *rivals: str) -> WorldResult:
    kind = "bounded" if bound else "exhaustive"
    covered = Coverage(Extent(kind), executions, bound=bound)
    return WorldResult("7.3", "", "pmd", ("khugepaged", *rivals), covered, None, "", 2.0)


def test_a_line_for_each_rival() -> None:
    rows = [
        row(5, "", "gup"),
        row(1000, "", "gup", "zap"),
        row(20, "stopped after 20 executions", "gup", "exit"),
    ]
    assert pairs_lines(rows) == [
        "rival                  pairs  exhausted  executions  seconds  most",
        "exit                       1          0          20        2  20 with gup",
        "gup                        2          1       1,020        4  1,000 with zap",
        "zap                        1          1       1,000        2  1,000 with gup",
    ]
    assert pairs_lines(rows[:1]) == []
