# SPDX-License-Identifier: GPL-2.0-or-later
"""A program that clears memory, recorded once on this host with looks at which pages are zero, and run in
guests with huge pages: what memory pressure gets back of it, predicted and really.

Run as: PYTHONPATH=src python -m benchmarks.lives_zero [RELEASE] (root, tracefs, QEMU, gcc, and a kernel in
the lab's cache). In the guest the program is run once for each of its phases, after which it asks shrinkers
for all they can give; this host's are not asked for anything.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.lives.here import recorded_here
from mthp.image.recording import Recording
from mthp.lab.kernels.kernels import CachedKernel, find
from mthp.lab.session.boot import Guest, booted
from mthp.lab.session.real_program import provide
from mthp.lab.session.recipes import Recipe
from mthp.lab.session.workload import JOBS, Command, Workload
from mthp.life.recorded_life import without_huge_pages
from mthp.life.recorded_replay import Meanwhile, RecordedReplay
from mthp.words.profiles import profile_for_release
from mthp.words.settings import Settings, parse_enabled_flag

PAUSE, PHASES = 4, 4
LOOKS = 0.5
MEMORY = 1024
SETTINGS: dict[str, tuple[str, int]] = {
    "2MB, 409": ("2MB=always", 409),
    "2MB, 128": ("2MB=always", 128),
    "2MB, 0": ("2MB=always", 0),
    "every size, 409": ("all=always", 409),
    "2MB, 511": ("2MB=always", 511),
    "64kB, 0": ("64kB=always", 0),
}
PACE = {"pages_to_scan": 1, "scan_sleep_millisecs": 600_000}
PROGRAM = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#define PAGE 4096L
#define TABLE (512 * PAGE)
static char *base;
static int presses, phases;
static long number(const char *path, const char *name)
{
    char line[200], format[80];
    long found = 0;
    FILE *file = fopen(path, "r");
    snprintf(format, sizeof format, "%s %%ld", name);
    while (fgets(line, sizeof line, file))
        sscanf(line, format, &found);
    fclose(file);
    return found;
}
static void say(const char *phase)
{
    struct timespec now;
    phases++;
    if (presses && presses != phases)
        return;
    if (!presses)
        sleep(SECONDS);
    clock_gettime(CLOCK_MONOTONIC, &now);
    long before = number("/proc/self/status", "RssAnon:");
    long split = number("/proc/vmstat", "thp_underused_split_page");
    for (int i = 0; presses && i < 8; i++) {
        FILE *file = fopen("/proc/sys/vm/drop_caches", "w");
        fputs("2", file);
        fclose(file);
    }
    printf("{\"phase\": \"%s\", \"now\": %ld, \"before\": %ld, \"after\": %ld, \"split\": %ld}\n", phase,
           now.tv_sec * 1000000000L + now.tv_nsec, before, number("/proc/self/status", "RssAnon:"),
           number("/proc/vmstat", "thp_underused_split_page") - split);
    fflush(stdout);
}
static unsigned long seed = 1;
static unsigned long chosen(unsigned long most)
{
    seed = seed * 6364136223846793005UL + 1442695040888963407UL;
    return (seed >> 33) % most;
}
int main(int count, char **words)
{
    presses = count > 1 ? atoi(words[1]) : 0;
    char *area = mmap(NULL, 34 * TABLE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    base = (char *)(((unsigned long)area + TABLE - 1) & -TABLE);
    memset(base, 0x5a, 20 * TABLE);
    memset(base + 20 * TABLE, 0, 12 * TABLE);
    for (int i = 0; i < 300; i++)
        base[20 * TABLE + chosen(12 * 512) * PAGE + chosen(PAGE)] = 1;
    say("a heap of 40 MiB, 24 MiB of zeroed tables with 300 entries");
    memset(base, 0, 6 * TABLE);
    for (int table = 6; table < 16; table++)
        for (long cleared = 0; cleared < (table - 5) * 50;) {
            long pages = 1 + chosen(40), at = chosen(512 - pages);
            memset(base + table * TABLE + at * PAGE, 0, pages * PAGE);
            cleared += pages;
        }
    say("12 MiB of the heap cleared, and objects in 20 MiB");
    memset(base, 0x11, 2 * TABLE);
    for (int i = 0; i < 2000; i++)
        base[20 * TABLE + chosen(12 * 512) * PAGE] = 2;
    say("4 MiB used again, and 2,000 entries more");
    memset(base + 16 * TABLE, 0, 4 * TABLE);
    memset(base, 0, TABLE);
    say("the rest of the heap cleared");
    return 0;
}
"""


class Answer(NamedTuple):
    """RssAnon before and after pressure, in KiB, and how many huge pages were found underused. age: of the
    oldest look that it rests on, in seconds."""

    before: int
    after: int
    split: int
    age: float = 0.0


def main() -> None:
    """Print a row for each setting and phase."""
    kernel = find(sys.argv[1] if len(sys.argv) > 1 else "7.3")
    with tempfile.TemporaryDirectory() as name:
        source = PROGRAM.replace("SECONDS", str(PAUSE))
        program, recording, host = recorded_here(Path(name), source, "--zero", str(LOOKS))
        print(
            "| sizes, max_ptes_none | when | RssAnon before: predicted | kernel | after: nobody looked "
            "| predicted | kernel | split: predicted | kernel | looks up to |"
        )
        print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
        for title, (enabled, limit) in SETTINGS.items():
            settings = without_huge_pages(Settings()).with_enabled(parse_enabled_flag(enabled))
            settings = settings.replace(max_ptes_none=limit, **PACE)
            times = [each["now"] for each in host]
            known = predicted(recording, settings, kernel.release, times)
            blind = predicted(blinded(recording), settings, kernel.release, times)
            real = measured(kernel, program, settings)
            for phase, mine, old, theirs in zip(host, known, blind, real, strict=True):
                print(
                    f"| {title} | {phase['phase']} | {mine.before:,} | {theirs.before:,} "
                    f"| {old.after:,} | {mine.after:,} | {theirs.after:,} | {mine.split} | {theirs.split} "
                    f"| {mine.age:.1f} s |",
                    flush=True,
                )


def measured(kernel: CachedKernel, program: Path, settings: Settings) -> list[Answer]:
    """What the program says in a guest with these settings."""
    recipe = Recipe("clears", Command((str(program), "1")))
    with (
        provide(recipe, (), MEMORY, lambda _: None) as provision,
        booted(kernel, Guest(MEMORY), (provision.archive,)) as guest,
    ):
        workload = Workload(guest.machine.channel, guest.session, provision.paths)
        workload.prepare()
        workload.apply(settings)
        for knob, value in PACE.items():
            path = f"/sys/kernel/mm/transparent_hugepage/khugepaged/{knob}"
            guest.session.write(path, str(value))
        answers = []
        for phase in range(1, 1 + PHASES):
            workload.run(Command((str(program), str(phase))))
            text = guest.machine.channel.ask(f"r {JOBS}/{workload._jobs}.out").decode()
            said = json.loads(text)
            answers.append(Answer(said["before"], said["after"], said["split"]))
    return answers


def blinded(recording: Recording) -> Recording:
    """The same recording, as if nobody had looked."""
    return replace(
        recording,
        meta={**recording.meta, "looks": None},
        look_time=recording.look_time[:0],
        look_runs=recording.look_runs[:0],
    )


def predicted(
    recording: Recording, settings: Settings, release: str, times: list[int]
) -> list[Answer]:
    """What is said of pressure at each of these times of CLOCK_MONOTONIC."""
    answers = []
    for each in times:
        at = each - int(recording.meta["began"])
        replay = RecordedReplay(
            recording, settings, Meanwhile(profile_for_release(release), pressure=(at,))
        )
        replay.run((int((recording.time <= at).sum()), 1 << 62))
        (shrunk,) = replay.shrunk
        after = replay.spaces[0].anon
        before = after + shrunk.given.unmapped
        age = shrunk.seen.oldest / 1e9 if shrunk.seen is not None else 0.0
        answers.append(Answer(before << 2, after << 2, shrunk.given.underused, age))
    return answers


if __name__ == "__main__":
    main()
