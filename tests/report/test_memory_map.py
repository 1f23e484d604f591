# SPDX-License-Identifier: GPL-2.0-or-later
"""The map on a page: what the script reads is the map, and what is drawn adds up to it."""

from __future__ import annotations

import json
import re
import zlib
from base64 import b64decode
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

import mthp
from mthp.plan.picture import picture_of
from mthp.plan.records import MappedTo, MemoryMap, PagesAlike, Picture
from mthp.report.web import memory_map
from mthp.report.web.memory_map import held_bytes, map_data, map_lines, mapping_lines
from mthp.report.web.tiles import COLUMNS, SIDE, STEP, axis_of, shares, tile_paths, unit_of
from mthp.words.profiles import PROFILES


@cache
def redis() -> Picture:
    image = mthp.example()
    settings = image.configured(enabled="64kB=always,2048kB=always", max_ptes_none=0)
    return picture_of(*image.prepared(settings, PROFILES["7.3"], "as asked"))


def runs_of(data: dict[str, Any]) -> list[tuple[int, int, int]]:
    """(place, pages, kind) of each run, read as the script does."""
    planes = np.frombuffer(zlib.decompress(b64decode(data["runs"])), np.uint8).reshape(3, 6, -1)
    weights = (256 ** np.arange(6))[:, None]
    gaps, sizes, kinds = (planes.astype(np.int64) * weights).sum(axis=1)
    ends = (gaps + sizes).cumsum()
    return list(zip((ends - sizes).tolist(), sizes.tolist(), kinds.tolist(), strict=True))


def test_the_script_gets_every_run_at_its_address() -> None:
    picture = redis()
    data = map_data(picture)
    found = set()
    for place, pages, kind in runs_of(data):
        (mapping,) = (
            each for each in data["mappings"] if each[0] <= place < place + pages <= sum(each[:2])
        )
        found.add(
            (int(mapping[2], 16) + (place - mapping[0]) * 4096, pages, tuple(data["kinds"][kind]))
        )
    vmas, made = picture.outcome.vmas, picture.map
    columns = (made.mapping, made.first, made.pages, made.kind)
    assert found == {
        (vmas[k].start + first * 4096, pages, tuple(made.kinds[kind]))
        for k, first, pages, kind in zip(*(each.tolist() for each in columns), strict=True)
    }
    assert data["every"] == 1
    assert all(int(each[2], 16) >> 12 & 511 == each[0] & 511 for each in data["mappings"])
    assert len(data["reasons"]) == len(made.reasons)


def test_what_is_too_much_is_thinned_and_its_sums_stay_near(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact, picture = map_data(redis()), redis()
    monkeypatch.setattr(memory_map, "MOST_BYTES", most := len(b64decode(exact["runs"])) * 2 // 3)
    thin = map_data(picture)
    assert thin["every"] > 1
    assert len(thin["runs"]) <= 4 * most // 3 + 4
    sums = [sum(pages for _, pages, _ in runs_of(each)) for each in (exact, thin)]
    assert abs(sums[0] - sums[1]) < sums[0] / 20
    assert any("looked at" in line for line in map_lines(picture, "then", thin["every"]))


def test_the_tiles_hold_what_the_map_has() -> None:
    picture = redis()
    axis, made = axis_of(picture), picture.map
    pages = np.bincount(made.kind, made.pages, len(made.kinds))
    for after in (False, True):
        counts = shares(axis, made, after=after).sum(axis=0)
        for code in range(1, MappedTo.OTHER + 1):
            mine = sum(
                nr
                for kind, nr in zip(made.kinds, pages.tolist(), strict=True)
                if kind[after] == code
            )
            assert counts[code] == mine
        area = 0.0
        for line in tile_paths(axis, made, after=after):
            if "ground" not in line:
                area += sum(map(float, re.findall(r"v([0-9.]+)", line)))
        held = int(counts[1:].sum())
        assert area == pytest.approx(SIDE * held / unit_of(axis), rel=0.01)
    assert STEP * COLUMNS == 320


def test_a_terabyte_of_little_has_its_place() -> None:
    """One page at each end of a mapping of 16 TiB, and what lies in the middle."""
    outcome = redis().outcome
    size = 1 << 44
    vma = outcome.vmas[0]._replace(start=1 << 45, end=(1 << 45) + size)
    ends = np.array([0, (size >> 13), (size >> 12) - 1], np.int64)
    found = MemoryMap(
        np.zeros(3, np.int64), ends, np.ones(3, np.int64), np.zeros(3, np.int64),
        (PagesAlike(1, 10, -1),), (),
    )  # fmt: skip
    picture = Picture(replace(outcome, vmas=(vma,)), found)
    data = map_data(picture)
    assert [place for place, *_ in runs_of(data)] == ends.tolist()
    assert data["total"] == size >> 12
    assert len(list(mapping_lines(picture))) > 3


def test_eight_gibibytes_without_any_order_stay_below_a_megabyte() -> None:
    """Each page another kind than the one before it, as no process has it."""
    nr, outcome = 2 << 20, redis().outcome
    vma = outcome.vmas[0]._replace(start=1 << 40, end=(1 << 40) + (nr << 12))
    kinds = tuple(PagesAlike(1 + k % 4, 1 + k // 4, k % 5 - 1) for k in range(16))
    kind = np.random.default_rng(1).integers(0, len(kinds), nr)
    each = np.arange(nr)
    found = MemoryMap(
        np.zeros_like(each), each, np.ones_like(each), kind, kinds, redis().map.reasons
    )
    picture = Picture(replace(outcome, vmas=(vma,)), found)
    data = map_data(picture)
    assert data["every"] > 1
    lines = [*map_lines(picture, "then", data["every"]), *mapping_lines(picture)]
    assert len(json.dumps(data)) + sum(map(len, lines)) < 800_000
    # What is drawn at first, and the legend, are of all pages, not of some.
    counts = shares(axis_of(picture), found, after=False)
    assert counts.sum() == nr == sum(size for _, size, _ in held_bytes(picture)) >> 12
