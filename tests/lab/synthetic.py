# SPDX-License-Identifier: GPL-2.0-or-later
"""Small files in the shape of kernels and modules."""

from __future__ import annotations

import struct


def bzimage(release: str, banner_at: int = 0x400) -> bytes:
    """The boot sector's magic and the pointer to the version string; nothing that would boot."""
    data = bytearray(banner_at)
    data[0x1FE:0x200] = b"\x55\xaa"
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x20E, banner_at - 0x200)
    return bytes(data) + f"{release} (builder@host) #1 SMP\0".encode() + bytes(64)


def vmlinux(release: str, machine: int = 62) -> bytes:
    """An ELF head of that machine, and the banner somewhere."""
    head = bytearray(64)
    head[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<HH", head, 16, 2, machine)
    return bytes(head) + b"%s version %s\0" + f"Linux version {release} (me@here)\n".encode()


def module(**fields: str) -> bytes:
    """An ELF file whose one section besides the names is .modinfo."""
    info = b"".join(f"{key}={value}".encode() + b"\0" for key, value in fields.items())
    names = b"\0.modinfo\0.shstrtab\0"
    at_names, at_table = 64 + len(info), 64 + len(info) + len(names)
    head = bytearray(64)
    head[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", head, 0x28, at_table)
    struct.pack_into("<HHH", head, 0x3A, 64, 3, 2)
    sections = [(0, 0, 0), (1, 64, len(info)), (10, at_names, len(names))]
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, at, size, 0, 0, 1, 0)
        for name, at, size in sections
    )
    return bytes(head) + info + names + table


def elf(
    libraries: tuple[str, ...] = (), interpreter: str = "", search: str = "", rpath: str = ""
) -> bytes:
    """A program (with an interpreter) or library that asks for libraries; it loads at 0x10000."""
    load_at, count = 0x10000, 3 if interpreter else 2
    strings, offsets = b"\0", {}
    for text in (*libraries, search, rpath):
        offsets[text] = len(strings)
        strings += text.encode() + b"\0"
    at_strings = 64 + 56 * count
    at_dynamic = at_strings + len(strings)
    pairs = [(1, offsets[name]) for name in libraries]
    pairs += [(tag, offsets[text]) for tag, text in ((29, search), (15, rpath)) if text]
    pairs += [(5, load_at + at_strings), (0, 0)]
    dynamic = b"".join(struct.pack("<qQ", *pair) for pair in pairs)
    named = interpreter.encode() + b"\0"
    total = at_dynamic + len(dynamic) + len(named)
    parts = [(1, 0, total), (2, at_dynamic, len(dynamic))]
    if interpreter:
        parts.insert(0, (3, at_dynamic + len(dynamic), len(named)))
    ident = b"\x7fELF\x02\x01".ljust(16, b"\0")
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 3, 62, 1, 0, 64, 0, 0, 64, 56, len(parts), 0, 0, 0
    )
    table = b"".join(
        struct.pack("<IIQQQQQQ", kind, 4, at, load_at + at, load_at + at, size, size, 1)
        for kind, at, size in parts
    )
    return head + table + strings + dynamic + named
