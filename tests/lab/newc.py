# SPDX-License-Identifier: GPL-2.0-or-later
"""A reader of "newc" archives, as the kernel's early-userspace document describes them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class NewcEntry:
    path: str
    mode: int
    owner: tuple[int, int]
    inode: int
    data: bytes


def entries(archive: bytes) -> list[NewcEntry]:
    """What it holds, in order, without the entry that ends it."""
    at = 0
    found: list[NewcEntry] = []
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        inode, mode, uid, gid, size, name = (*numbers[:4], numbers[6], numbers[11])
        path = archive[at + 110 : at + 109 + name].decode()
        at += -(-(110 + name) // 4) * 4
        if path == "TRAILER!!!":
            return found
        found.append(NewcEntry(path, mode, (uid, gid), inode, archive[at : at + size]))
        at += -(-size // 4) * 4


def unpack(archive: bytes, folder: Path) -> None:
    """Make its files, folders and links in a folder that is not there yet. Owners are not kept."""
    folder.mkdir()
    for entry in entries(archive):
        place = folder / entry.path
        if stat.S_ISLNK(entry.mode):
            place.symlink_to(os.fsdecode(entry.data))
        elif stat.S_ISDIR(entry.mode):
            place.mkdir()
        else:
            place.write_bytes(entry.data)
            place.chmod(stat.S_IMODE(entry.mode))
