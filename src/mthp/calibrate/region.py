# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory of our own to measure with: an anonymous mapping, and the system calls on it."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
from numpy.typing import NDArray

PAGE: Final = mmap.PAGESIZE
MADV_DONTNEED: Final = 4
MADV_HUGEPAGE: Final = 14
MADV_NOHUGEPAGE: Final = 15
MADV_COLLAPSE: Final = 25

_libc = ctypes.CDLL(None, use_errno=True)
for _call in (_libc.madvise, _libc.mprotect):
    _call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.vmsplice.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
_libc.vmsplice.restype = ctypes.c_ssize_t


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _done(result: int) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


class Region:
    """`size` bytes of private anonymous memory, aligned to `align`. OSError: a call on it failed."""

    def __init__(self, size: int, align: int) -> None:
        self.size = size
        self._map = mmap.mmap(-1, size + align, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        every = np.frombuffer(self._map, np.uint8)
        skip = -every.ctypes.data % align
        self.bytes: NDArray[np.uint8] = every[skip : skip + size]
        self.address = every.ctypes.data + skip

    def advise(self, advice: int, start: int = 0, size: int | None = None) -> None:
        """madvise() on [start, start + size), all of it unless told."""
        length = self.size - start if size is None else size
        _done(_libc.madvise(self.address + start, length, advice))

    def protect(self, *, writable: bool, size: int) -> None:
        """mprotect() of its first bytes, for reading alone or for writing too."""
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        _done(_libc.mprotect(self.address, size, access))

    def renew(self, pages: NDArray[np.intp] | None = None) -> None:
        """Unmap all of it, and map so many base pages anew by writing to each: all unless told."""
        self.advise(MADV_DONTNEED)
        self.advise(MADV_NOHUGEPAGE)
        if pages is None:
            self.bytes[::PAGE] = 1
        else:
            self.bytes[pages * PAGE] = 1
        self.advise(MADV_HUGEPAGE)

    @contextmanager
    def held(self, page: int) -> Iterator[None]:
        """Let a pipe hold a page, so that no collapse may take it."""
        reader, writer = os.pipe()
        try:
            vector = _Iovec(self.address + page * PAGE, 1)
            _done(_libc.vmsplice(writer, ctypes.byref(vector), 1, 0))
            yield
        finally:
            os.close(reader)
            os.close(writer)
