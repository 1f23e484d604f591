# SPDX-License-Identifier: GPL-2.0-or-later
"""A deep capture: the page-table entries themselves and the folios behind them, for the tables that
pagemap showed.

Kernel: arch/x86/include/asm/pgtable_types.h, pgtable_64.h.
"""

from __future__ import annotations

import struct
from array import array
from typing import Any, Dict

from mthp.image.capture.kcore import CoreError
from mthp.image.capture.kernel import LiveKernel, ProcessMm
from mthp.image.capture.pagemap import ZERO, Batch
from mthp.image.capture.pages import Pages
from mthp.words.units import Geometry

YOUNG, DIRTY, WRITABLE, SOFT_DIRTY, UFFD, PROT_NONE, EXCLUSIVE = (1 << k for k in range(7))
"""Bits of the `pte_bits` member."""
# x86: P, RW, US, PWT, A, D, PS, G, the software's bits 10 and 11; of the top byte, bit 58.
_P, _RW, _A, _D, _PS, _G = 1, 2, 32, 64, 128, 256
_SOFT_UFFD, _SOFT_DIRTY = 1 << 10, 1 << 11
_SWP_SOFT_DIRTY, _SWP_UFFD, _SWP_EXCLUSIVE = _RW, 4, 8
_SAVED_DIRTY = bytes(value & 4 for value in range(256))
_FRAME = (1 << 52) - (1 << 12)


class _Bits(Dict[int, int]):
    """The bits of pte_bits that the low 16 bits of an entry make, worked out once."""

    def __missing__(self, low: int) -> int:
        pairs: tuple[tuple[int, int], ...]
        if low & (_P | _G):
            pairs = (
                (_A, YOUNG), (_D, DIRTY), (_RW, WRITABLE), (_SOFT_DIRTY, SOFT_DIRTY), (_SOFT_UFFD, UFFD),
            )  # fmt: skip
        else:
            pairs = ((_SWP_SOFT_DIRTY, SOFT_DIRTY), (_SWP_UFFD, UFFD), (_SWP_EXCLUSIVE, EXCLUSIVE))
        bits = sum(bit for of, bit in pairs if low & of)
        if low & (_P | _G) == _G:
            bits |= PROT_NONE
        self[low] = bits
        return bits


class DeepReader:
    """Adds the members of a deep capture to batches of tables, one process after another."""

    def __init__(self, kernel: LiveKernel, pages: Pages, geometry: Geometry) -> None:
        self.kernel = kernel
        self.pages = pages
        self.geometry = geometry
        self.mm: ProcessMm | None = None
        self._list, self._at, self._address = kernel.khugepaged()
        self._bits = _Bits()

    def enter(self, pid: int) -> None:
        """Turn to a process."""
        self.mm = self.kernel.mm_of(pid)
        self.pages.batches = self.kernel.batches()

    def meta(self) -> dict[str, Any]:
        """Where khugepaged stands, for the document."""
        return {"mms": len(self._list), "at": self._at, "address": self._address}

    def process(self) -> dict[str, Any]:
        """What is said of the process."""
        assert self.mm is not None
        place = self._list.index(self.mm.address) if self.mm.address in self._list else None
        return {
            "mm_id": self.mm.mm_id,
            "registered": place,
            "disable_thp": self.mm.disable_thp,
            "pinned": self.mm.pinned,
        }

    def anon_vmas(self) -> dict[tuple[int, int], bool]:
        """Whether each VMA, by start and end, has an anon_vma."""
        assert self.mm is not None
        return self.kernel.anon_vmas(self.mm)

    def add(self, parts: dict[str, bytes], batch: Batch, pfns: array[int], orders: bytes) -> None:
        """Add the members to those of a batch; tables that pagemap or kpageflags contradict are added to
        the batch's misfits.

        pfns: of the entries that are present, 0 of others; orders: of their folios.
        """
        words = b"".join(map(self._table, batch.addresses))
        low, nr = batch.low, self.geometry.ptrs_per_pte
        entries = memoryview(words).cast("Q")
        bits = bytearray(map(self._bits.__getitem__, memoryview(words).cast("H")[0::4]))
        mask = _FRAME & ~self.kernel.encrypted
        frames = array("Q", [(w if w & _P else ~w if w & _G else 0) & mask for w in entries])
        saved = words[7::8].translate(_SAVED_DIRTY)
        for k in range(len(saved)) if saved.strip(b"\0") else ():
            if saved[k] and frames[k]:
                bits[k] |= DIRTY
        wrong = set()
        there = array("Q", [pfn << self.geometry.page_shift for pfn in pfns])
        if frames != there:
            for i in range(0, len(low), nr):
                if frames[i : i + nr] != there[i : i + nr] and any(
                    low[k] and frames[k] != there[k] for k in range(i, i + nr)
                ):
                    wrong.add(i // nr)
        if any(value & ZERO for value in set(low)):
            pfns = array("Q", (0 if value & ZERO else pfn for pfn, value in zip(pfns, low)))
        found = self.pages.look_up(pfns, orders)
        if 1 in found.broken:
            wrong |= {i // nr for i in range(0, len(low), nr) if 1 in found.broken[i : i + nr]}
        if 1 in found.exclusive:
            also = int.from_bytes(found.exclusive, "little") * EXCLUSIVE
            bits[:] = (int.from_bytes(bits, "little") | also).to_bytes(len(bits), "little")
        if 0 in low:
            bits = bytearray(bit if value else 0 for bit, value in zip(bits, low))
        parts["pte_bits"] = bytes(bits)
        parts.update(found.members)
        batch.misfits = sorted({*batch.misfits, *wrong})

    def _table(self, address: int) -> bytes:
        """The entries of the table of an address; those that a huge PMD stands for; zeros of none."""
        assert self.mm is not None
        geometry, core = self.geometry, self.kernel.core
        nr, shift = geometry.ptrs_per_pte, geometry.page_shift
        try:
            level, table = self.kernel.levels - 1, core.read(self.mm.pgd, 8 * nr)
            while True:
                place = address >> shift + level * geometry.pmd_order & nr - 1
                entry = int.from_bytes(table[8 * place : 8 * place + 8], "little")
                entry &= ~self.kernel.encrypted
                if entry & (_P | _PS) != _P:
                    break
                table, level = core.physical(entry & _FRAME, 8 * nr), level - 1
                if not level:
                    return table
        except CoreError:
            return bytes(8 * nr)
        if level > 1:
            return bytes(8 * nr)
        if not entry & (_P | _G):
            return struct.pack("<Q", entry) * nr
        flags, mask = entry & ~_FRAME, 0 if entry & _P else _FRAME
        frame = (entry ^ mask) & _FRAME & -geometry.pmd_size
        return array("Q", [(frame + (k << shift) ^ mask) | flags for k in range(nr)]).tobytes()
