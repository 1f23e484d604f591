# SPDX-License-Identifier: GPL-2.0-or-later
"""What root sees of the physical pages behind page tables.

Kernel: fs/proc/page.c (kpageflags, kpagecount).
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from array import array
from typing import Any

from mthp.image.capture.pagemap import (
    BATCH_BYTES,
    EVEN,
    EXCLUSIVE,
    FILE,
    HUGE,
    PRESENT,
    ZERO,
    byte_of_word,
)
from mthp.image.capture.proc import open_or_none
from mthp.words.files import naming
from mthp.words.units import Geometry

# /proc/kpageflags. Kernel: include/uapi/linux/kernel-page-flags.h.
KPF_ANON, KPF_HEAD, KPF_TAIL, KPF_THP, KPF_ZERO_PAGE = (1 << k for k in (12, 15, 16, 22, 24))
BROKEN = 255

_ANON_OF_PTE = bytes(pte & (PRESENT | ZERO | FILE) == PRESENT for pte in range(256))
_ANON_OF_FLAGS = bytes(value & KPF_ANON >> 8 != 0 for value in range(256))
_HEAD = bytes(value >> 7 for value in range(256))
_TAIL = bytes(2 * (value & 1) for value in range(256))
_IS_PRESENT = bytes(value & PRESENT for value in range(256))
_NOT_PRESENT = bytes(value for value in range(256) if not value & PRESENT)
_NOT_ZERO = tuple(bytes((value,)) for value in range(1, 256))
_ALL_IF_PRESENT = bytes(255 * (value & PRESENT) for value in range(256))
_ALL_IF_SHARED = bytes(0 if value & EXCLUSIVE else 255 * (value & PRESENT) for value in range(256))
_ALL_IF_ASKED = bytes(
    0 if value & (EXCLUSIVE | HUGE) == EXCLUSIVE else 255 * (value & PRESENT)
    for value in range(256)
)
_ALL_IF_ANY = bytes(255 if value else 0 for value in range(256))
_ANY = bytes(value != 0 for value in range(256))
_ALL_IF_EDGE = bytes(255 if value in (0, 255) else 0 for value in range(256))
_ALL_IF_STEP = bytes(255 * (value != 2) for value in range(256))
_ONE_MARK = re.compile(b"[^\0]")


def open_frames(path: str, known: int) -> int | None:
    """A descriptor of /proc/kpageflags or kpagecount; None where it says nothing even of a frame that is
    known to be mapped (0: none is known): it is masked, as in containers."""
    file = open_or_none(path) if known else None
    if file is None:
        return None
    with naming(path):
        word = os.pread(file, 8, 8 * known)
    if not any(word):
        os.close(file)
        return None
    return file


class Frames:
    """kpageflags, kpagecount and folio orders of the frames that page tables point to.

    flags, counts: descriptors of the two files; None where kpagecount cannot be read. block: the PTEs of
    a table, and the frames of its largest folio. batch_bytes: of pagemap are looked at together. tells_huge:
    whether a huge PMD's pages have HUGE.
    """

    batch_bytes = BATCH_BYTES

    def __init__(
        self, flags: int, counts: int | None, geometry: Geometry, tells_huge: bool = False
    ) -> None:
        self.geometry = geometry
        self.tells_huge = tells_huge
        self.flags = flags
        self.counts = counts
        self.block = geometry.ptrs_per_pte

    def close(self) -> None:
        """Close the files that are open."""
        for file in (self.flags, self.counts):
            if file is not None:
                os.close(file)

    def lie_apart(self, words: bytearray) -> bool:
        """Whether the frames that words of pagemap name are to be found together with those of others."""
        return False

    def ahead(self, words: list[bytearray]) -> Any:
        """What can be found together of the frames that some batches' words of pagemap name, for their
        look_up(); None where it finds that by itself."""

    def look_up(
        self, pfns: array[int], low: bytes, known: Any = None
    ) -> tuple[bytes, bytes, bytes]:
        """Flags, mapcount and folio order of each PTE, as u64, u32 and u8; 0 where it is not present.

        known: what ahead() gave. low: what pagemap says of each; a page that is mapped exclusively is
        mapped once, but for those of a huge PMD, of which pagemap has looked at one. The order is BROKEN
        where heads and tails make no whole folio: it came or went meanwhile.
        """
        present = low.translate(_IS_PRESENT)
        if 2 * present.count(1) > len(low):
            return self._look_up(pfns, low)
        packed = array("Q", itertools.compress(pfns, present))
        found = self._look_up(packed, low.translate(None, _NOT_PRESENT))
        flags, counts, orders = (spread(data, present, k) for data, k in zip(found, (8, 4, 1)))
        return flags, counts, orders

    def _look_up(self, pfns: array[int], low: bytes) -> tuple[bytes, bytes, bytes]:
        runs = runs_of(pfns, low.translate(_ALL_IF_PRESENT))
        flags = _values(self.flags, pfns, runs, bytes(8 * len(pfns)))
        kinds = _kinds(flags)
        orders = self._orders(flags, kinds, pfns, runs) if kinds else bytes(len(pfns))
        return bytes(flags), self._mapped(pfns, runs, low, kinds), orders

    def _mapped(self, pfns: array[int], runs: bytes, low: bytes, kinds: bytes) -> bytes:
        """The mapcounts."""
        if self.counts is None:
            return bytes(4 * len(pfns))
        unknown = low.translate(_ALL_IF_ASKED if self.tells_huge else _ALL_IF_SHARED)
        if kinds and not self.tells_huge:
            both = number(unknown) | number(kinds.translate(_ALL_IF_ANY))
            unknown = both.to_bytes(len(pfns), "little")
        asked = number(runs) & number(unknown) if b"\xff" in unknown else 0
        if not asked:
            once = bytearray(4 * len(pfns))
            once[byte_of_word(0) // 2 :: 4] = low.translate(_IS_PRESENT)
            return bytes(once)
        counts = bytearray(8 * len(pfns))
        counts[byte_of_word(0) :: 8] = low.translate(_IS_PRESENT)
        counts = _values(self.counts, pfns, asked.to_bytes(len(pfns), "little"), counts)
        return memoryview(counts).cast("I")[byte_of_word(0) // 4 :: 2].tobytes()

    def misfits(self, low: bytearray, flags: bytes, counts: bytes, orders: bytes) -> list[int]:
        """Which tables have PTEs (`low`) that cannot be so with what look_up() found of their frames:
        pagemap has a page as anonymous and its frame is not, nobody maps it, or its folio is BROKEN.
        """
        ours = low.translate(_ANON_OF_PTE)
        anon = flags[byte_of_word(1) :: 8].translate(_ANON_OF_FLAGS)
        known = self.counts is None or counts[byte_of_word(0) // 2 :: 4].translate(_ANY) == ours
        if ours == anon and known and BROKEN not in orders:
            return []
        wanted = number(ours)
        wrong = wanted ^ number(anon)
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

    def _orders(self, flags: bytearray, kinds: bytes, pfns: array[int], runs: bytes) -> bytes:
        """Each frame's folio order, or BROKEN; also lends tails their head's flags, as new kernels do.

        Kernel: a folio is aligned to its size, so a block of PMD order holds it whole. Where only a part
        of a folio may be among the frames, its whole block is read.
        """
        nr, orders, words = self.block, bytearray(len(pfns)), memoryview(flags)
        known, whole, sizes = -1, bytearray(8 * nr), b""
        runs = runs.replace(bytes((PREVIOUS,)), bytes((OTHER,)))
        compound = number(runs) & number(kinds.translate(_ALL_IF_ANY))
        for match in RUN.finditer(compound.to_bytes(len(pfns), "little")):
            i, end = match.span()
            while i < end and kinds[i]:
                block, at = divmod(pfns[i], nr)
                j = min(i + nr - at, end)
                if kinds[i] == 1 and (at + j - i == nr or not self._is_tail(pfns[i] + j - i)):
                    orders[i:j] = _orders_of(words[8 * i : 8 * j], kinds[i:j], at)
                else:
                    if block != known:
                        os.preadv(self.flags, [whole], 8 * nr * block)
                        known, sizes = block, _orders_of(memoryview(whole), _kinds(whole), 0)
                    words[8 * i : 8 * j] = whole[8 * at : 8 * (at + j - i)]
                    orders[i:j] = sizes[at : at + j - i]
                i = j
        return bytes(orders)

    def _is_tail(self, pfn: int) -> bool:
        """Whether a frame is a tail now."""
        return _kinds(bytearray(os.pread(self.flags, 8, 8 * pfn))) == b"\2"


def _orders_of(flags: memoryview, kinds: bytes, first: int) -> bytes:
    """The orders of frames without a gap that have all of their folios. first: where in its block."""
    orders = bytearray(len(flags) // 8)
    words = flags.cast("Q")
    for match in re.finditer(b"\1\2*|\2+", kinds):
        start, stop = match.span()
        nr = stop - start
        if kinds[start] == 2 or nr == 1 or nr & (nr - 1) or (first + start) % nr:
            orders[start:stop] = bytes((BROKEN,)) * nr
            continue
        head = words[start] & ~KPF_HEAD
        for k in range(start + 1, stop) if head & ~words[start + 1] else ():
            words[k] |= head
        orders[start:stop] = bytes((nr.bit_length() - 1,)) * nr
    return bytes(orders)


NEXT, OTHER, PREVIOUS = 1, 2, 3
"""What runs_of() says of a frame: it is one more than that of the PTE before, neither, or one less."""
RUN = re.compile(b"[\1\2\3](?:\1+|\3*)|\0+")
_STEPS = bytes({1: NEXT, 255: PREVIOUS}.get(value, OTHER) for value in range(256))
"""What the lowest byte of a difference says, where the others do not differ."""


def runs_of(pfns: array[int], there: bytes) -> bytes:
    """NEXT, OTHER or PREVIOUS of each PTE: one call reads a run of frames; 0 where there has 0, not 255.

    Bytes of one place are compared together, as a large number: what the lowest does not tell is rare, and
    looked at by itself.
    """
    raw, nr = pfns.tobytes(), len(pfns)
    top, others, every = _lanes(nr)
    lowest = raw[byte_of_word(0) :: 8]
    here = number(lowest)
    before = here << 8 & every
    steps = ((here | top) - (before & others)) ^ ((here ^ before ^ top) & top)
    runs = bytearray(steps.to_bytes(nr, "little").translate(_STEPS))
    higher = number(
        lowest.translate(_ALL_IF_EDGE)
    )  # from 0 to 255 is a step only where others differ
    for k in range(1, 8):
        plane = raw[byte_of_word(k) :: 8]
        if plane != plane[:1] * nr:
            here = number(plane)
            higher |= here ^ here << 8 & every
        elif plane.startswith(_NOT_ZERO):
            higher |= plane[0]
    if higher:
        differ = number(higher.to_bytes(nr, "little").translate(_ALL_IF_ANY))
        doubt = differ & number(runs.translate(_ALL_IF_STEP))
        for match in _ONE_MARK.finditer(doubt.to_bytes(nr, "little")):
            k = match.start()
            step = pfns[k] - (pfns[k - 1] if k else 0)
            runs[k] = NEXT if step == 1 else PREVIOUS if step == -1 else OTHER
    return bytes(runs) if 0 not in there else _masked(runs, there)


def _masked(runs: bytearray, there: bytes) -> bytes:
    return (number(runs) & number(there)).to_bytes(len(runs), "little")


@functools.lru_cache(maxsize=4)
def _lanes(nr: int) -> tuple[int, int, int]:
    """So many bytes side by side in a number: with the highest bit alone, with the others, and with all."""
    return number(b"\x80" * nr), number(b"\x7f" * nr), (1 << 8 * nr) - 1


def not_zero(pfns: array[int]) -> bytes:
    """255 for each pfn that is not 0, 0 for others."""
    raw, some = pfns.tobytes(), 0
    for k in range(8):
        some |= number(raw[k::8])
    return some.to_bytes(len(pfns), "little").translate(_ALL_IF_ANY)


def spread(data: bytes, present: bytes, width: int) -> bytes:
    """The values of the PTEs that are present, at their places among all; 0 for the others.

    present: 1 or 0 of each PTE. width: bytes of a value.
    """
    found = bytearray(width * len(present))
    for k in range(width):
        plane = data[k::width]
        first = plane[:1]
        if plane.strip(first):
            found[k::width] = present.replace(b"\1", b"%c") % tuple(plane)
        elif first != b"\0":
            found[k::width] = present.replace(b"\1", first)
    return bytes(found)


def _values(file: int, pfns: array[int], runs: bytes, others: bytes | bytearray) -> bytearray:
    """What a file has of each frame, read a run at a time; that of others where runs has 0."""
    parts: list[bytes | bytearray | array[int]] = []
    rows, lowest, counts = find_rows(pfns, runs)
    eight, at = (8).__mul__, 0
    found = map(os.pread, itertools.repeat(file), map(eight, counts), map(eight, lowest))
    for run in rows:
        size, kind = 8 * len(run), run[-1]
        if not kind:
            parts.append(others[at : at + size])
        else:
            part = next(found)
            if len(part) < size:  # frames beyond those that the file has
                part = part.ljust(size, b"\0")
            parts.append(array("Q", part)[::-1] if kind == PREVIOUS else part)
        at += size
    return bytearray().join(parts)


def find_rows(pfns: array[int], runs: bytes) -> tuple[list[bytes], list[int], list[int]]:
    """The rows that runs_of() found; and of each that has frames the lowest, and how many it has."""
    rows: list[bytes] = RUN.findall(runs)
    lowest, counts, at = [], [], 0
    for run in rows:
        end = at + len(run)
        if run[-1]:
            lowest.append(pfns[end - 1 if run[-1] == PREVIOUS else at])
            counts.append(end - at)
        at = end
    return rows, lowest, counts


def number(data: bytes | bytearray) -> int:
    """A number of which each byte is one of these."""
    return int.from_bytes(data, "little")


def _kinds(flags: bytearray) -> bytes:
    """Each frame: 1 is the head of a compound page, 2 a tail, 0 neither; b"" if all are neither."""
    heads, tails = flags[byte_of_word(1) :: 8], flags[byte_of_word(2) :: 8]
    if heads.isascii() and not tails.translate(None, EVEN):
        return b""
    kinds = int.from_bytes(heads.translate(_HEAD), "little")
    kinds |= int.from_bytes(tails.translate(_TAIL), "little")
    return kinds.to_bytes(len(heads), "little")
