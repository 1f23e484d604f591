# SPDX-License-Identifier: GPL-2.0-or-later
"""A deep capture: the page-table entries themselves and the folios behind them, for the tables that
pagemap showed.

Kernel: arch/x86/include/asm/pgtable_types.h, pgtable_64.h.
"""

from __future__ import annotations

import struct
from array import array
from typing import Any, Callable, Iterator

from mthp.image.capture.kcore import CoreError
from mthp.image.capture.kernel import KernelStructures, ProcessMm
from mthp.image.capture.pagemap import ZERO_PAGES, Batch, without
from mthp.image.capture.pages import EXCLUSIVE, FRAME, GLOBAL, HUGE_PAGE, PRESENT_BIT, Pages
from mthp.words.units import Geometry

FRAMES_AT_ONCE = 256
_ANY = bytes(255 if value else 0 for value in range(256))


class DeepReader:
    """Adds the members of a deep capture to batches of tables, one process after another."""

    def __init__(self, kernel: KernelStructures, pages: Pages, geometry: Geometry) -> None:
        self.kernel = kernel
        self.pages = pages
        self.geometry = geometry
        self.mm: ProcessMm | None = None
        self.empty: list[list[int]] = []
        self._list, self._at, self._address = kernel.khugepaged()

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
            "empty_tables": self.empty,
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
        low, nr = batch.low, self.geometry.ptrs_per_pte
        bits, frames = self.pages.decode(b"".join(self._tables_of(batch.addresses)))
        wrong = set()
        for i in range(0, len(low), nr) if frames.tobytes() != pfns.tobytes() else ():
            if frames[i : i + nr] == pfns[i : i + nr]:
                continue
            both = zip(low[i : i + nr], frames[i : i + nr], pfns[i : i + nr])
            if any(here and ours != theirs for here, ours, theirs in both):
                wrong.add(i // nr)
        found = self.pages.look_up(without(ZERO_PAGES, pfns, low), orders)
        if 1 in found.broken:
            wrong |= {i // nr for i in range(0, len(low), nr) if 1 in found.broken[i : i + nr]}
        there = int.from_bytes(low.translate(_ANY), "little")
        every = (
            int.from_bytes(bits, "little") | int.from_bytes(found.exclusive, "little") * EXCLUSIVE
        )
        parts["pte_bits"] = (every & there).to_bytes(len(low), "little")
        parts.update(found.members)
        batch.misfits = sorted({*batch.misfits, *wrong})

    def zero_filled(self, pfns: array[int]) -> bytes:
        """1 for each frame that holds nothing but zeros, and 0 for the others and where the pfn is 0. Nothing
        else is kept of what they hold."""
        found, size = bytearray(len(pfns)), self.geometry.page_size
        zeros, i = bytes(size), 0
        while i < len(pfns):
            j = i + 1
            while j < min(len(pfns), i + FRAMES_AT_ONCE) and pfns[j] == pfns[i] + j - i:
                j += 1
            if pfns[i]:
                try:
                    data = self.kernel.core.physical(pfns[i] * size, (j - i) * size)
                except CoreError:
                    data = b""
                for k in range(i, j):
                    found[k] = data.startswith(zeros, (k - i) * size)
            i = j
        return bytes(found)

    def note_empty(self, windows: list[tuple[int, int]], known: set[int]) -> None:
        """Note the tables in windows, ascending, that are there, but not among the known: with nothing."""
        assert self.mm is not None
        self.empty, size = [], self.geometry.pmd_size
        for start, end in windows:
            for at, entry in self.pmds(start, end):
                if entry & (PRESENT_BIT | HUGE_PAGE) != PRESENT_BIT or at in known:
                    continue
                if self.empty and self.empty[-1][1] == at:
                    self.empty[-1][1] = at + size
                else:
                    self.empty.append([at, at + size])

    def pmds(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The PMD entries of a range of addresses that are not empty, with the first address of each."""
        assert self.mm is not None
        top = self.kernel.levels - 1
        return self._below(self.mm.pgd, self.kernel.core.read, top, 0, start, end)

    def _below(
        self,
        table: int,
        read: Callable[[int, int], bytes],
        level: int,
        base: int,
        start: int,
        end: int,
    ) -> Iterator[tuple[int, int]]:
        """The same, below a table. level: of the table; base: the first address that it is for."""
        nr, size = (
            self.geometry.ptrs_per_pte,
            1 << self.geometry.page_shift + level * self.geometry.pmd_order,
        )
        try:
            entries = memoryview(read(table, 8 * nr)).cast("Q")
        except CoreError:
            return
        for k in range(max(start - base, 0) // size, min(nr, -(-(end - base) // size))):
            if level == 1:
                if entries[k]:
                    yield base + k * size, entries[k]
            elif entries[k] & (PRESENT_BIT | HUGE_PAGE) == PRESENT_BIT:
                below = entries[k] & FRAME & ~self.kernel.encrypted
                at = base + k * size
                yield from self._below(below, self.kernel.core.physical, level - 1, at, start, end)

    def table(self, address: int) -> bytes:
        """The entries of the table of an address; those that a huge PMD stands for; zeros of none."""
        return b"".join(self._tables_of([address]))

    def _tables_of(self, addresses: list[int]) -> Iterator[bytes]:
        """The same of each address, ascending: what stands above is read once for all that it is above."""
        shift, nr = self.geometry.pmd_shift, self.geometry.ptrs_per_pte
        known, pmds = -1, memoryview(b"")
        for address in addresses:
            place = address >> shift
            if place // nr != known:
                known, pmds = place // nr, memoryview(self._pmds_of(address)).cast("Q")
            yield self._below_pmd(pmds[place % nr] & ~self.kernel.encrypted)

    def _pmds_of(self, address: int) -> bytes:
        """The table of PMD entries that an address's is in; zeros where there is none."""
        assert self.mm is not None
        geometry, core = self.geometry, self.kernel.core
        nr, shift = geometry.ptrs_per_pte, geometry.page_shift
        try:
            read, table = core.read, self.mm.pgd
            for level in range(self.kernel.levels - 1, 1, -1):
                place = address >> shift + level * geometry.pmd_order & nr - 1
                entry = int.from_bytes(read(table + 8 * place, 8), "little")
                if entry & (PRESENT_BIT | HUGE_PAGE) != PRESENT_BIT:
                    return bytes(8 * nr)
                read, table = core.physical, entry & FRAME & ~self.kernel.encrypted
            return read(table, 8 * nr)
        except CoreError:
            return bytes(8 * nr)

    def _below_pmd(self, entry: int) -> bytes:
        """The entries that a PMD entry leads to, or stands for."""
        geometry = self.geometry
        nr, shift = geometry.ptrs_per_pte, geometry.page_shift
        if entry & (PRESENT_BIT | HUGE_PAGE) == PRESENT_BIT:
            try:
                return self.kernel.core.physical(entry & FRAME, 8 * nr)
            except CoreError:
                return bytes(8 * nr)
        if not entry & (PRESENT_BIT | GLOBAL):
            return struct.pack("<Q", entry) * nr
        mask, step = (0, 1 << shift) if entry & PRESENT_BIT else (FRAME, -1 << shift)
        first = ((entry ^ mask) & FRAME & -geometry.pmd_size ^ mask) | entry & ~FRAME
        return array("Q", range(first, first + nr * step, step)).tobytes()
