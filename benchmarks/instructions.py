# SPDX-License-Identifier: GPL-2.0-or-later
"""Count the engine's machine instructions, in this checkout and in another, where no noise reaches them.

`python benchmarks/instructions.py OTHER [ROW ...]` runs each row under valgrind's cachegrind, with the
worlds of each checkout's own bench_engine.py, and prints how many instructions one work takes: the run
that does WORKS of them, less the run that does none. OTHER is a checkout of another commit, such as
`git worktree add ../before 4e4a9aa` makes. About a minute for each row.
"""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
WORKS = 6
SCANS = 20


def rows() -> dict[str, tuple[Callable[[], Any], Callable[[Any], object]]]:
    """What makes a world, and the work to be done in it, of the checkout that is imported."""
    from benchmarks import bench_engine
    from benchmarks.worlds import OLD_PTE, TableWorld, only

    bench: Any = bench_engine  # of whichever checkout; with what it imports
    every = dict.fromkeys(range(2, 10), bench.Enabled.ALWAYS)
    ragged = bench.Settings(sizes=every, max_ptes_none=0)

    def scans(world: Any) -> None:
        scan = bench.pass_of(world)
        for _ in range(SCANS):
            scan()

    def full_scan(world: Any) -> None:
        daemon = bench.Khugepaged(world.kernel)
        daemon.khugepaged_enter(world.mm)
        daemon.khugepaged_do_scan()

    def daemon(order: int, tables: int) -> Callable[[], Any]:
        return partial(TableWorld, only(order, pages_to_scan=2**32 - 1), tables)

    return {
        "nothing-young": (partial(TableWorld, only(4), 1, pte_flags=OLD_PTE), scans),
        "holes-order-4": (partial(TableWorld, only(4), 1, keep=lambda i: i % 16 != 5), scans),
        "holes-orders-2-9": (partial(TableWorld, ragged, 1, keep=lambda i: i % 4 != 1), scans),
        "collapse-2": (partial(TableWorld, only(2), 2), bench.walk),
        "collapse-4": (partial(TableWorld, only(4), 4), bench.walk),
        "collapse-6": (partial(TableWorld, only(6), 8), bench.walk),
        "collapse-9": (partial(TableWorld, only(9), 8), bench.walk),
        "collapse-9-of-order-4": (partial(TableWorld, only(9), 4, order=4), bench.walk),
        "refused-first-page": (partial(TableWorld, only(4), 8, order=4), bench.walk),
        "refused-last-page": (partial(bench.extra_references, 8), bench.walk),
        "refused-not-young": (partial(TableWorld, only(4), 8, pte_flags=OLD_PTE), bench.walk),
        "full-scan-4": (daemon(4, 4), full_scan),
        "full-scan-9": (daemon(9, 32), full_scan),
    }


def work(row: str, times: int) -> None:
    """Make the same worlds however often the work is done; do it once beforehand. The collector looks
    at what the work makes, and not at all that was imported."""
    make, do = rows()[row]
    do(make())
    worlds = [make() for _ in range(WORKS)]
    gc.freeze()
    for world in worlds[:times]:
        do(world)


def instructions(checkout: Path, row: str, times: int) -> int:
    """How many a run of so many works takes in a checkout, its imports included."""
    with tempfile.NamedTemporaryFile("r") as log:
        valgrind = (
            f"valgrind --tool=cachegrind --cache-sim=no --cachegrind-out-file={os.devnull}".split()
        )
        subprocess.run(
            [
                *valgrind,
                f"--log-file={log.name}",
                sys.executable,
                __file__,
                "--work",
                row,
                str(times),
            ],
            env=os.environ
            | {"PYTHONPATH": f"{checkout / 'src'}:{checkout}", "PYTHONHASHSEED": "0"}
            | {"OPENBLAS_NUM_THREADS": "1"},  # its threads spin before they sleep
            check=True,
        )
        (total,) = (line for line in log.read().splitlines() if re.search("I +refs", line))
    return int(total.rsplit(maxsplit=1)[1].replace(",", ""))


def main() -> None:
    """Print a table of the rows asked for, or of all."""
    other, *chosen = sys.argv[1:]
    print("| row | here, M instructions | there | here / there |\n|---|---:|---:|---:|")
    for row in chosen or rows():
        here, there = (
            (instructions(at, row, WORKS) - instructions(at, row, 0)) / WORKS / 1e6
            for at in (HERE, Path(other).resolve())
        )
        print(f"| {row} | {here:.1f} | {there:.1f} | {here / there:.2f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--work":
        sys.path.pop(0)  # benchmarks/ itself; the checkout stands in PYTHONPATH
        work(sys.argv[2], int(sys.argv[3]))
    else:
        sys.path.insert(0, str(HERE))
        main()
