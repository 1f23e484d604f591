# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables that lie on several NUMA nodes, in guests: near each other, and too far apart."""

from __future__ import annotations

import pytest

from mthp.compare.conformance import run_scenario
from mthp.compare.fuzz import DraftRunner
from mthp.compare.paths import along_capture
from mthp.compare.records import Conformance
from mthp.image.scenario import parse_scenario
from mthp.lab.draw.program_builder import DECOY
from mthp.lab.program.program import ALL_OFF, BASE, Draft, parse, registration
from mthp.lab.session.boot import Guest
from mthp.lab.session.captures import CapturePath, capture_tools
from mthp.words.profiles import profile_for_release
from mthp.words.settings import Enabled
from tests.lab.guests import kernel_or_skip

PROGRAM = (
    "new",
    f"s base {BASE}",
    "s mmap 512 1536",
    "s node 0",
    "s wr 512 700",
    "s node 1",
    "s wr 1212 836",
)
"""A table on one node, one on both, and one on the other."""


@pytest.mark.lab
@pytest.mark.parametrize(
    ("kernel", "distance", "reclaim"),
    [("7.3", 40, 1), ("6.18", 40, 1), ("7.3", 40, 0), ("7.3", 21, 1)],
)
def test_a_table_on_nodes_too_far_apart_is_refused(
    kernel: str, distance: int, reclaim: int
) -> None:
    """Where nodes reclaim their own memory before that of others is taken. Kernel: collapse_scan_abort()."""
    refused = distance > 30 and reclaim == 1
    ops = parse((f"w /proc/sys/vm/zone_reclaim_mode {reclaim}", *PROGRAM))
    settings = ALL_OFF.replace(sizes={**ALL_OFF.sizes, 9: Enabled.ALWAYS})
    draft = Draft("x", "x", (*ops, *registration("s", DECOY)), settings=settings, passes=2)
    with (
        capture_tools([CapturePath.DEEP]) as tools,
        DraftRunner(
            kernel_or_skip(kernel), tools, Guest(cpus=2, nodes=2, distance=distance)
        ) as runner,
    ):
        verdict = runner.record(draft)
    assert verdict.record is not None and verdict.captured is not None, verdict.not_built
    scans = [
        each["status"]
        for each in verdict.record["passes"][0]["events"]
        if each["event"] == "mm_khugepaged_scan_pmd"
    ]
    assert scans == ["succeeded", "scan_aborted" if refused else "succeeded", "succeeded"]
    scenario = parse_scenario(verdict.record)
    profile = profile_for_release(scenario.kernel)
    real = run_scenario(scenario, profile, Conformance())
    deep = verdict.captured.files[CapturePath.DEEP]
    count = along_capture(scenario, real, verdict.captured.pids, deep, profile).count
    assert (count.passes, count.agreed, count.in_full) == (2, 2, 2)
    assert count.changed == (2 if refused else 3) * 512 * count.passes
