# SPDX-License-Identifier: GPL-2.0-or-later
"""Stopping processes while they are read, so that the kernel itself lets them go, however we end.

They are stopped as a debugger does it, with ptrace, by a thread of ours. When this thread is gone, by its
own end or because the whole process was killed, the kernel detaches what it had stopped: no guard of ours
has to survive. They get no signal, their parents hear nothing, and what somebody else stops with SIGSTOP,
before or meanwhile, stays stopped.

Kernel: kernel/ptrace.c, exit_ptrace().
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import time
from typing import Iterator, Sequence

from mthp.image.capture.proc import FAILED, USAGE, CaptureError, read_status, state, text
from mthp.words.streams import say

PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
STOP_SECONDS = 5.0
MOST_REFUSALS = 20


@contextlib.contextmanager
def frozen(pids: Sequence[int]) -> Iterator[None]:
    """Stop the processes while the body runs. CaptureError: one of them cannot be stopped."""
    from concurrent.futures import ThreadPoolExecutor

    check_none_is_ours(pids)
    with _not_suspended(), ThreadPoolExecutor(1) as tracer:
        tracer.submit(_stop, pids).result()
        yield


@contextlib.contextmanager
def _not_suspended() -> Iterator[None]:
    """Have Ctrl-Z, which would suspend us alone, do nothing."""
    before = None
    with contextlib.suppress(ValueError):  # not in the main thread: signals are another's
        before = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTSTP, before)


def check_none_is_ours(pids: Sequence[int]) -> None:
    """Raise CaptureError where one of them is this process, or waits for it."""
    pid = os.getpid()
    while pid:
        if pid in pids:
            raise CaptureError(
                f"--freeze: process {pid} is this one, or one that it runs below", USAGE
            )
        match = re.search(r"^PPid:\s+(\d+)", text(f"/proc/{pid}/status") or "", re.M)
        pid = int(match[1]) if match else 0


def confirm_freeze(pids: Sequence[int]) -> None:
    """Ask on the terminal whether the processes may be stopped; CaptureError if not."""
    if not sys.stdin.isatty():
        raise CaptureError("--freeze asks on the terminal, and there is none: add --yes", USAGE)
    names = ", ".join(f"{pid} ({text(f'/proc/{pid}/comm')})" for pid in pids)
    say(f"Stop {names} while it is read? [y/N] ", end="")
    if sys.stdin.buffer.readline().strip().lower() not in (b"y", b"yes"):
        raise CaptureError("not frozen, nothing read", FAILED)


def _stop(pids: Sequence[int]) -> None:
    """Have every thread of the processes stop. This thread is what they are bound to."""
    import ctypes

    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.restype = ctypes.c_long
    ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    known: set[int] = set()
    running: set[int] = set()
    refused: dict[int, int] = {}
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        running = {tid for tid in running if not _is_halted(tid)}
        # Listed after that: one that runs may start others until it has stopped.
        listed = {tid: pid for pid in pids for tid in _threads(pid)}
        known &= listed.keys()  # the number of one that ended may come back
        new = {tid: pid for tid, pid in listed.items() if tid not in known}
        if not running and not new:
            return
        if time.monotonic() > deadline:
            raise CaptureError(f"a process did not stop within {STOP_SECONDS:.0f} seconds")
        for tid, pid in new.items():
            if ptrace(PTRACE_SEIZE, tid, None, None) == 0:
                ptrace(PTRACE_INTERRUPT, tid, None, None)
            elif ctypes.get_errno() != errno.ESRCH and not _has_ended(pid, tid):
                # One that is about to end is refused too: whoever is refused is asked again.
                refused[tid] = refused.get(tid, 0) + 1
                if refused[tid] == MOST_REFUSALS:
                    why = "not permitted, or a debugger holds it"
                    raise CaptureError(f"process {pid} cannot be stopped: {why}", USAGE)
                continue
            known.add(tid)
            running.add(tid)
        time.sleep(0.0005)


def _threads(pid: int) -> list[int]:
    try:
        return [int(tid) for tid in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []  # it is gone: who reads it will say so


def _is_halted(tid: int) -> bool:
    return state(tid) in "tZX?"


def _has_ended(pid: int, tid: int) -> bool:
    """Whether there is nothing to stop: the thread has ended, or the process has no memory."""
    if state(tid) in "ZX?":
        return True
    try:
        read_status(pid)
    except CaptureError:
        return True
    return False
