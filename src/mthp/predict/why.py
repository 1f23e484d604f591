# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything about the window at one address, as lines to print."""

from __future__ import annotations

from collections.abc import Iterator

from mthp.image.runs import encode_runs, folio_runs, pte_runs
from mthp.mm.mm_types import Vma
from mthp.predict.explain import highest_order, vma_gate
from mthp.predict.measure import page_order
from mthp.predict.records import Outcome
from mthp.words.events import Attempt, Event, OrderWalk, ScanPmd, ftrace
from mthp.words.units import format_size
from mthp.worlds.build import BuiltWorld
from mthp.worlds.render import Renderer


def find_mapping(world: BuiltWorld, address: int) -> Vma | None:
    """The mapping that holds address; of several processes, the first."""
    for vma in world.vmas:
        if vma.vm_start <= address < vma.vm_end:
            return vma
    return None


def table_lines(world: BuiltWorld, vma: Vma, address: int) -> tuple[str, str]:
    """The two state strings (folios, ptes) of the part of the table that belongs to vma."""
    geometry = world.kernel.geometry
    base = max(geometry.pmd_addr(address), vma.vm_start)
    end = min(geometry.pmd_addr(address) + geometry.pmd_size, vma.vm_end)
    folios: list = []  # type: ignore[type-arg]
    entries: list = []  # type: ignore[type-arg]
    count = (end - base) >> geometry.page_shift
    Renderer(world.kernel).table(vma, base, geometry.pte_index(base), count, folios, entries)
    return encode_runs(folio_runs(folios)), encode_runs(pte_runs(entries, base, geometry))


def describe_window(
    world: BuiltWorld, vma: Vma, address: int, before: tuple[str, str], outcome: Outcome,
    events: list[Event],
) -> Iterator[str]:  # fmt: skip
    """The mapping, its gate, the table before and after, its events, and the refusal."""
    kernel = world.kernel
    geometry = kernel.geometry
    base = geometry.pmd_addr(address)
    gate = vma_gate(kernel, vma)
    yield f"address     {address:#x}, PTE {geometry.pte_index(address)} of the table at {base:#x}"
    size = format_size(vma.vm_end - vma.vm_start)
    yield f"mapping     {vma.vm_start:#x}-{vma.vm_end:#x} ({size}) {vma.name}".rstrip()
    highest = highest_order(kernel, vma)
    if gate is not None:
        yield f"gate        {gate.name}: {gate.value}"
    else:
        yield f"gate        open, up to {geometry.size_kb(highest)} (order {highest})"
    after = table_lines(world, vma, address)
    yield f"before      {before[0]}"
    yield f"            {before[1]}"
    yield f"after       {after[0]}"
    yield f"            {after[1]}"
    order = page_order(kernel, vma, address)
    yield f"now         {'no page' if order is None else f'in a folio of order {order}'}"
    for refusal in outcome.refusals:
        end = refusal.address + refusal.span * geometry.page_size
        if refusal.pid == vma.vm_mm.number and refusal.address <= address < end:
            asked = "" if refusal.order is None else f" at order {refusal.order}"
            yield f"refused     {refusal.status}{asked}: {refusal.reason}"
            change = refusal.change or "none found"
            yield f"change      {change} ({refusal.verified.value})"
    mine = [
        event for event in events if _concerns(event, vma.vm_mm.number, base, geometry.pmd_size)
    ]
    yield f"events      {len(mine)} about this table"
    yield from ftrace(mine)


def _concerns(event: Event, mm: int, base: int, size: int) -> bool:
    if isinstance(event, OrderWalk):
        return False
    address = getattr(event, "address", None)
    if address is None or event.mm != mm:  # type: ignore[union-attr]
        return False
    if isinstance(event, ScanPmd | Attempt):
        return bool(base <= address < base + size)
    return bool(base <= address < base + size)
