# SPDX-License-Identifier: GPL-2.0-or-later
"""In the guest: registers stopped processes with khugepaged without changing their memory.

A process registers when a mapping of its own becomes eligible. So each is made to call mmap(),
madvise(MADV_HUGEPAGE) and munmap() on a scratch range far from its memory, by ptrace, and is never
continued afterwards.

Kernel: mm/madvise.c, madvise_vma_behavior(); mm/khugepaged.c, khugepaged_enter_vma().
"""

from __future__ import annotations

import ctypes
import os
import re
import sys

PTRACE_GETREGS, PTRACE_SETREGS, PTRACE_SINGLESTEP = 12, 13, 9
PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4206, 0x4207
WALL = 0x40000000
MMAP, MUNMAP, MADVISE = 9, 11, 28
SCRATCH, SIZE = 0x10_0000_0000, 4 << 20
READ_WRITE, PRIVATE_FIXED_NOREPLACE = 3, 0x100022
HUGEPAGE = 14
SYSCALL = b"\x0f\x05"
WORDS = 27
"""struct user_regs_struct of x86-64, in words of 8 bytes; below, where registers stand in it."""
STEPS = 10
"""Single steps to try: a stopped process may report more than once that it is stopped."""
R10, R9, R8, RAX, RDX, RSI, RDI, ORIG_RAX, RIP = 7, 8, 9, 10, 12, 13, 14, 15, 16

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request: int, pid: int, data: object = None) -> None:
    """Call ptrace(2). OSError: it failed."""
    if libc.ptrace(request, pid, None, data) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace request {request:#x} of {pid}: {os.strerror(error)}")


def syscall_address(pid: int) -> int:
    """Find a `syscall` instruction of the process, in its vdso."""
    with open(f"/proc/{pid}/maps", encoding="ascii", errors="replace") as maps:
        for line in maps:
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) .*\[vdso\]", line)
            if found:
                start, end = int(found[1], 16), int(found[2], 16)
                with open(f"/proc/{pid}/mem", "rb") as memory:
                    memory.seek(start)
                    return start + memory.read(end - start).index(SYSCALL)
    raise OSError(0, f"{pid} has no vdso")


def call(pid: int, at: int, number: int, *arguments: int) -> int:
    """Have the process make a system call; returns its result. OSError: it cannot be made to."""
    before = (ctypes.c_uint64 * WORDS)()
    ptrace(PTRACE_GETREGS, pid, before)
    regs = type(before).from_buffer_copy(before)
    for place, value in zip((RDI, RSI, RDX, R10, R8, R9), (*arguments, 0, 0, 0)):  # noqa: B905
        regs[place] = value
    regs[RAX], regs[ORIG_RAX], regs[RIP] = number, 2**64 - 1, at
    ptrace(PTRACE_SETREGS, pid, regs)
    for _ in range(STEPS):
        ptrace(PTRACE_SINGLESTEP, pid)
        os.waitpid(pid, WALL)
        ptrace(PTRACE_GETREGS, pid, regs)
        if regs[RIP] == at + len(SYSCALL):
            break
    ptrace(PTRACE_SETREGS, pid, before)
    if regs[RIP] != at + len(SYSCALL):
        raise OSError(0, f"{pid} makes no system call when told to")
    return ctypes.c_int64(regs[RAX]).value


def register(pid: int) -> None:
    """Register one stopped process. OSError: it cannot be done."""
    at = syscall_address(pid)
    ptrace(PTRACE_SEIZE, pid)
    ptrace(PTRACE_INTERRUPT, pid)
    os.waitpid(pid, WALL)
    no_file = 2**64 - 1
    place = call(pid, at, MMAP, SCRATCH, SIZE, READ_WRITE, PRIVATE_FIXED_NOREPLACE, no_file)
    if place != SCRATCH:
        raise OSError(-place, f"{pid} cannot map {SCRATCH:#x}: {place}")
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(SCRATCH)
        memory.write(b"1")
    advised = call(pid, at, MADVISE, SCRATCH, SIZE, HUGEPAGE)
    call(pid, at, MUNMAP, SCRATCH, SIZE)
    ptrace(PTRACE_DETACH, pid)
    if advised:
        raise OSError(-advised, f"{pid}: madvise: {os.strerror(-advised)}")


def main(pids: list[str]) -> int:
    """Register these processes in that order, and return an exit status."""
    try:
        for pid in pids:
            register(int(pid))
    except OSError as error:
        print(f"register: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0
