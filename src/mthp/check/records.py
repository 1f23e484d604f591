# SPDX-License-Identifier: GPL-2.0-or-later
"""Finished records of the race checker. No engine objects in here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from mthp.explore.outcome import Coverage, Extent
from mthp.words.results import ScanResult


@dataclass(frozen=True)
class Call:
    """One line of a drawing: a task's call, and the locks it holds while in it."""

    task: int
    function: str
    locks: tuple[str, ...]


@dataclass(frozen=True)
class Breach:
    """A law that was broken. law, sentence: which. object: of what. text: what was seen."""

    law: int
    sentence: str
    object: str
    text: str


class WordKind(StrEnum):
    """What kind of word a step is about."""

    ENTRY = "entry"
    """A PTE or a PMD."""
    CONTENTS = "contents"
    REFCOUNT = "refcount"
    FLAG = "flag"
    LOCK = "lock"
    CPU = "cpu"
    """What an IPI waits for."""
    BUFFER = "buffer"
    """A page's contents, stored late: into a store buffer, or out of it."""
    OTHER = "other"


FREED: Final = "freed"
"""What a page or folio is after the step that gives it back."""


@dataclass(frozen=True)
class RaceStep:
    """One step of an execution. number: from 1. cpu, function: where it was taken, under which locks.

    access: what was done. kind, word, of: to what; of is the object it belongs to, "" for the
    window's. old, new: its value before and after; of a lock, how it was held. breaks: the laws broken
    there. drawn: the race's drawing shows it; others are folded.
    """

    number: int
    task: int
    cpu: int
    locks: tuple[str, ...]
    function: str
    access: str
    kind: WordKind
    word: str
    of: str
    old: str
    new: str
    breaks: tuple[int, ...]
    drawn: bool = False

    @property
    def changes(self) -> bool:
        """It leaves another value there."""
        return self.old != self.new


@dataclass(frozen=True)
class DrawnRace:
    """How an execution came to break a law. conflicts: (earlier, later) numbers of steps that are
    drawn, of different tasks, which may not change places. told: numbers of those that tell it in one
    sentence. breach: which of the breaches they lead to.
    """

    steps: tuple[RaceStep, ...]
    conflicts: tuple[tuple[int, int], ...]
    told: tuple[int, ...]
    breach: int

    @property
    def is_at_rest(self) -> bool:
        """Whether the breach was found when all tasks had ended, and at no step."""
        return sum(len(step.breaks) for step in self.steps) <= self.breach


@dataclass(frozen=True)
class Violation:
    """One execution that breaks laws, as short as it could be made. replay: its token. protocol: the file
    it is of, "" for none.
    """

    tasks: tuple[str, ...]
    calls: tuple[Call, ...]
    race: DrawnRace
    breaches: tuple[Breach, ...]
    warnings: tuple[str, ...]
    steps: int
    switches: int
    replay: str
    protocol: str = ""


@dataclass(frozen=True)
class RanLines:
    """A text of the protocol, its lines as bits. lines: those that do something; ran: those that ran in
    any execution; replacing: those of functions in the place of other functions of the engine's.
    """

    file: str
    lines: int
    ran: int
    replacing: int

    @property
    def never_ran(self) -> list[int]:
        """The numbers of the lines that did not run."""
        left = self.lines & ~self.ran
        return [line for line in range(left.bit_length()) if left >> line & 1]


Ran = tuple[RanLines, ...]


def joined(*searches: Ran) -> Ran:
    """What ran in any of several searches."""
    found: dict[tuple[str, int], RanLines] = {}
    for each in (each for ran in searches for each in ran):
        text = each.file, each.lines
        found[text] = replace(each, ran=found.get(text, each).ran | each.ran)
    return tuple(found.values())


class Verdict(StrEnum):
    """What became of a world."""

    CLEAN = "clean"
    NO_BREACH = "no breach found"
    EXPECTED = "expected finding"
    VACUOUS = "vacuous"
    NOT_RUN = "not run"
    BROKEN = "broken"


@dataclass(frozen=True)
class WorldResult:
    """One world of one profile, explored. expected_finding: a mutant's id, "" if none is expected.

    violation: the first found, or None. ran: what of the protocol ran. cannot: why no collapse can succeed
    in it, "" where one can.
    """

    profile: str
    hook: str
    world: str
    tasks: tuple[str, ...]
    covered: Coverage
    violation: Violation | None
    expected_finding: str
    seconds: float
    ran: Ran = ()
    cannot: str = ""

    @property
    def verdict(self) -> Verdict:
        """What it came to: a search that was not exhaustive finds no breach, and no more."""
        if self.violation is not None:
            return Verdict.EXPECTED if self.expected_finding else Verdict.BROKEN
        if is_not_run(self.ran):
            return Verdict.NOT_RUN
        if ScanResult.SUCCEED.string not in dict(self.covered.results):
            return Verdict.VACUOUS
        is_all = self.covered.kind is Extent.EXHAUSTIVE
        return Verdict.CLEAN if is_all else Verdict.NO_BREACH

    @property
    def reason(self) -> str:
        """Why a search that broke no law says nothing, "" where it says something."""
        if self.verdict is Verdict.NOT_RUN:
            return "nothing that was replaced is called"
        if self.verdict is not Verdict.VACUOUS:
            return ""
        refused = ", ".join(what for what, _ in self.covered.results)
        return self.cannot or (
            f"every collapse ended with {refused}" if refused else "no collapse ended"
        )

    @property
    def clean(self) -> bool:
        """No law was broken."""
        return self.violation is None

    @property
    def is_alarm(self) -> bool:
        """Whether a law was broken that was not expected to be."""
        return not self.clean and not self.expected_finding


def is_not_run(ran: Ran) -> bool:
    """Whether there are functions in the place of others, and none of them was called."""
    return any(each.replacing for each in ran) and not any(
        each.ran & each.replacing for each in ran
    )


class MutantVerdict(StrEnum):
    """What became of a rule taken away."""

    CAUGHT = "caught"
    MASKED = "masked"
    MISSED = "missed"


@dataclass(frozen=True)
class MutantResult:
    """A mutant, hunted. laws: those found broken; listed: those that count. masked_by: why nothing
    shows. seconds: until it was caught, or given up.
    """

    id: str
    where: str
    rule: str
    verdict: MutantVerdict
    laws: tuple[int, ...]
    listed: tuple[int, ...]
    covered: Coverage
    violation: Violation | None
    masked_by: str
    seconds: float
    ran: Ran = ()


@dataclass(frozen=True)
class Entry:
    """A PMD or a PTE. kind: none, table, page, huge, zero, bad, or what a non-present one is (swap,
    migration, …). value: the frame, table or slot it names. flags: young, dirty, ….
    """

    kind: str
    value: int
    flags: tuple[str, ...]


@dataclass(frozen=True)
class TableStand:
    """A page table. state: live, deferred or freed."""

    number: int
    state: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class PageStand:
    """One frame of a folio. contents: what a load reads there."""

    frame: int
    mapcount: int
    contents: int


@dataclass(frozen=True)
class FolioStand:
    """A folio, by its first frame. mapcount: of the whole folio."""

    frame: int
    order: int
    refcount: int
    mapcount: int
    flags: tuple[str, ...]
    pages: tuple[PageStand, ...]


@dataclass(frozen=True)
class Translation:
    """What a CPU's TLB holds: 1 << order pages from page number `page` of process mm."""

    mm: int
    page: int
    order: int
    entry: Entry


@dataclass(frozen=True)
class WalkCacheLink:
    """What a CPU's walk cache holds: the table that a PMD, by its index, of process mm led to."""

    mm: int
    pmd: int
    table: int


@dataclass(frozen=True)
class LateStore:
    """A store to a frame that other CPUs do not see yet."""

    frame: int
    contents: int


@dataclass(frozen=True)
class CpuStand:
    """What a CPU remembers of page tables, and its stores that are late."""

    number: int
    tlb: tuple[Translation, ...]
    links: tuple[WalkCacheLink, ...]
    late: tuple[LateStore, ...]


@dataclass(frozen=True)
class WorldState:
    """A world after a step. task: who took it, "" for the first state and the last. function: the
    kernel function it belongs to. access, word: what was done to what.

    pmds: name of the slot -> entry. held: task -> the locks it holds. vma_locks: name -> readers
    inside, -1 where it is locked for writing. broken: the laws broken up to here.
    """

    task: str
    cpu: int
    function: str
    access: str
    word: str
    pmds: tuple[tuple[str, Entry], ...]
    tables: tuple[TableStand, ...]
    folios: tuple[FolioStand, ...]
    held: tuple[tuple[str, tuple[str, ...]], ...]
    vma_locks: tuple[tuple[str, int], ...]
    cpus: tuple[CpuStand, ...]
    broken: tuple[Breach, ...]


@dataclass(frozen=True)
class Trace:
    """One execution, state by state. replay: its token."""

    tasks: tuple[str, ...]
    states: tuple[WorldState, ...]
    replay: str


@dataclass(frozen=True)
class LitmusResult:
    """A litmus test. expected: of the kernel's memory model. ours: model -> what the explorer says.

    herd: what herd7 says; None where it was not asked.
    """

    name: str
    what: str
    expected: str
    ours: tuple[tuple[str, str], ...]
    herd: str | None

    @property
    def agrees(self) -> bool:
        """Our machine of the kernel's memory model says what is expected, and so does herd7."""
        lkmm = dict(self.ours)["lkmm"]
        return lkmm == self.expected == (self.herd or lkmm)
