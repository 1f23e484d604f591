# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host tells of itself: settings, memory, nodes, page sizes, and its cgroups."""

from __future__ import annotations

import glob
import os
import re
from typing import Any

from mthp.image.capture.proc import (
    LACKING,
    CaptureError,
    LeftOut,
    hides_processes,
    khugepaged_began,
    number,
    own_pid,
    text,
)
from mthp.words.units import Geometry

THP = "/sys/kernel/mm/transparent_hugepage"


def sysfs_settings() -> dict[str, str]:
    """Every readable file of the transparent_hugepage tree and two of ksm, by relative path."""
    mm = os.path.dirname(THP)
    paths = [f"{folder}/{name}" for folder, _, names in os.walk(THP) for name in names]
    found = {path[len(THP) + 1 :]: text(path) for path in sorted(paths)}
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
    system = os.uname()
    return {
        "hostname": system.nodename,
        "kernel": system.release,
        "version": text("/proc/version"),
        "machine": system.machine,
        "sysfs": sysfs_settings(),
        "buddyinfo": text("/proc/buddyinfo"),
        "zones": zones(text("/proc/zoneinfo") or ""),
        "pagetypeinfo": text("/proc/pagetypeinfo"),
        "meminfo": {name: int(kib) << 10 for name, kib in amounts},
        "swaps": text("/proc/swaps"),
        "nodes": {
            "online": text(node + "/online"),
            "distance": {name: [int(value) for value in row] for name, row in rows.items()},
            "zone_reclaim_mode": number("/proc/sys/vm/zone_reclaim_mode"),
        },
        "khugepaged": {"started": khugepaged_began()},
        "cpus": os.cpu_count(),
        "la57": re.search(r"\bla57\b", (text("/proc/cpuinfo") or "")[:8192]) is not None,
    }


def zones(zoneinfo: str) -> list[dict[str, Any]]:
    """What /proc/zoneinfo says of each zone that has memory, in pages: `min`, its watermark; `kept`, what it
    keeps from allocations that may use any zone; `pcp_high`, how much a per-CPU list may hold.

    Kernel: mm/vmstat.c, zoneinfo_show_print(); mm/page_alloc.c, __zone_watermark_ok().
    """
    found: list[dict[str, Any]] = []
    order: list[str] = []
    for part in re.split(r"^(?=Node )", zoneinfo, flags=re.M):
        head = re.match(r"Node (\d+), zone +(\w+)\n", part)
        if head is None:
            continue
        if head[2] not in order:
            order.append(head[2])
        low = re.search(r"^ +min +(\d+)$", part, re.M)
        kept = re.search(r"^ +protection: \(([\d, ]+)\)$", part, re.M)
        if low is None or kept is None or re.search(r"^ +managed +0$", part, re.M):
            continue
        highs = re.findall(r"^ +high: +(\d+)$", part, re.M)
        found.append(
            {
                "node": int(head[1]),
                "zone": head[2],
                "min": int(low[1]),
                "kept": [int(value) for value in kept[1].split(",")],
                "pcp_high": max(map(int, highs), default=0),
            }
        )
    place = order.index("Movable") if "Movable" in order else -1
    for zone in found:
        zone["kept"] = zone["kept"][place]
    return found


def other_processes(captured: set[int], pmd_size: int) -> dict[str, int]:
    """How many other processes have anonymous memory for a huge page, and how much they have.

    khugepaged may scan them too: those with huge pages disabled by prctl(2) are left out, and what /proc
    hides is not counted. Kernel: fs/proc/array.c, task_thp_status().
    """
    processes = anonymous = 0
    page = os.sysconf("SC_PAGE_SIZE")
    for name in filter(str.isdigit, os.listdir("/proc")):
        _, resident, shared, *_ = map(int, (text(f"/proc/{name}/statm") or "0 0 0").split())
        size = (resident - shared) * page
        if size >= pmd_size and int(name) not in captured and _may_have_thp(name):
            processes += 1
            anonymous += size
    return {"processes": processes, "anonymous": anonymous}


def _may_have_thp(pid: str) -> bool:
    """Whether a process has not disabled huge pages for itself."""
    return "\nTHP_enabled:\t0" not in (text(f"/proc/{pid}/status") or "")


def host_geometry() -> Geometry:
    """Page and PMD size of this host; CaptureError (5) where it lacks something."""
    if not os.path.exists("/proc/self/status"):
        raise CaptureError("/proc is not mounted here", LACKING)
    if not os.path.exists("/proc/self/pagemap"):
        raise CaptureError("this host has no /proc/PID/pagemap (CONFIG_PROC_PAGE_MONITOR)", LACKING)
    if not os.path.isdir(THP) and not kernel_has_thp():
        raise CaptureError("this kernel has no transparent huge pages", LACKING)
    page = os.sysconf("SC_PAGE_SIZE")
    pmd_size = number(THP + "/hpage_pmd_size") or page // WORD_BYTES * page
    return Geometry(page.bit_length() - 1, pmd_size.bit_length() - page.bit_length())


WORD_BYTES = 8
"""Of an entry of a page table, of which a page is full, where the host hides its PMD size."""


def kernel_has_thp() -> bool:
    """Whether the kernel was built with transparent huge pages, where /sys shows none: it may be
    masked, as in containers. Kernel: mm/vmstat.c, fs/proc/meminfo.c."""
    found = (text("/proc/vmstat") or "") + (text("/proc/meminfo") or "")
    return re.search(r"^(thp_|AnonHugePages:)", found, re.M) is not None


def cgroup_mounts() -> dict[str, str]:
    """Where cgroup v2 ("") and the v1 memory controller ("memory") are mounted."""
    mounts: dict[str, str] = {}
    for line in (text("/proc/self/mounts") or "").splitlines():
        _, folder, kind, options = line.split()[:4]
        if kind == "cgroup2":
            mounts[""] = folder
        elif kind == "cgroup" and "memory" in options.split(","):
            mounts["memory"] = folder
    return mounts


def every_pid() -> list[int]:
    """All processes that /proc lists, but this one; where it hides some, those that cgroups list, too."""
    found = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    if hides_processes():
        found.update(*map(_listed_below, cgroup_mounts().values()))
    return sorted(found - {0, own_pid()})


def pids_of_cgroup(path: str) -> list[int]:
    """Processes of a cgroup and of those below it, but this one and those that have no number here."""
    numbers = numbers_of_cgroup(path)
    pids = set(numbers) - {0, own_pid()}
    if not pids and 0 in numbers:
        message = f"cgroup {path} has {numbers.count(0)} processes, all of another PID namespace"
        raise LeftOut(message, "of another PID namespace")
    if not pids:
        raise LeftOut(f"cgroup {path} has no processes", "empty cgroup")
    return sorted(pids)


def numbers_of_cgroup(path: str) -> list[int]:
    """What a cgroup and those below it list: processes, 0 for each that our PID namespace has not.

    path: of the folder; or as /proc/PID/cgroup has it, with the controllers in front or without; a
    path alone is one of cgroup v2.
    """
    folder, controller = path, ""
    line = re.fullmatch(r"\d+:([^:]*):(/.*)", path)
    if line:
        controller = "memory" if "memory" in line[1].split(",") else line[1]
        folder = line[2]
    if not path:
        raise LeftOut("no cgroup ''", "no cgroup")
    if line or not os.path.exists(os.path.join(folder, "cgroup.procs")):
        mount = cgroup_mounts().get(controller, "/sys/fs/cgroup/" + controller)
        folder = os.path.join(mount, folder.strip("/"))
    if not os.path.exists(os.path.join(folder, "cgroup.procs")):
        raise LeftOut(f"no cgroup {path}", "no cgroup")
    return _listed_below(folder)


def _listed_below(folder: str) -> list[int]:
    found = [os.path.join(here, "cgroup.procs") for here, _, _ in os.walk(folder)]
    return [int(pid) for procs in found for pid in (text(procs) or "").split()]


MEMCG_FILES = {
    "": {
        "limit": "memory.max", "usage": "memory.current", "high": "memory.high",
        "swap_limit": "memory.swap.max", "swap_usage": "memory.swap.current",
    },
    "memory": {"limit": "memory.limit_in_bytes", "usage": "memory.usage_in_bytes"},
}  # fmt: skip


def reclaimable(path: str) -> int | None:
    """Bytes of a memory.stat that reclaim takes without swap: page cache, and slab where counted."""
    stat = dict(line.split() for line in (text(path) or "").splitlines())
    prefix = "total_" if "total_active_file" in stat else ""
    names = (f"{prefix}active_file", f"{prefix}inactive_file", "slab_reclaimable")
    return sum(int(stat.get(name, 0)) for name in names) if stat else None


def memcg_of(pid: int) -> tuple[str | None, dict[str, Any] | None]:
    """The process's cgroup path, and the memory limits of whichever ancestor has least room."""
    groups = dict(
        line.split(":", 2)[1:] for line in (text(f"/proc/{pid}/cgroup") or "").splitlines()
    )
    mounts = cgroup_mounts()
    tightest: dict[str, Any] | None = None
    for controller, files in MEMCG_FILES.items():
        path, mount = groups.get(controller), mounts.get(controller)
        while path is not None and mount is not None:
            folder = mount + path.rstrip("/")
            limits: dict[str, Any] = {k: number(f"{folder}/{name}") for k, name in files.items()}
            limits["path"] = path
            limits["reclaimable"] = reclaimable(f"{folder}/memory.stat")
            if limits["limit"] is not None and limits["limit"] < 1 << 60:
                room = limits["limit"] - (limits["usage"] or 0)
                if tightest is None or room < tightest["limit"] - (tightest["usage"] or 0):
                    tightest = limits
            path = None if path == "/" else os.path.dirname(path)
    return groups.get("memory", groups.get("")), tightest
