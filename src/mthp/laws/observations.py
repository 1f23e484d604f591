# SPDX-License-Identifier: GPL-2.0-or-later
"""What actors reported that they did, and what must be found in the end because of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import ClassVar

from mthp.laws.broken import Broken, Kind, Thing
from mthp.laws.census import Census, Where
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
    pmd_pgtable,
    pte_none,
    pte_pfn,
    pte_present,
)
from mthp.mm.reports import (
    Discarding,
    Forked,
    Gone,
    Halfway,
    Moving,
    Pinned,
    Poisoned,
    Registered,
    SoftDirtyCleared,
    StoredTo,
    StoresForbidden,
    WriteProtected,
    Zapped,
    Zapping,
)
from mthp.mm.vm_flags import VM_WRITE


class Observations:
    """Facts by which contents are judged. begun: what stood there. initial: what every address held.

    legal: what a load may see. final: address -> task -> what must be read there in the end, if only
    that task wrote. given_up: address -> task -> whether it has called MADV_FREE and not stored there since.
    origin, left: where pages moved to (and from where first), and away from; sources:
    from where each time. cleared, dirtied: (address, task) whose soft-dirty mark the task has cleared,
    and whose it has set again. apart: (mm, task) -> mms that must not see what the task stores there, since
    it has forked one from the other; unseen: what must not be read at an address for that. emptied: words of
    page tables, by name and index, that a rival made none.
    """

    COMMUTES: ClassVar[Mapping[str, str]] = {
        "legal": "only added to; what a load sees was added before the load by whoever stored it",
        "sources": "the same, by whoever moved what the load sees",
    } | dict.fromkeys(
        (
            "final",
            "zapped",
            "discarded",
            "given_up",
            "left",
            "pins",
            "poisoned",
            "protected",
            "missing",
            "read_only",
            "unseen",
        ),
        "only added to, and read when no task works",
    )

    def __init__(self, kernel: Kernel, begun: Census) -> None:
        self.kernel = kernel
        self.begun = begun
        self.initial: Mapping[Where, int | None] = begun.contents
        self.legal: defaultdict[Where, set[int]] = defaultdict(set)
        self.final: defaultdict[Where, dict[str, int]] = defaultdict(dict)
        self.zapped: set[Where] = set()
        self.discarded: set[Where] = set()
        self.given_up: defaultdict[Where, dict[str, bool]] = defaultdict(dict)
        self.origin: dict[Where, Where] = {}
        self.sources: defaultdict[Where, set[Where]] = defaultdict(set)
        self.left: set[Where] = set()
        self.pinned: Counter[tuple[int, str]] = Counter()
        self.pins: list[Pinned] = []
        self.poisoned: list[Poisoned] = []
        self.protected: list[WriteProtected] = []
        self.missing: set[Where] = set()
        self.read_only: list[StoresForbidden] = []
        self.emptied: dict[tuple[str, int], None] = {}
        self.apart: defaultdict[tuple[Mm, str], list[Mm]] = defaultdict(list)
        self.unseen: defaultdict[Where, set[int]] = defaultdict(set)
        self.cleared: dict[tuple[Where, str], None] = {}
        self.dirtied: dict[tuple[Where, str], None] = {}
        self.halfway: set[Mm] = set()
        self.gone: set[Mm] = set()

    # While tasks run

    def add(self, report: object) -> None:
        """Remember what was reported."""
        match report:
            case StoredTo(mm, address, value, by):
                where = mm.number, address
                self.legal[where].add(value)
                self.final[where][by] = value
                self.given_up[where][by] = False
                if (where, by) in self.cleared:
                    self.dirtied[where, by] = None
                for other in self.apart.get((mm, by), ()):
                    self.unseen[other.number, address].add(value)
            case Zapping(mm, start, end):
                for where in self._range(mm, start, end):
                    self.legal[where].add(self._of_file(where))
            case Zapped(mm, start, end, by):
                for where in self._range(mm, start, end):
                    self.final[where][by] = 0
                    self.zapped.add(where)
            case Discarding(mm, start, end, by):
                for where in self._range(mm, start, end):
                    self.legal[where].add(0)
                    self.discarded.add(where)
                    self.given_up[where][by] = True
            case Moving():
                self._move(report)
            case Pinned(_, _, page, _, by):
                self.pins.append(report)
                self.pinned[page, by] += 1
            case Poisoned():
                self.poisoned.append(report)
            case WriteProtected():
                self.protected.append(report)
            case StoresForbidden():
                self.read_only.append(report)
            case Registered(mm, start, end):
                everywhere = self._range(mm, start, end)
                self.missing.update(w for w in everywhere if self._is_missing(mm, w[1]))
            case Forked(mm, child, by):
                self.apart[mm, by].append(child)
                self.apart[child, by].append(mm)
            case SoftDirtyCleared(mm, start, end, by):
                self.cleared.update(dict.fromkeys((w, by) for w in self._range(mm, start, end)))
            case Gone(mm):
                self.gone.add(mm)
            case Halfway(mm, building):
                (self.halfway.add if building else self.halfway.discard)(mm)

    def _range(self, mm: Mm, start: int, end: int) -> list[Where]:
        return [(mm.number, a) for a in range(start, end, mm.geometry.page_size)]

    def _of_file(self, where: Where) -> int:
        """What is read where nothing stands: what the file holds that was mapped there in the beginning, or
        zeroes.
        """
        for (mm, start), (end, _, _, file) in self.begun.vmas.items():
            if mm == where[0] and start <= where[1] < end:
                return self.kernel.files.get(file, 0)
        return 0

    def _move(self, moving: Moving) -> None:
        for where in self._range(moving.mm, moving.start, moving.start + moving.length):
            new = moving.mm.number, where[1] - moving.start + moving.to
            self.origin[new] = self.origin.get(where, where)
            self.left.add(where)
            self.legal[where].add(0)  # nothing is there any more; a load finds zeroes
            self.sources[new].add(where)

    def _is_missing(self, mm: Mm, address: int) -> bool:
        """Whether nothing ever stood there. mmap_lock is held for writing: no other task can fill it, but
        one that migrates a page or swaps it out may have its entry in hand.
        """
        return self.kernel.machine.data_race(lambda: self._is_none(mm, address))

    def _is_none(self, mm: Mm, address: int) -> bool:
        pmd = mm_find_pmd(mm, address)
        if pmd is None:
            return True
        name, at, entry = pmd.page.pmds.name, pmd.slot, int(pmd.page.pmds.raw[pmd.slot])
        if pmd_is_table(entry):
            ptes, at = self.kernel.tables[pmd_pgtable(entry)].ptes, mm.geometry.pte_index(address)
            name, entry = ptes.name, ptes.raw[at]
        return pte_none(entry) and (name, at) not in self.emptied

    def stored(self, where: Where, known: frozenset[Where] = frozenset()) -> set[int]:
        """What was stored there, or where what stands there now has come from."""
        found = set(self.legal.get(where, ()))
        for source in self.sources.get(where, frozenset()) - known:
            found |= {
                self.initial.get(source, 0) or 0,
                *self.stored(source, known | {where, source}),
            }
        return found

    # In the end

    def references(self) -> Counter[int]:
        """Folio -> references that pins and failed memory explain."""
        head = self.kernel.mem.head.raw
        kept: Counter[int] = Counter()
        for pin in self.pins:
            kept[head[pin.page]] += PIN
        for failed in self.poisoned:
            kept[head[failed.page]] += 1
        return kept

    def expected(self, where: Where) -> set[int | None]:
        """What may be read at an address in the end."""
        if where in self.origin:
            return {*self._expected_here(self.origin[where]), *self.stored(where)}
        if where in self.left:
            return {0, *self.legal[where]}
        return self._expected_here(where)

    def _expected_here(self, where: Where) -> set[int | None]:
        """The same of pages that stayed. A page that moved may have left before a zap, or after."""
        written = self.final.get(where)
        expected: set[int | None] = {*written.values()} if written else {self.initial.get(where, 0)}
        if any(self.given_up.get(where, {}).values()):
            expected |= {0}
        if where in self.left and where in self.zapped:
            expected |= {self.initial.get(where, 0), *self.legal[where]}
        return expected


# The laws, once every task has ended


def law_1_failed_memory_is_not_mapped(seen: Observations, census: Census) -> Iterator[Broken]:
    """Nothing maps a page whose memory failed and which was unmapped for that."""
    for failed in seen.poisoned:
        if failed.unmapped and census.pte_mappings[failed.page]:
            text = f"page {failed.page} is mapped, and its memory failed"
            yield Broken(1, Thing(Kind.PAGE, failed.page), text)


def law_3_the_last_store_is_read(seen: Observations, census: Census) -> Iterator[Broken]:
    """Every address holds what was stored to it last, and a pinned page is still the mapped one."""
    for where, text in _wrong_contents(seen, census):
        if not _is_filled_again(seen, where):
            yield Broken(3, Thing(Kind.ADDRESS, hex(where[1])), text)
    for where, values in seen.unseen.items():
        if (value := census.contents.get(where)) in values:
            text = f"mm {where[0]} reads {value} at {where[1]:#x}, which was stored in another after fork()"
            yield Broken(3, Thing(Kind.ADDRESS, hex(where[1])), text)
    for pin in seen.pins:
        where = pin.mm.number, pin.address
        entry = census.entries.get(where, 0)
        if not pin.exclusive or where in seen.zapped or not pte_present(entry):
            continue
        if pte_pfn(entry) != pin.page:
            text = f"page {pin.page} is pinned and {pin.address:#x} maps {pte_pfn(entry)} now"
            yield Broken(3, Thing(Kind.PAGE, pin.page), text)


def law_12_zapped_addresses_are_empty(seen: Observations, census: Census) -> Iterator[Broken]:
    """What was zapped, and not stored to again, reads as zeroes."""
    for where, text in _wrong_contents(seen, census):
        if _is_filled_again(seen, where):
            yield Broken(12, Thing(Kind.ADDRESS, hex(where[1])), text)


def _is_filled_again(seen: Observations, where: Where) -> bool:
    return where in seen.zapped and seen.expected(where) == {0}


def _wrong_contents(seen: Observations, census: Census) -> Iterator[tuple[Where, str]]:
    failed = {each.page for each in seen.poisoned}
    for where in {*seen.initial, *seen.final, *seen.origin, *seen.left}:
        now, expected = census.contents.get(where, 0), seen.expected(where)
        entry = census.entries.get(where, 0)
        is_as_zapped = pte_none(entry) and 0 in expected  # whatever is read there then
        if now in expected or is_as_zapped or (_is_poisoned(entry) and pte_pfn(entry) in failed):
            continue
        stores = " or ".join(sorted(map(str, expected)))
        yield where, f"{where[1]:#x} reads {now}; the last store was {stores}"


def law_14_rights_that_were_taken_stay_so(seen: Observations, _: Census) -> Iterator[Broken]:
    """No collapse gives a mapping a right that mprotect() has taken from it."""
    for mm, vma in seen.read_only:
        if vma in mm.vmas and vma.vm_flags & VM_WRITE:
            text = f"{vma} may be stored to, though mprotect() has taken that right"
            yield Broken(14, Thing(Kind.VMA, hex(vma.vm_start)), text)


def law_8_marks_are_there(seen: Observations, census: Census) -> Iterator[Broken]:
    """Entries still are write-protected, soft-dirty, or missing until the monitor fills them."""
    for each in seen.protected:
        where = each.mm.number, each.address
        entry = census.entries.get(where, 0)
        if where in seen.zapped | seen.left:
            continue  # what stands there now is another page
        if pte_present(entry) and entry & WRITE and not entry & UFFD_WP:
            text = f"{each.address:#x} lost its userfaultfd write protection"
            yield Broken(8, Thing(Kind.WRITE_PROTECTED, hex(each.address)), text)
    for where in {where for where, _ in seen.dirtied}:
        entry = census.entries.get(where, 0)
        if not (pte_none(entry) or _is_poisoned(entry) or entry & SOFT_DIRTY):
            text = f"{where[1]:#x} was stored to and is not soft-dirty"
            yield Broken(8, Thing(Kind.DIRTIED, hex(where[1])), text)
    for where in seen.missing:
        was_asked = where in seen.final or where in seen.origin
        if not pte_none(census.entries.get(where, 0)) and not was_asked:
            text = f"{where[1]:#x} was missing, and userfaultfd's monitor was not asked"
            yield Broken(8, Thing(Kind.ADDRESS, hex(where[1])), text)


def _is_poisoned(entry: int) -> bool:
    return not pte_none(entry) and not pte_present(entry) and leaf_kind(entry) is Leaf.HWPOISON
