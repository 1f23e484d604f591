# SPDX-License-Identifier: GPL-2.0-or-later
"""Where all resident memory of the target is, and what of it is not modelled."""

from __future__ import annotations

from mthp.predict.records import Outcome, PartlyMapped
from mthp.report.page import SafeConsole
from mthp.report.phrases import plural
from mthp.words.resident import resident_lines
from mthp.words.units import human_bytes


def render_resident(page: SafeConsole, outcome: Outcome) -> None:
    """Print what the kernel counted, and what partly mapped folios hold beyond that."""
    if outcome.resident is not None and outcome.resident.rss is not None:
        page.heading("All resident memory, as the kernel counts it")
        processes = [(f"{each.name} ({each.pid})", each.resident) for each in outcome.by_process]
        for line in resident_lines(outcome.resident, processes):
            page.line(line, indent=2)
    before, after = outcome.partly_before, outcome.partly_after
    if before.folios or after.folios:
        page.heading("Memory of partly mapped folios, which no page table shows")
        page.line(f"now: {_partly(before)}", indent=2)
        page.line(f"after: {_partly(after)}", indent=2)


def _partly(partly: PartlyMapped) -> str:
    if not partly.folios:
        return "none"
    folios = plural(partly.folios, "large folio")
    held, back = human_bytes(partly.held), human_bytes(partly.reclaimable)
    return f"{folios} hold {held} beyond the pages that are mapped; reclaim can get {back} back"
