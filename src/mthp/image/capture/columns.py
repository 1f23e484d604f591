# SPDX-License-Identifier: GPL-2.0-or-later
"""The arrays of the file while it is made, redacted on demand, and the file itself.

docs/snapshot-format.md describes it.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import sys
import zipfile
from array import array
from itertools import chain
from random import SystemRandom
from typing import IO, Any, Iterable, Iterator, Tuple

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


class Columns:
    """The table rows of the file, spooled on disk one file a member, so that memory stays small."""

    def __init__(self, geometry: Geometry, folder: str | None, members: list[str]) -> None:
        self.geometry = geometry
        self.address: array[int] = array("Q")
        self.process: array[int] = array("H")
        self.files: dict[str, IO[bytes]] = {name: spooled(folder) for name in members}
        self.torn = bytearray()

    def add(self, process: int, addresses: list[int], parts: dict[str, bytes]) -> None:
        """Append tables; parts: their data for each member."""
        for name, data in parts.items():
            self.files[name].write(data)
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
            file.seek(rows * self.geometry.ptrs_per_pte * WIDTH[name])
            file.truncate()
        del self.address[rows:], self.process[rows:], self.torn[rows:]

    def row(self, name: str, k: int) -> bytes:
        """The bytes of one table in one column."""
        size = self.geometry.ptrs_per_pte * WIDTH[name]
        self.files[name].seek(k * size)
        return self.files[name].read(size)

    def patch(self, name: str, k: int, data: bytes) -> None:
        """Replace the bytes of one table in one column."""
        self.files[name].seek(k * len(data))
        self.files[name].write(data)

    def chunks(self, name: str) -> Iterator[bytes]:
        """All of one column, some of it at a time."""
        self.files[name].seek(0)
        while True:
            chunk = self.files[name].read(1 << 20)
            if not chunk:
                return
            yield chunk

    def rewind(self) -> None:
        """Go back to the end, to append again."""
        for file in self.files.values():
            file.seek(0, os.SEEK_END)


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
    document = json.dumps(meta, ensure_ascii=True, separators=(",", ":")).encode()
    first: ArrayMember = ("meta", "|u1", (len(document),), [document])
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, True, level) as archive:
        for name, kind, shape, chunks in chain([first], arrays):
            # A ZipInfo of our own would not be compressed as the archive says.
            with archive.open(name + ".npy", "w", force_zip64=math.prod(shape) > 1 << 27) as file:
                file.write(npy_header(kind, shape))
                for chunk in chunks:
                    file.write(chunk)


def write_file(target: IO[bytes], meta: dict[str, Any], columns: Columns, level: int) -> None:
    """Write a capture's .npz: its document, and every column."""
    rows, ptrs = len(columns.address), columns.geometry.ptrs_per_pte
    arrays: list[ArrayMember] = [
        ("table_address", "u8", (rows,), [columns.address.tobytes()]),
        ("table_process", "u2", (rows,), [columns.process.tobytes()]),
        ("table_torn", "|u1", (rows,), [bytes(columns.torn)]),
    ]
    arrays += [
        (name, TYPE[WIDTH[name]], (rows, ptrs), columns.chunks(name)) for name in columns.files
    ]
    write_arrays(target, meta, arrays, level)


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
