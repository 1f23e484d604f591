# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory against time: when the last collapse is, whose time it takes, and how long a timeline gets."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from mthp import example
from mthp.image.snapshot import Snapshot
from mthp.predict.outcome import Request, run_world
from mthp.predict.records import COPY_BYTES_A_SECOND, Others, Outcome
from mthp.predict.timeline import others_of, work_ms
from mthp.words.profiles import PMD_ONLY
from mthp.words.settings import Enabled
from mthp.worlds.build import build_world
from tests.predict.test_changes import scenario


def dense(tables: int, others: Others | None = None, **settings: int) -> Outcome:
    """So many full tables, all of which collapse."""
    count = tables * 512
    of = scenario(
        f"{count}:F0.RLaB.xs.m1", f"{count}:PWAD", orders={9: Enabled.ALWAYS}, pages=count
    )
    world = build_world(of, PMD_ONLY, of.settings.replace(**settings))
    return run_world(world, Request("t", "s", "r", changes=False, others=others))


def test_eight_tables_a_wakeup() -> None:
    """Seen on 6.18: 64 MiB collapse in some 50 s, 16 MiB every 10 s, beside other processes."""
    outcome = dense(32)
    assert [point.milliseconds // 1000 for point in outcome.timeline] == [10, 20, 30, 40]
    assert [point.collapsed_bytes >> 20 for point in outcome.timeline] == [16, 32, 48, 64]
    assert outcome.clock.last_collapse_ms == outcome.timeline[-1].milliseconds
    assert outcome.clock.wakeups > 4  # the scans that find nothing more are not waited for
    assert outcome.clock.last_collapse_ms == 40_000 + outcome.clock.work_ms


def test_work_is_copying_and_clearing() -> None:
    assert work_ms(0) == 0
    assert work_ms(1) == 1
    assert work_ms(COPY_BYTES_A_SECOND) == 1000
    assert dense(32).clock.work_ms == work_ms(64 << 20)


@pytest.mark.parametrize(("scanned", "seconds"), [(True, 80), (False, 40)])
def test_others_are_scanned_in_turn(scanned: bool, seconds: int) -> None:
    """64 MiB of others are four wakeups; khugepaged comes to them first."""
    last = dense(32, Others(3, 64 << 20, scanned)).clock.last_collapse_ms
    assert last is not None and last // 1000 == seconds


def test_others_are_not_waited_for_again_where_a_full_scan_ends_within_a_wakeup() -> None:
    """The second wakeup ends the first full scan, and begins the next with what is left of it."""
    last = dense(12, Others(3, 64 << 20, scanned=True)).clock.last_collapse_ms
    assert last is not None and last // 1000 == 20 + 40


def test_others_of_a_capture() -> None:
    """They count where memory may become huge unasked."""
    image = example()
    assert image.run(passes=1).outcome.others is None  # captured before they were counted
    assert isinstance(image.data, Snapshot)
    meta = {**image.data.meta, "others": {"processes": 4, "anonymous": 5 << 20}}
    snapshot = replace(image.data, meta=meta)
    for enabled, scanned in ((Enabled.ALWAYS, True), (Enabled.MADVISE, False)):
        settings = image.settings.replace(enabled=enabled)
        assert others_of(snapshot, settings) == Others(4, 5 << 20, scanned)


def test_a_long_timeline_is_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mthp.predict.timeline.MOST_POINTS", 8)
    outcome = dense(13, pages_to_scan=1)
    assert 4 <= len(outcome.timeline) <= 8
    assert all(a.milliseconds < b.milliseconds for a, b in pairwise(outcome.timeline))
    assert outcome.timeline[-1].collapsed_bytes == outcome.collapsed_bytes == 26 << 20
    assert outcome.clock.last_collapse_ms == outcome.timeline[-1].milliseconds
