# SPDX-License-Identifier: GPL-2.0-or-later
"""What `mthp collapse` of a live process costs by what is populated: CPU seconds and peak RSS, as ratios;
and what `mthp snap` of 12 GiB of small pages costs, against reading the same of the kernel once with NumPy.

Run as: PYTHONPATH=src python benchmarks/bench_size.py; with "pages" behind it, the second part alone. Each
pair holds the same pages, in one dense mapping or 50 of them, and spread over a large one or 50,000; the
commands take turns.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

PAGE = mmap.PAGESIZE
MAP_NORESERVE = 0x4000
PAGES = 4096
TIB = 1 << 40
FLAGS = ("--enabled", "2048kB=always", "--max-ptes-none", "0", "--quiet")
MOST_SMALL = 12 << 30
READ_ONCE = """
import os, sys, numpy as np

def words(file, first, count):
    found = np.empty(count, np.uint64)
    view, done = found.data.cast("B"), 0
    while done < len(view):
        done += os.preadv(file, [view[done:]], 8 * first + done)
    return found

pid, start, pages = map(int, sys.argv[1:])
entries = words(os.open(f"/proc/{pid}/pagemap", os.O_RDONLY), start // 4096, pages)
frames = np.sort(entries & np.uint64((1 << 55) - 1)).astype(np.int64)
starts = np.flatnonzero(np.diff(frames, prepend=-65) > 64).tolist()
for name in ("kpageflags", "kpagecount"):
    file = os.open("/proc/" + name, os.O_RDONLY)
    for i, j in zip(starts, [*starts[1:], len(frames)]):
        first = int(frames[i])
        words(file, first, int(frames[j - 1]) - first + 1)[frames[i:j] - first]
"""
"""Reads the entries of a mapping, and two words of each frame that is in them."""


def spread(size: int) -> None:
    """4,096 pages, evenly spread over one mapping."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    memory = mmap.mmap(-1, size, flags=flags)
    for page in range(PAGES):
        memory[page * (size // PAGES)] = 1
    KEPT.append(memory)


def split(mappings: int) -> None:
    """100,000 pages, in so many mappings: every second one may be executed."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 5]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = 100_000 * PAGE
    start = libc.mmap(None, size, 3, 0x22 | MAP_NORESERVE, 2**64 - 1, 0)
    for at in range(start, start + size, PAGE):
        ctypes.memset(at, 1, 1)
    part = size // mappings
    for at in range(start, start + size, 2 * part):
        if libc.mprotect(at, part, 7):
            raise OSError(ctypes.get_errno(), "mprotect")


KEPT: list[mmap.mmap] = []
PROCESSES: dict[str, Callable[[], None]] = {
    "4,096 pages, dense": lambda: spread(PAGES * PAGE),
    "the same in 1 TiB": lambda: spread(TIB),
    "the same in 16 TiB": lambda: spread(16 * TIB),
    "100,000 pages in 50 mappings": lambda: split(50),
    "the same in 50,000": lambda: split(50_000),
}


@contextmanager
def process(make: Callable[[], None]) -> Iterator[int]:
    """A child that has made its memory."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        make()
        os.write(writing, b"!")
        signal.pause()
    try:
        os.read(reading, 1)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
        os.close(writing)


def mthp(*arguments: str) -> tuple[float, float]:
    """CPU seconds and peak MiB of one command."""
    return cost(sys.executable, "-m", "mthp", *arguments)


def cost(*command: str) -> tuple[float, float]:
    """CPU seconds and peak MiB of a child, which finds its byte code as people have it."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    usage: resource.struct_rusage
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{command[2:5]} ended with {child.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def small_pages(size: int, where: int, *, scattered: bool) -> None:
    """So many bytes of small pages, written in order or in any; their address is written to a descriptor."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    pages = np.frombuffer(memory, np.uint8)[::PAGE]
    if scattered:
        pages[np.random.default_rng(1).permutation(len(pages))] = 1
    else:
        pages[:] = 1
    os.write(where, str(ctypes.addressof(ctypes.c_char.from_buffer(memory))).encode())
    KEPT.append(memory)


def without_advice(file: str) -> None:
    """Take MADV_NOHUGEPAGE from the mappings of a snapshot."""
    with np.load(file) as members:
        arrays = dict(members)
    meta = json.loads(arrays["meta"].tobytes())
    for vma in meta["processes"][0]["vmas"]:
        vma["flags"] = " ".join(code for code in vma["flags"].split() if code != "nh")
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez(file, **arrays)


def snapshot_table(rounds: int, *, scattered: bool) -> None:
    """Print what a snapshot of small pages costs: 12 GiB, or half of what memory is free."""
    size = min(MOST_SMALL, os.sysconf("SC_AVPHYS_PAGES") * PAGE // 2) >> 21 << 21
    reading, writing = os.pipe()
    peer = snap = (float("inf"), 0.0)
    with (
        process(lambda: small_pages(size, writing, scattered=scattered)) as pid,
        tempfile.TemporaryDirectory() as folder,
    ):
        once = (sys.executable, "-c", READ_ONCE, str(pid), os.read(reading, 32).decode())
        file = os.path.join(folder, "small.npz")
        for _ in range(rounds):
            peer = min(peer, cost(*once, str(size // PAGE)))
            snap = min(snap, mthp("snap", "--pid", str(pid), "-o", file, "--quiet"))
        rows = {"NumPy, once": peer, "mthp snap": snap}
        if not scattered:
            rows["mthp collapse FILE, nothing collapses"] = mthp("collapse", file, *FLAGS)
            without_advice(file)
            tables = mthp("collapse", file, *FLAGS, "--free-memory", "16G")
            rows["mthp collapse FILE, all tables collapse"] = tables
    how = ", in any order" if scattered else ""
    print(f"| {size / 2**30:.1f} GiB of small pages{how} | CPU | x NumPy | peak RSS |")
    print("|---|--:|--:|--:|")
    for name, (seconds, mib) in rows.items():
        print(f"| {name} | {seconds:.2f} s | {seconds / peer[0]:.2f} | {mib:.0f} MiB |")
    print()


def main(rounds: int = 2) -> None:
    """Print the table."""
    best: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        for name, make in PROCESSES.items():
            with process(make) as pid:
                now = mthp("collapse", "--pid", str(pid), *FLAGS)
                best[name] = min(best.get(name, (float("inf"), 0.0)), now)
    print("| process | CPU | x the first of its kind | peak RSS |")
    print("|---|--:|--:|--:|")
    peer = 1.0
    for name, (seconds, mib) in best.items():
        peer = peer if name.startswith("the same") else seconds
        print(f"| {name} | {seconds:.2f} s | {seconds / peer:.1f} | {mib:.0f} MiB |")
    print()
    for scattered in (False, True):
        snapshot_table(rounds, scattered=scattered)


if __name__ == "__main__":
    if sys.argv[1:] == ["pages"]:
        for each in (False, True):
            snapshot_table(3, scattered=each)
    else:
        main()
