# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of refusals: what a status is called, why memory was refused, and what would change it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter, itemgetter

from mthp.predict.records import (
    Change,
    ChangeKind,
    PageAt,
    Price,
    Proposal,
    Refusal,
    Scope,
    Status,
    Verified,
    WindowGate,
    WindowReport,
)
from mthp.report.phrases import more_memory, plural
from mthp.words.events import ftrace
from mthp.words.results import ScanResult
from mthp.words.units import Geometry, format_size, human_bytes

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
    "TOO_SHORT": "the mapping holds no aligned {pmd} range",
    WindowGate.EDGE.value: "the mapping begins or ends within this aligned {pmd} range",
    WindowGate.NOT_CHOSEN.value: "the order policy chose no window here",
    WindowGate.NOT_SCANNED.value: "the last full scan did not get here",
    WindowGate.NOT_REGISTERED.value: "the process is not on khugepaged's list: it is not scanned",
}
"""What a gate means here, by its name; the others' own words do."""
_NO_LIMIT = "max_ptes_none is neither 0 nor its maximum: no collapse below PMD order"


def status_text(status: Status) -> str:
    """The kernel's string of a result; the name of what is none, in capitals."""
    if isinstance(status, ScanResult):
        return status.string
    return status.value if isinstance(status, WindowGate) else status.name


def reason_text(refusal: Refusal, geometry: Geometry) -> str:
    """Says in plain words why the pages were refused."""
    status = refusal.status
    if status is ScanResult.EXCEED_NONE_PTE and refusal.allowed_empty == 0:
        return "a PTE is empty, and none may be filled where userfaultfd is registered"
    if isinstance(status, ScanResult):
        return f"{'the table ended earlier: ' * refusal.ended_earlier}{RESULT_REASONS[status]}"
    if status is not WindowGate.TOO_FEW:
        words = _GATES.get(status_text(status), str(status.value))
        return words.format(pmd=human_bytes(geometry.pmd_size))
    if refusal.allowed_empty is None:
        return _NO_LIMIT
    order = geometry.pmd_order if refusal.order is None else refusal.order
    most = f"more than {refusal.allowed_empty}" if refusal.allowed_empty else "some"
    return (
        f"{most} of the {1 << order} pages of each aligned {geometry.size_name(order)} are missing"
    )


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
        pmd=human_bytes(geometry.pmd_size),
        two_pmds=human_bytes(2 * geometry.pmd_size),
        more=plural(change.value, "page"),
        blocks=plural(change.value, "block"),
        pages=plural(count, "page"),
        missing=plural(count, "missing page"),
        pinned=plural(count, "pinned page"),
        markers=plural(count, "guard or poison entry", "guard or poison entries"),
    )


def price_text(price: Price) -> str:
    """Says what a change costs: memory, translations, copying."""
    tlb = f"{price.tlb_entries:+,} TLB entries" if price.tlb_entries else "as many TLB entries"
    return f"{more_memory(price.memory_added)}, {tlb}, {human_bytes(price.copied_bytes)} copied"


@dataclass(frozen=True)
class CurvePoint:
    """What a knob at a value makes of a group: bytes that are then in larger folios, and the price."""

    value: int
    bytes: int
    price: Price


@dataclass(frozen=True)
class RefusalGroup:
    """Refusals alike in (stage, status, order, change). example: the largest of them.

    pages: those that hold something; mapped: those of them that hold memory; distinct: how many pages of
    memory those are. verified: the weakest of
    the group's. everywhere: the change is to settings, and its price and curve are those for all
    refusals that take it, of other groups too. price: of the change for all of them; where some take
    the change of others, as much again by their pages. curve: where the change is to raise one knob,
    what each of its values gives.
    """

    example: Refusal
    change: str
    ranges: int
    pages: int
    mapped: int
    distinct: int
    span: int
    verified: Verified
    everywhere: bool
    price: Price | None
    curve: tuple[CurvePoint, ...]


def group_refusals(refusals: Iterable[Refusal], geometry: Geometry) -> list[RefusalGroup]:
    """Puts refusals that read the same together; most pages first."""

    # Many are alike, and most take the change of another: texts are made for each object once.
    same: dict[tuple[object, ...], list[Refusal]] = {}
    by_kind: dict[tuple[str, str, int, str], list[Refusal]] = {}
    for refusal in refusals:
        objects = refusal.stage, id(refusal.status), refusal.order, id(refusal.change)
        if objects not in same:
            order = -1 if refusal.order is None else refusal.order
            text = change_text(_of_any_value(refusal.change), geometry)
            kind = refusal.stage.value, status_text(refusal.status), order, text
            same[objects] = by_kind.setdefault(kind, [])
        same[objects].append(refusal)
    kinds = sorted(by_kind.items())
    with_change: dict[str, list[Refusal]] = {}
    for (*_, text), alike in kinds:
        with_change.setdefault(text, []).extend(alike)
    sure = list(Verified)
    groups = []
    for (*_, text), alike in kinds:
        pages, mapped, distinct, spans = (
            [*map(attrgetter(name), alike)] for name in ("pages", "mapped", "distinct", "span")
        )
        most = max(pages)
        largest = (r for r, size in zip(alike, pages, strict=True) if size == most)
        example = max(largest, key=lambda r: (r.span, -r.pid, -r.address))
        everywhere = _is_of_settings(example)
        priced = with_change[text] if everywhere else alike
        curve = tuple(_curve(priced, geometry))
        changes = {id(refusal.change): refusal.change for refusal in alike}
        groups.append(
            RefusalGroup(
                example=example,
                change=change_text(max(changes.values(), key=_raised), geometry),
                ranges=len(alike),
                pages=sum(pages),
                mapped=sum(mapped),
                distinct=sum(distinct),
                span=sum(spans),
                verified=max({r.verified for r in alike}, key=sure.index),
                everywhere=everywhere,
                price=_price(priced, geometry),
                curve=curve,
            )
        )
    groups.sort(key=lambda group: (-group.distinct, -group.pages, -group.span))
    return groups


def _is_of_settings(refusal: Refusal) -> bool:
    """Whether the change is one to settings alone."""
    if refusal.change is None:
        return False
    return all(change.kind.scope is Scope.SETTINGS for change in refusal.change.changes)


def _raised(proposal: Proposal | None) -> list[int]:
    """The value that it raises a knob to, if it is one knob."""
    changes = () if proposal is None else proposal.changes
    values = [change.value for change in changes if change.kind is ChangeKind.RAISE_KNOB]
    return values if len(values) == 1 else []


def _of_any_value(proposal: Proposal | None) -> Proposal | None:
    """The same for all that raise the same knob, if it is one."""
    if proposal is None or sum(c.kind is ChangeKind.RAISE_KNOB for c in proposal.changes) != 1:
        return proposal
    changes = (
        replace(change, value=0) if change.kind is ChangeKind.RAISE_KNOB else change
        for change in proposal.changes
    )
    return replace(proposal, changes=tuple(changes))


class _Prices:
    """What the changes of some refusals cost.

    What is not made to single pages was tried for a whole table, and counts once for each.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.pages = self._tried = 0
        self._tables: dict[tuple[object, ...], Price] = {}

    def add(self, refusals: Sequence[Refusal]) -> None:
        """Count some more."""
        self.pages += sum(map(attrgetter("pages"), refusals))
        for refusal in refusals:
            if refusal.verified is not Verified.RUN or refusal.change is None:
                continue
            changes = refusal.change.changes
            wide = all(change.kind.scope is not Scope.WINDOW for change in changes)
            place = self.geometry.pmd_addr(refusal.address) if wide else refusal.address
            self._tables[refusal.pid, place, changes] = refusal.change.price
            self._tried += refusal.pages

    @property
    def price(self) -> Price | None:
        """Of all of them, as much for each page where not all were run; None where none was run."""
        whole = sum(self._tables.values(), Price())
        return whole.scaled(self.pages, self._tried) if self._tried else None


def _price(refusals: Sequence[Refusal], geometry: Geometry) -> Price | None:
    prices = _Prices(geometry)
    prices.add(refusals)
    return prices.price


def _curve(refusals: Sequence[Refusal], geometry: Geometry) -> Iterator[CurvePoint]:
    """What each value of the knob gives that they raise: all that needs as much, or less."""
    changes = {id(refusal.change): refusal.change for refusal in refusals}
    raised = {each: max(_raised(made), default=None) for each, made in changes.items()}
    values = ((raised[id(refusal.change)], refusal) for refusal in refusals)
    prices = _Prices(geometry)
    with_value = sorted(((v, r) for v, r in values if v is not None), key=itemgetter(0))
    for value, alike in groupby(with_value, key=itemgetter(0)):
        prices.add([refusal for _, refusal in alike])
        yield CurvePoint(value, prices.pages * geometry.page_size, prices.price or Price())


def _page_text(page: PageAt) -> str:
    """Says what is at an address."""
    return page.what.value.format(order=page.order)


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
    if window.before[0]:
        yield f"before      {window.before[0]}"
        yield f"            {window.before[1]}"
        yield f"after       {window.after[0]}"
        yield f"            {window.after[1]}"
    if window.page_before != window.page_now:
        yield f"was         {_page_text(window.page_before)}"
    yield f"now         {_page_text(window.page_now)}"
    for refusal in window.refusals:
        asked = "" if refusal.order is None else f" at order {refusal.order}"
        reason = reason_text(refusal, geometry)
        yield f"refused     {status_text(refusal.status)}{asked}: {reason}"
        change = change_text(refusal.change, geometry) or "none found"
        yield f"change      {change} ({refusal.verified.value})"
        if refusal.change is not None and refusal.verified is Verified.RUN:
            yield f"price       {price_text(refusal.change.price)}"
    if window.torn:
        yield "torn        the table changed while it was read: why it is so cannot be said"
    yield f"events      {len(window.events)} about this table"
    yield from ftrace(window.events)
