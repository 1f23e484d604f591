# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a machine that was written to a file: as an ELF core, or as makedumpfile packs it.

Kernel: fs/proc/vmcore.c, Documentation/admin-guide/kdump/vmcoreinfo.rst; QEMU: dump/dump.c.
"""

from __future__ import annotations

import bisect
import os
import stat
from typing import NamedTuple, Protocol

from mthp.image.capture.kcore import Core, CoreError, KernelMemory
from mthp.image.capture.proc import USAGE, CaptureError
from mthp.image.vmcore.kdump import KdumpMemory, is_kdump
from mthp.image.vmcore.symbols import symbol
from mthp.words.streams import TOO_MANY_FILES

START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
"""Where the kernel's image is mapped. Kernel: Documentation/arch/x86/x86_64/mm.rst."""
_PAGE_SHIFT, _TABLE_SHIFT = 12, 9
_PAGE = 1 << _PAGE_SHIFT
_PRESENT, _LARGE = 1, 1 << 7
_FRAME = (1 << 52) - _PAGE
_MOST_KNOWN = 1 << 16
MOST_AT_ONCE = 64 << 20
"""No structure, nor what is read of several together, is larger."""
_ELF = b"\x7fELF"
_WORD = (1 << 64) - 1


class PhysicalMemory(Protocol):
    """What a file has of a machine's memory.

    vmcoreinfo: what its kernel says of itself. left_out: which pages were not written, said for people, or
    "". zeros: how many of these were read, and taken as zeros. has_contents: what processes keep in their
    pages is there, or was zeros."""

    vmcoreinfo: bytes
    left_out: str
    zeros: int
    has_contents: bool

    def read(self, address: int, size: int) -> bytes:
        """What is at a physical address; zeros of pages that were left out. CoreError: it is not there."""

    def close(self) -> None:
        """Close the file."""


class _Part(NamedTuple):
    """A range of physical addresses: up to filled it is in the file from offset on, and then zeros."""

    start: int
    end: int
    offset: int
    filled: int


class ElfMemory:
    """The physical memory that an ELF core has. file: a descriptor.

    Of addresses that two segments have, the one that begins first counts.
    """

    def __init__(self, file: int) -> None:
        self._core = Core(file)
        self.vmcoreinfo = "\n".join(f"{k}={v}" for k, v in self._core.info.items()).encode()
        self.left_out, self.zeros = "", 0
        self._parts: list[_Part] = []
        covered = 0
        for start, size, offset, there in sorted(self._core.loads):
            end, first = start + size, max(start, covered)
            if first < end:
                self._parts.append(
                    _Part(first, end, offset + first - start, max(start + there, first))
                )
                covered = end
            if there < size:
                self.left_out = "what kind it does not say"
        self.has_contents = not self.left_out

    def read(self, address: int, size: int) -> bytes:
        """As PhysicalMemory.read()."""
        found = []
        k = bisect.bisect_right(self._parts, (address, _WORD, 0, 0)) - 1
        while size:
            if (
                k < 0
                or k >= len(self._parts)
                or not (self._parts[k].start <= address < self._parts[k].end)
            ):
                raise CoreError(f"has no memory at the physical address {address:#x}")
            start, end, offset, filled = self._parts[k]
            here = min(size, end - address)
            there = max(0, min(here, filled - address))
            found.append(self._core.at(offset + address - start, there))
            if there < here:
                self.zeros += 1
                found.append(bytes(here - there))
            address, size, k = address + here, size - here, k + 1
        return b"".join(found)

    def close(self) -> None:
        """Close the file."""
        self._core.close()


class Dump(KernelMemory):
    """A kernel's memory by its own addresses, through its page tables, as a file has it by physical ones.

    CoreError: the file has no VMCOREINFO, or no page tables of the kernel's where that says they are.
    """

    def __init__(self, memory: PhysicalMemory) -> None:
        super().__init__()
        self.memory = memory
        self.add_info(memory.vmcoreinfo)
        if "OSRELEASE" not in self.info:
            raise CoreError(
                "has no VMCOREINFO, which says where things are (QEMU: -device vmcoreinfo, and the "
                "guest's module qemu_fw_cfg)"
            )
        self._encrypted = self.number("sme_mask") & _WORD
        self._levels = 5 if self.number("pgtable_l5_enabled") else 4
        top = symbol(self, "swapper_pg_dir") - START_KERNEL_MAP + self.number("phys_base")
        if top < 0 or top % _PAGE:
            raise CoreError("has a VMCOREINFO whose swapper_pg_dir is no page")
        self._top = top
        self._known: dict[int, tuple[int, int]] = {}

    @property
    def release(self) -> str:
        """The kernel's release."""
        return self.info["OSRELEASE"]

    def close(self) -> None:
        """Close the file."""
        self.memory.close()

    def physical(self, address: int, size: int) -> bytes:
        """As KernelMemory.physical()."""
        if not 0 <= size <= MOST_AT_ONCE:
            raise CoreError(
                f"would have {size} bytes at {address:#x}, which nothing is that is read"
            )
        return self.memory.read(address, size)

    def read(self, address: int, size: int) -> bytes:
        """As KernelMemory.read()."""
        if not 0 <= size <= MOST_AT_ONCE or not 0 <= address <= _WORD - size:
            raise CoreError(f"has nothing of {size} bytes at {address:#x}")
        parts = []
        while size:
            at, left = self._translated(address)
            here = min(size, left)
            parts.append(self.memory.read(at, here))
            address, size = address + here, size - here
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _translated(self, address: int) -> tuple[int, int]:
        """The physical address of one of the kernel's, and how many bytes from there on are contiguous."""
        for shift in (21, 12):
            found = self._known.get(address >> shift << 1 | (shift == 12))
            if found is not None:
                start, size = found
                return start + address % size, size - address % size
        table, shift = self._top, _PAGE_SHIFT + _TABLE_SHIFT * (self._levels - 1)
        while True:
            place = table + (address >> shift) % (1 << _TABLE_SHIFT) * 8
            entry = int.from_bytes(self.memory.read(place, 8), "little") & ~self._encrypted
            if not entry & _PRESENT:
                raise CoreError(f"has nothing at {address:#x}")
            if shift == _PAGE_SHIFT or entry & _LARGE:
                break
            table, shift = entry & _FRAME, shift - _TABLE_SHIFT
        size = min(1 << shift, 1 << 21)
        start = (entry & _FRAME & -1 << shift) + (address % (1 << shift) & -size)
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        bits = size.bit_length() - 1
        self._known[address >> bits << 1 | (bits == 12)] = start, size
        return start + address % size, size - address % size


def is_dump(path: str) -> bool:
    """Whether a file begins as a dump does, of whatever machine."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb", buffering=0) as file:
            start = file.read(64) or b""
    except (OSError, ValueError):  # whoever reads it says why
        return False
    return start.startswith(_ELF) or is_kdump(start)


def open_dump(path: str) -> Dump:
    """Open a dump. CaptureError (2): it is none that can be read, (5): it needs what is not installed."""
    file = -1
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise CoreError("is no regular file")
        memory: PhysicalMemory
        if is_kdump(os.pread(file, 64, 0)):
            memory = KdumpMemory(file, path)
        else:
            memory = ElfMemory(file)
        return Dump(memory)
    except BaseException as error:
        if file >= 0:
            os.close(file)
        if isinstance(error, CoreError):
            raise CaptureError(f"{path}: {error}", USAGE) from None
        if isinstance(error, OSError) and error.errno not in TOO_MANY_FILES:
            raise CaptureError(f"{path}: {error.strerror}", USAGE) from None
        raise
