# SPDX-License-Identifier: GPL-2.0-or-later
"""Finished comparisons of the engine with a real kernel, as values: what a report is made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from mthp.words.settings import Settings


class MismatchKind(StrEnum):
    """The part of a recording that the engine does not reproduce. STATE: the state itself is none."""

    EVENTS = "events"
    COUNTERS = "counters"
    ERRNO = "errno"
    FOLIOS = "final.folios"
    PTES = "final.ptes"
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
class Forecast:
    """A prediction held against what a real kernel made of the same memory, PTE by PTE.

    ptes: anonymous ones that map something, before or after. changed: those whose order
    the real run changed. right, right_changed: how many of each were predicted right. *_full_scans:
    how many it took to the fixed point; the last of them changed nothing.
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
