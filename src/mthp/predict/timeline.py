# SPDX-License-Identifier: GPL-2.0-or-later
"""When memory collapses: wakeup by wakeup, with khugepaged's time shared and its copying counted."""

from __future__ import annotations

from mthp.image.snapshot import Snapshot
from mthp.khugepaged.daemon import Khugepaged
from mthp.mm.folio import lru_add_drain_all
from mthp.predict.passes import Tally
from mthp.predict.records import COPY_BYTES_A_SECOND, Others, TimePoint
from mthp.words.settings import Enabled, Settings
from mthp.words.units import Geometry

MOST_POINTS = 512
"""A longer timeline is thinned out: every second point goes, but for the last."""


def others_of(snapshot: Snapshot, settings: Settings) -> Others | None:
    """The processes that were not captured; None where the snapshot does not count them.

    Under "always" khugepaged is taken to scan them all, otherwise none: few ask for it, and a capture
    does not look which.
    """
    known = snapshot.meta.get("others")
    if not isinstance(known, dict):
        return None
    scanned = settings.enabled is Enabled.ALWAYS or bool(settings.orders_always)
    return Others(int(known["processes"]), int(known["anonymous"]), scanned)


def scanned_pages(others: Others | None, geometry: Geometry) -> int:
    """How many pages of other processes khugepaged scans in a full scan."""
    size = others.anonymous_bytes if others is not None and others.scanned else 0
    return size >> geometry.page_shift


class Timeline:
    """The points of one run; told of the end of each wakeup by run_full_scans().

    The clock starts when khugepaged has just fallen asleep, so its first wakeup is a whole scan_sleep
    away. In each full scan it spends pages_to_scan on others' pages too, and comes to them first.
    last_collapse_ms: the last moment at which more had collapsed; None if nothing has.
    """

    def __init__(self, daemon: Khugepaged, tally: Tally, others: Others | None) -> None:
        self.kernel = daemon.kernel
        self.tally = tally
        self.points: list[TimePoint] = []
        self.last_collapse_ms: int | None = None
        self._out = self.kernel.mem.allocator.frames_out()
        self._others = scanned_pages(others, self.kernel.geometry)
        self._attempts = -1

    def on_sleep(self, wakeups: int) -> None:
        """Note what is there after so many wakeups, with the LRU batches drained as the next will."""
        attempts = self.tally.attempts.total()
        if attempts == self._attempts:  # nothing else changes a page, or puts one into a batch
            return
        self._attempts = attempts
        lru_add_drain_all(self.kernel.mem, self.kernel.cpus)
        point = self._point(wakeups)
        last = self.points[-1] if self.points else TimePoint(0, 0, 0)
        if point[1:] == last[1:]:
            return
        if point.collapsed_bytes > last.collapsed_bytes:
            self.last_collapse_ms = point.milliseconds
        self.points.append(point)
        if len(self.points) > MOST_POINTS:
            del self.points[-2::-2]

    def _point(self, wakeups: int) -> TimePoint:
        tally = self.tally
        # A wakeup in which a full scan ends may begin the next, in which others come first again.
        others = tally.changed_in * self._others
        elapsed = elapsed_ms(self.kernel.settings, wakeups, others, tally.collapsed_bytes)
        return TimePoint(
            elapsed + tally.sleeps["alloc_sleep"], self.memory_added, tally.collapsed_bytes
        )

    @property
    def memory_added(self) -> int:
        """By how many bytes the frames in use have grown."""
        grown = self.kernel.mem.allocator.frames_out() - self._out
        return grown << self.kernel.geometry.page_shift


def elapsed_ms(settings: Settings, wakeups: int, others: int, collapsed: int) -> int:
    """The milliseconds that so many wakeups take, but for sleeps after failed allocations. others: pages of
    other processes that khugepaged scans too. collapsed: bytes."""
    for_others = -(-others // settings.pages_to_scan)
    return (wakeups + for_others) * settings.scan_sleep_millisecs + work_ms(collapsed)


def work_ms(size: int) -> int:
    """The milliseconds that copying and clearing so many bytes take, rounded up."""
    return -(-size * 1000 // COPY_BYTES_A_SECOND)
