# SPDX-License-Identifier: GPL-2.0-or-later
"""An address space before and after khugepaged, page by page, with why each page is where it is.

The engine runs: what it made of each page table is held beside what was there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mthp.mm.mm_types import Kernel, Vma
from mthp.mm.pgtable_types import (
    HUGE,
    KIND_MASK,
    KIND_SHIFT,
    PFN_SHIFT,
    PRESENT,
    SPECIAL,
    Leaf,
)
from mthp.plan.records import NO_REASON, MappedTo, MemoryMap, PagesAlike, Picture
from mthp.predict.measure import Parts, entries_of, parts_of
from mthp.predict.outcome import Request, run_world
from mthp.predict.records import ChangeKind, Refusal
from mthp.predict.resident import modelled
from mthp.worlds.build import BuiltWorld

MOST_REASONS = 2000
"""Reasons that differ by their changes; where there are more, the changes are left out."""
_SHIFT = 8
"""Of a kind as one number: bits of each code."""


def picture_of(world: BuiltWorld, request: Request) -> Picture:
    """Run khugepaged over a world, and hold the memory that it left beside the memory that was there."""
    vmas = modelled(world.vmas)
    before = _held(world.kernel, vmas)
    outcome = run_world(world, request)
    parts = parts_of(vmas)
    after = _held(world.kernel, vmas)
    owners = sorted({vma.vm_mm.number for vma in vmas})
    pages = _Pages(parts, [owners.index(vma.vm_mm.number) for vma in vmas], world.kernel)
    reasons, which = _reasons(outcome.refusals)
    reason = pages.painted(outcome.refusals, which, {pid: k for k, pid in enumerate(owners)})
    reason[after == MappedTo.NOTHING] = NO_REASON
    return Picture(outcome, pages.runs(vmas, before, after, reason, tuple(reasons)))


def _held(kernel: Kernel, vmas: Sequence[Vma]) -> NDArray[np.uint8]:
    """(parts, PTRS) what each page of each part of the mappings' tables is, by its place in the table; as
    MappedTo has it. Not a step."""
    parts = parts_of(vmas)
    is_table = parts.pmds & (PRESENT | SPECIAL | HUGE) == PRESENT
    tables, others = (np.flatnonzero(each) for each in (is_table, ~is_table))
    ptrs = kernel.geometry.ptrs_per_pte
    found = np.zeros((len(parts.owners), ptrs), np.uint8)
    words = parts.pmds[others]
    huge = np.full(len(others), MappedTo.OTHER, np.uint8)
    huge[words & PRESENT != 0] = MappedTo.FOLIO + kernel.geometry.pmd_order
    huge[(words & PRESENT != 0) & (words >> PFN_SHIFT == 0)] = MappedTo.ZERO
    for row, of_all in zip(others.tolist(), huge.tolist(), strict=True):
        first = parts.indices[row]
        found[row, first : first + parts.counts[row]] = of_all
    done = 0
    for entries in entries_of(kernel, vmas):
        nr = len(entries.parts.owners)
        rows, mine = tables[done : done + nr], entries.parts
        words = entries.words
        code = np.where(words != 0, np.uint8(MappedTo.OTHER), np.uint8(MappedTo.NOTHING))
        code[(words != 0) & (words & (PRESENT | KIND_MASK) == Leaf.SWAP << KIND_SHIFT)] = (
            MappedTo.SWAP
        )
        code[words & PRESENT != 0] = MappedTo.ZERO
        is_page = entries.pfns != 0
        code[is_page] = MappedTo.FOLIO + entries.orders[is_page].astype(np.uint8)
        at = np.repeat(rows * ptrs + mine.indices - entries.starts, mine.counts)
        found.reshape(-1)[at + np.arange(len(words))] = code
        done += nr
    return found


def _reasons(refusals: Sequence[Refusal]) -> tuple[list[Refusal], NDArray[np.int32]]:
    """An example of each kind of refusal, and which of them each refusal is like."""
    for with_change in (True, False):
        places: dict[tuple[object, ...], int] = {}
        examples: list[Refusal] = []
        found = np.zeros(len(refusals), np.int32)
        changes: dict[int, object] = {}
        for k, refusal in enumerate(refusals):
            change = changes.setdefault(id(refusal.change), _change_key(refusal))
            key = (refusal.stage, refusal.status, refusal.order, refusal.allowed_empty,
                   refusal.ended_earlier, change if with_change else None)  # fmt: skip
            if key not in places:
                places[key] = len(examples)
                examples.append(refusal if with_change else refusal._replace(change=None))
            found[k] = places[key]
        if len(examples) <= MOST_REASONS:
            break
    return examples, found


def _change_key(refusal: Refusal) -> object:
    """What changes have in common that read the same; what is raised may be so to any value."""
    if refusal.change is None:
        return None
    return tuple(
        (each.kind, each.knob, each.order, each.kind is ChangeKind.RAISE_KNOB or each.value)
        for each in refusal.change.changes
    )


class _Pages:
    """The parts of some mappings' tables, as rows of pages. processes: the number of each mapping's."""

    def __init__(self, parts: Parts, processes: Sequence[int], kernel: Kernel) -> None:
        self.parts = parts
        self.geometry = kernel.geometry
        self.owner = np.array([*processes, 0], np.int64)[parts.owners]
        self.first = (parts.addresses >> np.uint64(self.geometry.page_shift)).astype(np.int64)

    def painted(
        self, refusals: Sequence[Refusal], which: NDArray[np.int32], processes: dict[int, int]
    ) -> NDArray[np.int32]:
        """(parts, PTRS) of each page the number of the refusal that it met."""
        ptrs = self.geometry.ptrs_per_pte
        found = np.full((len(self.first), ptrs), NO_REASON, np.int32)
        if not len(refusals):
            return found
        process = np.array([processes[each.pid] for each in refusals], np.int64)
        address = np.array([each.address for each in refusals], np.uint64)
        page = (address >> np.uint64(self.geometry.page_shift)).astype(np.int64)
        sizes = np.array([each.span for each in refusals], np.int64)
        order = np.lexsort((self.first, self.owner))
        shift = 52  # no page has so high a number
        keys = (self.owner << shift | self.first)[order]
        row = order[np.searchsorted(keys, process << shift | page, side="right") - 1]
        place = row * ptrs + self.parts.indices[row] + page - self.first[row]
        before = sizes.cumsum() - sizes
        at = np.repeat(place - before, sizes) + np.arange(sizes.sum())
        found.reshape(-1)[at] = np.repeat(which, sizes)
        return found

    def runs(
        self,
        vmas: Sequence[Vma],
        before: NDArray[np.uint8],
        after: NDArray[np.uint8],
        reason: NDArray[np.int32],
        reasons: tuple[Refusal, ...],
    ) -> MemoryMap:
        """Pages that follow each other and are alike, as runs."""
        column = np.arange(self.geometry.ptrs_per_pte)
        index, counts = self.parts.indices[:, None], self.parts.counts[:, None]
        ours = (column >= index) & (column < index + counts)
        value = before.astype(np.int64) | after.astype(np.int64) << _SHIFT
        value |= (reason.astype(np.int64) - NO_REASON) << 2 * _SHIFT
        row, at = np.nonzero(ours & (value != 0))
        page, value = self.first[row] + at - self.parts.indices[row], value[row, at]
        owner = self.parts.owners[row]
        begins = np.flatnonzero(
            (np.diff(value, prepend=-1) != 0)
            | (np.diff(owner, prepend=-1) != 0)
            | (np.diff(page, prepend=-2) != 1)
        )
        numbers, kind = np.unique(value[begins], return_inverse=True)
        starts = np.array([vma.vm_start for vma in vmas] or [0], np.uint64)
        first = (starts >> np.uint64(self.geometry.page_shift)).astype(np.int64)
        mask = (1 << _SHIFT) - 1
        return MemoryMap(
            mapping=_column(owner[begins]),
            first=page[begins] - first[owner[begins]],
            pages=np.diff(begins, append=len(page)),
            kind=_column(kind),
            kinds=tuple(
                PagesAlike(n & mask, n >> _SHIFT & mask, (n >> 2 * _SHIFT) + NO_REASON)
                for n in numbers.tolist()
            ),
            reasons=reasons,
        )


def _column(values: NDArray[Any]) -> NDArray[np.int64]:
    return values.astype(np.int64)
