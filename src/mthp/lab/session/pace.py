# SPDX-License-Identifier: GPL-2.0-or-later
"""khugepaged at its own pace in a guest: when each collapse is, and what memory the programs have then."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass

from mthp.lab.errors import BAD_INPUT, HOST_LACKS, LabError
from mthp.lab.geometry import PMD_ORDER
from mthp.lab.session.memory_pressure import PATIENCE_MS
from mthp.lab.session.observe import TRACING
from mthp.lab.session.session import (
    ASLEEP,
    ENDLESS,
    KHUGEPAGED,
    SETTLED_MS,
    GuestSession,
)
from mthp.lab.vm.channel import Channel
from mthp.words.settings import Settings

EVENT = "huge_memory/mm_collapse_huge_page"
MARK = "paced"
BUFFER_KIB = 8192
LOOK_SECONDS = 1.0
MOST_SECONDS = 7200.0
PACE = ("pages_to_scan", "scan_sleep_millisecs", "alloc_sleep_millisecs")

_LINE = re.compile(r"\s(\d+)\.(\d{6}): (\w+): (.*)")
_SUCCESS = re.compile(r"status=succeeded(?:, order=(\d+))?$")


@dataclass(frozen=True)
class PacedRun:
    """What khugepaged did until a whole full scan collapsed nothing.

    collapses: (millisecond, order) of each, in turn, by a clock that starts one scan_sleep before its
    first wakeup, as a plan's does. anonymous: bytes of anonymous memory charged to the programs, before and
    after. full_scans: the last of them collapsed nothing.
    """

    collapses: tuple[tuple[int, int], ...]
    anonymous: tuple[int, int]
    full_scans: int

    @property
    def windows(self) -> Counter[int]:
        """How many collapses there were, by order."""
        return Counter(order for _, order in self.collapses)

    @property
    def last_collapse_ms(self) -> int | None:
        """When the last collapse was; None if there was none."""
        return max((at for at, _ in self.collapses), default=None)


def set_alloc_sleep(channel: Channel, session: GuestSession, settings: Settings) -> None:
    """Set how long khugepaged sleeps after an allocation that fails, before any size is enabled: to write
    that wakes it. Kernel: mm/khugepaged.c, __sleep_millisecs_store()."""
    session.write(f"{KHUGEPAGED}/alloc_sleep_millisecs", str(settings.alloc_sleep_millisecs))
    pid = channel.ask("pidof khugepaged").decode()
    channel.ask(f"idle {pid} {SETTLED_MS} {PATIENCE_MS}")


def run_at_pace(
    channel: Channel, session: GuestSession, settings: Settings, cgroup: str
) -> PacedRun:
    """Wake khugepaged and let it sleep and scan as the settings say, until it has come to rest.

    It must be asleep, and all settings but its pace in force. LabError: it does not come to rest in two
    hours, or the trace is not whole.
    """
    session.write(f"{KHUGEPAGED}/pages_to_scan", str(settings.pages_to_scan))
    session.write(f"{TRACING}/events/enable", "0")
    for path, value in (
        ("trace_clock", "mono"), ("buffer_size_kb", str(BUFFER_KIB)), ("trace", ""),
        (f"events/{EVENT}/enable", "1"), ("tracing_on", "1"),
    ):  # fmt: skip
        session.write(f"{TRACING}/{path}", value)
    before = anonymous_bytes(channel, cgroup)
    begun = _number(channel, "full_scans")
    session.write(f"{TRACING}/trace_marker", MARK)
    session.write(f"{KHUGEPAGED}/scan_sleep_millisecs", str(settings.scan_sleep_millisecs))
    full_scans = _rest(channel) - begun
    session.write(f"{TRACING}/tracing_on", "0")
    trace = channel.ask(f"r {TRACING}/trace").decode(errors="replace")
    after = anonymous_bytes(channel, cgroup)
    session.write(f"{KHUGEPAGED}/pages_to_scan", str(ENDLESS))
    session.write(f"{KHUGEPAGED}/scan_sleep_millisecs", str(ASLEEP))
    collapses = collapses_of(trace, settings.scan_sleep_millisecs)
    return PacedRun(collapses, (before, after), full_scans)


def _number(channel: Channel, name: str) -> int:
    return int(channel.ask(f"r {KHUGEPAGED}/{name}"))


def _rest(channel: Channel) -> int:
    """Wait until a full scan has begun and ended without a collapse; returns the kernel's full_scans then."""
    end = time.monotonic() + MOST_SECONDS
    collapsed, rest = -1, 0
    while True:
        # In this order: what is collapsed in between is seen the next time.
        now = _number(channel, "pages_collapsed")
        full_scans = _number(channel, "full_scans")
        if now != collapsed:
            # The scan under way may have collapsed it; the one after that must not.
            collapsed, rest = now, full_scans + 2
        elif full_scans >= rest:
            return full_scans
        if time.monotonic() > end:
            why = f"khugepaged does not come to rest in {MOST_SECONDS:.0f} s"
            raise LabError(BAD_INPUT, why)
        time.sleep(LOOK_SECONDS)


def anonymous_bytes(channel: Channel, cgroup: str) -> int:
    """The anonymous memory that is charged to a cgroup and mapped.

    Kernel: Documentation/admin-guide/cgroup-v2.rst, memory.stat.
    """
    text = channel.ask(f"r {cgroup}/memory.stat").decode()
    return int(dict(line.split() for line in text.splitlines())["anon"])


def collapses_of(trace: str, begins_ms: int) -> tuple[tuple[int, int], ...]:
    """(millisecond, order) of each collapse in a trace, in turn. begins_ms: what the clock says at the mark.

    LabError: the trace has lost events. Kernel: include/trace/events/huge_memory.h, mm_collapse_huge_page.
    """
    counts = re.search(r"entries-in-buffer/entries-written: (\d+)/(\d+)", trace)
    if counts is not None and counts[1] != counts[2]:
        raise LabError(HOST_LACKS, f"the trace has {counts[1]} of {counts[2]} events")
    begin: int | None = None
    found = []
    for seconds, micro, event, text in _LINE.findall(trace):
        now = int(seconds) * 1_000_000 + int(micro)
        if event == "tracing_mark_write" and text == MARK:
            begin = now
        success = _SUCCESS.search(text)
        if event == EVENT.partition("/")[2] and success is not None and begin is not None:
            order = PMD_ORDER if success[1] is None else int(success[1])
            found.append((begins_ms + round((now - begin) / 1000), order))
    if begin is None:
        raise LabError(HOST_LACKS, "the trace does not say when it began")
    return tuple(found)
