# SPDX-License-Identifier: GPL-2.0-or-later
"""How measured costs are shown."""

from __future__ import annotations

import io

from rich.console import Console

from mthp.report.costs import calibration_document, flush_ns, render_calibration
from mthp.words.costs import PUBLISHED, PUBLISHED_STOPS, Cost, CostTable, StopPoint

HERE = CostTable({"refill": Cost(10.0, "here"), "flush_ipi": Cost(2000.0, "here")}).or_else(
    PUBLISHED
)
POINTS = {
    "calls": [StopPoint(p.empty, 2 * p.ns) for p in PUBLISHED_STOPS],
    "stops": PUBLISHED_STOPS,
}


def text_of(points: dict[str, list[StopPoint]] | None = None) -> str:
    out = io.StringIO()
    console = Console(file=out, width=80)
    render_calibration(HERE, points or POINTS, {"scan_pte": "why not"}, 4, 512, console)
    return out.getvalue()


def test_stops_stand_beside_the_line_and_the_published_ones() -> None:
    (row,) = (line for line in text_of().splitlines() if line.lstrip().startswith("384 "))
    assert row.split() == (
        [
            "384",
            "752.0",
            "µs",
            "376.0",
            "µs",
            "342.2",
            "µs",
            "-9%",
            "376.0",
            "µs",
            "342.2",
            "µs",
            "-9%",
        ]
    )


def test_without_stops_the_line_is_the_calls() -> None:
    text = text_of({"calls": [StopPoint(511, 300e3)], "stops": []})
    (row,) = (line for line in text.splitlines() if line.lstrip().startswith("511 "))
    assert " ".join(row.split()) == "511 300.0 µs - 251.3 µs -16% 233.0 µs 251.3 µs +8%"


def test_the_flush_of_a_pmd_has_its_price() -> None:
    assert flush_ns(HERE, 512) == (2000.0, 4960.0)
    assert flush_ns(PUBLISHED, 512) is None
    text = " ".join(text_of().split())
    assert "2.0 µs for 4 CPUs to confirm, and up to 5.0 µs to fill again the 496 entries" in text
    assert "Not measured: scan_pte (why not)." in text


def test_the_document_says_what_was_not_measured() -> None:
    document = calibration_document(HERE, POINTS, {3: 12.34}, {"scan_pte": "why not"})
    assert document["collapse_ns"]["stops"]["511"] == 233000
    assert document["flush_ipi_ns"] == {"3": 12.3}
    assert document["not_measured"] == {"scan_pte": "why not"}
