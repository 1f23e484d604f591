# SPDX-License-Identifier: GPL-2.0-or-later
"""Says why PTEs are not in folios of the highest enabled order: the last gate or attempt each met.

The scan's and the attempts' answers come from the last full scan's events; the gates between them
(too few pages for an order) are found by walking the table as mthp_collapse() did.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.khugepaged.control import Caller, CollapseControl
from mthp.khugepaged.eligibility import hugepage_enabled, requested_orders
from mthp.khugepaged.order_walk import LOWER_ORDER, NEXT_OFFSET, windows
from mthp.mm.huge_mm import Tva, VmaGate, allowable_orders, sysfs_orders
from mthp.mm.mm_types import MMF_VM_HUGEPAGE, Kernel, Vma, userfaultfd_armed
from mthp.predict.measure import TablePart, entries_of
from mthp.predict.passes import TableLog
from mthp.predict.records import Refusal, RefusedAt, Status, WindowGate
from mthp.words.results import ScanResult


@dataclass(frozen=True, slots=True)
class Gate:
    """What a run of PTEs met last; the fields are Refusal's."""

    stage: RefusedAt
    status: Status
    order: int | None = None
    allowed_empty: int | None = None
    ended_earlier: bool = False


_NOT_CHOSEN = Gate(RefusedAt.OCCUPANCY, WindowGate.NOT_CHOSEN)


def highest_order(kernel: Kernel, vma: Vma) -> int:
    """The highest order enabled for a mapping; the PMD order where none is."""
    orders = sysfs_orders(kernel.settings, vma.vm_flags) & requested_orders(kernel, Tva.KHUGEPAGED)
    return orders.bit_length() - 1 if orders else kernel.geometry.pmd_order


def vma_gate(kernel: Kernel, vma: Vma) -> VmaGate | None:
    """Why a whole mapping is passed by; None if it is scanned."""
    if not hugepage_enabled(kernel):
        return VmaGate.NOT_ENABLED
    answer = allowable_orders(
        vma, vma.vm_flags, Tva.KHUGEPAGED, requested_orders(kernel, Tva.KHUGEPAGED)
    )
    return answer if isinstance(answer, VmaGate) else None


def vma_gates(kernel: Kernel, vmas: Sequence[Vma]) -> dict[Vma, VmaGate | None]:
    """The vma_gate() of each mapping, asked once for all that are alike: it depends on their flags, on what
    they map, and on the orders of which they hold an aligned range.
    """
    starts = np.array([vma.vm_start for vma in vmas], np.uint64)
    ends = np.array([vma.vm_end for vma in vmas], np.uint64)
    fits = np.zeros(len(vmas), np.int64)
    for order in range(kernel.geometry.pmd_order + 1):
        size = np.uint64(kernel.geometry.order_bytes(order))
        last = ends & ~(size - np.uint64(1))
        fits |= np.where((last > starts) & (last - starts >= size), 1 << order, 0)
    known: dict[tuple[object, ...], VmaGate | None] = {}
    gates: dict[Vma, VmaGate | None] = {}
    for vma, orders in zip(vmas, fits.tolist(), strict=True):
        alike = vma.vm_mm, vma.vm_flags, vma.file, vma.anon_vma is None, orders
        if alike not in known:
            known[alike] = vma_gate(kernel, vma)
        gates[vma] = known[alike]
    return gates


def table_gates(vma: Vma, log: TableLog) -> Gate | list[Gate]:
    """The last gate that all of one scanned table of a mapping met, or that of every PTE."""
    kernel = vma.vm_mm.kernel
    geometry = kernel.geometry
    nr = geometry.ptrs_per_pte
    assert log.scan is not None
    if log.walk is None:
        status = log.scan.status
        strict = status is ScanResult.EXCEED_NONE_PTE and userfaultfd_armed(vma)
        return Gate(RefusedAt.SCAN, status, geometry.pmd_order, 0 if strict else None)
    gates = [_NOT_CHOSEN] * nr
    base = log.scan.address
    for offset, order, gate in _walk(kernel, base, log):
        count = min(1 << order, nr - offset)
        gates[offset : offset + count] = [gate] * count
    return gates


def _walk(kernel: Kernel, base: int, log: TableLog) -> list[tuple[int, int, Gate]]:
    """Yield (offset, order, gate) for each window that mthp_collapse() came to, in its order.

    A policy of the user's is not asked again: it attempts every window that it chooses.
    """
    assert log.walk is not None
    nr, pmd_order = kernel.geometry.ptrs_per_pte, kernel.geometry.pmd_order
    shift = kernel.geometry.page_shift
    attempts = {((at - base) >> shift, order): result for at, order, result in log.attempts}
    gates: list[tuple[int, int, Gate]] = []

    def passed_over(offset: int, order: int, allowed: int | None) -> None:
        gates.append((offset, order, Gate(RefusedAt.OCCUPANCY, WindowGate.TOO_FEW, order, allowed)))

    def attempted(offset: int, order: int, result: ScanResult) -> None:
        gates.append((offset, order, Gate(RefusedAt.ATTEMPT, result, order)))
        rest = offset + (1 << order)
        if result not in NEXT_OFFSET and result not in LOWER_ORDER and rest < nr:
            ended = Gate(RefusedAt.ATTEMPT, result, order, ended_earlier=True)
            gates.append((rest, pmd_order, ended))

    if kernel.order_policy is not None:
        for window, result in attempts.items():
            attempted(*window, result)
        return gates
    walk = windows(kernel, CollapseControl(Caller.KHUGEPAGED), log.walk, passed_over)
    of: ScanResult | None = None
    while of is None or of in NEXT_OFFSET or of in LOWER_ORDER:
        try:
            at = walk.send(of)
        except StopIteration:
            break
        if (of := attempts.get(at)) is None:
            break
        attempted(*at, of)
    return gates


def explain(
    kernel: Kernel, gates: Mapping[Vma, VmaGate | None], logs: dict[tuple[int, int], TableLog]
) -> Iterator[tuple[Vma, Refusal]]:
    """Every refusal of some mappings: each PTE that holds something, and is in no folio of the highest
    enabled order, belongs to exactly one. gates: why a whole mapping is passed by, as vma_gate() says.
    """
    vmas = list(gates)
    some_with = {vma.vm_flags: vma for vma in vmas}
    by_flags = {flags: highest_order(kernel, vma) for flags, vma in some_with.items()}
    highest = np.array([by_flags[vma.vm_flags] for vma in vmas], np.int8)
    met = np.zeros(kernel.mem.nr_frames, np.bool_)
    turned = {gate: Gate(RefusedAt.VMA, gate) for gate in {*gates.values()} if gate is not None}
    whole = [None if gate is None else turned[gate] for gate in gates.values()]
    for entries in entries_of(kernel, vmas):
        mapped = entries.pfns != 0
        wanted = (entries.words != 0) & ~(mapped & (entries.orders >= highest[entries.owners]))
        memory = mapped.astype(np.int8)
        memory[_first_met(met, entries.pfns, mapped & wanted)] = _DISTINCT
        if not wanted.any():
            continue
        runs = _whole_parts(entries.starts, wanted, memory)
        for (k, part), start, run in zip(
            entries.parts.each(), entries.starts.tolist(), runs, strict=True
        ):
            if not run.pages:
                continue
            gate = whole[k] or _gates(vmas[k], part, logs)
            if isinstance(gate, Gate):
                yield vmas[k], _refusal(vmas[k], part, gate, run)
                continue
            own = slice(start, start + part.nr)
            for refusal in _runs(vmas[k], part, gate, wanted[own], memory[own]):
                yield vmas[k], refusal


class _Run(NamedTuple):
    """The entries from the first to the last that met one gate; those of them that hold something, that hold
    memory, and that hold memory which is refused here first.
    """

    first: int
    last: int
    pages: int
    mapped: int
    distinct: int


def _whole_parts(
    starts: NDArray[np.intp], wanted: NDArray[np.bool_], memory: NDArray[np.int8]
) -> Iterator[_Run]:
    """Of each part one run, as if all of it had met one gate."""
    counts = np.diff(starts, append=len(wanted))
    places = np.arange(len(wanted)) - np.repeat(starts, counts)
    columns = (
        np.minimum.reduceat(np.where(wanted, places, len(wanted)), starts),
        np.maximum.reduceat(np.where(wanted, places, -1), starts),
        *(
            np.add.reduceat(which, starts, dtype=np.int64)
            for which in (wanted, wanted & (memory > 0), wanted & (memory == _DISTINCT))
        ),
    )
    return map(_Run, *(column.tolist() for column in columns))


_DISTINCT = 2
"""Of an entry that maps memory: it is the first that is refused with this page; the others are 1."""


def _first_met(
    met: NDArray[np.bool_], pfns: NDArray[np.int64], which: NDArray[np.bool_]
) -> NDArray[np.intp]:
    """Those of some entries that map a page which none before them did; met: the pages, to be marked."""
    places = np.flatnonzero(which)
    pages, first = np.unique(pfns[places], return_index=True)
    fresh = ~met[pages]
    met[pages] = True
    found: NDArray[np.intp] = places[first[fresh]]
    return found


def _gates(
    vma: Vma, part: TablePart, logs: dict[tuple[int, int], TableLog]
) -> Gate | Sequence[Gate]:
    """The last gate that all PTEs of a part met, or that of every one."""
    geometry = vma.vm_mm.geometry
    pmd_base = geometry.pmd_addr(part.address)
    if not geometry.pmd_align_up(vma.vm_start) <= pmd_base < geometry.pmd_addr(vma.vm_end):
        return Gate(RefusedAt.EDGE, WindowGate.EDGE)
    if not vma.vm_mm.mm_flags_test(MMF_VM_HUGEPAGE):
        return Gate(RefusedAt.NOT_SCANNED, WindowGate.NOT_REGISTERED)
    log = logs.get((vma.vm_mm.number, pmd_base))
    if log is None:
        return Gate(RefusedAt.NOT_SCANNED, WindowGate.NOT_SCANNED)
    gates = table_gates(vma, log)
    return gates if isinstance(gates, Gate) else gates[part.first : part.first + part.nr]


def _runs(
    vma: Vma,
    part: TablePart,
    gates: Sequence[Gate],
    wanted: NDArray[np.bool_],
    memory: NDArray[np.int8],
) -> Iterator[Refusal]:
    """Maximal runs of one gate; holes inside a run belong to its span, not to its pages. memory: 0 of an
    entry that holds none, 1 or _DISTINCT.
    """
    indices = np.flatnonzero(wanted).tolist()
    kinds = memory.tolist()
    for _, own in groupby(indices, lambda i: id(gates[i])):
        run = list(own)
        held = [kinds[i] for i in run]
        size, distinct = len(held), held.count(_DISTINCT)
        found = _Run(run[0], run[-1], size, size - held.count(0), distinct)
        yield _refusal(vma, part, gates[run[0]], found)


def _refusal(vma: Vma, part: TablePart, gate: Gate, run: _Run) -> Refusal:
    mm, (first, last, pages, mapped, distinct) = vma.vm_mm, run
    return Refusal(
        mm.number, part.address + first * mm.geometry.page_size, last - first + 1, pages,
        gate.order, gate.stage, gate.status, gate.allowed_empty, gate.ended_earlier, mapped, distinct,
    )  # fmt: skip
