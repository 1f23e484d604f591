# SPDX-License-Identifier: GPL-2.0-or-later
"""A program recorded once on this host, and run in guests with khugepaged at work: memory phase by phase.

Run as: PYTHONPATH=src python -m benchmarks.lives_khugepaged [RELEASE] (root, tracefs, QEMU, gcc, and a kernel
in the lab's cache). The program pauses after each phase, longer than khugepaged needs for all of it, and says
what it has.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.lives.here import recorded_here
from mthp.image.recording import Recording
from mthp.lab.kernels.kernels import find
from mthp.lab.session.boot import Guest, booted
from mthp.lab.session.real_program import provide
from mthp.lab.session.recipes import Recipe
from mthp.lab.session.workload import JOBS, Command, Workload
from mthp.life.recorded_life import without_huge_pages
from mthp.life.recorded_replay import Meanwhile, RecordedReplay
from mthp.words.profiles import profile_for_release
from mthp.words.settings import Settings, parse_enabled_flag

PAUSE = 8
SETTINGS: dict[str, tuple[str, dict[str, int]]] = {
    "64kB, 511": ("64kB=always", {"max_ptes_none": 511}),
    "64kB, 0": ("64kB=madvise", {"max_ptes_none": 0}),
    "16kB and 2MB, 511": ("16kB=madvise,2MB=madvise", {"max_ptes_none": 511}),
    "every size, 0": ("all=madvise", {"max_ptes_none": 0}),
    "every size, 511": ("all=always", {"max_ptes_none": 511}),
}
PACE = {"pages_to_scan": 1 << 20, "scan_sleep_millisecs": 300}
PROGRAM = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#define PAGE 4096L
static char *base;
static void touch(long from, long to, long step)
{
    for (long page = from; page < to; page += step)
        base[page * PAGE] = 1;
}
static void say(const char *phase)
{
    struct timespec now;
    char line[200];
    long anon = 0;
    clock_gettime(CLOCK_MONOTONIC, &now);
    sleep(SECONDS);
    FILE *file = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, file))
        sscanf(line, "RssAnon: %ld", &anon);
    fclose(file);
    clock_gettime(CLOCK_MONOTONIC, &now);
    printf("{\"phase\": \"%s\", \"anon\": %ld, \"now\": %ld}\n", phase, anon,
           now.tv_sec * 1000000000L + now.tv_nsec);
    fflush(stdout);
}
int main(void)
{
    char *area = mmap(NULL, 40L << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    base = (char *)(((unsigned long)area + (2 << 20) - 1) & -(2UL << 20));
    touch(0, 512, 1);
    madvise(base, 32L << 20, MADV_HUGEPAGE);
    touch(512, 2048, 16);
    touch(2048, 2560, 1);
    touch(2560, 3072, 3);
    touch(3072, 3200, 1);
    say("touched");
    madvise(base + 100 * PAGE, 700 * PAGE, MADV_DONTNEED);
    madvise(base + 2048 * PAGE, 512 * PAGE, MADV_DONTNEED);
    say("given back");
    touch(200, 300, 2);
    touch(2048, 2300, 1);
    say("used again");
    pid_t child = fork();
    if (!child) {
        touch(0, 100, 1);
        touch(3072, 3100, 1);
        sleep(SECONDS);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    say("after a child");
    touch(0, 3200, 7);
    say("stored to");
    munmap(base + 600 * PAGE, 300 * PAGE);
    say("a hole");
    return 0;
}
"""


def main() -> None:
    """Print a row for each setting and phase."""
    kernel = find(sys.argv[1] if len(sys.argv) > 1 else "7.3")
    with tempfile.TemporaryDirectory() as name:
        source = PROGRAM.replace("SECONDS", str(PAUSE))
        program, recording, host = recorded_here(Path(name), source, "--quiet")
        recipe = Recipe("phases", Command((str(program),)))
        print(f"{'settings':20} {'phase':14} {'predicted':>10} {'kernel':>10} {'small pages':>12}")
        for title, (enabled, changes) in SETTINGS.items():
            settings = without_huge_pages(Settings()).with_enabled(parse_enabled_flag(enabled))
            settings = settings.replace(**changes, **PACE)
            ours = predicted(recording, settings, kernel.release, [each["now"] for each in host])
            with (
                provide(recipe, (), 1024, lambda _: None) as provision,
                booted(kernel, Guest(1024), (provision.archive,)) as guest,
            ):
                workload = Workload(guest.machine.channel, guest.session, provision.paths)
                workload.prepare()
                workload.apply(settings)
                for knob, value in PACE.items():
                    guest.session.write(
                        f"/sys/kernel/mm/transparent_hugepage/khugepaged/{knob}", str(value)
                    )
                workload.run(recipe.start)
                text = guest.machine.channel.ask(f"r {JOBS}/{workload._jobs}.out").decode()
            for phase, mine, line in zip(host, ours, text.splitlines(), strict=True):
                theirs = json.loads(line)["anon"]
                print(
                    f"{title:20} {phase['phase']:14} {mine * 4:>10} {theirs:>10} {phase['anon']:>12}",
                    flush=True,
                )


def predicted(
    recording: Recording, settings: Settings, release: str, times: list[int]
) -> list[int]:
    """RssAnon in pages at these times of CLOCK_MONOTONIC."""
    replay = RecordedReplay(recording, settings, Meanwhile(profile_for_release(release)))
    began = recording.meta["began"]
    stops = [int((recording.time <= at - began).sum()) for at in times]
    found = {}
    replay.run(stops=stops, watch=lambda event: found.update({event: replay.spaces[0].anon}))
    return [found[each] for each in stops]


if __name__ == "__main__":
    main()
