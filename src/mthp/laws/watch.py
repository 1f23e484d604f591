# SPDX-License-Identifier: GPL-2.0-or-later
"""The laws over worlds: while tasks run, when all of them have ended, and on a world at rest."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from mthp.khugepaged.daemon import Khugepaged
from mthp.laws.at_rest import Rest
from mthp.laws.broken import Broken, Kind, Thing
from mthp.laws.census import Census, Outside
from mthp.laws.ghost import Ghost, LateStore, Step
from mthp.laws.table import Moment, broken_at
from mthp.machine.locks import SpinLock, WriteMark
from mthp.machine.memory import Words
from mthp.machine.step import Access
from mthp.machine.store_buffer import Completion
from mthp.machine.task import Endless, Task
from mthp.mm.mm_types import Kernel, PageTable, PmdPage
from mthp.words.events import CollapseHugePage, Event, ScanPmd
from mthp.words.results import KernelBug, Rule, ScanResult


def check_quiescent(
    kernel: Kernel, khugepaged: Khugepaged, outside: Outside | None = None
) -> list[Broken]:
    """What breaks a law in a world at rest; empty if it is sound."""
    tasks = [kernel.machine.current]
    rest = Rest(Census(kernel), khugepaged, outside or Outside(), tasks)
    return list(broken_at(Moment.REST, rest))


def check_collapse(before: Census, kernel: Kernel) -> list[Broken]:
    """What khugepaged broke since `before`, if no other task worked meanwhile."""
    now = Census(kernel)
    return [*broken_at(Moment.COLLAPSED, before, now), *broken_at(Moment.COUNTED, before, now)]


def check_aborted(before: Census, kernel: Kernel) -> list[Broken]:
    """Broken laws of a collapse that did not succeed: those of check_collapse(), and law 11."""
    aborted = broken_at(Moment.ABORTED, before, Census(kernel))
    return [*check_collapse(before, kernel), *aborted]


class Watch:
    """The laws over one execution. broken: what was found, each once. results: in the end, what the
    collapsers' attempts and scans came to.
    """

    COMMUTES: ClassVar[Mapping[str, str]] = {
        "broken": "what is broken is there, whichever came first",
        "_old": "a task's own; of a word's bits, only those are looked at that its step is about",
    }

    def __init__(self, kernel: Kernel, khugepaged: Khugepaged, collapsers: Collection[str]) -> None:
        self.kernel = kernel
        self.khugepaged = khugepaged
        self.broken: list[Broken] = []
        self.results: list[str] = []
        self._ended: dict[str, list[str]] = {name: [] for name in collapsers}
        self.begun = Census(kernel)
        self.ghost = Ghost(kernel, self.begun, collapsers)
        self.collapsed = False
        self._old: dict[str, int] = {}
        self._cpus = {id(cpu.instruction): cpu.number for cpu in kernel.cpus}
        self._moments = {
            id(kernel.mem.content): Moment.BEFORE_CONTENT,
            id(kernel.mem.flags): Moment.BEFORE_FLAGS,
            **{id(mm.mmap_lock): Moment.BEFORE_MMAP_LOCK for mm in kernel.mms},
            **{id(each.rwsem): Moment.BEFORE_ANON_VMA_LOCK for each in kernel.anon_vmas},
        }
        kernel.machine.guards = True
        kernel.report = self._report
        kernel.trace = self._trace

    def _record(self, found: Iterable[Broken]) -> None:
        for broken in found:
            if broken not in self.broken:
                self.broken.append(broken)

    # Around each step

    def before(self, access: Access, word: Any, index: int) -> None:
        """The running task is about to do this. What leaves a store buffer is done by who stored it; but
        what a collapser copies may outlive the page in the weakest model, where no put orders it.
        """
        task = self._who()
        moment = self._moment(access, word)
        is_copy = task.background and task.name in self.ghost.collapsers
        if moment is None and access is Access.RELEASE and isinstance(word, Completion):
            self._is_stored_to()
        if moment is None or (is_copy and moment is Moment.BEFORE_CONTENT):
            return
        old = self._old[task.name] = word.raw[index] if moment in _VALUED else 0
        step = Step(task, access, word, index, old)
        if moment is Moment.BEFORE_PTE and self.kernel.machine.current.drains is None:
            self._record(broken_at(Moment.USES_PTE, self.ghost, step))
        self._record(broken_at(moment, self.ghost, step))
        if access is Access.FREE:
            self.ghost.word_is_freed(step)
        elif moment is Moment.BEFORE_PMD:
            self.ghost.pmd_is_read(step)
        elif moment is Moment.BEFORE_CONTENT and access is Access.READ:
            self.ghost.page_is_read(step)
        elif moment is Moment.BEFORE_CONTENT and access is Access.WRITE:
            self._stored_late(self.ghost.page_is_written(step))

    def _is_stored_to(self) -> None:
        """The running task makes a store that others see later. What it may store to, it must know now:
        nothing orders the later moment and what others do to PMDs, say.
        """
        task = self.kernel.machine.current
        if task.drains is not None or task.buffer is None:
            return
        slot = task.buffer.waiting[-1]
        if isinstance(slot.row, Words) and isinstance(slot.row.owner, PageTable):
            step = Step(task, Access.WRITE, slot.row, slot.index, new=slot.value)
            self._record(broken_at(Moment.USES_PTE, self.ghost, step))
            self._record(broken_at(Moment.CHANGES_PTE, self.ghost, step))

    def _stored_late(self, stores: Iterable[LateStore]) -> None:
        for page, task in stores:
            self._record(broken_at(Moment.STORED_LATE, self.ghost, page, task))

    def _who(self) -> Task:
        """Who takes the step: of a late store, who made it, with nothing of what that task has then."""
        task = self.kernel.machine.current
        if task.drains is None:
            return task
        stored = Task(task.drains.by, task.cpu)
        stored.background = True
        return stored

    def _moment(self, access: Access, word: Any) -> Moment | None:
        moment = self._moments.get(id(word))
        if moment is not None:
            return moment
        if isinstance(word, Words):
            if isinstance(word.owner, PageTable):
                return Moment.BEFORE_PTE
            return Moment.BEFORE_PMD if isinstance(word.owner, PmdPage) else None
        is_marked = isinstance(word, WriteMark) and access is Access.ACQUIRE
        return Moment.BEFORE_VMA_LOCK if is_marked else None

    def after(self, access: Access, word: Any, index: int) -> None:
        """The running task has done this."""
        if access is Access.READ:
            return
        task = self._who()
        if isinstance(word, Words):
            if isinstance(word.owner, PageTable | PmdPage) or word is self.kernel.mem.flags:
                old = self._old[task.name]
                self._changed(Step(task, access, word, index, old, word.raw[index]))
        elif access is Access.IPI and id(word) in self._cpus:
            self.ghost.cpu_is_interrupted(task, self._cpus[id(word)])
        elif access is Access.ACQUIRE and isinstance(word, SpinLock):
            self.ghost.ptl_is_taken(task, word)

    def _changed(self, step: Step) -> None:
        owner, trail = step.word.owner, self.ghost.trails.get(step.task.name)
        if trail is None:
            self.ghost.rival_changes(step)
        if isinstance(owner, PmdPage):
            if step.old != step.new:
                self._record(broken_at(Moment.AFTER_PMD, self.ghost, step))
            self.ghost.pmd_is_changed(step)
        elif isinstance(owner, PageTable):
            if step.old == step.new or (step.word.name, step.at) in self.ghost.freed:
                return
            if self.kernel.machine.current.drains is None:
                self._record(broken_at(Moment.CHANGES_PTE, self.ghost, step))
            self._record(broken_at(Moment.AFTER_PTE, self.ghost, step))
            self.ghost.pte_is_changed(step)
            if trail is not None:
                trail.change_pte(owner.number, step.at, step.old, step.new)
        elif trail is not None:
            trail.change_flags(step.at, step.old, step.new)

    def raised(self, task: Task, error: Exception | Endless) -> None:
        """A task ended with an error: the engine's own checks, or an object that is gone. Or it was ended."""
        law, text = 1, f"{type(error).__name__}: {error}"
        if isinstance(error, Endless):
            law, text = 9, str(error)
        elif isinstance(error, KernelBug):
            law, text = _LAW_OF.get(error.rule, 9), str(error)
        self._record([Broken(law, Thing(Kind.TASK, task.name), f"{task.name}: {text}")])

    def stuck(self, waiting: Sequence[tuple[Task, Any]]) -> None:
        """No task can go on."""
        self._come_to_an_end()
        tasks = ", ".join(f"{task.name} for {op.where[0]}" for task, op in waiting)
        self._record([Broken(9, Thing(Kind.TASK, waiting[0][0].name), f"deadlock: {tasks}")])

    # What is reported

    def came_to(self, result: object) -> None:
        """An attempt of the running task, or a scan with all its attempts, has ended."""
        text = result.string if isinstance(result, ScanResult) else f"a {type(result).__name__}"
        self._ended[self.kernel.machine.current.name].append(text)

    def _come_to_an_end(self) -> None:
        self.results.extend(sorted(each for ended in self._ended.values() for each in ended))

    def _report(self, report: object) -> None:
        self._record(broken_at(Moment.REPORT, self.ghost, report))
        self.ghost.observations.add(report)

    def _trace(self, event: Event) -> None:
        if isinstance(event, ScanPmd):
            self.came_to(event.status)
        if not isinstance(event, CollapseHugePage):
            return
        task = self.kernel.machine.current
        trail = self.ghost.trails.get(task.name)
        if event.status is ScanResult.SUCCEED:
            self.collapsed = True
            self._stored_late(self.ghost.collapse_has_succeeded(task.name))
        else:
            if trail is not None:
                self._record(broken_at(Moment.GAVE_UP, trail))
            self.ghost.collapse_has_failed(task.name)
        self.ghost.attempt_is_over(task.name)
        if trail is not None:
            trail.forget()

    # In the end

    def at_rest(self, tasks: Sequence[Task]) -> None:
        """Every task has ended: count everything."""
        self._come_to_an_end()
        for name in self.ghost.collapsers:
            self._stored_late(self.ghost.collapse_has_succeeded(name))  # or does not say
        census = Census(self.kernel)
        seen = self.ghost.observations
        rest = Rest(census, self.khugepaged, Outside(seen.references()), tasks)
        self._record(broken_at(Moment.REST, rest))
        self._record(broken_at(Moment.COUNTED, self.begun, census))
        self._record(broken_at(Moment.END, rest))
        self._record(broken_at(Moment.OBSERVED, seen, census))

    def alone_at_rest(self) -> None:
        """Ask the laws at rest, where only the collapser did anything."""
        check = check_collapse if self.collapsed else check_aborted
        self._record(check(self.begun, self.kernel))
        self._record(broken_at(Moment.ALONE, self.begun, Census(self.kernel)))


_LAW_OF = {Rule.COUNTS: 5, Rule.USE: 10}
"""What the engine's own checks are of, where it is not how locks are used."""
_VALUED = frozenset({Moment.BEFORE_PTE, Moment.BEFORE_PMD, Moment.BEFORE_FLAGS})
"""Moments before a step that may change a word whose old value counts."""
