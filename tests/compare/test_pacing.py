# SPDX-License-Identifier: GPL-2.0-or-later
"""khugepaged's pace: how far each wakeup comes, by pages_to_scan, over several processes; recorded, and live.

A wakeup's visits are (progress, full_scan_finished) as mm_khugepaged_scan says, then the tables scanned.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mthp.image.snapshot import read_snapshot
from mthp.lab.program.program import SYSFS, parse
from mthp.lab.session.boot import Guest, booted
from mthp.lab.session.captures import CapturePath, Capturer, capture_tools
from mthp.lab.session.observe import TRACING
from mthp.lab.session.session import ASLEEP, KHUGEPAGED, SETTLED_MS, GuestSession
from mthp.words.events import Event, KhugepagedScan, ScanPmd
from mthp.words.profiles import profile_for_release
from mthp.worlds.build import build_world
from tests.lab.guests import kernel_or_skip

ZIP = Path(__file__).parent.parent / "data" / "paced-7.3.4.zip"
PAGES_TO_SCAN = (1, 512, 1000, 4096)
PROGRAM = f"""\
w {SYSFS}/enabled madvise
new
s base 138538465099776
s mmap 512 3072
s wr 512 700
s wr 1536 1024
new t
t base 138538465099776
t mmap 512 1024
t wr 512 1024
t mmap 4096 700
new u
u base 138538465099776
u mmap 512 5120
u wr 512 300
u wr 3000 2000
w {SYSFS}/khugepaged/max_ptes_none 511
w {SYSFS}/hugepages-2048kB/enabled madvise
s adv 512 3072 15
s adv 512 3072 14
t adv 512 1024 14
u adv 512 5120 14"""

Wakeup = list[list[int]]
VISIT = re.compile(r"mm_khugepaged_scan: mm=\S+ progress=(\d+),? full_scan_finished=(\d)")


def predicted(capture: bytes) -> Iterator[Wakeup]:
    """The wakeups of the engine, from a capture of every process on khugepaged's list."""
    snapshot = read_snapshot(io.BytesIO(capture), "capture")
    world = build_world(snapshot, profile_for_release(snapshot.kernel))
    while True:
        events: list[Event] = []
        world.kernel.trace = events.append
        world.khugepaged.khugepaged_do_scan()
        visits = [
            [each.progress, int(each.full_scan_finished)]
            for each in events
            if isinstance(each, KhugepagedScan)
        ]
        yield [*visits, [sum(isinstance(each, ScanPmd) for each in events)]]


def real(session: GuestSession, ask: Callable[[str], bytes]) -> Iterator[Wakeup]:
    """The wakeups of the guest's khugepaged until it has finished a full scan."""
    thread = ask("pidof khugepaged").decode()
    finished = False
    while not finished:
        session.write(f"{TRACING}/trace", "")
        session.write(f"{KHUGEPAGED}/scan_sleep_millisecs", str(ASLEEP))
        ask(f"idle {thread} {SETTLED_MS} 30000")
        text = ask(f"r {TRACING}/trace").decode()
        visits = [[int(progress), int(end)] for progress, end in VISIT.findall(text)]
        finished = any(end for _, end in visits)
        yield [*visits, [text.count("mm_khugepaged_scan_pmd:")]]


@pytest.mark.parametrize("pages", PAGES_TO_SCAN)
def test_every_wakeup_comes_as_far_as_the_kernels(pages: int) -> None:
    with zipfile.ZipFile(ZIP) as file:
        wakeups = json.loads(file.read("wakeups.json"))[str(pages)]
        capture = file.read(f"{pages}.npz")
    assert wakeups[-1] and len(wakeups) >= 2
    assert [each for each, _ in zip(predicted(capture), wakeups, strict=False)] == wakeups


@pytest.mark.lab
def test_every_wakeup_comes_as_far_in_a_guest() -> None:
    kernel = kernel_or_skip()
    with (
        capture_tools([CapturePath.SNAP]) as tools,
        booted(kernel, Guest(384), (tools.archive,) if tools else ()) as guest,
    ):
        assert tools is not None
        session, ask = guest.session, guest.machine.channel.ask
        session.write(f"{TRACING}/events/huge_memory/mm_khugepaged_scan/enable", "1")
        capturer = Capturer(guest.machine.channel, tools)
        for pages in PAGES_TO_SCAN:
            session.reset(["s", "t", "u"])
            session.perform(parse(PROGRAM.splitlines()))
            session.write(f"{KHUGEPAGED}/pages_to_scan", str(pages))
            captured = capturer(["parked", "s", "t", "u"])
            session.drain()
            ours = predicted(captured.files[CapturePath.SNAP])
            for wakeup in real(session, ask):
                assert wakeup == next(ours)
