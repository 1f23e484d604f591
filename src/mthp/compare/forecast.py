# SPDX-License-Identifier: GPL-2.0-or-later
"""Predicts from one snapshot and compares with a later one, captured after real khugepaged had finished."""

from __future__ import annotations

from collections import Counter
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.compare.records import Forecast, Misprediction, PhaseMemory, PlanBeside
from mthp.image.snapshot import ProcessTables, Pte, Snapshot
from mthp.mm.mm_types import Kernel, Vma
from mthp.mm.pgtable_types import PFN_SHIFT, PRESENT, pmd_is_table, pmd_pgtable
from mthp.mm.shrinker import drop_slab
from mthp.predict.measure import populated_parts
from mthp.predict.passes import RunEnd, Tally, run_full_scans
from mthp.words.profiles import profile_for_release
from mthp.words.settings import Settings
from mthp.worlds.build import BuiltWorld, build_world
from mthp.worlds.unseen import Assumed, Young

YOUNG_BITS = "young bits: a capture cannot see which pages were used lately"
UNEXPLAINED = "not explained"

Orders = dict[tuple[int, int], NDArray[np.int8]]
"""(pid, first address of a table's range) -> (PTRS,) array of folio orders or Mapped codes."""


class Mapped(IntEnum):
    """Codes that stand beside the orders of folios. PMD: a folio that a PMD maps."""

    NONE = -1
    ZERO = -2
    SWAPPED = -3
    PMD = 100


def name_of(code: int) -> str:
    """What a code is called: an order's number, or `none`, `zero`, `swapped` or `pmd`."""
    return str(code) if 0 <= code < Mapped.PMD else Mapped(code).name.lower()


class Prediction(NamedTuple):
    """What is predicted of a capture. orders: when khugepaged has come to rest, and when shrinkers have been
    called. grown: by how many bytes the frames in use have grown then. split: how many large folios shrinkers
    split, and how many of them for their pages of zeros."""

    run: RunEnd
    assumptions: tuple[str, ...]
    orders: tuple[Orders, Orders]
    grown: tuple[int, int]
    split: tuple[int, int]


def predict(image: Snapshot, young: Young, *, shrink: bool = False) -> Prediction:
    """Run khugepaged to its fixed point, with the settings captured, and then shrinkers, if asked to.

    ValueError: the settings or the state are impossible.
    """
    settings = Settings.from_sysfs(image.sysfs, image.geometry)
    world = build_world(image, profile_for_release(image.kernel), settings, Assumed(young))
    kernel, allocator = world.kernel, world.kernel.mem.allocator
    out, shift = allocator.frames_out(), kernel.geometry.page_shift
    run = run_full_scans(kernel, world.khugepaged, Tally(kernel), None)
    collapsed = allocator.frames_out()
    orders = [orders_of_world(world)]
    if shrink:
        drop_slab(kernel)
        orders.append(orders_of_world(world))
    grown = (collapsed - out) << shift, (allocator.frames_out() - out) << shift
    counts = kernel.mem.vmstat
    whole = sum(nr for (_, name), nr in counts.mthp.items() if name == "split")
    split = whole, counts.events["thp_underused_split_page"]
    return Prediction(run, world.assumptions, (orders[0], orders[-1]), grown, split)


def compare(
    target: str,
    before: Snapshot,
    after: Snapshot,
    real_full_scans: int,
    young: Young,
    *,
    measured: PlanBeside | None = None,
    shrunk: bool = False,
    found: Prediction | None = None,
    memory: PhaseMemory | None = None,
) -> Forecast:
    """Predict the fixed point from `before` with the settings in it, and compare it with `after`.

    shrunk: `after` was made when shrinkers had been called. found: what is predicted, if that is known.
    ValueError: a snapshot shows no folios, or its settings or its state are impossible.
    """
    settings = Settings.from_sysfs(before.sysfs, before.geometry)
    found = predict(before, young, shrink=shrunk) if found is None else found
    start, real = orders_of_snapshot(before), orders_of_snapshot(after)
    tables = _Tables(start, found.orders[shrunk], real, before.geometry.ptrs_per_pte)
    return Forecast(
        target=target,
        kernel=before.kernel,
        settings=settings,
        processes=len(before.processes),
        ptes=int(tables.mapped.sum()),
        changed=int(tables.changed.sum()),
        right=int((tables.mapped & ~tables.wrong).sum()),
        right_changed=int((tables.changed & ~tables.wrong).sum()),
        full_scans=found.run.full_scans,
        real_full_scans=real_full_scans,
        misses=_misses(tables, before, young, shrunk) if tables.wrong.any() else (),
        assumptions=found.assumptions,
        measured=measured,
        memory=memory,
    )


class _Tables:
    """Three states of the same tables, with one row for each table; boolean arrays over all PTEs.

    mapped: something is mapped before or after, really or as predicted.
    """

    def __init__(self, start: Orders, predicted: Orders, real: Orders, nr: int) -> None:
        self.keys = sorted({*start, *predicted, *real})
        self.nr = nr
        self.start, self.predicted, self.real = map(self.stack, (start, predicted, real))
        none = Mapped.NONE
        self.mapped = (self.start != none) | (self.predicted != none) | (self.real != none)
        self.changed = self.mapped & (self.start != self.real)
        self.wrong = self.mapped & (self.predicted != self.real)

    def stack(self, orders: Orders) -> NDArray[np.int8]:
        """The (tables, PTRS) array of one state; a table that does not exist maps nothing."""
        empty = np.full(self.nr, Mapped.NONE, np.int8)
        rows = [orders.get(key, empty) for key in self.keys]
        return np.array(rows, np.int8).reshape(len(rows), self.nr)


def _misses(
    tables: _Tables, before: Snapshot, young: Young, shrunk: bool
) -> tuple[Misprediction, ...]:
    """The PTEs predicted wrong, by kind and cause: the young bits, if assumed otherwise it is
    right."""
    by_youth = np.zeros_like(tables.wrong)
    for other in Young:
        if other is not young:
            orders = predict(before, other, shrink=shrunk).orders[shrunk]
            by_youth |= tables.wrong & (tables.stack(orders) == tables.real)
    counts: Counter[tuple[int, int, int, bool]] = Counter()
    first: dict[tuple[int, int, int, bool], int] = {}
    page = before.geometry.page_size
    for row, column in np.argwhere(tables.wrong).tolist():
        states = (tables.start, tables.predicted, tables.real)
        a, b, c = (int(state[row, column]) for state in states)
        kind = (a, b, c, bool(by_youth[row, column]))
        counts[kind] += 1
        first.setdefault(kind, tables.keys[row][1] + column * page)
    return tuple(
        Misprediction(
            before=name_of(kind[0]),
            predicted=name_of(kind[1]),
            real=name_of(kind[2]),
            ptes=count,
            cause=YOUNG_BITS if kind[3] else UNEXPLAINED,
            first=first[kind],
        )
        for kind, count in counts.most_common()
    )


# --- the order of the folio that each anonymous PTE maps ------------------------------------


def orders_of_snapshot(snapshot: Snapshot) -> Orders:
    """The orders of every process. ValueError: the capture shows no folios (it was not made as root)."""
    found: Orders = {}
    for process in snapshot.processes:
        if process.folio_order is None:
            raise ValueError(f"process {process.pid}: the snapshot shows no folios (not root)")
        for address, row in zip(process.table_address.tolist(), codes(process), strict=True):
            found[process.pid, address] = row
    return found


def codes(process: ProcessTables) -> NDArray[np.int8]:
    """What each PTE maps, as (n, PTRS). Without root every folio not mapped by a PMD has order 0."""
    pte = process.pte
    order = process.folio_order
    found = np.full(pte.shape, Mapped.NONE, np.int8)
    np.copyto(
        found, 0 if order is None else order, where=(pte & Pte.PRESENT) != 0, casting="unsafe"
    )
    found[(pte & Pte.SWAPPED) != 0] = Mapped.SWAPPED
    found[(pte & (Pte.PRESENT | Pte.HUGE)) == Pte.PRESENT | Pte.HUGE] = Mapped.PMD
    found[(pte & Pte.ZERO) != 0] = Mapped.ZERO
    return found


def orders_of_world(world: BuiltWorld) -> Orders:
    """The orders of the anonymous pages of every mapping as they are now. The world makes no step."""
    found: Orders = {}
    nr = world.kernel.geometry.ptrs_per_pte
    for vma in world.vmas:
        _add_vma(world.kernel, vma, nr, found)
    return found


def _add_vma(kernel: Kernel, vma: Vma, nr: int, found: Orders) -> None:
    for part in populated_parts(vma):
        base = part.address - (part.first << kernel.geometry.page_shift)
        key = (vma.vm_mm.number, base)
        row = found.setdefault(key, np.full(nr, Mapped.NONE, np.int8))
        place = slice(part.first, part.first + part.nr)
        if not pmd_is_table(part.pmd):
            row[place] = Mapped.PMD if part.pmd >> PFN_SHIFT else Mapped.ZERO
            continue
        ptes = kernel.tables[pmd_pgtable(part.pmd)].ptes.view()[place]
        present = (ptes & PRESENT) != 0
        pfns = ptes >> PFN_SHIFT
        codes = np.where(ptes == 0, Mapped.NONE, Mapped.SWAPPED).astype(np.int8)
        codes[present] = Mapped.ZERO
        mapped = present & (pfns != 0)
        heads = kernel.mem.head.view()[pfns[mapped]]
        codes[mapped] = kernel.mem.order.view()[heads]
        row[place] = codes
