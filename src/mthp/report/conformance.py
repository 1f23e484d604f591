# SPDX-License-Identifier: GPL-2.0-or-later
"""The score of the engine against recordings of a real kernel: a table, and a document."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from rich.console import Console

from mthp.compare.records import Conformance
from mthp.report.page import SafeConsole
from mthp.report.phrases import plural

SCHEMA_VERSION = 1
MISMATCHES_SHOWN = 10
MAX_VALUE = 300
"""How many characters of a value are shown; --json has all of it."""


def mismatch_kinds(score: Conformance) -> dict[str, int]:
    """How many mismatches there are of each kind."""
    return dict(Counter(each.kind.value for each in score.mismatches))


def render_conformance(score: Conformance, console: Console) -> None:
    """Print what agreed, what did not, and which classes of events the recordings have."""
    page = SafeConsole(console)
    differ = score.passes - score.agreed
    if not score.passes:
        page.line("No recorded pass was found: nothing was compared.", "bold yellow")
        return
    if not differ and not score.mismatches:
        page.line(f"All {score.passes:,} recorded passes agree with the kernel.", "bold green")
    else:
        page.line(
            f"{score.agreed:,} of {plural(score.passes, 'recorded pass', 'recorded passes')} agree "
            f"with the kernel, {differ:,} differ.",
            "bold red",
        )
    rows = [("passes", f"{score.passes:,}"), ("agreed", f"{score.agreed:,}")]
    rows.append(("mismatches", f"{len(score.mismatches):,}"))
    rows += [(f"  in {kind}", f"{count:,}") for kind, count in mismatch_kinds(score).items()]
    page.console.print()
    page.table([("", "left"), ("", "right")], rows, grid=True)
    if score.mismatches:
        page.heading("Mismatches")
        for mismatch in score.mismatches[:MISMATCHES_SHOWN]:
            page.line(f"{mismatch.id}, pass {mismatch.pass_}, {mismatch.where}", indent=2)
            page.line(f"kernel  {_value(mismatch.expected)}", "green", 4)
            page.line(f"engine  {_value(mismatch.got)}", "red", 4)
        hidden = len(score.mismatches) - MISMATCHES_SHOWN
        if hidden > 0:
            page.line(f"… and {hidden:,} more: --json has them all", "dim", 2)
    if score.outcomes:
        page.heading("Recorded events by class")
        page.table(
            [("event", "left"), ("status", "left"), ("events", "right")],
            [
                (event, status or "–", f"{count:,}")
                for (event, status), count in sorted(score.outcomes.items())
            ],
        )


def conformance_document(score: Conformance) -> dict[str, Any]:
    """Plain JSON values: passes, agreed and every mismatch."""
    return {
        "schema_version": SCHEMA_VERSION,
        "passes": score.passes,
        "agreed": score.agreed,
        "mismatches": [mismatch.to_json() for mismatch in score.mismatches],
        "mismatch_kinds": mismatch_kinds(score),
        "outcomes": [
            {"event": event, "status": status, "count": count}
            for (event, status), count in sorted(score.outcomes.items())
        ],
    }


def _value(value: Any) -> str:
    """A value as JSON, cut to MAX_VALUE characters."""
    text = "nothing" if value is None else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}…"
