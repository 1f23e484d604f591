# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of refusals: what a status is called, why memory was refused, and what would change it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from mthp.predict.records import (
    Change,
    Proposal,
    Refusal,
    Status,
    Verified,
    WindowGate,
    WindowReport,
)
from mthp.report.phrases import plural
from mthp.words.events import ftrace
from mthp.words.results import ScanResult
from mthp.words.units import Geometry, format_size

RESULT_REASONS = {
    ScanResult.FAIL: "a page could not be brought in: a guard, poison or unreadable swap entry",
    ScanResult.SUCCEED: "collapsed to this order",
    ScanResult.NO_PTE_TABLE: "there is no page table here",
    ScanResult.PMD_MAPPED: "already mapped by its PMD",
    ScanResult.EXCEED_NONE_PTE: "more empty or zero-page PTEs than max_ptes_none allows",
    ScanResult.EXCEED_SWAP_PTE: "more swapped-out or marker PTEs than max_ptes_swap allows",
    ScanResult.EXCEED_SHARED_PTE: "more pages shared with other processes than max_ptes_shared allows",
    ScanResult.PTE_NON_PRESENT: "an entry is neither empty nor present",
    ScanResult.PTE_UFFD: "userfaultfd write-protects a page of the table",
    ScanResult.PTE_MAPPED_HUGEPAGE: "a folio of this order or larger is already in the window",
    ScanResult.LACK_REFERENCED_PAGE: "too few pages were used lately",
    ScanResult.PAGE_NULL: "a special or device page",
    ScanResult.SCAN_ABORT: "pages lie on NUMA nodes too far apart",
    ScanResult.PAGE_COUNT: "a page has references nobody can explain: pinned, or in an LRU batch",
    ScanResult.PAGE_LRU: "a page is not on the LRU",
    ScanResult.PAGE_LOCK: "a page is locked",
    ScanResult.PAGE_ANON: "a page is not anonymous",
    ScanResult.PAGE_LAZYFREE: "a page was given up by MADV_FREE and is clean",
    ScanResult.ANY_PROCESS: "the process is exiting, or THP is disabled for it",
    ScanResult.VMA_NULL: "the mapping went away",
    ScanResult.VMA_CHECK: "the mapping may not be collapsed to this order",
    ScanResult.ADDRESS_RANGE: "the mapping does not span the whole PMD range",
    ScanResult.DEL_PAGE_LRU: "a page could not be taken off the LRU",
    ScanResult.ALLOC_HUGE_PAGE_FAIL: "no free block of this order",
    ScanResult.CGROUP_CHARGE_FAIL: "the memory cgroup is at its limit",
    ScanResult.COPY_MC: "a page is poisoned and could not be copied",
}
"""What each result means, in plain words."""

_GATES = {
    WindowGate.EDGE: "the mapping covers its PMD range only in part",
    WindowGate.NOT_CHOSEN: "the order policy chose no window here",
    WindowGate.NOT_SCANNED: "the last full scan did not get here",
}
_NO_LIMIT = "max_ptes_none is neither 0 nor its maximum: no collapse below PMD order"


def status_text(status: Status) -> str:
    """The kernel's string of a result; the name of what is none, in capitals."""
    if isinstance(status, ScanResult):
        return status.string
    return status.value if isinstance(status, WindowGate) else status.name


def reason_text(refusal: Refusal) -> str:
    """Says in plain words why the pages were refused."""
    status = refusal.status
    if isinstance(status, ScanResult):
        return f"{'the table ended earlier: ' * refusal.ended_earlier}{RESULT_REASONS[status]}"
    if status is not WindowGate.TOO_FEW:
        return _GATES[status] if isinstance(status, WindowGate) else status.value
    if refusal.allowed_empty is None:
        return _NO_LIMIT
    most = f"at most {refusal.allowed_empty}" if refusal.allowed_empty else "no"
    return f"{most} empty PTEs allowed in the window"


def change_text(proposal: Proposal | None, geometry: Geometry) -> str:
    """Says what to do, and for how many pages if not for all; empty where nothing is known."""
    if proposal is None:
        return ""
    text = " and ".join(_one_change(change, geometry) for change in proposal.changes)
    part = proposal.grown < proposal.held
    return f"{text}, for {proposal.grown} of {proposal.held} pages" if part else text


def _one_change(change: Change, geometry: Geometry) -> str:
    count = len(change.ptes)
    return change.kind.words.format(
        knob=change.knob,
        value=change.value,
        size=geometry.size_name(change.order),
        more=plural(change.value, "page"),
        pages=plural(count, "page"),
        missing=plural(count, "missing page"),
        pinned=plural(count, "pinned page"),
        markers=plural(count, "guard or poison entry", "guard or poison entries"),
    )


@dataclass(frozen=True)
class RefusalGroup:
    """Refusals alike in (stage, status, order, change). example: the largest of them.

    pages: those that hold something. verified: the weakest of the group's.
    """

    example: Refusal
    change: str
    ranges: int
    pages: int
    span: int
    verified: Verified


def group_refusals(refusals: Iterable[Refusal], geometry: Geometry) -> list[RefusalGroup]:
    """Puts refusals that read the same together; most pages first."""

    def kind(refusal: Refusal) -> tuple[str, str, int, str]:
        order = -1 if refusal.order is None else refusal.order
        change = change_text(refusal.change, geometry)
        return refusal.stage.value, status_text(refusal.status), order, change

    sure = list(Verified)
    groups = []
    for (*_, change), members in groupby(sorted(refusals, key=kind), key=kind):
        alike = list(members)
        groups.append(
            RefusalGroup(
                example=max(alike, key=lambda r: (r.pages, r.span, -r.pid, -r.address)),
                change=str(change),
                ranges=len(alike),
                pages=sum(r.pages for r in alike),
                span=sum(r.span for r in alike),
                verified=max((r.verified for r in alike), key=sure.index),
            )
        )
    groups.sort(key=lambda group: (-group.pages, -group.span, kind(group.example)))
    return groups


def window_lines(window: WindowReport) -> Iterator[str]:
    """Says all that is known about the table at one address."""
    geometry = window.settings.geometry
    index, base = geometry.pte_index(window.address), geometry.pmd_addr(window.address)
    yield f"address     {window.address:#x}, PTE {index} of the table at {base:#x}"
    size = format_size(window.end - window.start)
    yield f"mapping     {window.start:#x}-{window.end:#x} ({size}) {window.name}".rstrip()
    if window.gate is not None:
        yield f"gate        {window.gate.name}: {window.gate.value}"
    else:
        highest = f"{geometry.size_name(window.highest)} (order {window.highest})"
        yield f"gate        open, up to {highest}"
    yield f"before      {window.before[0]}"
    yield f"            {window.before[1]}"
    yield f"after       {window.after[0]}"
    yield f"            {window.after[1]}"
    order = window.page_order
    yield f"now         {'no page' if order is None else f'in a folio of order {order}'}"
    for refusal in window.refusals:
        asked = "" if refusal.order is None else f" at order {refusal.order}"
        yield f"refused     {status_text(refusal.status)}{asked}: {reason_text(refusal)}"
        change = change_text(refusal.change, geometry) or "none found"
        yield f"change      {change} ({refusal.verified.value})"
    yield f"events      {len(window.events)} about this table"
    yield from ftrace(window.events)
