# SPDX-License-Identifier: GPL-2.0-or-later
"""Is a plan what the engine makes of the same tables? Held to it on random tables, in one count.

    python -m tests.plan --tables 100000 --seeds 1-8

Draws images (tests/plan/draw.py) until so many tables have been decided by counting, and runs the
engine over each whole image. Tables that the plan hands to the engine are counted apart, since of
those it claims what the engine says. Counts are kept under build/plan by commit, so that a run that
was interrupted goes on; a difference is printed with the command that shows it again. Ends with 1 if
there is one. --recorded holds every state that was recorded of real kernels instead.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random

from mthp.image.scenario import load
from mthp.plan.occupancy import TableKind, entangled, mapped_again, occupancy_of
from mthp.plan.packed import Bools, Tally, tally
from mthp.plan.planner import Planner
from mthp.words.profiles import PROFILES
from mthp.words.settings import Enabled
from mthp.worlds.build import arrays_of
from tests.plan.draw import Draw, drawn
from tests.plan.held import EngineRun, Place, differences, engine
from tests.plan.images import random_settings

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
BUILD = ROOT / "build" / "plan"
A_PIECE = 50
"""Images that are kept together."""
DRAINED = "differ only by what waits in an LRU batch (decision 0015)"
COUNTED = "tables decided by counting"
ENGINES = "tables handed to the engine"


def kinds_of(draw: Draw) -> Iterator[tuple[Place, TableKind]]:
    """What decides about each table that a mapping spans whole."""
    processes, geometry = [*draw.arrays.processes], draw.settings.geometry
    tied = entangled(processes, geometry, outside=bool(draw.arrays.outside))
    again = mapped_again(processes)
    for process, of_process in zip(processes, tied, strict=True):
        found = occupancy_of(process, of_process, draw.profile, geometry, again)
        for address, kind in zip(
            process.tables.table_address[found.row].tolist(), found.kind.tolist(), strict=True
        ):
            yield (process.pid, address), TableKind(kind)


def hold(draw: Draw, by: Tally = tally) -> tuple[Counter[str], list[str]]:
    """Hold the plan for a draw against the engine. Returns what was counted, and how they differ."""
    arrays = replace(draw.arrays, processes=[*draw.arrays.processes])
    planner = Planner(arrays, draw.profile, draw.settings, tally=by)
    plan = planner.plan(draw.settings)
    run = engine(arrays, draw.settings, draw.profile)
    counted = frozenset(() if plan.all_engine else _places(planner, planner.counted(draw.settings)))
    found = differences(planner, plan, run, counted)
    said = Counter[str]({COUNTED: plan.counted_tables, ENGINES: plan.engine_tables})
    if len(counted) != plan.counted_tables and not plan.all_engine:
        found.append(f"{plan.counted_tables} tables are said to be counted, {len(counted)} are")
    kinds = dict(kinds_of(draw))
    said.update(_decided(kinds, counted, run))
    if not plan.all_engine:
        refused = {place for place, kind in kinds.items() if kind is TableKind.REFUSED}
        found += [
            f"a window of {table} was tried, whose scan is refused" for table in refused & run.tried
        ]
    if found and plan.engine_tables and not plan.all_engine:
        # Each scan of a table begins with drained batches if khugepaged sleeps after each.
        alone = draw.settings.replace(pages_to_scan=1)
        drained = Planner(arrays, draw.profile, alone, tally=by)
        apart = differences(
            drained, drained.plan(alone), engine(arrays, alone, draw.profile), counted
        )
        ours = [line for line in found if "windows are the" in line]
        if not apart and not ours:
            return said + Counter({DRAINED: 1}), []
    return said, found


def _places(planner: Planner, tables: list[Bools]) -> Iterator[Place]:
    for process, which in zip(planner.processes, tables, strict=True):
        for address in process.tables.table_address[which].tolist():
            yield process.pid, address


def _decided(
    kinds: dict[Place, TableKind], counted: frozenset[Place], run: EngineRun
) -> Iterator[str]:
    """A word for each table, to be counted."""
    down = 2**21 - 1
    collapsed = {
        (pid, address & ~down) for pid, windows in run.windows.items() for address, _ in windows
    }
    for place, kind in kinds.items():
        yield f"{kind.name}: drawn"
        if place in counted:
            yield f"{kind.name}: counted"
            if place in collapsed:
                yield f"{kind.name}: counted, and something collapses"


def one(seed: int, number: int) -> Draw:
    """The draw of a seed with this number."""
    return drawn(Random(f"{seed}/{number}"))


def piece(seed: int, numbers: range) -> tuple[Counter[str], list[str]]:
    """Some draws of a seed."""
    said, found = Counter[str](), list[str]()
    for k in numbers:
        draw = one(seed, k)
        try:
            counted, differ = hold(draw)
        except Exception:
            print(f"\nstopped at --replay {seed}/{k}", file=sys.stderr)
            raise
        said += counted
        said["images"] += 1
        said[f"profile {draw.profile.name}"] += counted[COUNTED]
        sizes = sum(mode is not Enabled.NEVER for mode in draw.settings.sizes.values())
        said[f"{min(sizes, 3)}{' or more' if sizes > 2 else ''} sizes on"] += counted[COUNTED]
        if differ:
            found.append(f"{seed}/{k}")
            print(f"\npython -m tests.plan --replay {seed}/{k}", *differ, sep="\n  ", flush=True)
    return said, found


def recorded() -> tuple[Counter[str], list[str]]:
    """Every state that was recorded, as it was and under settings that are drawn."""
    said, found = Counter[str](), list[str]()
    for path in sorted(DATA.glob("l[ai][bn]*.jsonl.xz")):
        rnd = Random(path.name)
        for k, scenario in enumerate(load(path)):
            tried = [scenario.settings]
            if scenario.geometry == tried[0].geometry:
                tried += [random_settings(rnd) for _ in range(2)]
            for settings in tried:
                counted, differ = hold(Draw(arrays_of(scenario), settings, PROFILES["7.3"]))
                said += counted
                said[f"states of {path.name}"] += settings is tried[0]
                said["plans"] += 1
                if differ:
                    found.append(f"{path.name} {k}")
                    print(f"\n{path.name}, state {k}, {settings}", *differ, sep="\n  ", flush=True)
    return said, found


def commit() -> str | None:
    """That which is checked out; None where there is none, or files were changed since."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return None if git("status", "--porcelain", "src", "tests") else git("rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None


def campaign(
    seeds: list[int], tables: int, kept: Path | None, images: int = A_PIECE
) -> tuple[Counter[str], list[str]]:
    """Pieces of each seed in turn, until so many tables are decided by counting. kept: where what is known
    stands, of pieces of as many images."""
    said, found = Counter[str](), list[str]()
    known = {}
    if kept is not None and kept.exists():
        known = {(each[0], each[1]): each[2:] for each in map(json.loads, kept.open())}
    for number in count():
        for seed in seeds:
            if said[COUNTED] >= tables:
                return said, found
            if (seed, number) not in known:
                some = range(number * images, (number + 1) * images)
                known[seed, number] = piece(seed, some)
                if kept is not None:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    with kept.open("a") as file:
                        print(json.dumps((seed, number, *known[seed, number])), file=file)
            counted, differ = known[seed, number]
            said.update(counted)
            found += differ
            print(f"\r{said[COUNTED]:,} counted", end="", file=sys.stderr, flush=True)
    raise AssertionError


def report(said: Counter[str], found: list[str]) -> None:
    """Print the counts, and which draws differ."""
    print(file=sys.stderr, flush=True)
    for name in sorted(said):
        print(f"{said[name]:>10,}  {name}")
    print(f"{len(found):>10,}  differences", *found)


def main(words: list[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--tables", type=int, default=100_000, help="as many are to be decided by counting"
    )
    parser.add_argument("--seeds", default="1-4", help="A-B, which take turns")
    parser.add_argument("--replay", metavar="SEED/N", help="one draw, with all that was drawn")
    parser.add_argument("--recorded", action="store_true", help="every recorded state")
    args = parser.parse_args(words)
    if args.replay:
        seed, number = map(int, args.replay.split("/"))
        draw = one(seed, number)
        said, found = hold(draw)
        print(draw.profile.name, draw.settings)
        for place, kind in kinds_of(draw):
            print(f"{place[0]} {place[1]:#x} {kind.name}")
        print(*found, sep="\n")
        found = found and [args.replay]
    elif args.recorded:
        said, found = recorded()
    else:
        first, _, last = args.seeds.partition("-")
        at = commit()
        kept = None if at is None else BUILD / f"{at}.jsonl"
        said, found = campaign([*range(int(first), int(last or first) + 1)], args.tables, kept)
    report(said, found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
