# SPDX-License-Identifier: GPL-2.0-or-later
"""Real processes with known page tables, for the capture tests."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = 4096
TABLE = 2 << 20

PRELUDE = """
import ctypes, json, mmap, os, signal, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
PAGE, TABLE = 4096, 2 << 20
MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE, MADV_NOHUGEPAGE = 4, 8, 14, 15
MADV_COLLAPSE, MADV_GUARD_INSTALL = 25, 102

def reserve(size, align=TABLE, prot=3, flags=0x4022, fd=-1):
    "A mapping at a multiple of align; NORESERVE, private and anonymous by default."
    at = libc.mmap(None, size + align, 0, 0x4022, -1, 0)
    libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(size + align))
    at = -(-at // align) * align
    got = libc.mmap(at, size, prot, flags | 0x10, fd, 0)
    assert got == at, (hex(at), got, ctypes.get_errno())
    return at

def advise(at, size, what):
    "Whether madvise worked."
    return libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(size), what) == 0

def write(at, index, count=1, step=1):
    for k in range(index, index + count * step, step):
        ctypes.memset(at + k * PAGE, 0x5A, 1)

def read(at, index, count=1):
    for k in range(index, index + count):
        ctypes.string_at(at + k * PAGE, 1)

def ready(**facts):
    print(json.dumps(facts), flush=True)
    sys.stdin.read()
    sys.exit(0)
"""


def asleep(pid: int) -> None:
    """Waits until the first thread of the process, and of all it forked, sleeps in ready().

    After it none of them touches a page, unless the script started threads that do.
    """
    task = Path(f"/proc/{pid}/task/{pid}")
    until = time.monotonic() + 60
    while (task / "stat").read_text().rsplit(")", 1)[1].split()[0] in "RD":
        assert time.monotonic() < until, "the child does not come to rest"
        time.sleep(0.001)
    for forked in (task / "children").read_text().split():
        asleep(int(forked))


class Child:
    def __init__(self, pid: int, facts: dict[str, int]) -> None:
        self.pid = pid
        self.facts = facts


@contextmanager
def child(script: str, *prefix: str) -> Iterator[Child]:
    """Runs the script until the with body ends; it must call ready(name=value...).

    prefix: a command to run it under (setpriv ...).
    """
    command = [*prefix, sys.executable, "-c", PRELUDE + script]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        line = process.stdout.readline()
        try:
            assert line, f"the child failed: {process.wait()}"
            asleep(process.pid)
            yield Child(process.pid, json.loads(line))
        finally:
            process.stdin.close()
            process.kill()


MIXED = """
# B: pages shared with a forked child (first: what comes later is not shared), half of them
# written again by the parent
b = reserve(TABLE)
advise(b, TABLE, MADV_NOHUGEPAGE)
write(b, 0, 64)
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
write(b, 32, 32)
# A: six tables: sparse writes, zero pages, holes, a hole of a whole table, guards, a neighbour
a = reserve(6 * TABLE)
advise(a, 6 * TABLE, MADV_NOHUGEPAGE)
write(a, 0, 16)
write(a, 20, 100, 2)
read(a, 300, 7)
write(a, 400, 20)
advise(a + 405 * PAGE, 3 * PAGE, MADV_DONTNEED)
write(a, 512, 512)
write(a, 3 * 512 + 511, 2)
guard = advise(a + 5 * TABLE, 4 * PAGE, MADV_GUARD_INSTALL)
# C: two small VMAs in one table, a private file mapping between them, of which half is written
c = reserve(TABLE)
libc.munmap(ctypes.c_void_p(c), ctypes.c_size_t(TABLE))
reserve_fixed = lambda at, size, fd=-1: libc.mmap(at, size, 3, 0x12 if fd >= 0 else 0x32, fd, 0)
assert reserve_fixed(c, 4 * PAGE) == c
fd = os.open(sys.executable, os.O_RDONLY)
assert reserve_fixed(c + 4 * PAGE, 4 * PAGE, fd) == c + 4 * PAGE
assert reserve_fixed(c + 8 * PAGE, 4 * PAGE) == c + 8 * PAGE
write(c, 0, 4)
write(c, 4, 2, 2)
read(c, 5, 3)
write(c, 8, 4)
# D: shared anonymous memory and /dev/zero
shared = mmap.mmap(-1, 8 * PAGE)
shared[:] = b"x" * (8 * PAGE)
zero = os.open("/dev/zero", os.O_RDWR)
d = reserve(TABLE, flags=0x4002, fd=zero)
write(d, 5, 3)
ready(a=a, b=b, c=c, d=d, guard=guard)
"""

HUGE = """
# one table mapped by a huge PMD, one of the same kind split, one small, one huge zero page
h = reserve(4 * TABLE)
advise(h, 2 * TABLE, MADV_HUGEPAGE)
advise(h + 2 * TABLE, TABLE, MADV_NOHUGEPAGE)
advise(h + 3 * TABLE, TABLE, MADV_HUGEPAGE)
write(h, 0, 1024)
advise(h, 2 * TABLE, MADV_COLLAPSE)
advise(h + TABLE + 7 * PAGE, PAGE, MADV_DONTNEED)
write(h, 1024, 512)
read(h, 3 * 512, 1)
advise(h, 4 * TABLE, MADV_NOHUGEPAGE)  # khugepaged leaves it alone
smaps = open("/proc/self/smaps").read()
ready(h=h, huge=sum(int(l.split()[1]) for l in smaps.splitlines() if "AnonHuge" in l))
"""

SPARSE = """
s = reserve(1 << 40)
advise(s, 1 << 40, MADV_NOHUGEPAGE)
for k in range(64):
    write(s + (k << 34), 3, 2)
ready(s=s)
"""

UFFD = """
import fcntl, struct
u = reserve(TABLE)
advise(u, TABLE, MADV_NOHUGEPAGE)
write(u, 0, 200)
fd = libc.syscall(323, 1)
ok = 0
if fd >= 0:
    api = bytearray(struct.pack("<QQQ", 0xAA, 1, 0))
    register = bytearray(struct.pack("<QQQQ", u, TABLE, 2, 0))
    protect = bytearray(struct.pack("<QQQ", u + 16 * PAGE, 32 * PAGE, 1))
    try:
        for code, data in ((0xC018AA3F, api), (0xC020AA00, register), (0xC018AA06, protect)):
            fcntl.ioctl(fd, code, data)
        ok = 1
    except OSError:
        pass
ready(u=u, ok=ok)
"""
