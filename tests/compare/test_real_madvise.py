# SPDX-License-Identifier: GPL-2.0-or-later
"""MADV_COLLAPSE by the kernel that runs here, on a child's own memory, against the engine.

Each range is a mapping of its own in a state of its own; a snapshot is taken, then the child asks
the kernel, and the engine is asked for the same ranges of the snapshot.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mthp.image.capture import command as capture
from mthp.image.snapshot import load
from mthp.khugepaged.madvise import madvise_collapse
from mthp.mm.mm_types import Vma
from mthp.predict.measure import page_order
from mthp.words.profiles import profile_for_release
from mthp.worlds.build import BuiltWorld, build_world
from tests.image.children import PAGE, PRELUDE, TABLE

RELEASE = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
"""This kernel; no profile stands for what older ones did."""

RANGES = """
import fcntl, struct
MADV_COLLAPSE, MADV_PAGEOUT = 25, 21
ranges = {}
def area(name, tables=1, part=None):
    at = reserve((tables + 2) * TABLE) + TABLE          # an inaccessible table on either side
    libc.mmap(at - TABLE, TABLE, 0, 0x4032, -1, 0)
    libc.mmap(at + tables * TABLE, TABLE, 0, 0x4032, -1, 0)
    first, size = part or (0, tables * TABLE)
    ranges[name] = (at + first, size)
    return at

forked = area("shared by fork"); write(forked, 0, 512)
half = area("half unshared"); write(half, 0, 512)
child = os.fork()
if child == 0:
    signal.alarm(60)
    signal.pause()
write(half, 0, 256)
at = area("full"); write(at, 0, 512)
at = area("holes"); write(at, 0, 170, 3)
at = area("one page"); write(at, 77)
at = area("zero pages only"); read(at, 0, 512)
at = area("zero pages and others"); write(at, 0, 100); read(at, 100, 200)
at = area("untouched")
at = area("no table", 2, (TABLE, TABLE)); write(at, 0, 5)
at = area("two tables, one missing", 2); write(at, 0, 512)
at = area("two tables", 2); write(at, 0, 1024)
at = area("dropped again"); write(at, 0, 512); advise(at, TABLE, MADV_DONTNEED)
at = area("lazyfree"); write(at, 0, 512); advise(at, TABLE, MADV_FREE)
at = area("one lazyfree page"); write(at, 0, 512); advise(at + 9 * PAGE, PAGE, MADV_FREE)
at = area("lazyfree written again"); write(at, 0, 512); advise(at, TABLE, MADV_FREE); write(at, 0, 512)
at = area("inaccessible"); write(at, 0, 512); libc.mprotect(ctypes.c_void_p(at), TABLE, 0)
at = area("read-only"); write(at, 0, 512); libc.mprotect(ctypes.c_void_p(at), TABLE, 1)
at = area("advised not to"); write(at, 0, 512); advise(at, TABLE, MADV_NOHUGEPAGE)
at = area("too short", 1, (PAGE, 100 * PAGE)); write(at, 0, 512)
at = area("guards"); write(at, 0, 512)
if not advise(at + 5 * PAGE, 3 * PAGE, MADV_GUARD_INSTALL): del ranges["guards"]
at = area("locked in memory"); write(at, 0, 512)
if libc.mlock(ctypes.c_void_p(at), TABLE): del ranges["locked in memory"]
at = area("huge already"); write(at, 0, 512); advise(at, TABLE, MADV_COLLAPSE)
at = area("huge, then split"); write(at, 0, 512); advise(at, TABLE, MADV_COLLAPSE)
libc.mprotect(ctypes.c_void_p(at + 8 * PAGE), PAGE, 1); libc.mprotect(ctypes.c_void_p(at + 8 * PAGE), PAGE, 3)
at = area("huge, a page dropped"); write(at, 0, 512); advise(at, TABLE, MADV_COLLAPSE)
advise(at + 8 * PAGE, PAGE, MADV_DONTNEED)
fd = libc.syscall(323, 1)
if fd >= 0:
    fcntl.ioctl(fd, 0xC018AA3F, bytearray(struct.pack("<QQQ", 0xAA, 1, 0)))
    def armed(name, pages, protect):
        at = area(name); write(at, 0, pages)
        fcntl.ioctl(fd, 0xC020AA00, bytearray(struct.pack("<QQQQ", at, TABLE, 2, 0)))
        if protect:
            data = struct.pack("<QQQ", at + 16 * PAGE, protect * PAGE, 1)
            fcntl.ioctl(fd, 0xC018AA06, bytearray(data))
    try:
        armed("userfaultfd, full", 512, 0)
        armed("userfaultfd, holes", 500, 0)
        armed("userfaultfd, write-protected", 512, 32)
    except OSError:
        ranges = {name: r for name, r in ranges.items() if "userfaultfd" not in name}
print(json.dumps(ranges), flush=True)
sys.stdin.readline()
answers = {}
for name, (at, size) in ranges.items():
    ctypes.set_errno(0)
    ok = advise(at, size, MADV_COLLAPSE)
    answers[name] = 0 if ok else -ctypes.get_errno()
huge = {}
for line in open("/proc/self/smaps"):
    word = line.split()
    if "-" in word[0] and not word[0].endswith(":"):
        low, high = (int(x, 16) for x in word[0].split("-"))
    elif word[0] == "AnonHugePages:":
        for name, (at, size) in ranges.items():
            if low <= at < high:
                huge[name] = int(word[1]) // 2048
print(json.dumps([answers, huge]), flush=True)
os.kill(child, signal.SIGKILL)
"""


@contextmanager
def process() -> Iterator[tuple[int, dict[str, list[int]], Any]]:
    """A child in its states: its pid, its ranges, and a call that makes it ask the kernel."""
    command = [sys.executable, "-c", PRELUDE + RANGES]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:
        assert p.stdin is not None and p.stdout is not None
        try:
            yield p.pid, json.loads(p.stdout.readline()), lambda: _ask(p)
        finally:
            p.stdin.close()
            p.kill()
            p.stdout.close()


def _ask(p: subprocess.Popen[str]) -> Any:
    assert p.stdin is not None and p.stdout is not None
    p.stdin.write("\n")
    p.stdin.flush()
    return json.loads(p.stdout.readline())


def engine(world: BuiltWorld, start: int, size: int) -> tuple[int, int]:
    """MADV_COLLAPSE of the range in a world: errno, and huge PMDs of its VMA afterwards."""
    vma: Vma = next(vma for vma in world.vmas if vma.vm_start <= start < vma.vm_end)
    answer = madvise_collapse(vma, start, start + size)
    first = vma.vm_start // TABLE * TABLE
    huge = 0
    for table in range(first, vma.vm_end, TABLE):
        pages = [page_order(vma, table + k * PAGE) for k in (0, 1, 511)]
        huge += all(order == 9 for order in pages) and _huge(vma, table)
    return answer, huge


def _huge(vma: Vma, address: int) -> bool:
    from mthp.mm.pgtable import pmd_ptr
    from mthp.mm.pgtable_types import pmd_is_table

    pmd = pmd_ptr(vma.vm_mm, address)
    return pmd is not None and not pmd_is_table(pmd.page.pmds.raw[pmd.slot])


@pytest.mark.root
@pytest.mark.skipif(
    RELEASE < (6, 18), reason="kernels before 6.18 also refuse tables without a writable PTE"
)
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no THP on this host"
)
def test_madvise_collapse_of_this_kernel(tmp_path: Path) -> None:
    file = tmp_path / "child.npz"
    with process() as (pid, ranges, ask):
        assert capture.main(["--pid", str(pid), "-o", str(file), "--quiet"]) == 0
        answers, huge = ask()
    snapshot = load(file)
    world = build_world(snapshot, profile_for_release(snapshot.kernel))
    real = {name: (answers[name], huge.get(name, 0)) for name in ranges}
    ours = {name: engine(world, at, size) for name, (at, size) in ranges.items()}
    assert {n: (real[n], ours[n]) for n in ranges if real[n] != ours[n]} == {}
    assert {0, -22} <= {code for code, _ in real.values()}
