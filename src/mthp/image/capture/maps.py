# SPDX-License-Identifier: GPL-2.0-or-later
"""The mappings of a process, from maps and smaps.

Kernel: fs/proc/task_mmu.c.
"""

from __future__ import annotations

import errno
import re
from typing import Iterable, Iterator, NamedTuple

from mthp.image.capture.proc import gone, not_ours


class SmapsEntry(NamedTuple):
    """One entry of smaps; sizes in bytes. skipped: why its pages are not in the snapshot."""

    start: int
    end: int
    perms: str
    offset: int
    dev: str
    inode: int
    path: str
    flags: str
    sizes: dict[str, int]
    skipped: str | None

    @property
    def identity(self) -> tuple[int, int, str, int, str, int]:
        return (self.start, self.end, self.perms, self.offset, self.dev, self.inode)


SIZES = {
    b"Rss": "rss",
    b"Anonymous": "anonymous",
    b"Referenced": "referenced",
    b"Swap": "swap",
    b"AnonHugePages": "anon_huge",
    b"LazyFree": "lazyfree",
    b"Locked": "locked",
    b"THPeligible": "thp_eligible",
}


def why_skipped(perms: str, inode: int, path: str, flags: list[str]) -> str | None:
    """Why a VMA is not anonymous to the kernel; None if it is. Kernel: vma_is_anonymous()."""
    if "ht" in flags:
        return "hugetlb"
    if "pf" in flags or "io" in flags:
        return "device or pfn mapping"
    if path == "/dev/zero" and perms.endswith("p"):
        return None
    if inode or path.startswith("/"):
        return "file mapping" if perms.endswith("p") else "shared mapping"
    if path and not re.match(r"\[(heap|stack(:\d+)?|anon:.*)\]$", path):
        return "special mapping"
    return "shared mapping" if perms.endswith("s") else None


def parse_maps(lines: Iterable[bytes]) -> Iterator[SmapsEntry]:
    """VMAs from the lines of maps or smaps (from maps: without sizes and flags)."""
    head: list[str] = []
    sizes: dict[str, int] = {}
    flags = ""
    for line in lines:
        key, colon, value = line.partition(b":")
        if colon and b"-" not in key and b" " not in key:
            if key in SIZES:
                words = value.split()
                sizes[SIZES[key]] = int(words[0]) << (10 if len(words) > 1 else 0)
            elif key == b"VmFlags":
                flags = value.decode().strip()
            continue
        if head:
            yield _vma(head, sizes, flags)
        head, sizes, flags = line.decode("utf-8", "replace").rstrip("\n").split(None, 5), {}, ""
    if head:
        yield _vma(head, sizes, flags)


def _vma(head: list[str], sizes: dict[str, int], flags: str) -> SmapsEntry:
    start, _, end = head[0].partition("-")
    path = head[5] if len(head) > 5 else ""
    skipped = why_skipped(head[1], int(head[4]), path, flags.split())
    return SmapsEntry(
        int(start, 16), int(end, 16), head[1], int(head[2], 16), head[3], int(head[4]), path,
        flags, sizes, skipped,
    )  # fmt: skip


def read_vmas(pid: int, file: str) -> list[SmapsEntry]:
    """The VMAs of /proc/PID/maps or smaps; CaptureError where they cannot be read."""
    try:
        with open(f"/proc/{pid}/{file}", "rb") as lines:
            return list(parse_maps(lines))
    except PermissionError:
        raise not_ours(pid) from None
    except OSError as error:
        raise (gone(pid) if error.errno in (errno.ESRCH, errno.ENOENT) else error) from None
