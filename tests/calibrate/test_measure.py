# SPDX-License-Identifier: GPL-2.0-or-later
"""The measurements, on this host: what they do to memory of our own, and that nothing else changes."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest

from mthp.calibrate.measure import EMPTY, Calibration
from mthp.calibrate.region import MADV_COLLAPSE, PAGE, Region
from mthp.image.capture.host import host_geometry
from mthp.words.costs import MEANING

PMD = 2 << 20


def huge_bytes(region: Region) -> int:
    """Bytes of the region's mappings in huge pages."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if mapping := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            start, end = (int(each, 16) for each in mapping.groups())
            inside = start < region.address + region.size and end > region.address
        elif inside and line.startswith("AnonHugePages:"):
            total += int(line.split()[1]) << 10
    return total


@pytest.fixture
def region() -> Region:
    made = Region(PMD, PMD)
    try:
        made.renew()
        made.advise(MADV_COLLAPSE)
    except OSError as error:
        pytest.skip(f"no MADV_COLLAPSE here: {error}")
    return made


def test_a_region_is_aligned_and_collapses(region: Region) -> None:
    assert region.address % PMD == 0
    assert huge_bytes(region) == PMD
    region.renew(np.arange(3))
    assert huge_bytes(region) == 0
    assert region.bytes[0] == region.bytes[2 * PAGE] == 1


def test_a_page_that_a_pipe_holds_keeps_its_table_from_collapsing(region: Region) -> None:
    region.renew()
    with region.held(511), pytest.raises(OSError, match=r".+"):
        region.advise(MADV_COLLAPSE)
    assert huge_bytes(region) == 0
    region.advise(MADV_COLLAPSE)
    assert huge_bytes(region) == PMD


@pytest.mark.parametrize("empty", EMPTY)
def test_a_table_with_so_many_empty_entries_is_what_collapses(empty: int, region: Region) -> None:
    del region
    calibration = Calibration(host_geometry(), 4)
    kept = calibration.kept(empty)
    assert len({*kept.tolist()}) == 512 - empty and 0 <= kept.min() <= kept.max() < 512
    assert calibration.call(empty) > 0
    assert huge_bytes(calibration.region) == PMD
    assert np.count_nonzero(calibration.region.bytes[::PAGE]) == 512 - empty


def test_everything_is_measured_or_said_to_be_missing(region: Region) -> None:
    del region
    steps: list[str] = []
    threads = threading.active_count()
    found = Calibration(host_geometry(), 4).run(steps.append)
    assert threading.active_count() == threads
    assert steps[0] == "copy, clear"
    assert len(steps) == 7
    assert [point.empty for point in found.calls] == [*EMPTY]
    unknown = MEANING.keys() - found.table.keys() - found.missing.keys()
    left_out = {"allocate"} if "stops" in found.missing else set[str]()
    left_out |= {"zap_pmd"} if "fault_pmd" in found.missing else set()
    assert unknown == left_out
    assert all(cost.ns >= 0 and "measured here" in cost.source for cost in found.costs.values())
