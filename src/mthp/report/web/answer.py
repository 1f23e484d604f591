# SPDX-License-Identifier: GPL-2.0-or-later
"""What a page says first of settings: what they gain and what they cost, beside what is set now."""

from __future__ import annotations

from collections.abc import Iterator

from mthp.plan.records import TLB_ENTRIES, BulkVerdict, Spent, TlbKind
from mthp.report.phrases import duration, percent, short_time
from mthp.report.sweep import within_text
from mthp.report.web.page import text_of
from mthp.words.costs import CostTable
from mthp.words.settings import Enabled
from mthp.words.units import human_bytes


def reach_text(plan: BulkVerdict, now: BulkVerdict) -> str:
    """What fewer TLB entries are good for: a sentence."""
    here, then = (percent(each.reached(TlbKind.X86), each.mapped) for each in (now, plan))
    text = f"A processor has some {TLB_ENTRIES:,} of them, which reach {then} of that memory then"
    return f"{text}, and {here} as set now." if now.settings != plan.settings else f"{text}."


def tiles(plan: BulkVerdict, now: BulkVerdict, costs: CostTable) -> Iterator[str]:
    """The figures that decide, large, and below each that of what is set now."""
    yield '<ul class="figures">'
    pair = plan, now
    spent = [Spent.of(each, costs) for each in pair]
    for name, (value, before) in (
        ("In large folios", [percent(each.large, each.mapped) for each in pair]),
        ("TLB entries", [f"{each.translations:,}" for each in pair]),
        ("Memory added", [human_bytes(each.memory_added) for each in pair]),
        ("CPU time, once", [_time(each.collapsing) for each in spent]),
        ("Longest stop", [_time(each.longest) for each in spent]),
        ("Done within", [within_text(each) for each in pair]),
    ):
        yield f"<li>{name}<b>{value}</b>as set now: {before}</li>"
    stop = costs.get("stop")
    source = "of nobody's figures" if stop is None else stop.source
    settings = plan.settings
    yield (
        '</ul><p class="dim">The kernel does it in the background, '
        f"{settings.pages_to_scan:,} pages at a time with {duration(settings.scan_sleep_millisecs)} of sleep "
        "between, in turn over all programs of the machine. While one piece is merged, the program waits "
        "where it touches that piece, or maps memory: that is the stop. Both times with &asymp; are reckoned "
        f"({text_of(source)}), not measured.</p>"
    )


def now_text(now: BulkVerdict) -> str:
    """Why nothing is merged as set now, as far as the settings say; empty where something is."""
    if now.windows:
        return ""
    settings = now.settings
    modes = {
        settings.enabled if mode is Enabled.INHERIT else mode for mode in settings.sizes.values()
    } - {Enabled.NEVER}
    if not modes:
        return " With them nothing is merged: every size is off."
    if modes == {Enabled.MADVISE}:
        return (
            " With them nothing more of this memory is merged: they are for memory alone that its program "
            "asks it for (madvise)."
        )
    return " With them nothing more of this memory is merged."


def _time(nanoseconds: float | None) -> str:
    return f"≈ {short_time(nanoseconds)}" if nanoseconds else "–"
