# SPDX-License-Identifier: GPL-2.0-or-later
"""The peer: what this host's own kernel takes to collapse small pages into one huge page."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

MADV_COLLAPSE = 25
HUGE = 2 << 20
PAGE = 4096
THP = Path("/sys/kernel/mm/transparent_hugepage")


@dataclass(frozen=True)
class HostCollapse:
    """seconds: one MADV_COLLAPSE of 512 small pages, or None; why: what stood in the way."""

    seconds: float | None
    why: str = ""


def host_collapse(repeat: int = 31) -> HostCollapse:
    """Median of one madvise(MADV_COLLAPSE) over 2 MiB of touched small pages of our own."""
    try:
        size = int((THP / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return HostCollapse(None, "this kernel has no transparent huge pages")
    if size != HUGE or mmap.PAGESIZE != PAGE:
        return HostCollapse(None, f"this host's huge page has {size} bytes, not 2 MiB")
    if "[always]" in (THP / "enabled").read_text():
        return HostCollapse(None, "THP is `always` here: touched memory would be huge at once")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    runs = []
    for _ in range(repeat):
        area = mmap.mmap(-1, 2 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        view = ctypes.c_char.from_buffer(area)
        start = (ctypes.addressof(view) + HUGE - 1) & ~(HUGE - 1)
        offset = start - ctypes.addressof(view)
        for at in range(offset, offset + HUGE, PAGE):
            area[at] = 1
        begin = time.perf_counter()
        failed = libc.madvise(start, HUGE, MADV_COLLAPSE)
        runs.append(time.perf_counter() - begin)
        errno = ctypes.get_errno()
        del view
        area.close()
        if failed:
            return HostCollapse(None, f"MADV_COLLAPSE: {os.strerror(errno)}")
    return HostCollapse(median(runs))
