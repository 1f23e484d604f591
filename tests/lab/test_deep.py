# SPDX-License-Identifier: GPL-2.0-or-later
"""A deep capture in a guest against the states that its subject made there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mthp.image.snapshot import (
    DisableThp,
    FolioState,
    Kpf,
    ProcessTables,
    Pte,
    PteBit,
    Snapshot,
    load,
)
from mthp.lab.session.boot import Guest, booted
from mthp.lab.session.real_program import provide
from mthp.lab.session.recipes import Recipe
from mthp.lab.session.workload import PYTHON, Command, Workload

from . import states
from .guests import kernel_or_skip

pytestmark = pytest.mark.lab
SECONDS, MEMORY = 120.0, 512
USED = PteBit.YOUNG | PteBit.DIRTY | PteBit.WRITABLE | PteBit.SOFT_DIRTY | PteBit.EXCLUSIVE
BATCHES = np.uint16(
    FolioState.LRU_ADD
    | FolioState.LRU_DEACTIVATE
    | FolioState.LRU_LAZYFREE
    | FolioState.LRU_ACTIVATE
)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    program = "/states.py"
    recipe = Recipe(
        "states", Command((PYTHON, program)), files={program: Path(states.__file__).read_text()}
    )
    path = tmp_path_factory.mktemp("deep") / "deep.npz"
    kernel = kernel_or_skip()
    with (
        provide(recipe, (), MEMORY, lambda _: None) as made,
        booted(kernel, Guest(MEMORY), (made.archive,)) as guest,
    ):
        workload = Workload(guest.machine.channel, guest.session, made.paths)
        workload.prepare()
        workload.start(recipe.start)
        look = f"import os; os.stat({states.READY!r})"
        workload.wait_for(Command((PYTHON, "-c", look)), SECONDS)
        workload.stop()
        workload.snap(path, "--deep", "--zeros")
    yield load(path)


def column(process: ProcessTables, name: str, which: int) -> NDArray[np.uint64]:
    """One table of a member."""
    (row,) = np.flatnonzero(process.table_address == states.BASE + which * states.EACH)
    values: NDArray[np.uint64] = getattr(process, name)[row].astype(np.uint64)
    return values


def only(process: ProcessTables, name: str, which: int) -> int:
    """The value that a whole table of a member has."""
    (value,) = np.unique(column(process, name, which)).tolist()
    return int(value)


def test_nothing_is_torn_of_what_was_stopped(snapshot: Snapshot) -> None:
    assert snapshot.privilege.deep and snapshot.tearing["tables_torn"] == 0
    assert [sentence for sentence in snapshot.unseen if "never" in sentence] == [
        "never visible: locks held for a moment"
    ]


def test_entries(snapshot: Snapshot) -> None:
    first = snapshot.processes[0]
    shared = USED & ~(PteBit.WRITABLE | PteBit.EXCLUSIVE)
    expected = {
        states.WRITTEN: shared, states.COLD: shared & ~PteBit.YOUNG, states.FREED: PteBit.SOFT_DIRTY,
        states.SPLICED: shared, states.HUGE: shared, states.FOLIOS: shared,
    }  # fmt: skip
    pinned = first.pte_bits is not None
    assert pinned
    for which, bits in expected.items():
        assert only(first, "pte_bits", which) == bits, which
    assert (column(first, "pte", states.READ) & int(Pte.ZERO) != 0).all()
    assert only(first, "refcount", states.READ) == 0


def test_pages_of_zeros(snapshot: Snapshot) -> None:
    process = snapshot.processes[0]
    expected = np.arange(512) % 2 == 0
    expected[0] = False
    assert (column(process, "zero_filled", states.ZEROS) == expected).all()
    for which in (states.WRITTEN, states.READ, states.HUGE):
        assert only(process, "zero_filled", which) == 0


def test_references_and_batches(snapshot: Snapshot) -> None:
    first = snapshot.processes[0]
    for which in (states.WRITTEN, states.COLD, states.FREED, states.SPLICED):
        assert only(first, "folio_mapcount", which) == 3
        waits = column(first, "folio_state", which) & np.uint64(BATCHES) != 0
        more = column(first, "refcount", which).astype(np.int64) - 3 - waits
        pinned = 3 if which == states.SPLICED else 0
        assert more.tolist() == [1] * pinned + [0] * (512 - pinned), which
    freed = column(first, "folio_state", states.FREED) == int(FolioState.LRU_LAZYFREE)
    swapbacked = column(first, "kpageflags", states.FREED) >> np.uint64(Kpf.SWAPBACKED) & np.uint64(
        1
    )
    assert (freed == (swapbacked != 0)).all(), "what waits is still swap-backed"


def test_large_folios(snapshot: Snapshot) -> None:
    _, first, child, grandchild = sorted(
        snapshot.processes, key=lambda each: (each.deep and each.deep.registered) or 0
    )
    assert first.deep and child.deep and grandchild.deep
    assert only(first, "folio_order", states.HUGE) == 9
    assert only(first, "folio_mapcount", states.HUGE) == only(first, "refcount", states.HUGE) == 3
    half = slice(256)
    state = FolioState.ON_DEFERRED_LIST | FolioState.PARTIALLY_MAPPED
    assert set(column(first, "folio_state", states.HALF)[half].tolist()) == {state}
    assert set(column(first, "folio_mapcount", states.HALF)[half].tolist()) == {3 * 256}
    assert only(first, "folio_order", states.FOLIOS) == 4
    assert (
        only(first, "folio_mapcount", states.FOLIOS) == only(first, "refcount", states.FOLIOS) == 48
    )
    word = only(first, "mm_ids", states.FOLIOS)
    assert word >> 63 == 1, "three mms map it: FOLIO_MM_IDS_SHARED"
    slots = {word & 0x7FFF_FFFF, word >> 32 & 0x7FFF_FFFF}
    assert slots == {first.deep.mm_id, child.deep.mm_id} != {grandchild.deep.mm_id}
    assert only(first, "mm_id_mapcounts", states.FOLIOS) == 15 << 32 | 15
    assert only(grandchild, "mm_ids", states.FOLIOS) == word


def test_processes(snapshot: Snapshot) -> None:
    """The one that was forked before huge pages were enabled is not on the list, the others are in order."""
    by_place = {each.deep.registered: each.deep for each in snapshot.processes if each.deep}
    places = sorted(place for place in by_place if place is not None)
    assert len(snapshot.processes) == 4 and len(places) == 3 and None in by_place
    assert places[-1] < snapshot.meta["deep"]["mms"]
    modes = [by_place[place].disable_thp for place in places]
    assert modes == [DisableThp.NO, DisableThp.EXCEPT_ADVISED, DisableThp.NO]
    assert len({each.mm_id for each in by_place.values()}) == 4


def test_empty_tables(snapshot: Snapshot) -> None:
    first = snapshot.processes[0]
    assert first.deep is not None
    for which in (states.UNTOUCHED, states.WRITTEN, states.EMPTIED):
        at = states.BASE + which * states.EACH
        inside = any(start <= at < end for start, end in first.deep.empty_tables)
        assert inside is (which == states.EMPTIED), which


def test_anon_vmas(snapshot: Snapshot) -> None:
    first = snapshot.processes[0]
    of = {vma.start: vma.anon_vma for vma in first.vmas}
    written = {
        states.WRITTEN,
        states.COLD,
        states.FREED,
        states.SPLICED,
        states.HUGE,
        states.FOLIOS,
    }
    for which in written | {states.UNTOUCHED}:
        assert of[states.BASE + which * states.EACH] is (which in written), which
