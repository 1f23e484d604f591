# SPDX-License-Identifier: GPL-2.0-or-later
"""What a recording costs the recorded: a Redis load alone and recorded, in turns; and how fast lives are
replayed.

Run as: PYTHONPATH=src python -m benchmarks.bench_record (root, tracefs, redis-server, redis-benchmark).
The server's own CPU time is what counts on a shared machine: other processes lengthen its run, not that.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from mthp.image.record.tracefs import tracefs
from mthp.image.recording import load_recording
from mthp.life.recorded_life import without_huge_pages
from mthp.life.recorded_replay import RecordedReplay
from mthp.words.settings import Settings, parse_enabled_flag

ROUNDS = 7
REQUESTS = 300_000
LOADS = (
    ("set", "-n", str(REQUESTS), "-r", str(REQUESTS), "-d", "1000", "-P", "16"),
    ("get", "-n", str(REQUESTS), "-r", str(REQUESTS), "-P", "16"),
    ("lpush", "-n", str(REQUESTS // 2), "-d", "200"),
)
RECORD = (sys.executable, "-m", "mthp", "record", "--quiet", "-o")
SIZES = ("", "64kB=always", "2MB=always", "all=always")


class Run(NamedTuple):
    """One run of the load. cpu: the server's seconds; wall: the load's."""

    cpu: float
    wall: float
    recorder: float


def free_port() -> int:
    """A TCP port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process up to now."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def serve(folder: Path, recorded: Path | None) -> Run:
    """Run the load once, against a server that is recorded or not."""
    port = free_port()
    server = ["redis-server", "--port", str(port), "--save", "", "--dir", str(folder)]
    command = [*RECORD, str(recorded), "--", *server] if recorded else server
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as started:
        pid = started.pid
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.02)
        if recorded:
            below = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
            pid = next(
                int(each)
                for each in below
                if Path(f"/proc/{each}/comm").read_text() == "redis-server\n"
            )
        began = time.perf_counter()
        for kind, *options in LOADS:
            subprocess.run(
                ["redis-benchmark", "-p", str(port), "-q", "-t", kind, *options],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        run = Run(
            cpu_seconds(pid),
            time.perf_counter() - began,
            cpu_seconds(started.pid) if recorded else 0.0,
        )
        subprocess.run(
            ["redis-cli", "-p", str(port), "shutdown", "nosave"],
            check=False,
            stdout=subprocess.DEVNULL,
        )
    return run


WORST = {
    "nothing but first touches, of 1 GiB": (
        "char *p = mmap(0, 1ul << 30, 3, 0x22, -1, 0); madvise(p, 1ul << 30, 15);"
        "for (long i = 0; i < 1l << 30; i += 4096) p[i] = 1;",
        (),
    ),
    "nothing but system calls, 3 million": ("for (int i = 0; i < 3000000; i++) getppid();", ()),
    "stores all over 256 MiB, with --zero 0.5": (
        "char *p = mmap(0, 1ul << 28, 3, 0x22, -1, 0); madvise(p, 1ul << 28, 15);"
        "for (int k = 0; k < 200; k++) for (long i = 0; i < 1l << 28; i += 4096) p[i + k] = 1;",
        ("--zero", "0.5"),
    ),
    "maps and unmaps 2 MiB beside 256 MiB, with --zero 0.5": (
        "char *p = mmap(0, 1ul << 28, 3, 0x22, -1, 0); madvise(p, 1ul << 28, 15);"
        "for (long i = 0; i < 1l << 28; i += 4096) p[i] = 1;"
        "for (int k = 0; k < 100000; k++) munmap(mmap(0, 2 << 20, 3, 0x22, -1, 0), 2 << 20);",
        ("--zero", "0.5"),
    ),
}
"""Programs of which nothing is done but what is slower while it is recorded, and how they are recorded."""


def worst(folder: Path) -> None:
    """Print what recording costs programs that do nothing else."""
    print("\n| CPU time of a program that does | alone | recorded | ratio, median | of each pair |")
    print("|---|--:|--:|--:|---|")
    for title, (body, options) in WORST.items():
        source, program, said = folder / "worst.c", folder / "worst", folder / "said"
        source.write_text(
            "#include <stdio.h>\n#include <sys/mman.h>\n#include <sys/resource.h>\n#include <unistd.h>\n"
            f"int main(int n, char **a) {{ {body} struct rusage r; getrusage(RUSAGE_SELF, &r);"
            'FILE *f = fopen(a[1], "w"); fprintf(f, "%f", r.ru_utime.tv_sec + r.ru_stime.tv_sec +'
            "(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6); fclose(f); }\n"
        )
        subprocess.run(["gcc", "-O1", "-o", program, source], check=True)
        pairs = []
        for _ in range(ROUNDS):
            times = []
            for words in ([], [*RECORD, str(folder / "worst.npz"), *options, "--"]):
                subprocess.run([*words, str(program), str(said)], check=True)
                times.append(float(said.read_text()))
            pairs.append((times[0], times[1]))
        ratios = sorted(recorded / alone for alone, recorded in pairs)
        one, other = (median(pair[k] for pair in pairs) for k in (0, 1))
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {title} | {one:.2f} s | {other:.2f} s | {median(ratios):.2f} | {each} |")


def replays(path: Path) -> None:
    """Print how fast the recording is replayed."""
    recording = load_recording(path)
    events = len(recording.kind)
    print(f"\nrecording: {events:,} events, {path.stat().st_size / events:.1f} bytes each\n")
    print("| replayed | events a second |\n|---|---:|")
    off = without_huge_pages(Settings())
    for text in SIZES:
        settings = off.with_enabled(parse_enabled_flag(text)) if text else off
        best = 0.0
        for _ in range(3):
            began = time.perf_counter()
            RecordedReplay(recording, settings).run()
            best = max(best, events / (time.perf_counter() - began))
        print(f"| {text or 'no huge pages'} | {best:,.0f} |")


def main() -> None:
    """Print the table."""
    tracefs()
    for tool in ("redis-server", "redis-benchmark", "redis-cli"):
        if shutil.which(tool) is None:
            raise FileNotFoundError(f"{tool} is not here")
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "redis.npz"
        alone, recorded = [], []
        for _ in range(ROUNDS):
            alone.append(serve(Path(name), None))
            recorded.append(serve(Path(name), file))
        ratios = [one.cpu / other.cpu for one, other in zip(recorded, alone, strict=True)]
        walls = [one.wall / other.wall for one, other in zip(recorded, alone, strict=True)]
        print("| Redis, SET, GET, LPUSH | alone | recorded | ratio, median | of each pair |")
        print("|---|--:|--:|--:|---|")
        for title, which, of in (("server's CPU time", "cpu", ratios), ("run time", "wall", walls)):
            one, other = (
                median(getattr(each, which) for each in runs) for runs in (alone, recorded)
            )
            each = ", ".join(f"{ratio:.2f}" for ratio in sorted(of))
            print(f"| {title} | {one:.2f} s | {other:.2f} s | {median(of):.3f} | {each} |")
        print(
            f"\nthe recorder's own CPU time until then: {median(run.recorder for run in recorded):.2f} s"
        )
        worst(Path(name))
        replays(file)


if __name__ == "__main__":
    main()
