# SPDX-License-Identifier: GPL-2.0-or-later
"""The members of an .npz file: told from its directory, and read no further than that says.

Read is what the capture writes (image/capture/columns.py) and what numpy.savez() does: stored or
deflated members, unsigned numbers in the order of C, headers of version 1.0.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mthp.words.files import FileError

_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '(?:([<>|])u([1248])|([ -&(-~]{1,20}))', 'fortran_order': (False|True), "
    rb"'shape': \((?:(\d{1,12}),(?: (\d{1,12}))?)?\), \} *\n"
)
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Member:
    """One array of the file. start: where it begins in the member, in bytes."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """The bytes of the array, unpacked."""
        return prod(self.shape) * self.dtype.itemsize


class Members:
    """The members of these names, measured and none of them read. FileError: the file is no such
    archive, or is damaged; OSError: it cannot be read."""

    def __init__(self, file: IO[bytes], names: Iterable[str], what: str = "snapshot") -> None:
        self._what = what
        try:
            self._archive = zipfile.ZipFile(file)
        except OSError:
            raise
        except Exception as error:  # of a damaged directory zipfile raises nearly anything
            raise FileError(f"not a {what}, or truncated ({error})") from None
        entries = self._archive.infolist()
        self._entries = {entry.filename.removesuffix(".npy"): entry for entry in entries}
        if len(self._entries) != len(entries):
            raise FileError(f"not a {what} (a member is there twice)")
        self.found = {name: self._measured(name) for name in names if name in self._entries}

    def _measured(self, name: str) -> Member:
        """Read a member's header, and hold the size in the directory against it."""
        with self._opened(name) as stream:
            start = stream.read(len(_MAGIC) + 2)
            length = int.from_bytes(start[-2:], "little")
            header = _HEADER.fullmatch(stream.read(length))
        if not start.startswith(_MAGIC) or header is None:
            raise FileError(f"member {name} is damaged (it does not begin as an array)")
        order, width, other, fortran, *shape = (part and part.decode() for part in header.groups())
        if other or fortran == "True":
            kind = other or "in Fortran's order"
            raise FileError(f"member {name} is {kind}, not unsigned numbers in the order of C")
        sizes = tuple(int(each) for each in shape if each)
        member = Member(name, np.dtype(f"{order}u{width}"), sizes, len(start) + length)
        declared = self._entries[name].file_size
        if declared != member.start + member.size:
            raise FileError(
                f"member {name} is damaged ({declared} bytes, and its header says "
                f"{member.start + member.size})"
            )
        return member

    @contextmanager
    def _opened(self, name: str) -> Iterator[IO[bytes]]:
        entry = self._entries[name]
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise FileError(f"member {name} is packed in a way that no {self._what} is")
        try:
            with self._archive.open(entry) as stream:
                yield stream
        except (FileError, OSError):
            raise
        except Exception as error:  # of a damaged member zipfile raises nearly anything
            why = str(error) or type(error).__name__
            raise FileError(f"member {name} is damaged ({why})") from None

    def rows(self, name: str) -> Iterator[NDArray[Any]]:
        """Read a member, some rows at a time."""
        member = self.found[name]
        width = max(1, prod(member.shape[1:]) * member.dtype.itemsize)
        step = max(1, _CHUNK // width) * width
        with self._opened(name) as stream:
            stream.read(member.start)
            for left in range(member.size, 0, -step):
                data = stream.read(min(step, left))
                yield np.frombuffer(data, member.dtype).reshape(-1, *member.shape[1:])
            stream.read(1)  # at the end the checksum is looked at

    def array(self, name: str) -> NDArray[Any]:
        """Read a whole member, in this machine's order of bytes."""
        member = self.found[name]
        whole = np.empty(member.shape, member.dtype.newbyteorder("="))
        at = 0
        for rows in self.rows(name):
            whole[at : at + len(rows)] = rows
            at += len(rows)
        return whole
