# SPDX-License-Identifier: GPL-2.0-or-later
"""What the words of page tables say, and struct page and struct folio of the frames they point to.

Kernel: arch/x86/include/asm/pgtable_types.h and pgtable_64.h, include/linux/mm_types.h.
"""

from __future__ import annotations

import bisect
import re
from array import array
from typing import Dict, Iterator, NamedTuple

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
WORKINGSET = 1 << 8
"""Bits of the `folio_state` member, beside those of batches."""
PIN = 1 << 10
"""References of a small folio that one pin holds. Kernel: GUP_PIN_COUNTING_BIAS."""
NEAR = 64
"""Frames that on average are no further apart are read by one call, with what is between them."""
RECORD = 32
"""Bytes for what is found of a frame: refcount, mapcount, mm ids, their mapcounts, state, node, and in
the last four whether it is exclusive and whether it contradicts the order that was asked about."""
UNLOCKED = (1 << 64) - 1 & ~(1 << 31)
"""Of a word of mm ids, but for the bit that locks it. Kernel: FOLIO_MM_IDS_LOCK_BITNUM."""
LIST_POISON = 0xDEAD000000000100
_HAS_BIT = [bytes(value >> bit & 1 for value in range(256)) for bit in range(8)]
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
        for run in self._runs(sorted(set(pfns) - {0})):
            folios = (
                {pfn & -1 << large[pfn]: large[pfn] for pfn in run if pfn in large} if large else {}
            )
            first, packed = self._read(run, folios)
            for pfn in run:
                k = RECORD * (pfn - first)
                records[pfn] = packed[k : k + RECORD]
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

    def _runs(self, pfns: list[int]) -> Iterator[list[int]]:
        """Cut ascending frames where a folio of PMD order would end, and where most are far apart."""
        begin = 0
        while begin < len(pfns):
            end = bisect.bisect_left(pfns, (pfns[begin] | self.block - 1) + 1, begin)
            if pfns[end - 1] - pfns[begin] > NEAR * (end - begin):
                end = begin + 1
            yield pfns[begin:end]
            begin = end

    def _read(self, run: list[int], folios: dict[int, int]) -> tuple[int, bytes]:
        """Read a run: its first frame, and a record for that one and each that follows.

        folios: of the run, those that are large: first frame -> order.
        """
        kernel, size = self.kernel, self.kernel.page_bytes
        first, end = run[0], run[-1] + 1
        if folios:
            first, end = first - first % self.block, first - first % self.block + self.block
        try:
            raw = kernel.core.read(kernel.vmemmap + first * size, (end - first) * size)
        except CoreError:  # no memory is there: what named it changed meanwhile
            return first, _NOTHING * (end - first)
        if sum(1 << order for order in folios.values()) < end - first:
            packed = self._small(first, raw)
        else:  # all of it is written below
            packed = bytearray(RECORD * (end - first))
            packed[28::RECORD] = self._flag("PG_anon_exclusive", raw)
        for head, order in folios.items():
            self._large(packed, raw, head, order, (head - first) * size)
        for head in self.batches.keys() & {*run, *folios}:
            for k in range(head - first, head - first + (1 << folios.get(head, 0))):
                packed[RECORD * k + 24] |= self.batches[head]
        return first, bytes(packed)

    def _small(self, first: int, raw: bytes) -> bytearray:
        """The records of frames, each as if it were a folio."""
        at, size = self.kernel.at, self.kernel.page_bytes
        words = memoryview(raw).cast("I")
        references = words[at["page._refcount"] // 4 :: size // 4]
        mappings = words[at["page._mapcount"] // 4 :: size // 4]
        count = len(references)
        packed = bytearray(RECORD * count)
        fields = memoryview(packed).cast("I")
        fields[0::8] = references
        mapped = [times + 1 & 0xFFFFFFFF for times in mappings.tolist()]
        fields[1::8] = memoryview(array("I", mapped))
        packed[25::RECORD] = self._flag("PG_workingset", raw)
        packed[26::RECORD] = bytes((self._node(first),)) * count
        packed[28::RECORD] = self._flag("PG_anon_exclusive", raw)
        if fields[0::8] != fields[1::8]:
            for k, (often, times) in enumerate(zip(references.tolist(), mapped)):
                packed[RECORD * k + 24] = (often >= PIN) * MAYBE_PINNED
                packed[RECORD * k + 29] = often < times
        return packed

    def _flag(self, name: str, raw: bytes) -> bytes:
        """Whether each struct page has a flag, 1 or 0."""
        place, bit = divmod(self.kernel.flags[name], 8)
        plane = raw[self.kernel.at["page.flags"] + place :: self.kernel.page_bytes]
        return plane.translate(_HAS_BIT[bit])

    def _large(self, packed: bytearray, raw: bytes, head: int, order: int, start: int) -> None:
        """Write what there is of a large folio into the records of its frames. start: of its first struct
        page in raw."""
        kernel, at = self.kernel, self.kernel.at

        def field(name: str, width: int) -> int:
            place = start + at[name]
            return int.from_bytes(raw[place : place + width], "little")

        flags, second = field("page.flags", 8), field("folio._flags_1", 8)
        state = MAYBE_PINNED * (field("folio._pincount", 4) > 0)
        state |= WORKINGSET * (flags >> kernel.flags["PG_workingset"] & 1)
        if order > 1:
            following = field("folio._deferred_list", 8)
            itself = kernel.vmemmap + head * kernel.page_bytes + at["folio._deferred_list"]
            state |= ON_DEFERRED_LIST * (following not in (0, itself, LIST_POISON))
            state |= PARTIALLY_MAPPED * (second >> kernel.flags["PG_partially_mapped"] & 1)
        references = field("page._refcount", 4)
        mapped = field("folio._large_mapcount", 4) + 1 & 0xFFFFFFFF
        record = bytearray(RECORD)
        record[0:4], record[4:8] = references.to_bytes(4, "little"), mapped.to_bytes(4, "little")
        if kernel.known.keeps_mm_ids:
            record[8:16] = (field("folio._mm_ids", 8) & UNLOCKED).to_bytes(8, "little")
            record[16:24] = field("folio._mm_id_mapcount", 8).to_bytes(8, "little")
        record[24:28] = (state | self._node(head) << 16).to_bytes(4, "little")
        begin, nr = start // kernel.page_bytes, 1 << order
        own = slice(RECORD * begin, RECORD * (begin + nr))
        exclusive = packed[own][28::RECORD]
        packed[own] = bytes(record) * nr
        packed[RECORD * begin + 28 : RECORD * (begin + nr) : RECORD] = exclusive
        is_head = flags >> kernel.flags["PG_head"] & 1
        if not is_head or second & 0xFF != order or references < mapped:
            packed[RECORD * begin + 29 : RECORD * (begin + nr) : RECORD] = b"\1" * nr

    def _node(self, pfn: int) -> int:
        """The node of a frame, and of its whole block: nodes begin and end with sections of memory."""
        for start, end, node in self.kernel.nodes:
            if start <= pfn < end:
                return node
        return 0
