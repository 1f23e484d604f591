# SPDX-License-Identifier: GPL-2.0-or-later
"""The buffers of our trace instance: set up, drained, and what did not fit into them.

Kernel: Documentation/trace/events.rst; kernel/trace/trace.c, tracing_buffers_read().
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
from typing import IO, Iterable, Iterator, NamedTuple

from mthp.image.capture.proc import text
from mthp.image.record.columns import Sample
from mthp.image.record.formats import Event, page_layout
from mthp.words.files import set_to, spooled

_READ = 1 << 16
"""Bytes asked for at once, of which the kernel gives a page of its buffer."""
RECORD_BYTES = 72
"""Of the largest record in the buffers, about: a fault has 36, a system call 72."""


class Lost(NamedTuple):
    """What did not fit into the buffers. enough: KiB for each CPU that would have sufficed."""

    events: int
    enough: int


class Tracer:
    """The buffers of our instance, drained into files without names. kib: of each CPU's buffer."""

    def __init__(self, folder: str, root: str, events: dict[str, Event], kib: int) -> None:
        self.folder, self.kib = folder, kib
        self.layout = page_layout(root)
        self.bytes = 0
        set_to(f"{folder}/buffer_size_kb", str(kib))
        set_to(f"{folder}/trace_clock", "mono")
        for option, value in (("event-fork", "1"), ("overwrite", "0")):
            set_to(f"{folder}/options/{option}", value)
        for name in events:
            set_to(f"{folder}/events/{name}/enable", "1")
        self.cpus = sorted(
            int(name[3:]) for name in os.listdir(f"{folder}/per_cpu") if name[3:].isdigit()
        )
        self._opened: dict[int, int] = {}
        self.spools: dict[int, IO[bytes]] = {}

    def follow(self, pids: list[int]) -> None:
        """Record what these tasks do, and those that they start."""
        set_to(f"{self.folder}/set_event_pid", " ".join(map(str, pids)))

    def followed(self) -> list[int]:
        """The tasks that are recorded now."""
        return [int(each) for each in (text(f"{self.folder}/set_event_pid") or "").split()]

    def switch(self, on: bool) -> None:
        """Have it record, or stop."""
        set_to(f"{self.folder}/tracing_on", "1" if on else "0")

    @contextlib.contextmanager
    def opened(self, folder: str | None) -> Iterator[select.poll]:
        """Open the buffers and the files that they are drained into; gives what waits for them."""
        waiting = select.poll()
        try:
            for cpu in self.cpus:
                path = f"{self.folder}/per_cpu/cpu{cpu}/trace_pipe_raw"
                self._opened[cpu] = held = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                self.spools[cpu] = spooled(folder)
                waiting.register(held, select.POLLIN)
            yield waiting
        finally:
            for held in self._opened.values():
                os.close(held)
            self._opened.clear()

    def drain(self, ready: Iterable[int] | None = None) -> None:
        """Take what is in the buffers, or in those that are ready, which are half full."""
        for cpu, held in self._opened.items():
            if ready is not None and held not in ready:
                continue
            write = self.spools[cpu].write
            while True:
                try:
                    data = os.read(held, _READ)
                except BlockingIOError:
                    break
                if not data:
                    break
                self.bytes += len(data)
                write(data)

    def lost(self) -> Lost:
        """What the kernel says did not fit."""
        events = most = 0
        for cpu in self.cpus:
            stats = text(f"{self.folder}/per_cpu/cpu{cpu}/stats") or ""
            found = re.findall(r"^(?:overrun|commit overrun|dropped events): (\d+)$", stats, re.M)
            events += sum(map(int, found))
            most = max(most, sum(map(int, found)))
        needed = self.kib + (most * RECORD_BYTES >> 10)
        return Lost(events, 1 << needed.bit_length() if events else self.kib)


_STATUS = re.compile(r"^(Tgid|RssAnon|VmSwap):\s+(\d+)", re.M)


def samples_of(tasks: list[int]) -> Iterator[Sample]:
    """What /proc says now of the processes that these tasks are of."""
    seen: set[int] = set()
    page = os.sysconf("SC_PAGE_SIZE") >> 10
    for task in tasks:
        if task not in seen:
            before = time.monotonic_ns()
            found = dict(_STATUS.findall(text(f"/proc/{task}/status") or ""))
            pid = int(found.get("Tgid", task))
            if pid not in seen and "RssAnon" in found:
                anon, swap = int(found["RssAnon"]) // page, int(found.get("VmSwap", 0)) // page
                yield Sample(before, time.monotonic_ns(), pid, anon, swap)
            seen.update((task, pid))


def default_buffer() -> int:
    """KiB of each CPU's buffer where none are asked for: 16 MiB, and no more than a 64th of free memory."""
    available = re.search(r"^MemAvailable:\s+(\d+)", text("/proc/meminfo") or "", re.M)
    most = int(available[1]) // 64 // (os.cpu_count() or 1) if available else 1 << 14
    return max(256, min(1 << 14, most))
