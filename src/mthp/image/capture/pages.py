# SPDX-License-Identifier: GPL-2.0-or-later
"""What the words of page tables say, and struct page and struct folio of the frames they point to.

Kernel: arch/x86/include/asm/pgtable_types.h and pgtable_64.h, include/linux/mm_types.h.
"""

from __future__ import annotations

import functools
import re
import struct
from array import array
from typing import Dict, NamedTuple

from mthp.image.capture.frames import NEXT, PREVIOUS, find_rows, not_zero, number, runs_of
from mthp.image.capture.kcore import CoreError
from mthp.image.capture.kernel import KernelStructures
from mthp.image.capture.pagemap import BATCH_BYTES

YOUNG, DIRTY, WRITABLE, SOFT_DIRTY, UFFD, PROT_NONE, EXCLUSIVE = (1 << k for k in range(7))
"""Bits of the `pte_bits` member."""
# Of entries on x86: hardware's bits, then software's; then those of swap entries.
PRESENT_BIT, _RW, _A, _D, HUGE_PAGE, GLOBAL = 1, 2, 32, 64, 128, 256
_SOFT_UFFD, _SOFT_DIRTY = 1 << 10, 1 << 11
_SWP_SOFT_DIRTY, _SWP_UFFD, _SWP_EXCLUSIVE = _RW, 4, 8
SAVED_DIRTY = 1 << 58
_ALL_IF_ODD = bytes(255 if value & 1 else 0 for value in range(256))
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


_BITS_OF_BYTE = {
    k: bytes(BitsOfEntry()[value << 8 * k & 0xFFFF | PRESENT_BIT] for value in range(256))
    for k in (0, 1)
}
_BITS_OF_BYTE[7] = bytes(DIRTY * (value << 56 & SAVED_DIRTY != 0) for value in range(256))
"""The bits of pte_bits that single bytes of a present entry make."""
_ABSENT = re.compile(b"\0+")


@functools.lru_cache(maxsize=2)
def _repeated(word: int, nr: int) -> int:
    """So many times a word, side by side."""
    return number(word.to_bytes(8, "little") * nr)


ON_DEFERRED_LIST, PARTIALLY_MAPPED, MAYBE_PINNED = 1, 2, 4
STATES = {"PG_workingset": 1 << 8, "PG_young": 1 << 9}
"""Bits of the `folio_state` member, beside those of batches. PG_young is there where the kernel can track
idle pages."""
PIN = 1 << 10
"""References of a small folio that one pin holds. Kernel: GUP_PIN_COUNTING_BIAS."""
UNLOCKED = (1 << 64) - 1 & ~(1 << 31)
"""Of a word of mm ids, but for the bit that locks it. Kernel: FOLIO_MM_IDS_LOCK_BITNUM."""
LIST_POISON = 0xDEAD000000000100
_HAS_BIT = [bytes(value >> bit & 1 for value in range(256)) for bit in range(8)]
_ALL_IF_SMALL = bytes(255 * (value == 0) for value in range(256))
_PINNED = [bytes(MAYBE_PINNED * (value << 8 * k >= PIN) for value in range(256)) for k in (1, 2, 3)]
"""Of each byte of a refcount but the lowest: whether it alone makes a pin."""
_ONE = re.compile(b"[^\0]")
_LARGE = re.compile(b"[^\0]+")
_FOLLOWING = re.compile(bytes((NEXT,)) + b"*")


class Found(NamedTuple):
    """What was found of each PTE's frame: members' names to bytes; whether it is exclusive; and 1 where
    head or order are not what kpageflags said, or it is mapped more often than referenced."""

    members: dict[str, bytes]
    exclusive: bytes
    broken: bytes


class Pages:
    """Decodes words of page tables, and reads the struct pages of frames, a range at a time.

    block: frames of the largest folio. batches: folios that wait in one, by first frame. batch_bytes: of
    page tables are looked at together.
    """

    batch_bytes = BATCH_BYTES

    def __init__(self, kernel: KernelStructures, block: int) -> None:
        self.kernel = kernel
        self.block = block
        self.batches: dict[int, int] = {}
        self.frame = FRAME & ~kernel.encrypted
        self.states = {name: bit for name, bit in STATES.items() if name in kernel.flags}
        self._bits = BitsOfEntry()

    def decode(self, words: bytes) -> tuple[bytes, array[int]]:
        """Of each word the bits of pte_bits, and the frame that it maps, 0 for none."""
        nr, made = len(words) // 8, 0
        present = words[0::8].translate(_ALL_IF_ODD)
        for k, table in _BITS_OF_BYTE.items():
            made |= number(words[k::8].translate(table))
        bits = bytearray((made & number(present)).to_bytes(nr, "little"))
        whole = (number(words) & _repeated(self.frame, nr)) >> PAGE_SHIFT
        frames = array("Q", whole.to_bytes(8 * nr, "little"))
        for match in _ABSENT.finditer(present):
            i, j = match.span()
            if words.count(0, 8 * i, 8 * j) == 8 * (j - i):
                continue
            for k, entry in enumerate(memoryview(words)[8 * i : 8 * j].cast("Q"), i):
                bits[k], frames[k] = self._bits[entry & 0xFFFF], 0
                if entry & GLOBAL:
                    bits[k] |= DIRTY * (entry & SAVED_DIRTY != 0)
                    frames[k] = (~entry & self.frame) >> PAGE_SHIFT
        return bytes(bits), frames

    def look_up(self, pfns: array[int], orders: bytes) -> Found:
        """What there is of each frame, 0 where the pfn is 0. orders: of the folios that they are of."""
        runs = runs_of(pfns, not_zero(pfns))
        raw, unread = self._pages_of(pfns, runs)
        flags = self._flags(raw)
        columns = self._small(pfns, orders, raw, unread, flags)
        for match in _LARGE.finditer(orders):
            i, end = match.span()
            while i < end:
                head = pfns[i] & -1 << orders[i]
                follows = _FOLLOWING.match(
                    runs, i + 1, min(end, i + head + (1 << orders[i]) - pfns[i])
                )
                j = follows.end() if follows else i + 1
                if runs[i] and not unread[i]:
                    for column, value in zip(columns.values(), self._folio(head, orders[i])):
                        column[i * len(value) : j * len(value)] = value * (j - i)
                i = j
        members = {name: bytes(column) for name, column in columns.items()}
        return Found(members, flags["PG_anon_exclusive"], members.pop("broken"))

    def _small(
        self,
        pfns: array[int],
        orders: bytes,
        raw: bytes,
        unread: bytearray,
        flags: dict[str, bytes],
    ) -> dict[str, bytearray]:
        """The columns of folios of order 0. raw: the struct pages of all frames."""
        nr = len(pfns)
        of_references = self._planes("page._refcount", raw)
        references = _side_by_side(of_references)
        of_mapped = self._planes("page._mapcount", raw)
        first = (int.from_bytes(b"".join(of_mapped)[::nr], "little") if nr else 0) + 1 & 0xFFFFFFFF
        alike = all(plane == plane[:1] * nr for plane in of_mapped)
        mapped = first.to_bytes(4, "little") * nr if alike else _one_more(_side_by_side(of_mapped))
        state, node, broken = bytearray(2 * nr), bytearray(nr), bytearray(unread)
        pinned = 0
        for plane, table in zip(of_references[1:], _PINNED):
            if plane.strip(b"\0"):
                pinned |= number(plane.translate(table))
        if pinned:
            state[0::2] = pinned.to_bytes(nr, "little")
        if references != mapped:
            differs = number(references) ^ number(mapped)
            for bits in (16, 8):
                differs |= differs >> bits
            lowest = differs.to_bytes(4 * nr, "little")[0::4]
            small = number(lowest) & number(orders.translate(_ALL_IF_SMALL))
            both = memoryview(references).cast("I"), memoryview(mapped).cast("I")
            for match in _ONE.finditer(small.to_bytes(nr, "little")):
                k = match.start()
                broken[k] |= both[0][k] < both[1][k]
        states = 0
        for name, bit in self.states.items():
            if 1 in flags[name]:
                states |= number(flags[name]) * (bit >> 8)
        if states:
            state[1::2] = states.to_bytes(nr, "little")
        if self.batches and not self.batches.keys().isdisjoint(pfns):
            for k, pfn in enumerate(pfns):
                state[2 * k] |= 0 if unread[k] else self.batches.get(pfn, 0)
        if len(self.kernel.nodes) > 1:
            known = zip(pfns, unread)
            node[:] = bytes(self._node(pfn) if pfn and not bad else 0 for pfn, bad in known)
        return {
            "refcount": bytearray(references), "folio_mapcount": bytearray(mapped),
            "mm_ids": bytearray(8 * nr), "mm_id_mapcounts": bytearray(8 * nr),
            "folio_state": state, "node": node, "broken": broken,
        }  # fmt: skip

    def _pages_of(self, pfns: array[int], runs: bytes) -> tuple[bytes, bytearray]:
        """The struct page of each frame, or one that nobody maps; and 1 where there is none to read."""
        size, where = self.kernel.page_bytes, self.kernel.at["page._mapcount"]
        nobodys = bytes(where) + b"\xff" * 4 + bytes(size - where - 4)
        rows, lowest, counts = find_rows(pfns, runs)
        addresses = [self.kernel.vmemmap + pfn * size for pfn in lowest]
        found = iter(self.kernel.core.read_each(addresses, [nr * size for nr in counts]))
        parts: list[bytes] = []
        unread, at = bytearray(len(pfns)), 0
        for run in rows:
            nr = len(run)
            part = next(found) if run[-1] else nobodys * nr
            if not part:  # no memory is there: what named it changed meanwhile
                part = nobodys * nr
                unread[at : at + nr] = b"\1" * nr
            elif run[-1] == PREVIOUS:
                last = len(part) - size
                part = b"".join([part[k : k + size] for k in range(last, -1, -size)])
            parts.append(part)
            at += nr
        return b"".join(parts), unread

    def _raw_pages(self, first: int, count: int) -> bytes:
        size = self.kernel.page_bytes
        return self.kernel.core.read(self.kernel.vmemmap + first * size, count * size)

    def _planes(self, name: str, raw: bytes) -> list[bytes]:
        """The bytes of a 32-bit field of struct pages: the lowest of all, then the next."""
        at, size = self.kernel.at[name], self.kernel.page_bytes
        return [raw[at + k :: size] for k in range(4)]

    def _flags(self, raw: bytes) -> dict[str, bytes]:
        """Whether each struct page has the flags that are looked at, 1 or 0."""
        planes: dict[int, bytes] = {}
        found = {}
        for name in ("PG_anon_exclusive", *self.states):
            place, bit = divmod(self.kernel.flags[name], 8)
            if place not in planes:
                at = self.kernel.at["page.flags"] + place
                planes[place] = raw[at :: self.kernel.page_bytes]
            found[name] = planes[place].translate(_HAS_BIT[bit])
        return found

    def _folio(self, head: int, order: int) -> tuple[bytes, ...]:
        """What each page of a large folio has in each column."""
        kernel, at = self.kernel, self.kernel.at
        try:
            raw = self._raw_pages(head, min(1 << order, 3))
        except CoreError:
            return *(bytes(width) for width in (4, 4, 8, 8, 2, 1)), b"\1"

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
        values = references, mapped, ids, counts, state, self._node(head), broken
        return tuple(struct.pack("<" + code, value) for code, value in zip("IIQQHBB", values))

    def _node(self, pfn: int) -> int:
        """The node of a frame."""
        for start, end, node in self.kernel.nodes:
            if start <= pfn < end:
                return node
        return 0


def _side_by_side(planes: list[bytes]) -> bytes:
    """32-bit numbers of their bytes."""
    nr = len(planes[0])
    if all(plane == plane[:1] * nr for plane in planes):
        return b"".join(plane[:1] for plane in planes) * nr
    whole = bytearray(4 * nr)
    for k, plane in enumerate(planes):
        whole[k::4] = plane
    return bytes(whole)


def _one_more(numbers: bytes) -> bytes:
    """32-bit numbers, each with one added."""
    other, nr = b"\xff\xff\xff\xff\0\0\0\0", -(-len(numbers) // 8)
    whole, every_other = int.from_bytes(numbers, "little"), int.from_bytes(other * nr, "little")
    ones = int.from_bytes((b"\1" + bytes(7)) * nr, "little")
    even = (whole & every_other) + ones & every_other
    odd = (whole >> 32 & every_other) + ones & every_other
    return (even | odd << 32).to_bytes(8 * nr + 4, "little")[: len(numbers)]
