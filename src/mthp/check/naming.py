# SPDX-License-Identifier: GPL-2.0-or-later
"""What a drawing calls the words that races are about, and their values, as the kernel names them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, Final, NamedTuple

from mthp.check.records import FREED, Entry, WordKind
from mthp.explore.tasks import NextStep
from mthp.laws.broken import Broken, Kind, Thing
from mthp.machine.cpu import Busy
from mthp.machine.hold import Rank
from mthp.machine.locks import Lock, WriteMark
from mthp.machine.memory import Words
from mthp.machine.step import Access
from mthp.machine.store_buffer import Completion
from mthp.mm import page_flags as folios
from mthp.mm import pgtable_types as ptes
from mthp.mm.mm_types import PageTable, PmdPage
from mthp.mm.pgtable_types import (
    PFN_SHIFT,
    ZERO_PFN,
    leaf_kind,
    pmd_is_table,
    pmd_none,
    pmd_pgtable,
    pmd_present,
    pmd_trans_huge,
    pte_none,
    pte_present,
)
from mthp.races.stage import START, Stage

LOCKS: Final = {
    Rank.MMAP: "mmap_lock",
    Rank.VMA: "VMA lock",
    Rank.MM_LIST: "mm_list",
    Rank.ANON_VMA: "anon_vma",
    Rank.PMD: "pmd lock",
    Rank.PTE: "PTE lock",
}
_ENTRY_FLAGS: Final = {
    getattr(ptes, name): name.lower()
    for name in ("WRITE", "YOUNG", "DIRTY", "SOFT_DIRTY", "UFFD_WP", "SWP_EXCLUSIVE")
}
FOLIO_FLAGS: Final = {
    value: name.removeprefix("PG_").lower()
    for name, value in vars(folios).items()
    if name.startswith("PG_")
}
_KINDS: Final = {
    "content": WordKind.CONTENTS,
    "flags": WordKind.FLAG,
    "page_flags": WordKind.FLAG,
    "refcount": WordKind.REFCOUNT,
}
_PAGE_FLAGS: Final = {
    value: name.removeprefix("PAGE_").lower()
    for name, value in vars(folios).items()
    if name.startswith("PAGE_")
}


# Entries of page tables


def pte_entry(word: int) -> Entry:
    """Read a PTE as a record."""
    return _entry(_pte_kind(word), word)


def pmd_entry(word: int) -> Entry:
    """Read a PMD as a record."""
    return _entry(_pmd_kind(word), word)


def _entry(kind: str, word: int) -> Entry:
    flags = tuple(name for bit, name in _ENTRY_FLAGS.items() if word & bit)
    return Entry(kind, word >> PFN_SHIFT, flags)


def _pte_kind(word: int) -> str:
    if pte_none(word):
        return "none"
    if pte_present(word):
        return "zero" if word >> PFN_SHIFT == ZERO_PFN else "page"
    return leaf_kind(word).name.lower()


def _pmd_kind(word: int) -> str:
    if pmd_none(word):
        return "none"
    if pmd_is_table(word):
        return "table"
    if pmd_present(word):
        return "huge" if pmd_trans_huge(word) else "bad"
    return leaf_kind(word).name.lower()


# Words

STORE_BUFFER: Final = "store buffer"
"""The function of steps that let late stores out."""


class Named(NamedTuple):
    """What a step is about. of: the object that the word belongs to, "" for that of the window."""

    kind: WordKind
    word: str
    of: str
    old: str
    new: str


class Names:
    """Of the words of one stage. broken: what breaks there; entries tell the flags that it is about."""

    def __init__(self, stage: Stage, broken: Collection[Broken]) -> None:
        self._told = {"uffd_wp", *(_FLAG_OF.get(each.object.kind, "") for each in broken)}
        self._kernel = stage.kernel
        self._tasks = stage.tasks
        self._geometry = stage.kernel.geometry
        self._first = stage.table
        self._places: dict[PmdPage, tuple[int, int]] = {}
        self._addresses: dict[int, int] = {}
        for mm in self._kernel.mms:
            for page in mm.pmd_pages.values():
                for slot, pmd in enumerate(page.pmds.raw):
                    self._link(page, slot, pmd)

    def _link(self, page: PmdPage, slot: int, pmd: int) -> None:
        """Remember that a table is where a PMD points to it."""
        if pmd_is_table(pmd):
            self._addresses[pmd_pgtable(pmd)] = self._place(page, slot)[1]

    def _place(self, page: PmdPage, slot: int) -> tuple[int, int]:
        """Return the process and the address of a slot of PMDs."""
        if page not in self._places:  # an mm that has ended has no pages any more
            self._places |= {
                each: (mm.number, index)
                for mm in self._kernel.mms
                for index, each in mm.pmd_pages.items()
            }
        mm, index = self._places[page]
        geometry = self._geometry
        return mm, (index * geometry.ptrs_per_pte + slot) << geometry.pmd_shift

    def named(
        self, function: str, op: NextStep, word: Any, index: int, old: Any, new: Any
    ) -> Named:
        """Name what a step is about, and what it did there."""
        if isinstance(word, Lock | WriteMark):
            mode = "write" if op.mode else "read"
            after = "" if op.access is Access.RELEASE else mode
            before = mode if after == "" or (op.access is Access.TRY and old == new) else ""
            return Named(WordKind.LOCK, _lock(word), self._owner(word.name), before, after)
        if isinstance(word, Busy):
            cpu = word.name.partition(".")[0].removeprefix("cpu")
            return Named(WordKind.CPU, f"CPU{cpu}", "", "", "")
        if isinstance(word, Completion):
            return self._late(op, word)
        if not isinstance(word, Words):
            values = (str(each) if isinstance(each, int) else "" for each in (old, new))
            return Named(WordKind.OTHER, word.name.rpartition(".")[2], "", *values)
        if isinstance(word.owner, PageTable):
            if op.access is Access.FREE:
                return Named(WordKind.ENTRY, f"table {word.owner.number}", "", "", FREED)
            of = "" if word.owner is self._first else f"table {word.owner.number}"
            texts = self._entries(pte_entry(old), pte_entry(new))
            return Named(WordKind.ENTRY, f"PTE {index}", of, *texts)
        if isinstance(word.owner, PmdPage):
            mm, address = self._place(word.owner, index)
            of = "" if (mm, address) == (1, START) else f"{address:#x}"
            of += "" if mm == 1 else f" of mm {mm}"
            texts = self._entries(pmd_entry(old), pmd_entry(new))
            return Named(WordKind.ENTRY, "PMD", of, *texts)
        kind, name = _KINDS.get(word.name, WordKind.OTHER), word.name
        if kind is WordKind.CONTENTS:
            kind = WordKind.BUFFER if function == STORE_BUFFER else kind
            is_freed = op.access is Access.FREE
            return Named(kind, f"page {index}", "", str(old), FREED if is_freed else str(new))
        of_what, flags = "folio", FOLIO_FLAGS
        if name in ("mapcount", "page_flags"):
            of_what, flags = "page", _PAGE_FLAGS
        if kind is WordKind.FLAG:
            if op.access is Access.FREE:
                return Named(kind, f"{of_what} {index}", "", hex(old), FREED)
            if op.bits in flags:
                name = f"PG_{flags[op.bits]}"
                old, new = int(old & op.bits != 0), int(new & op.bits != 0)
        return Named(kind, f"{of_what} {index} {name}", "", str(old), str(new))

    def _entries(self, old: Entry, new: Entry) -> tuple[str, str]:
        """An entry before and after a step: other flags are named where nothing else differs."""
        told = self._told
        if (old.kind, old.value) == (new.kind, new.value):
            told = told | ({*old.flags} ^ {*new.flags})
        return _entry_name(old, told), _entry_name(new, told)

    def _late(self, op: NextStep, filled: Completion) -> Named:
        """Name a store that the store buffer takes."""
        for task, _ in self._tasks:
            for slot in task.buffer.waiting if task.buffer is not None else ():
                if slot.filled is filled:
                    row: Any = slot.row
                    named = self.named("", op, row, slot.index, row.raw[slot.index], slot.value)
                    new = named.new if op.access is Access.RELEASE else ""
                    return named._replace(kind=WordKind.BUFFER, old="", new=new)
        return Named(WordKind.BUFFER, "", "", "", "")

    def _owner(self, name: str) -> str:
        """Say whose lock it is, where it is not the window's."""
        mm = name.partition(".")[0]
        return f"mm {mm[2:]}" if mm.startswith("mm") and mm != "mm1" else ""

    def touched(self, word: Any, index: int, values: tuple[Any, Any]) -> Iterator[str]:
        """Yield the objects, as key_of() names them, that a step is about."""
        if not isinstance(word, Words):
            owner = re.match(r"([a-z_]+?)_?(\d+)", word.name)
            if isinstance(word, WriteMark):
                yield f"VMA {word.owner}"
            elif owner is not None:
                yield f"{owner[1]} {owner[2]}"
        elif isinstance(word.owner, PageTable):
            number = word.owner.number
            yield f"PTE {index} of table {number}"
            yield f"in table {number}"
            if number in self._addresses:
                yield hex(self._addresses[number] + (index << self._geometry.page_shift))
            yield from (f"page {each >> PFN_SHIFT}" for each in values if each >> PFN_SHIFT)
        elif isinstance(word.owner, PmdPage):
            yield f"PMD {word.name}[{index}]"
            start = self._place(word.owner, index)[1]
            for i in range(self._geometry.ptrs_per_pte):
                yield hex(start + (i << self._geometry.page_shift))
            for each in values:
                self._link(word.owner, index, each)
                if each >> PFN_SHIFT:
                    yield f"{'table' if pmd_is_table(each) else 'page'} {each >> PFN_SHIFT}"
        else:
            yield f"page {index}"
            yield f"page {self._kernel.mem.head.raw[index]}"


def _lock(word: Lock | WriteMark) -> str:
    return LOCKS[word.rank if isinstance(word, Lock) else Rank.VMA]


def _entry_name(entry: Entry, told: Collection[str]) -> str:
    name = _VALUED.get(entry.kind, entry.kind).format(entry.value)
    return " ".join((name, *(flag for flag in entry.flags if flag in told)))


_FLAG_OF: Final = {
    Kind.SOFT_DIRTY_MARK: "soft_dirty",
    Kind.DIRTIED: "soft_dirty",
    Kind.YOUNG_BIT: "young",
    Kind.DIRTY_BIT: "dirty",
}
_VALUED: Final = {
    "page": "page {}",
    "table": "table {}",
    "huge": "huge folio {}",
    "swap": "swap entry {}",
    "migration": "migration entry",
    "zero": "zero page",
}


def key_of(thing: Thing) -> str:
    """Name a law's object as touched() does."""
    kind, name = thing
    text = str(name)
    if "0x" in text and kind is not Kind.VMA:
        return text.rpartition(" ")[2]
    if kind in _MARKS:
        return text
    return f"{'page' if kind is Kind.FOLIO else kind} {text}"


_MARKS: Final = {Kind.SOFT_DIRTY_MARK, Kind.YOUNG_BIT, Kind.DIRTY_BIT, Kind.WRITE_PROTECTED}
"""Whose names are those of PTEs and tables."""
