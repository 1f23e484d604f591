# SPDX-License-Identifier: GPL-2.0-or-later
"""What khugepaged would make of a target, for people: the answer first and last, between them where,
at what cost, and why not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.text import Text

from mthp.predict.records import (
    COPY_BYTES_A_SECOND,
    OrderUse,
    Outcome,
    Refusal,
    RefusedAt,
    Verified,
)
from mthp.report.basis import name_of, profile_of, render_caveats
from mthp.report.page import SafeConsole
from mthp.report.phrases import (
    TLB_MODELS,
    duration,
    each,
    each_bytes,
    in_order,
    more_memory,
    order_name,
    percent,
    plural,
    wasted_attempts,
)
from mthp.report.processes import render_processes
from mthp.report.refusals import (
    CurvePoint,
    RefusalGroup,
    group_refusals,
    price_text,
    reason_text,
    status_text,
)
from mthp.report.resident import render_resident
from mthp.report.timeline import render_timeline
from mthp.report.verdict import passes_made, render_verdict, verdict_rows
from mthp.report.vma_map import render_map
from mthp.words.units import human_bytes

GROUPS_SHOWN = 10
CURVE_SHOWN = 5
WIDE = 96
"""Columns that all columns of the folio table need."""
_MARKS = {Verified.RUN: "✓", Verified.GROUP: "≈"}


def render_outcome(
    outcome: Outcome, console: Console, *, verbose: bool = False, timeline: bool = False
) -> None:
    """Print an outcome. verbose: every mapping, every kind of refusal, the counters, and what is
    assumed. timeline: memory against time too.
    """
    page = SafeConsole(console, verbose=verbose)
    verdict = [*verdict_rows(outcome)]
    render_verdict(page, verdict)
    _header(page, outcome)
    _folios(page, outcome)
    render_processes(page, outcome)
    render_resident(page, outcome)
    _facts(page, outcome)
    if timeline:
        render_timeline(page, outcome.timeline)
    _costs(page, outcome)
    render_map(page, outcome)
    _refusals(page, outcome)
    if verbose:
        _counters(page, outcome)
    page.bullets("Warnings", outcome.warnings, "yellow")
    render_caveats(page, outcome.basis)
    page.console.print()
    render_verdict(page, verdict)


def _header(page: SafeConsole, outcome: Outcome) -> None:
    page.console.print()
    page.line(f"Predicted, not observed: {name_of(outcome.basis)}, {profile_of(outcome.basis)}")
    page.line(f"settings: {outcome.settings.describe()}")


def _held(outcome: Outcome, orders: Mapping[int, OrderUse]) -> dict[int, int]:
    """The bytes that the folios of each order hold, whether all of them is mapped or not."""
    geometry = outcome.settings.geometry
    return {order: use.folios * geometry.order_bytes(order) for order, use in orders.items()}


def _folios(page: SafeConsole, outcome: Outcome) -> None:
    before, after = outcome.orders_before, outcome.orders_after
    held = [_held(outcome, orders) for orders in (before, after)]
    total = [sum(sizes.values()) for sizes in held]
    rows: list[list[str | Text]] = []
    for order in sorted({*before, *after}):
        folios = [orders[order].folios if order in orders else 0 for orders in (before, after)]
        was, now = (sizes.get(order, 0) for sizes in held)
        rows.append(
            [
                order_name(outcome.settings.geometry, order),
                f"{folios[0]:,}",
                "→",
                f"{folios[1]:,}",
                human_bytes(was),
                "→",
                human_bytes(now),
                percent(was, total[0]),
                "→",
                percent(now, total[1]),
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
    model = TLB_MODELS.get(outcome.tlb, outcome.tlb)
    total = sum(_held(outcome, outcome.orders_before).values())
    rows = [
        (
            "memory added",
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
        ("time", _time(outcome)),
        ("other processes", _others(outcome)),
        ("how far", passes_made(outcome)),
    ]
    if outcome.swapped_in_bytes:
        rows.insert(1, ("swapped in", human_bytes(outcome.swapped_in_bytes)))
    page.console.print()
    page.table([("", "left"), ("", "left")], rows, grid=True)


def _time(outcome: Outcome) -> str:
    """Says when the last collapse is, and of what the time of all full scans is made."""
    clock = outcome.clock
    if clock.last_collapse_ms is None:
        return "nothing collapses at any time"
    return (
        f"last collapse within {duration(clock.last_collapse_ms)}; in all "
        f"{plural(clock.wakeups, 'wakeup')}, {duration(clock.scan_sleep_ms)} of scan_sleep, "
        f"{duration(clock.alloc_sleep_ms)} of alloc_sleep, {duration(clock.work_ms)} of copying and "
        f"clearing (at {human_bytes(COPY_BYTES_A_SECOND)}/s; other work counts as zero)"
    )


def _others(outcome: Outcome) -> str:
    """Says whether khugepaged's time is taken to be shared."""
    others = outcome.others
    if others is None:
        return "not counted: khugepaged is taken to scan these alone"
    known = f"{others.processes:,}, with {human_bytes(others.anonymous_bytes)} of anonymous memory"
    settings = outcome.settings
    wakeups = -(-others.anonymous_bytes // outcome.page_size // settings.pages_to_scan)
    each_scan = duration(wakeups * settings.scan_sleep_millisecs)
    if others.scanned:
        return f"{known}: scanned in turn, {each_scan} a full scan"
    return (
        f"{known}: taken not to be scanned, as few ask for it ({each_scan} a full scan if all did)"
    )


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


_PLACES = {
    RefusedAt.VMA: "mapping",
    RefusedAt.EDGE: "edge of a mapping",
    RefusedAt.SCAN: "table",
    RefusedAt.OCCUPANCY: "window",
    RefusedAt.ATTEMPT: "window",
    RefusedAt.NOT_SCANNED: "not scanned",
}
"""What is refused, as it is called here."""


def _refusals(page: SafeConsole, outcome: Outcome) -> None:
    groups = group_refusals(outcome.refusals, outcome.settings.geometry)
    if not groups:
        return
    held = sum(group.distinct for group in groups) * outcome.page_size
    span = sum(group.span for group in groups) * outcome.page_size
    ranges = plural(len(outcome.refusals), "range")
    page.heading(
        f"Why the rest did not: {human_bytes(held)} held in {ranges} that cover {human_bytes(span)}"
    )
    # After an interrupt nothing was tried, and then nothing may be said about trying.
    tried = any(refusal.verified is not Verified.NONE for refusal in outcome.refusals)
    shown = groups if page.verbose else groups[:GROUPS_SHOWN]
    rows = []
    told: set[object] = set()
    for group in shown:
        price = (group.price, group.curve) if group.everywhere else None
        words = _group(page, outcome, group, tried=tried, told=price in told)
        if price is not None:
            told.add(price)
        size = human_bytes(group.distinct * outcome.page_size)
        rows.append((size, plural(group.ranges, "range"), words))
    page.table([("", "right"), ("", "right"), ("", "left")], rows, grid=True)
    used = {group.verified for group in shown}
    legend = [f"{mark} {sure.value}" for sure, mark in _MARKS.items() if sure in used]
    if legend:
        page.line("   ".join(legend), "dim", 2)
    hidden = groups[len(shown) :]
    if hidden:
        rest = human_bytes(sum(group.distinct for group in hidden) * outcome.page_size)
        page.line(
            f"… and {plural(len(hidden), 'more kind')} of refusal, {rest}: --verbose", "dim", 2
        )


def _group(
    page: SafeConsole, outcome: Outcome, group: RefusalGroup, *, tried: bool, told: bool
) -> Text:
    """What refused a group, why, what would change it, and the price of that.

    tried: changes were looked for. told: the change stands above with its price.
    """
    refusal, geometry = group.example, outcome.settings.geometry
    asked = "" if refusal.order is None else f" at {order_name(geometry, refusal.order)}"
    place = f", for example {refusal.address:#x}"
    if outcome.processes > 1:
        place += f" of pid {refusal.pid}"
    words = page.text(f"{_PLACES[refusal.stage]}: ")
    words.append(page.clean(status_text(refusal.status)), "bold")
    words.append(page.clean(asked + place))
    if group.pages > group.mapped:
        none = plural(group.pages - group.mapped, "entry", "entries")
        words.append(page.clean(f"; {none} without memory: zero page, swap or marker"))
    reason = reason_text(refusal, geometry) + _mapping(outcome, refusal)
    lines = [words, page.text(reason), _change(page, group, tried)]
    if told:
        lines[-1].append(", as above")
    else:
        if len(group.curve) > 1:
            lines += [page.text(f"  {point}") for point in _curve(group.curve)]
        if group.price is not None:
            lines.append(page.text(f"  {price_text(group.price)}"))
    return Text("\n").join(lines)


def _mapping(outcome: Outcome, refusal: Refusal) -> str:
    """The mapping of a refusal that its addresses explain."""
    if status_text(refusal.status) not in ("TOO_SHORT", "PMD_NOT_SPANNED"):
        return ""
    for vma in outcome.vmas:
        if vma.pid == refusal.pid and vma.start <= refusal.address < vma.end:
            return f": {vma.start:x}-{vma.end:x} ({human_bytes(vma.end - vma.start)})"
    return ""


def _change(page: SafeConsole, group: RefusalGroup, tried: bool) -> Text:
    """Says what the least change is, and how sure that is. tried: if changes were looked for."""
    if not group.change:
        return page.text(f"→ {Verified.NONE.value if tried else 'no change known'}", "dim")
    if group.verified is Verified.NONE:
        return page.text(f"→ {group.change} (not verified)", "yellow")
    return page.text(f"→ {group.change} {_MARKS[group.verified]}", "green")


def _curve(curve: Sequence[CurvePoint]) -> Iterator[str]:
    """What some values of a knob give, evenly spread, the least and the highest among them."""
    last = len(curve) - 1
    for k in sorted({last * k // (CURVE_SHOWN - 1) for k in range(CURVE_SHOWN)}):
        point = curve[k]
        more = more_memory(point.price.memory_added)
        yield f"{point.value} lets in {human_bytes(point.bytes)}, {more}"


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
