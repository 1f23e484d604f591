# SPDX-License-Identifier: GPL-2.0-or-later
"""Which two mms a large folio knows, and whether it counts as shared: as an image says, else by age.

Kernel: include/linux/mm_types.h, struct folio, _mm_ids and _mm_id_mapcount.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mthp.mm.rmap import MM_IDS, UNKNOWN_MM
from mthp.worlds.arrays import ImageProcess

_MM_ID_MASK = (1 << 31) - 1
_MM_IDS_SHARED = 1 << 63
_LOW_HALF = (1 << 32) - 1

Processes = Mapping[int, ImageProcess]
"""mm number -> process."""


class Known(NamedTuple):
    """What a large folio knows. mappings: mm number -> how often that mm maps it, of two mms at most."""

    mappings: dict[int, int]
    shared: bool


def words_of(known: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The kernel's words, ids and mapcounts, of a folio that counts as shared. known: (id, mappings) of two
    mms at most."""
    ids, counts = _MM_IDS_SHARED, (1 << 64) - 1
    for shift, (each, mappings) in zip((0, 32), known, strict=False):
        ids |= each << shift
        counts -= (_LOW_HALF - (mappings - 1)) << shift
    return ids, counts


def known_by_id(numbers: Mapping[int | None, int], ids: int, mapcounts: int) -> Known:
    """As the kernel's words say. numbers: id -> mm number; mms that are not of this world have numbers
    below 0. The counts of the words start at -1.
    """
    mappings = {}
    for shift in (0, 32):
        each = ids >> shift & _MM_ID_MASK
        if each:
            count = (mapcounts >> shift & _LOW_HALF) + 1 & _LOW_HALF
            mappings[numbers.get(each, UNKNOWN_MM - each)] = count
    return Known(mappings, bool(ids & _MM_IDS_SHARED))


def known_by_age(processes: Processes, mappings: Mapping[int, int]) -> Known:
    """The two that came first, of those that map it. One that this world has not stands behind the process
    whose memory it was, and before copies.
    """

    def age(number: int) -> tuple[int, bool]:
        return (0, True) if number == UNKNOWN_MM else (processes[number].age, False)

    if len(mappings) == 1 and UNKNOWN_MM not in mappings:
        lost = processes[next(iter(mappings))].lost
        return Known({}, shared=True) if lost else Known(dict(mappings), shared=False)
    oldest = sorted(mappings, key=age)[:MM_IDS]
    return Known({number: mappings[number] for number in oldest}, shared=True)
