# SPDX-License-Identifier: GPL-2.0-or-later
"""What of an execution made a law break, and which steps tell it: those in the cone of the breach that
conflict across CPUs, what became of the law's object, and the locks that matter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Final, NamedTuple

from mthp.check.naming import LOCKS, key_of
from mthp.check.records import DrawnRace, RaceStep, WordKind
from mthp.explore.dependence import dependent
from mthp.explore.tasks import NextStep
from mthp.laws.broken import Broken, Kind
from mthp.machine.hold import Rank

MOST_LINES: Final = 15
"""Of a drawing at 80 columns, beside its sentence and the names of the CPUs."""


class Taken(NamedTuple):
    """A step that was taken. touched: the objects that it is about."""

    task: int
    op: NextStep
    touched: frozenset[str]


def conflicts(taken: Sequence[Taken]) -> list[tuple[int, int]]:
    """Return pairs of steps of two tasks at one word whose order may matter, with none between them."""
    found = []
    at: dict[tuple[str, int], list[int]] = {}
    for j, later in enumerate(taken):
        before = at.setdefault(later.op.where, [])
        between: list[Taken] = []
        for i in reversed(before):
            earlier = taken[i]
            if not _follows(earlier, later):
                continue
            if earlier.task != later.task and not any(_follows(earlier, k) for k in between):
                found.append((i, j))
            between.append(earlier)
            if (earlier.task, earlier.op) == (later.task, later.op):
                break  # what conflicts with this step conflicts with that one too
        before.append(j)
    return found


def _follows(a: Taken, b: Taken) -> bool:
    return a.task == b.task or dependent(a.op, b.op)


def cone(taken: Sequence[Taken], ends: Iterable[int]) -> set[int]:
    """Return the ends, and the steps that happen before any of them."""
    into: dict[int, list[int]] = {}
    for i, j in conflicts(taken):
        into.setdefault(j, []).append(i)
    last: dict[int, int] = {}
    for j, step in enumerate(taken):
        if step.task in last:
            into.setdefault(j, []).append(last[step.task])
        last[step.task] = j
    found: set[int] = set()
    waiting = list(ends)
    while waiting:
        at = waiting.pop()
        if at not in found:
            found.add(at)
            waiting += into.get(at, ())
    return found


def accesses(taken: Sequence[Taken], key: str) -> set[int]:
    """Return the steps at words that held the object, or that lead to such words."""
    named: dict[tuple[str, int], set[str]] = {}
    for each in taken:
        named.setdefault(each.op.where, set()).update(each.touched)
    words = {where for where, names in named.items() if key in names}
    inside = (name for where in words for name in named[where] if name.startswith("in table "))
    tables = {name.removeprefix("in ") for name in inside}
    words |= {where for where, names in named.items() if tables & names}
    return {n for n, each in enumerate(taken) if each.op.where in words}


# What is drawn

_RANKS: Final = {
    WordKind.ENTRY: 2,
    WordKind.CONTENTS: 3,
    WordKind.REFCOUNT: 4,
    WordKind.LOCK: 4,
    WordKind.BUFFER: 4,
    WordKind.OTHER: 6,
    WordKind.FLAG: 7,
    WordKind.CPU: 7,
}
"""How much a conflict at such a word tells; less is more, and 0 is left to the breach."""
_SPINNING: Final = {LOCKS[rank] for rank in (Rank.PMD, Rank.PTE, Rank.MM_LIST)}
_OF_LOCKS: Final = {Kind.TASK, Kind.LOCK, Kind.TABLE, Kind.COUNTER}
"""What law 9 is broken of where it is about locks."""


class Ranked(NamedTuple):
    """Steps that are drawn together. rank: the lower, the sooner."""

    rank: int
    steps: tuple[int, ...]


def race_of(
    steps: Sequence[RaceStep],
    taken: Sequence[Taken],
    broken: Sequence[Broken],
    laws: Collection[int] = (),
) -> DrawnRace:
    """Tell how it came to the first breach, of one of the laws if any is broken.

    A breach by a step comes before one at rest, and of these one whose object steps were about.
    """
    story = _Story(steps, taken, broken, laws)
    drawn = story.with_parts(story.end, story.parts)
    drawn = story.with_parts(drawn, (Ranked(9, (n,)) for n in story.held(drawn)))
    return DrawnRace(
        tuple(replace(each, drawn=n in drawn) for n, each in enumerate(steps)),
        tuple((i + 1, j + 1) for i, j in story.pairs if i in drawn and j in drawn),
        tuple(n + 1 for n in story.told(drawn)),
        story.which,
    )


class _Story:
    """One execution. which: the breach that it is about, end: the step of it, none at rest; others: those
    of other breaches; about: the steps at its object's words; breaker: the task that breaks the law;
    early: what came after the end and should have come before.
    """

    def __init__(
        self,
        steps: Sequence[RaceStep],
        taken: Sequence[Taken],
        broken: Sequence[Broken],
        laws: Collection[int],
    ) -> None:
        self.steps, self.taken = steps, taken
        by = [
            n for n, each in enumerate(steps) for _ in each.breaks
        ]  # breach -> step, in their order
        abouts = [accesses(taken, key_of(each.object)) for each in broken]

        def order(n: int) -> tuple[bool, bool, bool, int]:
            return bool(laws) and broken[n].law not in laws, n >= len(by), not abouts[n], n

        self.which = min(range(len(broken)), key=order, default=0)
        self.about = abouts[self.which] if broken else set()
        self.broken = broken[self.which] if broken else None
        self.end = set(by[self.which : self.which + 1])
        self.others = {*by} - self.end
        self.key = key_of(self.broken.object) if self.broken else ""
        self.breaker = {taken[n].task for n in self.end}
        self.pairs = conflicts(taken)
        self.early = {j for i, j in self.pairs if i in self.end and steps[i].access == "read"}
        involved = {taken[n].task for n in self.about if steps[n].changes}
        at_object = (n for n in sorted(self.about) if taken[n].task in involved)
        lasts = {(taken[n].task, taken[n].op.where): n for n in at_object}
        ends = self.end or lasts.values() or range(len(taken))
        self.cone = cone(taken, ends) | self.early
        self.parts = [*self._conflicts(), *self._fates(), *self._others()]

    # What may be drawn

    def _conflicts(self) -> Iterator[Ranked]:
        """Yield steps of two CPUs that may not change places."""
        for i, j in self.pairs:
            kind = self.steps[i].kind
            if kind is WordKind.BUFFER and i in self.cone:
                yield Ranked(_RANKS[kind], (i,))
            is_left = kind is WordKind.LOCK and self.steps[j].access == "release"
            if is_left or not self.cone.issuperset((i, j)):
                continue
            if kind is not WordKind.CPU:
                yield Ranked(self._rank(i, j), (i, j))
            elif self.steps[j].access == "ipi":
                yield Ranked(_RANKS[kind], (j,))

    def _rank(self, i: int, j: int) -> int:
        """Rank a conflict: what the one who breaks the law had read too early tells most."""
        earlier = self.steps[i]
        rank, is_its = _RANKS[earlier.kind], earlier.task in self.breaker
        if j in self.end | self.early:
            return 0
        if earlier.kind is WordKind.ENTRY:
            if is_its and not earlier.changes:
                return 1 if self.key in self.taken[i].touched else 4
            return rank + (earlier.word != "PMD")
        if earlier.kind is WordKind.LOCK:
            return 3 if is_its else rank + (earlier.word in _SPINNING)
        return rank - (i in self.about and earlier.kind is not WordKind.CONTENTS)

    def _fates(self) -> Iterator[Ranked]:
        """Yield where the object was mapped, unmapped, or freed last, by each CPU."""
        law = self.broken.law if self.broken else 0
        fates: dict[tuple[int, str, str], int] = {}
        for n in sorted(self.about & self.cone):
            step = self.steps[n]
            told = {
                WordKind.ENTRY: True,
                WordKind.REFCOUNT: law == 5 or (law == 1 and step.new == "0"),
                WordKind.FLAG: law == 11,
            }
            if step.changes and told.get(step.kind, False):
                fates[step.cpu, step.word, step.of] = n
        for n in fates.values():
            yield Ranked(1 if self.key in self.taken[n].touched else 4, (n,))

    def _others(self) -> Iterator[Ranked]:
        """Yield other breaches, locks where the law is about them, entries where no object is known."""
        yield from (Ranked(6, (n,)) for n in self.others)
        if self.broken is None:
            return
        kind = self.broken.object.kind
        if self.broken.law == 9 and kind in _OF_LOCKS:
            last = {}
            for n in sorted(self.cone):
                step = self.steps[n]
                if step.kind is WordKind.LOCK and self.breaker <= {step.task}:
                    last[step.task, step.word, step.of, step.access] = n
            yield from (Ranked(5, (n,)) for n in last.values())
        if kind is Kind.COUNTER and not self.about:
            yield from (Ranked(8, (n,)) for n in self.cone if self.steps[n].kind is WordKind.ENTRY)

    def held(self, drawn: Collection[int]) -> set[int]:
        """Return where the sleeping locks were taken that are held where the law breaks, and those that
        rivals hold where they change an entry; the collapse's own are always the same.
        """
        held: dict[tuple[int, tuple[str, int]], int] = {}
        found = set()
        for n, step in enumerate(self.steps):
            task, where = step.task, self.taken[n].op.where
            if step.kind is WordKind.LOCK and step.word not in _SPINNING and step.changes:
                if step.new:
                    held[task, where] = n
                else:
                    held.pop((task, where), None)
            is_rivals = task > 0 and step.kind is WordKind.ENTRY and step.changes
            if n in self.end or (n in drawn and is_rivals):
                found |= {at for (by, _), at in held.items() if by == task}
        return found

    # What is drawn

    def with_parts(self, drawn: set[int], parts: Iterable[Ranked]) -> set[int]:
        """Add the parts that there is room for, the latest first among equals."""
        for part in sorted(parts, key=lambda part: (part.rank, -part.steps[-1])):
            if self._lines(drawn.union(part.steps)) <= MOST_LINES:
                drawn = drawn.union(part.steps)
        return drawn

    def _lines(self, drawn: set[int]) -> int:
        """Say about how many lines a drawing has at 80 columns: the steps, and one for each gap."""
        last = [] if self.end else [len(self.steps)]
        gaps = sum(b - a > 1 for a, b in pairwise([-1, *sorted(drawn), *last]))
        return len(drawn) + gaps + sum(_is_wide(self.steps[n]) for n in drawn)

    def told(self, drawn: Iterable[int]) -> list[int]:
        """Choose what tells most of each stretch of one CPU, of the few that tell most."""
        ranks: dict[int, int] = {}
        for part in sorted(self.parts, reverse=True):
            ranks.update(dict.fromkeys(part.steps, part.rank))

        def weight(n: int) -> tuple[object, ...]:
            step, rank = self.steps[n], ranks.get(n, 9)
            is_act = step.changes and (
                step.kind is WordKind.ENTRY or (rank == 0 and step.kind is not WordKind.LOCK)
            )
            return bool(step.breaks), is_act, -rank, step.changes, -_RANKS[step.kind], n

        known = [n for n in sorted(drawn) if self._is_told(n)] or sorted(drawn)
        stretches = groupby(known, lambda n: self.steps[n].cpu)
        told = [max(stretch, key=weight) for _, stretch in stretches]
        return sorted(sorted(told, key=lambda n: (ranks.get(n, 0), -n))[:_MOST_TOLD])

    def _is_told(self, n: int) -> bool:
        """Say whether the sentence may tell it; the law's words tell what an error or giving up was."""
        step = self.steps[n]
        is_last = step.access == "raise" or 11 in step.breaks
        return not (is_last or step.word in _SPINNING)


_MOST_TOLD: Final = 4
_WIDE: Final = 50


def _is_wide(step: RaceStep) -> bool:
    """Say whether a column may have no room for it in one line."""
    texts = step.function, step.word, step.of, step.new, step.old if step.changes else ""
    return step.kind is not WordKind.LOCK and sum(len(each) + 2 for each in texts if each) > _WIDE
