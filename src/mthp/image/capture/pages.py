# SPDX-License-Identifier: GPL-2.0-or-later
"""What the words of page tables say, and struct page and struct folio of the frames they point to.

Kernel: arch/x86/include/asm/pgtable_types.h and pgtable_64.h, include/linux/mm_types.h.
"""

from __future__ import annotations

import operator
import re
import struct
from array import array
from typing import Callable, Dict, Iterator, NamedTuple, Tuple

from mthp.image.capture.kcore import CoreError
from mthp.image.capture.kernel import LiveKernel

YOUNG, DIRTY, WRITABLE, SOFT_DIRTY, UFFD, PROT_NONE, EXCLUSIVE = (1 << k for k in range(7))
"""Bits of the `pte_bits` member."""
# Of entries on x86: hardware's bits, then software's; then those of swap entries.
PRESENT_BIT, _RW, _A, _D, HUGE_PAGE, GLOBAL = 1, 2, 32, 64, 128, 256
_SOFT_UFFD, _SOFT_DIRTY = 1 << 10, 1 << 11
_SWP_SOFT_DIRTY, _SWP_UFFD, _SWP_EXCLUSIVE = _RW, 4, 8
SAVED_DIRTY = 1 << 58
_SAVED_DIRTY_OF_TOP = bytes(value & SAVED_DIRTY >> 56 for value in range(256))
_IS_ODD = bytes(255 if value & 1 else 0 for value in range(256))
PAGE_SHIFT = 12
FRAME = (1 << 52) - (1 << PAGE_SHIFT)


class BitsOfEntry(Dict[int, int]):
    """The bits of pte_bits that the low 16 bits of an entry make, worked out once."""

    def __missing__(self, low: int) -> int:
        pairs: tuple[tuple[int, int], ...]
        if low & (PRESENT_BIT | GLOBAL):
            pairs = (
                (_A, YOUNG), (_D, DIRTY), (_RW, WRITABLE), (_SOFT_DIRTY, SOFT_DIRTY), (_SOFT_UFFD, UFFD),
            )  # fmt: skip
        else:
            pairs = ((_SWP_SOFT_DIRTY, SOFT_DIRTY), (_SWP_UFFD, UFFD), (_SWP_EXCLUSIVE, EXCLUSIVE))
        bits = sum(bit for of, bit in pairs if low & of)
        if low & (PRESENT_BIT | GLOBAL) == GLOBAL:
            bits |= PROT_NONE
        self[low] = bits
        return bits


ON_DEFERRED_LIST, PARTIALLY_MAPPED, MAYBE_PINNED = 1, 2, 4
STATES = {"PG_workingset": 1 << 8, "PG_young": 1 << 9}
"""Bits of the `folio_state` member, beside those of batches. PG_young is there where the kernel can track
idle pages."""
PIN = 1 << 10
"""References of a small folio that one pin holds. Kernel: GUP_PIN_COUNTING_BIAS."""
RECORD = 32
"""Bytes for what is found of a frame: refcount, mapcount, mm ids, their mapcounts, state, node, and in
the last four whether it is exclusive and whether it contradicts the order that was asked about."""
UNLOCKED = (1 << 64) - 1 & ~(1 << 31)
"""Of a word of mm ids, but for the bit that locks it. Kernel: FOLIO_MM_IDS_LOCK_BITNUM."""
LIST_POISON = 0xDEAD000000000100
_HAS_BIT = [bytes(value >> bit & 1 for value in range(256)) for bit in range(8)]
_ONE_RECORD = struct.Struct(f"{RECORD}s")
_ONLY: Callable[[tuple[bytes]], bytes] = operator.itemgetter(0)
_NOTHING = bytes(28) + b"\0\1\0\0"
"""The record of a frame that has no struct page."""


class Found(NamedTuple):
    """What was found of each PTE's frame: members' names to bytes; whether it is exclusive; and 1 where
    head or order are not what kpageflags said, or it is mapped more often than referenced."""

    members: dict[str, bytes]
    exclusive: bytes
    broken: bytes


class Pages:
    """Decodes words of page tables, and reads the struct pages of frames, a range at a time.

    block: frames of the largest folio. batches: folios that wait in one, by first frame.
    """

    def __init__(self, kernel: LiveKernel, block: int) -> None:
        self.kernel = kernel
        self.block = block
        self.batches: dict[int, int] = {}
        self.frame = FRAME & ~kernel.encrypted
        self.states = {name: bit for name, bit in STATES.items() if name in kernel.flags}
        self._bits = BitsOfEntry()

    def decode(self, words: bytes) -> tuple[bytes, array[int]]:
        """Of each word the bits of pte_bits, and the frame that it maps, 0 for none."""
        bits = bytearray(map(self._bits.__getitem__, memoryview(words).cast("H")[0::4]))
        present = words[0::8].translate(_IS_ODD)
        mask = bytearray(len(words))
        for k in range(1, 7):
            mask[k::8] = present
        whole = int.from_bytes(words, "little") & int.from_bytes(mask, "little")
        whole &= int.from_bytes(self.frame.to_bytes(8, "little") * len(bits), "little")
        frames = array("Q", (whole >> PAGE_SHIFT).to_bytes(len(words), "little"))
        no_access = int.from_bytes(words[1::8].translate(_IS_ODD), "little")
        no_access &= ~int.from_bytes(present, "little")
        for match in re.finditer(b"[^\0]", no_access.to_bytes(len(bits), "little")):
            k = match.start()
            entry = int.from_bytes(words[8 * k : 8 * k + 8], "little")
            frames[k] = (~entry & self.frame) >> PAGE_SHIFT
        for match in re.finditer(b"[^\0]", words[7::8].translate(_SAVED_DIRTY_OF_TOP)):
            if frames[match.start()]:
                bits[match.start()] |= DIRTY
        return bytes(bits), frames

    def look_up(self, pfns: array[int], orders: bytes) -> Found:
        """What there is of each frame, 0 where the pfn is 0. orders: of the folios that they are of."""
        large = {pfn: order for pfn, order in zip(pfns, orders) if order} if any(orders) else {}
        records = {0: bytes(RECORD)}
        self._add_small(records, sorted(set(pfns) - {0} - large.keys()))
        for head, order in {pfn & -1 << order: order for pfn, order in large.items()}.items():
            self._add_large(records, head, order)
        found = memoryview(b"".join(map(records.__getitem__, pfns)))
        words, longs, halves = found.cast("I"), found.cast("Q"), found.cast("H")
        return Found(
            {
                "refcount": words[0::8].tobytes(),
                "folio_mapcount": words[1::8].tobytes(),
                "mm_ids": longs[1::4].tobytes(),
                "mm_id_mapcounts": longs[2::4].tobytes(),
                "folio_state": halves[12::16].tobytes(),
                "node": found[26::RECORD].tobytes(),
            },
            found[28::RECORD].tobytes(),
            found[29::RECORD].tobytes(),
        )

    def _add_small(self, records: dict[int, bytes], frames: list[int]) -> None:
        """Add a record for each of ascending frames, which are folios of order 0."""
        at, size = self.kernel.at, self.kernel.page_bytes
        parts: list[bytes] = []
        unread: list[int] = []
        for first, stop in runs_of(frames):
            try:
                parts.append(self._raw_pages(first, stop - first))
            except CoreError:  # no memory is there: what named it changed meanwhile
                parts.append(bytes((stop - first) * size))
                unread += range(first, stop)
        raw = b"".join(parts)
        words = memoryview(raw).cast("I")
        references = words[at["page._refcount"] // 4 :: size // 4].tobytes()
        mappings = _one_more(words[at["page._mapcount"] // 4 :: size // 4].tobytes())
        packed = bytearray(RECORD * len(frames))
        for k in range(4):
            packed[k::RECORD], packed[4 + k :: RECORD] = references[k::4], mappings[k::4]
        if references != mappings:
            both = array("I", references), array("I", mappings)
            packed[24::RECORD] = bytes(MAYBE_PINNED * (often >= PIN) for often in both[0])
            packed[29::RECORD] = bytes(map(operator.lt, *both))
        states = 0
        for name, bit in self.states.items():
            states |= int.from_bytes(self._flag(name, raw), "little") * (bit >> 8)
        packed[25::RECORD] = states.to_bytes(len(frames), "little")
        if len(self.kernel.nodes) > 1:
            packed[26::RECORD] = bytes(map(self._node, frames))
        packed[28::RECORD] = self._flag("PG_anon_exclusive", raw)
        records.update(zip(frames, map(_ONLY, _ONE_RECORD.iter_unpack(packed))))
        records.update(dict.fromkeys(unread, _NOTHING))
        for pfn in self.batches.keys() & records.keys() - {*unread}:
            record = bytearray(records[pfn])
            record[24] |= self.batches[pfn]
            records[pfn] = bytes(record)

    def _raw_pages(self, first: int, count: int) -> bytes:
        size = self.kernel.page_bytes
        return self.kernel.core.read(self.kernel.vmemmap + first * size, count * size)

    def _flag(self, name: str, raw: bytes) -> bytes:
        """Whether each struct page has a flag, 1 or 0."""
        place, bit = divmod(self.kernel.flags[name], 8)
        plane = raw[self.kernel.at["page.flags"] + place :: self.kernel.page_bytes]
        return plane.translate(_HAS_BIT[bit])

    def _add_large(self, records: dict[int, bytes], head: int, order: int) -> None:
        """Add a record for each frame of a large folio."""
        kernel, at, frames = self.kernel, self.kernel.at, range(head, head + (1 << order))
        try:
            raw = self._raw_pages(head, len(frames))
        except CoreError:
            records.update(dict.fromkeys(frames, _NOTHING))
            return

        def field(name: str, width: int) -> int:
            return int.from_bytes(raw[at[name] : at[name] + width], "little")

        flags, second = field("page.flags", 8), field("folio._flags_1", 8)
        state = MAYBE_PINNED * (field("folio._pincount", 4) > 0) | self.batches.get(head, 0)
        for name, bit in self.states.items():
            state |= bit * (flags >> kernel.flags[name] & 1)
        if order > 1:
            following = field("folio._deferred_list", 8)
            itself = kernel.vmemmap + head * kernel.page_bytes + at["folio._deferred_list"]
            state |= ON_DEFERRED_LIST * (following not in (0, itself, LIST_POISON))
            state |= PARTIALLY_MAPPED * (second >> kernel.flags["PG_partially_mapped"] & 1)
        references = field("page._refcount", 4)
        mapped = field("folio._large_mapcount", 4) + 1 & 0xFFFFFFFF
        ids, counts = (
            (field("folio._mm_ids", 8) & UNLOCKED, field("folio._mm_id_mapcount", 8))
            if kernel.known.keeps_mm_ids
            else (0, 0)
        )
        is_head = flags >> kernel.flags["PG_head"] & 1
        broken = not is_head or second & 0xFF != order or references < mapped
        known = struct.pack(
            "<IIQQI", references, mapped, ids, counts, state | self._node(head) << 16
        )
        both = [known + bytes((exclusive, broken, 0, 0)) for exclusive in range(2)]
        records.update(zip(frames, map(both.__getitem__, self._flag("PG_anon_exclusive", raw))))

    def _node(self, pfn: int) -> int:
        """The node of a frame."""
        for start, end, node in self.kernel.nodes:
            if start <= pfn < end:
                return node
        return 0


def _one_more(numbers: bytes) -> bytes:
    """32-bit numbers, each with one added."""
    other, nr = b"\xff\xff\xff\xff\0\0\0\0", -(-len(numbers) // 8)
    whole, every_other = int.from_bytes(numbers, "little"), int.from_bytes(other * nr, "little")
    ones = int.from_bytes((b"\1" + bytes(7)) * nr, "little")
    even = (whole & every_other) + ones & every_other
    odd = (whole >> 32 & every_other) + ones & every_other
    return (even | odd << 32).to_bytes(8 * nr + 4, "little")[: len(numbers)]


SOME = 256
Range = Tuple[int, int]


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
