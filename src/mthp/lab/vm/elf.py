# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads from an ELF file which interpreter and libraries the loader needs for it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_MAGIC = b"\x7fELF\x02\x01"
_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_PAIR = struct.Struct("<qQ")
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 15, 29


@dataclass(frozen=True)
class Needs:
    """What an ELF file needs to be loaded.

    interpreter: a path, or None (a library, or a static program). search: RUNPATH or RPATH, with
    $ORIGIN not replaced.
    """

    interpreter: str | None
    libraries: tuple[str, ...]
    search: tuple[str, ...]


@dataclass(frozen=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def is_elf(data: bytes) -> bool:
    """Whether it is a 64-bit little-endian ELF file."""
    return data.startswith(_MAGIC)


def interpreters(data: bytes) -> list[str]:
    """The programs that a script's first line names; none if the file is not a script.

    What env(1) is to find is named without a folder.
    """
    line = data[2:].partition(b"\n")[0] if data.startswith(b"#!") else b""
    first, *rest = [os.fsdecode(word) for word in line.split()] or [""]
    if os.path.basename(first) == "env":
        return [first, *[word for word in rest if word[0] != "-" and "=" not in word][:1]]
    return [first] if first else []


def needs(data: bytes) -> Needs:
    """What the loader needs for this file. ValueError: it is not an ELF file, or damaged."""
    if not is_elf(data):
        raise ValueError("not a 64-bit little-endian ELF file")
    try:
        segments = list(_segments(data))
        interpreter = next((_text(data, s.offset) for s in segments if s.kind == _PT_INTERP), None)
        dynamic = list(_dynamic(data, segments))
        strings = next((_offset(segments, value) for tag, value in dynamic if tag == _DT_STRTAB), 0)
    except (struct.error, OverflowError):
        raise ValueError("a truncated ELF file") from None

    def named(*tags: int) -> tuple[str, ...]:
        return tuple(_text(data, strings + value) for tag, value in dynamic if tag in tags)

    search = named(_DT_RUNPATH) or named(_DT_RPATH)
    folders = tuple(folder for each in search for folder in each.split(":") if folder)
    return Needs(interpreter, named(_DT_NEEDED), folders)


def _segments(data: bytes) -> Iterator[_Segment]:
    fields = _HEADER.unpack_from(data)
    table, size, count = fields[4], fields[8], fields[9]
    for index in range(count):
        kind, _, offset, address, _, length, _, _ = _SEGMENT.unpack_from(data, table + index * size)
        yield _Segment(kind, offset, address, length)


def _dynamic(data: bytes, segments: list[_Segment]) -> Iterator[tuple[int, int]]:
    for segment in segments:
        if segment.kind == _PT_DYNAMIC:
            for at in range(segment.offset, segment.offset + segment.size, _PAIR.size):
                tag, value = _PAIR.unpack_from(data, at)
                if tag == _DT_NULL:
                    return
                yield tag, value


def _offset(segments: list[_Segment], address: int) -> int:
    """The offset in the file of what is loaded at an address."""
    for segment in segments:
        inside = segment.address <= address < segment.address + segment.size
        if segment.kind == _PT_LOAD and inside:
            return segment.offset + address - segment.address
    raise ValueError("a dynamic section that points outside the file")


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode(errors="replace")
