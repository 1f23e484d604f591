# SPDX-License-Identifier: GPL-2.0-or-later
"""What rivals said they did, and what must be found in the end because of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping

from mthp.laws.at_rest import Census, Where
from mthp.mm.gup import PIN
from mthp.mm.mm_types import Kernel, Mm
from mthp.mm.pgtable import mm_find_pmd
from mthp.mm.pgtable_types import (
    SOFT_DIRTY,
    UFFD_WP,
    WRITE,
    Leaf,
    leaf_kind,
    pmd_is_table,
    pmd_none,
    pmd_pgtable,
    pte_none,
    pte_pfn,
    pte_present,
)
from mthp.mm.reports import (
    Discarding,
    Gone,
    Halfway,
    LoadedFrom,
    Moving,
    Pinned,
    Poisoned,
    Registered,
    SoftDirtyCleared,
    StoredTo,
    WalkedNothing,
    WriteProtected,
    Zapped,
    Zapping,
)

Say = Callable[[int, str], None]


class Told:
    """Facts by which contents are judged. initial: what every address held when it began.

    legal: what a load may see. final: address -> task -> what must be read there in the end, if only
    that task wrote. origin, left: where pages moved to (and from where), and away from.
    """

    def __init__(self, kernel: Kernel, initial: Mapping[Where, int | None], say: Say) -> None:
        self.kernel = kernel
        self.initial = initial
        self.say = say
        self.legal: defaultdict[Where, set[int]] = defaultdict(set)
        self.final: defaultdict[Where, dict[str, int]] = defaultdict(dict)
        self.zapped: set[Where] = set()
        self.discarded: set[Where] = set()
        self.origin: dict[Where, Where] = {}
        self.left: set[Where] = set()
        self.pinned: Counter[int] = Counter()
        self.pins: list[Pinned] = []
        self.poisoned: list[Poisoned] = []
        self.protected: list[WriteProtected] = []
        self.missing: set[Where] = set()
        self.cleared: dict[Where, str] = {}
        self.dirtied: set[Where] = set()
        self.halfway: set[Mm] = set()
        self.gone: set[Mm] = set()

    # While tasks run

    def hear(self, said: object) -> None:
        """A rival says something."""
        match said:
            case StoredTo(mm, address, value, by):
                where = mm.number, address
                self.legal[where].add(value)
                self.final[where][by] = value
                if self.cleared.get(where) == by:
                    self.dirtied.add(where)
            case LoadedFrom(mm, address, value, by):
                self._loaded((mm.number, address), value, by)
            case Zapping(mm, start, end):
                for where in self._range(mm, start, end):
                    self.legal[where].add(0)
            case Zapped(mm, start, end, by):
                for where in self._range(mm, start, end):
                    self.final[where][by] = 0
                    self.zapped.add(where)
            case Discarding(mm, start, end):
                for where in self._range(mm, start, end):
                    self.legal[where].add(0)
                    self.discarded.add(where)
            case Moving():
                self._moving(said)
            case Pinned(_, _, page, _):
                self.pins.append(said)
                self.pinned[page] += 1
            case _:
                self._marks(said)

    def _marks(self, said: object) -> None:
        match said:
            case Poisoned():
                self.poisoned.append(said)
            case WriteProtected():
                self.protected.append(said)
            case Registered(mm, start, end):
                everywhere = self._range(mm, start, end)
                self.missing.update(w for w in everywhere if self._is_missing(mm, w[1]))
            case SoftDirtyCleared(mm, start, end, by):
                self.cleared.update(dict.fromkeys(self._range(mm, start, end), by))
            case WalkedNothing(_, _, by):
                self.say(9, f"{by}: update_mmu_cache_range() walks a PMD that points to no table")
            case Gone(mm):
                self.gone.add(mm)
            case Halfway(mm, building):
                (self.halfway.add if building else self.halfway.discard)(mm)

    def _range(self, mm: Mm, start: int, end: int) -> list[Where]:
        return [(mm.number, a) for a in range(start, end, mm.geometry.page_size)]

    def _loaded(self, where: Where, value: int, by: str) -> None:
        if value != self.initial.get(where, 0) and value not in self.legal[where]:
            self.say(3, f"{by} reads {value} at {where[1]:#x}, which nobody stored there")

    def _moving(self, said: Moving) -> None:
        for where in self._range(said.mm, said.start, said.start + said.length):
            new = said.mm.number, where[1] - said.start + said.to
            self.origin[new] = self.origin.get(where, where)
            self.left.add(where)
            self.legal[where].add(0)  # nothing is there any more; a load finds zeroes
            self.legal[new] |= {*self.legal[where], self.initial.get(where, 0) or 0}

    def _is_missing(self, mm: Mm, address: int) -> bool:
        """Whether nothing stands there. mmap_lock is held for writing: nobody else can fill it."""
        pmd = mm_find_pmd(mm, address)
        value = pmd.page.pmds.raw[pmd.slot] if pmd is not None else 0
        if pmd_none(value) or not pmd_is_table(value):
            return pmd_none(value)
        ptes = self.kernel.tables[pmd_pgtable(value)].ptes.raw
        return pte_none(ptes[mm.geometry.pte_index(address)])

    # In the end

    def references(self) -> Counter[int]:
        """Folio -> references that pins and failed memory explain."""
        mem = self.kernel.mem
        kept: Counter[int] = Counter()
        for pin in self.pins:
            kept[mem.head.raw[pin.page]] += PIN
        for said in self.poisoned:
            kept[mem.head.raw[said.page]] += 1
        return kept

    def at_rest(self, census: Census) -> None:
        """Every task has ended: compare."""
        self._contents(census)
        self._pins(census)
        self._entries(census)
        for said in self.poisoned:
            if said.unmapped and census.pte_mappings[said.page]:
                self.say(1, f"page {said.page} is mapped, and its memory failed")

    def _contents(self, census: Census) -> None:
        failed = {said.page for said in self.poisoned}
        for where in {*self.initial, *self.final, *self.origin, *self.left}:
            now = census.contents.get(where, 0)
            wanted = self._wanted(where)
            entry = census.entries.get(where, 0)
            if now in wanted or (_is_poisoned(entry) and pte_pfn(entry) in failed):
                continue
            law = 12 if where in self.zapped and wanted == {0} else 3
            text = " or ".join(str(value) for value in sorted(map(str, wanted)))
            self.say(law, f"{where[1]:#x} reads {now}; the last store was {text}")

    def _wanted(self, where: Where) -> set[int | None]:
        """What may be read at an address in the end."""
        if where in self.origin:
            return {*self._here(self.origin[where]), *self.legal[where]}
        if where in self.left:
            return {0, *self.legal[where]}
        return self._here(where)

    def _here(self, where: Where) -> set[int | None]:
        """The same of pages that stayed. A page that moved may have left before a zap, or after."""
        written = self.final.get(where)
        wanted: set[int | None] = set(written.values()) if written else {self.initial.get(where, 0)}
        if where in self.discarded:
            wanted |= {0}
        if where in self.left and where in self.zapped:
            wanted |= {self.initial.get(where, 0), *self.legal[where]}
        return wanted

    def _pins(self, census: Census) -> None:
        for pin in self.pins:
            if not pin.exclusive:
                continue
            where = pin.mm.number, pin.address
            entry = census.entries.get(where, 0)
            if pte_present(entry) and pte_pfn(entry) != pin.page and where not in self.zapped:
                self.say(
                    3, f"page {pin.page} is pinned and {pin.address:#x} maps {pte_pfn(entry)} now"
                )

    def _entries(self, census: Census) -> None:
        for said in self.protected:
            where = said.mm.number, said.address
            entry = census.entries.get(where, 0)
            if where in self.zapped | self.left:
                continue  # what stands there now is another page
            if pte_present(entry) and entry & WRITE and not entry & UFFD_WP:
                self.say(8, f"{said.address:#x} lost its userfaultfd write protection")
        for where in self.dirtied:
            entry = census.entries.get(where, 0)
            if not (pte_none(entry) or _is_poisoned(entry) or entry & SOFT_DIRTY):
                self.say(8, f"{where[1]:#x} was stored to and is not soft-dirty")
        for where in self._filled(census):
            self.say(8, f"{where[1]:#x} was missing, and userfaultfd's monitor was not asked")

    def _filled(self, census: Census) -> Iterator[Where]:
        """What was missing, and is not although the monitor did not fill it."""
        for where in self.missing:
            asked = where in self.final or where in self.origin
            if not pte_none(census.entries.get(where, 0)) and not asked:
                yield where


def _is_poisoned(entry: int) -> bool:
    return not pte_none(entry) and not pte_present(entry) and leaf_kind(entry) is Leaf.HWPOISON
