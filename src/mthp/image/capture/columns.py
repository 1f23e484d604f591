# SPDX-License-Identifier: GPL-2.0-or-later
"""The arrays of the file while it is made, redacted on demand, and the file itself.

docs/snapshot-format.md describes it.
"""

from __future__ import annotations

import bisect
import functools
import json
import math
import re
import struct
import sys
import zipfile
import zlib
from array import array
from itertools import chain
from random import SystemRandom
from typing import IO, Any, Iterable, Iterator, NamedTuple, Tuple

from mthp.words.files import spooled
from mthp.words.units import Geometry

SCHEMA = "mthp-snapshot/1"
NEVER = "never visible: "
"""Begins what a capture says of each thing that none can see."""
DEEP_WIDTH = {
    "pte_bits": 1, "refcount": 4, "folio_mapcount": 4, "folio_state": 2, "mm_ids": 8,
    "mm_id_mapcounts": 8, "node": 1,
}  # fmt: skip
"""The members of a deep capture -> bytes of a value."""
ZERO_FILLED = "zero_filled"
"""The member of a deep capture with --zeros."""
WIDTH = {
    "pte": 2, "pfn": 8, "kpageflags": 8, "kpagecount": 4, "folio_order": 1, **DEEP_WIDTH, ZERO_FILLED: 1,
}  # fmt: skip
TYPE = {1: "|u1", 2: "u2", 4: "u4", 8: "u8"}


SOME_BYTES = 1 << 16
"""Rows of a column wait until there are so many bytes of them."""
_KEPT_RAW = 8
_RARE = 24
"""What packs to less than a part of so many bytes may well come again; so many are remembered of a column."""
_LAST_BLOCK = b"\x03\x00"
"""An empty block that ends a deflated member, after pieces that each end on a whole byte."""
_CRC = 0xEDB88320
"""The polynomial of CRC-32, x**0 in the highest bit."""


class _Piece(NamedTuple):
    """Some rows of a column, packed by themselves. at, size: where the file has them packed; length: their
    bytes; crc: the CRC-32 of these."""

    at: int
    size: int
    length: int
    crc: int


class Column:
    """One member of the file while it is made. Its rows are packed some at a time, as they come, and what
    comes again is packed once: less is kept, and nothing is left to do but to copy it.

    file: keeps it. level: of zlib; 0 does not pack.
    """

    def __init__(self, file: IO[bytes], level: int) -> None:
        self.length = 0
        self._file = file
        self._level = level
        self._deflate = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._end = 0
        self._pieces: list[_Piece] = []
        self._starts: list[int] = []
        self._waiting = bytearray()
        self._recent: list[tuple[bytes, _Piece]] = []
        self._opened = -1
        self._raw = bytearray()
        self._patched = False

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def add(self, data: bytes) -> None:
        """Append rows."""
        if self._waiting or len(data) < SOME_BYTES:
            self._waiting += data
            if len(self._waiting) >= SOME_BYTES:
                self._settle()
        else:
            self._append(data)

    def truncate(self, length: int) -> None:
        """Forget what is beyond so many bytes."""
        self._settle()
        while self.length > length:
            piece, start = self._pieces[-1], self._starts[-1]
            rest = self._unpacked(piece)[: max(length - start, 0)]
            del self._pieces[-1], self._starts[-1]
            self.length = start
            if rest:
                self._append(rest)

    def read(self, at: int, size: int) -> bytes:
        """Some of the bytes, of one row."""
        start = self._open(at)
        return bytes(self._raw[at - start : at - start + size])

    def patch(self, at: int, data: bytes) -> None:
        """Replace bytes of one row."""
        start = self._open(at)
        self._raw[at - start : at - start + len(data)] = data
        self._patched = True

    def chunks(self) -> Iterator[bytes]:
        """All of it, some at a time."""
        self._settle()
        yield from map(self._unpacked, self._pieces)

    def write(self, archive: zipfile.ZipFile, name: str, header: bytes) -> None:
        """Write it into an archive that something was written into. header: what stands before the rows."""
        self._settle()
        assert archive.fp is not None
        info = zipfile.ZipInfo(name)
        info.external_attr = 0o600 << 16
        info.compress_type = zipfile.ZIP_DEFLATED if self._level else zipfile.ZIP_STORED
        head, last = self._packed(header), _LAST_BLOCK if self._level else b""
        info.CRC = zlib.crc32(header)
        for piece in self._pieces:
            info.CRC = _product(info.CRC, _power(8 * piece.length)) ^ piece.crc
        info.file_size = len(header) + self.length
        info.compress_size = len(head) + sum(piece.size for piece in self._pieces) + len(last)
        info.header_offset = archive.fp.tell()
        archive.fp.write(info.FileHeader() + head)
        for piece in self._pieces:
            archive.fp.write(self._kept(piece))
        archive.fp.write(last)
        archive.start_dir = archive.fp.tell()
        archive.filelist.append(info)
        archive.NameToInfo[name] = info

    def _settle(self) -> None:
        """Have nothing wait, and no piece be open."""
        if self._patched:
            self._pieces[self._opened] = self._piece(bytes(self._raw))
        self._opened, self._raw, self._patched = -1, bytearray(), False
        if self._waiting:
            waiting, self._waiting = bytes(self._waiting), bytearray()
            self._append(waiting)

    def _append(self, data: bytes) -> None:
        self._pieces.append(self._piece(data))
        self._starts.append(self.length)
        self.length += len(data)

    def _piece(self, data: bytes) -> _Piece:
        """Rows, packed, unless they were so a short while ago."""
        for raw, known in self._recent:
            if raw == data:
                return known
        packed = self._packed(data)
        piece = _Piece(self._end, len(packed), len(data), zlib.crc32(data))
        self._file.seek(self._end)
        self._file.write(packed)
        self._end += len(packed)
        if _RARE * len(packed) < len(data):
            self._recent = [(data, piece), *self._recent[: _KEPT_RAW - 1]]
        return piece

    def _packed(self, data: bytes) -> bytes:
        if not self._level:
            return data
        return self._deflate.compress(data) + self._deflate.flush(zlib.Z_FULL_FLUSH)

    def _kept(self, piece: _Piece) -> bytes:
        self._file.seek(piece.at)
        return self._file.read(piece.size)

    def _unpacked(self, piece: _Piece) -> bytes:
        kept = self._kept(piece)
        return zlib.decompress(kept + _LAST_BLOCK, -zlib.MAX_WBITS) if self._level else kept

    def _open(self, at: int) -> int:
        """Unpack the piece that has a byte, if it is not; where it begins."""
        k = bisect.bisect_right(self._starts, at) - 1
        if k != self._opened or self._waiting:
            self._settle()
            k = bisect.bisect_right(self._starts, at) - 1
            self._opened, self._raw = k, bytearray(self._unpacked(self._pieces[k]))
        return self._starts[k]


def _product(first: int, second: int) -> int:
    """The product of two remainders of CRC-32's division."""
    found, bit = 0, 1 << 31
    while bit:
        if first & bit:
            found ^= second
        second = second >> 1 ^ (_CRC if second & 1 else 0)
        bit >>= 1
    return found


@functools.lru_cache(maxsize=None)
def _power(bits: int) -> int:
    """x to the power of so many: what a CRC-32 is multiplied by for so many bits that follow."""
    if bits < 32:
        return 1 << 31 - bits
    half = _power(bits // 2)
    return _product(_product(half, half), 1 << 31 - bits % 2)


class Columns:
    """The table rows of the file, each member in a file on disk where it is large, so that memory stays
    small. level: as of Column."""

    def __init__(
        self, geometry: Geometry, folder: str | None, members: list[str], level: int = 1
    ) -> None:
        self.geometry = geometry
        self.address: array[int] = array("Q")
        self.process: array[int] = array("H")
        self.level = level
        self.files = {name: Column(spooled(folder), level) for name in members}
        self.torn = bytearray()

    def add(self, process: int, addresses: list[int], parts: dict[str, bytes]) -> None:
        """Append tables; parts: their data for each member."""
        for name, data in parts.items():
            self.files[name].add(data)
        self.address.extend(addresses)
        self.process.extend([process] * len(addresses))
        self.torn.extend(bytes(len(addresses)))

    def close(self) -> None:
        """Close the files that are open."""
        for file in self.files.values():
            file.close()

    def truncate(self, rows: int) -> None:
        """Forget all tables from one row on."""
        for name, file in self.files.items():
            file.truncate(rows * self.geometry.ptrs_per_pte * WIDTH[name])
        del self.address[rows:], self.process[rows:], self.torn[rows:]

    def row(self, name: str, k: int) -> bytes:
        """The bytes of one table in one column."""
        size = self.geometry.ptrs_per_pte * WIDTH[name]
        return self.files[name].read(k * size, size)

    def patch(self, name: str, k: int, data: bytes) -> None:
        """Replace the bytes of one table in one column."""
        self.files[name].patch(k * len(data), data)


def npy_header(kind: str, shape: tuple[int, ...]) -> bytes:
    """The start of a .npy file, version 1.0: magic, length, a Python literal, padded to 64."""
    order = "" if kind.startswith("|") else "<" if sys.byteorder == "little" else ">"
    literal = f"{{'descr': '{order}{kind}', 'fortran_order': False, 'shape': {shape!r}, }}"
    padded = literal + " " * (-(10 + len(literal) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode("latin1")


ArrayMember = Tuple[str, str, Tuple[int, ...], Iterable[bytes]]
"""An array of the file: its name, the type of its values, its shape, and its bytes."""


def write_arrays(
    target: IO[bytes], meta: dict[str, Any], arrays: Iterable[ArrayMember], level: int
) -> None:
    """Write the whole .npz: meta first, then every array. level: of zlib; 0 does not compress."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, True, level) as archive:
        _write_into(archive, meta, arrays)


def _write_into(
    archive: zipfile.ZipFile, meta: dict[str, Any], arrays: Iterable[ArrayMember]
) -> None:
    document = json.dumps(meta, ensure_ascii=True, separators=(",", ":")).encode()
    first: ArrayMember = ("meta", "|u1", (len(document),), [document])
    for name, kind, shape, chunks in chain([first], arrays):
        # A ZipInfo of our own would not be compressed as the archive says.
        with archive.open(name + ".npy", "w", force_zip64=math.prod(shape) > 1 << 27) as file:
            file.write(npy_header(kind, shape))
            for chunk in chunks:
                file.write(chunk)


def write_file(target: IO[bytes], meta: dict[str, Any], columns: Columns) -> None:
    """Write a capture's .npz: its document, and every column."""
    rows, ptrs = len(columns.address), columns.geometry.ptrs_per_pte
    arrays: list[ArrayMember] = [
        ("table_address", "u8", (rows,), [columns.address.tobytes()]),
        ("table_process", "u2", (rows,), [columns.process.tobytes()]),
        ("table_torn", "|u1", (rows,), [bytes(columns.torn)]),
    ]
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, True, columns.level) as archive:
        _write_into(archive, meta, arrays)
        for name, column in columns.files.items():
            column.write(archive, name + ".npy", npy_header(TYPE[WIDTH[name]], (rows, ptrs)))


ADDRESS_LIMIT = 1 << 56
KEPT_PATHS = ("[heap]", "[stack]", "[vdso]", "[vvar]", "/dev/zero")


def redact(meta: dict[str, Any], columns: Columns) -> None:
    """Take names out, and move each process by its own random number of whole tables."""
    pmd = columns.geometry.pmd_size
    meta.update(hostname=None, version=None)
    meta["swaps"] = re.sub(r"(?m)^(?!Filename)\S+", "-", meta["swaps"] or "")
    shifts = array("q")
    if "deep" in meta:
        meta["deep"]["address"] = 0
    for process in meta["processes"]:
        process.update(comm=None, cmdline=None, exe=None, cgroup=None)
        process["status"].pop("Name", None)
        process["status"].pop("Uid", None)
        if process["memcg"]:
            process["memcg"]["path"] = None
        vmas = [vma for vma in process["vmas"] if vma["end"] <= ADDRESS_LIMIT]
        low = vmas[0]["start"] // pmd
        high = -(-vmas[-1]["end"] // pmd)
        shift = (1 + SystemRandom().randrange(ADDRESS_LIMIT // pmd - (high - low) - 1) - low) * pmd
        shifts.append(shift)
        for vma in vmas:
            path = vma["path"]
            if path not in KEPT_PATHS:
                vma["path"] = "[anon]" if path.startswith("[anon:") else ""
            vma.update(start=vma["start"] + shift, end=vma["end"] + shift)
            vma.update(dev="00:00", inode=0, offset=0)
        process["vmas"] = vmas
        for of, name in ((process, "pins"), (process.get("deep", {}), "empty_tables")):
            if name in of:
                of[name] = [[start + shift, end + shift] for start, end in of[name]]
    for k, index in enumerate(columns.process):
        columns.address[k] += shifts[index]
