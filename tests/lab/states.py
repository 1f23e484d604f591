# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes in a guest what only a deep capture shows: a table of each state, at addresses that are known.

It runs there alone, as root; tests/lab/test_deep.py has what must be found.
"""

from __future__ import annotations

import ctypes
import os
import time

BASE, EACH, TABLE, PAGE = 0x1000_0000_0000, 4 << 20, 2 << 20, 4096
WRITTEN, COLD, FREED, SPLICED, HUGE, HALF, FOLIOS, READ, UNTOUCHED, EMPTIED, ZEROS = range(11)
SIZES = "/sys/kernel/mm/transparent_hugepage/hugepages-%dkB/enabled"
DONTNEED, FREE, COLD_ADVICE = 4, 8, 20
READY = "/tmp/ready"
THP_DISABLE, EXCEPT_ADVISED = 41, 2


class _Buffer(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


def main() -> None:
    """Make the states, and then sleep."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def table(which: int) -> int:
        at = BASE + which * EACH
        assert libc.mmap(at, TABLE, 3, 0x100022, -1, 0) == at
        return at

    def write(at: int, size: int = TABLE) -> None:
        for page in range(at, at + size, PAGE):
            ctypes.memset(page, 1, 1)

    def child() -> bool:
        return os.fork() == 0

    def enable(kib: int, value: str) -> None:
        with open(SIZES % kib, "w", encoding="ascii") as file:
            file.write(value)

    libc.prctl(THP_DISABLE, 0, 0, 0, 0)
    if child():
        time.sleep(10_000)
    for which in (WRITTEN, COLD, FREED, SPLICED):
        write(table(which))
    at = table(ZEROS)
    write(at)
    for page in range(at, at + TABLE, 2 * PAGE):
        ctypes.memset(page, 0, 1)
    ctypes.memset(at + PAGE - 1, 1, 1)
    libc.madvise(BASE + COLD * EACH, TABLE, COLD_ADVICE)
    libc.madvise(BASE + FREED * EACH, TABLE, FREE)
    _, pipe = os.pipe()
    buffer = _Buffer(BASE + SPLICED * EACH, 3 * PAGE)
    assert libc.vmsplice(pipe, ctypes.byref(buffer), 1, 0) == 3 * PAGE
    enable(2048, "always")
    write(table(HUGE))
    half = table(HALF)
    write(half)
    libc.madvise(half + TABLE // 2, TABLE // 2, DONTNEED)
    enable(2048, "never")
    enable(64, "always")
    write(table(FOLIOS))
    enable(64, "never")
    at = table(READ)
    sum(ctypes.c_char.from_address(page).value[0] for page in range(at, at + TABLE, PAGE))
    table(UNTOUCHED)
    ctypes.memset(table(EMPTIED), 1, 1)
    libc.madvise(BASE + EMPTIED * EACH, PAGE, DONTNEED)
    done, tell = os.pipe()
    if child():
        if not child():
            libc.prctl(THP_DISABLE, 1, EXCEPT_ADVISED, 0, 0)
        os.write(tell, b".")
        time.sleep(10_000)
    for _ in range(2):
        os.read(done, 1)
    os.mkdir(READY)
    time.sleep(10_000)


if __name__ == "__main__":
    main()
