# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings of programs that were never run: touches and calls, in their order."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np

from mthp.image.record.decode import Decoder
from mthp.image.record.formats import EXIT, KERNEL_FAULT, NEW_TASK, PREPARE_EXEC, USER_FAULT
from mthp.image.record.looks import Looks
from mthp.image.recording import Recording, read_recording
from mthp.life.recorded_replay import RecordedReplay
from mthp.words.settings import Enabled, Settings, parse_enabled_flag
from mthp.words.units import Geometry
from tests.image.made_recording import PID, Ring, packed

BASE = 0x7F00_0000_0000
PAGE, TABLE = 4096, 512
MAP_ANON, MAP_STACK, MAP_POPULATE = 0x22, 0x20000, 0x8000
OFF = Settings(enabled=Enabled.NEVER)


class RecordedProgram:
    """Writes a recording. Pages are counted from BASE; tasks are 0 and what fork() and thread() give."""

    def __init__(self) -> None:
        self._ring = Ring()
        self._ring.record(PREPARE_EXEC, PID, 0, PID)
        self._next = PID + 1
        self.looks: Looks | None = None

    def wait(self, nanoseconds: int) -> None:
        """Let so much time pass before what comes next."""
        self._ring.now += nanoseconds

    def call(self, task: int, name: str, *args: int, result: int = 0) -> None:
        """A system call, addresses in bytes."""
        self._ring.call(name, PID + task, *args, result=result)

    def mmap(
        self, page: int, count: int, prot: int = 3, flags: int = MAP_ANON, task: int = 0
    ) -> None:
        at = BASE + page * PAGE
        self.call(task, "mmap", 0, count * PAGE, prot, flags, 2**64 - 1, 0, result=at)

    def munmap(self, page: int, count: int, task: int = 0) -> None:
        self.call(task, "munmap", BASE + page * PAGE, count * PAGE)

    def madvise(self, page: int, count: int, advice: int, task: int = 0, result: int = 0) -> None:
        self.call(task, "madvise", BASE + page * PAGE, count * PAGE, advice, result=result)

    def mprotect(self, page: int, count: int, prot: int, task: int = 0, result: int = 0) -> None:
        self.call(task, "mprotect", BASE + page * PAGE, count * PAGE, prot, result=result)

    def mremap(self, page: int, old: int, new: int, to: int, task: int = 0) -> None:
        at, target = BASE + page * PAGE, BASE + to * PAGE
        self.call(task, "mremap", at, old * PAGE, new * PAGE, 1, 0, result=target)

    def brk(self, page: int, task: int = 0) -> None:
        self.call(task, "brk", BASE + page * PAGE, result=BASE + page * PAGE)

    def write(self, page: int, count: int = 1, task: int = 0, step: int = 1) -> None:
        for each in range(page, page + count * step, step):
            self._ring.record(USER_FAULT, PID + task, BASE + each * PAGE, 0x40, 6)

    def read(self, page: int, count: int = 1, task: int = 0) -> None:
        for each in range(page, page + count):
            self._ring.record(KERNEL_FAULT, PID + task, BASE + each * PAGE, 0x50, 0)

    def look(self, page: int, count: int, *, zero: bool, task: int = 0, takes: int = 0) -> None:
        """Somebody looks at pages for so many nanoseconds, and sees that they are zero, or are not."""
        seen = self.looks = self.looks or Looks(1.0, Geometry())
        seen.time.append(self._ring.now)
        seen.until.append(self._ring.now + takes)
        seen.pid.append(PID + task)
        seen.runs.append(1)
        seen.page.append((BASE >> 12) + page)
        seen.pages.append(count)
        seen.zero.append(zero)

    def fork(self, task: int = 0, flags: int = 0) -> int:
        child, self._next = self._next, self._next + 1
        self._ring.record(NEW_TASK, PID + task, child, 0, flags)
        return child - PID

    def thread(self, task: int = 0) -> int:
        return self.fork(task, 0x10F00)

    def program(self, task: int = 0) -> None:
        self._ring.record(PREPARE_EXEC, PID + task, 0, PID + task)

    def end(self, task: int = 0) -> None:
        self._ring.record(EXIT, PID + task, 0, PID + task)

    def packed(self) -> bytes:
        """The file."""
        self._ring.page()
        decoder = Decoder(self._ring.events, 12, PID)
        decoder.decode([self._ring.read().records()])
        # Nothing of the program's own but what it maps: faults elsewhere are nowhere.
        decoder.rows.processes[0]["vmas"] = []
        return packed(decoder, [], self.looks)

    def recording(self) -> Recording:
        return read_recording(io.BytesIO(self.packed()), "made")

    def lived(self, enabled: str = "") -> RecordedReplay:
        """The replay of all of it, with these sizes on."""
        settings = OFF.with_enabled(parse_enabled_flag(enabled)) if enabled else OFF
        replay = RecordedReplay(self.recording(), settings)
        replay.run()
        consistent(replay)
        return replay


def folios(replay: RecordedReplay) -> dict[int, int]:
    """Order -> folios that are there."""
    return {order: count for order, count in replay.pages.huge.items() if count}


def consistent(replay: RecordedReplay) -> None:
    """Check every sum that is kept against the tables."""
    pages = replay.pages
    mapped = np.zeros_like(pages.mapped)
    anon = 0
    rows: list[int] = []
    for space in replay.spaces.values():
        own = sum(int(np.count_nonzero(pages.folio[row] > 0)) for row in space.tables.values())
        assert own == space.anon
        anon += own
        rows += space.tables.values()
        for one, other in pairwise(space.spans):
            assert one.start < one.end <= other.start
        assert space.starts == [span.start for span in space.spans]
    assert len(set(rows)) == len(rows)
    for row in rows:
        there = pages.folio[row][pages.folio[row] > 0]
        np.add.at(mapped, there, 1)
    assert anon == pages.rss
    assert np.array_equal(mapped, pages.mapped)
    alive = np.flatnonzero(mapped)
    assert int((1 << pages.order[alive].astype(np.int64)).sum()) == pages.frames
