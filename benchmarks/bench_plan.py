# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans against the engine on one image; and what plans and a sweep cost, in copies of a bitmap.

Run as: PYTHONPATH=src python benchmarks/bench_plan.py [GIB]. The peer in the same run: the engine under the
same settings, from the same arrays.
"""

from __future__ import annotations

import sys
import tempfile
import time
from itertools import product
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

from benchmarks.images import GIB, write_image  # noqa: E402
from benchmarks.plan import main as in_copies  # noqa: E402
from mthp.image.snapshot import load  # noqa: E402
from mthp.plan.planner import Planner  # noqa: E402
from mthp.plan.sweep import with_sizes  # noqa: E402
from mthp.predict.outcome import Request, run_world  # noqa: E402
from mthp.words.profiles import PROFILES  # noqa: E402
from mthp.words.settings import Settings  # noqa: E402
from mthp.worlds.build import arrays_of, build_arrays  # noqa: E402

SIZES = {"all": range(2, 10), "2048kB": (9,), "64kB": (4,), "64kB and 2048kB": (4, 9)}


def main() -> None:
    """Print the tables."""
    gib = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    profile = PROFILES["7.3"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.npz"
        write_image(path, int(gib * GIB))
        image = load(path)
    base = Settings.from_sysfs(image.sysfs, image.geometry)
    began = time.perf_counter()
    planner = Planner(arrays_of(image), profile, base)
    print(f"tables sorted: {time.perf_counter() - began:.3f} s\n")
    print("| sizes, max_ptes_none | plan, first | plan, again | engine | engine / first |")
    print("|---|---:|---:|---:|---:|")
    for (name, orders), none in product(SIZES.items(), (0, 511)):
        settings = with_sizes(base, frozenset(orders)).replace(max_ptes_none=none)
        times = []
        for _ in range(2):
            began = time.perf_counter()
            plan = planner.plan(settings)
            times.append(time.perf_counter() - began)
        began = time.perf_counter()
        world = build_arrays(arrays_of(image), settings, profile)
        outcome = run_world(world, Request("", "", "", changes=False))
        engine = time.perf_counter() - began
        assert plan.memory_added == outcome.memory_added
        print(f"| {name}, {none} | {times[0]:.3f} s | {times[1] * 1000:.1f} ms | {engine:.2f} s | "
              f"{engine / times[0]:.0f} |", flush=True)  # fmt: skip
    print(f"\n{plan.counted_tables} tables counted, {plan.engine_tables} by the engine")
    print("\nIn copies of a bitmap (python -m benchmarks.plan):\n")
    sys.argv[1:] = []
    in_copies()


if __name__ == "__main__":
    main()
