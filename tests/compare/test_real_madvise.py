# SPDX-License-Identifier: GPL-2.0-or-later
"""MADV_COLLAPSE by the kernel that runs here, on a child's own memory, against the engine.

Each range is a mapping of its own in a state of its own; a snapshot is taken, then the child asks
the kernel, and the engine is asked for the same ranges of the snapshot.
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mthp.image.capture import command as capture
from mthp.image.snapshot import load
from mthp.predict.madvise import run_madvise
from mthp.predict.outcome import Request
from mthp.words.profiles import profile_for_release
from mthp.worlds.build import BuiltWorld, build_world
from tests.image.children import PRELUDE, asleep

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
at = area("across a gap", 3); write(at, 0, 3 * 512)
libc.munmap(ctypes.c_void_p(at + TABLE), ctypes.c_size_t(TABLE))
at = area("ends in a gap", 2); write(at, 0, 2 * 512)
libc.munmap(ctypes.c_void_p(at + TABLE), ctypes.c_size_t(TABLE))
at = area("begins in a gap", 2); write(at, 0, 2 * 512)
libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(TABLE))
at = area("two mappings", 2); write(at, 0, 2 * 512)
libc.mprotect(ctypes.c_void_p(at + TABLE), TABLE, 1)
at = area("stops at one advised not to", 3); write(at, 0, 3 * 512)
advise(at + TABLE, TABLE, MADV_NOHUGEPAGE)
at = area("goes on behind a hole, not behind a mapping", 4); write(at, 0, 512); write(at, 1024, 512)
libc.mprotect(ctypes.c_void_p(at + 3 * TABLE), TABLE, 1)
ranges["within a table"] = (area("within a table"), 100 * PAGE); write(ranges["within a table"][0], 0, 512)
ranges["not on a page"] = (area("not on a page") + 1, TABLE)
ranges["a length that is no page"] = (area("a length that is no page"), TABLE - 1)
write(ranges["a length that is no page"][0], 0, 512)
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
answers, huge = {}, {}
for asked in sys.stdin:
    for name in json.loads(asked):
        ctypes.set_errno(0)
        ok = advise(*ranges[name], MADV_COLLAPSE)
        answers[name] = 0 if ok else -ctypes.get_errno()
    print(json.dumps(answers), flush=True)
for line in open("/proc/self/smaps"):
    word = line.split()
    if "-" in word[0] and not word[0].endswith(":"):
        low, high = (int(x, 16) for x in word[0].split("-"))
    elif word[0] == "AnonHugePages:":
        for name, (at, size) in ranges.items():
            if low < at + size and at < high:
                huge[name] = huge.get(name, 0) + int(word[1]) // 2048
print(json.dumps(huge), flush=True)
os.kill(child, signal.SIGKILL)
"""


@contextmanager
def process() -> Iterator[tuple[subprocess.Popen[str], dict[str, list[int]]]]:
    """A child in its states, to be asked for its ranges, and these: address and length by name."""
    command = [sys.executable, "-c", PRELUDE + RANGES]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:
        assert p.stdin is not None and p.stdout is not None
        try:
            ranges = json.loads(p.stdout.readline())
            asleep(p.pid)
            yield p, ranges
        finally:
            p.stdin.close()
            p.kill()
            p.stdout.close()


def kernel(
    p: subprocess.Popen[str], ours: dict[str, tuple[int | None, int]]
) -> dict[str, tuple[int, int]]:
    """What this kernel answers the child for each range, and the windows that are huge then.

    EAGAIN is for what may pass: another CPU held one of the pages just then. Where the engine
    says otherwise, the child asks again, as madvise(2) tells it to.
    """
    assert p.stdin is not None and p.stdout is not None
    asked = list(ours)
    for _ in range(20):
        p.stdin.write(json.dumps(asked) + "\n")
        p.stdin.flush()
        answers = json.loads(p.stdout.readline())
        asked = [n for n in ours if answers[n] == -errno.EAGAIN != ours[n][0]]
        if not asked:
            break
    p.stdin.close()
    huge = json.loads(p.stdout.readline())
    return {name: (answers[name], huge.get(name, 0)) for name in ours}


def engine(world: BuiltWorld, ranges: dict[str, list[int]]) -> dict[str, tuple[int | None, int]]:
    """MADV_COLLAPSE of the ranges in a world: what it returns, and the windows that are huge then."""
    (mm,) = world.kernel.mms
    asked = [(mm, at, at + size) for at, size in ranges.values()]
    outcome = run_madvise(world, Request("", "", ""), asked)
    return {
        name: (call.error and -call.error, call.collapsed + call.already_huge)
        for name, call in zip(ranges, outcome.ranges, strict=True)
    }


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
    with process() as (child, ranges):
        assert capture.main(["--pid", str(child.pid), "-o", str(file), "--quiet"]) == 0
        snapshot = load(file)
        world = build_world(snapshot, profile_for_release(snapshot.kernel))
        ours = engine(world, ranges)
        real = kernel(child, ours)
    assert {n: (real[n], ours[n]) for n in ranges if real[n] != ours[n]} == {}
    assert {0, -errno.EINVAL, -errno.ENOMEM} <= {code for code, _ in real.values()}
