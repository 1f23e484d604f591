# SPDX-License-Identifier: GPL-2.0-or-later
"""When the compiled explorer should take over from the reference: seconds of a CPU, by executions.

    python benchmarks/switch_over.py [SIZE:RIVAL+RIVAL]...

For each world, the seconds that a search needs until it has made so many executions: with the reference
alone, and where the compiled explorer takes over after that many. Nothing is known of the engine's
classes when a search begins, as in a fresh process; machine code that Numba keeps is loaded each time.
"""

from __future__ import annotations

import sys
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from mthp.explore.compiled.explorer import MEMORY, CompiledExplorer, Speed
from mthp.explore.explore import Explorer, Until
from mthp.explore.part import Part
from mthp.races.world import RaceWorld

WORLDS = [
    "pmd:guest+uffd-move",
    "pmd:store+fault",
    "window:guest",
    "pmd:migrate+fork",
    "pmd:gup+swap-in",
]
UNTIL = [150, 300, 500, 750, 1000, 1500, 2000, 3000]
SWITCH = [150, 300, 500, 1000]

Curve = list[tuple[int, float]]


def run(
    search: Callable[..., Any], part: Part | None, most: int, **options: Any
) -> tuple[Curve, Part]:
    """(executions, seconds) while a search runs, and how far it came."""
    began = time.process_time()
    curve: Curve = []

    def note(explorer: Any) -> bool:
        curve.append((explorer.executions, time.process_time() - began))
        return True

    explorer = search(
        part=part, until=Until.END, most_executions=most, may_continue=note, **options
    )
    explorer.search()
    note(explorer)
    return curve, explorer.part()


def seconds(curve: Curve, executions: int) -> str:
    at = bisect_left(curve, (executions, 0.0))
    return f"{curve[at][1]:8.2f}" if at < len(curve) else " " * 8


def row(what: str, curve: Curve) -> None:
    print(f"{what:24}", *(seconds(curve, n) for n in UNTIL), f"{curve[-1][1]:8.2f}")


def compare(name: str) -> None:
    size, rivals = name.split(":")
    world = RaceWorld.parse(size, "7.3", tuple(rivals.split("+")))
    reference, whole = run(lambda **all: Explorer(world, **all), None, UNTIL[-1])
    print(f"\n{name}: {whole.counts.executions} executions, {whole.counts.steps} steps")
    print(f"{'executions':24}", *(f"{n:8}" for n in UNTIL), "     all")
    row("reference", reference)
    for switch in SWITCH:
        before, part = run(lambda **all: Explorer(world, **all), None, switch)
        if part.done:
            break
        for speed in (Speed.PLAIN, Speed.NUMBA):
            MEMORY.written.clear()
            MEMORY.changing.clear()
            after, _ = run(
                lambda **all: CompiledExplorer(world, **all), part, UNTIL[-1], speed=speed
            )
            curve = [(n, before[-1][1] + spent) for n, spent in after]
            row(f"from {switch} on, {speed.name}", curve)


if __name__ == "__main__":
    for world in sys.argv[1:] or WORLDS:
        compare(world)
