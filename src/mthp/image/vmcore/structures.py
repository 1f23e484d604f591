# SPDX-License-Identifier: GPL-2.0-or-later
"""The structures of the kernel in a dump: where their fields stand, the processes, and texts.

Kernel: include/linux/sched.h, mm_types.h, fs.h, dcache.h; fs/mount.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mthp.image.capture.btf import Btf, BtfError
from mthp.image.capture.kcore import CoreError
from mthp.image.capture.kernel import (
    TICK,
    KernelLayout,
    KernelStructures,
    ProcessMm,
    layout_of,
    members_of,
)
from mthp.image.capture.proc import LACKING, USAGE, CaptureError, LeftOut
from mthp.image.vmcore.dump import Dump
from mthp.image.vmcore.symbols import read_symbols, symbol

NEEDED = {
    "task_struct": ("comm", "flags", "cred", "signal", "cgroups"),
    "signal_struct": ("nr_threads",),
    "cred": ("uid", "euid", "suid", "fsuid"),
    "mm_struct": (
        "start_brk", "brk", "start_stack", "arg_start", "arg_end", "exe_file", "locked_vm", "pinned_vm",
        "hugetlb_usage", "pgtables_bytes", "rss_stat",
    ),
    "percpu_counter": ("count", "counters"),
    "vm_area_struct": ("vm_flags", "vm_pgoff", "vm_file", "vm_ops", "vm_private_data"),
    "file": ("f_path", "f_inode"),
    "path": ("mnt", "dentry"),
    "dentry": ("d_parent", "d_name.name", "d_hash.pprev", "d_op"),
    "dentry_operations": ("d_dname",),
    "inode": ("i_sb", "i_ino"),
    "super_block": ("s_dev", "s_magic"),
    "mount": ("mnt", "mnt_parent", "mnt_mountpoint"),
    "vm_special_mapping": ("name",),
    "zone": ("name", "free_area", "present_pages"),
    "free_area": ("nr_free",),
    "pglist_data": ("node_zones",),
    "new_utsname": ("nodename", "version", "machine"),
    "folio": ("mapping", "_entire_mapcount"),
}  # fmt: skip
"""Members without which no dump is read, beside those that a deep capture needs."""
OPTIONAL = {
    "task_struct": ("__state", "exit_state"),
    "page": ("compound_head", "compound_info"),
    "zone": ("_watermark",),
    "vm_area_struct": ("anon_name",),
    "anon_vma_name": ("name",),
    "swap_info_struct": ("flags", "prio", "pages", "inuse_pages", "swap_file"),
    "css_set": ("dfl_cgrp", "subsys"),
    "cgroup": ("kn",),
    "cgroup_subsys_state": ("cgroup", "parent"),
    "kernfs_node": ("name", "parent", "__parent"),
    "mem_cgroup": ("css", "memory", "swap"),
    "page_counter": ("usage", "max", "high"),
}
"""Members that may lack: what is told by them is then not told."""
SIZES = ("zone", "free_area", "percpu_counter", "cpumask")
ENUMS = (
    "transparent_hugepage_flag", "zone_type", "zone_stat_item", "node_stat_item", "zone_watermarks",
    "cgroup_subsys_id",
)  # fmt: skip
SYMBOLS = frozenset({
    "init_task", "khugepaged_scan", "cpu_fbatches", "mlock_fbatch", "__per_cpu_offset", "node_data",
    "vmemmap_base", "__start_BTF", "__stop_BTF", "transparent_hugepage_flags", "huge_anon_orders_always",
    "huge_anon_orders_madvise", "huge_anon_orders_inherit", "huge_shmem_orders_always",
    "huge_shmem_orders_madvise", "huge_shmem_orders_within_size", "huge_shmem_orders_inherit", "shmem_huge",
    "khugepaged_pages_to_scan", "khugepaged_scan_sleep_millisecs", "khugepaged_alloc_sleep_millisecs",
    "khugepaged_max_ptes_none", "khugepaged_max_ptes_swap", "khugepaged_max_ptes_shared",
    "khugepaged_pages_collapsed", "khugepaged_full_scans", "split_underused_thp", "ksm_run",
    "ksm_use_zero_pages", "_totalram_pages", "vm_zone_stat", "vm_node_stat", "totalreserve_pages",
    "total_swap_pages", "nr_swap_pages", "swap_info",
    "nr_swapfiles", "numa_distance", "numa_distance_cnt", "node_reclaim_mode", "__num_online_cpus",
    "__cpu_possible_mask", "zero_pfn", "zero_page_pfn", "huge_zero_pfn", "linux_banner",
    "special_mapping_vmops",
})  # fmt: skip
"""What is looked for in the table of symbols."""
PF_KTHREAD, PF_FORKNOEXEC = 0x200000, 0x40
"""Kernel: include/linux/sched.h."""
_MOST_BYTES_OF_TYPES = 64 << 20
_MOST_BYTES_OF_MAP = 1 << 10
_MOST_STEPS = 256
"""Folders and mounts above a file."""
_LONGEST_NAME = 256
_PAGES_OF_FOLIO, _LARGEST = 3, 1 << 10
"""The struct pages that a struct folio takes at most; bytes of a struct page, or of a batch of folios."""


class DumpedProcess(NamedTuple):
    """A process. address: of its task_struct; mm: 0 for a kernel thread; start: clock ticks since boot."""

    address: int
    pid: int
    mm: int
    start: int
    name: str


class DumpKernel(KernelStructures):
    """The kernel of a dump. path: the dump's. CaptureError (2): it cannot be read, or it is damaged; (5): its
    kernel lacks what is needed."""

    def __init__(self, dump: Dump, path: str) -> None:
        self.dump, self.path = dump, path
        try:
            found = read_symbols(dump, SYMBOLS)
            known, self.sizes, self.enums = self._layout(found)
            self.all_symbols = found
            cpus = self._bits_at(found.get("__cpu_possible_mask"), self.sizes["cpumask"])
            nodes = self._bits_at(self._online_nodes(), dump.number("nodemask_t", "SIZE") or 8)
            super().__init__(dump, known, cpus, nodes)
            self._tasks = [self._task(*each) for each in self.tasks()]
        except CoreError as error:
            raise CaptureError(f"{path}: {error}", USAGE) from None
        except BtfError as error:
            raise CaptureError(f"{path}: {error}", LACKING) from None

    def _layout(
        self, found: dict[str, int]
    ) -> tuple[KernelLayout, dict[str, int], dict[str, dict[str, int]]]:
        start, stop = found.get("__start_BTF", 0), found.get("__stop_BTF", 0)
        if not 0 < stop - start <= _MOST_BYTES_OF_TYPES:
            raise BtfError("this kernel has no type information (BTF)")
        btf = Btf(self.dump.read(start, stop - start))
        known = layout_of(btf, lambda names: {n: found[n] for n in names if n in found})
        needed, lacking = members_of(btf, NEEDED)
        if lacking:
            raise BtfError(f"this kernel lacks {', '.join(lacking)}")
        others, _ = members_of(btf, OPTIONAL)
        if not {"page.compound_head", "page.compound_info"} & others.keys():
            raise BtfError("this kernel lacks page.compound_head")
        enums = {}
        for name in ENUMS:
            try:
                enums[name] = btf.enumerators(name)
            except BtfError:
                enums[name] = {}
        sizes = {name: btf.size(name) for name in SIZES}
        every = {**others, **needed, **known.at}
        page, batch = known.sizes["page"], known.sizes["folio_batch"]
        for name, size in (
            ("page", page),
            ("folio", _PAGES_OF_FOLIO * page),
            ("folio_batch", batch),
        ):
            last = max(at for member, at in every.items() if member.startswith(name + "."))
            if not last + 8 <= size <= _LARGEST:
                raise BtfError(f"type information whose struct {name} cannot be so")
        return known._replace(at=every), sizes, enums

    def _online_nodes(self) -> int | None:
        name = "node_online_map"
        return symbol(self.dump, name) if f"SYMBOL({name})" in self.dump.info else None

    def _bits_at(self, address: int | None, size: int) -> list[int]:
        """The numbers of the bits that are set in a map of so many bytes; [0] where there is none."""
        if address is None:
            return [0]
        if not 0 < size <= _MOST_BYTES_OF_MAP:
            raise CoreError(f"has a map of {size} bytes of CPUs or nodes, which no kernel has")
        bits = int.from_bytes(self.dump.read(address, size), "little")
        return [k for k in range(8 * size) if bits >> k & 1] or [0]

    def _task(self, address: int, pid: int, mm: int, start: int) -> DumpedProcess:
        comm = self.core.read(address + self.at["task_struct.comm"], 16).split(b"\0")[0]
        return DumpedProcess(address, pid, mm, start // TICK, comm.decode("utf-8", "replace"))

    def symbol(self, name: str, width: int = 8) -> int | None:
        """The variable of a name, unsigned; None where this kernel has none."""
        at = self.all_symbols.get(name)
        return None if at is None else self.number(at, width)

    def number(self, address: int, width: int = 8) -> int:
        """A number of so many bytes."""
        return int.from_bytes(self.core.read(address, width), "little")

    def field(self, address: int, member: str, width: int = 8) -> int:
        """A field of the structure at an address."""
        return self.number(address + self.at[member], width)

    def text(self, address: int, most: int = _LONGEST_NAME) -> str:
        """The text at an address."""
        found = b""
        while b"\0" not in found and len(found) < most:
            size = min(most - len(found), 64, 4096 - (address + len(found)) % 4096)
            found += self.core.read(address + len(found), size)
        return found.split(b"\0")[0].decode("utf-8", "replace")

    # --- processes ------------------------------------------------------------------------

    def processes(self) -> list[DumpedProcess]:
        """The processes that have memory, ascending."""
        known = {task.pid: task for task in self._tasks if task.mm and not self.is_thread(task)}
        return [known[pid] for pid in sorted(known)]

    def is_thread(self, task: DumpedProcess) -> bool:
        """Whether it is one of the kernel's own, which may have borrowed memory."""
        return bool(self.field(task.address, "task_struct.flags", 4) & PF_KTHREAD)

    def task_of(self, pid: int) -> DumpedProcess:
        """The process of a number. LeftOut: there is none, or it has no memory."""
        for task in self._tasks:
            if task.pid == pid:
                if self.is_thread(task):
                    message = f"process {pid} is a kernel thread: it has no address space"
                    raise LeftOut(f"{self.path}: {message}", "kernel threads")
                if not task.mm:
                    message = f"process {pid} has ended (zombie): it has no address space"
                    raise LeftOut(f"{self.path}: {message}", "zombies")
                return task
        raise LeftOut(f"{self.path}: no process {pid} in it", "ended meanwhile")

    def khugepaged_began(self) -> int | None:
        """When khugepaged's thread started, in clock ticks since boot; None where there is none."""
        for task in self._tasks:
            if task.name == "khugepaged" and self.is_thread(task):
                return task.start
        return None

    def mm_of(self, pid: int) -> ProcessMm:
        """As KernelStructures.mm_of()."""
        return self.mm_at(self.task_of(pid).mm)

    def anonymous(self, task: DumpedProcess) -> int:
        """The bytes of its anonymous memory, as its mm counts them."""
        each = self.sizes["percpu_counter"]
        counter = task.mm + self.at["mm_struct.rss_stat"] + each  # Kernel: MM_ANONPAGES is 1
        pages = self.field(counter, "percpu_counter.count")
        of_cpus = self.field(counter, "percpu_counter.counters")
        if of_cpus:
            for cpu in self.cpus:
                base = self.core.word(self.symbols["__per_cpu_offset"] + 8 * cpu)
                part = self.number(base + of_cpus & (1 << 64) - 1, 4)
                pages += part - (part >> 31 << 32)
        pages -= pages >> 63 << 64
        return max(0, min(pages, 1 << 40)) << 12

    # --- files ----------------------------------------------------------------------------

    def path_of(self, file: int) -> str:
        """The path of an open file, as the kernel's d_path() names it from the root of all mounts."""
        at = file + self.at["file.f_path"]
        mount = self.field(at, "path.mnt") - self.at["mount.mnt"]
        dentry = self.field(at, "path.dentry")
        operations = self.field(dentry, "dentry.d_op")
        if operations and self.field(operations, "dentry_operations.d_dname"):
            name = self.text(self.field(dentry, "dentry.d_name.name"))
            return f"/{name} (deleted)"  # simple_dname(): memfd, SYSV, shared anonymous memory
        gone = "" if self.field(dentry, "dentry.d_hash.pprev") else " (deleted)"
        names: list[str] = []
        for _ in range(_MOST_STEPS):
            parent = self.field(dentry, "dentry.d_parent")
            if parent == dentry:
                above = self.field(mount, "mount.mnt_parent")
                if above == mount:
                    break
                dentry, mount = self.field(mount, "mount.mnt_mountpoint"), above
                continue
            names.append(self.text(self.field(dentry, "dentry.d_name.name")))
            dentry = parent
        else:
            raise CoreError("has a file below folders without end")
        return "/" + "/".join(reversed(names)) + (gone if names else "")

    def cgroup_path(self, node: int) -> str:
        """The path of a cgroup. node: its kernfs_node."""
        up = "kernfs_node.__parent" if "kernfs_node.__parent" in self.at else "kernfs_node.parent"
        names: list[str] = []
        for _ in range(_MOST_STEPS):
            above = self.field(node, up)
            if not above:
                return "/" + "/".join(reversed(names))
            names.append(self.text(self.field(node, "kernfs_node.name")))
            node = above
        raise CoreError("has a cgroup below others without end")

    def swap_devices(self) -> Iterator[tuple[str, int, int, int]]:
        """(name, pages, pages in use, priority) of each swap device in use."""
        count, table = self.symbol("nr_swapfiles", 4) or 0, self.all_symbols.get("swap_info")
        if table is None or "swap_info_struct.prio" not in self.at:
            return
        for k in range(min(count, 32)):
            info = self.core.word(table + 8 * k)
            if (
                info and self.field(info, "swap_info_struct.flags") & 3 == 3
            ):  # SWP_USED, SWP_WRITEOK
                file = self.field(info, "swap_info_struct.swap_file")
                prio = self.field(info, "swap_info_struct.prio", 2)
                yield (
                    self.path_of(file),
                    self.field(info, "swap_info_struct.pages", 4),
                    self.field(info, "swap_info_struct.inuse_pages"),
                    prio - (prio >> 15 << 16),
                )
