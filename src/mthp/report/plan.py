# SPDX-License-Identifier: GPL-2.0-or-later
"""An image under settings given beside those that are set: memory, TLB, work and time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console

from mthp.plan.records import TLB_ENTRIES, BulkVerdict, Comparison, Spent, TlbKind
from mthp.report.basis import basis_values, caveat_values, render_basis, render_caveats
from mthp.report.page import SafeConsole
from mthp.report.phrases import duration, more_memory, order_name, percent, plural, short_time
from mthp.report.sweep import plan_values, sizes_text, within_text, writes
from mthp.report.timeline import render_timeline
from mthp.words.costs import costs_document
from mthp.words.units import human_bytes

SCHEMA_VERSION = 1
MAPPINGS_SHOWN = 10
_KINDS = {
    TlbKind.X86: "x86, one a page or PMD",
    TlbKind.AMD: "AMD, 16 and 32 KiB of a folio too",
    TlbKind.ARM64: "arm64, 64 KiB of a folio too",
}


def render_plan(comparison: Comparison, console: Console, *, verbose: bool = False) -> None:
    """Print both plans side by side. verbose: every mapping that memory is added to, every assumption."""
    page = SafeConsole(console, verbose=verbose)
    render_basis(page, comparison.basis)
    page.line(_headline(comparison), "bold")
    changes = writes(comparison.now.settings, comparison.given.settings)
    if changes:
        page.heading("To set it (this writes nothing)")
        for path, value in changes:
            page.console.print(page.text(f"  echo {value} > {path}"), soft_wrap=True)
    columns = [("", "left"), ("as set", "right"), ("as given", "right")]
    page.heading("Anonymous memory by folio size, when all has collapsed")
    page.table(columns, size_rows(comparison), indent=0)
    page.heading("What it comes to")
    page.table(columns, figure_rows(comparison), indent=0)
    page.line(come_back_text(comparison), indent=0)
    _added(page, comparison)
    if comparison.timelines is not None:
        for name, points in zip(("as set", "as given"), comparison.timelines, strict=True):
            if points or name == "as given":
                render_timeline(page, points, name)
    page.console.print()
    page.line(grounds_text(comparison), "dim")
    render_caveats(page, comparison.basis)


def _headline(comparison: Comparison) -> str:
    now, given = comparison.now, comparison.given
    if now.settings == given.settings:
        return f"Predicted, with the settings as they are: {_in_short(given)}."
    return f"Predicted: {_in_short(given)}; as set now, {_in_short(now)}."


def _in_short(plan: BulkVerdict) -> str:
    limit = plan.settings.max_ptes_none
    text = (
        f"{sizes_text(plan.settings)} with max_ptes_none {limit} gives {percent(plan.large, plan.mapped)} "
        f"of {human_bytes(plan.mapped)} in large folios and {more_memory(plan.memory_added)}"
    )
    if plan.last_collapse_ms is None:
        return f"{text}, as nothing collapses"
    return f"{text} within {duration(plan.last_collapse_ms)}"


def size_rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    """Bytes by size, and how many collapses there are to it."""
    geometry, plans = comparison.now.settings.geometry, (comparison.now, comparison.given)
    orders = {order for plan in plans for order in (*plan.after, *plan.windows)}
    for order in sorted(orders):
        cells = []
        for plan in plans:
            new = plan.windows.get(order, 0)
            cells.append(human_bytes(plan.after[order]) + (f", {new:,} new" if new else ""))
        yield (order_name(geometry, order), *cells)


def figure_rows(comparison: Comparison) -> Iterator[tuple[str, str, str]]:
    """What both plans come to: names and figures."""
    plans = comparison.now, comparison.given
    figures = (
        _figures(plan, has_blocks, comparison)
        for plan, has_blocks in zip(plans, comparison.has_blocks, strict=True)
    )
    for (name, now), (_, given) in zip(*figures, strict=True):
        yield name, now, given


def _figures(
    plan: BulkVerdict, has_blocks: int | None, comparison: Comparison
) -> Iterator[tuple[str, str]]:
    """What a plan comes to: names and figures."""
    cpus, costs = comparison.cpus, comparison.costs
    yield "in large folios", percent(plan.large, plan.mapped)
    yield "memory added", human_bytes(plan.memory_added)
    yield "mapped by PMDs", percent(round(plan.reach * plan.mapped), plan.mapped)
    for kind, name in _KINDS.items():
        yield f"TLB entries: {name}", f"{sum(plan.entries(kind).values()):,}"
        yield f"  {TLB_ENTRIES:,} of them reach", percent(plan.reached(kind), plan.mapped)
    yield "copied", human_bytes(plan.copied_bytes)
    yield "cleared", human_bytes(plan.collapsed_bytes - plan.copied_bytes)
    has = plan.collapsed_bytes if has_blocks is None else has_blocks
    text = "all" if has == plan.collapsed_bytes else percent(has, plan.collapsed_bytes)
    yield "new folios with a block free now", text if plan.windows else "–"
    yield "flushes of a PMD's range", f"{plan.flushes:,}"
    yield "IPIs", f"{plan.flushes * (cpus - 1):,}"
    yield "last collapse within", within_text(plan)
    spent = Spent.of(plan, costs)
    yield "khugepaged's CPU time: collapses", _time_text(spent.collapsing)
    yield "  scanning, until then, at most", _time_text(spent.scanning)
    yield "one collapse stops the process: on average", _time_text(spent.mean)
    yield "  at most (mmap_lock held for writing)", _time_text(spent.longest)


def come_back_text(comparison: Comparison) -> str:
    """What memory could come back, as captured."""
    partly = comparison.partly
    if not partly.folios:
        text = "No large folio is mapped in part, as captured"
    else:
        text = (
            f"{plural(partly.folios, 'large folio')} {'is' if partly.folios == 1 else 'are'} mapped in part, "
            f"as captured: {human_bytes(partly.held)} that nothing here maps; reclaim gets "
            f"{human_bytes(partly.reclaimable)} of it back by splitting"
        )
    if comparison.zero_filled is None:
        return (
            f"{text}. How many pages are zero-filled is not known: mthp snap --deep --zeros looks."
        )
    size, large = map(human_bytes, comparison.zero_filled)
    text += f". {size} hold nothing but zeros, {large} of them in large folios"
    if comparison.underused is None:
        return f"{text}."
    now, given = (
        f"{each.folios:,}, with {human_bytes(each.zeros)} of zeros" for each in comparison.underused
    )
    return f"{text}. Reclaim splits huge folios that are underused: as set {now}; as given {given}."


def _time_text(nanoseconds: float | None) -> str:
    """A dash where it is not known."""
    return "–" if nanoseconds is None else short_time(nanoseconds)


def _added(page: SafeConsole, comparison: Comparison) -> None:
    """Where the memory is added."""
    added = sorted(comparison.given.added_by_vma.items(), key=lambda item: (-item[1], item[0]))
    if not added:
        return
    page.heading("Memory added, as given, by mapping")
    shown = added if page.verbose else added[:MAPPINGS_SHOWN]
    rows = []
    for (pid, start), size in shown:
        process, mapping = comparison.names[pid, start]
        rows.append((f"{process} ({pid})", f"{start:x}", mapping or "anonymous", human_bytes(size)))
    page.table([("process", "left"), ("at", "keep"), ("mapping", "left"), ("added", "right")], rows)
    if rest := added[len(shown) :]:
        more = human_bytes(sum(size for _, size in rest))
        page.line(f"… {plural(len(rest), 'mapping')} more, {more}: --verbose", "dim")


def grounds_text(comparison: Comparison) -> str:
    """How the answer was made, and what is not in it."""
    plan = comparison.given
    why = f" ({plan.all_engine})" if plan.all_engine else ""
    tables = plural(plan.counted_tables + plan.engine_tables, "table")
    return (
        f"At the fixed point, as given; of {tables} that come to windows, {plan.engine_tables:,} went to the "
        f"engine{why}; of the others occupancy decides. The time is an upper bound. Not in it: what page "
        "faults make of the same sizes, and attempts that are refused late, which flush too (mthp collapse "
        "with these settings has them); memory against time: --timeline, by the engine. TLB entries are a "
        "model, of folios that are mapped where they lie aligned. CPU time is reckoned by "
        f"{_sources(comparison)}."
    )


def _sources(comparison: Comparison) -> str:
    """Where the costs are from that were needed."""
    sources: dict[str, list[str]] = {}
    for name in ("stop", "copy_page", "clear_page", "allocate", "scan_pte"):
        known = comparison.costs.get(name)
        sources.setdefault("nothing known" if known is None else known.source, []).append(name)
    return "; ".join(f"{', '.join(names)}: {source}" for source, names in sources.items())


def plan_document(comparison: Comparison) -> dict[str, Any]:
    """Both plans as JSON values: bytes as numbers."""
    changes = writes(comparison.now.settings, comparison.given.settings)
    return {
        "schema_version": SCHEMA_VERSION,
        "predicted": True,
        **basis_values(comparison.basis),
        "now": _values(comparison, comparison.now),
        "given": _values(comparison, comparison.given),
        "has_blocks_bytes": dict(zip(("now", "given"), comparison.has_blocks, strict=True)),
        "partly_mapped": asdict(comparison.partly),
        "zero_filled": None
        if comparison.zero_filled is None
        else dict(zip(("bytes", "in_large_folios"), comparison.zero_filled, strict=True)),
        "underused": None
        if comparison.underused is None
        else {
            name: each._asdict()
            for name, each in zip(("now", "given"), comparison.underused, strict=True)
        },
        "timelines": None
        if comparison.timelines is None
        else {
            name: [point._asdict() for point in points]
            for name, points in zip(("now", "given"), comparison.timelines, strict=True)
        },
        "costs": costs_document(comparison.costs)["costs"],
        "writes": [{"path": path, "value": value} for path, value in changes],
        **caveat_values(comparison.basis),
        "seconds": comparison.seconds,
    }


def _values(comparison: Comparison, plan: BulkVerdict) -> dict[str, Any]:
    spent = Spent.of(plan, comparison.costs)._asdict()
    return {
        **plan_values(plan),
        "flushes": plan.flushes,
        "ipis": plan.flushes * (comparison.cpus - 1),
        "spent_ns": {name: None if ns is None else round(ns) for name, ns in spent.items()},
    }
