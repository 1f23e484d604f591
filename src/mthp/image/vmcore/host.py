# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel of a dump tells of its machine: what /sys and /proc would, out of the kernel's variables.

Kernel: mm/huge_memory.c, mm/khugepaged.c, mm/shmem.c, mm/vmstat.c (frag_show_print()), mm/swapfile.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mthp.image.capture.kcore import CoreError
from mthp.image.vmcore.structures import DumpedProcess, DumpKernel
from mthp.image.vmcore.symbols import symbol
from mthp.words.units import Geometry

_GLOBAL = ("always", "madvise", "never")
_SIZE = ("always", "inherit", "madvise", "never")
_DEFRAG = ("always", "defer", "defer+madvise", "madvise", "never")
_SHMEM_SIZE = ("always", "inherit", "within_size", "advise", "never")
_SHMEM = {1: "always", 2: "within_size", 3: "advise", 0: "never", -1: "deny", -2: "force"}
_NUMBERS = {
    "pages_to_scan": 4, "scan_sleep_millisecs": 4, "alloc_sleep_millisecs": 4, "max_ptes_none": 4,
    "max_ptes_swap": 4, "max_ptes_shared": 4, "pages_collapsed": 4, "full_scans": 4,
}  # fmt: skip
"""khugepaged's variables -> bytes of each."""
_MOST_ORDERS, _MOST_ZONES = 64, 16
_UNLIMITED = (1 << 63) // 4096 - 1
"""Kernel: PAGE_COUNTER_MAX."""
_MOST_NODES = 1 << 10


def _chosen(words: tuple[str, ...], word: str) -> str:
    """The text of a file that shows all values, the one that is set in brackets."""
    return " ".join(f"[{each}]" if each == word else each for each in words)


def settings(kernel: DumpKernel, geometry: Geometry) -> dict[str, str]:
    """The files of transparent_hugepage, and two of ksm, but for statistics."""
    names = kernel.enums["transparent_hugepage_flag"]
    flags = kernel.symbol("transparent_hugepage_flags")
    files = {"hpage_pmd_size": str(geometry.pmd_size)}

    def has(name: str) -> bool:
        bit = names.get(f"TRANSPARENT_HUGEPAGE_{name}_FLAG".replace("__", "_"))
        return flags is not None and bit is not None and flags >> bit & 1 == 1

    if flags is not None and names:
        which = "always" if has("") else "madvise" if has("REQ_MADV") else "never"
        files["enabled"] = _chosen(_GLOBAL, which)
        defrag = (
            ("DEFRAG_DIRECT", "always"), ("DEFRAG_KSWAPD", "defer"),
            ("DEFRAG_KSWAPD_OR_MADV", "defer+madvise"), ("DEFRAG_REQ_MADV", "madvise"),
        )  # fmt: skip
        mode = next((text for name, text in defrag if has(name)), "never")
        files["defrag"] = _chosen(_DEFRAG, mode)
        files["use_zero_page"] = str(int(has("USE_ZERO_PAGE")))
        files["khugepaged/defrag"] = str(int(has("DEFRAG_KHUGEPAGED")))
    for name, width in _NUMBERS.items():
        value = kernel.symbol(f"khugepaged_{name}", width)
        if value is not None:
            files[f"khugepaged/{name}"] = str(value)
    for name, path, width in (
        ("split_underused_thp", "shrink_underused", 1),
        ("ksm_run", "../ksm/run", 4),
        ("ksm_use_zero_pages", "../ksm/use_zero_pages", 1),
    ):
        value = kernel.symbol(name, width)
        if value is not None:
            files[path] = str(value)
    by_size = {word: kernel.symbol(f"huge_anon_orders_{word}") for word in _SIZE[:-1]}
    of_shmem = {
        word: kernel.symbol(f"huge_shmem_orders_{variable}")
        for word, variable in zip(
            _SHMEM_SIZE, ("always", "inherit", "within_size", "madvise"), strict=False
        )
    }
    for order in range(1, geometry.pmd_order + 1):
        folder = f"hugepages-{geometry.size_name(order)}"
        for name, all_words, words in (
            ("enabled", _SIZE, by_size), ("shmem_enabled", _SHMEM_SIZE, of_shmem),
        ):  # fmt: skip
            if None in words.values() or (name == "enabled" and order < 2):
                continue
            which = next((w for w, bits in words.items() if (bits or 0) >> order & 1), "never")
            files[f"{folder}/{name}"] = _chosen(all_words, which)
    shmem = kernel.symbol("shmem_huge", 4)
    if shmem is not None:
        files["shmem_enabled"] = _chosen(
            tuple(_SHMEM.values()), _SHMEM.get(shmem - (shmem >> 31 << 32), "never")
        )
    return files


def _zones(kernel: DumpKernel) -> Iterator[tuple[int, int]]:
    """(node, address) of each zone that has memory."""
    count = min(kernel.enums["zone_type"].get("__MAX_NR_ZONES", 0), _MOST_ZONES)
    for _, _, node in kernel.nodes:
        data = kernel.core.word(kernel.symbols["node_data"] + 8 * node)
        for k in range(count):
            zone = data + kernel.at["pglist_data.node_zones"] + k * kernel.sizes["zone"]
            if kernel.field(zone, "zone.present_pages"):
                yield node, zone


def buddyinfo(kernel: DumpKernel) -> str | None:
    """The text of /proc/buddyinfo."""
    orders = kernel.dump.number("zone.free_area", "LENGTH")
    if not 0 < orders <= _MOST_ORDERS:
        return None
    lines = []
    for node, zone in _zones(kernel):
        name = kernel.text(kernel.field(zone, "zone.name"), 16)
        areas = zone + kernel.at["zone.free_area"]
        free = [
            kernel.field(areas + order * kernel.sizes["free_area"], "free_area.nr_free")
            for order in range(orders)
        ]
        lines.append(f"Node {node}, zone {name:>8} " + "".join(f"{n:6} " for n in free))
    return "\n".join(lines)


def meminfo(kernel: DumpKernel) -> dict[str, int]:
    """What /proc/meminfo says of all memory."""
    pages: dict[str, int | None] = {
        "MemTotal": kernel.symbol("_totalram_pages"),
        "MemFree": _state(kernel, "zone", "NR_FREE_PAGES"),
        "MemAvailable": _available(kernel),
        "SwapTotal": kernel.symbol("total_swap_pages"),
        "SwapFree": kernel.symbol("nr_swap_pages"),
    }
    return {name: nr << 12 for name, nr in pages.items() if nr is not None and nr >> 50 == 0}


def _state(kernel: DumpKernel, of: str, name: str) -> int | None:
    """A counter of all zones, or of all nodes, as far as CPUs have added to it; None where there is none."""
    table, which = (
        kernel.all_symbols.get(f"vm_{of}_stat"),
        kernel.enums[f"{of}_stat_item"].get(name),
    )
    if table is None or which is None:
        return None
    value = kernel.number(table + 8 * which)
    return 0 if value >> 63 else value


def _available(kernel: DumpKernel) -> int | None:
    """Kernel: mm/show_mem.c, si_mem_available()."""
    low = kernel.enums["zone_watermarks"].get("WMARK_LOW")
    parts = [
        _state(kernel, "zone", "NR_FREE_PAGES"), kernel.symbol("totalreserve_pages"),
        *(_state(kernel, "node", name) for name in (
            "NR_ACTIVE_FILE", "NR_INACTIVE_FILE", "NR_SLAB_RECLAIMABLE_B", "NR_KERNEL_MISC_RECLAIMABLE",
        )),
    ]  # fmt: skip
    if low is None or "zone._watermark" not in kernel.at or None in parts:
        return None
    free, reserve, *others = (part or 0 for part in parts)
    marks = sum(kernel.field(zone + 8 * low, "zone._watermark") for _, zone in _zones(kernel))
    for part in (others[0] + others[1], others[2] + others[3]):
        free += part - min(part // 2, marks)
    return max(0, free - reserve)


def swaps(kernel: DumpKernel) -> str:
    """The text of /proc/swaps; partitions and files are not told apart."""
    lines = ["Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority"]
    for name, pages, used, prio in kernel.swap_devices():
        lines.append(f"{name:<39} partition\t{pages * 4}\t\t{used * 4}\t\t{prio}")
    return "\n".join(lines)


def _distances(kernel: DumpKernel, nodes: list[int]) -> dict[str, list[int]]:
    """The rows of the nodes' distances."""
    count = kernel.symbol("numa_distance_cnt", 4) or 0
    table = kernel.symbol("numa_distance") or 0
    if not table or not 0 < count <= _MOST_NODES:
        return {f"node{node}": [10 if each == node else 20 for each in nodes] for node in nodes}
    raw = kernel.core.read(table, count * count)
    known = [node for node in nodes if node < count]
    return {f"node{node}": [raw[node * count + each] for each in known] for node in known}


def ranges(numbers: list[int]) -> str:
    """Ascending numbers as the kernel lists them: 0-3,7."""
    parts: list[list[int]] = []
    for each in numbers:
        if parts and parts[-1][1] == each - 1:
            parts[-1][1] = each
        else:
            parts.append([each, each])
    return ",".join(f"{a}-{b}" if a < b else str(a) for a, b in parts)


def host_facts(kernel: DumpKernel, geometry: Geometry) -> dict[str, Any]:
    """What capture.host.host_facts() says of a live host."""
    names = symbol(kernel.dump, "init_uts_ns") + kernel.dump.number("uts_namespace.name", "OFFSET")
    nodes = [node for _, _, node in kernel.nodes]
    banner = kernel.all_symbols.get("linux_banner")
    return {
        "hostname": kernel.text(names + kernel.at["new_utsname.nodename"], 65),
        "kernel": kernel.dump.release,
        "version": None if banner is None else kernel.text(banner, 512).rstrip("\n"),
        "machine": kernel.text(names + kernel.at["new_utsname.machine"], 65),
        "sysfs": settings(kernel, geometry),
        "buddyinfo": buddyinfo(kernel),
        "meminfo": meminfo(kernel),
        "swaps": swaps(kernel),
        "nodes": {
            "online": ranges(nodes),
            "distance": _distances(kernel, nodes),
            "zone_reclaim_mode": kernel.symbol("node_reclaim_mode", 4),
        },
        "khugepaged": {"started": kernel.khugepaged_began()},
        "cpus": kernel.symbol("__num_online_cpus", 4) or len(kernel.cpus),
        "la57": kernel.levels == 5,
    }


def memcg_of(kernel: DumpKernel, task: DumpedProcess) -> tuple[str | None, dict[str, Any] | None]:
    """As capture.host.memcg_of(): the cgroup, and the limits of whichever ancestor has least room."""
    at, which = kernel.at, kernel.enums["cgroup_subsys_id"].get("memory_cgrp_id")
    if not {"css_set.dfl_cgrp", "cgroup.kn", "kernfs_node.name"} <= at.keys():
        return None, None
    groups = kernel.field(task.address, "task_struct.cgroups")
    default = kernel.field(groups, "css_set.dfl_cgrp")
    path = kernel.cgroup_path(kernel.field(default, "cgroup.kn"))
    tightest: dict[str, Any] | None = None
    if which is None or "mem_cgroup.memory" not in at or "css_set.subsys" not in at:
        return path, None
    css = kernel.core.word(groups + at["css_set.subsys"] + 8 * which)
    for _ in range(256):
        if not css:
            return path, tightest
        group = css - at["mem_cgroup.css"]
        above = kernel.field(css, "cgroup_subsys_state.parent")
        limits = _limits(kernel, group)
        if above and limits["limit"] is not None:
            node = kernel.field(kernel.field(css, "cgroup_subsys_state.cgroup"), "cgroup.kn")
            limits["path"] = kernel.cgroup_path(node)
            room = limits["limit"] - limits["usage"]
            if tightest is None or room < tightest["limit"] - tightest["usage"]:
                tightest = limits
        css = above
    raise CoreError("has memory cgroups above one another without end")


def _limits(kernel: DumpKernel, group: int) -> dict[str, Any]:
    """The limits of one memory cgroup in bytes; None for none."""
    found: dict[str, Any] = {}
    for prefix, member in (("", "mem_cgroup.memory"), ("swap_", "mem_cgroup.swap")):
        if member not in kernel.at:
            continue
        counter = group + kernel.at[member]
        names = {"limit": "max", "usage": "usage", **({} if prefix else {"high": "high"})}
        for key, name in names.items():
            pages = kernel.field(counter, f"page_counter.{name}")
            found[prefix + key] = None if pages >= _UNLIMITED else pages << 12
    return {**found, "reclaimable": None}
