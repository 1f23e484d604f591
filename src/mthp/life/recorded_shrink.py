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

from mthp.life.recorded_pages import BY_PMD, BY_PTES, PageStore
from mthp.life.recorded_records import GivenBack, SeenZero, Shrunk
from mthp.life.recorded_space import RecordedSpace
from mthp.words.profiles import Profile, SharedSplit
from mthp.words.settings import Settings


class _Places:
    """Where large folios are mapped. rows, at, folio, which: of each place, its table, its page in that, what
    it maps, and the page of that folio, which is an index into: number, its folio; written, whether anybody
    ever wrote to it; look, the last look at it, 0 if there was none; and filled, whether it holds something,
    as far as that is known."""

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
        self.written = self.filled = stored > 0
        self.look = np.zeros(len(keys), np.int64)
        if pages.looks:
            seen = pages.seen[self.rows, self.at].astype(np.int64)
            np.maximum.at(self.look, self.which, np.abs(seen))
            last = (seen != 0) & (np.abs(seen) == self.look[self.which])
            zero = np.zeros(len(keys), np.bool_)
            zero[self.which[last]] = seen[last] > 0
            self.filled = np.where(self.look > 0, ~zero, self.written)


class _Asked:
    """The folios that may be split: partly mapped ones, and huge ones that are on the queue. folio: their
    numbers, and which of them each page of places is of; in_use: those that left the queue.

    Kernel: mm/huge_memory.c, deferred_split_scan(), thp_underused().
    """

    def __init__(
        self,
        pages: PageStore,
        rows: NDArray[np.int64],
        places: _Places,
        settings: Settings,
        in_use: set[int],
    ) -> None:
        self.folio, self._of, mapped = np.unique(
            places.number, return_inverse=True, return_counts=True
        )
        by_pmd = np.unique(pages.folio[rows[pages.how[rows] == BY_PMD], 0])
        self._size = 1 << pages.order[self.folio].astype(np.int64)
        self.partly = (mapped < self._size) & ~np.isin(self.folio, by_pmd)
        whole = ~self.partly & (pages.order[self.folio] == pages.pmd_order)
        out = np.isin(self.folio, np.fromiter(in_use, np.int64))
        self.whole = whole & ~out & settings.shrink_underused
        self._limit = settings.max_ptes_none
        self._ptrs = pages.ptrs

    @property
    def of(self) -> NDArray[np.bool_]:
        """Which pages of places are of a folio whose contents matter."""
        looks_at_whole = self._limit != self._ptrs - 1
        found: NDArray[np.bool_] = (self.partly | (self.whole & looks_at_whole))[self._of]
        return found

    def underused(self, filled: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of the folios are split though they are whole. filled: the pages that hold something."""
        if self._limit == self._ptrs - 1:
            return np.zeros(len(self.folio), np.bool_)
        zero = self._size - np.bincount(self._of, filled, len(self.folio))
        found: NDArray[np.bool_] = self.whole & (zero > self._limit)
        return found


class _Shrinking:
    """Shrinkers that are asked once: what they split, by what is known of contents."""

    def __init__(
        self,
        pages: PageStore,
        places: _Places,
        asked: _Asked,
        filled: NDArray[np.bool_],
        locked: NDArray[np.bool_] | None,
        profile: Profile,
    ) -> None:
        self._pages, self._places = pages, places
        underused = asked.underused(filled)
        wanted = asked.partly | underused
        self.leave = asked.folio[asked.whole & ~underused]
        """Huge pages that are in use."""
        self.alone: dict[int, int] = {}
        """Folios that cannot be split, and the table whose PMD is split alone."""
        if profile.shared_split is not SharedSplit.EVERY_PMD:
            for each in asked.folio[wanted].tolist():
                row = _split_alone(pages, places, each)
                if row is not None:
                    self.alone[each] = row
            wanted &= ~np.isin(asked.folio, np.fromiter(self.alone, np.int64))
        self.chosen = asked.folio[wanted]
        self._mine = np.isin(places.folio, self.chosen)
        self._kept = filled[places.which]
        if locked is not None:
            self._kept = self._kept | locked[places.rows, places.at]
        kept = np.unique(places.which[self._mine & self._kept])
        frames = int((1 << pages.order[self.chosen].astype(np.int64)).sum())
        self.gives = GivenBack(
            int(np.count_nonzero(underused & wanted)),
            int(np.count_nonzero(self._mine & ~self._kept)),
            frames - len(kept),
        )

    def split(self) -> None:
        """Make small folios of large ones, and have the zero page in the place of pages of zeroes. Kernel:
        mm/huge_memory.c, __folio_split(); mm/migrate.c, try_to_map_unused_to_zeropage()."""
        pages, places, mine = self._pages, self._places, self._mine
        for row in self.alone.values():
            pages.split_pmd(row)
        rows, at, which = places.rows[mine], places.at[mine], places.which[mine]
        kept = self._kept[mine]
        pages.unmap(pages.folio[rows, at])
        pages.how[np.unique(rows[pages.how[rows] == BY_PMD])] = BY_PTES
        pages.forget(rows[~kept], at[~kept])
        pages.guarded[rows[~kept], at[~kept]] = 0
        each, new, counts = np.unique(which[kept], return_inverse=True, return_counts=True)
        first = pages.new_folios(len(each), 0)
        pages.faulted[first : first + len(each)] = pages.faulted[places.number[each]]
        pages.folio[rows[kept], at[kept]] = (first + new).astype(np.int32)
        pages.mapped[first : first + len(each)] = counts
        pages.rss += len(new)


def shrink(
    pages: PageStore,
    spaces: Iterable[RecordedSpace],
    settings: Settings,
    profile: Profile,
    in_use: set[int],
    time: int,
    looks: NDArray[np.int64],
) -> Shrunk:
    """Do so. in_use: huge pages that left the queue, being in use or not to be split; more are added. looks:
    when it was looked which pages are zero."""
    spaces = list(spaces)
    rows = np.array([row for each in spaces for row in each.tables.values()], np.int64)
    places = _Places(pages, rows)
    asked = _Asked(pages, rows, places, settings, in_use)
    locked = _locked(pages, spaces)
    shrinking = _Shrinking(pages, places, asked, places.filled, locked, profile)
    seen = None
    if pages.looks:
        blind = _Shrinking(pages, places, asked, places.written, locked, profile)
        written = asked.of & places.written
        look = places.look[written & (places.look > 0)]
        ages = time - looks[look - 1]
        seen = SeenZero(
            int(np.count_nonzero(written)),
            len(look),
            int(np.count_nonzero(written & ~places.filled)),
            int(ages.min(initial=time)),
            int(ages.max(initial=0)),
            blind.gives,
        )
    split = Counter(pages.order[shrinking.chosen].tolist())
    in_use.update(shrinking.leave.tolist())
    in_use.update(shrinking.alone)
    rss = {id(each): _mapped(pages, each) for each in spaces}
    shrinking.split()
    for each in spaces:
        each.anon += _mapped(pages, each) - rss[id(each)]
    return Shrunk(time, dict(sorted(split.items())), shrinking.gives, seen)


def _mapped(pages: PageStore, space: RecordedSpace) -> int:
    return int(np.count_nonzero(pages.folio[[*space.tables.values()]] > 0))


def _split_alone(pages: PageStore, places: _Places, folio: int) -> int | None:
    """The table whose PMD is split alone, where a folio cannot be split for it: the first of those that map
    it; None where it can be.

    Divergence: the first is the oldest process, and the folio is not taken to be partly mapped afterwards.
    Kernel: mm/rmap.c, try_to_migrate_one(), before 7.2.
    """
    rows = list(dict.fromkeys(places.rows[places.folio == folio].tolist()))
    by_pmd = [row for row in rows if pages.how[row] == BY_PMD]
    return by_pmd[0] if by_pmd and rows[-1] != by_pmd[0] else None


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
