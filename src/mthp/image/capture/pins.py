# SPDX-License-Identifier: GPL-2.0-or-later
"""What tells that others hold a process's memory: buffers registered with io_uring, and pipes.

A ring's fdinfo names its buffers. What vmsplice() gave a pipe is not told from what was written to it:
how much waits there is a bound. VmPin counts buffers only of who lacks CAP_IPC_LOCK.

Kernel: io_uring/fdinfo.c, io_uring_show_fdinfo(); io_uring/rsrc.c, io_buffer_account_pin(); fs/pipe.c.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import mmap
import os
import re
import termios
from typing import Iterable, Iterator, NamedTuple

from mthp.image.capture.proc import forked, own_pid, parent_of, text

_RING = "anon_inode:[io_uring]"
_BUFFER = re.compile(r"^ *\d+: 0x([0-9a-f]{1,16})/(\d{1,15})$", re.M)
_FLAGS = re.compile(r"^flags:\s+([0-7]+)$", re.M)
SYS_PIDFD_GETFD = 438


class Held(NamedTuple):
    """pins: [start, end] of the pages of registered buffers, ascending, with a gap between any two.
    piped: the bytes that wait in each pipe that the process can write to, where there are a page or more."""

    pins: list[list[int]]
    piped: list[int]


def held_memory(pid: int, vm_pin: bool) -> Held:
    """What is held of a process's memory; nothing where its files cannot be read.

    vm_pin: it has pinned memory itself. A fork that has not shares its parent's rings, and the buffers
    of those are the parent's pages.
    """
    rings: dict[int, str] = {}
    pipes: dict[str, list[str]] = {}
    for name, link in _open_files(pid):
        if link == _RING:
            with contextlib.suppress(OSError):  # closed meanwhile
                rings[os.stat(f"/proc/{pid}/fd/{name}").st_ino] = name
        elif link.startswith("pipe:"):
            pipes.setdefault(link, []).append(name)
    if rings and not vm_pin and forked(pid) and (parent := parent_of(pid)):
        for name, link in _open_files(parent):
            if link == _RING:
                with contextlib.suppress(OSError):
                    rings.pop(os.stat(f"/proc/{parent}/fd/{name}").st_ino, None)
    shown = (text(f"/proc/{pid}/fdinfo/{name}") or "" for name in rings.values())
    return Held(ranges_shown(shown), list(_piped(pid, pipes.values())))


def _open_files(pid: int) -> Iterator[tuple[str, str]]:
    """The number of each open file of a process, and what its link says."""
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):  # it ended, or is not ours
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                yield name, os.readlink(f"{folder}/{name}")


def _piped(pid: int, pipes: Iterable[list[str]]) -> Iterator[int]:
    """What waits in each of some pipes of a process."""
    for names in pipes:
        for name in names:
            flags = _FLAGS.search(text(f"/proc/{pid}/fdinfo/{name}") or "")
            if flags is not None and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY:
                waiting = _waiting(pid, int(name))
                if waiting >= mmap.PAGESIZE:
                    yield waiting
                break


def _waiting(pid: int, number: int) -> int:
    """The bytes that wait in a pipe of another process; 0 where we may not ask.

    To open it by /proc would make us one more reader or writer, which its ends can tell.
    """
    count = array.array("i", [0])
    if own_pid() != os.getpid():  # this /proc has another PID namespace's numbers
        return 0
    with contextlib.suppress(
        OSError, AttributeError, ImportError
    ):  # a Python without pidfds, or ctypes
        import ctypes

        process = os.pidfd_open(pid)
        try:
            file = ctypes.CDLL(None).syscall(SYS_PIDFD_GETFD, process, number, 0)
        finally:
            os.close(process)
        if file >= 0:
            try:
                fcntl.ioctl(file, termios.FIONREAD, count)
            finally:
                os.close(file)
    return count[0]


def ranges_shown(rings: Iterable[str]) -> list[list[int]]:
    """The same of what fdinfo shows of some rings."""
    buffers = [
        (int(start, 16), int(size)) for ring in rings for start, size in _BUFFER.findall(ring)
    ]
    joined: list[list[int]] = []
    for at, size in sorted(buffers):
        start, end = at & -mmap.PAGESIZE, (at + size + mmap.PAGESIZE - 1) & -mmap.PAGESIZE
        if joined and start <= joined[-1][1]:
            start, end = joined[-1][0], max(end, joined.pop()[1])
        if start < end:
            joined.append([start, end])
    return joined
