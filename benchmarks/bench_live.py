# SPDX-License-Identifier: GPL-2.0-or-later
"""`mthp sweep --pid` of a Redis against `mthp snap --pid` of the same, in turns: CPU seconds, byte code kept.

Run as root: PYTHONPATH=src python -m benchmarks.bench_live [GIB]. It needs redis-server and redis-cli.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.bench_size import cost

ROUNDS = 5
VALUE = 4000
"""Bytes of each value; with its key some 4,230 with what Redis and its allocator add."""
MTHP = (sys.executable, "-m", "mthp")


@contextmanager
def redis(size: int) -> Iterator[int]:
    """A Redis of some size, which holds values alone; its process number."""
    with tempfile.TemporaryDirectory() as folder:
        socket = folder + "/socket"
        server = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--dir", folder,
             "--enable-debug-command", "yes"],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while not Path(socket).exists():
                time.sleep(0.1)
            tell = [
                "redis-cli",
                "-s",
                socket,
                "debug",
                "populate",
                str(size // 4230),
                "key",
                str(VALUE),
            ]
            subprocess.run(tell, check=True, stdout=subprocess.DEVNULL)
            yield server.pid
        finally:
            server.kill()
            server.wait()


def main() -> None:
    """Print the table."""
    gib = float(sys.argv[1]) if len(sys.argv) > 1 else 8.0
    if not shutil.which("redis-server"):
        print("redis-server is not installed: left out")
        return
    with redis(int(gib * (1 << 30))) as pid, tempfile.TemporaryDirectory() as folder:
        line = Path(f"/proc/{pid}/smaps_rollup").read_text().partition("Rss:")[2].split()[0]
        target = ["--pid", str(pid), "--quiet"]
        commands = {
            "snap": [*MTHP, "snap", *target, "-o", folder + "/x.npz"],
            "sweep": [*MTHP, "sweep", *target, "--profile", "7.3", "--max-added", "5"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, command in commands.items():
                times[name].append(cost(*command)[0])
    snap, sweep = (min(each) for each in times.values())
    print("| a Redis of | snap | sweep | sweep / snap |\n|---|--:|--:|--:|")
    cells = " | ".join(f"{min(each):.2f} to {max(each):.2f} s" for each in times.values())
    print(f"| {int(line) / (1 << 20):.1f} GiB | {cells} | {sweep / snap:.2f} |")


if __name__ == "__main__":
    main()
