# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs recorded once, predicted under several settings, and then really run under them.

Run as: PYTHONPATH=src python -m benchmarks.lives --set-thp (root, tracefs, gcc, redis). It writes the
switches below /sys/kernel/mm/transparent_hugepage, while it runs, and puts back what was there. What is
compared is RssAnon when the program is done with its work and still has its memory.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.bench_record import free_port
from mthp.image.recording import load_recording
from mthp.life.recorded_life import held_against, without_huge_pages
from mthp.life.recorded_replay import RecordedReplay
from mthp.words.settings import TRANSPARENT_HUGEPAGE, Settings, parse_enabled_flag

RUNS = 3
SETTINGS = {
    "none": "all=never",
    "64kB": "64kB=always",
    "16kB and 64kB": "16kB=always,64kB=always",
    "2MB": "2MB=always",
    "every size": "all=always",
}
RECORD = (sys.executable, "-m", "mthp", "record", "--quiet", "-o")
SORT = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int less(const void *a, const void *b) { return strcmp(*(char **)a, *(char **)b); }
int main(void)
{
    unsigned seed = 1;
    size_t used = 0, room = 16;
    char **lines = malloc(room * sizeof *lines), text[200];
    for (; used < 400000; used++) {
        if (used == room)
            lines = realloc(lines, (room *= 2) * sizeof *lines);
        size_t length = 1 + (seed = seed * 1103515245 + 12345) % 150;
        memset(text, 'a' + seed % 26, length);
        text[length] = 0;
        lines[used] = strdup(text);
    }
    qsort(lines, used, sizeof *lines, less);
    for (size_t i = 0; i < used; i += 3)
        free(lines[i]);
    printf("done\n");
    fflush(stdout);
    pause();
}
"""
TREE = """
import json, random, sys, signal
random.seed(1)
tree = {f"key{i}": [random.random() for _ in range(random.randrange(8))] for i in range(100_000)}
for i in range(0, 100_000, 3):
    del tree[f"key{i}"]
text = json.dumps(tree)
again = json.loads(text)
del again
kept = [bytes(random.randrange(100, 300_000)) for _ in range(300)]
del kept[::2]
print("done", flush=True)
signal.pause()
"""


class Subject:
    """A program to be run. words: its command. work: what is done to it from outside, until it is done."""

    def __init__(self, words: list[str], work: Callable[[subprocess.Popen[str]], None]) -> None:
        self.words, self.work = words, work


def says_done(process: subprocess.Popen[str]) -> None:
    """Wait until the program says that it is done."""
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"


def redis_of(port: int) -> Callable[[subprocess.Popen[str]], None]:
    """What is done to a Redis: fill, delete half, save in a child while it is written to."""

    def ask(*words: str) -> str:
        command = ["redis-cli", "-p", str(port), *words]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout

    def work(_: subprocess.Popen[str]) -> None:
        until = time.monotonic() + 30
        while "PONG" not in ask("ping") and time.monotonic() < until:
            time.sleep(0.05)
        ask("debug", "populate", "300000", "key", "700")
        script = "for i = 0, 299999, 2 do redis.call('del', 'key:' .. i) end"
        ask("eval", script, "0")
        ask("debug", "populate", "100000", "other", "300")

    return work


@contextmanager
def switched(enabled: str) -> Iterator[None]:
    """The host's switches as asked, for as long as the body runs."""
    files = [Path(TRANSPARENT_HUGEPAGE, "enabled")]
    files += sorted(Path(TRANSPARENT_HUGEPAGE).glob("hugepages-*/enabled"))
    before = {}
    for file in files:
        found = re.search(r"\[(\w+)\]", file.read_text())
        assert found is not None
        before[file] = found[1]
    try:
        wanted = settings_of(enabled)
        for file, value in before.items():
            if file.parent.name.startswith("hugepages-"):
                order = wanted.geometry.order_of(int(file.parent.name[10:-2]) << 10)
                value = str(wanted.size_enabled(order))
            else:
                value = str(wanted.enabled)
            file.write_text(value)
        yield
    finally:
        for file, value in before.items():
            file.write_text(value)


def settings_of(enabled: str) -> Settings:
    """The settings that are predicted and set."""
    return without_huge_pages(Settings()).with_enabled(parse_enabled_flag(enabled))


def status(pid: int) -> dict[str, int]:
    """RssAnon of a process, and what of its memory is mapped by PMDs, in kB."""
    text = Path(f"/proc/{pid}/status").read_text() + Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {
        name: int(kib) for name, kib in re.findall(r"^(RssAnon|AnonHugePages):\s+(\d+)", text, re.M)
    }


def child_named(parent: int, name: str) -> int:
    """The child of a process that bears this name."""
    for each in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if Path(f"/proc/{each}/comm").read_text().strip() == name[:15]:
            return int(each)
    raise LookupError(name)


def run(subject: Subject, recorded: Path | None = None) -> dict[str, int]:
    """Run the program to where it is done, and look."""
    words = [*RECORD, str(recorded), "--", *subject.words] if recorded else subject.words
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        subject.work(process)
        pid = process.pid
        if recorded:
            pid = child_named(process.pid, os.path.basename(os.path.realpath(subject.words[0])))
        found = status(pid)
        os.kill(pid, signal.SIGKILL)
    return found


def subjects(folder: Path) -> dict[str, Subject]:
    """The programs."""
    (folder / "sort.c").write_text(SORT)
    subprocess.run(["gcc", "-O1", "-o", folder / "sort", folder / "sort.c"], check=True)
    port = free_port()
    server = ["redis-server", "--port", str(port), "--save", "", "--disable-thp", "no"]
    server += ["--enable-debug-command", "yes", "--logfile", "/dev/null", "--dir", str(folder)]
    python = os.path.realpath(sys.executable)
    return {
        "a sort in C": Subject([str(folder / "sort")], says_done),
        "CPython": Subject([python, "-c", TREE], says_done),
        "Redis": Subject(server, redis_of(port)),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--set-thp", action="store_true", help="yes, write the host's switches")
    if not parser.parse_args().set_thp or os.geteuid():
        raise PermissionError("it writes the host's switches: as root, and with --set-thp")
    with tempfile.TemporaryDirectory() as name:
        print(
            "| program | sizes always | predicted RssAnon | real runs | difference | as without |"
        )
        print("|---|---|---:|---|---:|---:|")
        for title, subject in subjects(Path(name)).items():
            file = Path(name) / "life.npz"
            run(subject, file)
            recording = load_recording(file)
            base = 0
            for sizes, enabled in SETTINGS.items():
                replay = RecordedReplay(recording, settings_of(enabled))
                replay.run()
                assert replay.end is not None
                predicted = replay.end.rss << 2
                base = base or predicted
                with switched(enabled):
                    real = [run(subject)["RssAnon"] for _ in range(RUNS)]
                near = min(real, key=lambda kib: abs(kib - predicted))
                off = 0.0 if min(real) <= predicted <= max(real) else 100 * (predicted / near - 1)
                print(
                    f"| {title} | {sizes} | {predicted:,} kB | {', '.join(f'{kib:,}' for kib in real)} | "
                    f"{off:+.2f} % | {100 * (base / (sum(real) / len(real)) - 1):+.1f} % |",
                    flush=True,
                )
            held = held_against(recording, Settings())
            print(
                f"| {title} | recorded | {held.samples} samples | worst {held.worst:+} pages | | |"
            )


if __name__ == "__main__":
    main()
