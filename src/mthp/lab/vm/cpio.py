# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes cpio archives in the "newc" format, which the kernel unpacks as an initramfs.

The same entries give the same bytes: times are 0, owners root, inodes counted from 1.
"""

from __future__ import annotations

import stat

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_BLOCK = 512
_MOST_BYTES = 0xFFFF_FFFF


class Cpio:
    """An archive; entries are in the order in which they were added, directories before their contents."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes]] = {}

    def add(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a plain file. mode: its permission bits. ValueError as in add_dir()."""
        if len(data) > _MOST_BYTES:
            raise ValueError(f"{path}: larger than a newc archive can hold")
        self._add(path, stat.S_IFREG | mode, data)

    def add_dir(self, path: str, mode: int = 0o755) -> None:
        """Add a directory; missing parents are added too, with mode 0755.

        ValueError: the path is already there, or leads out of the archive.
        """
        self._add(path, stat.S_IFDIR | mode, b"")

    def pack(self) -> bytes:
        """The archive's bytes, padded to a multiple of 512."""
        out = bytearray()
        for inode, (path, (mode, data)) in enumerate(self._entries.items(), 1):
            out += _record(path, mode, data, inode)
        out += _record(_TRAILER, 0, b"", 0)
        return _padded(bytes(out), _BLOCK)

    def _add(self, path: str, mode: int, data: bytes) -> None:
        name = _checked(path)
        if name in self._entries:
            raise ValueError(f"{path}: already in the archive")
        above = name.rpartition("/")[0]
        if above and above not in self._entries:
            self.add_dir(above)
        elif above and not stat.S_ISDIR(self._entries[above][0]):
            raise ValueError(f"{path}: {above} is not a directory")
        self._entries[name] = (mode, data)


def _checked(path: str) -> str:
    name = path.strip("/")
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{path!r}: not a path inside the archive")
    if name == _TRAILER:
        raise ValueError(f"{path!r}: the name that ends the archive")
    return name


def _record(path: str, mode: int, data: bytes, inode: int) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    numbers = (inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name), 0)
    head = _MAGIC + b"".join(b"%08X" % number for number in numbers)
    return _padded(head + name, 4) + _padded(data, 4)


def _padded(data: bytes, unit: int) -> bytes:
    return data + bytes(-len(data) % unit)
