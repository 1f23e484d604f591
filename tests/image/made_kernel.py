# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's memory made by hand: type information, symbols, and a core file with some structures in it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import pytest

from mthp.image.capture import kernel
from mthp.image.capture.proc import started

LONG = 1
"""The type of every member that is no structure."""
STRUCT, UNION, ENUM, TYPEDEF = 4, 5, 6, 8
DIRECT, STRUCT_PAGES = 0xFFFF_8880_0000_0000, 0xFFFF_EA00_0000_0000
RAM = 64 << 20
FIRST_FRAME = 16
PAGE = 4096


class TypeMaker:
    """Writes type information (BTF)."""

    def __init__(self) -> None:
        self.names = bytearray(b"\0")
        self.types = bytearray()
        self.count = 0
        self.add("long", 1, 0, 8, struct.pack("<I", 64))

    def name(self, text: str) -> int:
        """Where a name stands: each stands once."""
        wanted = text.encode() + b"\0"
        at = self.names.find(b"\0" + wanted) + 1 if text else 0
        if text and not at:
            at = len(self.names)
            self.names += wanted
        return at

    def add(self, name: str, kind: int, vlen: int, other: int, extra: bytes = b"") -> int:
        self.types += struct.pack("<III", self.name(name), kind << 24 | vlen, other) + extra
        self.count += 1
        return self.count

    def structure(
        self, name: str, size: int, members: Mapping[str, tuple[int, int]], kind: int = STRUCT
    ) -> int:
        """members: name -> (type, bytes from the start)."""
        rows = [
            struct.pack("<III", self.name(member), number, 8 * at)
            for member, (number, at) in members.items()
        ]
        return self.add(name, kind, len(rows), size, b"".join(rows))

    def enum(self, name: str, values: Mapping[str, int]) -> int:
        rows = [struct.pack("<II", self.name(each), value) for each, value in values.items()]
        return self.add(name, ENUM, len(rows), 4, b"".join(rows))

    def packed(self) -> bytes:
        lengths = (0, len(self.types), len(self.types), len(self.names))
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, *lengths)
        return header + bytes(self.types) + bytes(self.names)


FLAGS = {
    "PG_workingset": 9,
    "PG_young": 27,
    "PG_head": 6,
    "PG_anon_exclusive": 11,
    "PG_partially_mapped": 16,
}
TYPES: dict[str, tuple[int, dict[str, int]]] = {
    "task_struct": (64, {"tasks": 8, "pid": 24, "mm": 32, "start_boottime": 40}),
    "vm_area_struct": (64, {"vm_start": 0, "vm_end": 8, "anon_vma": 40}),
    "khugepaged_scan": (32, {"mm_head": 0, "mm_slot": 16, "address": 24}),
    "mm_slot": (40, {"mm_node": 16, "mm": 32}),
    "cpu_fbatches": (
        512, {"lru_add": 0, "lru_deactivate": 128, "lru_lazyfree": 256, "lru_activate": 384}
    ),
    "mlock_fbatch": (128, {"fbatch": 0}),
    "folio_batch": (128, {"nr": 0, "folios": 8}),
    "pglist_data": (64, {"node_start_pfn": 8, "node_spanned_pages": 24}),
    "page": (64, {"flags": 0, "_refcount": 52, "_mapcount": 48}),
    "folio": (
        256,
        {
            "_flags_1": 64, "_large_mapcount": 80, "_pincount": 92, "_mm_id_mapcount": 96, "_mm_ids": 104,
            "_deferred_list": 144,
        },
    ),
}  # fmt: skip


def type_information(
    *left_out: str,
    more: Mapping[str, tuple[int, Mapping[str, int]]] = MappingProxyType({}),
    enums: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
) -> bytes:
    """All that a deep capture looks for, but for some names. more: structures, or members of those; enums:
    their constants."""
    it = TypeMaker()
    nothing: tuple[int, Mapping[str, int]] = (0, {})
    for name in {**TYPES, **more}:
        (size, members), (larger, others) = TYPES.get(name, nothing), more.get(name, nothing)
        if name == "mm_struct":
            continue
        structures: dict[str, dict[str, int]] = {}
        kept = {}
        for member, at in {**members, **others}.items():
            outer, _, within = member.partition(".")
            if within:
                structures.setdefault(outer, {})[within] = at
            elif member not in left_out:
                kept[member] = (LONG, at)
        for outer, parts in structures.items():
            inside = it.structure("", 8, dict.fromkeys(parts, (LONG, 0)))
            kept[outer] = (inside, min(parts.values()))
        it.structure(name, max(size, larger), kept)
    for each in enums.keys() - {"pageflags"}:
        it.enum(each, enums[each])
    range64 = it.structure("maple_range_64", 256, {"pivot": (LONG, 8), "slot": (LONG, 128)})
    arange64 = it.structure("maple_arange_64", 256, {"pivot": (LONG, 8), "slot": (LONG, 80)})
    either = it.structure("", 256, {"mr64": (range64, 0), "ma64": (arange64, 0)}, UNION)
    it.structure("maple_node", 256, {"": (either, 0)})
    tree = it.add("tree_t", TYPEDEF, 0, it.structure("maple_tree", 16, {"ma_root": (LONG, 8)}))
    mm = {"mm_mt": (tree, 64), "pgd": (LONG, 120), "flags": (LONG, 128), "mm_id": (LONG, 136)}
    larger, others = more.get("mm_struct", (144, {}))
    mm.update((name, (LONG, at)) for name, at in others.items())
    inner = it.structure("", larger, {name: of for name, of in mm.items() if name not in left_out})
    it.structure("mm_struct", larger, {"": (inner, 0)})
    flags = {**FLAGS, **enums.get("pageflags", {})}
    it.enum("pageflags", {name: bit for name, bit in flags.items() if name not in left_out})
    it.enum("maple_type", {"maple_leaf_64": 1, "maple_range_64": 2, "maple_arange_64": 3})
    return it.packed()


def core_file(path: Path, segments: Iterable[tuple[int, int, bytes | int]], info: str = "") -> None:
    """Write an ELF core file. segments: address, physical address, and what is there or how much of zeros."""
    segments = list(segments)
    name = b"VMCOREINFO\0\0"
    note = struct.pack("<III", 11, len(info), 0) + name + info.encode() + bytes(-len(info) % 4)
    at = 64 + 56 * (len(segments) + 1)
    rows = [struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(note), 0, 0)]
    at += len(note)
    with path.open("wb") as file:
        for address, physical, held in segments:
            size = held if isinstance(held, int) else len(held)
            rows.append(struct.pack("<IIQQQQQQ", 1, 7, at, address, physical, size, size, PAGE))
            file.truncate(at + size)
            if not isinstance(held, int):
                file.seek(at)
                file.write(held)
            at += size
        ident = b"\x7fELF\x02\x01\x01" + bytes(9)
        head = struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, len(rows), 0, 0, 0)
        file.seek(0)
        file.write(ident + head + b"".join(rows) + note)


class MadeKernel:
    """A kernel that has this process, and another that it is not: what is put into its memory by physical
    address is at DIRECT for it. Symbols are in memory, one page apart.

    pid: of the process that it has; ram: bytes of memory, most of which take no room.
    """

    def __init__(self, folder: Path, pid: int | None = None, ram: int = RAM) -> None:
        self.size, pid = ram, os.getpid() if pid is None else pid
        self.core, self.btf = folder / "kcore", folder / "btf"
        self.kallsyms = folder / "kallsyms"
        frames = ram // PAGE
        core_file(
            self.core,
            [(DIRECT, 0, ram), (STRUCT_PAGES, (1 << 64) - 1, frames * 64)],
            "NUMBER(pgtable_l5_enabled)=0\nNUMBER(sme_mask)=0\n",
        )
        self.ram = self.core.stat().st_size - ram - frames * 64
        self.file = os.open(self.core, os.O_RDWR)
        self.btf.write_bytes(type_information())
        self.free = PAGE
        self.at = {name: self.page() for name in kernel.SYMBOLS}
        self.write_symbols(self.at)
        self.mm = self.page()
        self.pgd = self.page()
        self.put(self.mm + 120, self.pgd + DIRECT)
        self.put(self.mm + 136, 7)
        other = self.page()
        first = self.at["init_task"]
        self.task, began = self.page(), started(pid)
        assert began is not None
        for task, following, number, mm in (
            (first, other, 0, 0), (other, self.task, pid, self.pgd),
            (self.task, first, pid, self.mm),
        ):  # fmt: skip
            self.put(task + 8, following + 8 + DIRECT)
            self.put(task + 24, number)
            self.put(task + 32, mm + DIRECT if mm else 0)
        self.put(self.task + 40, began * 10_000_000 + 5)
        self.registered()
        self.put(self.at["node_data"], self.page() + DIRECT)
        self.node = self.free - PAGE
        self.put(self.node + 24, frames)

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have the capture read this kernel's files."""
        for name in ("core", "btf", "kallsyms"):
            constant = {"core": "KCORE"}.get(name, name.upper())
            monkeypatch.setattr(kernel, constant, str(getattr(self, name)))
        kernel.layout.cache_clear()

    def write_symbols(self, at: Mapping[str, int]) -> None:
        lines = [f"{place + DIRECT:016x} d {name}\n" for name, place in at.items()]
        self.kallsyms.write_text("ffffffff81000000 T _text\n" + "".join(lines))

    def page(self) -> int:
        """A page of memory that nobody has: its physical address."""
        self.free += PAGE
        return self.free - PAGE

    def put(self, physical: int, *words: int) -> None:
        """Write 64-bit words."""
        data = struct.pack(f"<{len(words)}Q", *words)
        os.pwrite(self.file, data, self.ram + physical)

    def registered(self, *mms: int, at: int | None = None, address: int = 0) -> None:
        """Have khugepaged's list be these mms, and it stand in one of them."""
        head, slots = self.at["khugepaged_scan"], [self.page() for _ in mms]
        nodes = [head, *(slot + 16 for slot in slots), head]
        for node, following in pairwise(nodes):
            self.put(node, following + DIRECT)
        for slot, mm in zip(slots, mms, strict=True):
            self.put(slot + 32, mm + DIRECT)
        self.put(head + 16, 0 if at is None else slots[at] + DIRECT, address)

    def map(self, address: int, entries: list[int]) -> None:
        """Map the table of an address: its entries, or one entry of the PMD itself."""
        table = self.pgd
        for shift in (39, 30):
            place = table + 8 * (address >> shift & 511)
            following = self.word(place) & ~0xFFF
            if not following:
                following = self.page()
                self.put(place, following | 0x67)
            table = following
        if len(entries) == 1:
            self.put(table + 8 * (address >> 21 & 511), entries[0])
            return
        self.put(table + 8 * (address >> 21 & 511), self.free | 0x67)
        self.put(self.page(), *entries)

    def word(self, physical: int) -> int:
        return int.from_bytes(os.pread(self.file, 8, self.ram + physical), "little")

    def struct_page(self, frame: int, **fields: int) -> None:
        """Write fields of a frame's struct page or folio, by TYPES' names."""
        widths = {
            "flags": 8,
            "_flags_1": 8,
            "_mm_ids": 8,
            "_mm_id_mapcount": 8,
            "_deferred_list": 8,
        }
        for name, value in fields.items():
            at = TYPES["page"][1].get(name, TYPES["folio"][1].get(name, 0))
            width = widths.get(name, 4)
            data = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
            os.pwrite(self.file, data, self.ram + self.size + frame * 64 + at)
