# SPDX-License-Identifier: GPL-2.0-or-later
"""Ghost state: what the laws remember of the steps taken so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from mthp.laws.census import Census
from mthp.laws.declares import DECLARED
from mthp.laws.observations import Observations
from mthp.laws.trail import Trail
from mthp.machine.hold import Mode, Rank
from mthp.machine.locks import SpinLock
from mthp.machine.step import Access
from mthp.machine.task import Task
from mthp.mm.mm_types import Kernel, PageTable, PmdPage
from mthp.mm.page_flags import PAGE_HWPOISON
from mthp.mm.pgtable_types import (
    PTE_FLAGS_MASK,
    pmd_is_table,
    pmd_pgtable,
    pmd_trans_huge,
    pte_present,
    table_pmd,
)


class Step(NamedTuple):
    """A step that a task is about to take, or has taken. at: which word of a row. old, new: its value,
    where that counts.
    """

    task: Task
    access: Access
    word: Any
    at: int
    old: int = 0
    new: int = 0


class Copy(NamedTuple):
    """The copy of a source page. is_kept: the collapse has succeeded. late: the tasks that have stored to
    the page since, while that was open.
    """

    by: str
    is_kept: bool = False
    late: frozenset[str] = frozenset()


LateStore = tuple[int, str]
"""The source page, and the task that stored to it after it was copied."""


class Ghost:
    """Ghost state of one execution. What is kept of a word stands in a place of its own: then the steps
    at the word order all that is done with it.

    collapsers: the names of tasks that run khugepaged's path.
    detached: table -> the task that took it out of its PMD; detached_by: the other way round. flushed:
    CPU -> tables that it can have no link to left, unless it read the PMD since. guarded: table -> how
    often a task that had detached it then took its lock; seen: (table, task) -> what that was when the
    task did so, or read the PMD: only then it may fill the table. freed: words of rows, by name and
    index, that were given up. copies: source page -> its last copy by a collapser. trails: collapser ->
    what it changed itself. taken: collapser -> (table, PTE) -> the bits of the entry that it took away in
    this attempt. failed: pages whose memory had failed in the beginning.
    """

    COMMUTES: ClassVar[Mapping[str, str]] = {
        "copies": "the later of a late store and the collapse's success reports both"
    }

    def __init__(self, kernel: Kernel, begun: Census, collapsers: Collection[str]) -> None:
        self.kernel = kernel
        self.collapsers = DECLARED.collapsers.union(collapsers)
        self.observations = Observations(kernel, begun)
        self.detached: dict[int, str] = {}
        self.detached_by: defaultdict[str, set[int]] = defaultdict(set)
        self.flushed: dict[int, set[int]] = {cpu.number: set() for cpu in kernel.cpus}
        self.guarded: dict[int, int] = {}
        self.seen: dict[tuple[int, str], int] = {}
        self.copies: dict[int, Copy] = {}
        self.trails = {name: Trail(name) for name in self.collapsers}
        self.freed: dict[tuple[str, int], None] = {}
        self.taken: dict[str, dict[tuple[int, int], int]] = {name: {} for name in self.collapsers}
        flags = kernel.mem.page_flags.raw
        self.failed = frozenset(page for page, each in enumerate(flags) if each & PAGE_HWPOISON)

    # Changes, each after the laws have looked at the step

    def word_is_freed(self, step: Step) -> None:
        """Whatever it belongs to is not there any more."""
        self.freed[step.word.name, step.at] = None

    def pmd_is_read(self, step: Step) -> None:
        """A walk finds the table anew. Whether it is linked at a later step would depend on steps that
        a reduced search may put elsewhere; whether the walk has seen the link does not.
        """
        if step.access is not Access.READ or not pmd_is_table(step.old):
            return
        table = pmd_pgtable(step.old)
        if table in self.guarded:
            self.seen[table, step.task.name] = self.guarded[table]
        if self.is_instruction(step.task):
            self.flushed[step.task.cpu].discard(table)

    def pmd_is_changed(self, step: Step) -> None:
        """A table is detached or linked, or a huge page is mapped in its place."""
        old, new = step.old, step.new
        if old != new:
            if pmd_is_table(old):
                self.detached[pmd_pgtable(old)] = step.task.name
                self.detached_by[step.task.name].add(pmd_pgtable(old))
            if pmd_is_table(new):
                self._attach(pmd_pgtable(new))
            elif pmd_trans_huge(new):
                for number in step.word.owner.deposited.get(step.at, ()):
                    self._attach(number)
        trail = self.trails.get(step.task.name)
        if trail is not None:
            if pmd_is_table(old):
                trail.detached = pmd_pgtable(old)
            trail.change_pmd(step.word.name, step.at, old, new)

    def _attach(self, table: int) -> None:
        """The table is linked, or waits in a deposit."""
        if table in self.detached:
            self.detached_by[self.detached.pop(table)].discard(table)

    def pte_is_changed(self, step: Step) -> None:
        """A collapser takes an entry away, or puts one there."""
        taken, where = self.taken.get(step.task.name), (step.word.owner.number, step.at)
        if taken is None:
            return
        if pte_present(step.new):
            taken.pop(where, None)
        elif pte_present(step.old):
            taken[where] = step.old & PTE_FLAGS_MASK

    def rival_changes(self, step: Step) -> None:
        """A rival takes an entry away, if only to put another there."""
        if step.old and not step.new and isinstance(step.word.owner, PageTable | PmdPage):
            self.observations.emptied.setdefault((step.word.name, step.at))

    def cpu_is_interrupted(self, task: Task, cpu: int) -> None:
        """The CPU has no links left to the tables that the task detached."""
        self.flushed[cpu].update(self.detached_by.get(task.name, ()))

    def ptl_is_taken(self, task: Task, lock: SpinLock) -> None:
        """The task that detached a table has its lock: links read before are of no use to others now."""
        for number in self.detached_by.get(task.name, ()):
            table = self.kernel.tables.get(number)
            if table is not None and table.ptl is lock:
                self.guarded[number] = self.guarded.get(number, 0) + 1
                self.seen[number, task.name] = self.guarded[number]

    def page_is_read(self, step: Step) -> None:
        """A collapser copies the page."""
        if step.task.name in self.collapsers:
            self.copies[step.at] = Copy(step.task.name)

    def page_is_written(self, step: Step) -> Iterator[LateStore]:
        """A store after the copy is lost if the collapse succeeds, which is no step: so it matters not
        which of the two comes first.
        """
        copy, task = self.copies.get(step.at), step.task.name
        if copy is None or task in self.collapsers:
            return
        if copy.is_kept:
            yield step.at, task
        else:
            self.copies[step.at] = copy._replace(late=copy.late | {task})

    def attempt_is_over(self, name: str) -> None:
        """The next one of this collapser begins anew."""
        if name in self.taken:
            self.taken[name].clear()

    def collapse_has_failed(self, name: str) -> None:
        """What it copied is of no use any more."""
        for page in self._copied_by(name):
            del self.copies[page]

    def collapse_has_succeeded(self, name: str) -> Iterator[LateStore]:
        """What it copied is in use: the stores since."""
        for page in self._copied_by(name):
            yield from ((page, task) for task in sorted(self.copies[page].late))
            self.copies[page] = Copy(name, is_kept=True)

    def _copied_by(self, name: str) -> list[int]:
        return [page for page, copy in self.copies.items() if copy.by == name and not copy.is_kept]

    # Questions

    def has_stale_link(self, task: Task, table: int) -> bool:
        """Whether the task can know the table only from before another task detached and locked it."""
        now = self.guarded.get(table, 0)
        return bool(now) and self.seen.get((table, task.name), 0) != now

    def is_instruction(self, task: Task) -> bool:
        """Whether the task's CPU walks page tables for an instruction of user space."""
        return not task.background and bool(self.kernel.cpus[task.cpu].instruction.value)

    def is_guarded(self, task: Task, table: PageTable) -> bool:
        """Whether the task may change the table's PTEs by the locks it holds."""
        if any(hold.lock is table.ptl for hold in task.held):
            return True
        return self.detached.get(table.number) == task.name and any(
            hold.lock.rank in DECLARED.detached_under and hold.mode is Mode.WRITE
            for hold in task.held
        )

    def is_private(self, task: Task, table: PageTable) -> bool:
        """Whether only the task that withdrew the table can reach it: no PMD has it, as table or as
        deposit, and the task still holds a pmd lock."""
        if not any(hold.lock.rank is Rank.PMD for hold in task.held):
            return False
        number = table.number
        return not (number in self.detached or self.links(number) > 0 or self.is_deposited(number))

    def links(self, table: int) -> int:
        """How many PMDs point to the table."""
        return sum(page.pmds.raw.count(table_pmd(table)) for page in self._pmd_pages())

    def is_deposited(self, table: int) -> bool:
        """Whether the table waits under a huge PMD."""
        return any(table in each for page in self._pmd_pages() for each in page.deposited.values())

    def _pmd_pages(self) -> Iterator[PmdPage]:
        return (page for mm in self.kernel.mms for page in mm.pmd_pages.values())
