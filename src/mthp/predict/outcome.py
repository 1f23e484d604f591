# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a finished record of a world: runs it, measures it, and explains what did not collapse."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mthp.image.capture.columns import NEVER
from mthp.image.snapshot import Snapshot
from mthp.mm.huge_mm import VmaGate
from mthp.mm.mm_types import Mm, Vma
from mthp.predict.explain import explain, highest_order, vma_gates
from mthp.predict.find import with_changes
from mthp.predict.measure import Measured, TlbModel, held_in_tables, measure
from mthp.predict.passes import RunEnd, TableLog, Tally, Windows, run_full_scans
from mthp.predict.records import (
    Basis,
    Clock,
    Effort,
    Others,
    Outcome,
    ProcessUse,
    Refusal,
    TornUse,
    VmaUse,
)
from mthp.predict.resident import modelled, resident_memory
from mthp.predict.timeline import Timeline, work_ms
from mthp.words.events import Event, PassedBy
from mthp.words.resident import Resident
from mthp.worlds.build import BuiltWorld
from mthp.worlds.free_memory import bytes_free
from mthp.worlds.from_snapshot import USUAL_ASSUMPTIONS


@dataclass
class Request:
    """What to run. passes: full scans, None for the fixed point. on_event: as Tally's.
    on_table: called after each table that is there.

    changes: look for the least change of each refusal. keep: every event is appended to it, tables
    that are passed by in rows. snapshot: where the world is one's, what the kernel counted of the
    target. registered, taken_off: as Outcome's. windows: each that collapses is put there,
    as Tally has them.
    """

    target: str
    source: str
    profile_reason: str
    passes: int | None = None
    tlb: TlbModel = TlbModel.PLAIN
    changes: bool = True
    keep: list[Event | PassedBy] | None = None
    on_event: Callable[[Event], None] | None = None
    on_table: Callable[[], None] | None = None
    on_try: Callable[[], None] | None = None
    unseen: tuple[str, ...] = ()
    others: Others | None = None
    snapshot: Snapshot | None = None
    registered: Mapping[int, bool | None] = field(default_factory=dict)
    taken_off: frozenset[int] = frozenset()
    windows: Windows = field(default_factory=dict)


def run_world(world: BuiltWorld, request: Request) -> Outcome:
    """Run khugepaged over a world and say what it made of it."""
    began = time.monotonic()
    kernel = world.kernel
    vmas = modelled(world.vmas)
    before = measure(kernel, vmas, request.tlb)
    resident, each_resident = resident_memory(kernel.mms, vmas, before, request.snapshot)
    held = held_in_tables(kernel, vmas, world.torn)
    tally = Tally(
        kernel, request.keep, request.on_event, request.on_table, world.torn, request.windows
    )
    timeline = Timeline(world.khugepaged, tally, request.others)
    run = run_full_scans(
        kernel, world.khugepaged, tally, request.passes, on_sleep=timeline.on_sleep
    )
    timeline.on_sleep(run.wakeups)
    after = measure(kernel, vmas, request.tlb)
    gates = vma_gates(kernel, vmas)
    found = _refusals(world, gates, tally.last_pass | tally.tables)
    refusals: tuple[Refusal, ...] = tuple(refusal for _, refusal in found)
    if request.changes and run.complete:
        refusals = tuple(with_changes(found, request.on_try, request.tlb))
    added = _added_by_vma(vmas, tally)
    uses = tuple(_vma_uses(vmas, gates, before, after, added))
    scanned = {vma.vm_flags: vma for vma, gate in gates.items() if gate is None}
    orders = [highest_order(kernel, vma) for vma in scanned.values()]
    return Outcome(
        basis=basis_of(request, world),
        settings=kernel.settings,
        page_size=kernel.geometry.page_size,
        pmd_order=kernel.geometry.pmd_order,
        highest_order=max(orders, default=None),
        processes=len(kernel.mms),
        orders_before=before.orders,
        orders_after=after.orders,
        partly_before=before.partly_mapped,
        partly_after=after.partly_mapped,
        resident=resident,
        memory_added=timeline.memory_added,
        copied_bytes=tally.copied_bytes,
        collapsed_bytes=tally.collapsed_bytes,
        swapped_in_bytes=tally.swapped_in * kernel.geometry.page_size,
        successes=Effort(**tally.succeeded),
        refused=Effort(**tally.refused),
        tlb=request.tlb.value,
        tlb_before=before.translations,
        tlb_after=after.translations,
        clock=_clock(run, tally, timeline),
        fixed_point=run.fixed_point,
        complete=run.complete,
        attempts=dict(tally.attempts),
        counters=_counters(world),
        refusals=refusals,
        torn=TornUse(len(world.torn), held, tally.torn_collapsed),
        vmas=uses,
        by_process=tuple(_by_process(each_resident, vmas, before, after, added)),
        warnings=tuple(kernel.warnings.values()),
        timeline=tuple(timeline.points),
        others=request.others,
        registered=request.registered,
        taken_off=request.taken_off,
        free_memory=None if request.snapshot is None else bytes_free(request.snapshot),
        seconds=time.monotonic() - began,
    )


def usual(unseen: tuple[str, ...]) -> frozenset[str]:
    """Those of assumptions and of what is not seen that every capture has."""
    return USUAL_ASSUMPTIONS.union(each for each in unseen if each.startswith(NEVER))


def basis_of(request: Request, world: BuiltWorld) -> Basis:
    """What an answer about a world is about, and rests on."""
    return Basis(
        request.target,
        request.source,
        world.kernel.profile.name,
        request.profile_reason,
        world.assumptions,
        request.unseen,
        usual(request.unseen),
    )


def _clock(run: RunEnd, tally: Tally, timeline: Timeline) -> Clock:
    return Clock(
        run.full_scans,
        run.wakeups,
        tally.sleeps["scan_sleep"],
        tally.sleeps["alloc_sleep"],
        work_ms(tally.collapsed_bytes),
        timeline.last_collapse_ms,
    )


def _refusals(
    world: BuiltWorld, gates: Mapping[Vma, VmaGate | None], logs: dict[tuple[int, int], TableLog]
) -> list[tuple[Vma, Refusal]]:
    """Every refusal but those of torn tables: why these are as they are, nobody can say."""
    down, torn = world.kernel.geometry.pmd_addr, world.torn
    return [
        (vma, refusal)
        for vma, refusal in explain(world.kernel, gates, logs)
        if not torn or (refusal.pid, down(refusal.address)) not in torn
    ]


def _added_by_vma(vmas: list[Vma], tally: Tally) -> NDArray[np.int64]:
    """The bytes that collapses added to each mapping; a table that collapses is in one alone."""
    added = np.zeros(len(vmas), np.int64)
    if not tally.added:
        return added
    places = sorted((vma.vm_mm.number, vma.vm_start, k) for k, vma in enumerate(vmas))
    for table, frames in tally.added.items():
        _, _, k = places[bisect_right(places, (*table, len(vmas))) - 1]
        added[k] += frames << tally.kernel.geometry.page_shift
    return added


def _by_process(
    residents: Mapping[Mm, Resident],
    vmas: list[Vma],
    before: Measured,
    after: Measured,
    added: NDArray[np.int64],
) -> Iterator[ProcessUse]:
    number = {mm: k for k, mm in enumerate(residents)}
    owners = np.array([number[vma.vm_mm] for vma in vmas], np.intp)

    def sums(values: NDArray[np.int64]) -> list[int]:
        each = np.zeros(len(number), np.int64)
        np.add.at(each, owners, values)
        found: list[int] = each.tolist()
        return found

    uses = [
        {order: sums(sizes) for order, sizes in sorted(each.bytes.items())}
        for each in (before, after)
    ]
    swapped, memory_added = sums(after.swapped), sums(added)
    for k, (mm, resident) in enumerate(residents.items()):
        was, now = ({order: each[k] for order, each in use.items() if each[k]} for use in uses)
        yield ProcessUse(
            pid=mm.number,
            name=mm.comm,
            resident=resident,
            before=was,
            after=now,
            swapped=swapped[k],
            memory_added=memory_added[k],
        )


def _vma_uses(
    vmas: list[Vma],
    gates: Mapping[Vma, VmaGate | None],
    before: Measured,
    after: Measured,
    added: NDArray[np.int64],
) -> Iterator[VmaUse]:
    words = {gate: "" if gate is None else gate.value for gate in {*gates.values()}}
    columns = zip(
        (vma.vm_mm.number for vma in vmas),
        (vma.vm_start for vma in vmas),
        (vma.vm_end for vma in vmas),
        (vma.name for vma in vmas),
        (words[gates[vma]] for vma in vmas),
        before.by_mapping(),
        after.by_mapping(),
        after.swapped.tolist(),
        after.zero.tolist(),
        added.tolist(),
        strict=True,
    )
    return map(VmaUse._make, columns)


def _counters(world: BuiltWorld) -> dict[str, dict[str, int]]:
    """The counters that moved: stats/<order>/<name> as sysfs has them, vmstat, khugepaged."""
    vmstat = world.kernel.vmstat
    return {
        "stats": {
            f"hugepages-{world.kernel.geometry.size_name(order)}/stats/{name}": value
            for (order, name), value in sorted(vmstat.mthp.items())
            if value
        },
        "vmstat": {name: value for name, value in sorted(vmstat.events.items()) if value},
        "khugepaged": {
            "full_scans": world.khugepaged.full_scans,
            "pages_collapsed": world.khugepaged.pages_collapsed,
        },
    }
