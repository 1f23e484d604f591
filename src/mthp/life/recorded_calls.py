# SPDX-License-Identifier: GPL-2.0-or-later
"""What recorded system calls do to an address space.

Those that take memory away do it when they begin, for what comes into its place is there before they return;
the others when they return, since before that nobody knows of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from mthp.life.recorded_pages import BY_PTES, GUARD, HUGE_ZERO, NONE
from mthp.life.recorded_space import (
    PROT,
    PROT_WRITE,
    Backing,
    HugeAdvice,
    RecordedSpace,
    SpanTraits,
)

MAP_SHARED, MAP_TYPE, MAP_ANONYMOUS, MAP_GROWSDOWN = 0x01, 0x0F, 0x20, 0x100
MAP_PRIVATE, MAP_LOCKED, MAP_NORESERVE, MAP_POPULATE = 0x02, 0x2000, 0x4000, 0x8000
MAP_NONBLOCK, MAP_STACK, MAP_HUGETLB = 0x10000, 0x20000, 0x40000
MREMAP_DONTUNMAP = 4
ENOMEM = 12
MOST_ERRNO = 4095
MCL_CURRENT = 1
GOES_ON = frozenset({"madvise", "mprotect", "pkey_mprotect"})
"""Calls that answer ENOMEM at a hole, and have done what they do to what is mapped: mprotect() before it."""
AT_BEGIN = frozenset({"munmap", "madvise"})


def failed(result: int) -> int:
    """The error's number that a call returned; 0 if it did not fail."""
    error = (1 << 64) - result
    return error if 0 < error <= MOST_ERRNO else 0


class Calls:
    """Performs calls. shift: of an address. Memory that nobody can have had is not believed: `most` pages
    of an address space."""

    def __init__(self, shift: int, limit: int) -> None:
        self._shift = shift
        self._limit = limit
        self.passed_over: dict[str, int] = {}
        """Calls of which it is not known what they did."""
        self._by_name: dict[str, Callable[[RecordedSpace, list[int], int], None]] = {
            "mmap": self._mmap, "munmap": self._munmap, "mremap": self._mremap,
            "madvise": self._madvise, "mprotect": self._mprotect, "pkey_mprotect": self._mprotect,
            "brk": self._brk, "mlock": self._mlock, "mlock2": self._mlock, "munlock": self._munlock,
            "mlockall": self._mlockall, "munlockall": self._munlockall,
        }  # fmt: skip

    def perform(self, space: RecordedSpace, name: str, args: list[int], result: int) -> None:
        """Do what a call did."""
        error = failed(result)
        call = self._by_name.get(name)
        if error and not (name in GOES_ON and error == ENOMEM):
            return
        if call is not None:
            call(space, args, result)
        elif name in ("process_madvise", "remap_file_pages", "userfaultfd", "shmat"):
            self.passed_over[name] = self.passed_over.get(name, 0) + 1

    def _range(self, address: int, length: int) -> tuple[int, int] | None:
        """The pages of a range; None where it is empty, or beyond every address space."""
        start = address >> self._shift
        end = (address + length + (1 << self._shift) - 1) >> self._shift
        return (start, end) if start < end <= self._limit else None

    def _mmap(self, space: RecordedSpace, args: list[int], result: int) -> None:
        _, length, prot, flags, _, _ = args
        found = self._range(result, length)
        if found is None:
            return
        start, end = found
        backing = Backing.ANON if flags & MAP_ANONYMOUS else Backing.FILE
        if flags & MAP_TYPE != MAP_PRIVATE or flags & MAP_HUGETLB:
            backing = Backing.OTHER
        reserved = bool(flags & MAP_NORESERVE)
        traits = SpanTraits(
            backing,
            prot & PROT,
            {Backing.ANON: "[anon]", Backing.FILE: "[file]", Backing.OTHER: "[shared]"}[backing],
            HugeAdvice.NOHUGEPAGE if flags & MAP_STACK else HugeAdvice.NONE,
            reserved=reserved,
            accounted=bool(prot & PROT_WRITE) and not reserved,
            grows=bool(flags & MAP_GROWSDOWN),
            locked=bool(flags & MAP_LOCKED),
        )
        space.map(start, end, traits)
        if flags & MAP_LOCKED or (flags & MAP_POPULATE and not flags & MAP_NONBLOCK):
            space.populate(start, end)

    def _munmap(self, space: RecordedSpace, args: list[int], _: int) -> None:
        found = self._range(args[0], args[1])
        if found is not None:
            space.unmap(*found)

    def _mremap(self, space: RecordedSpace, args: list[int], result: int) -> None:
        """Kernel: mm/mremap.c, mremap_to(), remap_move(), which moves several mappings at once."""
        old, new = self._range(args[0], args[1]), self._range(result, args[2])
        if old is None or new is None:
            return
        grown = new[1] - new[0] - (old[1] - old[0])
        if grown < 0:
            space.unmap(old[1] + grown, old[1])
            old = old[0], old[1] + grown
        if new[0] == old[0]:
            last = space.find(old[1] - 1)
            if grown > 0 and last is not None:
                space.map(old[1], new[1], last.traits, last.shift)
            return
        spans = [replace(span) for span in space.cut(*old)]
        away = new[0] - old[0]
        for span in spans:
            end = new[1] if grown > 0 else span.end + away
            shift = span.shift - away if span.anon else 0
            space.map(span.start + away, end, span.traits, shift, span)
            space.move(span.start, span.end - span.start, span.start + away)
            if not args[3] & MREMAP_DONTUNMAP:
                space.unmap(span.start, span.end)

    def _mprotect(self, space: RecordedSpace, args: list[int], _: int) -> None:
        found = self._range(args[0], args[1])
        if found is not None:
            start, end = found[0], found[0]
            while end < found[1] and (index := space.at(end)) >= 0:  # up to the first hole
                end = min(space.spans[index].end, found[1])
            if start < end:
                space.protect(start, end, args[2] & PROT)

    def _brk(self, space: RecordedSpace, _: list[int], result: int) -> None:
        old, new = (-(-each >> self._shift) for each in (space.brk, result))
        if space.brk and self._limit >= new > old:
            traits = SpanTraits(Backing.ANON, 3, "[heap]", accounted=True)
            space.map(old, new, traits)
        elif space.brk and new < old:
            space.unmap(new, old)
        space.brk = result

    def _mlock(self, space: RecordedSpace, args: list[int], _: int) -> None:
        found = self._range(args[0], args[1])
        if found is not None:
            space.change(*found, locked=True)
            space.populate(*found)

    def _munlock(self, space: RecordedSpace, args: list[int], _: int) -> None:
        found = self._range(args[0], args[1])
        if found is not None:
            space.change(*found, locked=False)

    def _mlockall(self, space: RecordedSpace, args: list[int], _: int) -> None:
        if args[0] & MCL_CURRENT:
            for span in list(space.spans):
                span.traits = replace(span.traits, locked=True)
                space.populate(span.start, span.end)

    def _munlockall(self, space: RecordedSpace, _: list[int], __: int) -> None:
        for span in space.spans:
            span.traits = replace(span.traits, locked=False)

    # madvise

    def _madvise(self, space: RecordedSpace, args: list[int], _: int) -> None:
        found = self._range(args[0], args[1])
        if found is None:
            return
        advice = args[2]
        if advice == MADV_HUGEPAGE:
            space.advised_huge(*found)
        if advice in TRAIT_OF_ADVICE:
            space.change(*found, **TRAIT_OF_ADVICE[advice])
        elif advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED):
            for span in space.mapped(*found):
                space.zap(*span)
        elif advice == MADV_FREE:
            self._free(space, *found)
        elif advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE):
            space.populate(*found)
        elif advice == MADV_COLLAPSE:
            self._collapse(space, *found)
        elif advice == MADV_GUARD_INSTALL:
            self._guard(space, *found)
        elif advice == MADV_GUARD_REMOVE:
            for _, row, low, high in space.parts(*found):
                part = space.pages.folio[row, low:high]
                part[part == GUARD] = NONE
        elif advice == MADV_PAGEOUT:
            self.passed_over["MADV_PAGEOUT"] = self.passed_over.get("MADV_PAGEOUT", 0) + 1

    def _free(self, space: RecordedSpace, start: int, end: int) -> None:
        """Split the folios that the range cuts; the pages stay until memory is short. Kernel:
        mm/madvise.c, madvise_free_pte_range(); mm/huge_memory.c, madvise_free_huge_pmd()."""
        pages = space.pages
        before = pages.rss
        for _, row, low, high in space.parts(start, end):
            for edge in ((low, low - 1), (high - 1, high)):
                if not 0 <= edge[1] < pages.ptrs:
                    continue
                inside, outside = pages.folio[row, list(edge)].tolist()
                if inside <= 0 or inside != outside:
                    continue
                if pages.mapped[inside] == np.count_nonzero(pages.folio[row] == inside):
                    pages.split_folio(inside, row, 0, pages.ptrs)
        space.anon += pages.rss - before

    def _guard(self, space: RecordedSpace, start: int, end: int) -> None:
        space.zap(start, end, free=False)
        bits = space.pages.pmd_order
        for table in range(start >> bits, ((end - 1) >> bits) + 1):
            base = table << bits
            row = space.row(table)
            if space.pages.how[row] == HUGE_ZERO:
                space.pages.split_pmd(row)
            space.pages.folio[row, max(start - base, 0) : end - base] = GUARD

    def _collapse(self, space: RecordedSpace, start: int, end: int) -> None:
        """Collapse each whole table of the range. Kernel: mm/khugepaged.c, madvise_collapse()."""
        pages, bits = space.pages, space.pages.pmd_order
        before = pages.rss
        for table in range(-(-start >> bits), end >> bits):
            span = space.find(table << bits)
            row = space.tables.get(table)
            if row is None or span is None or span.end < (table + 1) << bits:
                continue
            fits = span.traits.backing is Backing.ANON and pages.how[row] == BY_PTES
            if fits and (pages.folio[row] > 0).any() and not (pages.folio[row] == GUARD).any():
                there = pages.collapse(row, 0, bits)
                pages.work.copied += there
                pages.work.cleared += pages.ptrs - there
        space.anon += pages.rss - before


MADV_DONTNEED, MADV_FREE, MADV_DONTFORK, MADV_DOFORK = 4, 8, 10, 11
MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_WIPEONFORK, MADV_KEEPONFORK = 14, 15, 18, 19
MADV_PAGEOUT, MADV_POPULATE_READ, MADV_POPULATE_WRITE = 21, 22, 23
MADV_DONTNEED_LOCKED, MADV_COLLAPSE, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE = 24, 25, 102, 103
TRAIT_OF_ADVICE: dict[int, dict[str, Any]] = {
    MADV_HUGEPAGE: {"advice": HugeAdvice.HUGEPAGE},
    MADV_NOHUGEPAGE: {"advice": HugeAdvice.NOHUGEPAGE},
    MADV_DONTFORK: {"forked": False},
    MADV_DOFORK: {"forked": True},
    MADV_WIPEONFORK: {"wiped": True},
    MADV_KEEPONFORK: {"wiped": False},
}
