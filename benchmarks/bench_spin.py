# SPDX-License-Identifier: GPL-2.0-or-later
"""Exhausting the collapse against faulting CPUs: our explorers, and SPIN on the same protocol.

Seconds of the CPU, which other programs disturb least, and of each the shortest of several runs.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.clock import show_seconds
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

ROUNDS = 3
REPEAT = 15
PATIENCE = 2.0
"""Seconds of a round: slow searches are repeated less often in it."""
EMPTY = "init { skip }\n"
"""A model with one state: what a verifier takes to start and to end."""


@dataclass(frozen=True)
class Verifier:
    """A way to compile and call pan. seconds: of the CPU, the shortest run; start: without any search.

    compiling: seconds that spin and the C compiler took. empty: the verifier of a model with one state.
    """

    name: str
    pan: Path
    empty: Path
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
                    empty,
                    bits,
                    searched,
                    min(search(pan, bits).seconds for _ in range(REPEAT)),
                    min(search(empty, bits).seconds for _ in range(REPEAT)),
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
    """Ours beside pan, in seconds of the CPU. ours, pan: the shortest runs; empty: of a verifier without
    any search; first: of our first search, with what it compiles or learns once.
    """

    ours: float
    pan: float
    empty: float
    first: float

    @property
    def whole(self) -> float:
        """Ours to pan's whole process."""
        return self.ours / self.pan

    @property
    def alone(self) -> float:
        """Ours to pan's search, without its start and its end."""
        return self.ours / max(self.pan - self.empty, 1e-6)


def compare(run: Search, world: RaceWorld, best: Verifier) -> Compared:
    """Ours and pan's in rounds, in which each runs several times on end: whichever came first after the
    other would have the cold caches. What is compiled once is not counted, for either.
    """
    first = _seconds(lambda: run(world))
    ours: list[float] = []
    pan: list[float] = []
    empty: list[float] = []
    for _ in range(ROUNDS):
        ours += _round(lambda: _seconds(lambda: run(world)))
        pan += _round(lambda: search(best.pan, best.table_bits).seconds)
        empty += _round(lambda: search(best.empty, best.table_bits).seconds)
    return Compared(min(ours), min(pan), min(empty), first)


def _seconds(work: Callable[[], object]) -> float:
    """Seconds of the CPU that this process takes for it."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def _round(run: Callable[[], float]) -> list[float]:
    """The seconds of each of several runs on end."""
    runs = [run()]
    while len(runs) < REPEAT and sum(runs) < PATIENCE:
        runs.append(run())
    return runs


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
    print("| world, rivals | search | size | CPU time | x pan | x pan's search alone | compiling |")
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
                compared = compare(run, world, best)
                executions = run(world).coverage.executions
                compiling = show_seconds(max(compared.first - compared.ours, 0.0))
                print(
                    f"| {what} | {name} | {executions:,} executions, {ends} final "
                    f"| {show_seconds(compared.ours)} | {compared.whole:.2f} "
                    f"| {compared.alone:.2f} | {compiling} |",
                    flush=True,
                )
