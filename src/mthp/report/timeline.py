# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory against time, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from mthp.predict.records import TimePoint
from mthp.report.page import SafeConsole
from mthp.report.phrases import duration
from mthp.words.units import human_bytes

POINTS_SHOWN = 16


def render_timeline(page: SafeConsole, points: Sequence[TimePoint], of: str = "") -> None:
    """Print a row a point, some evenly spaced ones and the last, with a bar for what has collapsed. of: which
    settings, where there are several."""
    title = f"Memory against time{of and f', {of}'}"
    if not points:
        page.heading(f"{title}: nothing ever changes")
        return
    step = -(-len(points) // POINTS_SHOWN)
    shown = points[::-step][::-1]
    width = max(6, min(32, page.width - 46))
    most = max(point.collapsed_bytes for point in points)
    page.heading(f"{title} (since the capture)")
    page.table(
        [("time", "right"), ("collapsed", "right"), ("", "keep"), ("memory added", "right")],
        [
            (
                duration(point.milliseconds),
                human_bytes(point.collapsed_bytes),
                "█" * (width * point.collapsed_bytes // max(most, 1)),
                human_bytes(point.memory_added),
            )
            for point in shown
        ],
    )
