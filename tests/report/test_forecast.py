# SPDX-License-Identifier: GPL-2.0-or-later
"""The table and the document of predictions for real programs."""

from __future__ import annotations

import dataclasses
import io
import json

from rich.console import Console

from mthp.compare.records import Forecast, Misprediction, NoForecast
from mthp.report.forecast import (
    forecast_document,
    forecast_tests,
    good,
    no_forecast_lines,
    render_forecasts,
)
from mthp.report.ktap import ktap_lines
from mthp.words.settings import Settings

MISS = Misprediction("0", "4", "0", 16, "young bits", 0x7F00_0000_0000)
WELL = Forecast("redis", "7.3.4", Settings(), 1, 20000, 10000, 20000, 10000, 2, 2)
NEARLY = dataclasses.replace(WELL, right=19999, right_changed=9999, misses=(MISS,))
GONE = NoForecast("redis", Settings(), "it ended with exit status 1", 2, ("no such key",))
BADLY = dataclasses.replace(WELL, right=19999, right_changed=9949)


def rendered(*forecasts: Forecast) -> str:
    out = io.StringIO()
    render_forecasts(forecasts, Console(file=out, width=100))
    return out.getvalue()


def test_both_shares_must_be_enough() -> None:
    assert good(WELL) and good(NEARLY)
    assert not good(BADLY)
    assert not good(dataclasses.replace(WELL, right=19979))
    assert good(dataclasses.replace(WELL, ptes=0, changed=0, right=0, right_changed=0))


def test_the_table() -> None:
    text = rendered(WELL)
    for part in ("redis", "511", "20,000", "10,000", "100.00 %", "50.00 %", "kernel 7.3.4"):
        assert part in text
    assert "wrong" not in text


def test_a_single_miss_is_never_rounded_away() -> None:
    text = rendered(NEARLY)
    assert text.count("99.99 %") == 2 and "100.00 %" not in text
    assert "1 PTEs wrong" in text
    assert "16 PTEs: 0 became 0, predicted 4 (at 7f0000000000): young bits" in text


def test_the_document() -> None:
    document = json.loads(json.dumps(forecast_document([WELL, NEARLY], [GONE])))
    assert document["schema_version"] == 1
    first, second = document["predictions"]
    assert (first["good"], first["share"], first["baseline"]) == (True, 1.0, 0.5)
    assert first["settings"]["max_ptes_none"] == 511
    assert second["misses"][0]["cause"] == "young bits"
    assert first["full_scans"] == {"predicted": 2, "real": 2}
    assert document["failed"] == [
        {
            "program": "redis",
            "settings": Settings().to_json(),
            "max_ptes_none": 511,
            "reason": "it ended with exit status 1",
            "output": ["no such key"],
        }
    ]
    absent = dataclasses.replace(GONE, settings=None)
    assert forecast_document([], [absent])["failed"][0]["max_ptes_none"] is None


def test_what_failed_is_said_with_its_last_lines() -> None:
    assert no_forecast_lines(GONE) == [
        "redis, 2048kB, max_ptes_none 511: it ended with exit status 1; it printed last:",
        "  | no such key",
    ]
    assert no_forecast_lines(dataclasses.replace(GONE, settings=None, output=())) == [
        "redis: it ended with exit status 1"
    ]


def test_as_ktap() -> None:
    assert list(ktap_lines(forecast_tests([NEARLY, BADLY], [GONE]))) == [
        "KTAP version 1",
        "1..1",
        "  KTAP version 1",
        "  1..3",
        "  # 19999 of 20000 PTEs right, 9999 of 10000 changed",
        "  # 16 PTEs: 0 became 0, predicted 4 (at 7f0000000000): young bits",
        "  ok 1 2048kB_max_ptes_none_511",
        "  # 19999 of 20000 PTEs right, 9949 of 10000 changed",
        "  not ok 2 2048kB_max_ptes_none_511",
        "  # no such key",
        "  not ok 3 2048kB_max_ptes_none_511 # ERROR it ended with exit status 1",
        "not ok 1 redis",
    ]
