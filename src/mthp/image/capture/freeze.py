# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes stopped while they are read."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import Iterator

from mthp.image.capture.proc import FAILED, USAGE, CaptureError, state, text


@contextlib.contextmanager
def frozen(pids: list[int], wanted: bool) -> Iterator[None]:
    """Stop the processes while the body runs; those that were stopped already stay stopped."""
    stopped: list[int] = []
    try:
        for pid in pids if wanted else ():
            if state(pid) not in "Tt":
                stopped.append(pid)
                os.kill(pid, signal.SIGSTOP)
        deadline = time.monotonic() + 5
        while any(state(pid) not in "TtZX?" for pid in stopped):
            if time.monotonic() > deadline:
                raise CaptureError("a process did not stop within 5 seconds")
            time.sleep(0.001)
        yield
    except PermissionError as error:
        raise CaptureError(f"cannot stop the process: {error.strerror}", USAGE) from None
    finally:
        for pid in stopped:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)


def confirm_freeze(pids: list[int]) -> None:
    """Ask on the terminal whether the processes may be stopped; CaptureError if not."""
    if not sys.stdin.isatty():
        raise CaptureError("--freeze asks on the terminal, and there is none: add --yes", USAGE)
    names = ", ".join(f"{pid} ({text(f'/proc/{pid}/comm')})" for pid in pids)
    print(f"Stop {names} while it is read? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CaptureError("not frozen, nothing read", FAILED)
