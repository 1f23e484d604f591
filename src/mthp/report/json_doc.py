# SPDX-License-Identifier: GPL-2.0-or-later
"""An outcome as one JSON document. docs/json-schema.md describes it, docs/schema/ checks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mthp.predict.records import (
    OrderUse,
    Outcome,
    ProcessUse,
    Refusal,
    Verified,
    VmaUse,
)
from mthp.report.basis import basis_values, caveat_values
from mthp.report.phrases import in_order, wasted_attempts
from mthp.report.refusals import change_text, reason_text, status_text
from mthp.words.resident import Resident
from mthp.words.units import Geometry

SCHEMA_VERSION = 1


def outcome_document(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON values: bytes, milliseconds and addresses as numbers, orders as keys."""
    return {
        "schema_version": SCHEMA_VERSION,
        "predicted": True,
        **basis_values(outcome.basis),
        "settings": outcome.settings.to_json(),
        "page_size": outcome.page_size,
        "pmd_order": outcome.pmd_order,
        "highest_order": outcome.highest_order,
        "processes": outcome.processes,
        "fixed_point": outcome.fixed_point,
        "complete": outcome.complete,
        "orders_before": _orders(outcome.orders_before, outcome.settings.geometry),
        "orders_after": _orders(outcome.orders_after, outcome.settings.geometry),
        "partly_mapped": {
            "before": asdict(outcome.partly_before),
            "after": asdict(outcome.partly_after),
        },
        "resident": _resident(outcome),
        "memory_added": outcome.memory_added,
        "swapped_in_bytes": outcome.swapped_in_bytes,
        "copied_bytes": outcome.copied_bytes,
        "flushed_bytes": outcome.effort.flushed_bytes,
        "collapsed_bytes": outcome.collapsed_bytes,
        "alloc_wasted": {
            "attempts": wasted_attempts(outcome),
            "bytes": outcome.refused.allocated_bytes,
        },
        "ipis": outcome.effort.ipis,
        "successes": asdict(outcome.successes),
        "refused": asdict(outcome.refused),
        "tlb": {
            "model": outcome.tlb,
            "before": outcome.tlb_before,
            "after": outcome.tlb_after,
            "lost_outside": outcome.effort.tlb_outside,
        },
        "clock": asdict(outcome.clock),
        "timeline": [point._asdict() for point in outcome.timeline],
        "others": None if outcome.others is None else asdict(outcome.others),
        "alternatives": [_alternative(*each) for each in outcome.alternatives.items()],
        "range": _range(outcome),
        "free_memory": outcome.free_memory,
        "short_of_memory": outcome.short_of_memory,
        "registered": [
            {
                "pid": pid,
                "registered": known,
                "taken": pid not in outcome.taken_off if known is None else known,
            }
            for pid, known in outcome.registered.items()
        ],
        "attempts": [
            {"order": order, "status": status.string, "count": outcome.attempts[order, status]}
            for order, status in in_order(outcome.attempts)
        ],
        "counters": {group: dict(values) for group, values in outcome.counters.items()},
        "torn": asdict(outcome.torn),
        "refusals": [_refusal(refusal, outcome.settings.geometry) for refusal in outcome.refusals],
        "vmas": [_use(vma) for vma in outcome.vmas],
        "by_process": [_use(process) for process in outcome.by_process],
        **caveat_values(outcome.basis),
        "warnings": list(outcome.warnings),
        "seconds": outcome.seconds,
        "extra": dict(outcome.extra),
    }


def _orders(orders: Mapping[int, OrderUse], geometry: Geometry) -> dict[str, dict[str, int]]:
    return {
        str(order): {**asdict(use), "held": use.folios * geometry.order_bytes(order)}
        for order, use in sorted(orders.items())
    }


def _resident(outcome: Outcome) -> dict[str, Any] | None:
    if outcome.resident is None:
        return None
    processes = [
        {"pid": each.pid, "name": each.name, **_sums(each.resident)} for each in outcome.by_process
    ]
    return {**_sums(outcome.resident), "processes": processes}


def _sums(resident: Resident) -> dict[str, Any]:
    mappings = [{**each._asdict(), "kind": each.kind.value} for each in resident.mappings]
    return {**resident.bytes(), "mappings": mappings}


def _range(outcome: Outcome) -> dict[str, Any] | None:
    if outcome.bounds is None:
        return None
    unknown, ends = outcome.bounds
    return {
        "unknown": [each.value for each in unknown],
        "collapsed_bytes": None if ends is None else list(ends),
    }


def _alternative(name: str, other: Outcome) -> dict[str, Any]:
    return {
        "name": name,
        "settings": other.settings.to_json(),
        "large_bytes": other.large_bytes,
        "memory_added": other.memory_added,
        "last_collapse_ms": other.clock.last_collapse_ms,
    }


def _refusal(refusal: Refusal, geometry: Geometry) -> dict[str, Any]:
    return {
        "pid": refusal.pid,
        "address": refusal.address,
        "pages": refusal.pages,
        "mapped": refusal.mapped,
        "distinct": refusal.distinct,
        "span": refusal.span,
        "order": refusal.order,
        "stage": refusal.stage.value,
        "status": status_text(refusal.status),
        "reason": reason_text(refusal, geometry),
        "change": change_text(refusal.change, geometry),
        "verified": refusal.verified.name.lower(),
        "price": asdict(refusal.change.price)
        if refusal.change is not None and refusal.verified is Verified.RUN
        else None,
    }


def _use(use: VmaUse | ProcessUse) -> dict[str, Any]:
    sizes = {
        when: {str(order): size for order, size in sorted(by_order.items())}
        for when, by_order in (("before", use.before), ("after", use.after))
    }
    document = {**use._asdict(), **sizes}
    document.pop("resident", None)  # it stands with those of all processes
    return document
