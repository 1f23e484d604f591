# SPDX-License-Identifier: GPL-2.0-or-later
"""The physical memory of a machine as makedumpfile packs it: one page after another, those that matter.

makedumpfile: IMPLEMENTATION, diskdump_mod.h; QEMU: include/sysemu/dump.h.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mthp.image.capture.kcore import CoreError
from mthp.image.capture.proc import LACKING, CaptureError

_SIGNATURE, _FLATTENED = b"KDUMP   ", b"makedumpfile\0\0\0\0"
_FLAT_HEADER, _RECORD = 4096, struct.Struct(">qq")
_MACHINE = slice(272, 337)
_HEADER = struct.Struct("<IiiIIIII")
"""From byte 424 on: status, block_size, sub_hdr_size, bitmap_blocks, max_mapnr, and what is not asked for."""
_SUB = struct.Struct("<QiiQQQQQQQQQQQ")
_DESCRIPTOR = struct.Struct("<qIIQ")
_ZLIB, _LZO, _SNAPPY, _ZSTD = 1, 2, 4, 0x20
_PACKED = {_LZO: "LZO", _SNAPPY: "snappy", _ZSTD: "zstd"}
_ZERO_PAGES, _PAGES_OF_PROCESSES = 1, 8
_KINDS = {
    1: "pages of zeros",
    2: "page cache",
    4: "private page cache",
    8: "pages of processes",
    16: "free pages",
}
_PAGE = 4096
_MOST_RECORDS = 1 << 24
_MOST_BITMAP = 1 << 30
_MOST_INFO = 1 << 20
_MOST_KEPT = 4096
_WORDS = 512
"""Words of the bitmap whose pages are counted together."""


def is_kdump(start: bytes) -> bool:
    """Whether a file that starts so is of this format."""
    return start.startswith((_SIGNATURE, _FLATTENED))


class _Flattened:
    """A file in which makedumpfile, or QEMU, wrote down what it would have written where. size: of the file
    that it stands for."""

    def __init__(self, file: int) -> None:
        self._file = file
        at, size = _FLAT_HEADER, os.fstat(file).st_size
        starts, sizes, places = array("q"), array("q"), array("q")
        while True:
            raw = os.pread(file, _RECORD.size, at)
            if len(raw) < _RECORD.size:
                raise CoreError("is cut off: it ends before its last record")
            offset, length = _RECORD.unpack(raw)
            if offset < 0:
                break
            at += _RECORD.size
            if length < 0 or at + length > size or len(starts) >= _MOST_RECORDS:
                raise CoreError("is cut off, or has a record that is no record")
            starts.append(offset)
            sizes.append(length)
            places.append(at)
            at += length
        order = np.argsort(np.array(starts), kind="stable")
        self.size = max(
            (start + size for start, size in zip(starts, sizes, strict=True)), default=0
        )
        self._starts = np.array(starts)[order]
        self._sizes, self._places = np.array(sizes)[order], np.array(places)[order]
        ends = np.maximum.accumulate(self._starts + self._sizes) if len(order) else self._starts
        if np.any(self._starts[1:] < ends[:-1]):
            raise CoreError("has records that overlap: put it together with makedumpfile -R")

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file that it stands for; none beyond its end."""
        parts = []
        while size > 0:
            k = int(np.searchsorted(self._starts, offset, "right")) - 1
            start, length, place = (
                (int(self._starts[k]), int(self._sizes[k]), int(self._places[k]))
                if k >= 0
                else (0, 0, 0)
            )
            if k < 0 or offset >= start + length:
                following = int(self._starts[k + 1]) if k + 1 < len(self._starts) else offset
                here = min(size, following - offset)
                if not here:
                    break
                parts.append(bytes(here))  # nobody wrote there: a hole
            else:
                here = min(size, start + length - offset)
                parts.append(os.pread(self._file, here, place + offset - start))
            offset, size = offset + here, size - here
        return b"".join(parts)


class KdumpMemory:
    """The physical memory that such a file has. file: a descriptor of the file at path.

    CaptureError (5): its pages are packed in a way that takes drgn, which is not installed.
    """

    def __init__(self, file: int, path: str) -> None:
        self._file, self._path = file, path
        self._flat = None if os.pread(file, 8, 0) == _SIGNATURE else _Flattened(file)
        self._size = os.fstat(file).st_size if self._flat is None else self._flat.size
        header = self._at(0, 464)
        if not header.startswith(_SIGNATURE):
            raise CoreError("is no dump: it has no header")
        machine = header[_MACHINE].split(b"\0")[0]
        if machine not in (b"x86_64", b""):
            name = machine.decode("ascii", "replace")
            raise CoreError(f"is of a machine {name!r}, and x86-64 alone is read")
        _, block, sub_blocks, bitmap_blocks, most, *_ = _HEADER.unpack_from(header, 424)
        if block != _PAGE or not 0 < sub_blocks < 1 << 10:
            raise CoreError(f"has blocks of {block} bytes, and x86-64 has {_PAGE}")
        sub = _SUB.unpack(self._at(_PAGE, _SUB.size))
        version = int.from_bytes(header[8:12], "little")
        level, self._split = sub[1], sub[2]
        if self._split:
            raise CoreError(
                "is one of several parts: put them together with makedumpfile --reassemble"
            )
        self.zeros = 0
        self._level = level
        said = [text for bit, text in _KINDS.items() if level & bit]
        self.left_out = ", ".join(said)
        self.has_contents = not level & _PAGES_OF_PROCESSES
        if version < 3 or not 0 < sub[6] <= _MOST_INFO:
            self.vmcoreinfo = b""
        else:
            self.vmcoreinfo = self._at(sub[5], sub[6])
        bitmap = (1 + sub_blocks) * _PAGE
        size = bitmap_blocks * _PAGE // 2
        if not 0 < size <= _MOST_BITMAP:
            raise CoreError("has a bitmap of pages of no size that there can be")
        if version >= 6:
            most = sub[13]
        self._most = min(most, size * 8)
        self._has = self._words(bitmap, size)
        self._dumped = self._words(bitmap + size, size)
        counts = np.bitwise_count(self._dumped).astype(np.int64)
        sums = np.add.reduceat(counts, np.arange(0, len(counts), _WORDS))
        self._before = np.concatenate([[0], np.cumsum(sums)])
        self._descriptors = (1 + sub_blocks + bitmap_blocks) * _PAGE
        self._kept: dict[int, bytes] = {}
        self._drgn: Any = None

    def _words(self, offset: int, size: int) -> NDArray[np.uint64]:
        return np.frombuffer(self._at(offset, size), np.uint64)

    def _at(self, offset: int, size: int) -> bytes:
        """Bytes of the file. CoreError where it ends before."""
        if not 0 <= offset <= self._size - size:
            raise CoreError("ends before what it is said to have")
        parts: list[bytes] = []
        while size:
            if self._flat is None:
                part = os.pread(self._file, size, offset)
            else:
                part = self._flat.read(offset, size)
            if not part:
                raise CoreError("ends before what it is said to have")
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def read(self, address: int, size: int) -> bytes:
        """As PhysicalMemory.read()."""
        first, last = address // _PAGE, (address + size - 1) // _PAGE
        if first == last:
            at = address % _PAGE
            return self._page(first)[at : at + size]
        whole = b"".join(map(self._page, range(first, last + 1)))
        return whole[address % _PAGE :][:size]

    def _page(self, frame: int) -> bytes:
        kept = self._kept.get(frame)
        if kept is not None:
            return kept
        word, bit = divmod(frame, 64)
        if not 0 <= frame < self._most or not int(self._has[word]) >> bit & 1:
            raise CoreError(f"has no memory at the physical address {frame * _PAGE:#x}")
        if not int(self._dumped[word]) >> bit & 1:
            if not self._level & _ZERO_PAGES:
                raise CoreError(f"leaves out the page at the physical address {frame * _PAGE:#x}")
            self.zeros += 1
            page = bytes(_PAGE)
        else:
            page = self._unpacked(frame, self._rank(word, bit))
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        self._kept[frame] = page
        return page

    def _rank(self, word: int, bit: int) -> int:
        """How many pages were written before one."""
        block = word // _WORDS
        some = self._dumped[block * _WORDS : word]
        below = int(self._dumped[word]) & (1 << bit) - 1
        return int(self._before[block]) + int(np.bitwise_count(some).sum()) + below.bit_count()

    def _unpacked(self, frame: int, rank: int) -> bytes:
        raw = self._at(self._descriptors + rank * _DESCRIPTOR.size, _DESCRIPTOR.size)
        offset, size, flags, _ = _DESCRIPTOR.unpack(raw)
        where = f"the page at the physical address {frame * _PAGE:#x}"
        packed = flags & (_ZLIB | _LZO | _SNAPPY | _ZSTD)
        if packed & ~_ZLIB:
            return self._by_drgn(frame, packed)
        if size > _PAGE or (not packed and size != _PAGE):
            raise CoreError(f"has {where} in {size} bytes")
        data = self._at(offset, size)
        if packed:
            try:
                data = zlib.decompressobj().decompress(data, _PAGE)
            except zlib.error:
                raise CoreError(f"has {where} damaged") from None
            if len(data) != _PAGE:
                raise CoreError(f"has {where} damaged")
        return data

    def _by_drgn(self, frame: int, packed: int) -> bytes:
        """A page packed in a way that Python does not know, by drgn, whose library does."""
        if self._drgn is None:
            how = next((name for bit, name in _PACKED.items() if packed & bit), "?")
            try:
                import drgn
            except ImportError:
                needs = (
                    f"its pages are packed by {how}, which takes drgn: pip install 'mthp[vmcore]'"
                )
                raise CaptureError(f"{self._path}: {needs}", LACKING) from None
            self._drgn = drgn.Program()
            try:
                self._drgn.set_core_dump(self._path)
            except Exception as error:  # what it raises of a damaged file is its own
                raise CoreError(f"cannot be read by drgn: {error}") from None
        try:
            page: bytes = self._drgn.read(frame * _PAGE, _PAGE, physical=True)
        except Exception as error:
            raise CoreError(f"cannot be read by drgn: {error}") from None
        return page

    def close(self) -> None:
        """Close the file."""
        self._kept.clear()
        os.close(self._file)
