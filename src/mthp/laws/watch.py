# SPDX-License-Identifier: GPL-2.0-or-later
"""The laws while tasks run: looked at around each step, over ghost state carried along.

A verdict depends only on the order of steps that depend on one another (same word, or ordered by a
lock or an IPI), so that it is the same for every execution that a reduced search takes as one.
None of this steps. Numbers are those of the project's list of laws.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from mthp.khugepaged.daemon import Khugepaged
from mthp.laws.at_rest import (
    Census,
    Outside,
    check_aborted,
    check_books,
    check_collapse,
    check_quiescent,
)
from mthp.laws.told import Told
from mthp.laws.trail import Trail
from mthp.machine.hold import Mode, Rank
from mthp.machine.locks import SpinLock, WriteMark
from mthp.machine.memory import Words
from mthp.machine.step import Access
from mthp.machine.task import Task
from mthp.mm.mm_types import Kernel, PageTable, PmdPage, TableState, Vma
from mthp.mm.page_flags import PG_UPTODATE
from mthp.mm.pgtable_types import (
    DIRTY,
    YOUNG,
    pmd_is_migration_entry,
    pmd_is_table,
    pmd_none,
    pmd_pgtable,
    pmd_trans_huge,
    pte_none,
    pte_pfn,
    table_pmd,
)
from mthp.mm.reports import InstructionEnds
from mthp.mm.vm_flags import VM_STACK_INCOMPLETE
from mthp.words.events import CollapseHugePage, Event
from mthp.words.results import KernelBug, Rule, ScanResult


class Broken(NamedTuple):
    """A law was broken. text: what was seen."""

    law: int
    text: str


class Watch:
    """Ghost state of one execution. collapsers: the names of tasks that run khugepaged's path.

    detached: table -> the task that took it out of its PMD. flushed: (table, CPU) where the CPU can
    have no link to the table left, unless it read the PMD since. inspected: table -> who may fill it
    though somebody has detached it and then taken its lock: he, and who read the PMD since.
    copied: source page -> where it was mapped. told: what rivals said. trails: collapser -> what it
    changed itself.
    """

    def __init__(self, kernel: Kernel, khugepaged: Khugepaged, collapsers: Collection[str]) -> None:
        self.kernel = kernel
        self.khugepaged = khugepaged
        self.collapsers = frozenset(collapsers)
        self.broken: list[Broken] = []
        self.detached: dict[int, Task] = {}
        self.flushed: set[tuple[int, int]] = set()
        self.inspected: dict[int, set[str]] = {}
        self.copied: dict[int, str] = {}
        self.begun = Census(kernel)
        self.told = Told(kernel, self.begun.contents, self.say)
        self.trails = {name: Trail(self.say, name) for name in collapsers}
        self.collapsed = False
        self._old = 0
        self._cpus = {id(cpu.instruction): cpu.number for cpu in kernel.cpus}
        mem = kernel.mem
        self._before: dict[int, Callable[[Access, Any, int], None]] = {
            id(mem.content): self._before_content,
            id(mem.flags): self._before_flags,
        }
        for mm in kernel.mms:
            self._before[id(mm.mmap_lock)] = self._before_mmap_lock
        for each in kernel.anon_vmas:
            self._before[id(each.rwsem)] = self._before_anon_vma
        kernel.report = self._report
        kernel.trace = self._trace

    def say(self, law: int, text: str) -> None:
        """Record a breach, once."""
        breach = Broken(law, text)
        if breach not in self.broken:
            self.broken.append(breach)

    # Around each step

    def before(self, access: Access, word: Any, index: int) -> None:
        """The running task is about to do this. What leaves a store buffer was looked at before."""
        if self.kernel.machine.current.background:
            return
        handler = self._before.get(id(word))
        if handler is not None:
            handler(access, word, index)
            return
        if isinstance(word, Words):
            owner = word.owner
            if isinstance(owner, PageTable):
                self._before_pte(access, owner, index)
            elif owner is not None:
                self._old = word.raw[index]
                if isinstance(owner, PmdPage):
                    self._before_pmd(access, owner, word.raw[index])
        elif isinstance(word, WriteMark) and access is Access.ACQUIRE:
            self._before_vma_start_write(word)

    def after(self, access: Access, word: Any, index: int) -> None:
        """The running task has done this."""
        if access is Access.READ or self.kernel.machine.current.background:
            return
        if isinstance(word, Words):
            owner = word.owner
            if isinstance(owner, PageTable):
                self._after_pte(owner, index)
            elif isinstance(owner, PmdPage):
                self._after_pmd(access, self._old, word.raw[index])
                self._trace_pmd(word, index)
            elif word is self.kernel.mem.flags:
                trail = self.trails.get(self.kernel.machine.current.name)
                if trail is not None:
                    trail.flag(index, self._old, word.raw[index])
        elif access is Access.IPI and id(word) in self._cpus:
            cpu = self._cpus[id(word)]
            me = self.kernel.machine.current
            self.flushed |= {(table, cpu) for table, task in self.detached.items() if task is me}
        elif access is Access.ACQUIRE and isinstance(word, SpinLock):
            self._after_ptl(word)

    def raised(self, task: Task, error: Exception) -> None:
        """A task ended with an error: the engine's own checks, or a dangling object."""
        if isinstance(error, KernelBug):
            self.say(5 if error.rule is Rule.COUNTS else 9, f"{task.name}: {error}")
        else:
            self.say(1, f"{task.name}: {type(error).__name__}: {error}")

    def stuck(self, waiting: Sequence[tuple[Task, Any]]) -> None:
        """Nobody can go on."""
        who = ", ".join(f"{task.name} for {op.where[0]}" for task, op in waiting)
        self.say(9, f"deadlock: {who}")

    # Tables

    def _holds(self, lock: object) -> bool:
        return any(hold.lock is lock for hold in self.kernel.machine.current.held)

    def _after_ptl(self, lock: SpinLock) -> None:
        """Whoever detached a table has its lock: links read before are of no use to others now."""
        me = self.kernel.machine.current
        for number, task in self.detached.items():
            table = self.kernel.tables.get(number)
            if task is me and table is not None and table.ptl is lock:
                self.inspected[number] = {me.name}

    def _before_pte(self, access: Access, table: PageTable, index: int) -> None:
        me = self.kernel.machine.current
        if table.state is TableState.FREED:
            self.say(1, f"{me.name} uses table {table.number}, which was freed")
        if (table.number, me.cpu) in self.flushed and self.kernel.cpus[me.cpu].instruction.value:
            self.say(
                6, f"{me.name}'s CPU walks table {table.number} by a link from before the flush"
            )
        self._old = table.ptes.raw[index]

    def _before_pmd(self, access: Access, page: PmdPage, value: int) -> None:
        """A walk finds the table anew. Whether it is linked at a later step would depend on steps that
        a reduced search may put elsewhere; whether the walk has seen the link does not.
        """
        me = self.kernel.machine.current
        if me.name in self.collapsers and any(
            page is each for mm in self.told.gone for each in mm.pmd_pages.values()
        ):
            self.say(13, f"{me.name} walks an mm that has ended")
        if access is not Access.READ or not pmd_is_table(value):
            return
        if pmd_pgtable(value) in self.inspected:
            self.inspected[pmd_pgtable(value)].add(me.name)
        if self.kernel.cpus[me.cpu].instruction.value:
            self.flushed.discard((pmd_pgtable(value), me.cpu))

    def _after_pte(self, table: PageTable, index: int) -> None:
        me = self.kernel.machine.current
        old, new = self._old, table.ptes.raw[index]
        if old == new or table.state is TableState.FREED:
            return
        if me.name in self.trails:
            self.trails[me.name].pte(table.number, index, old, new)
        if self.kernel.cpus[me.cpu].instruction.value:
            if (old ^ new) & ~(YOUNG | DIRTY):
                self.say(9, f"{me.name}'s CPU changes more than young and dirty")
            return
        if self._is_private(table) and self._holds_rank(Rank.PMD):
            return
        mine = self.detached.get(table.number) is me
        if me.name not in self.inspected.get(table.number, {me.name}) and not pte_none(new):
            self.say(
                6, f"{me.name} fills table {table.number} by a link from before it was detached"
            )
        if self._holds(table.ptl) or (mine and self._holds_mmap_for_writing()):
            return
        if self._is_deposited(table.number):
            self.say(6, f"{me.name} changes table {table.number}, which is deposited")
        self.say(9, f"{me.name} changes a PTE of table {table.number} without its lock")

    def _holds_mmap_for_writing(self) -> bool:
        held = self.kernel.machine.current.held
        return any(h.lock.rank is Rank.MMAP and h.mode is Mode.WRITE for h in held)

    def _holds_rank(self, rank: Rank) -> bool:
        return any(hold.lock.rank is rank for hold in self.kernel.machine.current.held)

    def _pmd_pages(self) -> Iterator[PmdPage]:
        return (page for mm in self.kernel.mms for page in mm.pmd_pages.values())

    def _is_deposited(self, number: int) -> bool:
        tables = (each for page in self._pmd_pages() for each in page.deposited.values())
        return any(number in each for each in tables)

    def _is_linked(self, number: int, *, but_one: bool = False) -> bool:
        slots = [pmd for page in self._pmd_pages() for pmd in page.pmds.raw]
        return slots.count(table_pmd(number)) > but_one

    def _is_private(self, table: PageTable) -> bool:
        """In nobody's reach but the task that withdrew it: no PMD has it, as table or as deposit."""
        n = table.number
        return not (n in self.detached or self._is_linked(n) or self._is_deposited(n))

    def _after_pmd(self, access: Access, old: int, new: int) -> None:
        me = self.kernel.machine.current
        if old == new:
            return
        if pmd_is_table(old):
            if pmd_none(new):
                self.detached[pmd_pgtable(old)] = me
            else:
                self.say(7, f"{me.name} overwrites a PMD that points to table {pmd_pgtable(old)}")
        elif pmd_trans_huge(old) and access is Access.RMW and me.name in self.collapsers:
            self.say(7, f"{me.name} clears a huge PMD (folio {pte_pfn(old)}) as if it were a table")
        elif not (pmd_none(old) or pmd_none(new) or self._may_replace(old, new)):
            self.say(7, f"{me.name} overwrites a PMD that maps folio {pte_pfn(old)}")
        if pmd_is_table(new):
            self._linked(pmd_pgtable(new))
        elif pmd_trans_huge(new):
            for number in [n for n in self.detached if self._is_deposited(n)]:
                del self.detached[number]

    def _trace_pmd(self, word: Words, slot: int) -> None:
        trail = self.trails.get(self.kernel.machine.current.name)
        if trail is None:
            return
        old, new = self._old, word.raw[slot]
        if pmd_is_table(old) and pmd_none(new):
            trail.detach(pmd_pgtable(old))
        elif pmd_trans_huge(new):
            trail.huge(new)
        trail.pmd(word.name, slot, old, new)

    def _may_replace(self, old: int, new: int) -> bool:
        """A change of rights, a split, or the end of a migration; none of them a collapser's."""
        if pte_pfn(old) == pte_pfn(new) and not pmd_is_table(new):
            return True
        split = pmd_is_table(new) and not self._is_linked(pmd_pgtable(new), but_one=True)
        mine = self.kernel.machine.current.name in self.collapsers
        return not mine and (split or pmd_is_migration_entry(old))

    def _linked(self, number: int) -> None:
        me = self.kernel.machine.current
        table = self.kernel.tables.get(number)
        if table is None or table.state is not TableState.LIVE:
            self.say(6, f"{me.name} links table {number}, which is no table any more")
        self.detached.pop(number, None)

    # Pages

    def _before_content(self, access: Access, word: Words, page: int) -> None:
        if access is Access.RMW:  # being freed
            return
        mem = self.kernel.mem
        me = self.kernel.machine.current
        if page and not mem.refcount.raw[mem.head.raw[page]]:
            self.say(1, f"{me.name} uses page {page}, which was freed")
        if me.name in self.collapsers:
            if access is Access.READ:
                self.copied[page] = me.name
        elif access is Access.WRITE and page in self.copied:
            if self.told.pinned[page]:
                self.say(3, f"{me.name} writes pinned page {page} after it was copied")
            else:
                self.say(2, f"{me.name} can still write page {page} after it was copied")

    def _before_flags(self, access: Access, word: Words, folio: int) -> None:
        mem = self.kernel.mem
        self._old = word.raw[folio]
        if not mem.refcount.raw[folio] and access is Access.READ:
            me = self.kernel.machine.current
            self.say(1, f"{me.name} looks at folio {folio}, which was freed")

    # Mappings and locks

    def _before_vma_start_write(self, word: WriteMark) -> None:
        vma = word.owner
        me = self.kernel.machine.current
        if not isinstance(vma, Vma) or me.name not in self.collapsers:
            return
        if vma not in vma.vm_mm.vmas:
            self.say(10, f"{me.name} goes on with {vma}, looked up before mmap_lock was let go")
        if vma.vm_flags & VM_STACK_INCOMPLETE:
            self.say(13, f"{me.name} collapses exec's temporary stack")

    def _before_anon_vma(self, access: Access, word: Any, index: int) -> None:
        name = self.kernel.machine.current.name
        if access is not Access.ACQUIRE or name not in self.collapsers:
            return
        for each in self.kernel.anon_vmas:
            if each.rwsem is word and not each.vmas:
                self.say(1, f"{name} locks anon_vma {each.number}, which has no VMA left")

    def _before_mmap_lock(self, access: Access, word: Any, index: int) -> None:
        me = self.kernel.machine.current
        if access is Access.RELEASE or me.name not in self.collapsers:
            return
        for mm in self.told.halfway:
            if mm.mmap_lock is word and not (access is Access.TRY and word.word.value):
                self.say(13, f"{me.name} walks mm {mm.number}, which is half built")

    # What is said

    def _report(self, said: object) -> None:
        if isinstance(said, InstructionEnds):
            self._tlb(said.cpu)
        else:
            self.told.hear(said)

    def _tlb(self, cpu: int) -> None:
        entries = self.kernel.cpus[cpu].tlb.value
        for huge in entries:
            for small in entries:
                inside = huge.vpn <= small.vpn < huge.vpn + (1 << huge.order)
                if huge.mm == small.mm and small.order < huge.order and inside:
                    self.say(2, f"CPU {cpu} holds a small and a huge entry of page {small.vpn:#x}")

    def _trace(self, event: Event) -> None:
        if not isinstance(event, CollapseHugePage):
            return
        me = self.kernel.machine.current.name
        trail = self.trails.get(me)
        if event.status is ScanResult.SUCCEED:
            self.collapsed = True
            if trail is not None:
                trail.forget()
        else:
            if trail is not None:
                trail.gave_up()
            self.copied = {page: by for page, by in self.copied.items() if by != me}

    # In the end

    def at_rest(self, tasks: Sequence[Task]) -> None:
        """Every task has ended: count everything."""
        census = Census(self.kernel)
        mem = self.kernel.mem
        outside = Outside(self.told.references())
        broken = check_quiescent(self.kernel, self.khugepaged, outside)
        for line in [*broken, *check_books(self.begun, census)]:
            number, _, text = line.removeprefix("law ").partition(": ")
            self.say(int(number), text)
        for task in tasks:
            for hold in task.held:
                self.say(9, f"{task.name} still holds {hold}")
        for page in sorted(census.migrating):
            self.say(4, f"a migration entry of page {page} is stranded")
        for page in sorted({*census.pte_mappings, *census.pmd_mappings}):
            if not mem.flags.raw[mem.head.raw[page]] & PG_UPTODATE:
                self.say(3, f"page {page} is mapped and not up to date")
        self.told.at_rest(census)

    def alone_at_rest(self) -> None:
        """The same, where nobody but the collapser did anything."""
        check = check_collapse if self.collapsed else check_aborted
        for line in check(self.begun, self.kernel):
            number, _, text = line.removeprefix("law ").partition(": ")
            self.say(int(number), text)
