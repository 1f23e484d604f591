# SPDX-License-Identifier: GPL-2.0-or-later
"""`mthp snap --deep` against `mthp snap` of the same process, in turns: CPU seconds, start-up included.

Run as root: PYTHONPATH=src:. python -m benchmarks.bench_deep [GIB]. Where this host has /proc/kcore and type
information, that is read; else a file that is made of the process's own frames, as large as its struct pages
and page tables, so that what reading it costs is a page cache's and not kcore's.
"""

from __future__ import annotations

import os
import struct
import sys
import tempfile
from array import array
from functools import partial
from pathlib import Path

from benchmarks.bench_size import PAGE, cost, process, small_pages
from mthp.image.capture.pagemap import PFN
from mthp.image.capture.proc import read_vmas

ROUNDS = 3
PTRS, TABLE = 512, 2 << 20
HERE = """
import sys
from mthp.image.capture import kernel
kernel.KCORE, kernel.BTF, kernel.KALLSYMS = sys.argv[1:4]
from {module} import main
sys.exit(main(sys.argv[4:]))
"""
LIVE = ("/proc/kcore", "/sys/kernel/btf/vmlinux", "/proc/kallsyms")
WAYS = {"standard library alone": "mthp.image.capture.command", "mthp snap": "mthp.cli"}


def made_core(folder: Path, pid: int) -> tuple[str, str, str]:
    """The paths of a kernel's memory, types and symbols, made of what pagemap says of a process."""
    from tests.image.made_kernel import DIRECT, MadeKernel

    tables: set[int] = set()
    for vma in read_vmas(pid):
        if vma.captured:
            tables.update(range(vma.start & -TABLE, vma.end, TABLE))
    seen: dict[int, list[int]] = {}
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for table in sorted(tables):
            words = array("Q", os.pread(pagemap.fileno(), PTRS * 8, table // PAGE * 8))
            seen[table] = [word & PFN if word >> 63 else 0 for word in words]
    it = MadeKernel(folder, pid, (max(map(max, seen.values())) + 2 << 12) + (64 << 20))
    small = struct.pack("<QQQQQQiiQ", 1 << 3 | 1 << 5 | 1 << 11, 0, 0, 0, 0, 0, 0, 1, 0)
    for table, frames in seen.items():
        at = 0
        while at < PTRS:  # runs of frames at once: a write for each takes minutes
            end = at + 1
            while end < PTRS and frames[end] == frames[at] + end - at:
                end += 1
            if frames[at]:
                os.pwrite(it.file, small * (end - at), it.ram + it.size + frames[at] * 64)
            at = end
        if any(frames):
            it.map(table, [frame << 12 | 0x8000_0000_0000_0867 if frame else 0 for frame in frames])
    it.put(it.mm + 72, it.page() + DIRECT | 1 << 3 | 4)  # a tree of no mappings
    os.close(it.file)
    return str(it.core), str(it.btf), str(it.kallsyms)


def measured(scattered: bool, size: int) -> dict[str, list[float]]:
    """Seconds of a plain and of a deep capture, by each way of looking."""
    reading, writing = os.pipe()
    best = {way: [float("inf")] * 2 for way in WAYS}
    with (
        process(partial(small_pages, size, writing, scattered=scattered)) as pid,
        tempfile.TemporaryDirectory() as name,
    ):
        os.read(reading, 32)
        kernel = LIVE if all(map(os.path.exists, LIVE)) else made_core(Path(name), pid)
        options = ["--pid", str(pid), "-o", f"{name}/x.npz", "--quiet"]
        for _ in range(ROUNDS):
            for way, module in WAYS.items():
                verb = ["snap"] if module == "mthp.cli" else []
                command = (
                    sys.executable,
                    "-c",
                    HERE.format(module=module),
                    *kernel,
                    *verb,
                    *options,
                )
                for deep in (0, 1):
                    took, _ = cost(*command, *["--deep"] * deep)
                    best[way][deep] = min(took, best[way][deep])
    return best


def main() -> None:
    """Print the table."""
    gib = float(sys.argv[1]) if len(sys.argv) > 1 else 8.0
    print("| small pages | way | plain | deep | deep / plain |\n|---|---|--:|--:|--:|")
    for scattered in (False, True):
        how = "in any order" if scattered else "in order"
        for way, (plain, deep) in measured(scattered, int(gib * 2**30) >> 21 << 21).items():
            print(
                f"| {gib:g} GiB {how} | {way} | {plain:.2f} s | {deep:.2f} s | {deep / plain:.2f} |"
            )


if __name__ == "__main__":
    main()
