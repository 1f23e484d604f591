# SPDX-License-Identifier: GPL-2.0-or-later
"""The mappings of a process in a dump, with what /proc/PID/smaps would count in each.

Kernel: fs/proc/task_mmu.c, show_map_vma(), show_smap_vma_flags(), smaps_account().
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mthp.image.capture.frames import KPF_ANON
from mthp.image.capture.kernel import ProcessMm
from mthp.image.capture.proc import SmapsEntry, why_skipped
from mthp.image.vmcore.structures import DumpKernel
from mthp.image.vmcore.tables import DumpTables, ReadEntries
from mthp.words.units import Geometry

_LETTERS = {
    0: "rd", 1: "wr", 2: "ex", 3: "sh", 4: "mr", 5: "mw", 6: "me", 7: "ms", 8: "gd", 9: "um", 10: "pf",
    11: "gu", 12: "uw", 13: "lo", 14: "io", 15: "sr", 16: "rr", 17: "dc", 18: "de", 19: "lf", 20: "ac",
    21: "nr", 22: "ht", 23: "sf", 24: "ar", 25: "wf", 26: "dd", 27: "sd", 28: "mm", 29: "hg", 30: "nh",
    31: "mg", 37: "ss", 38: "ui", 40: "dp", 41: "ui", 42: "sl", 43: "ur", 63: "sl",
}  # fmt: skip
"""The bits of vm_flags. Kernel: include/linux/mm.h; those below 32 are the same in every kernel that is read,
and of those above no two kernels use one for two things that are told apart here."""
_SHARED, _LOCKED, _HUGETLB = 1 << 7, 1 << 13, 1 << 22
_TMPFS_MAGIC = 0x01021994
_AT_ONCE = 128
"""Tables that are counted together."""
_PSS_SHIFT = 12
_KPF_DIRTY, _KPF_SWAPBACKED = 1 << 4, 1 << 14
_DIRTY, _YOUNG, _SAVED_DIRTY = 1 << 6, 1 << 5, 1 << 58
SIZES = (
    "rss", "pss", "referenced", "anonymous", "lazyfree", "anon_huge", "hugetlb", "swap", "locked",
)  # fmt: skip


class MappingReader:
    """Reads the mappings of one process. shmem: the devices met so far whose files are shared memory."""

    def __init__(self, kernel: DumpKernel, mm: ProcessMm, geometry: Geometry) -> None:
        self.kernel, self.mm, self.geometry = kernel, mm, geometry
        self.shmem: set[str] = set()
        at = mm.address
        self._heap = kernel.field(at, "mm_struct.start_brk"), kernel.field(at, "mm_struct.brk")
        self._stack = kernel.field(at, "mm_struct.start_stack")
        self._special = kernel.all_symbols.get("special_mapping_vmops")

    def read(self, tables: DumpTables) -> list[SmapsEntry]:
        """All of them, ascending."""
        found = [self._entry(vma) for vma in self.kernel.vmas(self.mm)]
        return [self._counted(entry, tables) for entry in found]

    def _entry(self, vma: int) -> SmapsEntry:
        kernel = self.kernel
        start, end, flags, offset = (
            kernel.field(vma, f"vm_area_struct.{name}")
            for name in ("vm_start", "vm_end", "vm_flags", "vm_pgoff")
        )
        file = kernel.field(vma, "vm_area_struct.vm_file")
        dev, inode = "00:00", 0
        if file:
            node = kernel.field(file, "file.f_inode")
            block = kernel.field(node, "inode.i_sb")
            number = kernel.field(block, "super_block.s_dev", 4)
            dev = f"{number >> 20:02x}:{number & 0xFFFFF:02x}"
            inode = kernel.field(node, "inode.i_ino")
            if kernel.field(block, "super_block.s_magic") == _TMPFS_MAGIC:
                self.shmem.add(dev)
        path = self._name(vma, start, end, file)
        perms = "".join(letter if flags >> bit & 1 else "-" for bit, letter in enumerate("rwx"))
        perms += "s" if flags & _SHARED else "p"
        codes = " ".join(_LETTERS[bit] for bit in sorted(_LETTERS) if flags >> bit & 1)
        return SmapsEntry(
            b"", start, end, perms, offset << self.geometry.page_shift if file else 0, dev, inode, path,
            codes, {}, why_skipped(perms, inode, path, codes),
        )  # fmt: skip

    def _name(self, vma: int, start: int, end: int, file: int) -> str:
        """Kernel: get_vma_name()."""
        kernel, given = self.kernel, 0
        if "vm_area_struct.anon_name" in kernel.at and "anon_vma_name.name" in kernel.at:
            given = kernel.field(vma, "vm_area_struct.anon_name")
        name = kernel.text(given + kernel.at["anon_vma_name.name"]) if given else ""
        if file:
            return f"[anon_shmem:{name}]" if name else kernel.path_of(file)
        if self._special and kernel.field(vma, "vm_area_struct.vm_ops") == self._special:
            mapping = kernel.field(vma, "vm_area_struct.vm_private_data")
            return kernel.text(kernel.field(mapping, "vm_special_mapping.name"))
        if start < self._heap[1] and end > self._heap[0]:
            return "[heap]"
        if start <= self._stack <= end:
            return "[stack]"
        return f"[anon:{name}]" if name else ""

    def _counted(self, vma: SmapsEntry, tables: DumpTables) -> SmapsEntry:
        """The same mapping with its sizes."""
        sizes = dict.fromkeys(SIZES, 0)
        pss, pmd = 0, self.geometry.pmd_size
        codes = vma.flags.split()
        if "ht" in codes:
            for _, leaf in tables.populated(vma.start, vma.end):
                sizes["hugetlb"] += pmd * leaf
            return vma._replace(sizes=sizes)
        page = self.geometry.page_size
        for addresses, leafs in _together(tables.populated(vma.start, vma.end)):
            read = tables.entries(addresses, leafs)
            nr = self.geometry.ptrs_per_pte
            places = np.repeat(np.array(addresses, np.uint64), nr)
            places += np.tile(np.arange(nr, dtype=np.uint64) * np.uint64(page), len(addresses))
            inside = (places >= np.uint64(vma.start)) & (places < np.uint64(vma.end))
            if {"pf", "io"} & {*codes}:
                read = read._replace(normal=np.zeros_like(read.normal))
                inside &= False
            pss += self._add(sizes, read, inside)
        sizes["pss"] = pss >> _PSS_SHIFT >> 10 << 10
        sizes["locked"] = sizes["pss"] if "lo" in codes else 0
        return vma._replace(sizes=sizes)

    def _add(self, sizes: dict[str, int], read: ReadEntries, inside: NDArray[np.bool_]) -> int:
        """Count the entries that are inside; returns their share (PSS) as the kernel shifts it."""
        page = self.geometry.page_size
        sizes["swap"] += page * int(np.count_nonzero(read.swap & inside))
        which = inside[read.normal]
        flags, counts = read.facts.flags[which], read.facts.counts[which]
        words = read.words[read.normal][which]
        anon = flags & np.uint64(KPF_ANON) != 0
        young = (words & np.uint64(_YOUNG) != 0) | read.facts.young[which]
        dirty = words & np.uint64(_DIRTY | _SAVED_DIRTY) != 0
        clean = ~dirty & (flags & np.uint64(_KPF_DIRTY | _KPF_SWAPBACKED) == 0)
        for name, these in (
            ("rss", np.ones_like(anon)), ("anonymous", anon), ("lazyfree", anon & clean),
            ("referenced", young), ("anon_huge", anon & read.huge[read.normal][which]),
        ):  # fmt: skip
            sizes[name] += page * int(np.count_nonzero(these))
        shares = np.uint64(page << _PSS_SHIFT) // np.maximum(counts, 1).astype(np.uint64)
        return int(shares.sum())


def _together(
    tables: Iterator[tuple[int, bool]],
) -> Iterator[tuple[list[int], list[bool]]]:
    """The tables in groups that are looked at together."""
    addresses: list[int] = []
    leafs: list[bool] = []
    for address, leaf in tables:
        addresses.append(address)
        leafs.append(leaf)
        if len(addresses) == _AT_ONCE:
            yield addresses, leafs
            addresses, leafs = [], []
    if addresses:
        yield addresses, leafs
