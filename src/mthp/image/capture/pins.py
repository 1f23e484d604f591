# SPDX-License-Identifier: GPL-2.0-or-later
"""Pinned memory that a process shows: the buffers that it registered with io_uring.

Kernel: io_uring/fdinfo.c, io_uring_show_fdinfo(); io_uring/rsrc.c counts them in VmPin.
"""

from __future__ import annotations

import mmap
import os
import re
from typing import Iterable, Iterator

from mthp.image.capture.proc import text

_RING = "anon_inode:[io_uring]"
_BUFFER = re.compile(r"^ *\d+: 0x([0-9a-f]{1,16})/(\d{1,15})$", re.M)


def pinned_ranges(pid: int) -> list[tuple[int, int]]:
    """(start, end) of the pages of registered buffers, ascending, with a gap between any two; empty where
    they cannot be read.
    """
    try:
        return ranges_shown(_rings(pid))
    except OSError:  # it ended, closes files meanwhile, or is not ours
        return []


def _rings(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        if os.readlink(f"{folder}/{name}") == _RING:
            yield text(f"/proc/{pid}/fdinfo/{name}") or ""


def ranges_shown(rings: Iterable[str]) -> list[tuple[int, int]]:
    """The same of what fdinfo shows of some rings."""
    buffers = [
        (int(start, 16), int(size)) for ring in rings for start, size in _BUFFER.findall(ring)
    ]
    joined: list[tuple[int, int]] = []
    for at, size in sorted(buffers):
        start, end = at & -mmap.PAGESIZE, (at + size + mmap.PAGESIZE - 1) & -mmap.PAGESIZE
        if joined and start <= joined[-1][1]:
            start, end = joined[-1][0], max(end, joined.pop()[1])
        if start < end:
            joined.append((start, end))
    return joined
