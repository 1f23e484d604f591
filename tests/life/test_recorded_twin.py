# SPDX-License-Identifier: GPL-2.0-or-later
"""The replay of recordings and the engine live the same programs, drawn at random, to the same pages."""

from __future__ import annotations

from random import Random

import pytest

from mthp.image.recording import RecordedProcess
from mthp.image.runs import PageKind
from mthp.life import program as ops
from mthp.life.layout import layout
from mthp.life.recorded_pages import GUARD, HUGE_ZERO, NONE, ZERO
from mthp.life.recorded_replay import RecordedReplay
from mthp.life.recorded_space import RecordedSpace
from mthp.life.run import Life
from mthp.words.settings import Enabled, Settings
from tests.life.recordings import RecordedProgram, consistent

PAGES = 2100
SIZES: list[tuple[int, ...]] = [
    (),
    (4,),
    (9,),
    (2, 4, 9),
    (2, 3, 4, 5, 6, 7, 8),
    tuple(range(2, 10)),
]
HUGEPAGE, NOHUGEPAGE, DONTNEED = 14, 15, 4
Page = tuple[str, int]


class Both:
    """One program, done on the engine and written down."""

    def __init__(self, sizes: tuple[int, ...], source: Random) -> None:
        self.settings = Settings(
            enabled=Enabled.NEVER,
            sizes={
                order: Enabled.ALWAYS if order in sizes else Enabled.NEVER for order in range(2, 10)
            },
            use_zero_page=source.random() < 0.5,
        )
        self.life = Life(self.settings)
        self.life.mm("0")
        self.recorded = RecordedProgram()
        self.tasks = [0]
        self.source = source
        self.done: list[str] = []

    def range(self) -> tuple[int, int]:
        """Pages of which something is drawn: often whole tables, or near their ends."""
        chosen = self.source
        start = chosen.choice(
            (0, 512, 1024, chosen.randrange(PAGES - 600), 16 * chosen.randrange(100))
        )
        count = chosen.choice((1, 3, 16, 40, 512, 513, 600, 1 + chosen.randrange(600)))
        return start, min(count, PAGES - start)

    def step(self) -> None:
        """Draw one operation and do it twice."""
        task = self.source.choice(self.tasks)
        name, (start, count) = str(task), self.range()
        draw = self.source.randrange(20)
        written = self.recorded
        if draw < 4:
            if self._perform(ops.Mmap(name, start, count)):
                written.mmap(start, count, task=task)
        elif draw < 12:
            write, step = self.source.random() < 0.7, self.source.choice((1, 1, 3, 20))
            kind = ops.Touching.WRITE if write else ops.Touching.READ
            for page in range(start, start + min(count, 700), step):
                if self._perform(ops.Touches(name, kind, page, 1)):
                    written.write(page, 1, task) if write else written.read(page, 1, task)
        elif draw == 12:
            if self._perform(ops.Munmap(name, start, count)):
                written.munmap(start, count, task)
        elif draw < 16:
            advice = self.source.choice((HUGEPAGE, NOHUGEPAGE, DONTNEED, DONTNEED))
            failed = self.life.perform(ops.Madvise(name, start, count, advice))
            self.done.append(f"advise {start} {count} {advice} {failed}")
            written.madvise(start, count, advice, task, failed % 2**64)
        elif draw == 16:
            protection = self.source.choice((0, 1, 3))
            failed = self.life.perform(ops.Mprotect(name, start, count, protection))
            self.done.append(f"mprotect {start} {count} {protection} {failed}")
            written.mprotect(start, count, protection, task, failed % 2**64)
        elif draw == 17:
            to = 4096 + self.source.choice((0, 512, 7))
            if self._perform(ops.Mremap(name, start, count, to)):
                written.mremap(start, count, count, to, task)
        elif draw == 18 and len(self.tasks) < 4:
            child = written.fork(task)
            self.tasks.append(child)
            self._perform(ops.Fork(name, str(child)))
        elif draw == 19 and task:
            self._perform(ops.Kill("0", name))
            written.end(task)
            self.tasks.remove(task)

    def _perform(self, operation: ops.Operation) -> bool:
        answer = self.life.perform(operation)
        self.done.append(f"{operation} {answer}")
        return answer == 0

    def check(self) -> None:
        """Compare every page of every process."""
        replay = RecordedReplay(self.recorded.recording(), self.settings)
        replay.run()
        consistent(replay)
        compare_pages(self, replay)


def compare_pages(both: Both, replay: RecordedReplay) -> None:
    """Compare every page of every process."""
    own = {int(process.pid) - 100: index for index, process in enumerate(replay_processes(replay))}
    for task in both.tasks:
        mm, space = both.life.mms[str(task)], replay.spaces[own[task]]
        for pages in (range(PAGES), range(4096, 4096 + PAGES)):
            (tokens,) = layout(mm, pages)
            engine = [
                (str(token.kind), token.order if token.kind is PageKind.FOLIO else 0)
                for token in tokens
            ]
            ours = [page_of(replay, space, page) for page in pages]
            wrong = [
                page for page, one, other in zip(pages, engine, ours, strict=True) if one != other
            ]
            at = wrong[0] - pages.start if wrong else 0
            assert not wrong, (task, wrong[:3], engine[at], ours[at], both.done[-12:])


def replay_processes(replay: RecordedReplay) -> list[RecordedProcess]:
    """The processes of its recording."""
    return list(replay._recording.processes)


def page_of(replay: RecordedReplay, space: RecordedSpace, page: int) -> Page:
    """What a page maps, in the words of a layout."""
    at = (0x7F00_0000_0000 >> 12) + page
    row = space.tables.get(at >> 9)
    if row is None:
        return "none", 0
    folio = int(replay.pages.folio[row, at & 511])
    if folio == ZERO:
        return ("huge_zero" if replay.pages.how[row] == HUGE_ZERO else "zero"), 0
    if folio in (NONE, GUARD):
        return ("none" if folio == NONE else "guard"), 0
    return "folio", int(replay.pages.order[folio])


@pytest.mark.parametrize("seed", range(18))
def test_the_same_programs_come_to_the_same_pages(seed: int) -> None:
    source = Random(seed)
    both = Both(SIZES[seed % len(SIZES)], source)
    for _ in range(4):
        for _ in range(6):
            both.step()
        both.check()
