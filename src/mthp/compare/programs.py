# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs recorded programs on the engine, and compares after every operation with what the kernel showed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from mthp.compare.records import DifferenceKind, OperationDifference, ProgramScore
from mthp.image.runs import FolioToken, PageKind, joined_folios
from mthp.image.scenario_values import changed
from mthp.life.layout import layout
from mthp.life.program import FIRST_LAYOUT, SECOND_LAYOUT, LifeProgram, ProgramStep
from mthp.life.run import Life
from mthp.words.profiles import Profile

VMSTAT: Final = frozenset(
    {
        "thp_split_pmd",
        "thp_split_page",
        "thp_split_page_failed",
        "thp_collapse_alloc",
        "thp_collapse_alloc_failed",
        "thp_scan_exceed_none_pte",
        "thp_scan_exceed_swap_pte",
        "thp_scan_exceed_share_pte",
    }
)
"""The counters of /proc/vmstat that records of programs have."""
UNSETTLED: Final = frozenset("LAR")
"""Flags of the LRU: right after an operation they depend on what per-CPU batches still hold."""
SUBJECT: Final = "s"
"""The process whose memory is recorded."""


def run_programs(programs: Iterable[LifeProgram], profile: Profile) -> ProgramScore:
    """Run all programs; the score over them."""
    score = ProgramScore()
    for program in programs:
        difference = first_difference(program, profile, score)
        score.programs += 1
        score.agreed += difference is None
        if difference is not None:
            score.differences.append(difference)
    return score


def first_difference(
    program: LifeProgram, profile: Profile, score: ProgramScore | None = None
) -> OperationDifference | None:
    """The first operation after which engine and kernel differ, and how; None where none is. What comes
    after it tells nothing new. score: is told how many operations agreed.
    """
    life = Life.of_program(program, profile)
    life.mm(SUBJECT)
    for number, step in enumerate(program.steps):
        before = counters(life)
        errno = life.perform(step.operation)
        moved = changed(counters(life), before)
        found = next(_differences(program.id, number, step, life, errno, moved), None)
        if found is not None:
            return found
        if score is not None:
            score.operations += 1
    return None


def counters(life: Life) -> dict[str, int]:
    """The counters that records of programs have, under their names."""
    vmstat = life.kernel.vmstat
    named = {f"{order}.{name}": value for (order, name), value in vmstat.mthp.items()}
    named |= {f"v.{name}": value for name, value in vmstat.events.items() if name in VMSTAT}
    return _Counts(named)


class _Counts(dict[str, int]):
    """Counters, of which those that never moved are 0."""

    def __missing__(self, key: str) -> int:
        return 0


def _differences(
    name: str, number: int, step: ProgramStep, life: Life, errno: int, moved: Mapping[str, int]
) -> Iterator[OperationDifference]:
    """Every difference after one operation, the most telling first."""

    def difference(
        kind: DifferenceKind, want: Any, got: Any, page: int | None = None
    ) -> OperationDifference:
        return OperationDifference(name, number, step.text, kind, want, got, page)

    if bool(step.failure) != bool(errno):
        yield difference(DifferenceKind.ANSWER, step.failure or "done", errno)
    yield from (
        difference(DifferenceKind.PAGES, str(want), str(got), page)
        for page, want, got in _pages(step, life)
    )
    if dict(step.delta) != moved:
        yield difference(DifferenceKind.COUNTERS, dict(step.delta), dict(moved))


def _pages(step: ProgramStep, life: Life) -> Iterator[tuple[int, FolioToken, FolioToken]]:
    """Pages that differ: number, recorded, got. Folio identities are compared up to renaming, each half of a
    layout for itself: records number them so.
    """
    for first, runs in zip((FIRST_LAYOUT.start, SECOND_LAYOUT), step.layout, strict=False):
        wanted = expanded(runs)
        (tokens,) = layout(life.mm(SUBJECT), range(first, first + len(wanted)))
        names: dict[int | None, int] = {}
        for page, (want, got) in enumerate(zip(wanted, tokens, strict=True), first):
            if want.folio is not None:
                want = replace(want, folio=names.setdefault(want.folio, len(names)))
            if _compared(want) != _compared(got):
                yield page, want, got


def expanded(runs: Iterable[tuple[int, FolioToken]]) -> list[FolioToken]:
    """The token of every page."""
    return [token.advanced(i) if i else token for count, token in runs for i in range(count)]


def _compared(token: FolioToken) -> tuple[object, ...]:
    """What of a token is compared."""
    if token.kind is not PageKind.FOLIO:
        return token.kind, token.swap_type
    flags = "".join(sorted(set(token.flags) - UNSETTLED))
    pagemap = "".join(sorted(token.pagemap))
    return token.kind, token.order, flags, pagemap, token.mapcount, token.folio, token.index


def shown(tokens: Iterable[FolioToken]) -> str:
    """A layout as records write it."""
    return " ".join(f"{count}:{token}" for count, token in joined_folios((1, t) for t in tokens))
