# SPDX-License-Identifier: GPL-2.0-or-later
"""Shrinkers are asked for all that they can give, in a replay: large folios are split that are partly mapped,
or huge ones that are underused.

The clear twin is mm/shrinker.py, drop_slab(), with mm/huge_memory_split.py. Whether a folio stands on the
deferred-split queue follows from what maps it: one that is partly mapped does, and a huge page from its
beginning, until it is looked at and found to be in use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mthp.life.recorded_pages import BY_PMD, BY_PTES, ZERO, PageStore
from mthp.life.recorded_records import Shrunk
from mthp.life.recorded_space import RecordedSpace
from mthp.words.profiles import Profile, SharedSplit
from mthp.words.settings import Settings


class _Places:
    """Where large folios are mapped. rows, at, folio, which: of each place, its table, its page in that, what
    it maps, and the page of that folio, which is an index into: number, its folio; and written, whether
    anybody ever wrote to it."""

    def __init__(self, pages: PageStore, rows: NDArray[np.int64]) -> None:
        large = (pages.folio[rows] > 0) & (pages.order[pages.folio[rows]] > 1)
        place, self.at = np.nonzero(large)
        self.rows = rows[place]
        self.folio = pages.folio[self.rows, self.at].astype(np.int64)
        within = self.at & ((1 << pages.order[self.folio].astype(np.int64)) - 1)
        moved = np.isin(self.folio, np.fromiter(pages.scattered, np.int64))
        for k in np.flatnonzero(moved).tolist():
            within[k] = pages.within(int(self.rows[k]), int(self.at[k]))
        keys, self.which = np.unique(self.folio << pages.pmd_order | within, return_inverse=True)
        self.number = keys >> pages.pmd_order
        stored = np.bincount(self.which, pages.written[self.rows, self.at], len(keys))
        self.written = stored > 0


def shrink(
    pages: PageStore,
    spaces: Iterable[RecordedSpace],
    settings: Settings,
    profile: Profile,
    in_use: set[int],
    time: int,
) -> Shrunk:
    """Do so. in_use: huge pages that left the queue, being in use or not to be split; more are added."""
    spaces = list(spaces)
    rows = np.array([row for each in spaces for row in each.tables.values()], np.int64)
    before = pages.rss, pages.frames
    places = _Places(pages, rows)
    chosen, underused = _chosen(pages, rows, places, settings, in_use)
    if profile.shared_split is not SharedSplit.EVERY_PMD:
        stay = np.array([_stays_shared(pages, places, each) for each in chosen.tolist()], np.bool_)
        in_use.update(chosen[stay].tolist())
        chosen, underused = chosen[~stay], underused[~stay]
    split = Counter(pages.order[chosen].tolist())
    keep_zeroes = _locked(pages, spaces)
    rss = {id(each): _mapped(pages, each) for each in spaces}
    _split(pages, places, chosen, keep_zeroes)
    for each in spaces:
        each.anon += _mapped(pages, each) - rss[id(each)]
    return Shrunk(
        time,
        dict(sorted(split.items())),
        int(np.count_nonzero(underused)),
        before[0] - pages.rss,
        before[1] - pages.frames,
    )


def _mapped(pages: PageStore, space: RecordedSpace) -> int:
    return int(np.count_nonzero(pages.folio[[*space.tables.values()]] > 0))


def _chosen(
    pages: PageStore,
    rows: NDArray[np.int64],
    places: _Places,
    settings: Settings,
    in_use: set[int],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The folios that are to be split, and which of them are underused. Kernel: mm/huge_memory.c,
    deferred_split_scan(), thp_underused()."""
    folios, first = np.unique(places.number, return_index=True)
    if not len(folios):
        return folios, folios > 0
    by_pmd = np.unique(pages.folio[rows[pages.how[rows] == BY_PMD], 0])
    size = 1 << pages.order[folios].astype(np.int64)
    pages_mapped = np.diff(np.append(first, len(places.number)))
    partly = (pages_mapped < size) & ~np.isin(folios, by_pmd)
    huge = ~partly & (pages.order[folios] == pages.pmd_order)
    limit, underused = settings.max_ptes_none, np.zeros(len(folios), np.bool_)
    if settings.shrink_underused:
        huge &= ~np.isin(folios, np.fromiter(in_use, np.int64))
        zero = size - np.add.reduceat(places.written.astype(np.int64), first)
        if limit != pages.ptrs - 1:
            underused = huge & (zero > limit)
        in_use.update(folios[huge & ~underused].tolist())
    wanted = partly | underused
    return folios[wanted], underused[wanted]


def _stays_shared(pages: PageStore, places: _Places, folio: int) -> bool:
    """Whether a folio cannot be split, since of those that map it the first one's PMD is split alone.

    Divergence: the first is the oldest process, and the folio is not taken to be partly mapped afterwards.
    Kernel: mm/rmap.c, try_to_migrate_one(), before 7.2.
    """
    rows = list(dict.fromkeys(places.rows[places.folio == folio].tolist()))
    by_pmd = [row for row in rows if pages.how[row] == BY_PMD]
    if not by_pmd or rows[-1] == by_pmd[0]:
        return False
    pages.split_pmd(by_pmd[0])
    return True


def _locked(pages: PageStore, spaces: list[RecordedSpace]) -> NDArray[np.bool_] | None:
    """Which pages of tables lie in locked mappings, where pages of zeroes stay; None where none does."""
    spans = [(space, span) for space in spaces for span in space.spans if span.traits.locked]
    if not spans:
        return None
    found = np.zeros(pages.folio.shape, np.bool_)
    for space, span in spans:
        for _, row, low, high in space.parts(span.start, span.end):
            found[row, low:high] = True
    return found


def _split(
    pages: PageStore,
    places: _Places,
    chosen: NDArray[np.int64],
    keep_zeroes: NDArray[np.bool_] | None,
) -> None:
    """Make small folios of large ones, and have the zero page in the place of pages of zeroes. Kernel:
    mm/huge_memory.c, __folio_split(); mm/migrate.c, try_to_map_unused_to_zeropage()."""
    mine = np.isin(places.folio, chosen)
    rows, at, which = places.rows[mine], places.at[mine], places.which[mine]
    kept = places.written[which]
    if keep_zeroes is not None:
        kept |= keep_zeroes[rows, at]
    pages.unmap(pages.folio[rows, at])
    pages.how[np.unique(rows[pages.how[rows] == BY_PMD])] = BY_PTES
    pages.folio[rows[~kept], at[~kept]] = ZERO
    pages.guarded[rows[~kept], at[~kept]] = 0
    each, new, counts = np.unique(which[kept], return_inverse=True, return_counts=True)
    first = pages.new_folios(len(each), 0)
    pages.faulted[first : first + len(each)] = pages.faulted[places.number[each]]
    pages.folio[rows[kept], at[kept]] = (first + new).astype(np.int32)
    pages.mapped[first : first + len(each)] = counts
    pages.rss += len(new)
