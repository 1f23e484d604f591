# SPDX-License-Identifier: GPL-2.0-or-later
"""What madvise(MADV_COLLAPSE) would do to ranges of a world, one call after another."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import takewhile, zip_longest

from mthp.khugepaged.eligibility import requested_orders
from mthp.khugepaged.madvise import THP, do_madvise_collapse, is_range
from mthp.mm.huge_mm import Tva, VmaGate, allowable_orders, vma_thp_disabled
from mthp.mm.mm_types import Mm, Vma
from mthp.mm.vm_flags import VM_NO_KHUGEPAGED
from mthp.predict.measure import frames_in_use, held_in_tables, measure
from mthp.predict.outcome import Request, usual
from mthp.predict.passes import Interrupted, Tally
from mthp.predict.records import Advised, AdvisedOutcome, TornUse
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
    first = frames_in_use(kernel)
    done: list[Advised] = []
    complete = True
    try:
        for mm, start, end in ranges:
            done.append(_advise(tally, mm, start, end))
    except Interrupted:
        complete = False
    return AdvisedOutcome(
        target=request.target,
        source=request.source,
        profile=kernel.profile.name,
        profile_reason=request.profile_reason,
        geometry=kernel.geometry,
        ranges=tuple(done),
        orders_before=before.orders,
        orders_after=measure(kernel, vmas, request.tlb).orders,
        memory_added=(frames_in_use(kernel) - first) << kernel.geometry.page_shift,
        copied_bytes=tally.copied_bytes,
        swapped_in_bytes=tally.swapped_in << kernel.geometry.page_shift,
        complete=complete,
        torn=TornUse(len(world.torn), held, tally.torn_collapsed),
        assumptions=world.assumptions,
        unseen=request.unseen,
        usual=usual(request.unseen),
        warnings=tuple(kernel.warnings.values()),
        seconds=time.monotonic() - began,
    )


class Verdicts:
    """The results of the windows of one call; torn: of tables (mm, address) that are, how many are refused.
    first_refused: the address of the first that is not huge afterwards.
    """

    def __init__(self, tables: frozenset[tuple[int, int]]) -> None:
        self.windows: Counter[ScanResult] = Counter()
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
            if refused and (event.mm, event.address) in self.tables:
                self.torn += 1
            else:
                self.windows[event.status] += 1
            if self.first_refused is None and refused:
                self.first_refused = event.address


def _advise(tally: Tally, mm: Mm, start: int, end: int) -> Advised:
    kernel = mm.kernel
    met = [*takewhile(lambda vma: vma.vm_start < end, mm.for_each_vma(start))]
    verdicts = Verdicts(tally.torn)
    tally.on_event, kernel.trace_row = verdicts.add, verdicts.add_row
    in_use = frames_in_use(kernel)
    error: int | None = -do_madvise_collapse(mm, start, end - start)
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
