# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own memory, read through the ELF file that /proc/kcore is.

Kernel: fs/proc/kcore.c.
"""

from __future__ import annotations

import bisect
import os
import re
import struct
from itertools import repeat
from operator import add, ne
from typing import NamedTuple

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")
_IDENT = b"\x7fELF\x02\x01"
_CORE, _X86_64, _LOAD, _NOTES = 4, 62, 1, 4
_MOST_SEGMENTS = 1 << 15
_MOST_NOTES = 16 << 20
_NOWHERE = (1 << 64) - 1
"""The physical address that kcore gives segments that have none."""


class CoreError(Exception):
    """What is no such file, or an address that it does not have; one line."""


class _Segment(NamedTuple):
    """A range of addresses, and where in the file it begins."""

    start: int
    end: int
    offset: int


class KernelMemory:
    """The memory of a kernel by its own addresses, and by physical ones.

    info: what the kernel says of itself for those who read its memory (VMCOREINFO), by name.
    Kernel: kernel/vmcore_info.c.
    """

    def __init__(self) -> None:
        self.info: dict[str, str] = {}

    def add_info(self, text: bytes) -> None:
        """Take the lines of a VMCOREINFO."""
        lines = text.decode("ascii", "replace")
        self.info.update(re.findall(r"^([^=\n]+)=(.*)$", lines, re.M))

    def number(self, name: str, kind: str = "NUMBER") -> int:
        """A number that the kernel says of itself; 0 where it does not say it. kind: LENGTH, OFFSET, SIZE."""
        text = self.info.get(f"{kind}({name})", "0")
        if not re.fullmatch(r"-?[0-9]{1,20}", text, re.ASCII):
            raise CoreError(f"{kind}({name}) in it is no number")
        return int(text)

    def read(self, address: int, size: int) -> bytes:
        """What is at an address of the kernel's. CoreError: it is not there."""
        raise NotImplementedError

    def read_each(self, addresses: list[int], sizes: list[int]) -> list[bytes]:
        """What is at each of some addresses; nothing of one that is not there."""
        return [self._read_if_there(*each) for each in zip(addresses, sizes)]

    def _read_if_there(self, address: int, size: int) -> bytes:
        try:
            return self.read(address, size)
        except CoreError:
            return b""

    def physical(self, address: int, size: int) -> bytes:
        """What is at a physical address. CoreError: it is not there."""
        raise NotImplementedError

    def word(self, address: int) -> int:
        """The 64-bit word at an address of the kernel's."""
        return int.from_bytes(self.read(address, 8), "little")

    def close(self) -> None:
        """Close the file that is open."""


class Core(KernelMemory):
    """The memory that an ELF core file has by segments. file: a descriptor.

    loads: of each segment of physical memory the address, the bytes, where they begin in the file, and how
    many of them are there."""

    def __init__(self, file: int) -> None:
        super().__init__()
        self.file = file
        header = os.pread(file, _HEADER.size, 0)
        if len(header) < _HEADER.size or not header.startswith(_IDENT):
            raise CoreError("is no ELF file of 64 bits")
        _, kind, machine, _, _, at, _, _, _, size, count, *_ = _HEADER.unpack(header)
        if (kind, machine, size) != (_CORE, _X86_64, _SEGMENT.size) or count > _MOST_SEGMENTS:
            raise CoreError("is no core file of x86-64")
        table = self.at(at, count * size)
        virtual, physical = [], []
        self.loads: list[tuple[int, int, int, int]] = []
        for kind, _, offset, start, where, length, whole, _ in _SEGMENT.iter_unpack(table):
            if kind == _LOAD and where != _NOWHERE:
                self.loads.append((where, max(length, whole), offset, length))
            if kind == _NOTES:
                self._read_notes(offset, length)
            elif kind == _LOAD and length:
                virtual.append(_Segment(start, start + length, offset))
                if where != _NOWHERE:
                    physical.append(_Segment(where, where + length, offset))
        self._virtual, self._physical = sorted(virtual), sorted(physical)
        self._last = _Segment(0, 0, 0)

    def at(self, offset: int, size: int) -> bytes:
        """Bytes of the file. CoreError where it ends before."""
        if offset + size >= 1 << 63:
            raise CoreError("has a place that no file reaches")
        found = os.pread(self.file, size, offset)
        if len(found) == size:
            return found
        while len(found) < size:
            more = os.pread(self.file, size - len(found), offset + len(found))
            if not more:
                raise CoreError("ends before what it is said to have")
            found += more
        return found

    def _read_notes(self, offset: int, length: int) -> None:
        notes, at = self.at(offset, min(length, _MOST_NOTES)), 0
        while at + _NOTE.size <= len(notes):
            name, size, _ = _NOTE.unpack_from(notes, at)
            begin = at + _NOTE.size + (name + 3 & -4)
            if notes[at + _NOTE.size :].startswith(b"VMCOREINFO\0"):
                self.add_info(notes[begin : begin + size])
            at = begin + (size + 3 & -4)

    def close(self) -> None:
        """Close the file."""
        os.close(self.file)

    def read(self, address: int, size: int) -> bytes:
        """What is at an address of the kernel's. CoreError: it is in no segment."""
        start, end, offset = self._last  # most of what is read lies near what was read before
        if not start <= address <= end - size:
            start, end, offset = self._last = self._segment(self._virtual, address, size)
        return self.at(offset + address - start, size)

    def read_each(self, addresses: list[int], sizes: list[int]) -> list[bytes]:
        """As KernelMemory.read_each(); of one segment with no more work than the calls are."""
        first, end = min(addresses, default=0), max(map(add, addresses, sizes), default=0)
        try:
            segment = self._segment(self._virtual, first, end - first)
        except CoreError:
            return super().read_each(addresses, sizes)
        places = map((segment.offset - segment.start).__add__, addresses)
        found = list(map(os.pread, repeat(self.file), sizes, places))
        if any(map(ne, map(len, found), sizes)):
            return super().read_each(addresses, sizes)
        return found

    def physical(self, address: int, size: int) -> bytes:
        """What is at a physical address."""
        segment = self._segment(self._physical, address, size)
        return self.at(segment.offset + address - segment.start, size)

    def _segment(self, segments: list[_Segment], address: int, size: int) -> _Segment:
        k = bisect.bisect_right(segments, (address, _NOWHERE, _NOWHERE)) - 1
        while k >= 0:
            segment = segments[k]
            if segment.start <= address and address + size <= segment.end:
                return segment
            if k and segments[k - 1].end <= address:
                break
            k -= 1
        raise CoreError(f"has nothing at {address:#x}")
