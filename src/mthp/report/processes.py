# SPDX-License-Identifier: GPL-2.0-or-later
"""An outcome summed up by process."""

from __future__ import annotations

from mthp.predict.records import Outcome, ProcessUse
from mthp.report.page import SafeConsole
from mthp.report.phrases import plural
from mthp.words.units import human_bytes

PROCESSES_SHOWN = 20


def render_processes(page: SafeConsole, outcome: Outcome) -> None:
    """Print a row a process, the one with most memory first; nothing where there is but one."""
    if len(outcome.by_process) < 2:
        return
    large = outcome.pmd_order if outcome.highest_order is None else outcome.highest_order
    size = outcome.settings.geometry.size_name(large)
    shown = sorted(outcome.by_process, key=lambda each: (-_size(each), each.pid))
    hidden = [] if page.verbose else shown[PROCESSES_SHOWN:]
    rows = [
        (
            str(each.pid),
            each.name,
            human_bytes(_size(each)),
            human_bytes(each.huge(large)[0]),
            "→",
            human_bytes(each.huge(large)[1]),
            human_bytes(each.memory_added),
        )
        for each in shown[: len(shown) - len(hidden)]
    ]
    more = "" if large == outcome.pmd_order else " or more"
    page.heading(f"By process (huge: in folios of {size}{more})")
    titles = ["anonymous", "huge now", "", "after", "memory added"]
    page.table([("pid", "right"), ("name", "left"), *((title, "right") for title in titles)], rows)
    if hidden:
        rest = human_bytes(sum(map(_size, hidden)))
        page.line(
            f"… {plural(len(hidden), 'process', 'processes')} more, {rest}: --verbose", "dim", 2
        )


def _size(process: ProcessUse) -> int:
    return sum(process.before.values())
