# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that is known about the window at one address."""

from __future__ import annotations

from mthp.image.runs import encode_runs, folio_runs, pte_runs
from mthp.mm.mm_types import Vma
from mthp.predict.explain import highest_order, vma_gate
from mthp.predict.measure import page_order
from mthp.predict.records import Outcome, WindowReport
from mthp.words.events import Event, OrderWalk
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
    folios, entries = Renderer(world.kernel).pages(vma, base, end)
    return encode_runs(folio_runs(folios)), encode_runs(pte_runs(entries, base, geometry))


def look_at_window(
    world: BuiltWorld, vma: Vma, address: int, before: tuple[str, str], outcome: Outcome,
    events: list[Event],
) -> WindowReport:  # fmt: skip
    """The mapping, its gate, the table before and after, its events, and the refusals there."""
    kernel = world.kernel
    base = kernel.geometry.pmd_addr(address)
    page_size = kernel.geometry.page_size
    return WindowReport(
        settings=kernel.settings,
        address=address,
        start=vma.vm_start,
        end=vma.vm_end,
        name=vma.name,
        gate=vma_gate(kernel, vma),
        highest=highest_order(kernel, vma),
        before=before,
        after=table_lines(world, vma, address),
        page_order=page_order(vma, address),
        refusals=tuple(
            refusal
            for refusal in outcome.refusals
            if refusal.pid == vma.vm_mm.number and refusal.covers(address, page_size)
        ),
        events=tuple(
            event
            for event in events
            if not isinstance(event, OrderWalk)
            and getattr(event, "mm", None) == vma.vm_mm.number
            and base <= getattr(event, "address", -1) < base + kernel.geometry.pmd_size
        ),
    )
