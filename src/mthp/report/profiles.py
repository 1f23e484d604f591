# SPDX-License-Identifier: GPL-2.0-or-later
"""Where two profiles differ and why, and what each would do differently to one target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from mthp.predict.records import OrderUse, Outcome, Refusal, Verified
from mthp.report.page import SafeConsole
from mthp.report.phrases import duration, in_order, order_name, plural, wasted_attempts
from mthp.report.refusals import change_text, reason_text, status_text
from mthp.words.profiles import Profile, differences
from mthp.words.units import Geometry, human_bytes

SCHEMA_VERSION = 1
REFUSALS_SHOWN = 5


@dataclass(frozen=True)
class Difference:
    """One number that is not the same under two profiles. key: where --json files it."""

    section: str
    key: str
    label: str
    a: int
    b: int
    unit: str = ""

    def show(self, value: int) -> str:
        """The number with its unit, for reading."""
        if self.unit == "bytes":
            return human_bytes(value)
        return duration(value) if self.unit == "ms" else f"{value:,}"


def render_differences(a: Profile, b: Profile, console: Console) -> None:
    """Print each point where the profiles differ, what each does there, and why it changed."""
    page = SafeConsole(console)
    points = differences(a, b)
    page.line(f"{a.name} ({a.kernels}) and {b.name} ({b.kernels})", "bold")
    if not points:
        page.line("No difference between these profiles.")
        return
    page.line(f"They differ in {plural(len(points), 'point')}:")
    width = max(len(a.name), len(b.name))
    for point, in_a, in_b, reason in points:
        page.heading(point)
        page.line(f"{a.name:<{width}}  {in_a.value}", indent=2)
        page.line(f"{b.name:<{width}}  {in_b.value}", indent=2)
        page.line(f"why: {reason}", "dim", indent=2)


def outcome_differences(a: Outcome, b: Outcome) -> list[Difference]:
    """The numbers that differ between two outcomes of one target; how long each took apart."""
    geometry = a.settings.geometry
    found: list[Difference] = []

    def compare(section: str, key: str, label: str, in_a: int, in_b: int, unit: str = "") -> None:
        if in_a != in_b:
            found.append(Difference(section, key, label, in_a, in_b, unit))

    for order in sorted({*a.orders_after, *b.orders_after}):
        use_a, use_b = (each.orders_after.get(order, OrderUse(0, 0)) for each in (a, b))
        at, key = order_name(geometry, order), "orders_after"
        compare(key, f"{order}.folios", f"{at}, folios", use_a.folios, use_b.folios)
        compare(key, f"{order}.bytes", f"{at}, bytes", use_a.bytes, use_b.bytes, "bytes")
    for order, result in in_order({*a.attempts, *b.attempts}):
        label = f"{order_name(geometry, order)}, {result.string}"
        in_a, in_b = (each.attempts.get((order, result), 0) for each in (a, b))
        compare("attempts", f"{order}.{result.string}", label, in_a, in_b)
    held_a, held_b = _refused_bytes(a), _refused_bytes(b)
    for gate in sorted({*held_a, *held_b}):
        stage, status, order = gate
        key, label = f"{stage}.{status}", f"{stage}: {status}"
        if order >= 0:
            key, label = f"{key}.{order}", f"{label} at {order_name(geometry, order)}"
        compare("refusals", key, label, held_a.get(gate, 0), held_b.get(gate, 0), "bytes")
    totals_b = _totals(b)
    for key, (label, value, unit) in _totals(a).items():
        compare("totals", key, label, value, totals_b[key][1], unit)
    counters_a, counters_b = _counters(a), _counters(b)
    for key in sorted({*counters_a, *counters_b}):
        compare("counters", key, key, counters_a.get(key, 0), counters_b.get(key, 0))
    return found


def changed_mappings(a: Outcome, b: Outcome) -> int:
    """Mappings that end with other folios: they may, though the totals are the same."""
    ends = [
        {(vma.pid, vma.start): {order: n for order, n in vma.after.items() if n} for vma in each}
        for each in (a.vmas, b.vmas)
    ]
    return sum(ends[0].get(place) != ends[1].get(place) for place in {*ends[0], *ends[1]})


def changed_refusals(a: Outcome, b: Outcome) -> list[tuple[Refusal | None, Refusal | None]]:
    """Ranges that are refused under one profile alone, or otherwise, by address.

    How sure the change is does not count.
    """
    sides = [
        {(r.pid, r.address, r.span): r._replace(verified=Verified.NONE) for r in each.refusals}
        for each in (a, b)
    ]
    pairs = [(sides[0].get(place), sides[1].get(place)) for place in sorted({*sides[0], *sides[1]})]
    return [pair for pair in pairs if pair[0] != pair[1]]


def render_outcome_diff(a: Outcome, b: Outcome, console: Console) -> None:
    """Print what two profiles make of one target, where it is not the same. All of it predicted."""
    page = SafeConsole(console)
    page.line(
        f"{a.basis.target}: {a.basis.profile} and {b.basis.profile}, predicted (nothing here is observed)",
        "bold",
    )
    for outcome in (a, b) if a.settings != b.settings else (a,):
        page.line(f"settings: {outcome.settings.describe()}")
    for outcome in (a, b):
        if not outcome.complete:
            page.line(f"INCOMPLETE under {outcome.basis.profile}: compare with care", "bold yellow")
    found = outcome_differences(a, b)
    mappings = changed_mappings(a, b)
    refusals = changed_refusals(a, b)
    if not found and not mappings and not refusals and a.warnings == b.warnings:
        page.line("No difference on this target.", "bold")
        return
    titles = {
        "orders_after": "Folios afterwards",
        "attempts": "Attempts",
        "refusals": "Why the rest did not",
        "totals": "Effort and result",
        "counters": "Counters",
    }
    for section, title in titles.items():
        rows = [
            (each.label, each.show(each.a), each.show(each.b), _change(each))
            for each in found
            if each.section == section
        ]
        if rows:
            page.heading(title)
            columns = [(a.basis.profile, "right"), (b.basis.profile, "right"), ("change", "right")]
            page.table([("", "left"), *columns], rows)
    if mappings:
        page.heading(f"{plural(mappings, 'mapping ends', 'mappings end')} with other folios")
    if refusals:
        page.heading(f"{plural(len(refusals), 'range is', 'ranges are')} refused otherwise")
        width = max(len(a.basis.profile), len(b.basis.profile))
        for in_a, in_b in refusals[:REFUSALS_SHOWN]:
            place = in_a or in_b
            assert place is not None
            page.line(
                f"{place.address:#x}, {plural(place.span, 'PTE')} of pid {place.pid}", indent=2
            )
            for profile, refusal in ((a.basis.profile, in_a), (b.basis.profile, in_b)):
                how = _refused_how(refusal, a.settings.geometry)
                page.line(f"{profile:<{width}}  {how}", indent=4)
        if len(refusals) > REFUSALS_SHOWN:
            page.line(f"… and {len(refusals) - REFUSALS_SHOWN:,} more", "dim", 2)
    for one, other in ((a, b), (b, a)):
        alone = [words for words in one.warnings if words not in other.warnings]
        page.bullets(f"Warnings under {one.basis.profile} alone", alone, "yellow")


def differences_document(
    a: Profile, b: Profile, outcomes: tuple[Outcome, Outcome] | None = None
) -> dict[str, Any]:
    """Plain JSON values: the points and, given what each made of one target, what differs there."""
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "profiles": [a.name, b.name],
        "points": [
            {
                "point": point,
                "a": {"name": in_a.name, "what": in_a.value},
                "b": {"name": in_b.name, "what": in_b.value},
                "reason": reason,
            }
            for point, in_a, in_b, reason in differences(a, b)
        ],
    }
    if outcomes is not None:
        found = outcome_differences(*outcomes)
        mappings = changed_mappings(*outcomes)
        refusals = changed_refusals(*outcomes)
        warnings = [list(outcome.warnings) for outcome in outcomes]
        document["target"] = outcomes[0].basis.target
        document["predicted"] = True
        document["complete"] = all(outcome.complete for outcome in outcomes)
        document["same"] = not (found or mappings or refusals or warnings[0] != warnings[1])
        document["mappings_changed"] = mappings
        document["refusals_changed"] = len(refusals)
        document["warnings"] = dict(zip("ab", warnings, strict=True))
        document["differs"] = [
            {"section": each.section, "key": each.key, "a": each.a, "b": each.b} for each in found
        ]
    return document


def _refused_how(refusal: Refusal | None, geometry: Geometry) -> str:
    if refusal is None:
        return "not refused as such a range"
    change = change_text(refusal.change, geometry)
    text = f"{refusal.stage.value}: {status_text(refusal.status)}: {reason_text(refusal, geometry)}"
    return f"{text}; {change}" if change else text


def _change(difference: Difference) -> str:
    change = difference.b - difference.a
    return f"{'+' if change > 0 else '-'}{difference.show(abs(change))}"


def _refused_bytes(outcome: Outcome) -> dict[tuple[str, str, int], int]:
    """The memory held by refused ranges, by (stage, status, order); -1 stands for no order."""
    held: dict[tuple[str, str, int], int] = {}
    for refusal in outcome.refusals:
        order = -1 if refusal.order is None else refusal.order
        kind = refusal.stage.value, status_text(refusal.status), order
        held[kind] = held.get(kind, 0) + refusal.pages * outcome.page_size
    return held


def _totals(outcome: Outcome) -> Mapping[str, tuple[str, int, str]]:
    """The totals that are compared: key -> (label, value, unit)."""
    effort, clock = outcome.effort, outcome.clock
    return {
        "collapsed_bytes": ("bytes collapsed", outcome.collapsed_bytes, "bytes"),
        "memory_added": ("memory added", outcome.memory_added, "bytes"),
        "swapped_in_bytes": ("swapped in", outcome.swapped_in_bytes, "bytes"),
        "copied_bytes": ("bytes copied", outcome.copied_bytes, "bytes"),
        "flushed_bytes": ("bytes flushed", effort.flushed_bytes, "bytes"),
        "ipis": ("IPIs sent", effort.ipis, ""),
        "tlb.lost_outside": (
            "TLB entries lost outside the range, a CPU, at most",
            effort.tlb_outside,
            "",
        ),
        "tlb.after": ("TLB entries needed afterwards", outcome.tlb_after, ""),
        "alloc_wasted.attempts": ("attempts that wasted", wasted_attempts(outcome), ""),
        "alloc_wasted.bytes": ("allocations wasted", outcome.refused.allocated_bytes, "bytes"),
        "clock.full_scans": ("full scans", clock.full_scans, ""),
        "clock.wakeups": ("wakeups", clock.wakeups, ""),
        "clock.scan_sleep_ms": ("asleep, scan_sleep", clock.scan_sleep_ms, "ms"),
        "clock.alloc_sleep_ms": ("asleep, alloc_sleep", clock.alloc_sleep_ms, "ms"),
    }


def _counters(outcome: Outcome) -> dict[str, int]:
    return {
        f"{group}.{name}": value
        for group, values in outcome.counters.items()
        for name, value in values.items()
    }
