# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures one after another: `mthp snap --every 60 --for 1h`."""

from __future__ import annotations

import argparse
import os
import re
import time
from typing import Callable

from mthp.image.capture.proc import LeftOut, started

SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
LONGEST_SLEEP = 3600.0


def duration(value: str) -> int:
    """Read a time such as 60, 60s, 5m, 1h or 2d as seconds, for argparse."""
    match = re.fullmatch(r"([0-9]{1,9})(|s|m|min|h|d)", value)
    seconds = int(match[1]) * SECONDS[match[2]] if match else 0
    if not seconds:
        message = f"{value[:40]!r} is not a time such as 60, 60s, 5m, 1h or 2d"
        raise argparse.ArgumentTypeError(message)
    return seconds


def name_at(output: str, seconds: float) -> str:
    """The file of a capture that began then: in a folder, or with the time before its ending."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))
    if output.endswith("/") or os.path.isdir(output):
        return os.path.join(output, f"snap-{stamp}.npz")
    stem, ending = os.path.splitext(output)
    return f"{stem}-{stamp}{ending or '.npz'}"


def sleep_until(moment: float) -> None:
    """Sleep until time.monotonic() is there."""
    while True:
        left = moment - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, LONGEST_SLEEP))


class Series:
    """Captures at `began + n * every` seconds, n from 0 on, whatever each of them takes.

    pids: gives the processes of the next capture. capture: makes one and returns a line. say: is
    given each line. span: seconds, or None for no end.
    """

    def __init__(
        self,
        every: float,
        span: float | None,
        pids: Callable[[], list[int]],
        capture: Callable[[list[int], str], str],
        say: Callable[[str], None],
    ) -> None:
        self.every = every
        self.span = span
        self.pids = pids
        self.capture = capture
        self.say = say
        self.taken = 0

    def run(self, output: str) -> str:
        """Capture until the time is over, a signal comes or no process is left; says which it was.

        What stops the first capture is raised, and what is wrong with a file or the host.
        """
        began = time.monotonic()
        turn = 0
        why = f"{self.span} s are over"
        try:
            while self.span is None or turn * self.every <= self.span:
                sleep_until(began + turn * self.every)
                self._one(name_at(output, time.time()))
                now = (time.monotonic() - began) // self.every
                now = int(now if self.span is None else min(now, self.span // self.every))
                if now > turn:
                    self.say(f"{now - turn} skipped: the last capture took longer than --every")
                turn = max(now, turn) + 1
        except LeftOut as error:
            why = str(error)
            if not self.taken:
                raise
        except KeyboardInterrupt:
            why = "stopped by a signal"
            if not self.taken:
                raise
        return f"{self.taken} capture(s); {why}"

    def _one(self, output: str) -> None:
        if os.path.lexists(output):
            self.say(f"{output} is there already: nothing captured")
            return
        line = self.capture(self.pids(), output)
        self.taken += 1
        self.say(line)


class Survivors:
    """Those of some processes that go on; each that ended is said once."""

    def __init__(self, pids: list[int], say: Callable[[str], None]) -> None:
        self._births = {pid: started(pid) for pid in pids}
        self._say = say

    def __call__(self) -> list[int]:
        """The processes now. A number that another process has by now is not one of them.

        LeftOut: there is none.
        """
        now = {pid: started(pid) for pid in self._births}
        ended = [pid for pid, birth in now.items() if birth is None or birth != self._births[pid]]
        for pid in ended:
            del self._births[pid]
        names = ", ".join(map(str, ended))
        if not self._births:
            raise LeftOut(f"process {names} has ended", "ended meanwhile")
        if ended:
            self._say(f"process {names} has ended; the others go on")
        return list(self._births)
