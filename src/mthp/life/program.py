# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs: settings, and the operations of processes that begin with no memory at all.

docs/program-format.md describes the file of recorded programs (JSON lines).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final

from mthp.image.fields import Fields, ScenarioError, short
from mthp.image.runs import (
    FolioToken,
    PagesState,
    RunsError,
    parse_folio_token,
    parse_pte_token,
    parse_runs,
)
from mthp.words.files import FileError
from mthp.words.reading import numbered_lines, parse_object
from mthp.words.units import Geometry, parse_whole

BASE: Final = 0x7E0000000000
"""The address of a process's page 0."""
MOST_PAGES: Final = 1 << 20
"""No operation reaches a page beyond this one."""
TRANSPARENT_HUGEPAGE: Final = "/sys/kernel/mm/transparent_hugepage/"
DROP_CACHES: Final = "/proc/sys/vm/drop_caches"
HEAP: Final = 3072
"""The page at which a process's heap begins."""
FIRST_LAYOUT: Final = range(1100)
"""The pages of a process that the first half of a layout shows."""
SECOND_LAYOUT: Final = 2048
"""The page at which the second half begins: its tokens say how far it goes."""


class Touching(Enum):
    """What a touch does to each page."""

    READ = "rd"
    WRITE = "wr"
    ZERO = "fill"


@dataclass(frozen=True)
class Mmap:
    """Private anonymous memory at [start, start + pages), in pages of the process."""

    process: str
    start: int
    pages: int


@dataclass(frozen=True)
class Munmap:
    """munmap(2)."""

    process: str
    start: int
    pages: int


@dataclass(frozen=True)
class Brk:
    """brk(2): the heap, which begins at page HEAP, has so many pages."""

    process: str
    pages: int


@dataclass(frozen=True)
class Madvise:
    """madvise(2); advice is the number that <sys/mman.h> has."""

    process: str
    start: int
    pages: int
    advice: int


@dataclass(frozen=True)
class Mprotect:
    """mprotect(2); protection as in <sys/mman.h>: 1 read, 2 write."""

    process: str
    start: int
    pages: int
    protection: int


@dataclass(frozen=True)
class Mremap:
    """mremap(2) to page `to`, where nothing is left of what was there."""

    process: str
    start: int
    pages: int
    to: int


@dataclass(frozen=True)
class Touches:
    """Every step-th page of a range is loaded from, or stored to."""

    process: str
    access: Touching
    start: int
    pages: int
    step: int = 1


@dataclass(frozen=True)
class Limited:
    """A page is stored to while the memory cgroup of programs, which the process joins, may be charged so
    many pages more and no more.
    """

    process: str
    page: int
    room: int


@dataclass(frozen=True)
class Fork:
    """fork(2): the child is known by its name from here on, and sleeps or has operations of its own."""

    process: str
    child: str


@dataclass(frozen=True)
class Kill:
    """A process ends: a child that sleeps, or this process itself."""

    process: str
    child: str


@dataclass(frozen=True)
class FullScan:
    """khugepaged makes one full scan."""


@dataclass(frozen=True)
class DropCaches:
    """What a write to vm.drop_caches has dropped: bit 1 asks every shrinker for all it can give."""

    what: int


@dataclass(frozen=True)
class Knob:
    """A file of transparent_hugepage is written; path: below that folder."""

    path: str
    value: str


@dataclass(frozen=True)
class SetSizes:
    """Sizes are switched to madvise, all others to never, and max_ptes_none is set. orders: a bitmap."""

    orders: int
    max_ptes_none: int


Operation = (
    Mmap
    | Munmap
    | Brk
    | Madvise
    | Mprotect
    | Mremap
    | Touches
    | Limited
    | Fork
    | Kill
    | FullScan
    | DropCaches
    | Knob
    | SetSizes
)
USUALLY_COUNTED: Final = [
    "anon_fault_alloc",
    "anon_fault_fallback",
    "anon_fault_fallback_charge",
    "collapse_alloc",
    "collapse_alloc_failed",
    "collapse_exceed_none_pte",
    "collapse_exceed_shared_pte",
    "collapse_exceed_swap_pte",
    "nr_anon",
    "nr_anon_partially_mapped",
    "split",
    "split_deferred",
    "split_failed",
    "swpin_fallback",
    "swpin_fallback_charge",
    "thp_collapse_alloc",
    "thp_collapse_alloc_failed",
    "thp_scan_exceed_none_pte",
    "thp_scan_exceed_share_pte",
    "thp_scan_exceed_swap_pte",
    "thp_split_page",
    "thp_split_page_failed",
    "thp_split_pmd",
]
"""The counters in a record that does not name them, of hugepages-*kB/stats and of /proc/vmstat."""
Layout = tuple[tuple[tuple[int, FolioToken], ...], ...]
"""Runs of pages: of the first pages, and of those from SECOND_LAYOUT on."""


@dataclass(frozen=True)
class SeenMapping:
    """A mapping as a kernel showed it. start: its first page."""

    start: int
    advice: str
    writable: bool
    anon_vma: bool
    state: PagesState


@dataclass(frozen=True)
class SeenMemory:
    """What a kernel counts of a process, in pages. anon: mapped anonymous memory; swap: swapped out; tables:
    of page tables, on all levels."""

    anon: int
    swap: int
    tables: int


@dataclass(frozen=True)
class ProgramStep:
    """An operation, and what a real kernel showed after it.

    failure: 0, or the errno with which the operation failed. delta: counters that moved, by ORDER.name as
    in hugepages-*kB/stats and v.name as in /proc/vmstat. layout: of process s. processes: the mappings of
    every process; None where a record has a layout instead. memory: of every process; empty where the record
    does not have it. frames: how many more frames all folios take than before,
    those that nothing maps too; None where that is not known.
    """

    text: str
    operation: Operation
    failure: int = 0
    layout: Layout = ()
    delta: Mapping[str, int] = field(default_factory=dict)
    processes: Mapping[str, tuple[SeenMapping, ...]] | None = None
    memory: Mapping[str, SeenMemory] = field(default_factory=dict)
    frames: int | None = None


@dataclass(frozen=True)
class LifeProgram:
    """Sizes that are at madvise (all others at never), further settings, and steps.

    kernel: the release that recorded it; empty where that is not said. counted: the names of the counters
    that were recorded.
    """

    id: str
    orders: tuple[int, ...]
    max_ptes_none: int
    pre: tuple[Operation, ...]
    kernel: str
    counted: frozenset[str]
    steps: tuple[ProgramStep, ...]


def load(path: str | Path) -> Iterator[LifeProgram]:
    """Yield the programs of a .jsonl file, plain or .xz or .gz, one at a time.

    FileError, one line with file, line number and id, for anything unreadable.
    """
    seen: set[str] = set()
    for number, line in numbered_lines(path):
        name = ""
        try:
            fields = Fields(parse_object(line))
            name = fields.take("id", str)
            if name in seen:
                raise ScenarioError("id: used twice in this file")
            seen.add(name)
            program = parse_program(fields.document)
        except FileError as error:
            where = f"{path}:{number}: {short(name) + ': ' if name else ''}"
            raise ScenarioError(f"{where}{error}") from None
        yield program


def parse_program(document: Mapping[str, Any]) -> LifeProgram:
    """A program from its JSON object; ScenarioError says where in it, and what."""
    fields = Fields(document)
    name = fields.take("id", str)
    geometry = Geometry()
    orders = fields.take("orders", list)
    if any(type(order) is not int or order not in geometry.anon_orders for order in orders):
        raise ScenarioError(f"orders: {short(orders)} are not orders of anonymous folios")
    pre = []
    for text in fields.take("pre", list, []):
        pre.append(parse_operation(text))
        if not isinstance(pre[-1], Knob):
            raise ScenarioError(f"pre: {short(text)} writes to no file of transparent_hugepage")
    return LifeProgram(
        name,
        tuple(orders),
        fields.number("max_ptes_none", 0, geometry.ptrs_per_pte - 1),
        tuple(pre),
        fields.take("kernel", str, ""),
        frozenset(map(str, fields.take("counted", list, USUALLY_COUNTED))),
        tuple(_step(each) for each in fields.objects("steps", "a list of steps")),
    )


def _step(fields: Fields) -> ProgramStep:
    """Read one step; what was recorded after it may lack."""
    text = fields.document.get("op")
    try:
        operation = parse_operation(text)
    except ScenarioError as error:
        raise ScenarioError(f"{fields.where}op: {error}") from None
    failure = 0 if fields.take("ok", bool, True) else _errno(fields)
    layout = []
    for each in fields.take("layout", list, []):
        if not isinstance(each, str):
            raise ScenarioError(f"{fields.where}layout: {short(each)} is not text")
        try:
            layout.append(parse_runs(each, parse_folio_token))
        except RunsError as error:
            raise ScenarioError(f"{fields.where}layout: {error}") from None
    delta = fields.table("delta", int) if fields.has("delta") else {}
    seen, memory = _processes(fields), _memory(fields)
    frames = None if fields.is_null("frames") else fields.take("frames", int)
    return ProgramStep(str(text), operation, failure, tuple(layout), delta, seen, memory, frames)


def _memory(fields: Fields) -> dict[str, SeenMemory]:
    """What the kernel counted of each process, where the record has it."""
    if not fields.has("memory"):
        return {}
    found = {}
    for name, counts in fields.table("memory", dict).items():
        inner = Fields(counts, f"{fields.where}memory.{name}.")
        found[name] = SeenMemory(*(inner.take(key, int) for key in ("anon", "swap", "tables")))
    return found


def _errno(fields: Fields) -> int:
    """The errno that the message of a failed operation begins with."""
    found = re.match(r"errno ([0-9]{1,4})\b", fields.take("msg", str))
    if found is None:
        raise ScenarioError(f"{fields.where}msg: it does not begin with errno and a number")
    return int(found[1])


def _processes(fields: Fields) -> dict[str, tuple[SeenMapping, ...]] | None:
    """The mappings of each process, where the record has them."""
    if not fields.has("processes"):
        return None
    found = {}
    for name in fields.table("processes", list):
        inner = Fields(fields.document["processes"], f"{fields.where}processes.")
        found[name] = tuple(map(_mapping, inner.objects(name, "a list of mappings")))
    return found


def _mapping(fields: Fields) -> SeenMapping:
    start = fields.number("start", 0, MOST_PAGES)
    pages = fields.number("pages", 1, MOST_PAGES)
    try:
        folios = parse_runs(fields.take("folios", str), parse_folio_token)
        text = None if fields.is_null("ptes") else fields.take("ptes", str)
        ptes = None if text is None else parse_runs(text, parse_pte_token)
    except RunsError as error:
        raise ScenarioError(f"{fields.where}folios, ptes: {error}") from None
    if sum(count for count, _ in folios) != pages:
        raise ScenarioError(f"{fields.where}folios: not {pages} pages")
    return SeenMapping(
        start,
        fields.take("advice", str, ""),
        fields.take("writable", bool, True),
        fields.take("anon_vma", bool),
        PagesState(pages, folios, ptes),
    )


def _range(words: list[str]) -> tuple[int, int]:
    """The first page and the number of pages that two words say."""
    start = parse_whole(words[0], 0, MOST_PAGES)
    return start, parse_whole(words[1], 1, MOST_PAGES - start)


def _touch(access: Touching) -> Callable[[str, list[str]], Touches]:
    """How a touch is read; its third word is the step, but of `fill`, where it is the value: 0."""

    def read(process: str, words: list[str]) -> Touches:
        start, pages = _range(words)
        if access is Touching.ZERO:
            parse_whole(words[2], 0, 0)
        step = parse_whole(words[2], 1, MOST_PAGES) if access is Touching.WRITE and words[2:] else 1
        return Touches(process, access, start, pages, step)

    return read


_OF_PROCESS: Final[dict[str, tuple[tuple[int, ...], Callable[[str, list[str]], Operation]]]] = {
    "mmap": ((2,), lambda who, words: Mmap(who, *_range(words))),
    "munmap": ((2,), lambda who, words: Munmap(who, *_range(words))),
    "brk": ((1,), lambda who, words: Brk(who, parse_whole(words[0], 0, MOST_PAGES - HEAP))),
    "adv": ((3,), lambda who, words: Madvise(who, *_range(words), parse_whole(words[2], 0, 255))),
    "mprotect": (
        (3,),
        lambda who, words: Mprotect(who, *_range(words), parse_whole(words[2], 0, 3)),
    ),
    "mremap": (
        (3,),
        lambda who, words: Mremap(who, *_range(words), parse_whole(words[2], 0, MOST_PAGES)),
    ),
    "rd": ((2,), _touch(Touching.READ)),
    "wr": ((2, 3), _touch(Touching.WRITE)),
    "fill": ((3,), _touch(Touching.ZERO)),
    "limited": ((2,), lambda who, words: Limited(who, *_range(words))),
    "fork": ((1,), lambda who, words: Fork(who, words[0])),
    "forkkill": ((1,), lambda who, words: Kill(who, words[0])),
    "forkto": ((1,), lambda who, words: Fork(who, words[0])),
    "exit": ((0,), lambda who, _: Kill(who, who)),
}
"""Word -> how many words follow it, and how they are read."""


def parse_operation(text: object) -> Operation:
    """The operation that a line (or a list ["set", orders, max_ptes_none]) says; ScenarioError where none."""
    try:
        if isinstance(text, str):
            return _line(text.split())
        if isinstance(text, list) and text[:1] == ["set"] and len(text) == 3:
            orders, limit = (parse_whole(str(each)) for each in text[1:])
            if orders & ~Geometry().anon_orders_mask or limit >= Geometry().ptrs_per_pte:
                raise ValueError(f"{short(text)} is out of range")
            return SetSizes(orders, limit)
    except ValueError as error:
        raise ScenarioError(f"{short(text)}: {error}") from None
    raise ScenarioError(f"{short(text)} is no operation")


def _line(words: list[str]) -> Operation:
    """The operation of a line, split at blanks; ValueError where it is none."""
    match words:
        case ["scan"]:
            return FullScan()
        case ["w", path, value] if path.startswith(TRANSPARENT_HUGEPAGE):
            return Knob(path.removeprefix(TRANSPARENT_HUGEPAGE), value)
        case ["w", path, value] if path == DROP_CACHES:
            return DropCaches(parse_whole(value, 1, 3))
        case [process, word, *rest] if word in _OF_PROCESS and process != "w":
            lengths, read = _OF_PROCESS[word]
            if len(rest) not in lengths:
                raise ValueError(f"{word} has {' or '.join(map(str, lengths))} words behind it")
            return read(process, rest)
    raise ValueError("no such operation")
