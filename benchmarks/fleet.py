# SPDX-License-Identifier: GPL-2.0-or-later
"""A fleet made from real captures: python -m benchmarks.fleet FOLDER --n 1000 --seed 1.

Each snapshot is the bundled Redis, or one that the lab recorded, with some of its tables left out, pages of
others emptied, and a host, a day, a kernel and settings of its own. The same seed gives the same files.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mthp.words.files import replacing

ROOT = Path(__file__).parents[1]
REDIS = ROOT / "src/mthp/data/redis.npz"
RECORDED = ROOT / "tests/data/captured-7.3.4.zip"
QUICK = ("13-1", "13-3", "13-4", "13-10", "6-1", "6-4", "u6-2")
"""Those of them that are not mostly the engine's."""
KERNELS = ["7.3.4", "7.3.4", "7.2.9", "6.18.15"]
USUAL = {"defrag": "1", "scan_sleep_millisecs": "10000", "alloc_sleep_millisecs": "60000"}
"""Of khugepaged: the lab has it wait until it is told."""

Members = dict[str, NDArray[Any]]


def originals() -> list[Members]:
    """The captures that all are made from; half of them Redis."""
    with zipfile.ZipFile(RECORDED) as archive:
        names = [f"captures/{name}.snap.npz" for name in QUICK]
        files = [REDIS.read_bytes()] * len(QUICK) + [archive.read(name) for name in names]
    found = []
    for data in files:
        with np.load(io.BytesIO(data)) as file:
            found.append(dict(file))
    return found


def varied(members: Members, host: str, time: str, kernel: str, rng: random.Random) -> Members:
    """A snapshot of another machine."""
    random_of = np.random.default_rng(rng.getrandbits(64))
    rows = len(members["pte"])
    kept = random_of.random(rows) < rng.uniform(0.5, 1)
    made = {name: each if name == "meta" else each[kept] for name, each in members.items()}
    # Only small pages of one process: a part of a large folio, or of what is shared, is another story.
    plain = (made["pte"] & (1 | 8 | 16)) == 1
    plain &= (made["folio_order"] == 0) & (made["kpagecount"] == 1)
    gone = plain & (random_of.random(plain.shape) < rng.choice([0, 0.001, 0.01, 0.1]))
    for each in made.values():
        if each.shape == gone.shape:
            each[gone] = 0
    left = made["pte"].any(axis=1)
    made = {name: each if name == "meta" else each[left] for name, each in made.items()}
    meta = json.loads(made["meta"].tobytes())
    meta.update(hostname=host, time=time, kernel=kernel)
    knobs = {**USUAL, "max_ptes_none": rng.choice(["511", "511", "0", "409"])}
    meta["sysfs"].update({f"khugepaged/{name}": f"{value}\n" for name, value in knobs.items()})
    made["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    return made


def make_fleet(folder: Path, n: int, seed: int) -> list[Path]:
    """Write so many snapshots of half as many machines, of some days each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, base, paths = random.Random(seed), originals(), []
    for number in range(n):
        machine = number % max(n // 2, 1)
        kind = random.Random(seed * 1_000_003 + machine)
        host, kernel, original = f"host-{machine:04}", kind.choice(KERNELS), kind.choice(base)
        day = 1 + number // max(n // 2, 1)
        members = varied(original, host, f"2026-11-{day:02}T03:00:00Z", kernel, rng)
        paths.append(folder / f"{host}-{day:02}.npz")
        with replacing(paths[-1]) as file:
            np.savez_compressed(file, allow_pickle=False, **members)
    return paths


def main() -> None:
    """Make a fleet as the command line says."""
    parser = argparse.ArgumentParser(description="Make a fleet of snapshots from real ones.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(f"{len(make_fleet(args.folder, args.n, args.seed))} snapshots in {args.folder}")


if __name__ == "__main__":
    main()
