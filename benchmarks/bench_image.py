# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole commands on a large process: `mthp collapse` on a snapshot of 8 GiB, half of it populated.

Run as: PYTHONPATH=src python benchmarks/bench_image.py [--gib 8]. Each command is a fresh process;
its peak RSS is what the kernel counted. The peer in the same run: a fresh process that loads the
same file with numpy.load and passes once over every array. The range of the answer is not asked for: half of
the pages are young in these images, which makes two or three runs of one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

from benchmarks.images import GIB, write_image  # noqa: E402

GOAL_SECONDS, GOAL_MIB = 120, 500
SIZES = ("16kB", "32kB", "64kB", "128kB", "256kB", "512kB", "1024kB", "2048kB")
PEER = """
import sys, numpy
with numpy.load(sys.argv[1]) as file:
    for name in file.files:
        array = file[name]
        int(array.max()), int(numpy.count_nonzero(array))
"""


@dataclass(frozen=True)
class Ran:
    """A finished process: seconds of wall time, peak RSS in MiB, and what it printed."""

    seconds: float
    mib: float
    printed: bytes


def enabled(*sizes: str) -> list[str]:
    """Flags that enable these sizes alone."""
    flags = []
    for size in SIZES:
        flags += ["--enabled", f"{size}={'always' if size in sizes else 'never'}"]
    return flags


SETTINGS = {
    "all orders, max_ptes_none 0": [*enabled(*SIZES), "--max-ptes-none", "0"],
    "all orders, max_ptes_none 511": [*enabled(*SIZES), "--max-ptes-none", "511"],
    "only 2048kB, max_ptes_none 511": [*enabled("2048kB"), "--max-ptes-none", "511"],
    "only 64kB, max_ptes_none 0": [*enabled("64kB"), "--max-ptes-none", "0"],
}


def run(command: list[str], folder: Path) -> Ran:
    """Run to the end; RuntimeError if it fails."""
    source = str(HERE.parent / "src")
    printed, said = folder / "out", folder / "err"
    with printed.open("wb") as out, said.open("wb") as err:
        began = time.perf_counter()
        child = subprocess.Popen(
            command, stdout=out, stderr=err, env={**os.environ, "PYTHONPATH": source}
        )
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(said.read_text().strip() or f"exit code {child.returncode}")
    return Ran(seconds, usage.ru_maxrss / 1024, printed.read_bytes())


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gib", type=int, default=8, help="size of the process (default 8)")
    arguments = parser.parse_args([] if argv is None else argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = folder / "image.npz"
        made = write_image(image, arguments.gib * GIB)
        print(
            f"{arguments.gib} GiB of mappings, {made['tables']:,} tables, {made['present']:,} pages "
            f"present, {made['swapped']:,} swapped; goal: {GOAL_SECONDS} s, {GOAL_MIB} MiB\n"
        )
        peer = run([sys.executable, "-c", PEER, str(image)], folder)
        print("| command | wall | x peer | peak RSS | attempts | attempts/s |")
        print("|---|--:|--:|--:|--:|--:|")
        print(f"| peer: numpy.load, one pass | {peer.seconds:.2f} s | 1 | {peer.mib:.0f} MiB | | |")
        for title, flags in SETTINGS.items():
            for more in ("--no-changes",), ():
                verb = [
                    sys.executable,
                    "-m",
                    "mthp",
                    "collapse",
                    str(image),
                    "--json",
                    "--no-range",
                ]
                ran = run([*verb, *flags, *more], folder)
                attempts = tried(ran.printed)
                # changes are attempts on worlds of their own, which the document does not count
                rate = f"{attempts / ran.seconds:,.0f}" if more else ""
                print(
                    f"| {title}{'' if more else ', with changes'} | {ran.seconds:.1f} s "
                    f"| {ran.seconds / peer.seconds:.0f} | {ran.mib:.0f} MiB | {attempts:,} "
                    f"| {rate} |",
                    flush=True,
                )
    print()


def tried(document: bytes) -> int:
    """Attempts of the run in a `mthp collapse --json` document."""
    read = json.loads(document)
    return int(read["successes"]["attempts"] + read["refused"]["attempts"])


if __name__ == "__main__":
    main(sys.argv[1:])
