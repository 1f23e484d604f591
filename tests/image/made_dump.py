# SPDX-License-Identifier: GPL-2.0-or-later
"""A dump of a machine made by hand: a megabyte of memory with the kernel's page tables, its table of symbols,
its type information, and one process."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterable
from itertools import pairwise
from pathlib import Path

from mthp.image.vmcore.dump import START_KERNEL_MAP

from .made_kernel import DIRECT, FLAGS, PAGE, STRUCT_PAGES, TYPES, core_file, type_information

RAM = 1 << 20
FRAMES = 2048
"""Frames that have a struct page; most are not in the dump themselves."""
PID, SMALL, HUGE = 42, 0x1000_0000_0000, 0x1000_0040_0000
CODE = 0x5555_0000_0000
FIRST, HUGE_FRAME = 40, 1024
"""The frame of the first small page, and that of the huge one."""
ZERO_FRAME = 599
TABLE = 2 << 20
_KERNEL = {
    "task_struct": (256, {"comm": 64, "flags": 80, "cred": 88, "signal": 96, "cgroups": 104, "__state": 112}),
    "signal_struct": (16, {"nr_threads": 0}),
    "cred": (32, {"uid": 0, "euid": 4, "suid": 8, "fsuid": 12}),
    "mm_struct": (512, {
        "start_brk": 160, "brk": 168, "start_stack": 176, "arg_start": 184, "arg_end": 192, "exe_file": 200,
        "locked_vm": 208, "pinned_vm": 216, "hugetlb_usage": 224, "pgtables_bytes": 232, "rss_stat": 256,
    }),
    "percpu_counter": (16, {"count": 0, "counters": 8}),
    "vm_area_struct": (128, {
        "vm_flags": 48, "vm_pgoff": 56, "vm_file": 64, "vm_ops": 72, "vm_private_data": 80, "anon_name": 88,
    }),
    "anon_vma_name": (64, {"name": 8}),
    "file": (64, {"f_path": 0, "f_inode": 24}),
    "path": (16, {"mnt": 0, "dentry": 8}),
    "dentry": (64, {"d_parent": 0, "d_name.name": 8, "d_hash.pprev": 16, "d_op": 24}),
    "dentry_operations": (64, {"d_dname": 8}),
    "inode": (64, {"i_sb": 0, "i_ino": 8}),
    "super_block": (64, {"s_dev": 0, "s_magic": 8}),
    "mount": (64, {"mnt": 8, "mnt_parent": 24, "mnt_mountpoint": 32}),
    "vm_special_mapping": (16, {"name": 0}),
    "zone": (512, {"name": 0, "present_pages": 8, "free_area": 16}),
    "free_area": (32, {"nr_free": 0}),
    "pglist_data": (1024, {"node_zones": 64}),
    "cpumask": (8, {"bits": 0}),
    "new_utsname": (390, {"nodename": 65, "version": 195, "machine": 260}),
    "page": (64, {"compound_head": 8}),
    "folio": (256, {"mapping": 24, "_entire_mapcount": 84}),
}  # fmt: skip
_ENUMS = {
    "transparent_hugepage_flag": {
        "TRANSPARENT_HUGEPAGE_UNSUPPORTED": 0, "TRANSPARENT_HUGEPAGE_FLAG": 1,
        "TRANSPARENT_HUGEPAGE_REQ_MADV_FLAG": 2, "TRANSPARENT_HUGEPAGE_DEFRAG_DIRECT_FLAG": 3,
        "TRANSPARENT_HUGEPAGE_DEFRAG_KSWAPD_FLAG": 4, "TRANSPARENT_HUGEPAGE_DEFRAG_KSWAPD_OR_MADV_FLAG": 5,
        "TRANSPARENT_HUGEPAGE_DEFRAG_REQ_MADV_FLAG": 6, "TRANSPARENT_HUGEPAGE_DEFRAG_KHUGEPAGED_FLAG": 7,
        "TRANSPARENT_HUGEPAGE_USE_ZERO_PAGE_FLAG": 8,
    },
    "zone_type": {"ZONE_DMA32": 0, "ZONE_NORMAL": 1, "__MAX_NR_ZONES": 2},
    "zone_stat_item": {"NR_FREE_PAGES": 0},
    "cgroup_subsys_id": {"memory_cgrp_id": 4},
}  # fmt: skip
MORE_FLAGS = {
    "PG_locked": 0,
    "PG_referenced": 1,
    "PG_uptodate": 2,
    "PG_dirty": 3,
    "PG_lru": 5,
    "PG_swapbacked": 17,
}
ANON_PAGE = sum(
    1 << MORE_FLAGS[name] for name in ("PG_uptodate", "PG_dirty", "PG_lru", "PG_swapbacked")
)
VARIABLES = {
    "transparent_hugepage_flags": 1 << 1 | 1 << 6 | 1 << 7 | 1 << 8, "huge_anon_orders_always": 1 << 4,
    "huge_anon_orders_madvise": 1 << 5, "huge_anon_orders_inherit": 1 << 9, "khugepaged_pages_to_scan": 4096,
    "khugepaged_scan_sleep_millisecs": 10000, "khugepaged_alloc_sleep_millisecs": 60000,
    "khugepaged_max_ptes_none": 511, "khugepaged_max_ptes_swap": 64, "khugepaged_max_ptes_shared": 256,
    "split_underused_thp": 1, "_totalram_pages": 1 << 18, "vm_zone_stat": 5000, "total_swap_pages": 1 << 16,
    "nr_swap_pages": 1 << 15, "nr_swapfiles": 1, "__num_online_cpus": 1, "__cpu_possible_mask": 1,
    "zero_pfn": ZERO_FRAME, "huge_zero_pfn": (1 << 64) - 1, "node_reclaim_mode": 0,
}  # fmt: skip
_PRESENT = 0x67
_SPACE = 640
"""Bytes for each variable: the largest, the batches of a CPU, fit in."""


class MadeDump:
    """Such a memory. left_out: names that the type information lacks; relative: how addresses of symbols are
    stored: by a base, as before Linux 7, or by their own places."""

    def __init__(self, *left_out: str, relative: bool = False) -> None:
        self.ram = bytearray(RAM)
        self.free = PAGE
        self.info = {"OSRELEASE": "7.3.4-made", "PAGESIZE": "4096", "NUMBER(phys_base)": "0"}
        self._map_kernel()
        self.at = {name: self.take(_SPACE) for name in (*VARIABLES, *_PLACES)}
        for name, value in VARIABLES.items():
            self.put(self.at[name], value)
        types = self._bytes(
            type_information(*left_out, more=_KERNEL, enums={**_ENUMS, "pageflags": MORE_FLAGS})
        )
        self.at["__start_BTF"], self.at["__stop_BTF"] = types
        self._symbols(relative)
        self._names_and_nodes()
        self._process()

    # --- memory -----------------------------------------------------------------------------

    def page(self, count: int = 1) -> int:
        """Pages that nobody has: their physical address."""
        self.free = -(-self.free // PAGE) * PAGE + count * PAGE
        assert self.free <= RAM
        return self.free - count * PAGE

    def take(self, size: int) -> int:
        """So many bytes that nobody has."""
        at = -(-self.free // 64) * 64
        self.free = at + size
        assert self.free <= RAM
        return at

    def put(self, at: int, *words: int, width: int = 8) -> None:
        """Write numbers at a physical address."""
        for word in words:
            self.ram[at : at + width] = (word & (1 << 8 * width) - 1).to_bytes(width, "little")
            at += width

    def set(self, name: str, base: int, /, **fields: int) -> None:
        """Write fields of a structure; of addresses, those in DIRECT."""
        offsets = {**TYPES.get(name, (0, {}))[1], **_KERNEL.get(name, (0, {}))[1]}
        if name == "mm_struct":
            offsets |= {"ma_root": 72, "pgd": 120, "flags": 128, "mm_id": 136}
        for field, value in fields.items():
            self.put(base + offsets[field], value)

    def _bytes(self, data: bytes) -> tuple[int, int]:
        at = self.take(len(data))
        self.ram[at : at + len(data)] = data
        return at, at + len(data)

    def text(self, text: str) -> int:
        """Write a text; its address in DIRECT."""
        return self._bytes(text.encode() + b"\0")[0] + DIRECT

    # --- the kernel -------------------------------------------------------------------------

    def _map_kernel(self) -> None:
        top = self.page()
        for name in ("swapper_pg_dir", "init_top_pgt"):
            self.info[f"SYMBOL({name})"] = f"{top + START_KERNEL_MAP:x}"
        self.info |= {"SYMBOL(_stext)": f"{START_KERNEL_MAP + (1 << 24):x}", "KERNELOFFSET": "0"}
        self.pages = self.page(FRAMES * 64 // PAGE)
        for address, physical in ((START_KERNEL_MAP, 0), (DIRECT, 0)):
            self.map(top, address, [physical | 0xE3])
        small = [self.pages + k * PAGE | 0x63 for k in range(FRAMES * 64 // PAGE)]
        self.map(top, STRUCT_PAGES, small + [0] * (512 - len(small)))
        for frame in range(FRAMES):
            self.put(self.pages + frame * 64 + 48, 0xFFFFFFFF, width=4)

    def map(self, top: int, address: int, entries: list[int]) -> None:
        """Map the table of an address: its entries, or one entry of the PMD itself."""
        table = top
        for shift in (39, 30):
            place = table + 8 * (address >> shift & 511)
            following = int.from_bytes(self.ram[place : place + 8], "little") & ~0xFFF
            if not following:
                following = self.page()
                self.put(place, following | _PRESENT)
            table = following
        place = table + 8 * (address >> 21 & 511)
        if len(entries) == 1:
            self.put(place, entries[0])
            return
        below = self.page()
        self.put(place, below | _PRESENT)
        self.put(below, *entries)

    def _symbols(self, relative: bool) -> None:
        names = sorted(self.at)
        packed = b"".join(bytes((len(n) + 1,)) + b"D" + n.encode() for n in names)
        tokens = b"".join(bytes((max(k, 32),)) + b"\0" for k in range(256))
        index = struct.pack("<256H", *range(0, 512, 2))
        addresses = [self.at[name] + START_KERNEL_MAP for name in names]
        where, _ = self._bytes(bytes(4 * len(names)))
        base = START_KERNEL_MAP
        places = {
            "names": self._bytes(packed + bytes(64))[0], "token_table": self._bytes(tokens)[0],
            "token_index": self._bytes(index)[0], "offsets": where,
            "num_syms": self._bytes(struct.pack("<I", len(names)))[0],
        }  # fmt: skip
        for k, address in enumerate(addresses):
            near = address - base if relative else address - (where + 4 * k + START_KERNEL_MAP)
            self.put(where + 4 * k, near, width=4)
        if relative:
            places["relative_base"] = self._bytes(struct.pack("<Q", base))[0]
        for name, at in places.items():
            self.info[f"SYMBOL(kallsyms_{name})"] = f"{at + START_KERNEL_MAP:x}"

    def _names_and_nodes(self) -> None:
        uts, banner = self.at["init_uts_ns"], self.at["linux_banner"]
        self.info["SYMBOL(init_uts_ns)"] = f"{uts + START_KERNEL_MAP:x}"
        self.info["LENGTH(zone.free_area)"] = "11"
        place = self.take(512)
        self.info["OFFSET(uts_namespace.name)"] = str(place - uts)
        for at, text in ((65, b"made"), (260, b"x86_64")):
            self.ram[place + at : place + at + len(text)] = text
        self.ram[banner : banner + 20] = b"Linux version made\n\0"
        node = self.page()
        self.put(self.at["node_data"], node + DIRECT)
        self.set("pglist_data", node, node_start_pfn=0, node_spanned_pages=FRAMES)
        zone = node + 64
        self.set("zone", zone, name=self.text("DMA32"), present_pages=FRAMES)
        for order in range(11):
            self.put(zone + 16 + 32 * order, order + 1)

    # --- a process --------------------------------------------------------------------------

    def _process(self) -> None:
        init, daemon, self.task, zombie = (
            self.at["init_task"], self.take(256), self.take(256), self.take(256),
        )  # fmt: skip
        self.mm = self.take(512)
        tasks = {init: (0, 0), daemon: (7, 0), self.task: (PID, self.mm), zombie: (43, 0)}
        for task, following in pairwise([*tasks, init]):
            pid, mm = tasks[task]
            kernel = 0x200000 if task in (init, daemon) else 0x40 * (task == self.task)
            self.put(task + 8, following + 8 + (START_KERNEL_MAP if following == init else DIRECT))
            self.set("task_struct", task, pid=pid, mm=mm + DIRECT if mm else 0, flags=kernel)
            self.set("task_struct", task, start_boottime=5_000_000_000, cred=self.take(32) + DIRECT)
            signal = self.take(16)
            self.put(signal, 3)
            self.set("task_struct", task, signal=signal + DIRECT)
        for task, name in ((daemon, b"khugepaged"), (self.task, b"made")):
            self.ram[task + 64 : task + 64 + len(name)] = name
        scan, slot = self.at["khugepaged_scan"], self.take(40)
        self.put(scan, slot + 16 + DIRECT)
        self.set("mm_slot", slot, mm_node=scan + START_KERNEL_MAP, mm=self.mm + DIRECT)
        self.pgd = self.page()
        swapped = ~0x77 << 14 >> 5 & (1 << 59) - 1 & ~0x1FF
        entries = [FIRST + k << 12 | 0x867 | 1 << 63 for k in range(512)]
        entries[5], entries[6], entries[7] = 0, ZERO_FRAME << 12 | 0x225, swapped
        entries[8] &= ~0x20
        self.map(self.pgd, SMALL, entries)
        self.map(self.pgd, HUGE, [HUGE_FRAME << 12 | 0x8E7 | 1 << 63])
        code = [0] * 512
        code[0], code[1] = 590 << 12 | 0x25, 591 << 12 | 0x67
        self.map(self.pgd, CODE, code)
        for frame in (*range(FIRST, FIRST + 512), 591):
            self.struct_page(frame, flags=ANON_PAGE, mapping=0x1001, _refcount=1, _mapcount=0)
        self.struct_page(590, flags=ANON_PAGE, mapping=0x1000, _refcount=2, _mapcount=0)
        head = ANON_PAGE | 1 << FLAGS["PG_head"]
        self.struct_page(HUGE_FRAME, flags=head, mapping=0x1001, _refcount=1, _mapcount=-1)
        self.struct_page(
            HUGE_FRAME, _flags_1=9 | 1 << FLAGS["PG_workingset"], _large_mapcount=0, _entire_mapcount=0,
            _mm_ids=7, _mm_id_mapcount=0,
        )  # fmt: skip
        for frame in range(HUGE_FRAME + 1, HUGE_FRAME + 512):
            tail = STRUCT_PAGES + HUGE_FRAME * 64 | 1
            self.put(self.pages + frame * 64 + 8, tail)
        inode, block = self.take(64), self.take(64)
        self.put(block, 8 << 20 | 1, 0xEF53)
        self.put(inode, block + DIRECT, 77)
        root, entry, mount = (self.take(64) for _ in range(3))
        self.put(mount + 24, mount + DIRECT, root + DIRECT)
        self.put(root, root + DIRECT, self.text("/"), 1)
        self.put(entry, root + DIRECT, self.text("program"), 1)
        file = self.take(64)
        self.put(file, mount + 8 + DIRECT, entry + DIRECT, 0, inode + DIRECT)
        self.vmas = [
            self._vma(SMALL, SMALL + TABLE, 0x2000_0073, name="small"),
            self._vma(HUGE, HUGE + TABLE, 0x0800_0073),
            self._vma(CODE, CODE + 2 * PAGE, 0x77, file=file + DIRECT),
        ]
        self._tree()
        self.set(
            "mm_struct", self.mm, pgd=self.pgd + DIRECT, flags=1 << 17, mm_id=7,
            exe_file=file + DIRECT, pgtables_bytes=3 * PAGE,
        )  # fmt: skip
        self.put(self.mm + 256 + 16, 1020)

    def _vma(self, start: int, end: int, flags: int, file: int = 0, name: str = "") -> int:
        vma = self.take(128)
        given = self._bytes(bytes(8) + name.encode() + b"\0")[0] + DIRECT if name else 0
        self.set("vm_area_struct", vma, vm_start=start, vm_end=end, vm_flags=flags, vm_file=file)
        self.set("vm_area_struct", vma, anon_vma=0x1000, anon_name=given)
        return vma

    def _tree(self) -> None:
        """Put the VMAs into a leaf of a maple tree."""
        node = self.page()
        held: list[tuple[int, int]] = []
        before = 0
        for start, vma in sorted(
            (int.from_bytes(self.ram[vma : vma + 8], "little"), vma) for vma in self.vmas
        ):
            if start > before:
                held.append((0, start - 1))
            before = int.from_bytes(self.ram[vma + 8 : vma + 16], "little")
            held.append((vma + DIRECT, before - 1))
        held.append((0, 0))
        for k, (entry, last) in enumerate(held):
            self.put(node + 8 + 8 * k, last)
            self.put(node + 128 + 8 * k, entry)
        self.put(self.mm + 72, node + DIRECT | 1 << 3)

    def struct_page(self, frame: int, **fields: int) -> None:
        """Write fields of a frame's struct page or folio."""
        for name, value in fields.items():
            offsets = {**TYPES["page"][1], **TYPES["folio"][1], **_KERNEL["folio"][1]}
            width = (
                4
                if name in ("_refcount", "_mapcount", "_large_mapcount", "_entire_mapcount")
                else 8
            )
            self.put(self.pages + frame * 64 + offsets[name], value, width=width)

    # --- files ------------------------------------------------------------------------------

    @property
    def vmcoreinfo(self) -> str:
        """The lines that say where things are."""
        return "".join(f"{name}={value}\n" for name, value in self.info.items())

    def elf(self, path: Path) -> Path:
        """Write it as an ELF core, as QEMU does."""
        core_file(path, [(0, 0, bytes(self.ram))], self.vmcoreinfo)
        return path

    def kdump(
        self,
        path: Path,
        left_out: Collection[int] = (),
        level: int = 1,
        packed: int = 1,
        *,
        flat: bool = False,
    ) -> Path:
        """Write it as makedumpfile packs it. left_out: frames; packed: the bit of how; flat: as a stream."""
        path.write_bytes(
            kdump_file(bytes(self.ram), self.vmcoreinfo, left_out, level, packed, flat=flat)
        )
        return path


_PLACES = (
    "init_task", "khugepaged_scan", "cpu_fbatches", "mlock_fbatch", "__per_cpu_offset", "node_data",
    "init_uts_ns", "linux_banner",
)  # fmt: skip


def lzo(page: bytes) -> bytes:
    """A page as LZO1X packs it: what stands there as it is, and then one match for the zeros behind that."""
    head = len(page.rstrip(b"\0")) + 1
    zeros = len(page) - head
    if zeros < 300 or head < 300:
        return page
    literals, rest = divmod(head - 18 - 1, 255)
    matches, last = divmod(zeros - 33 - 1, 255)
    run = bytes(1 + literals) + bytes((rest + 1,)) + page[:head]
    return run + b"\x20" + bytes(matches) + bytes((last + 1,)) + b"\0\0" + b"\x11\0\0"


def kdump_file(
    ram: bytes,
    info: str,
    left_out: Iterable[int] = (),
    level: int = 1,
    packed: int = 1,
    *,
    flat: bool = False,
) -> bytes:
    """A file as makedumpfile writes it."""
    frames = len(ram) // PAGE
    there = (1 << frames) - 1
    written = there & ~sum(1 << frame for frame in left_out)
    header = bytearray(PAGE)
    header[:12] = b"KDUMP   " + struct.pack("<i", 6)
    names = (b"Linux", b"made", b"7.3.4-made", b"#1", b"x86_64", b"(none)")
    for k, text in enumerate(names):
        header[12 + 65 * k : 12 + 65 * k + len(text)] = text
    struct.pack_into("<IiiIIIII", header, 424, packed, PAGE, 1, 2, frames, 0, 0, 0)
    sub = bytearray(PAGE)
    note = 4 * PAGE + 24 * written.bit_count()
    said = (
        struct.pack("<III", 11, len(info), 0)
        + b"VMCOREINFO\0\0"
        + info.encode()
        + bytes(-len(info) % 4)
    )
    places = note + 24, len(info), note, len(said)
    struct.pack_into("<QiiQQQQQQQQQQQ", sub, 0, 0, level, 0, 0, 0, *places, 0, 0, 0, frames, frames)
    bitmaps = b"".join(bits.to_bytes(PAGE, "little") for bits in (there, written))
    descriptors, pages, at = b"", b"", note + len(said)
    pack = {1: lambda page: zlib.compress(page, 1), 2: lzo}.get(packed, bytes)
    for frame in range(frames):
        if written >> frame & 1:
            page = ram[frame * PAGE :][:PAGE]
            data = pack(page)
            flags = packed if len(data) < PAGE else 0
            data = data if flags else page
            descriptors += struct.pack("<qIIQ", at, len(data), flags, 0)
            pages, at = pages + data, at + len(data)
    whole = bytes(header) + bytes(sub) + bitmaps + descriptors + said + pages
    if not flat:
        return whole
    start = b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1)
    records = [
        struct.pack(">qq", at, len(whole[at : at + 10000])) + whole[at : at + 10000]
        for at in range(0, len(whole), 10000)
    ]
    return (
        start.ljust(PAGE, b"\0") + b"".join([*records[1:], records[0]]) + struct.pack(">qq", -1, -1)
    )
