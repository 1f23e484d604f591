# SPDX-License-Identifier: GPL-2.0-or-later
"""What root sees of the physical pages behind page tables.

Kernel: fs/proc/page.c (kpageflags, kpagecount).
"""

from __future__ import annotations

import itertools
import operator
import os
import re
import struct
from array import array
from typing import Callable, Iterator, Tuple

from mthp.image.capture.pagemap import EVEN, EXCLUSIVE, FILE, PRESENT, ZERO, byte_of_word
from mthp.image.capture.proc import open_or_none
from mthp.words.units import Geometry

# /proc/kpageflags. Kernel: include/uapi/linux/kernel-page-flags.h.
KPF_ANON, KPF_HEAD, KPF_TAIL, KPF_THP, KPF_ZERO_PAGE = (1 << k for k in (12, 15, 16, 22, 24))
BROKEN = 255
SOME = 256
"""So many frames are looked at together: whether they lie without a gap."""
Range = Tuple[int, int]

_ANON_OF_PTE = bytes(pte & (PRESENT | ZERO | FILE) == PRESENT for pte in range(256))
_ANON_OF_FLAGS = bytes(value & KPF_ANON >> 8 != 0 for value in range(256))
_HEAD = bytes(value >> 7 for value in range(256))
_TAIL = bytes(2 * (value & 1) for value in range(256))
_ONLY: Callable[[tuple[bytes]], bytes] = operator.itemgetter(0)
_IS_PRESENT = bytes(value & PRESENT for value in range(256))
_IS_SHARED = bytes(not value & EXCLUSIVE for value in range(256))
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

    def look_up(self, pfns: array[int], low: bytes) -> tuple[bytes, bytes, bytes]:
        """Flags, mapcount and folio order of each PTE, as u64, u32 and u8; 0 where its pfn is 0.

        low: what pagemap says of each; a small page that is mapped exclusively is mapped once. The order
        is BROKEN where heads and tails make no whole folio: it came or went meanwhile. A frame's
        flags and order travel as one record, so that one look-up fetches them.
        """
        records = {0: bytes(9)}
        ranges = list(runs_of(sorted(set(pfns) - {0})))
        flags = _values(self.flags, ranges)
        blocks = self._compound_blocks(ranges, _kinds(flags))
        _add_records(records, ranges, flags, bytes(len(flags) // 8))
        whole = [(block * self.block, (block + 1) * self.block) for block in blocks]
        if whole:
            flags = _values(self.flags, whole)
            _add_records(records, whole, flags, self._orders(flags, _kinds(flags)))
        found = b"".join(map(records.__getitem__, pfns))
        words = bytearray(8 * len(pfns))
        for k in range(8):
            words[k::8] = found[k::9]
        return bytes(words), self._mapped(pfns, low, whole), found[8::9]

    def _mapped(self, pfns: array[int], low: bytes, whole: list[Range]) -> bytes:
        """The mapcounts. whole: the ranges with compound pages."""
        if self.counts is None:
            return bytes(4 * len(pfns))
        shared = set(itertools.compress(pfns, low.translate(_IS_SHARED))) - {0}
        ranges = [*runs_of(sorted(shared)), *whole]
        if not ranges:
            return array("I", iter(low.translate(_IS_PRESENT))).tobytes()
        counted = dict(zip(_frames(ranges), memoryview(_values(self.counts, ranges)).cast("Q")))
        counted[0] = 0
        return array("I", map(counted.get, pfns, itertools.repeat(1))).tobytes()

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

    def _compound_blocks(self, ranges: list[Range], kinds: bytes) -> list[int]:
        """The blocks of PMD order with compound pages in these ranges, ascending."""
        at = 0
        blocks: set[int] = set()
        for first, stop in ranges if kinds else ():
            for match in re.finditer(b"[^\0]+", kinds[at : at + stop - first]):
                start, end = (first + k for k in match.span())
                blocks.update(range(start // self.block, (end - 1) // self.block + 1))
            at += stop - first
        return sorted(blocks)

    def _orders(self, flags: bytearray, kinds: bytes) -> bytes:
        """Each frame's folio order, or BROKEN, of whole blocks; also lends tails their head's flags, as new
        kernels do.

        Kernel: a folio is aligned to its size, so a block of PMD order holds it whole.
        """
        orders = bytearray(len(flags) // 8)
        words = memoryview(flags).cast("Q")
        for block in range(0, len(kinds), self.block):
            for match in re.finditer(b"\1\2*|\2+", kinds[block : block + self.block]):
                start, stop = match.span()
                nr = stop - start
                whole = kinds[block + start] == 1 and nr & (nr - 1) == 0 and not start % nr
                start, stop = block + start, block + stop
                if not whole or nr == 1:
                    orders[start:stop] = bytes((BROKEN,)) * nr
                    continue
                head = words[start] & ~KPF_HEAD
                for k in range(start + 1, stop) if head & ~words[start + 1] else ():
                    words[k] |= head
                orders[start:stop] = bytes((nr.bit_length() - 1,)) * nr
        return bytes(orders)


def _add_records(
    records: dict[int, bytes], ranges: list[Range], flags: bytearray, orders: bytes
) -> None:
    """Add a record for each frame of ranges: eight bytes of flags, and the order."""
    packed = bytearray(9 * len(orders))
    for k in range(8):
        packed[k::9] = flags[k::8]
    packed[8::9] = orders
    records.update(zip(_frames(ranges), map(_ONLY, struct.iter_unpack("9s", packed))))


def _frames(ranges: list[Range]) -> Iterator[int]:
    return itertools.chain.from_iterable(itertools.starmap(range, ranges))


def runs_of(frames: list[int]) -> Iterator[Range]:
    """The ranges, first and beyond the last, of ascending frames without a gap; one call reads each."""
    far: list[int] = []
    for at in range(1, len(frames), SOME):
        end = min(at + SOME, len(frames))
        if frames[end - 1] - frames[at - 1] != end - at:
            gaps = map(operator.sub, frames[at:end], frames[at - 1 : end - 1])
            far += [k for k, gap in enumerate(gaps, at) if gap > 1]
    for i, j in zip([0, *far], [*far, len(frames)]) if frames else ():
        yield frames[i], frames[j - 1] + 1


def _values(file: int | None, ranges: list[Range]) -> bytearray:
    """What a file has of each frame of ranges."""
    data = bytearray(8 * sum(stop - first for first, stop in ranges))
    if file is not None:
        at, view = 0, memoryview(data)
        for first, stop in ranges:
            end = at + 8 * (stop - first)
            os.preadv(file, [view[at:end]], 8 * first)
            at = end
    return data


def _kinds(flags: bytearray) -> bytes:
    """Each frame: 1 is the head of a compound page, 2 a tail, 0 neither; b"" if all are neither."""
    heads, tails = flags[byte_of_word(1) :: 8], flags[byte_of_word(2) :: 8]
    if heads.isascii() and not tails.translate(None, EVEN):
        return b""
    kinds = int.from_bytes(heads.translate(_HEAD), "little")
    kinds |= int.from_bytes(tails.translate(_TAIL), "little")
    return kinds.to_bytes(len(heads), "little")
