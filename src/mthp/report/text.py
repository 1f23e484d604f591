# SPDX-License-Identifier: GPL-2.0-or-later
"""What khugepaged would make of a target, for people: the answer first, then where, then why not."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from mthp.predict.records import OrderUse, Outcome, Verified
from mthp.report.phrases import (
    TLB_MODELS,
    SafeConsole,
    duration,
    each,
    each_bytes,
    in_order,
    order_name,
    percent,
    plural,
    wasted_attempts,
)
from mthp.report.processes import render_processes
from mthp.report.refusals import group_refusals, reason_text, status_text
from mthp.report.vma_map import render_map
from mthp.words.units import human_bytes

GROUPS_SHOWN = 10
WIDE = 96
"""Columns that all columns of the folio table need."""
_MARKS = {Verified.RUN: "✓", Verified.GROUP: "≈"}


def render_outcome(outcome: Outcome, console: Console, *, verbose: bool = False) -> None:
    """Print an outcome. verbose: every mapping, every kind of refusal, and the counters."""
    page = SafeConsole(console)
    _header(page, outcome)
    _folios(page, outcome)
    render_processes(page, outcome, everything=verbose)
    _facts(page, outcome)
    _costs(page, outcome)
    render_map(page, outcome, everything=verbose)
    _refusals(page, outcome, verbose)
    if verbose:
        _counters(page, outcome)
    page.bullets("Assumed", outcome.assumptions)
    page.bullets("Not seen", outcome.unseen)
    page.bullets("Warnings", outcome.warnings, "yellow")


def passes_made(outcome: Outcome) -> str:
    """Says in one sentence how far the run got."""
    scans = plural(outcome.clock.full_scans, "full scan")
    if outcome.fixed_point and not outcome.clock.full_scans:
        return "Fixed point from the start: there is nothing to scan."
    if outcome.fixed_point:
        return f"Fixed point reached: {scans}, the last of which changed nothing."
    if outcome.complete:
        return f"{scans} as asked; not a fixed point: the next may collapse more."
    return (
        f"INCOMPLETE: interrupted, or at its limit of passes, after {scans}; no fixed point. "
        "What follows is what is known so far."
    )


def _header(page: SafeConsole, outcome: Outcome) -> None:
    where = outcome.target
    if outcome.source and outcome.source != outcome.target:
        where += f" ({outcome.source})"
    reason = f" ({outcome.profile_reason})" if outcome.profile_reason else ""
    page.line(f"{where}: profile {outcome.profile}{reason}", "bold")
    page.line(f"settings: {outcome.settings.describe()}")
    page.line(_headline(outcome), "bold green" if outcome.collapsed_bytes else "bold")
    page.line(passes_made(outcome), "" if outcome.complete else "bold yellow")


def _headline(outcome: Outcome) -> str:
    """Gives the answer, and says that it is a prediction."""
    if outcome.highest_order is None:
        return (
            "Predicted (nothing here is observed): nothing collapses, "
            "khugepaged has no enabled size for any mapping here."
        )
    size = outcome.settings.geometry.size_name(outcome.highest_order)
    more = "" if outcome.highest_order == outcome.pmd_order else " or more"
    shares = []
    for orders in (outcome.orders_before, outcome.orders_after):
        large = sum(u.bytes for order, u in orders.items() if order >= outcome.highest_order)
        shares.append(percent(large, sum(use.bytes for use in orders.values())))
    windows = plural(outcome.successes.attempts, "window")
    done = f"{human_bytes(outcome.collapsed_bytes)} collapse in {windows}"
    if not outcome.collapsed_bytes:
        done = "nothing collapses"
    return (
        f"Predicted (nothing here is observed): {done}; "
        f"{shares[0]} → {shares[1]} of the anonymous memory is in folios of {size}{more}."
    )


def _folios(page: SafeConsole, outcome: Outcome) -> None:
    before, after = outcome.orders_before, outcome.orders_after
    total = [sum(use.bytes for use in orders.values()) for orders in (before, after)]
    rows: list[list[str | Text]] = []
    for order in sorted({*before, *after}):
        was, now = (orders.get(order, OrderUse(0, 0)) for orders in (before, after))
        rows.append(
            [
                order_name(outcome.settings.geometry, order),
                f"{was.folios:,}",
                "→",
                f"{now.folios:,}",
                human_bytes(was.bytes),
                "→",
                human_bytes(now.bytes),
                percent(was.bytes, total[0]),
                "→",
                percent(now.bytes, total[1]),
            ]
        )
    if len(rows) != 1:
        folios = [sum(use.folios for use in orders.values()) for orders in (before, after)]
        cells = ["all", f"{folios[0]:,}", "→", f"{folios[1]:,}"]
        cells += [human_bytes(total[0]), "→", human_bytes(total[1]), "", "", ""]
        rows.append([page.text(cell, "bold") for cell in cells])
    page.heading("Anonymous memory by folio size")
    titles = [
        "folios before",
        "",
        "after",
        "bytes before",
        "",
        "after",
        "share before",
        "",
        "after",
    ]
    if page.width < WIDE:
        titles = ["folios", "", "after", "bytes", "", "after"]
        rows = [row[: 1 + len(titles)] for row in rows]
    page.table([("size", "keep"), *((title, "right") for title in titles)], rows)


def _facts(page: SafeConsole, outcome: Outcome) -> None:
    clock = outcome.clock
    model = TLB_MODELS.get(outcome.tlb, outcome.tlb)
    total = sum(use.bytes for use in outcome.orders_before.values())
    rows = [
        (
            "memory added by filling holes",
            f"{human_bytes(outcome.memory_added)} "
            f"({percent(outcome.memory_added, total)} of what was there)",
        ),
        (
            "TLB entries needed",
            f"{outcome.tlb_before:,} → {outcome.tlb_after:,}  (model: {model})",
        ),
        (
            "allocations wasted",
            f"{plural(wasted_attempts(outcome), 'refused attempt')} had allocated "
            f"{human_bytes(outcome.refused.allocated_bytes)}"
            if outcome.refused.allocated_bytes
            else "none",
        ),
        (
            "time asleep",
            f"{duration(clock.scan_sleep_ms + clock.alloc_sleep_ms)} = "
            f"{duration(clock.scan_sleep_ms)} scan_sleep + "
            f"{duration(clock.alloc_sleep_ms)} alloc_sleep; work counted as zero",
        ),
        (
            "full scans and wakeups",
            f"{plural(clock.full_scans, 'full scan')}, {plural(clock.wakeups, 'wakeup')}",
        ),
    ]
    if outcome.swapped_in_bytes:
        rows.insert(1, ("swapped in", human_bytes(outcome.swapped_in_bytes)))
    page.console.print()
    page.table([("", "left"), ("", "left")], rows, grid=True)


def _costs(page: SafeConsole, outcome: Outcome) -> None:
    good, bad, both = outcome.successes, outcome.refused, outcome.effort
    if not both.attempts:
        page.heading("What it costs: no collapse was attempted, so nothing but the scanning")
        return
    times = ""
    if outcome.collapsed_bytes:
        times = f", {both.flushed_bytes / outcome.collapsed_bytes:.3g} × collapsed"
    rows = [
        (
            "attempts",
            f"{both.attempts:,}",
            f"{good.attempts:,}",
            f"{bad.attempts:,}",
        ),
        (
            "bytes collapsed",
            human_bytes(outcome.collapsed_bytes),
            each_bytes(outcome.collapsed_bytes, good.attempts),
            "–",
        ),
        ("bytes copied", human_bytes(outcome.copied_bytes), "", ""),
        (
            f"bytes flushed{times}",
            human_bytes(both.flushed_bytes),
            each_bytes(good.flushed_bytes, good.attempts),
            each_bytes(bad.flushed_bytes, bad.attempts),
        ),
        (
            "IPIs sent",
            f"{both.ipis:,}",
            each(good.ipis, good.attempts),
            each(bad.ipis, bad.attempts),
        ),
        (
            "TLB entries lost outside the range, a CPU, at most",
            f"{both.tlb_outside:,}",
            each(good.tlb_outside, good.attempts),
            each(bad.tlb_outside, bad.attempts),
        ),
        (
            "bytes allocated",
            human_bytes(both.allocated_bytes),
            each_bytes(good.allocated_bytes, good.attempts),
            each_bytes(bad.allocated_bytes, bad.attempts),
        ),
    ]
    page.heading("What it costs")
    page.table(
        [
            ("", "left"),
            ("in all", "right"),
            ("per success", "right"),
            ("per refused attempt", "right"),
        ],
        rows,
    )


def _refusals(page: SafeConsole, outcome: Outcome, everything: bool) -> None:
    groups = group_refusals(outcome.refusals, outcome.settings.geometry)
    if not groups:
        return
    held = sum(group.pages for group in groups) * outcome.page_size
    span = sum(group.span for group in groups) * outcome.page_size
    ranges = plural(len(outcome.refusals), "range")
    page.heading(
        f"Why the rest did not: {human_bytes(held)} held in {ranges} that cover {human_bytes(span)}"
    )
    rows: list[tuple[str, str, Text]] = []
    # After an interrupt nothing was tried, and then nothing may be said about trying.
    tried = any(refusal.verified is not Verified.NONE for refusal in outcome.refusals)
    shown = groups if everything else groups[:GROUPS_SHOWN]
    for group in shown:
        refusal = group.example
        asked = ""
        if refusal.order is not None:
            asked = f" at {order_name(outcome.settings.geometry, refusal.order)}"
        place = f", for example {refusal.address:#x}"
        if outcome.processes > 1:
            place += f" of pid {refusal.pid}"
        words = page.text(f"{refusal.stage.value}: ")
        words.append(page.clean(status_text(refusal.status)), "bold")
        words.append(page.clean(asked + place))
        change = _change(page, group.change, group.verified, tried)
        text = Text("\n").join([words, page.text(reason_text(refusal)), change])
        size = human_bytes(group.pages * outcome.page_size)
        rows.append((size, plural(group.ranges, "range"), text))
    page.table([("", "right"), ("", "right"), ("", "left")], rows, grid=True)
    used = {group.verified for group in shown}
    legend = [f"{mark} {sure.value}" for sure, mark in _MARKS.items() if sure in used]
    if legend:
        page.line("   ".join(legend), "dim", 2)
    hidden = groups[len(shown) :]
    if hidden:
        rest = human_bytes(sum(group.pages for group in hidden) * outcome.page_size)
        page.line(
            f"… and {plural(len(hidden), 'more kind')} of refusal, {rest}: --verbose", "dim", 2
        )


def _change(page: SafeConsole, change: str, verified: Verified, tried: bool) -> Text:
    """Says what the least change is, and how sure that is. tried: if changes were looked for."""
    if not change:
        return page.text(f"→ {Verified.NONE.value if tried else 'no change known'}", "dim")
    if verified is Verified.NONE:
        return page.text(f"→ {change} (not verified)", "yellow")
    return page.text(f"→ {change} {_MARKS[verified]}", "green")


def _counters(page: SafeConsole, outcome: Outcome) -> None:
    rows = [
        (group, name, f"{value:,}")
        for group, values in outcome.counters.items()
        for name, value in values.items()
    ]
    if rows:
        page.heading("Counters, as the kernel names them (changes)")
        page.table([("", "left"), ("", "left"), ("", "right")], rows, grid=True)
    if outcome.attempts:
        page.heading("Attempts")
        page.table(
            [("size", "left"), ("status", "left"), ("attempts", "right")],
            [
                (
                    order_name(outcome.settings.geometry, order),
                    status.string,
                    f"{outcome.attempts[order, status]:,}",
                )
                for order, status in in_order(outcome.attempts)
            ],
        )
