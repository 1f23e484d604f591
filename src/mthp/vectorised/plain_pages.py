# SPDX-License-Identifier: GPL-2.0-or-later
"""A run of PTEs and the folios behind them as arrays, if each is plain."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.mm.mm_types import Mm
from mthp.mm.page_flags import (
    PG_ANON,
    PG_ISOLATED,
    PG_LOCKED,
    PG_LRU,
    PG_MAPPED_SHARED,
    PG_REFERENCED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_YOUNG,
    PG_ZONE_DEVICE,
)
from mthp.mm.pgtable import PteMap
from mthp.mm.pgtable_types import PFN_SHIFT, PRESENT, SPECIAL, UFFD_WP, YOUNG

KIND: Final = PRESENT | UFFD_WP | SPECIAL
"""Bits that tell a plain page (PRESENT alone) from all else; the zero page is special."""
WANTED: Final = PG_LRU | PG_ANON | PG_SWAPBACKED
UNWANTED: Final = PG_LOCKED | PG_ISOLATED | PG_ZONE_DEVICE | PG_SWAPCACHE | PG_MAPPED_SHARED

_count = np.count_nonzero


class PlainPages(NamedTuple):
    """A run of PTEs that all map plain pages, but for holes (none or zero page).

    words, folios, flags: of the mapped PTEs, the first and the last of their folios. mapped: which
    PTEs those are; None if all. small: no folio is large.
    """

    words: NDArray[Any]
    folios: NDArray[Any]
    flags: NDArray[Any]
    mapped: NDArray[np.bool_] | None
    none_or_zero: int
    small: bool

    def referenced(self) -> int:
        """How many PTEs folio_pte_referenced() would count."""
        young = self.words & YOUNG
        nr_young = int(_count(young))
        if nr_young == len(young):
            return nr_young
        used = self.flags & (PG_REFERENCED | PG_YOUNG)
        return int(_count(young | used)) if _count(used) else nr_young


def plain_pages(mm: Mm, pte: PteMap, nr: int, most_holes: int | None) -> PlainPages | None:
    """The nr PTEs from pte on, if each is a hole or a page like any other: anonymous, on the LRU,
    not locked, of one process, with no reference but its mappings'. None if any needs a closer look,
    if there are more holes than most_holes, or if a secondary MMU must be asked who used it.
    """
    if mm.notifiers:
        return None
    mem = pte.kernel.mem
    words = pte.ptes.view()[pte.base : pte.base + nr]
    pfns = words >> PFN_SHIFT
    mapped = None
    none_or_zero = int(_count(words & KIND != PRESENT))
    if none_or_zero:
        mapped = pfns != 0
        holes = words[~mapped]
        none_or_zero = len(holes)
        if most_holes is not None and none_or_zero > most_holes:
            return None
        words, pfns = words[mapped], pfns[mapped]
        markers = _count(holes[holes & PRESENT == 0])
        if markers or not len(words) or _count(words & KIND != PRESENT):
            return None
    folios = mem.head.view().take(pfns).astype(np.intp)  # the type that indexes fastest
    flags = mem.flags.view().take(folios)
    if _count(flags & (WANTED | UNWANTED) != WANTED):
        return None
    mapcounts = mem.mapcount.view().take(folios)
    refcounts = mem.refcount.view().take(folios)
    orders = mem.order.view().take(folios)
    small = not _count(orders)
    if not small:
        large = orders != 0
        refcounts -= np.where(large, mem.large_mapcount.view().take(folios) - 1, 0)
        mapcounts[large] = 1
    if _count((mapcounts != 1) | (refcounts != 1)):
        return None
    return PlainPages(words, folios, flags, mapped, none_or_zero, small)
