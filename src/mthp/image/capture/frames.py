# SPDX-License-Identifier: GPL-2.0-or-later
"""What root sees of the physical pages behind page tables.

Kernel: fs/proc/page.c (kpageflags, kpagecount).
"""

from __future__ import annotations

import bisect
import os
import re
import sys
from array import array
from typing import Iterator

from mthp.image.capture.pagemap import EVEN, FILE, PRESENT, ZERO, byte_of_word
from mthp.image.capture.proc import open_or_none
from mthp.words.units import Geometry

# /proc/kpageflags. Kernel: include/uapi/linux/kernel-page-flags.h.
KPF_ANON, KPF_HEAD, KPF_TAIL, KPF_THP, KPF_ZERO_PAGE = (1 << k for k in (12, 15, 16, 22, 24))
BROKEN = 255

_ANON_OF_PTE = bytes(pte & (PRESENT | ZERO | FILE) == PRESENT for pte in range(256))
_ANON_OF_FLAGS = bytes(value & KPF_ANON >> 8 != 0 for value in range(256))
_ANY = bytes(value != 0 for value in range(256))


def open_frames(path: str, known: int) -> int | None:
    """A descriptor of /proc/kpageflags or kpagecount; None where it says nothing even of a frame that is
    known to be mapped (0: none is known): it is masked, as in containers."""
    file = open_or_none(path) if known else None
    if file is not None and not any(os.pread(file, 8, 8 * known)):
        os.close(file)
        return None
    return file


class Frames:
    """kpageflags, kpagecount and folio orders of the frames that page tables point to.

    flags, counts: descriptors of the two files; None where kpagecount cannot be read. block: the PTEs of
    a table, and the frames of its largest folio.
    """

    def __init__(self, flags: int, counts: int | None, geometry: Geometry) -> None:
        self.flags = flags
        self.counts = counts
        self.block = geometry.ptrs_per_pte

    def close(self) -> None:
        """Close the files that are open."""
        for file in (self.flags, self.counts):
            if file is not None:
                os.close(file)

    def look_up(self, pfns: array[int]) -> tuple[bytes, bytes, bytes]:
        """Flags, mapcount and folio order of each PTE, as u64, u32 and u8; 0 where its pfn is 0.

        The order is BROKEN where heads and tails make no whole folio: it came or went meanwhile.
        A frame's three values travel as one 16-byte record, so that one look-up fetches them.
        """
        records = {0: bytes(16)}
        for block in self._blocks(pfns):
            first, packed = self._read_block(block)
            if 2 * len(block) > len(packed) // 16:
                block = list(range(first, first + len(packed) // 16))
            for pfn in block:
                k = 16 * (pfn - first)
                records[pfn] = packed[k : k + 16]
        found = b"".join(map(records.__getitem__, pfns))
        flags, counts = bytearray(8 * len(pfns)), bytearray(4 * len(pfns))
        for k in range(8):
            flags[k::8] = found[k::16]
        for k in range(4):
            counts[k::4] = found[8 + k :: 16]
        return bytes(flags), bytes(counts), found[12::16]

    def misfits(self, low: bytearray, flags: bytes, counts: bytes, orders: bytes) -> list[int]:
        """Which tables have PTEs (`low`) that cannot be so with what look_up() found of their frames:
        pagemap has a page as anonymous and its frame is not, nobody maps it, or its folio is BROKEN.
        """
        wanted = int.from_bytes(low.translate(_ANON_OF_PTE), "little")
        anon = flags[byte_of_word(1) :: 8].translate(_ANON_OF_FLAGS)
        wrong = wanted ^ int.from_bytes(anon, "little")
        if self.counts is not None:
            bits = 0
            for k in range(4):
                bits |= int.from_bytes(counts[k::4], "little")
            mapped = bits.to_bytes(len(low), "little").translate(_ANY)
            wrong |= wanted & ~int.from_bytes(mapped, "little")
        if not wrong and BROKEN not in orders:
            return []
        places, nr = wrong.to_bytes(len(low), "little"), self.block
        return [
            i // nr
            for i in range(0, len(low), nr)
            if 1 in places[i : i + nr] or BROKEN in orders[i : i + nr]
        ]

    def _blocks(self, pfns: array[int]) -> Iterator[list[int]]:
        """Yield the distinct frames, ascending, cut where a folio of PMD order would end."""
        distinct = sorted(set(pfns) - {0})
        at = 0
        while at < len(distinct):
            stop = distinct[at] - distinct[at] % self.block + self.block
            end = bisect.bisect_left(distinct, stop, at)
            yield distinct[at:end]
            at = end

    def _read_block(self, block: list[int]) -> tuple[int, bytes]:
        """Read one block: its first frame, and a record for that one and each that follows."""
        first, count = block[0], block[-1] - block[0] + 1
        flags = self._values(self.flags, first, count)
        if any(self._kinds(flags)):
            first, count = first - first % self.block, self.block
            flags = self._values(self.flags, first, count)
        orders = self._orders(flags, self._kinds(flags))
        counts = self._values(self.counts, first, count)
        low_half = range(4) if sys.byteorder == "little" else range(4, 8)
        packed = bytearray(16 * count)
        for k in range(8):
            packed[k::16] = flags[k::8]
        for at, k in enumerate(low_half):
            packed[8 + at :: 16] = counts[k::8]
        packed[12::16] = orders
        return first, bytes(packed)

    @staticmethod
    def _values(file: int | None, first: int, count: int) -> bytearray:
        data = bytearray(8 * count)
        if file is not None:
            os.preadv(file, [data], 8 * first)
        return data

    @staticmethod
    def _kinds(flags: bytearray) -> bytes:
        """Each frame: 1 is the head of a compound page, 2 a tail, 0 neither; b"" if all are
        neither."""
        heads, tails = flags[byte_of_word(1) :: 8], flags[byte_of_word(2) :: 8]
        if heads.isascii() and not tails.translate(None, EVEN):
            return b""
        return bytes(2 if tail & 1 else head >> 7 for head, tail in zip(heads, tails))

    @staticmethod
    def _orders(flags: bytearray, kinds: bytes) -> bytes:
        """Each frame's folio order, or BROKEN; also lends tails their head's flags, as new kernels do.

        Kernel: a folio is aligned to its size, so a block of PMD order holds it whole.
        """
        orders = bytearray(len(flags) // 8)
        words = memoryview(flags).cast("Q")
        for match in re.finditer(b"\1\2*|\2+", kinds):
            start, stop = match.span()
            nr = stop - start
            if kinds[start] != 1 or nr == 1 or nr & (nr - 1) or start % nr:
                orders[start:stop] = bytes((BROKEN,)) * nr
                continue
            head = words[start] & ~KPF_HEAD
            for k in range(start + 1, stop) if head & ~words[start + 1] else ():
                words[k] |= head
            orders[start:stop] = bytes((nr.bit_length() - 1,)) * nr
        return bytes(orders)
