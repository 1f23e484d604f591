# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast `mthp snap` reads page tables, beside a plain read() of pagemap and tools/mm/thpmaps.

Run as: PYTHONPATH=src python -m benchmarks.bench_snap [--thpmaps PATH] [--gib 8] [--as-root]; or, with
bench_deep: THPMAPS=PATH python -m benchmarks.run snap deep.
As root the measured part runs as nobody (a process without root sees and pays less), once more as
root with --as-root. All rates of a row come from one run, readers taking turns; the best counts.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from mthp.image.capture import command as capture
from mthp.image.capture.host import host_geometry
from mthp.image.capture.pagemap import Scanner
from mthp.image.capture.proc import open_pagemap, read_vmas
from mthp.image.capture.tables import TableReader

GIB = 1 << 30
PAGE = os.sysconf("SC_PAGE_SIZE")
ROUNDS = 9
SNAP = (sys.executable, "-m", "mthp.image.capture")
PLAN = ("--profile", "7.3", "--enabled", "all=always", "--max-ptes-none", "0")
MAP_NORESERVE = 0x4000  # not in the mmap module of Python 3.11
PATTERNS = {
    "first tenth": "pages written from the start on, a tenth of the VMA",
    "blocks": "runs of 1 to 40 pages, nine times as much hole after each",
    "every 10th": "one page in ten, everywhere: no whole table is empty",
}
WHOLE = {
    "all written": "in order",
    "all, scattered": "in any order: no two frames lie side by side",
}
"""Further patterns for those who read as root."""
SPARSELY = {
    "a page in 16 MiB": 256 * GIB,
    "a page in 16 MiB of 1 TiB": 1 << 40,
}
"""Further patterns, of so many bytes."""


def touched(pattern: str, pages: int) -> Iterator[int]:
    if pattern == "first tenth":
        yield from range(pages // 10)
    elif pattern == "every 10th":
        yield from range(0, pages, 10)
    elif pattern in SPARSELY:
        yield from range(0, pages, (16 << 20) // PAGE)
    elif pattern in WHOLE:
        places = list(range(pages))
        if pattern == "all, scattered":
            random.Random(1).shuffle(places)
        yield from places
    else:
        at, length = 0, 1
        while at < pages:
            yield from range(at, min(at + length, pages))
            at += 10 * length
            length = length * 7 % 41 or 1


@contextmanager
def process(pattern: str, size: int) -> Iterator[tuple[int, int]]:
    """A child with a VMA of size bytes populated in the pattern: its pid and the VMA's address."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        memory = mmap.mmap(-1, size, flags=flags)
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        for page in touched(pattern, size // PAGE):
            memory[page * PAGE] = 1
        vmas = read_vmas(os.getpid())
        mine = max(vmas, key=lambda vma: vma.sizes.get("anonymous", 0))
        os.write(writing, str(mine.start).encode())
        signal.pause()
    try:
        yield pid, int(os.read(reading, 32))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def plain_read(pagemap: int, start: int, size: int) -> None:
    """Every pagemap word of a range into one buffer, and nothing done with it."""
    buffer = bytearray(1 << 20)
    at, stop = start // PAGE * 8, (start + size) // PAGE * 8
    while at < stop:
        at += os.preadv(pagemap, [buffer], at)


def read_tables(pid: int, pagemap: int, start: int, size: int, exclusive: bool) -> None:
    """What the capture does with the range: find, read, decode, classify each table."""
    scanner = Scanner(pagemap)
    scan = scanner if scanner.works() else None
    geometry = host_geometry()
    reader = TableReader(pid, pagemap, geometry, scan, exclusive)
    for _ in reader.batches([(geometry.pmd_addr(start), geometry.pmd_align_up(start + size))]):
        pass


def best(jobs: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Seconds of each job, the best of ROUNDS, the jobs taking turns."""
    found = dict.fromkeys(jobs, float("inf"))
    for _ in range(ROUNDS):
        for name, job in jobs.items():
            began = time.perf_counter()
            job()
            found[name] = min(found[name], time.perf_counter() - began)
    return found


def snap(pid: int, *options: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        argv = ["--pid", str(pid), "-o", folder + "/x.npz", "--quiet", *options]
        if capture.main(argv):
            raise SystemExit("the capture failed")


def measure(size: int) -> dict[str, dict[str, float]]:
    """Per pattern: seconds of each way."""
    table: dict[str, dict[str, float]] = {}
    for pattern in PATTERNS:
        with process(pattern, size) as (pid, start):
            pagemap = open_pagemap(pid)
            table[pattern] = best(
                {
                    "plain read()": partial(plain_read, pagemap, start, size),
                    "tables": partial(read_tables, pid, pagemap, start, size, False),
                    "tables, exclusive": partial(read_tables, pid, pagemap, start, size, True),
                    "whole snap --no-exclusive": partial(snap, pid, "--no-exclusive"),
                    "whole snap": partial(snap, pid),
                }
            )
            os.close(pagemap)
    return table


SPARSE = "sparse 1 TiB"


def sparse() -> float:
    """Seconds of a whole capture of a 1 TiB VMA with a page in every 16 GiB."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        memory = mmap.mmap(-1, 1 << 40, flags=flags)
        for page in range(64):
            memory[page << 34] = 1
        os.write(writing, b"!")
        signal.pause()
    os.read(reading, 1)
    try:
        return best({SPARSE: lambda: snap(pid)})[SPARSE]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def time_thpmaps(tool: str, pattern: str, size: int) -> dict[str, float]:
    """CPU seconds of thpmaps (root only), of whole captures by root, and of a plan of the live process, each
    a fresh interpreter: the best of ROUNDS, in turns; infinite where a command fails."""
    from benchmarks.bench_size import cost  # not in the worker's copy of this file

    best_of: dict[str, float] = {}
    with process(pattern, size) as (pid, _), tempfile.TemporaryDirectory() as folder:
        which = ["--pid", str(pid)]
        out = [*which, "-o", folder + "/x.npz", "--quiet"]
        commands = {
            "thpmaps": [sys.executable, tool, *which, "--rollup", "--inc-empty"],
            "standard library alone": [*SNAP, *out],
            "mthp snap": [sys.executable, "-m", "mthp", "snap", *out],
            "mthp plan": [sys.executable, "-m", "mthp", "plan", *which, *PLAN],
        }
        for _ in range(ROUNDS):
            for name, command in commands.items():
                before = best_of.get(name, float("inf"))
                with suppress(RuntimeError):
                    before = min(before, cost(*command)[0])
                best_of[name] = before
    return best_of


def peak_rss(size: int, *options: str) -> int:
    """Bytes of a lone capture that reads a VMA of that size, every 10th page populated."""
    with process("every 10th", size) as (pid, _), tempfile.TemporaryDirectory() as folder:
        command = [*SNAP, "--pid", str(pid), "--quiet"]
        child = subprocess.Popen([*command, "-o", folder + "/x.npz", *options])
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = status
        if status:
            raise SystemExit("the capture failed")
        return usage.ru_maxrss << 10


def show(table: dict[str, dict[str, float]], size: int, who: str) -> None:
    ptes = size // PAGE
    print(f"\n{size >> 30} GiB VMA, one tenth populated, read {who}; million PTEs a second (ratio)")
    for pattern, times in table.items():
        plain = times["plain read()"]
        print(f"  {pattern}: {PATTERNS[pattern]}")
        for name, seconds in times.items():
            print(f"    {name:28}{ptes / seconds / 1e6:9.1f}  {plain / seconds:6.2f}")


def worker(arguments: argparse.Namespace) -> None:
    """The measured part, perhaps as nobody: prints one JSON document."""
    size = arguments.gib * GIB
    result = {"tables": measure(size), "sparse": sparse(), "rss": peak_rss(size)}
    result["self"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(json.dumps(result))


def report(arguments: argparse.Namespace, as_nobody: bool) -> None:
    command = [sys.executable, __file__, "--worker", "--gib", str(arguments.gib)]
    here = os.fspath(Path(__file__).parent.parent / "src")
    python = "/usr/bin/python3"
    with tempfile.TemporaryDirectory() as folder:
        if as_nobody:  # a copy that nobody may read, run by an interpreter that nobody may run
            os.chmod(folder, 0o755)
            shutil.copytree(here, folder + "/src", dirs_exist_ok=True)
            shutil.copy(__file__, folder)
            here = folder + "/src"
            nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
            command = [*nobody, python, f"{folder}/{Path(__file__).name}", *command[2:]]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": here}, check=True
        )
    result = json.loads(done.stdout)
    who = "as nobody" if as_nobody or os.geteuid() else "as root"
    show(result["tables"], arguments.gib * GIB, who)
    print(f"  sparse 1 TiB, whole snap: {result['sparse']:.3f} s (goal: under 2 s)")
    print(f"  peak RSS of a lone capture: {result['rss'] / (1 << 20):.1f} MiB (goal: under 100)")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gib", type=int, default=8, help="size of the VMA (default 8)")
    parser.add_argument(
        "--thpmaps",
        metavar="PATH",
        default=os.environ.get("THPMAPS"),
        help="tools/mm/thpmaps of a kernel tree; root (default: the environment's THPMAPS)",
    )
    parser.add_argument("--as-root", action="store_true", help="measure as root too")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        worker(arguments)
        return 0
    root = os.geteuid() == 0
    report(arguments, as_nobody=root)
    if root and arguments.as_root:
        report(arguments, as_nobody=False)
    if root and arguments.thpmaps:
        print("\nas root, whole commands from a fresh interpreter, CPU seconds, and of thpmaps's\n")
        print("| memory | thpmaps | standard library alone | mthp snap | mthp plan --pid |")
        print("|---|--:|--:|--:|--:|")
        for pattern in (*PATTERNS, *WHOLE, *SPARSELY):
            size = SPARSELY.get(pattern, arguments.gib * GIB)
            theirs, *ours = time_thpmaps(arguments.thpmaps, pattern, size).values()
            told = "fails" if theirs == float("inf") else f"{theirs:.2f} s"
            cells = " | ".join(f"{seconds:.2f} s: {seconds / theirs:.2f}" for seconds in ours)
            print(f"| {size >> 30} GiB, {pattern} | {told} | {cells} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
