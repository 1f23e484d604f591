# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes cpio archives in the "newc" format, which the kernel unpacks as an initramfs.

The same entries give the same bytes: times are 0, inodes counted from 1.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_BLOCK = 512
_MOST_BYTES = 0xFFFF_FFFF

Owner = tuple[int, int]
"""A user's number and a group's."""


class Cpio:
    """An archive; entries are in the order in which they were added, directories before their contents."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes | Path, Owner]] = {}

    def add(self, path: str, data: bytes | Path, mode: int = 0o644, owner: Owner = (0, 0)) -> None:
        """Add a plain file. data: its bytes, or a file to read them from when the archive is written.
        mode: its permission bits. ValueError as in add_dir()."""
        self._add(path, stat.S_IFREG | mode, data, owner)

    def add_link(self, path: str, target: str) -> None:
        """Add a symbolic link. ValueError as in add_dir()."""
        self._add(path, stat.S_IFLNK | 0o777, os.fsencode(target), (0, 0))

    def add_dir(self, path: str, mode: int = 0o755, owner: Owner = (0, 0)) -> None:
        """Add a directory; missing parents are added too, with mode 0755.

        ValueError: the path is already there, or leads out of the archive.
        """
        self._add(path, stat.S_IFDIR | mode, b"", owner)

    def write(self, file: IO[bytes]) -> None:
        """Write the archive, padded to a multiple of 512 bytes. ValueError: one of the files is larger
        than such an archive can hold. OSError: it cannot be read."""
        size = 0
        for record in self._records():
            size += file.write(record)
        file.write(bytes(-size % _BLOCK))

    def _records(self) -> Iterator[bytes]:
        for inode, (path, (mode, data, owner)) in enumerate(self._entries.items(), 1):
            held = data if isinstance(data, bytes) else data.read_bytes()
            if len(held) > _MOST_BYTES:
                raise ValueError(f"{path}: larger than a newc archive can hold")
            yield _record(path, mode, held, inode, owner)
        yield _record(_TRAILER, 0, b"", 0, (0, 0))

    def _add(self, path: str, mode: int, data: bytes | Path, owner: Owner) -> None:
        name = _checked(path)
        if name in self._entries:
            raise ValueError(f"{path}: already in the archive")
        above = name.rpartition("/")[0]
        if above and above not in self._entries:
            self.add_dir(above)
        elif above and not stat.S_ISDIR(self._entries[above][0]):
            raise ValueError(f"{path}: {above} is not a directory")
        self._entries[name] = (mode, data, owner)


def _checked(path: str) -> str:
    name = path.strip("/")
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{path!r}: not a path inside the archive")
    if name == _TRAILER:
        raise ValueError(f"{path!r}: the name that ends the archive")
    return name


def _record(path: str, mode: int, data: bytes, inode: int, owner: Owner) -> bytes:
    name = os.fsencode(path) + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    numbers = (inode, mode, *owner, links, 0, len(data), 0, 0, 0, 0, len(name), 0)
    head = _MAGIC + b"".join(b"%08X" % number for number in numbers)
    return _padded(head + name, 4) + _padded(data, 4)


def _padded(data: bytes, unit: int) -> bytes:
    return data + bytes(-len(data) % unit)
