# SPDX-License-Identifier: GPL-2.0-or-later
"""A trace instance of our own: made, watched over, and gone however we end.

What others trace is not touched, for an instance has its own buffers, events and clock. It is removed by
us; where we are killed, by a process that waits for nothing else; where that is killed too, by the next
run. From the moment of our death the kernel itself has let go of the buffers, as free_buffer is closed.

Kernel: Documentation/trace/ftrace.rst; kernel/trace/trace.c, instance_mkdir(),
tracing_free_buffer_release().
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from typing import Iterator

from mthp.image.capture.proc import LACKING, USAGE, CaptureError, started, text
from mthp.words.files import set_to

PREFIX = "mthp-"
_OURS = re.compile(PREFIX + r"(\d+)\.(\d+)")
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""Kernel: include/linux/proc_ns.h, PROC_PID_INIT_INO."""
REMOVE_SECONDS = 5.0


def tracefs() -> str:
    """Where tracefs is mounted. CaptureError (5): it is not, or may not be used from here."""
    if os.geteuid() != 0:
        raise CaptureError("needs root: the kernel's trace events are root's", USAGE)
    for line in (text("/proc/self/mounts") or "").splitlines():
        _, folder, kind, *_ = line.split()
        if kind == "tracefs" and os.path.isdir(f"{folder}/instances"):
            break
    else:
        how = "mount -t tracefs nodev /sys/kernel/tracing"
        raise CaptureError(f"tracefs is not mounted here ({how})", LACKING)
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    if namespace != _INITIAL_PID_NAMESPACE:
        why = "in a container the kernel's trace events have other process numbers than we see"
        raise CaptureError(f"{why}: run it outside", LACKING)
    return folder


def remove_stale(root: str) -> None:
    """Remove the instances of recorders that are no more."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"{root}/instances"):
            match = _OURS.fullmatch(name)
            if match and started(int(match[1])) != int(match[2]):
                _remove(f"{root}/instances/{name}", 0)


def _remove(folder: str, seconds: float = REMOVE_SECONDS) -> None:
    """Remove an instance; a little later where something still has a file of it open."""
    until = time.monotonic() + seconds
    while True:
        try:
            os.rmdir(folder)
            return
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() >= until:
                return
        time.sleep(0.01)


@contextlib.contextmanager
def instance(root: str) -> Iterator[str]:
    """The folder of a new instance that records nothing yet; with the body it goes."""
    remove_stale(root)
    folder = f"{root}/instances/{PREFIX}{os.getpid()}.{started(os.getpid())}"
    try:
        os.mkdir(folder)
    except OSError as error:
        raise CaptureError(f"no trace instance can be made: {error.strerror}", LACKING) from None
    watchdog, alive = _watch(folder)
    try:
        with open(f"{folder}/free_buffer", "rb"):
            set_to(f"{folder}/tracing_on", "0")
            set_to(f"{folder}/options/disable_on_free", "1")
            yield folder
    finally:
        _remove(folder)
        os.close(alive)
        os.waitpid(watchdog, 0)


def _watch(folder: str) -> tuple[int, int]:
    """Start the process that removes the instance once we are gone: its number, and what we hold."""
    ended, alive = os.pipe()
    watchdog = os.fork()
    if watchdog:
        os.close(ended)
        return watchdog, alive
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        keep = os.dup2(ended, 3) if ended != 3 else 3
        os.closerange(0, keep)
        os.closerange(keep + 1, 1 << 16)
        os.read(keep, 1)
        _remove(folder)
    finally:
        os._exit(0)
