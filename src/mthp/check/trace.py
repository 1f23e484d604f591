# SPDX-License-Identifier: GPL-2.0-or-later
"""Write down an execution state by state: every step, and the world as it leaves it.

Nothing here steps; the engine is not touched.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final

from mthp.check.drawing import breaches, callers, kernel_function
from mthp.check.naming import FOLIO_FLAGS, pmd_entry, pte_entry
from mthp.check.records import (
    CpuStand,
    Entry,
    FolioStand,
    LateStore,
    PageStand,
    TableStand,
    Trace,
    Translation,
    WalkCacheLink,
    WorldState,
)
from mthp.check.token import Token, as_mutant
from mthp.explore.replay import Replay
from mthp.machine.cpu import Cpu
from mthp.machine.memory import Words
from mthp.machine.step import Access
from mthp.machine.store_buffer import Lane
from mthp.machine.task import Task
from mthp.mm.mm_types import PageTable
from mthp.races.stage import Stage

TakenStep = tuple[str, int, str, str, str]
"""Task, CPU, kernel function, access, word."""

_BEGIN: Final[TakenStep] = ("", 0, "", "begin", "")
_END: Final[TakenStep] = ("", 0, "", "end", "")


class Tracing:
    """Listens to a stage. states: the world at the beginning and after every step."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.kernel = stage.kernel
        self._step = _BEGIN
        self._seen: set[int] = set()
        self._slots: set[str] = set()
        self._before, self._after = stage.before, stage.after
        stage.before, stage.after = self.before, self.after
        self.states = [self._state()]

    def before(self, access: Access, word: Any, index: int) -> None:
        """Who is about to do what; then the laws look at it."""
        task = self.stage.machine.current
        self._step = (
            task.name,
            task.cpu,
            "" if task.background else kernel_function(callers(sys._getframe(1)), access),
            access.value,
            f"{word.name}[{index}]" if isinstance(word, Words) else word.name,
        )
        self._before(access, word, index)

    def after(self, access: Access, word: Any, index: int) -> None:
        """The laws look at what was done, then it is written down."""
        self._after(access, word, index)
        self.states.append(self._state())

    def end(self) -> None:
        """The execution is over: a last state, with what the laws say of the world at rest."""
        self._step = _END
        self.states.append(self._state())

    def _state(self) -> WorldState:
        kernel = self.kernel
        tasks = [task for task, _ in self.stage.tasks]
        return WorldState(
            *self._step,
            tuple(self._pmds()),
            tuple(_table(table) for table in kernel.tables.values()),
            tuple(self._folios()),
            tuple((task.name, tuple(map(repr, task.held))) for task in tasks),
            tuple(
                (vma.vm_lock.name, int(vma.vm_lock.value)) for mm in kernel.mms for vma in mm.vmas
            ),
            tuple(_cpu(cpu, tasks) for cpu in kernel.cpus),
            breaches(self.stage.broken),
        )

    def _pmds(self) -> Iterator[tuple[str, Entry]]:
        """The slots that hold, or held in an earlier state, anything."""
        for mm in self.kernel.mms:
            for page in mm.pmd_pages.values():
                for slot, word in enumerate(page.pmds.raw):
                    name = f"{page.pmds.name}[{slot}]"
                    if word:
                        self._slots.add(name)
                    if name in self._slots:
                        yield name, pmd_entry(word)

    def _folios(self) -> Iterator[FolioStand]:
        """Those in use now or in an earlier state; the zero page is none of them."""
        mem = self.kernel.mem
        for frame in range(1, len(mem.head.raw)):
            if mem.head.raw[frame] != frame:
                continue
            if mem.refcount.raw[frame]:
                self._seen.add(frame)
            if frame not in self._seen:
                continue
            order, flags = mem.order.raw[frame], mem.flags.raw[frame]
            frames = range(frame, frame + (1 << order))
            yield FolioStand(
                frame,
                order,
                mem.refcount.raw[frame],
                mem.large_mapcount.raw[frame] if order else mem.mapcount.raw[frame],
                tuple(name for bit, name in FOLIO_FLAGS.items() if flags & bit),
                tuple(PageStand(at, mem.mapcount.raw[at], mem.content.raw[at]) for at in frames),
            )


def _table(table: PageTable) -> TableStand:
    return TableStand(table.number, table.state.name.lower(), tuple(map(pte_entry, table.ptes.raw)))


def _cpu(cpu: Cpu, tasks: list[Task]) -> CpuStand:
    late = [
        LateStore(slot.index, slot.value)
        for task in tasks
        if task.cpu == cpu.number and task.buffer is not None
        for slot in task.buffer.waiting
        if slot.row.lane is Lane.CONTENTS and not slot.seen.happened
    ]
    return CpuStand(
        cpu.number,
        tuple(Translation(e.mm, e.vpn, e.order, pte_entry(e.entry)) for e in cpu.tlb.value),
        tuple(WalkCacheLink(*link) for link in cpu.walk_cache),
        tuple(late),
    )


def trace(text: str) -> Trace:
    """Run a token and write down every state; ValueError where it is none."""
    token = Token.parse(text)
    with as_mutant(token.mutant):
        stage = token.world()
        tracing = Tracing(stage)
        Replay(lambda: stage, token.schedule).run()
        tracing.end()
    return Trace(token.world.tasks, tuple(tracing.states), text)
