# SPDX-License-Identifier: GPL-2.0-or-later
"""Finished comparisons of the engine with a real kernel, as values: what a report is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from mthp.plan.records import BulkVerdict
from mthp.words.settings import Settings
from mthp.words.units import Geometry


class MismatchKind(StrEnum):
    """The part of a recording that the engine does not reproduce. STATE: the state itself is none."""

    EVENTS = "events"
    COUNTERS = "counters"
    ERRNO = "errno"
    KILLED = "killed"
    FOLIOS = "final.folios"
    PTES = "final.ptes"
    NODES = "final.nodes"
    STATE = "state"


@dataclass(frozen=True)
class Mismatch:
    """One difference between a recorded pass and the engine's.

    id: the scenario. pass_: which of its passes, from 0. expected: what the kernel did; got: what
    the engine did. index: which event, or which mapping of the final state; None for other kinds.
    """

    id: str
    pass_: int
    kind: MismatchKind
    expected: Any
    got: Any
    index: int | None = None

    @property
    def where(self) -> str:
        """The kind with its index: events[3], counters, errno, final[0].ptes."""
        if self.index is None:
            return self.kind.value
        head, dot, part = self.kind.partition(".")
        return f"{head}[{self.index}]{dot}{part}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as `mthp collapse --conformance --json` prints them."""
        return {
            "id": self.id,
            "pass": self.pass_,
            "where": self.where,
            "expected": self.expected,
            "got": self.got,
        }


@dataclass
class Conformance:
    """The score over many scenarios.

    passes: those compared. agreed: those without a mismatch. outcomes: (event, status) -> how often
    it was recorded.
    """

    passes: int = 0
    agreed: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)
    outcomes: dict[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True)
class Misprediction:
    """Some PTEs whose final order was predicted wrong alike. before, predicted, real: `none`,
    `zero`, `swapped`, an order, or `pmd` (a folio mapped by its PMD). first: an address of one."""

    before: str
    predicted: str
    real: str
    ptes: int
    cause: str
    first: int


@dataclass(frozen=True)
class PlanBeside:
    """What a guest's khugepaged did at its own pace, beside the plan made of the capture before.

    windows, after, pmds, memory_added, last_collapse_ms: as BulkVerdict's. memory_added is what the cgroup
    is charged for. engine_ms: when the engine has the last collapse, wakeup by wakeup; the plan has a bound.
    """

    plan: BulkVerdict
    windows: Mapping[int, int]
    after: Mapping[int, int]
    pmds: int
    memory_added: int
    last_collapse_ms: int | None
    engine_ms: int | None

    @property
    def folios_exact(self) -> bool:
        """Whether each size has as many collapses and bytes as planned, and as much is mapped by PMDs."""
        plan = self.plan
        after = {order: size for order, size in plan.after.items() if size}
        return (plan.windows, after, plan.pmds) == (self.windows, self.after, self.pmds)

    @property
    def memory_error(self) -> float:
        """Of the planned memory added, as a share of what was added."""
        off = self.plan.memory_added - self.memory_added
        return off / abs(self.memory_added) if self.memory_added else float(bool(off))

    def time_error(self, ours: int | None) -> float:
        """Of a predicted time of the last collapse, as a share of when it was."""
        real = self.last_collapse_ms
        if ours is None or real is None:
            return float(ours != real)
        return (ours - real) / max(real, 1)


@dataclass(frozen=True)
class PhaseMemory:
    """The memory behind the anonymous pages of a program in one of its phases: bytes of whole folios.

    loaded: as captured. collapsed, shrunk: (model, guest) when khugepaged has come to rest, and when
    shrinkers have been called, if they were. split, underused: how many large folios these split as
    predicted, and how many of them for their pages of zeros.
    """

    phase: str
    loaded: int
    collapsed: tuple[int, int]
    shrunk: tuple[int, int] | None = None
    split: int = 0
    underused: int = 0


@dataclass(frozen=True)
class Forecast:
    """A prediction held against what a real kernel made of the same memory, PTE by PTE.

    ptes: anonymous ones that map something, before or after. changed: those whose order
    the real run changed. right, right_changed: how many of each were predicted right. *_full_scans:
    how many it took to the fixed point; the last of them changed nothing. measured: the guest beside a plan,
    if khugepaged went at its own pace. memory: in a phase, or where shrinkers were called, what there is of
    it; of the forecasts of a phase the last has it.
    """

    target: str
    kernel: str
    settings: Settings
    processes: int
    ptes: int
    changed: int
    right: int
    right_changed: int
    full_scans: int
    real_full_scans: int
    misses: tuple[Misprediction, ...] = ()
    assumptions: tuple[str, ...] = ()
    measured: PlanBeside | None = None
    memory: PhaseMemory | None = None

    @property
    def share(self) -> float:
        """The PTEs predicted right among all, 0 to 1."""
        return self.right / self.ptes if self.ptes else 1.0

    @property
    def share_changed(self) -> float:
        """The PTEs predicted right among those that changed, 0 to 1."""
        return self.right_changed / self.changed if self.changed else 1.0

    @property
    def baseline(self) -> float:
        """What share() would be if one predicted that nothing changes, 0 to 1."""
        return 1 - self.changed / self.ptes if self.ptes else 1.0


@dataclass(frozen=True)
class NoForecast:
    """Why there is no forecast of a program. settings: under which; None: under any. output: the last lines
    that it, or its load, printed. code: the exit code that goes with it."""

    target: str
    settings: Settings | None
    reason: str
    code: int
    output: tuple[str, ...] = ()


class Fate(StrEnum):
    """What became of a process or mapping between two captures."""

    BOTH = "in both"
    ENDED = "gone"
    NEW = "new"


@dataclass(frozen=True)
class PageCounts:
    """Two captures of the same addresses. was, now: pages by what they map: `zero`, `swapped`, an order,
    or `pmd` (a folio mapped by its PMD). changed: (was, now) -> pages, where `none` stands for nothing.
    """

    was: Mapping[str, int]
    now: Mapping[str, int]
    changed: Mapping[tuple[str, str], int]


@dataclass(frozen=True)
class MappingChange:
    """The mappings of [start, end) in two captures; how many there are of them in each."""

    start: int
    end: int
    name: str
    mappings: tuple[int, int]
    pages: PageCounts

    @property
    def fate(self) -> Fate:
        return fate_of(*self.mappings)


@dataclass(frozen=True)
class ProcessChange:
    """A process in two captures. folios: of each order, in each; resident: VmRSS in bytes, None where
    it is not told.
    """

    pid: int
    name: str
    fate: Fate
    pages: PageCounts
    folios: tuple[Mapping[int, int], Mapping[int, int]]
    resident: tuple[int | None, int | None]
    mappings: tuple[MappingChange, ...]


@dataclass(frozen=True)
class CaptureChange:
    """What changed between two captures. names: of their files. times: as they say themselves.
    settings: file below /sys/kernel/mm/transparent_hugepage -> its text in each, None where it is not.
    sees_folios: both were made as root.
    """

    names: tuple[str, str]
    times: tuple[str, str]
    kernels: tuple[str, str]
    geometry: Geometry
    sees_folios: bool
    settings: Mapping[str, tuple[str | None, str | None]]
    processes: tuple[ProcessChange, ...]
    pages: PageCounts


def fate_of(was: int, now: int) -> Fate:
    """What became of something that is there so often."""
    return Fate.BOTH if was and now else Fate.ENDED if was else Fate.NEW


class DifferenceKind(StrEnum):
    """What differs after an operation of a program."""

    ANSWER = "answer"
    MAPPINGS = "mappings"
    PAGES = "pages"
    PTES = "ptes"
    COUNTERS = "counters"
    MEMORY = "memory"
    FRAMES = "frames"


@dataclass(frozen=True)
class OperationDifference:
    """What the kernel showed after one operation of a program, and the engine did not.

    id: the program. step: which operation, from 0. operation: its text. expected: of the kernel; got: of the
    engine. page: the first page that differs; None for other kinds.
    """

    id: str
    step: int
    operation: str
    kind: DifferenceKind
    expected: Any
    got: Any
    page: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "id": self.id,
            "step": self.step,
            "operation": self.operation,
            "where": self.kind.value if self.page is None else f"{self.kind.value}[{self.page}]",
            "expected": self.expected,
            "got": self.got,
        }


@dataclass
class ProgramScore:
    """The score over many programs. programs: those run. operations: those after which all agreed, until
    the first difference of each program. agreed: programs without a difference.
    """

    programs: int = 0
    operations: int = 0
    agreed: int = 0
    differences: list[OperationDifference] = field(default_factory=list)
