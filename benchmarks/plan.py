# SPDX-License-Identifier: GPL-2.0-or-later
"""What plans cost, in copies of the bitmap of all pages: one plan of 1 TiB, and a sweep over 64 GiB.

Run as: python -m benchmarks.plan [--json]. The copy is numpy.copyto() between two arrays that are there, in
turns with what it is compared with; times are CPU seconds, the shortest of all rounds. Two workers against
one are wall-clock time, which says something on an idle machine of two CPUs or more alone; their CPU seconds
say what dividing the work costs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src")]

from mthp.image.snapshot import Kpf, Pte  # noqa: E402
from mthp.mm.page_alloc import NodeState  # noqa: E402
from mthp.mm.pgtable_types import DIRTY, YOUNG  # noqa: E402
from mthp.mm.vm_flags import VM_DEFAULT  # noqa: E402
from mthp.plan.bulk import Below, Limits, PackedPages, Shape  # noqa: E402
from mthp.plan.packed import Bools, Tally, Words, compiled, pack, tally  # noqa: E402
from mthp.plan.planner import Planner  # noqa: E402
from mthp.plan.records import BulkVerdict, Wish  # noqa: E402
from mthp.plan.sweep import Sweeper, with_sizes  # noqa: E402
from mthp.plan.sweep import grid as usual_grid  # noqa: E402
from mthp.words.profiles import PROFILES  # noqa: E402
from mthp.words.settings import Settings  # noqa: E402
from mthp.words.units import Geometry  # noqa: E402
from mthp.worlds.arrays import ImageProcess, ImageVma, TableArrays, WorldArrays  # noqa: E402

GEOMETRY = Geometry()
TABLES = (1 << 40) // GEOMETRY.pmd_size
SWEEP_TABLES = (64 << 30) // GEOMETRY.pmd_size
SETTINGS = 1000
ROUNDS = 15
PINNED = 128
"""Tables of the image that the engine has to decide about, where workers are measured."""
START = 0x7F0000000000
_ANON = sum(1 << kpf for kpf in (Kpf.ANON, Kpf.LRU, Kpf.SWAPBACKED, Kpf.UPTODATE))


def mixed(number: int) -> Bools:
    """Tables of which a third is full, and the others have runs of pages and of none, of all lengths."""
    rng = np.random.default_rng(1)
    share = rng.choice([1.0, 0.97, 0.7], (number, 1))
    length = rng.choice([1, 4, 16, 64], (number, 1))
    which = np.arange(GEOMETRY.ptrs_per_pte) // length
    filled: Bools = (
        np.take_along_axis(rng.random((number, GEOMETRY.ptrs_per_pte)), which, 1) < share
    )
    return filled


def image() -> WorldArrays:
    """64 GiB, of which every sixteenth table has folios of order 4."""
    filled = mixed(SWEEP_TABLES)
    addresses = START + np.arange(SWEEP_TABLES, dtype=np.uint64) * np.uint64(GEOMETRY.pmd_size)
    order = np.zeros(filled.shape, np.uint8)
    order[::16] = 4
    tables = TableArrays(
        addresses,
        pte=filled * np.uint16(Pte.PRESENT),
        bits=np.broadcast_to(np.uint8(DIRTY | YOUNG), filled.shape),
        pfn=np.arange(filled.size, dtype=np.uint64).reshape(filled.shape),
        kpageflags=np.broadcast_to(np.uint64(_ANON), filled.shape),
        kpagecount=np.broadcast_to(np.uint32(1), filled.shape),
        folio_order=order,
    )
    end = START + SWEEP_TABLES * GEOMETRY.pmd_size
    vmas = (ImageVma(START, end, VM_DEFAULT, anon_vma=True),)
    return WorldArrays((NodeState(None),), [ImageProcess(1, "made", 0, None, vmas, tables)])


def grid(base: Settings) -> list[Settings]:
    """A thousand settings: any sizes, and four values of max_ptes_none."""
    masks = (frozenset(k for k in range(2, 10) if mask >> k & 1) for mask in range(4, 1 << 10, 4))
    return [
        with_sizes(base, mask).replace(max_ptes_none=none)
        for mask, none in islice(product(masks, (0, 64, 128, 511)), SETTINGS)
    ]


def plan(pages: Words, tally: Tally) -> int:
    """How much is copied of all tables, as one run, with every order enabled and max_ptes_none 0."""
    every = Limits(GEOMETRY.anon_orders_mask, 0, Below.FULL)
    run = np.zeros(1, np.intp)
    shape = Shape(PackedPages(pages, {0: pages}), run, run, GEOMETRY, tally)
    return sum(each.copied for each in shape.collapsed(np.ones(1, np.bool_), every))


def shortest(works: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """The seconds that each takes, in turns."""
    times = []
    for _ in range(rounds):
        for work in works:
            began = time.process_time()
            work()
            times.append(time.process_time() - began)
    return [min(times[k :: len(works)]) for k in range(len(works))]


def copy_of(pages: Words) -> Callable[[], object]:
    """What copies the bitmap once."""
    into = pages.copy()
    return lambda: np.copyto(into, pages)


def measured() -> dict[str, float | None]:
    """All figures."""
    kinds = pack(mixed(8192))
    pages = kinds.take(np.random.default_rng(2).integers(0, kinds.shape[1], TABLES), axis=1)
    tallies: dict[str, Tally] = {"numpy": tally}
    try:
        tallies["compiled"] = compiled()
    except ImportError:
        print("Numba is not installed: nothing is compiled", file=sys.stderr)
    answers = {plan(pages, each) for each in tallies.values()}
    assert len(answers) == 1
    works = [lambda each=each: plan(pages, each) for each in tallies.values()]
    copy, *times = shortest([copy_of(pages), *works], ROUNDS)
    found: dict[str, float | None] = {
        "tables": TABLES, "bitmap_bytes": pages.nbytes, "memcpy_seconds": copy,
        "ratio_numpy": None, "ratio_compiled": None, "bitmaps_numpy": None, "bitmaps_compiled": None,
    }  # fmt: skip
    for (name, each), seconds in zip(tallies.items(), times, strict=True):
        found[f"ratio_{name}"] = seconds / copy
        tracemalloc.start()
        plan(pages, each)
        found[f"bitmaps_{name}"] = 1 + tracemalloc.get_traced_memory()[1] / pages.nbytes
        tracemalloc.stop()
    return found | swept() | divided()


def swept() -> dict[str, float | None]:
    """Those of a sweep. Sorting out the tables of the image is not in it, all counting is."""
    base, arrays = Settings(), image()
    settings = grid(base)
    bits = np.zeros(SWEEP_TABLES << GEOMETRY.pmd_order - 6, np.uint64)
    times, copies = [], []
    for _ in range(4):
        planner = Planner(arrays, PROFILES["7.3"], base)
        copies += shortest([copy_of(bits)], 50)
        began = time.process_time()
        for each in settings:
            planner.plan(each)
        times.append(time.process_time() - began)
    return {
        "sweep_settings": len(settings), "sweep_tables": SWEEP_TABLES,
        "sweep_seconds": min(times), "ratio_sweep": min(times) / min(copies),
    }  # fmt: skip


def divided() -> dict[str, float | None]:
    """Those of the usual grid over the same image, of which memory in some tables is pinned, on one process
    and on two, in turns."""
    base, arrays = Settings(), image()
    (process,) = arrays.processes
    starts = process.tables.table_address[1 : 2 * PINNED : 2].tolist()
    pins = tuple((start, start + GEOMETRY.page_size) for start in starts)
    arrays = replace(arrays, processes=[replace(process, pins=pins)])
    tried = [*usual_grid(base, PROFILES["7.3"])]
    walls, spent = dict[int, list[float]](), dict[int, list[float]]()
    answers = list[list[BulkVerdict]]()
    for _, jobs in product(range(3), (1, 2)):
        planner = Planner(arrays, PROFILES["7.3"], base)
        began, before = time.monotonic(), os.times()[:4]
        answers.append(Sweeper(planner, Wish(), jobs=jobs, alone=0).plans(tried))
        walls.setdefault(jobs, []).append(time.monotonic() - began)
        spent.setdefault(jobs, []).append(sum(os.times()[:4]) - sum(before))
    assert all(each == answers[0] for each in answers)
    return {
        "one_worker_seconds": min(walls[1]), "ratio_two_workers": min(walls[1]) / min(walls[2]),
        "cpu_two_workers": min(spent[2]) / min(spent[1]),
    }  # fmt: skip


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    args = parser.parse_args()
    found = measured()
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print("| what | figure |\n|---|---:|")
    for name, figure in found.items():
        print(f"| {name.replace('_', ' ')} | {'none' if figure is None else f'{figure:,.4g}'} |")


if __name__ == "__main__":
    main()
