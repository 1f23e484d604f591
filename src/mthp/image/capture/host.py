# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host tells of itself: settings, memory, nodes, page sizes."""

from __future__ import annotations

import glob
import os
import platform
import re
from typing import Any

from mthp.image.capture.proc import LACKING, CaptureError, number, text
from mthp.words.units import Geometry

THP = "/sys/kernel/mm/transparent_hugepage"


def sysfs_settings() -> dict[str, str]:
    """Every readable file of the transparent_hugepage tree and two of ksm, by relative path."""
    mm = os.path.dirname(THP)
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(THP) for name in names]
    found = {os.path.relpath(path, THP): text(path) for path in sorted(paths)}
    for name in ("ksm/run", "ksm/use_zero_pages"):
        found["../" + name] = text(f"{mm}/{name}")
    return {path: value for path, value in found.items() if value is not None}


def host_facts() -> dict[str, Any]:
    """What the host tells of itself: kernel, memory, swap, nodes, CPUs."""
    names = "MemTotal|MemFree|MemAvailable|SwapTotal|SwapFree"
    amounts = re.findall(rf"^({names}):\s+(\d+) kB", text("/proc/meminfo") or "", re.M)
    node = "/sys/devices/system/node"
    rows = {
        os.path.basename(os.path.dirname(path)): (text(path) or "").split()
        for path in sorted(glob.glob(node + "/node[0-9]*/distance"))
    }
    return {
        "hostname": platform.node(),
        "kernel": platform.release(),
        "version": text("/proc/version"),
        "machine": platform.machine(),
        "sysfs": sysfs_settings(),
        "buddyinfo": text("/proc/buddyinfo"),
        "meminfo": {name: int(kib) << 10 for name, kib in amounts},
        "swaps": text("/proc/swaps"),
        "nodes": {
            "online": text(node + "/online"),
            "distance": {name: [int(value) for value in row] for name, row in rows.items()},
            "zone_reclaim_mode": number("/proc/sys/vm/zone_reclaim_mode"),
        },
        "cpus": os.cpu_count(),
    }


def host_geometry() -> Geometry:
    """Page and PMD size of this host; CaptureError (5) where it lacks something."""
    if not os.path.exists("/proc/self/pagemap"):
        raise CaptureError("this host has no /proc/PID/pagemap (CONFIG_PROC_PAGE_MONITOR)", LACKING)
    if not os.path.isdir(THP):
        raise CaptureError("this kernel has no transparent huge pages", LACKING)
    pmd_size = number(THP + "/hpage_pmd_size") or 2 << 20
    page_shift = os.sysconf("SC_PAGE_SIZE").bit_length() - 1
    return Geometry(page_shift, pmd_size.bit_length() - 1 - page_shift)
