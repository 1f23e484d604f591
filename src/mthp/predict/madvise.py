# SPDX-License-Identifier: GPL-2.0-or-later
"""What madvise(MADV_COLLAPSE) would do to ranges of a world, one call after another."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import takewhile, zip_longest

import numpy as np

from mthp.image.page_types import CLAIMED, MOVABLE, TAKEN, page_types
from mthp.image.snapshot import Snapshot
from mthp.khugepaged.eligibility import requested_orders
from mthp.khugepaged.madvise import THP, do_madvise_collapse, is_range
from mthp.mm.huge_mm import Tva, VmaGate, allowable_orders, vma_thp_disabled
from mthp.mm.mm_types import Kernel, Mm, Vma, vma_is_anonymous
from mthp.mm.pgtable_types import PFN_SHIFT, PRESENT, pmd_is_table, pmd_pgtable
from mthp.mm.vm_flags import VM_NO_KHUGEPAGED
from mthp.predict.measure import frames_in_use, held_in_tables, measure, populated_parts
from mthp.predict.outcome import Request, basis_of
from mthp.predict.passes import Interrupted, Tally
from mthp.predict.records import Advised, AdvisedOutcome, BlocksByType, HugeShare, TornUse
from mthp.predict.resident import modelled
from mthp.words.events import Event, PassedBy, ScanPmd
from mthp.words.results import ScanResult
from mthp.worlds.build import BuiltWorld


def anonymous_ranges(world: BuiltWorld) -> Iterator[tuple[Mm, int, int]]:
    """Every anonymous mapping, process by process."""
    for mm in world.kernel.mms:
        for vma in mm.vmas:
            if vma.file is None:
                yield mm, vma.vm_start, vma.vm_end


def run_madvise(
    world: BuiltWorld, request: Request, ranges: Iterable[tuple[Mm, int, int]]
) -> AdvisedOutcome:
    """Have each process collapse its ranges (mm, start, end), and say what each call would return."""
    began = time.monotonic()
    kernel = world.kernel
    vmas = modelled(world.vmas)
    tally = Tally(kernel, torn=world.torn)
    held = held_in_tables(kernel, vmas, world.torn)

    def on_table() -> None:
        tally.tables.clear()
        if request.on_table is not None:
            request.on_table()

    tally.on_table = on_table
    kernel.trace = tally
    before = measure(kernel, vmas, request.tlb)
    asked = [*ranges]
    total, huge = _mapped(asked)
    blocks = _free_blocks(kernel)
    first = frames_in_use(kernel)
    done: list[Advised] = []
    refused: dict[ScanResult, list[tuple[Mm, int, int]]] = {}
    complete = True
    try:
        for mm, start, end in asked:
            done.append(_advise(tally, mm, start, end, refused))
    except Interrupted:
        complete = False
    share = HugeShare(
        total,
        huge,
        *_mapped(asked),
        in_windows=_mapped([*_whole_windows(asked)])[0],
        refused={status: _mapped(windows)[0] for status, windows in refused.items()},
        blocks=blocks,
        needed=sum(call.collapsed for call in done),
        pmd_size=kernel.geometry.pmd_size,
        by_type=_by_type(request.snapshot, kernel.geometry.pmd_order),
    )
    return AdvisedOutcome(
        basis=basis_of(request, world),
        geometry=kernel.geometry,
        ranges=tuple(done),
        orders_before=before.orders,
        orders_after=measure(kernel, vmas, request.tlb).orders,
        memory_added=(frames_in_use(kernel) - first) << kernel.geometry.page_shift,
        copied_bytes=tally.copied_bytes,
        swapped_in_bytes=tally.swapped_in << kernel.geometry.page_shift,
        share=share,
        complete=complete,
        torn=TornUse(len(world.torn), held, tally.torn_collapsed),
        warnings=tuple(kernel.warnings.values()),
        seconds=time.monotonic() - began,
    )


def _met(mm: Mm, start: int, end: int) -> Iterator[Vma]:
    return takewhile(lambda vma: vma.vm_start < end, mm.for_each_vma(start))


def _whole_windows(ranges: Iterable[tuple[Mm, int, int]]) -> Iterator[tuple[Mm, int, int]]:
    """Of each mapping in ranges the aligned PMD ranges that lie within both."""
    for mm, start, end in ranges:
        for vma in _met(mm, start, end):
            first = mm.geometry.pmd_align_up(max(start, vma.vm_start))
            last = mm.geometry.pmd_addr(min(end, vma.vm_end))
            if first < last:
                yield mm, first, last


def _mapped(ranges: Iterable[tuple[Mm, int, int]]) -> tuple[int, int]:
    """How many bytes of ranges map anonymous memory, and how many of these PMDs do. Not a step."""
    mapped = huge = 0
    for mm, start, end in ranges:
        size = mm.geometry.page_size
        for vma in _met(mm, start, end):
            for part in populated_parts(vma) if vma_is_anonymous(vma) else ():
                first = max(start - part.address, 0) // size
                nr = min(part.nr, (end - part.address) // size) - first
                if nr <= 0:
                    continue
                if pmd_is_table(part.pmd):
                    ptes = mm.kernel.tables[pmd_pgtable(part.pmd)].ptes.view()
                    words = ptes[part.first + first : part.first + first + nr]
                    there = (words & PRESENT != 0) & (words >> PFN_SHIFT != 0)
                    mapped += int(np.count_nonzero(there)) * size
                elif part.pmd & PRESENT and part.pmd >> PFN_SHIFT:
                    mapped += nr * size
                    huge += nr * size
    return mapped, huge


def _free_blocks(kernel: Kernel) -> int | None:
    """Free blocks of PMD size, larger ones split; None where as many are there as are asked for."""
    pmd, nodes = kernel.geometry.pmd_order, kernel.mem.allocator.nodes
    if any(node.endless for node in nodes):
        return None
    return sum(
        len(node.blocks[order]) + node.unborn[order] << order - pmd
        for node in nodes
        for order in range(pmd, node.max_order + 1)
    )


def _by_type(snapshot: Snapshot | None, order: int) -> BlocksByType | None:
    """The blocks of the order that are free, and those that may become it, as far as the capture says."""
    if snapshot is None or snapshot.free_memory is not None:
        return None
    types = page_types(snapshot.meta.get("pagetypeinfo"))
    if types is None:
        return None
    free = {kind: nr for kind, nr in sorted(types.blocks(order).items()) if nr}
    emptied = sum(types.pageblocks.get(kind, 0) for kind in MOVABLE)
    return BlocksByType(
        sum(nr for kind, nr in free.items() if kind in MOVABLE),
        {kind: nr for kind, nr in free.items() if kind in CLAIMED},
        {kind: nr for kind, nr in free.items() if kind not in TAKEN},
        emptied if types.block_order == order and types.pageblocks else None,
        sum(types.pageblocks.values()),
    )


class Verdicts:
    """The results of the windows of one call; torn: of tables (mm, address) that are, how many are refused.
    first_refused: the address of the first that is not huge afterwards. refused: result -> where.
    """

    def __init__(self, tables: frozenset[tuple[int, int]]) -> None:
        self.windows: Counter[ScanResult] = Counter()
        self.refused: dict[ScanResult, list[int]] = {}
        self.tables = tables
        self.torn = 0
        self.first_refused: int | None = None

    def add_row(self, row: PassedBy) -> None:
        """Count a row of windows that were not looked into."""
        huge = [event.address for event in row.there]
        self.windows[ScanResult.PMD_MAPPED] += len(huge)
        self.windows[ScanResult.NO_PTE_TABLE] += row.nr - len(huge)
        ends = (row.address + k * row.pmd_size for k in range(row.nr))
        missing = next((at for at, there in zip_longest(ends, huge) if at != there), None)
        if self.first_refused is None:
            self.first_refused = missing

    def add(self, event: Event) -> None:
        """Count the result of one window."""
        if isinstance(event, ScanPmd):
            refused = event.status not in THP
            if refused:
                self.refused.setdefault(event.status, []).append(event.address)
            if refused and (event.mm, event.address) in self.tables:
                self.torn += 1
            else:
                self.windows[event.status] += 1
            if self.first_refused is None and refused:
                self.first_refused = event.address


def _advise(
    tally: Tally,
    mm: Mm,
    start: int,
    end: int,
    refused: dict[ScanResult, list[tuple[Mm, int, int]]],
) -> Advised:
    """One call. refused: result -> windows that are refused for it, which are added."""
    kernel = mm.kernel
    met = [*_met(mm, start, end)]
    verdicts = Verdicts(tally.torn)
    tally.on_event, kernel.trace_row = verdicts.add, verdicts.add_row
    in_use = frames_in_use(kernel)
    error: int | None = -do_madvise_collapse(mm, start, end - start)
    for status, addresses in verdicts.refused.items():
        size = kernel.geometry.pmd_size
        refused.setdefault(status, []).extend((mm, at, at + size) for at in addresses)
    gate = None
    for vma in met if is_range(mm, start, end) else ():
        if verdicts.first_refused is not None and verdicts.first_refused < vma.vm_start:
            break
        gate = refuses_whole(vma)
        if gate is not None:
            break
    if gate is VmaGate.FILE:
        error = None
    return Advised(
        pid=mm.number,
        start=start,
        end=end,
        name=met[0].name if met else "",
        mappings=len(met),
        error=error,
        gate=gate,
        windows=sum(_windows(vma, start, end) for vma in met),
        collapsed=verdicts.windows.pop(ScanResult.SUCCEED, 0),
        already_huge=verdicts.windows.pop(ScanResult.PMD_MAPPED, 0),
        refused=dict(+verdicts.windows),
        torn=verdicts.torn,
        memory_added=(frames_in_use(kernel) - in_use) << kernel.geometry.page_shift,
    )


def refuses_whole(vma: Vma) -> VmaGate | None:
    """Why MADV_COLLAPSE is refused for all of a mapping; None if it is not.

    FILE: not known, for what the kernel does with files is not modelled. What it asks before it
    looks at the file is.
    """
    geometry = vma.vm_mm.geometry
    orders = requested_orders(vma.vm_mm.kernel, Tva.FORCED_COLLAPSE)
    answer = allowable_orders(vma, vma.vm_flags, Tva.FORCED_COLLAPSE, orders)
    if answer is not VmaGate.FILE:
        return answer if isinstance(answer, VmaGate) else None
    disabled = vma_thp_disabled(vma, vma.vm_flags, Tva.FORCED_COLLAPSE)
    if disabled is not None:
        return disabled
    if vma.vm_flags & VM_NO_KHUGEPAGED:
        return VmaGate.SPECIAL
    whole = geometry.pmd_align_up(vma.vm_start) < geometry.pmd_addr(vma.vm_end)
    return VmaGate.FILE if whole else VmaGate.TOO_SHORT


def _windows(vma: Vma, start: int, end: int) -> int:
    """How many whole aligned PMD ranges of a mapping the range has."""
    geometry = vma.vm_mm.geometry
    first = geometry.pmd_align_up(max(start, vma.vm_start))
    return max(0, geometry.pmd_addr(min(end, vma.vm_end)) - first) >> geometry.pmd_shift
