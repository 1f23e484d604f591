# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that is known about the window at one address."""

from __future__ import annotations

from typing import NamedTuple

from mthp.image.runs import PageKind, encode_runs, folio_runs, pte_runs
from mthp.image.snapshot import Snapshot
from mthp.mm.mm_types import Vma, vma_is_anonymous
from mthp.predict.explain import highest_order, vma_gate
from mthp.predict.outcome import Request
from mthp.predict.records import Outcome, PageAt, PageIs, WindowReport
from mthp.predict.resident import modelled
from mthp.words.events import Event, OrderWalk, PassedBy, singly
from mthp.words.resident import MappingKind
from mthp.worlds.build import BuiltWorld
from mthp.worlds.render import Renderer


def find_mapping(world: BuiltWorld, address: int) -> Vma | None:
    """The mapping that holds address; of several processes, the first."""
    for vma in world.vmas:
        if vma.vm_start <= address < vma.vm_end:
            return vma
    return None


class TableNow(NamedTuple):
    """The state strings (folios, ptes) of a table's part in a mapping, and what is at one address."""

    lines: tuple[str, str]
    page: PageAt


def table_now(world: BuiltWorld, vma: Vma, address: int, snapshot: Snapshot | None) -> TableNow:
    """What the table at an address holds now. Not a step."""
    page = page_at(world, vma, address, snapshot)
    lines = table_lines(world, vma, address) if modelled([vma]) else ("", "")
    return TableNow(lines, page)


def table_lines(world: BuiltWorld, vma: Vma, address: int) -> tuple[str, str]:
    """The two state strings (folios, ptes) of the part of the table that belongs to vma."""
    geometry = world.kernel.geometry
    base = max(geometry.pmd_addr(address), vma.vm_start)
    end = min(geometry.pmd_addr(address) + geometry.pmd_size, vma.vm_end)
    folios, entries = Renderer(world.kernel).pages(vma, base, end)
    return encode_runs(folio_runs(folios)), encode_runs(pte_runs(entries, base, geometry))


_PAGES = {
    PageKind.FOLIO: PageIs.FOLIO,
    PageKind.ZERO: PageIs.ZERO,
    PageKind.HUGE_ZERO: PageIs.ZERO,
    PageKind.GUARD: PageIs.GUARD,
}
_SPECIAL = {
    None: PageIs.SWAP,
    "hwpoison": PageIs.HWPOISON,
    "migration": PageIs.MIGRATION,
    "device": PageIs.PRIVATE,
    "marker": PageIs.MARKER,
}
_NOT_MODELLED = {
    MappingKind.ANONYMOUS: PageIs.NONE,
    MappingKind.FILE: PageIs.FILE,
    MappingKind.SHMEM: PageIs.SHMEM,
    MappingKind.SHARED: PageIs.SHARED,
    MappingKind.HUGETLB: PageIs.HUGETLB,
    MappingKind.DEVICE: PageIs.DEVICE,
    MappingKind.SPECIAL: PageIs.SPECIAL,
}


def page_at(world: BuiltWorld, vma: Vma, address: int, snapshot: Snapshot | None) -> PageAt:
    """What is at an address of a mapping. Not a step."""
    page_size = world.kernel.geometry.page_size
    base = address & ~(page_size - 1)
    (token,), _ = Renderer(world.kernel).pages(vma, base, base + page_size)
    if token.kind is PageKind.NONE:
        return PageAt(_NOT_MODELLED[_kind(vma, snapshot)])
    if token.kind is PageKind.SWAP:
        return PageAt(_SPECIAL[token.special_swap])
    return PageAt(_PAGES[token.kind], token.order)


def _kind(vma: Vma, snapshot: Snapshot | None) -> MappingKind:
    """What is behind the pages of a mapping, as the snapshot has it."""
    if vma_is_anonymous(vma):
        return MappingKind.ANONYMOUS
    for process in snapshot.processes if snapshot is not None else ():
        for each in process.vmas:
            if (process.pid, each.start) == (vma.vm_mm.number, vma.vm_start):
                return each.kind
    return MappingKind.FILE


def look_at_window(
    world: BuiltWorld, vma: Vma, address: int, before: TableNow, request: Request, outcome: Outcome,
    events: list[Event | PassedBy],
) -> WindowReport:  # fmt: skip
    """The mapping, its gate, the table before and after, its events, and the refusals there."""
    kernel, pmd_size = world.kernel, world.kernel.geometry.pmd_size
    base = kernel.geometry.pmd_addr(address)
    page_size = kernel.geometry.page_size
    now = table_now(world, vma, address, request.snapshot)
    return WindowReport(
        settings=kernel.settings,
        address=address,
        start=vma.vm_start,
        end=vma.vm_end,
        name=vma.name,
        gate=vma_gate(kernel, vma),
        highest=highest_order(kernel, vma),
        before=before.lines,
        after=now.lines,
        page_before=before.page,
        page_now=now.page,
        refusals=tuple(
            refusal
            for refusal in outcome.refusals
            if refusal.pid == vma.vm_mm.number and refusal.covers(address, page_size)
        ),
        torn=(vma.vm_mm.number, base) in world.torn,
        events=tuple(
            event
            for event in singly(
                event.within(base, base + pmd_size) if isinstance(event, PassedBy) else event
                for event in events
            )
            if not isinstance(event, OrderWalk)
            and getattr(event, "mm", None) == vma.vm_mm.number
            and base <= getattr(event, "address", -1) < base + pmd_size
        ),
    )
