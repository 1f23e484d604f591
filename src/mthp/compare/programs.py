# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs recorded programs on the engine, and compares after every operation with what the kernel showed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import starmap
from typing import Any, Final

from mthp.compare.records import DifferenceKind, OperationDifference, ProgramScore
from mthp.image.runs import FolioToken, PageKind, joined_folios
from mthp.image.scenario_values import changed
from mthp.life.layout import layout
from mthp.life.program import (
    FIRST_LAYOUT,
    SECOND_LAYOUT,
    DropCaches,
    LifeProgram,
    ProgramStep,
    SeenMapping,
    SeenMemory,
)
from mthp.life.run import Life
from mthp.mm.folio import lru_add_drain_all
from mthp.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, Mm
from mthp.mm.pgtable_types import pmd_is_table
from mthp.mm.vm_flags import VM_HUGEPAGE, VM_NOHUGEPAGE, VM_WRITE
from mthp.words.profiles import Profile
from mthp.worlds.render import render_state

SUBJECT: Final = "s"
"""The process whose memory is recorded."""
_UPPER: Final = 2
"""Page tables above those of PTEs where a program's memory has any: all of it lies in 1 GiB."""


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
        before, used = counters(life, program), frames_used(life)
        errno = life.perform(step.operation)
        lru_add_drain_all(life.kernel.mem, life.kernel.cpus)  # as the kernel's were
        moved = changed(counters(life, program), before)
        more = frames_used(life) - used
        found = next(_differences(program.id, number, step, life, errno, moved, more), None)
        if found is not None:
            return found
        if score is not None:
            score.operations += 1
    return None


def counters(life: Life, program: LifeProgram) -> dict[str, int]:
    """The counters that the record of a program has, under its names."""
    vmstat, counted = life.kernel.vmstat, program.counted
    stats = vmstat.mthp.items()
    named = {f"{order}.{name}": value for (order, name), value in stats if name in counted}
    named |= {f"v.{name}": value for name, value in vmstat.events.items() if name in counted}
    return _Counts(named)


class _Counts(dict[str, int]):
    """Counters, of which those that never moved are 0."""

    def __missing__(self, key: str) -> int:
        return 0


def _differences(
    name: str,
    number: int,
    step: ProgramStep,
    life: Life,
    errno: int,
    moved: Mapping[str, int],
    frames: int,
) -> Iterator[OperationDifference]:
    """Every difference after one operation, the most telling first."""

    def difference(
        kind: DifferenceKind, want: Any, got: Any, page: int | None = None
    ) -> OperationDifference:
        return OperationDifference(name, number, step.text, kind, want, got, page)

    if step.failure != -errno:
        yield difference(DifferenceKind.ANSWER, -step.failure, errno)
    for page, want, got in _pages(step, life):
        yield difference(DifferenceKind.PAGES, str(want), str(got), page)
    for process, seen in (step.processes or {}).items():
        yield from starmap(difference, _mappings(process, seen, life))
    if _comparable(step, step.delta) != _comparable(step, moved):
        yield difference(DifferenceKind.COUNTERS, dict(step.delta), dict(moved))
    for process, has in step.memory.items():
        mine = memory_of(life.mm(process))
        if has != mine:
            yield difference(DifferenceKind.MEMORY, f"{process}: {has}", f"{process}: {mine}")
    if step.frames not in (None, frames):
        yield difference(DifferenceKind.FRAMES, step.frames, frames)


def _comparable(step: ProgramStep, moved: Mapping[str, int]) -> dict[str, int]:
    """The counters that an operation moved, as they are compared: how often shrinkers fail to split a folio
    that cannot be split depends on how much other caches give."""
    failures = ("split_failed", "thp_split_page_failed")
    dropped = isinstance(step.operation, DropCaches)
    return {
        name: 1 if dropped and name.split(".")[1] in failures else by for name, by in moved.items()
    }


def frames_used(life: Life) -> int:
    """How many frames all folios take."""
    return sum(node.made - node.free_frames() for node in life.kernel.mem.allocator.nodes)


def memory_of(mm: Mm) -> SeenMemory:
    """What a process has, as the kernel would count it."""
    counts = mm.counters
    tables = 0
    for page in mm.pmd_pages.values():
        tables += sum(map(pmd_is_table, page.pmds.raw)) + sum(map(len, page.deposited.values()))
    return SeenMemory(
        counts[MM_ANONPAGES], counts[MM_SWAPENTS], tables + _UPPER * len(mm.pmd_pages)
    )


def _mappings(
    process: str, seen: Sequence[SeenMapping], life: Life
) -> Iterator[tuple[DifferenceKind, str, str, int | None]]:
    """What differs in a process's mappings and their pages: kind, recorded, got, page."""
    mm, base = life.mm(process), life.address(0)
    shift = mm.geometry.page_shift
    want = [_mapping(each.start, each.state.pages, each) for each in seen]
    got = [
        f"{(vma.vm_start - base) >> shift}+{(vma.vm_end - vma.vm_start) >> shift}"
        + _flags(vma.vm_flags, vma.anon_vma is not None)
        for vma in mm.vmas
    ]
    if want != got:
        yield DifferenceKind.MAPPINGS, f"{process}: {want}", f"{process}: {got}", None
        return
    states = render_state(life.kernel, mm.vmas)
    names: dict[int | None, int] = {}
    ours: dict[int | None, int] = {}
    for mapping, state in zip(seen, states, strict=True):
        pairs = zip(expanded(mapping.state.folios), expanded(state.folios), strict=True)
        for page, (token, mine) in enumerate(pairs, mapping.start):
            if _compared(_renamed(token, names)) != _compared(_renamed(mine, ours)):
                yield DifferenceKind.PAGES, f"{process}: {token}", f"{process}: {mine}", page
        if mapping.state.ptes is not None and mapping.state.ptes != state.ptes:
            recorded, entries = mapping.state.pte_pages(), state.pte_pages()
            for page, (entry, my) in enumerate(zip(recorded, entries, strict=True), mapping.start):
                if entry != my:
                    yield DifferenceKind.PTES, f"{process}: {entry}", f"{process}: {my}", page


def _renamed(token: FolioToken, names: dict[int | None, int]) -> FolioToken:
    """The token with its folio's number among those met; small folios have none."""
    if token.folio is None or not token.order:
        return token if token.folio is None else replace(token, folio=None, index=0)
    return replace(token, folio=names.setdefault(token.folio, len(names)))


def _mapping(start: int, pages: int, seen: SeenMapping) -> str:
    """A recorded mapping in short."""
    advice = {"hugepage": VM_HUGEPAGE, "nohugepage": VM_NOHUGEPAGE}.get(seen.advice, 0)
    return f"{start}+{pages}" + _flags(advice | VM_WRITE * seen.writable, seen.anon_vma)


def _flags(vm_flags: int, anon_vma: bool) -> str:
    """Rights, advice, and whether there is an anon_vma, as letters."""
    shown = (("w", VM_WRITE), ("h", VM_HUGEPAGE), ("n", VM_NOHUGEPAGE))
    return "." + "".join(letter for letter, flag in shown if vm_flags & flag) + "a" * anon_vma


def _pages(step: ProgramStep, life: Life) -> Iterator[tuple[int, FolioToken, FolioToken]]:
    """Pages that differ: number, recorded, got. Folio identities are compared up to renaming, each half of a
    layout for itself: records number them so.
    """
    for first, runs in zip((FIRST_LAYOUT.start, SECOND_LAYOUT), step.layout, strict=False):
        wanted = expanded(runs)
        (tokens,) = layout(life.mm(SUBJECT), range(first, first + len(wanted)))
        names: dict[int | None, int] = {}
        for page, (want, got) in enumerate(zip(wanted, tokens, strict=True), first):
            if _compared(_renamed(want, names)) != _compared(got):
                yield page, want, got


def expanded(runs: Iterable[tuple[int, FolioToken]]) -> list[FolioToken]:
    """The token of every page."""
    return [token.advanced(i) if i else token for count, token in runs for i in range(count)]


def _compared(token: FolioToken) -> tuple[object, ...]:
    """What of a token is compared."""
    if token.kind is not PageKind.FOLIO:
        return token.kind, token.swap_type
    flags = "".join(sorted(token.flags))
    pagemap = "".join(sorted(token.pagemap))
    return token.kind, token.order, flags, pagemap, token.mapcount, token.folio, token.index


def shown(tokens: Iterable[FolioToken]) -> str:
    """A layout as records write it."""
    return " ".join(f"{count}:{token}" for count, token in joined_folios((1, t) for t in tokens))
