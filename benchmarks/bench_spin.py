# SPDX-License-Identifier: GPL-2.0-or-later
"""Exhausting the collapse against faulting CPUs: our explorers, and SPIN on the same protocol."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.clock import show_seconds, timed
from benchmarks.explorers import Search, explorers
from benchmarks.spin_peer import (
    REDUCTIONS,
    TABLE_BITS,
    WORLDS,
    Searched,
    build,
    need_spin,
    observed,
    search,
)
from mthp.races.world import RaceWorld

REPEAT = 15
PATIENCE = 5.0
"""Seconds: slow searches are repeated less often, but three times."""
EMPTY = "init { skip }\n"
"""A model with one state: what a verifier takes to start and to end."""


@dataclass(frozen=True)
class Verifier:
    """A way to compile and call pan. seconds: a median; start: of them, without any search.

    compiling: seconds that spin and the C compiler took.
    """

    name: str
    pan: Path
    table_bits: int
    searched: Searched
    seconds: float
    start: float
    compiling: float


def verifiers(folder: Path, names: tuple[str, ...]) -> Iterator[Verifier]:
    """Every way: with and without reduction, and with hash tables from small to large."""
    for reduction, options in REDUCTIONS.items():
        for optimise in ("-O2", "-O3"):
            place = folder / f"{reduction}{optimise}".replace(" ", "-")
            place.mkdir()
            begin = time.perf_counter()
            pan = build(place, names, (*options, optimise))
            compiling = time.perf_counter() - begin
            (place / "empty.pml").write_text(EMPTY, encoding="utf-8")
            empty = _build_empty(place, optimise)
            for bits in TABLE_BITS:
                searched = search(pan, bits)
                if searched.broken:
                    raise RuntimeError(f"SPIN: {searched.broken}")
                yield Verifier(
                    f"{reduction}, {optimise}, -w{bits}",
                    pan,
                    bits,
                    searched,
                    median(search(pan, bits).seconds for _ in range(REPEAT)),
                    median(search(empty, bits).seconds for _ in range(REPEAT)),
                    compiling,
                )


def _build_empty(place: Path, optimise: str) -> Path:
    folder = place / "empty"
    folder.mkdir()
    subprocess.run(["spin", "-a", "../empty.pml"], cwd=folder, check=True, capture_output=True)
    words = ["gcc", optimise, "-w", "-DSAFETY", "-o", "pan", "pan.c"]
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    return folder / "pan"


@dataclass(frozen=True)
class Compared:
    """Ours beside pan. seconds: a median; first: of the first search, with what it compiles or learns
    once. whole, alone: medians of the ratios to pan's whole time and to its search.
    """

    seconds: float
    first: float
    whole: float
    alone: float


def in_turns(run: Search, world: RaceWorld, best: Verifier) -> Compared:
    """Ours and pan's, one after the other. What is compiled once is not counted, for either."""
    first = timed(lambda: run(world), 1)
    times: list[float] = []
    whole: list[float] = []
    alone: list[float] = []
    begin = time.perf_counter()
    while len(times) < 3 or (len(times) < REPEAT and time.perf_counter() - begin < PATIENCE):
        mine = timed(lambda: run(world), 1)
        pan = search(best.pan, best.table_bits).seconds
        times.append(mine)
        whole.append(mine / pan)
        alone.append(mine / max(pan - best.start, 1e-6))
    return Compared(median(times), first, median(whole), median(alone))


def same_ends(world: RaceWorld, names: tuple[str, ...], folder: Path, run: Search) -> int:
    """How many final states there are; RuntimeError unless both searches have the same."""
    theirs = search(build(folder, (*names, "OBSERVE"))).finals
    ours: set[str] = set()
    run(observed(world, ours))
    if theirs != ours:
        raise RuntimeError(f"{world.name}: SPIN ends in {len(theirs)} states, we in {len(ours)}")
    return len(ours)


def main() -> None:
    """Print a row for each world and search."""
    need_spin()
    print("| world, rivals | search | size | time | x pan | x pan's search alone | compiling |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for (size, rivals), names in WORLDS.items():
        world = RaceWorld.parse(size, "7.3", rivals)
        what = f"{size}, {' + '.join(rivals)}"
        with tempfile.TemporaryDirectory() as folder:
            every = list(verifiers(Path(folder), names))
            best = min(every, key=lambda each: each.seconds)
            ends = same_ends(world, names, Path(folder), explorers()["reference explorer"])
            alone = show_seconds(max(best.seconds - best.start, 0.0))
            print(
                f"| {what} | pan: {best.name} | {best.searched.states:,} states, {ends} final "
                f"| {show_seconds(best.seconds)} | 1 | {alone} | {show_seconds(best.compiling)} |"
            )
            for name, run in explorers().items():
                compared = in_turns(run, world, best)
                executions = run(world).coverage.executions
                compiling = show_seconds(max(compared.first - compared.seconds, 0.0))
                print(
                    f"| {what} | {name} | {executions:,} executions, {ends} final "
                    f"| {show_seconds(compared.seconds)} | {compared.whole:.2f} "
                    f"| {compared.alone:.2f} | {compiling} |",
                    flush=True,
                )
