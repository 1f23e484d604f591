# SPDX-License-Identifier: GPL-2.0-or-later
"""What a deep capture reads of the kernel's own memory but for pages: processes' mms, their VMAs,
khugepaged's list, the CPUs' batches of folios, and nodes.

Kernel: include/linux/mm_types.h, mm/khugepaged.c, mm/folio.c (mm/swap.c before 7.3), mm/mlock.c.
"""

from __future__ import annotations

import os
import struct
from functools import lru_cache
from typing import Callable, Iterator, NamedTuple, TypeVar

from mthp.image.capture.btf import Btf, BtfError
from mthp.image.capture.kcore import Core, CoreError, KernelMemory
from mthp.image.capture.proc import LACKING, CaptureError, gone, started, text
from mthp.words.streams import TOO_MANY_FILES

KCORE, BTF, KALLSYMS = "/proc/kcore", "/sys/kernel/btf/vmlinux", "/proc/kallsyms"

NEEDED = {
    "task_struct": ("tasks", "pid", "mm", "start_boottime"),
    "mm_struct": ("pgd", "flags", "mm_mt.ma_root"),
    "vm_area_struct": ("vm_start", "vm_end", "anon_vma"),
    "maple_node": ("mr64.pivot", "mr64.slot", "ma64.pivot", "ma64.slot"),
    "khugepaged_scan": ("mm_head", "mm_slot", "address"),
    "mm_slot": ("mm_node", "mm"),
    "cpu_fbatches": ("lru_add", "lru_deactivate", "lru_lazyfree", "lru_activate"),
    "mlock_fbatch": ("fbatch",),
    "folio_batch": ("nr", "folios"),
    "pglist_data": ("node_start_pfn", "node_spanned_pages"),
    "page": ("flags", "_refcount", "_mapcount"),
    "folio": ("_flags_1", "_large_mapcount", "_pincount", "_deferred_list"),
}
"""Members, without which nothing is read. Linux 6.12 and later have them."""
MM_IDS = {"mm_struct": ("mm_id",), "folio": ("_mm_ids", "_mm_id_mapcount")}
"""Members that Linux 6.15 and later have."""
ENUMS = {
    "pageflags": ("PG_head", "PG_workingset", "PG_anon_exclusive", "PG_partially_mapped"),
    "maple_type": ("maple_leaf_64", "maple_range_64", "maple_arange_64"),
}
SYMBOLS = (
    "init_task", "khugepaged_scan", "cpu_fbatches", "mlock_fbatch", "__per_cpu_offset", "node_data",
)  # fmt: skip
VMEMMAP = "vmemmap_base"
VMEMMAP_USUAL = 0xFFFFEA0000000000
"""Where struct pages are on kernels that do not move them. Kernel: Documentation/arch/x86/x86_64/mm.rst."""

MMF_VM_HUGEPAGE, MMF_HAS_PINNED = 1 << 17, 1 << 27
MMF_EXCEPT_ADVISED, MMF_COMPLETELY = 1 << 23, 1 << 24
"""Kernel: include/linux/mm_types.h; before Linux 6.18 bit 23 was another thing, and mm_flags_t not there."""

BATCHES = {"lru_add": 8, "lru_deactivate": 16, "lru_lazyfree": 32, "lru_activate": 64}
MLOCK_BATCH = 128
"""Bits of the `folio_state` member."""

_MOST_TASKS = 1 << 22
_MOST_FRAMES = 1 << 40
_MOST_READINGS = 8
_WORD = (1 << 64) - 1
TICK = 10_000_000
"""Nanoseconds of a clock tick that /proc tells start times in."""
_T = TypeVar("_T")


class ProcessMm(NamedTuple):
    """A process's address space. pgd: where its top page table is. disable_thp: as prctl set it."""

    address: int
    pgd: int
    mm_id: int | None
    disable_thp: str
    pinned: bool
    hugepage: bool


class KernelLayout(NamedTuple):
    """What stays the same until the kernel is another. at: where members and symbols stand; flags, maple:
    the constants of enums; sizes: of structures; keeps_mm_ids: MM_IDS are there; except_advised: mms have
    the flag of prctl's mode."""

    at: dict[str, int]
    flags: dict[str, int]
    maple: dict[str, int]
    sizes: dict[str, int]
    symbols: dict[str, int]
    keeps_mm_ids: bool
    except_advised: bool


@lru_cache(maxsize=None)
def layout() -> KernelLayout:
    """Read it, once. CaptureError (5) names in one line all that this kernel lacks."""
    if os.uname().machine != "x86_64":
        raise CaptureError("--deep reads page tables of x86-64 only", LACKING)
    try:
        return layout_of(Btf(_whole(BTF)), _symbols)
    except BtfError as error:
        raise CaptureError(f"--deep: {error}", LACKING) from None


def layout_of(btf: Btf, symbols_of: Callable[[tuple[str, ...]], dict[str, int]]) -> KernelLayout:
    """What type information and symbols tell of a kernel. symbols_of: the addresses of symbols by name.
    BtfError names in one line all that this kernel lacks."""
    at, lacking = members_of(btf, NEEDED)
    enums = {}
    for name, needed in ENUMS.items():
        enums[name] = btf.enumerators(name)
        lacking += [each for each in needed if each not in enums[name]]
    of_ids, no_ids = members_of(btf, MM_IDS)
    sizes = {name: btf.size(name) for name in ("page", "folio_batch")}
    symbols = symbols_of((*SYMBOLS, VMEMMAP))
    lacking += [f"symbol {name}" for name in SYMBOLS if not symbols.get(name)]
    if lacking:
        raise BtfError(f"this kernel lacks {', '.join(lacking)}")
    return KernelLayout(
        {**at, **of_ids}, enums["pageflags"], enums["maple_type"], sizes, symbols, not no_ids,
        btf.has("mm_flags_t"),
    )  # fmt: skip


def members_of(btf: Btf, wanted: dict[str, tuple[str, ...]]) -> tuple[dict[str, int], list[str]]:
    """Where members stand, by structure and member, and which are not there."""
    at: dict[str, int] = {}
    lacking: list[str] = []
    for name, paths in wanted.items():
        for path in paths:
            try:
                at[f"{name}.{path}"] = btf.offset(name, path)
            except BtfError as error:
                if str(error) not in lacking:
                    lacking.append(str(error))
    return at, lacking


class KernelStructures:
    """A kernel's structures in its memory. cpus: the numbers of those there may be; nodes: of those that are
    online. CoreError: something is not where it should be."""

    def __init__(
        self, core: KernelMemory, known: KernelLayout, cpus: list[int], nodes: list[int]
    ) -> None:
        self.core, self.known = core, known
        self.at, self.flags, self.symbols = known.at, known.flags, known.symbols
        at = self.symbols.get(VMEMMAP)
        self.vmemmap = core.word(at) if at else VMEMMAP_USUAL
        self.page_bytes = known.sizes["page"]
        self.levels = 5 if core.number("pgtable_l5_enabled") else 4
        self.encrypted = core.number("sme_mask") & _WORD
        self.cpus = cpus
        self.nodes = list(self._nodes(nodes))

    def close(self) -> None:
        """Close the file that is open."""
        self.core.close()

    def _field(self, address: int, member: str) -> int:
        """The 64-bit field of a structure that begins at the address."""
        return self.core.word(address + self.at[member])

    # --- processes ------------------------------------------------------------------------

    def mm_of(self, pid: int) -> ProcessMm:
        """The address space of a process. CaptureError: there is no such process."""
        raise NotImplementedError

    def mm_at(self, mm: int) -> ProcessMm:
        """The address space that begins there."""
        flags = self._field(mm, "mm_struct.flags")
        disabled = "completely" if flags & MMF_COMPLETELY else "no"
        if flags & MMF_EXCEPT_ADVISED and self.known.except_advised:
            disabled = "except advised"
        mm_id = None
        if self.known.keeps_mm_ids:
            mm_id = self._field(mm, "mm_struct.mm_id") & 0xFFFFFFFF
        pgd = self._field(mm, "mm_struct.pgd")
        return ProcessMm(
            mm, pgd, mm_id, disabled, bool(flags & MMF_HAS_PINNED), bool(flags & MMF_VM_HUGEPAGE)
        )

    def tasks(self) -> Iterator[tuple[int, int, int, int]]:
        """Of each process but the first the address of its task, its number, its mm (0: none), and when it
        started, in nanoseconds since boot."""
        first = self.symbols["init_task"]
        link = self.at["task_struct.tasks"]
        wanted = [
            self.at[f"task_struct.{name}"] for name in ("tasks", "pid", "mm", "start_boottime")
        ]
        low, size = min(wanted), max(wanted) + 8 - min(wanted)
        task = first
        seen: set[int] = set()
        while task not in seen and len(seen) < _MOST_TASKS:
            seen.add(task)
            raw = self.core.read(task + low, size)
            following, number, mm, start = (
                int.from_bytes(raw[at - low : at - low + 8], "little") for at in wanted
            )
            if task != first:
                yield task, number & 0xFFFFFFFF, mm, start
            task = following - link
            if task == first:
                return
        raise CoreError("has a list of processes that does not end")

    def _settled(self, walk: Callable[[], _T]) -> _T:
        """What a walk finds."""
        return walk()

    # --- VMAs -----------------------------------------------------------------------------

    def anon_vmas(self, mm: ProcessMm) -> dict[tuple[int, int], bool]:
        """Of each VMA, by start and end: whether it has an anon_vma."""
        return self._settled(lambda: dict(self._vmas(mm)))

    def vmas(self, mm: ProcessMm) -> Iterator[int]:
        """The addresses of its VMAs, ascending."""
        return self._entries(self._field(mm.address, "mm_struct.mm_mt.ma_root"))

    def _vmas(self, mm: ProcessMm) -> Iterator[tuple[tuple[int, int], bool]]:
        names = ("vm_start", "vm_end", "anon_vma")
        wanted = [self.at[f"vm_area_struct.{name}"] for name in names]
        low, size = min(wanted), max(wanted) + 8 - min(wanted)
        for vma in self.vmas(mm):
            raw = self.core.read(vma + low, size)
            start, end, anon = (
                int.from_bytes(raw[at - low : at - low + 8], "little") for at in wanted
            )
            yield (start, end), anon != 0

    def _entries(self, root: int) -> Iterator[int]:
        """What a maple tree holds, ascending. Kernel: lib/maple_tree.c."""
        kinds = {
            self.known.maple["maple_leaf_64"]: "mr64",
            self.known.maple["maple_range_64"]: "mr64",
            self.known.maple["maple_arange_64"]: "ma64",
        }
        leaf, waiting = self.known.maple["maple_leaf_64"], [(root, _WORD)]
        seen: set[int] = set()
        while waiting:
            encoded, most = waiting.pop()
            kind = encoded >> 3 & 15
            if not encoded >> 63 or kind not in kinds or encoded & ~255 in seen:
                raise CoreError("has no tree of VMAs there")
            seen.add(encoded & ~255)
            pivots = self.at[f"maple_node.{kinds[kind]}.pivot"] // 8
            slots = self.at[f"maple_node.{kinds[kind]}.slot"] // 8
            words = struct.unpack("<32Q", self.core.read(encoded & ~255, 256))
            held = []
            for k, entry in enumerate(words[slots : 2 * slots - pivots + 1]):
                pivot = words[pivots + k] if pivots + k < slots else 0
                last = pivot if pivot or not k else most
                held.append((entry, last))
                if last >= most:
                    break
            if kind == leaf:
                yield from (entry for entry, _ in held if entry and not entry & 3)
            else:
                waiting += reversed(held)

    # --- khugepaged -----------------------------------------------------------------------

    def khugepaged(self) -> tuple[list[int], int | None, int]:
        """khugepaged's list, the mms' addresses in order; the place of the one it stands in, None for
        none; and the address where it stands there. Read until two readings agree."""
        before = None
        for _ in range(_MOST_READINGS):
            now = self._settled(self._registered)
            if now == before:
                break
            before = now
        mms, slots, current, address = now
        at = slots.index(current) if current in slots else None
        return mms, at, address if at is not None else 0

    def _registered(self) -> tuple[list[int], list[int], int, int]:
        scan = self.symbols["khugepaged_scan"]
        head = scan + self.at["khugepaged_scan.mm_head"]
        link, its_mm = self.at["mm_slot.mm_node"], self.at["mm_slot.mm"]
        mms, slots, node = [], [], self.core.word(head)
        seen: set[int] = set()
        while node != head:
            if node in seen or len(seen) >= _MOST_TASKS:
                raise CoreError("has a list of khugepaged's that does not end")
            seen.add(node)
            slots.append(node - link)
            mms.append(self.core.word(node - link + its_mm))
            node = self.core.word(node)
        return (
            mms, slots, self._field(scan, "khugepaged_scan.mm_slot"),
            self._field(scan, "khugepaged_scan.address"),
        )  # fmt: skip

    # --- batches, nodes -------------------------------------------------------------------

    def batches(self) -> dict[int, int]:
        """The folios that wait in a batch of a CPU: head frame -> bits of BATCHES and MLOCK_BATCH."""
        return self._settled(self._batched)

    def _batched(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for cpu in self.cpus:
            base = self.core.word(self.symbols["__per_cpu_offset"] + 8 * cpu)
            every = base + self.symbols["cpu_fbatches"] & _WORD
            for name, bit in BATCHES.items():
                self._add_batch(found, every + self.at[f"cpu_fbatches.{name}"], bit)
            mlock = base + self.symbols["mlock_fbatch"] + self.at["mlock_fbatch.fbatch"]
            self._add_batch(found, mlock & _WORD, MLOCK_BATCH)
        return found

    def _add_batch(self, found: dict[int, int], batch: int, bit: int) -> None:
        size = self.known.sizes["folio_batch"]
        raw = self.core.read(batch, size)
        first = self.at["folio_batch.folios"]
        count = min(raw[self.at["folio_batch.nr"]], (size - first) // 8)
        for folio in struct.unpack_from(f"<{count}Q", raw, first):
            frame = ((folio & ~3) - self.vmemmap) // self.page_bytes
            if 0 <= frame < _MOST_FRAMES:
                found[frame] = found.get(frame, 0) | bit

    def _nodes(self, nodes: list[int]) -> Iterator[tuple[int, int, int]]:
        """(first frame, one past the last, node) of each node with memory."""
        for node in nodes:
            data = self.core.word(self.symbols["node_data"] + 8 * node)
            start = self._field(data, "pglist_data.node_start_pfn")
            yield start, start + self._field(data, "pglist_data.node_spanned_pages"), node


class LiveKernel(KernelStructures):
    """The running kernel's structures. CaptureError (5) where this host or this kernel lacks what is
    needed."""

    def __init__(self) -> None:
        file = _opened(KCORE)
        try:
            known = layout()
            cpus = _numbers("/sys/devices/system/cpu/possible") or [0]
            nodes = _numbers("/sys/devices/system/node/online") or [0]
            super().__init__(Core(file), known, cpus, nodes)
        except CoreError as error:
            os.close(file)
            raise CaptureError(f"--deep: {KCORE} {error}", LACKING) from None
        except CaptureError:
            os.close(file)
            raise

    def mm_of(self, pid: int) -> ProcessMm:
        """As KernelStructures.mm_of(); LeftOut where it went away."""
        began = started(pid)
        mm = self._settled(lambda: self._find_mm(pid, began))
        if not mm:
            raise gone(pid)
        return self.mm_at(mm)

    def _find_mm(self, pid: int, began: int | None) -> int:
        """Walk all processes. They are told apart by when they started: numbers are of a namespace."""
        for _, number, mm, start in self.tasks():
            if number == pid and start // TICK == began:
                return mm
        return 0

    def _settled(self, walk: Callable[[], _T]) -> _T:
        """What a walk finds; it is begun again where what it walks along moved meanwhile."""
        for again in range(_MOST_READINGS, 0, -1):
            try:
                return walk()
            except CoreError as error:
                if again == 1:
                    line = f"--deep: {KCORE} {error}, each time it was read"
                    raise CaptureError(line) from None
        raise AssertionError


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno in TOO_MANY_FILES:
            raise
        why = "run as root" if os.geteuid() else error.strerror or "it cannot be opened"
        raise CaptureError(f"--deep needs {path}: {why}", LACKING) from None


def _whole(path: str) -> bytes:
    file = _opened(path)
    with open(file, "rb") as stream:
        return stream.read()


def _symbols(names: tuple[str, ...]) -> dict[str, int]:
    """Where symbols of the kernel are; not those, or 0, that it does not tell."""
    listed, found = _whole(KALLSYMS), {}
    for name in names:
        end = listed.find(b" %s\n" % name.encode())
        if end >= 0:
            line = listed[listed.rfind(b"\n", 0, end) + 1 : end]
            found[name] = int(line.split()[0], 16)
    return found


def _numbers(path: str) -> list[int]:
    """The numbers of a list such as 0-3,7; empty where it cannot be read."""
    found: list[int] = []
    for part in (text(path) or "").split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found += range(int(first), int(last or first) + 1)
    return found
