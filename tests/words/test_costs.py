# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of costs: the published one, the line through its stops, and tables in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mthp.words.costs import (
    MEANING,
    PUBLISHED,
    PUBLISHED_STOPS,
    Cost,
    CostTable,
    StopPoint,
    costs_document,
    fit_stop,
    read_costs,
    stop_ns,
)
from mthp.words.files import FileError


def test_the_published_stops_lie_on_the_line_within_a_tenth() -> None:
    off = [stop_ns(PUBLISHED, point.empty) / point.ns - 1 for point in PUBLISHED_STOPS]
    assert [round(100 * each) for each in off] == [8, -9, 3, 0]
    assert sum(stop_ns(PUBLISHED, p.empty) for p in PUBLISHED_STOPS) == pytest.approx(
        sum(p.ns for p in PUBLISHED_STOPS)
    )


def test_a_line_is_found_again() -> None:
    points = [StopPoint(empty, 7000 + 300 * (512 - empty) + 20 * empty) for empty in (0, 100, 511)]
    assert fit_stop(points, 20) == pytest.approx((7000, 300))


@pytest.mark.parametrize(
    "points", [[], [StopPoint(3, 1.0)], [StopPoint(3, 1.0), StopPoint(3, 2.0)]]
)
def test_no_line_goes_through_one_point(points: list[StopPoint]) -> None:
    with pytest.raises(ValueError, match="no line"):
        fit_stop(points, 20)


def test_what_is_not_known_is_taken_from_another_table() -> None:
    own = CostTable({"stop": Cost(1.0, "mine"), "refill": Cost(2.0, "mine")})
    both = own.or_else(PUBLISHED)
    assert (both["stop"].source, both["refill"].ns) == ("mine", 2.0)
    assert both["copy_page"] == PUBLISHED["copy_page"]
    assert [*both] == [name for name in MEANING if name in both]
    with pytest.raises(KeyError):
        own.sum_ns(scan_pte=3)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(costs_document(PUBLISHED)))
    read = read_costs(path)
    assert [*read] == [*PUBLISHED]
    assert all(abs(read[name].ns - PUBLISHED[name].ns) < 0.1 for name in read)


def document(**changes: Any) -> dict[str, Any]:
    return {**costs_document(PUBLISHED), **changes}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ([], "not a table of costs"),
        ({"schema_version": 1}, "not a table of costs"),
        (document(schema_version=2), "schema_version is 2, not 1"),
        (document(costs={"stop": {"ns": "x", "source": ""}}), "not a table of costs"),
        (document(costs={"stop": 3}), "not a table of costs"),
        (document(costs={"stop": {"ns": 10**400, "source": ""}}), "not a table of costs"),
        (document(costs={"speed": {"ns": 1, "source": ""}}), "costs.speed: no such cost"),
        (document(costs={"stop": {"ns": -1, "source": ""}}), "costs.stop.ns: -1 is not between"),
        (document(costs={"stop": {"ns": 1e300, "source": ""}}), "costs.stop.ns: 1e+300 is not"),
    ],
)
def test_what_is_no_table_is_refused(what: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(what))
    with pytest.raises(FileError, match=said.replace("+", r"\+")):
        read_costs(path)
