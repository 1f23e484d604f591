# SPDX-License-Identifier: GPL-2.0-or-later
"""A program in a guest, phase by phase: what khugepaged makes of it, what shrinkers give back, and memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mthp.compare.forecast import Prediction, compare, predict
from mthp.compare.planned import plan_beside
from mthp.compare.records import Forecast, PhaseMemory
from mthp.image.snapshot import Pte, Snapshot, load
from mthp.lab.session.real_program import SnapshotPair
from mthp.words.settings import Settings
from mthp.worlds.unseen import Young


def forecasts(
    target: str, pair: SnapshotPair, settings: Settings, young: Young
) -> Iterator[Forecast]:
    """Hold what is predicted of the captures of a phase against those made later: one forecast of khugepaged,
    and where shrinkers were called one of what they leave.

    ValueError: a snapshot shows no folios, or its settings or its state are impossible.
    """
    before, after = load(pair.before), load(pair.after)
    target += f", {pair.phase}" * bool(pair.phase)
    measured = None
    if pair.paced is not None:
        measured = plan_beside(before, after, settings, pair.paced, young)
    found = predict(before, young, shrink=pair.shrunk is not None)
    memory = None
    if pair.phase and pair.shrunk is None:
        memory = memory_of(pair.phase, before, found, (after,))
    yield compare(
        target, before, after, pair.full_scans, young, measured=measured, found=found, memory=memory
    )
    if pair.shrunk is not None:
        shrunk = load(pair.shrunk)
        memory = memory_of(pair.phase, before, found, (after, shrunk))
        yield compare(
            f"{target}, shrunk", before, shrunk, pair.full_scans, young, shrunk=True, found=found,
            memory=memory,
        )  # fmt: skip


def memory_of(
    phase: str, before: Snapshot, found: Prediction, later: tuple[Snapshot, ...]
) -> PhaseMemory:
    """The memory of a phase. later: when khugepaged has come to rest, and when shrinkers have been called."""
    loaded = folio_bytes(before)
    collapsed, *shrunk = [
        (loaded + more, folio_bytes(each)) for more, each in zip(found.grown, later, strict=False)
    ]
    if not shrunk:
        return PhaseMemory(phase, loaded, collapsed)
    return PhaseMemory(phase, loaded, collapsed, shrunk[0], *found.split)


def folio_bytes(snapshot: Snapshot) -> int:
    """The bytes of all folios of which a process maps an anonymous page: whole, and each once."""
    found = np.zeros((0, 2), np.int64)
    for process in snapshot.processes:
        if process.pfn is None or process.folio_order is None:
            raise ValueError(f"process {process.pid}: the snapshot shows no folios (not root)")
        here = (process.pte & (Pte.PRESENT | Pte.ZERO | Pte.FILE)) == Pte.PRESENT
        orders = process.folio_order[here].astype(np.int64)
        heads = process.pfn[here].astype(np.int64) >> orders << orders
        found = np.unique(np.concatenate([found, np.stack([heads, orders], axis=1)]), axis=0)
    return int((1 << found[:, 1]).sum()) << snapshot.geometry.page_shift
