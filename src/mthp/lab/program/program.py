# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs: the operations that make a state in a guest, one on each line, and drafts of them.

`s wr 0 512` writes to the first 512 pages of process s. Offsets and lengths are base pages from
the process's base address. Operations that name no process are done by the host's side.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Any

from mthp.image.scenario_values import Action, Prctl
from mthp.lab.geometry import GEOMETRY, ORDERS, PMD_ORDER, PMD_PAGES
from mthp.words.settings import LIMITS, Enabled, Settings, SettingsError

BASE = 138538465099776
"""Where a process's offset 0 lies unless `base` says otherwise: on a boundary of 2 MiB."""

REACH = 1 << 37
"""Bytes above BASE that count as memory under test."""

HEAP = 3072
"""The page at which the heap of a drawn program begins."""

PROCESSES = ("s", "t", "u")
"""The names a subject process can have."""

SYSFS = "/sys/kernel/mm/transparent_hugepage"

KNOBS = (*LIMITS, "defrag")
"""The knobs of khugepaged that a program sets beside the switches."""


class ProgramError(ValueError):
    """A line that is not an operation, or an operation that cannot be done where it stands."""


class Madv(IntEnum):
    """The advice numbers of `adv` and `padv`. Kernel: include/uapi/asm-generic/mman-common.h."""

    DONTNEED = 4
    FREE = 8
    MERGEABLE = 12
    HUGEPAGE = 14
    NOHUGEPAGE = 15
    COLD = 20
    PAGEOUT = 21
    COLLAPSE = 25
    HWPOISON = 100
    GUARD_INSTALL = 102
    GUARD_REMOVE = 103


PRCTL_FLAGS: dict[Prctl | None, tuple[int, ...]] = {
    None: (0, 0),
    Prctl.DISABLE: (1, 0),
    Prctl.EXCEPT_ADVISED: (1, 2),
}
"""What was set by prctl(PR_SET_THP_DISABLE) -> its two arguments."""

REMOTE = frozenset({Madv.COLD, Madv.PAGEOUT, Madv.COLLAPSE})
"""The advice one process may give another. Kernel: mm/madvise.c, process_madvise_remote_valid()."""


@dataclass(frozen=True)
class Operand:
    """A kind of operand. accepts: the numbers it may be, or the pattern of its words."""

    name: str
    accepts: range | frozenset[int] | re.Pattern[str]


_PATH = Operand("path", re.compile(r"/\S+"))
_TEXT = Operand("text", re.compile(r"\S+( \S+)*"))
_NAME = Operand("name", re.compile("|".join(PROCESSES)))
_GROUP = Operand("cgroup", re.compile(r"[a-z][a-z0-9_-]*"))
_ADDRESS = Operand("address", range(0, 1 << 47, 4096))
_OFFSET = Operand("offset", range(1 << 35))
_PAGES = Operand("pages", range(1, 1 << 35))
_COUNT = Operand("count", range(1, 1000))
_ORDER = Operand("order", range(1, 11))
_ADVICE = Operand("advice", frozenset(map(int, Madv)))
_REMOTE_ADVICE = Operand("advice for another process", frozenset(map(int, REMOTE)))
_PROT = Operand("prot", frozenset({0, 1, 3}))
_UFFD_MODE = Operand("uffd mode", frozenset({1, 2, 3, 8}))
_NODE = Operand("node", range(64))
_FLAG = Operand("flag", frozenset({0, 1}))
_PRCTL_FLAGS = Operand("prctl flags", frozenset({0, 2}))
_CLEAR = Operand("clear_refs value", frozenset({1, 4}))

_RANGE = (_OFFSET, _PAGES)


class Verb(StrEnum):
    """What an operation does, and its operands. The name of the process comes before it, if it has one.

    The texts are those of recorded programs. TAKE_BLOCKS leaves no free block of an order or above,
    and LEAVE_BLOCKS, after it, a number of an order again. NODE:
    what the process touches from then on lies on that NUMA node.
    """

    operands: tuple[Operand, ...]

    def __new__(cls, text: str, *operands: Operand) -> Verb:
        verb = str.__new__(cls, text)
        verb._value_ = text
        verb.operands = operands
        return verb

    WRITE_FILE = "w", _PATH, _TEXT
    NEW = "new", _NAME  # or nothing
    END = "end", _NAME
    MEMCG = "memcg", _GROUP, _OFFSET
    KSM = "ksm", _COUNT
    TAKE_BLOCKS = "eat", _ORDER
    LEAVE_BLOCKS = "leave", _ORDER, _COUNT
    BASE = "base", _ADDRESS
    MMAP = "mmap", *_RANGE
    MMAP_DROPPABLE = "mmap_droppable", *_RANGE
    MUNMAP = "munmap", *_RANGE
    MPROTECT = "mprotect", *_RANGE, _PROT
    MREMAP = "mremap", *_RANGE, _OFFSET
    WRITE = "wr", *_RANGE
    READ = "rd", *_RANGE
    SAME = "same", *_RANGE
    ADVISE = "adv", *_RANGE, _ADVICE
    MLOCK2 = "mlock2", *_RANGE
    UFFD = "uffd", *_RANGE, _UFFD_MODE
    UFFD_WP = "uffdwp", *_RANGE, _FLAG
    PIN_URING = "pin_uring", *_RANGE
    PIN_VMSPLICE = "pin_vmsplice", *_RANGE
    FORK = "fork", _COUNT
    END_FORK = "endfork"
    FORK_TO = "forkto", _NAME
    PRCTL_THP = "prctl_thp", _FLAG, _PRCTL_FLAGS
    CLEAR_REFS = "clear_refs", _CLEAR
    ADVISE_OTHER = "padv", _NAME, *_RANGE, _REMOTE_ADVICE
    CGROUP = "cgroup", _GROUP
    NODE = "node", _NODE


_OF_HOST = frozenset(
    {
        Verb.WRITE_FILE,
        Verb.NEW,
        Verb.END,
        Verb.MEMCG,
        Verb.KSM,
        Verb.TAKE_BLOCKS,
        Verb.LEAVE_BLOCKS,
    }
)
"""The verbs that name no process."""
_OF_PROCESS = frozenset(Verb) - _OF_HOST


@dataclass(frozen=True)
class Operation:
    """One operation. who: the process that does it, empty for the host's side."""

    verb: Verb
    args: tuple[int | str, ...] = ()
    who: str = ""

    @property
    def start(self) -> int:
        """The first page of an operation on a range."""
        return self.numbers[0]

    @property
    def pages(self) -> int:
        """The length of an operation on a range."""
        return self.numbers[1]

    @property
    def end(self) -> int:
        return self.start + self.pages

    @property
    def numbers(self) -> tuple[int, ...]:
        """The operands that are numbers, in order."""
        return tuple(arg for arg in self.args if isinstance(arg, int))

    @property
    def is_range(self) -> bool:
        return _PAGES in self.verb.operands

    @property
    def subject(self) -> str:
        """The process whose memory the operation is about; empty where there is none."""
        return str(self.args[0]) if self.verb is Verb.ADVISE_OTHER else self.who

    @property
    def kind(self) -> str:
        """The verb, with the advice where there is one."""
        if self.verb in (Verb.ADVISE, Verb.ADVISE_OTHER):
            return f"{self.verb} {self.numbers[2]}"
        return str(self.verb)

    def with_range(self, start: int, pages: int) -> Operation:
        """The same operation over other pages."""
        head = self.args[:1] if self.verb is Verb.ADVISE_OTHER else ()
        return replace(self, args=(*head, start, pages, *self.args[len(head) + 2 :]))

    def __str__(self) -> str:
        words = [self.who] if self.who else []
        return " ".join([*words, self.verb, *map(str, self.args)])


def op(text: str) -> Operation:
    """An operation from its line; ProgramError says what is wrong with it."""
    words = text.split(" ")
    who = words.pop(0) if words[0] in PROCESSES else ""
    name = words.pop(0) if words else ""
    if name not in (_OF_PROCESS if who else _OF_HOST):
        whose = "of a process" if who else "(a process is one of s, t, u)"
        raise ProgramError(f"{text!r}: no operation {name!r} {whose}")
    verb = Verb(name)
    kinds = verb.operands if words or verb is not Verb.NEW else ()
    return Operation(verb, _operands(text, kinds, words), who)


def _operands(text: str, kinds: tuple[Operand, ...], words: list[str]) -> tuple[int | str, ...]:
    if kinds[-1:] == (_TEXT,) and len(words) > len(kinds):
        words = [*words[: len(kinds) - 1], " ".join(words[len(kinds) - 1 :])]
    if len(words) != len(kinds):
        raise ProgramError(f"{text!r}: {len(words)} operands, not {len(kinds)}")
    return tuple(_operand(text, kind, word) for kind, word in zip(kinds, words, strict=True))


def _operand(text: str, kind: Operand, word: str) -> int | str:
    if isinstance(kind.accepts, re.Pattern):
        if kind.accepts.fullmatch(word):
            return word
    elif re.fullmatch("0|[1-9][0-9]{0,15}", word) and int(word) in kind.accepts:
        return int(word)
    raise ProgramError(f"{text!r}: {word!r} is no {kind.name}")


def parse(lines: Iterable[str]) -> tuple[Operation, ...]:
    """The operations of a program's text."""
    return tuple(op(line) for line in lines)


# --- drawn programs -------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """What MADV_COLLAPSE covers: the VMA of process `who` that holds page `page`. by: the caller."""

    who: str
    page: int
    by: str


@dataclass(frozen=True)
class Draft:
    """A drawn program and what is then run over the state it makes.

    ops: make the state; every switch is off unless they set it. finish: come after the settings are
    written: advice, registration, limits. passes: full scans, or calls of MADV_COLLAPSE. target: only
    for MADV_COLLAPSE.
    """

    id: str
    family: str
    ops: tuple[Operation, ...]
    finish: tuple[Operation, ...] = ()
    settings: Settings = field(default_factory=Settings)
    action: Action = Action.KHUGEPAGED
    target: Target | None = None
    passes: int = 1

    def program(self) -> tuple[Operation, ...]:
        """Everything the agent is to do, in order: the `built_by` of a record.

        The global switch is set first and last, so that khugepaged's thread never stops.
        """
        *sizes, everywhere = switches(ALL_OFF)
        return (
            everywhere,
            *sizes,
            *self.ops,
            *limits(self.settings),
            *switches(self.settings),
            *self.finish,
        )

    def to_json(self) -> dict[str, Any]:
        """A document of plain JSON values, complete."""
        target = self.target
        return {
            "id": self.id,
            "family": self.family,
            "ops": [str(each) for each in self.ops],
            "finish": [str(each) for each in self.finish],
            "settings": self.settings.to_json(),
            "action": self.action.value,
            "target": None if target is None else [target.who, target.page, target.by],
            "passes": self.passes,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Draft:
        """The draft that to_json() wrote; ProgramError where the document is something else."""
        try:
            target = document["target"]
            return cls(
                id=str(document["id"]),
                family=str(document["family"]),
                ops=parse(document["ops"]),
                finish=parse(document["finish"]),
                settings=Settings.from_json(document["settings"]),
                action=Action(document["action"]),
                target=None if target is None else Target(*target),
                passes=operator.index(document["passes"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, SettingsError) as error:
            if isinstance(error, ProgramError):
                raise
            raise ProgramError(f"not a draft: {type(error).__name__}: {error}") from None


ALL_OFF = Settings(enabled=Enabled.MADVISE, sizes=dict.fromkeys(ORDERS, Enabled.NEVER))
"""The switches while a state is made. The global one stays on: it keeps khugepaged's thread alive."""


def size_folder(order: int) -> str:
    """The folder of one folio size in sysfs."""
    return f"{SYSFS}/hugepages-{GEOMETRY.size_name(order)}"


SHMEM_ENABLED = f"{size_folder(PMD_ORDER)}/shmem_enabled"
"""A file that is `advise` unless a program writes it: that keeps khugepaged's thread alive while every size
of anonymous memory is off."""


ZONE_RECLAIM = "/proc/sys/vm/zone_reclaim_mode"
"""A file that is 0 unless a program writes it: whether a NUMA node reclaims its own memory before that of
distant ones is taken."""


def switch(order: int, mode: Enabled) -> Operation:
    """The operation that sets one size's switch."""
    return Operation(Verb.WRITE_FILE, (f"{size_folder(order)}/enabled", mode.value))


def switches(settings: Settings) -> tuple[Operation, ...]:
    """The operations that set every switch: the sizes', then the global one."""
    sizes = [switch(order, mode) for order, mode in settings.sizes.items()]
    return (*sizes, Operation(Verb.WRITE_FILE, (f"{SYSFS}/enabled", settings.enabled.value)))


def limits(settings: Settings) -> tuple[Operation, ...]:
    """The operations that set khugepaged's limits, and defrag."""
    values = {name: str(int(getattr(settings, name))) for name in KNOBS}
    return tuple(
        Operation(Verb.WRITE_FILE, (f"{SYSFS}/khugepaged/{name}", value))
        for name, value in values.items()
    )


def registration(who: str, decoy: int) -> tuple[Operation, ...]:
    """Make khugepaged know a process, whatever its mappings are advised.

    A mapping at page `decoy`, far from the others, is advised MADV_HUGEPAGE and unmapped again; the
    PMD size is enabled meanwhile. Children that are forked afterwards are registered too.
    Kernel: mm/khugepaged.c, khugepaged_enter_vma().
    """
    mapping = (decoy, 2 * PMD_PAGES)
    return (
        switch(PMD_ORDER, Enabled.MADVISE),
        Operation(Verb.MMAP, mapping, who),
        Operation(Verb.WRITE, (decoy, 1), who),
        Operation(Verb.ADVISE, (*mapping, int(Madv.HUGEPAGE)), who),
        Operation(Verb.MUNMAP, mapping, who),
        switch(PMD_ORDER, Enabled.NEVER),
    )


def spans(pages: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """(first page, pages) of each run of consecutive pages."""
    found: list[tuple[int, int]] = []
    for page in sorted(pages):
        if found and sum(found[-1]) == page:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((page, 1))
    return tuple(found)
