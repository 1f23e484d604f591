# SPDX-License-Identifier: GPL-2.0-or-later
"""One world's compiled search on one process and on two, from where `mthp check` would split it."""

from __future__ import annotations

import multiprocessing
import resource
import time
from typing import NamedTuple

from benchmarks.clock import show_seconds
from mthp.explore.compiled import jit
from mthp.explore.compiled.explorer import CompiledExplorer, Speed
from mthp.explore.explore import Until
from mthp.explore.parallel import ParallelExplorer, by_twin
from mthp.explore.part import Counts, Key, Part
from mthp.races.world import RaceWorld

WORLDS = (("migrate", "guest"), ("guest", "slot-reuse"), ("guest", "uffd-wp"))
ALONE = 2.0
"""Seconds of a CPU before the search is split."""


class Rest(NamedTuple):
    """The rest of a search. cpu: seconds of all processes."""

    counts: Counts
    seconds: float
    cpu: float


def cpu_seconds() -> float:
    """Of this process and of those that have ended."""
    spent = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in spent)


def rest(world: RaceWorld, processes: int) -> Rest:
    """What is left of a search after ALONE."""
    twin = CompiledExplorer(world, until=Until.END, speed=Speed.NUMBA)
    end = time.process_time() + ALONE
    twin.may_continue = lambda _: time.process_time() < end
    twin.open()
    try:
        twin.search_part(Part(), {})
        begun = twin.part()
        twin.may_continue = None
        cpu, begin = cpu_seconds(), time.perf_counter()
        if processes == 1:
            twin.search_part(begun, {})
            counts = twin.counts
        else:
            search = ParallelExplorer(by_twin(twin), processes, {Key(): begun})
            search.search()
            counts = search.whole.counts
        return Rest(counts, time.perf_counter() - begin, cpu_seconds() - cpu)
    finally:
        twin.close()


def both(world: RaceWorld) -> float:
    """Seconds that two such searches take side by side: what two CPUs of this machine are worth."""
    context = multiprocessing.get_context("fork")
    ends = context.Barrier(2), context.SimpleQueue()

    def one() -> None:
        ends[0].wait()
        ends[1].put(rest(world, 1).seconds)

    searches = [context.Process(target=one) for _ in range(2)]
    for search in searches:
        search.start()
    longest: float = max(ends[1].get() for _ in searches)
    for search in searches:
        search.join()
    return longest


def main() -> None:
    """Print a row for each world."""
    if jit.compiled() is None:
        raise ImportError("Numba is not installed")
    print(
        "| world | executions | one process | CPU | two processes | CPU | faster by | two CPUs are worth |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for rivals in WORLDS:
        world = RaceWorld.parse("pmd", "7.3", rivals)
        most = CompiledExplorer(world, most_executions=300, speed=Speed.NUMBA)
        most.search()  # classes and machine code, once
        known = CompiledExplorer(world, most_executions=300, speed=Speed.NUMBA)
        known.search()  # what is found out about classes, and machine code, once
        one, two = rest(world, 1), rest(world, 2)
        if one.counts != two.counts:
            raise RuntimeError(f"{rivals}: {one.counts} and {two.counts}")
        times = (one.seconds, one.cpu, two.seconds, two.cpu)
        row = " | ".join((f"{one.counts.executions:,}", *map(show_seconds, times)))
        faster, worth = one.seconds / two.seconds, 2 * one.seconds / both(world)
        print(f"| pmd, {' + '.join(rivals)} | {row} | {faster:.2f} | {worth:.2f} |", flush=True)
