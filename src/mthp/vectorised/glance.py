# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of which it is seen at a glance that the scan comes to nothing: many are looked at together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.mm.mm_types import Kernel, Mm
from mthp.mm.page_flags import PG_REFERENCED, PG_YOUNG
from mthp.mm.pgtable_types import (
    HUGE,
    PFN_SHIFT,
    PRESENT,
    PTE_NONE,
    YOUNG,
    pmd_is_table,
    pmd_pgtable,
)
from mthp.vectorised.plain_pages import KIND, UNWANTED, WANTED
from mthp.words.events import NO_PFN, ScanPmd
from mthp.words.profiles import ScanCost
from mthp.words.results import ScanResult
from mthp.words.units import Address

_MAPPED: Final = PRESENT | HUGE
"""Bits of a huge PMD, as pmd_trans_huge() asks."""
_MOST: Final = 64
"""Tables that are looked at together."""
_WIDTH: Final = 16
"""PTEs that are looked at first, beside twice as many as may be holes."""
_NONE: Final = np.zeros(0, np.int8)


class Glance(NamedTuple):
    """What the scan would say of a table, what that costs of pages_to_scan, and the pages that it would
    have come to by then: their PTEs (a bitmap) and nodes. None: it has to be looked into.
    """

    event: ScanPmd
    progress: int
    present_ptes: int = 0
    nodes: NDArray[np.int8] = _NONE


def passing_costs(kernel: Kernel) -> int:
    """What a table that is not there, or that a huge PMD stands for, costs of pages_to_scan."""
    per_pmd = kernel.profile.progress is ScanCost.PER_PMD
    return kernel.geometry.ptrs_per_pte if per_pmd else 1


def pmd_slots(mm: Mm, address: Address, end: Address) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The PMD slots of [address, end), page by page where there is one: the first's number, values."""
    shift, nr = mm.geometry.pmd_shift, mm.geometry.ptrs_per_pte
    at, stop = address >> shift, end >> shift
    numbers = mm.pmd_numbers  # a mapping may span far more than there is
    for k in range(bisect_left(numbers, at // nr), bisect_left(numbers, -(-stop // nr))):
        base = numbers[k] * nr
        first = max(at, base)
        yield first, mm.pmd_pages[numbers[k]].pmds.view()[first - base : stop - base]


def passes(mm: Mm, address: Address, most_holes: int | None) -> bool:
    """Whether there is a table at the address, and the scan does not end at its holes."""
    nr = mm.geometry.ptrs_per_pte
    number, slot = divmod(address >> mm.geometry.pmd_shift, nr)
    page = mm.pmd_pages.get(number)
    if page is None or not pmd_is_table(page.pmds.raw[slot]):
        return False
    return most_holes is not None and _holes(mm, page.pmds.raw[slot])[1] <= most_holes


def _holes(mm: Mm, pmd: int) -> tuple[NDArray[np.int64], int]:
    """A table's entries, and how many of them name no frame but the zero page's."""
    words = mm.kernel.tables[pmd_pgtable(pmd)].ptes.view()
    return words, mm.geometry.ptrs_per_pte - int(np.count_nonzero(words >> PFN_SHIFT))


def glances(
    mm: Mm, address: Address, end: Address, most_holes: int | None
) -> Iterator[tuple[Address, Glance | None]]:
    """Each table of [address, end) that is there, up to one that has to be looked into.

    most_holes: with more of them it is refused; None: how many does not matter.
    """
    shift = mm.geometry.pmd_shift
    there: list[tuple[Address, int]] = []
    together = 1
    for first, pmds in pmd_slots(mm, address, end):
        for slot in pmds.nonzero()[0].tolist():
            there.append(((first + slot) << shift, int(pmds[slot])))
            if len(there) == together:
                yield from _look_at(mm, there, most_holes)
                there, together = [], min(2 * together, _MOST)
    yield from _look_at(mm, there, most_holes)


def _look_at(
    mm: Mm, there: list[tuple[Address, int]], most_holes: int | None
) -> Iterator[tuple[Address, Glance | None]]:
    cost = passing_costs(mm.kernel)
    tables: dict[Address, NDArray[np.int64]] = {}
    for at, pmd in there:
        if pmd & _MAPPED != _MAPPED:
            if most_holes is None or not pmd_is_table(pmd):
                break
            words, holes = _holes(mm, pmd)
            if holes <= most_holes:
                break
            tables[at] = words
    refused: Iterator[Glance | None] = iter(())
    if tables and most_holes is not None:
        refused = iter(_with_many_holes(mm, tables, most_holes))
    for at, pmd in there:
        if pmd & _MAPPED == _MAPPED:
            yield at, Glance(ScanPmd(mm.number, at, NO_PFN, 0, 0, ScanResult.PMD_MAPPED, 0), cost)
        else:
            yield at, next(refused, None)


def _with_many_holes(
    mm: Mm, tables: dict[Address, NDArray[np.int64]], most_holes: int
) -> Iterator[Glance | None]:
    """What is said of tables that are refused since more than most_holes of their PTEs map nothing, if all
    pages that the scan meets before are plain ones, as plain_pages() says, and small.
    """
    kernel, mem = mm.kernel, mm.kernel.mem
    for width in (2 * most_holes + _WIDTH, mm.geometry.ptrs_per_pte):  # most have holes soon
        words = np.stack([each[:width] for each in tables.values()])
        present = words & PRESENT != 0
        pfns = np.where(present, words >> PFN_SHIFT, 0)
        holes = (words == PTE_NONE) | (present & (pfns == 0))
        met = holes.cumsum(axis=1)
        enough = met[:, -1] > most_holes
        if enough.all():
            break
    scanned = np.where(enough, (met <= most_holes).sum(axis=1) + 1, 0)
    pages = ~holes & (np.arange(words.shape[1]) < scanned[:, None])
    rows = pages.nonzero()[0]
    folios = mem.head.view()[pfns[pages]].astype(np.intp)  # the type that indexes fastest
    flags = mem.flags.view()[folios]
    plain = (words[pages] & KIND == PRESENT) & (flags & (WANTED | UNWANTED) == WANTED)
    plain &= (mem.order.view()[folios] == 0) & (mem.mapcount.view()[folios] == 1)
    plain &= mem.refcount.view()[folios] == 1
    enough[rows[~plain]] = False
    used = (words[pages] & YOUNG != 0) | (flags & (PG_REFERENCED | PG_YOUNG) != 0)
    referenced = np.bincount(rows[used], minlength=len(words)).tolist()
    per_pmd = kernel.profile.progress is ScanCost.PER_PMD
    bits = np.packbits(pages, axis=1, bitorder="little")
    starts = np.searchsorted(rows, np.arange(len(words) + 1)).tolist()
    nodes = mem.nid.view()[folios]
    for k, at in enumerate(tables):
        if not enough[k]:
            yield None
            return
        event = ScanPmd(
            mm.number, at, NO_PFN, referenced[k], most_holes + 1, ScanResult.EXCEED_NONE_PTE, 0
        )
        yield Glance(
            event,
            passing_costs(kernel) if per_pmd else int(scanned[k]),
            int.from_bytes(bits[k].tobytes(), "little"),
            nodes[starts[k] : starts[k + 1]],
        )
