# SPDX-License-Identifier: GPL-2.0-or-later
"""The laws around a step: one function for each law and each kind of word that it looks at.

A verdict depends only on the order of steps that depend on one another (same word, or ordered by a
lock or an IPI), so that it is the same for every execution that a reduced search takes as one.
"""

from __future__ import annotations

from collections.abc import Iterator

from mthp.laws.broken import Broken, Kind, Thing
from mthp.laws.ghost import Ghost, Step
from mthp.laws.trail import MARKS, is_in_flight, is_swap_in
from mthp.machine.step import Access
from mthp.machine.task import Task
from mthp.mm.mm_types import TableState, Vma
from mthp.mm.page_flags import PG_LOCKED
from mthp.mm.pgtable_types import (
    DIRTY,
    SOFT_DIRTY,
    UFFD_WP,
    YOUNG,
    pmd_is_migration_entry,
    pmd_is_table,
    pmd_none,
    pmd_pgtable,
    pmd_trans_huge,
    pte_none,
    pte_none_or_zero,
    pte_pfn,
    pte_present,
)
from mthp.mm.reports import InstructionEnds, LoadedFrom, Scanning, WalkedNothing
from mthp.mm.vm_flags import VM_STACK_INCOMPLETE

# PTEs


def law_1_tables(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """No task uses a table that was freed."""
    if _was_freed(ghost, step):
        number = step.word.owner.number
        text = f"{step.task.name} uses table {number}, which was freed"
        yield Broken(1, Thing(Kind.TABLE, number), text)


def _was_freed(ghost: Ghost, step: Step) -> bool:
    """Whether the word was given up. A reference count of 0 does not say so: a frozen folio has it."""
    return (step.word.name, step.at) in ghost.freed


def law_6_walks(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """No CPU walks a table by a link that it read before a flush."""
    number, task = step.word.owner.number, step.task
    if ghost.is_instruction(task) and number in ghost.flushed[task.cpu]:
        text = f"{task.name}'s CPU walks table {number} by a link from before the flush"
        yield Broken(6, Thing(Kind.TABLE, number), text)


def law_6_frees(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """A table that a task has taken out of its PMD is freed only after a flush of every CPU since."""
    number, task = step.word.owner.number, step.task
    if step.access is not Access.FREE or ghost.detached.get(number) != task.name:
        return
    for cpu, gone in ghost.flushed.items():
        if cpu != task.cpu and number not in gone:
            text = f"{task.name} frees table {number}, to which CPU {cpu} may have a link left"
            yield Broken(6, Thing(Kind.TABLE, number), text)


def law_6_fills(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """No task changes a table that is deposited, or fills one that another task has detached."""
    task, table = step.task, step.word.owner
    number = table.number
    if ghost.is_instruction(task):
        return
    is_stale = not pte_none(step.new) and ghost.has_stale_link(task, number)
    is_guarded = ghost.is_guarded(task, table)
    if (is_guarded and not is_stale) or ghost.is_private(task, table):
        return
    if is_stale:
        text = f"{task.name} fills table {number} by a link from before it was detached"
        yield Broken(6, Thing(Kind.TABLE, number), text)
    if not is_guarded and ghost.is_deposited(number):
        text = f"{task.name} changes table {number}, which is deposited"
        yield Broken(6, Thing(Kind.TABLE, number), text)


def law_8_ptes(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """What a collapser maps in the place of an entry that it took away has the entry's marks."""
    trail, old, new = ghost.trails.get(step.task.name), step.old, step.new
    if trail is None or not pte_present(new) or is_swap_in(old, new):
        return
    table, place = step.word.owner.number, (step.word.owner.number, step.at)
    marks = old & MARKS if pte_present(old) else trail.marks.get(place, 0)
    if not pte_none(old) and old != trail.in_flight.get(place, old):
        marks &= old  # others have changed the entry since, marks and all
    yield from _lost_marks(trail.name, marks & ~new, f"PTE {step.at} of table {table}")


def _lost_marks(name: str, marks: int, whose: str) -> Iterator[Broken]:
    if marks & UFFD_WP:
        text = f"{name} loses the write protection of {whose}"
        yield Broken(8, Thing(Kind.WRITE_PROTECTED, whose), text)
    if marks & SOFT_DIRTY:
        text = f"{name} loses the soft-dirty mark of {whose}"
        yield Broken(8, Thing(Kind.SOFT_DIRTY_MARK, whose), text)


def law_7_ptes(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """A collapser overwrites no entry of another page, but for one that it has put in flight itself."""
    trail, old, new = ghost.trails.get(step.task.name), step.old, step.new
    if trail is None or pte_none_or_zero(old) or pte_none(new) or pte_pfn(old) == pte_pfn(new):
        return
    entry = trail.in_flight.get((step.word.owner.number, step.at))
    is_own = entry is not None and not pte_present(old) and pte_pfn(entry) == pte_pfn(old)
    if not is_own and not is_swap_in(old, new):
        name = f"{step.at} of table {step.word.owner.number}"
        text = f"{trail.name} overwrites PTE {name}, which names {pte_pfn(old)}"
        yield Broken(7, Thing(Kind.PTE, name), text)


def law_9_ptes(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """PTEs are changed under their lock; a CPU by itself only makes them young and dirty. A collapser
    puts pages in flight only of a folio that it has locked: whoever finds the entry waits for that.
    """
    task, table = step.task, step.word.owner
    what = Thing(Kind.TABLE, table.number)
    if ghost.is_instruction(task):
        if (step.old ^ step.new) & ~(YOUNG | DIRTY):
            yield Broken(9, what, f"{task.name}'s CPU changes more than young and dirty")
    elif not (ghost.is_guarded(task, table) or ghost.is_private(task, table)):
        text = f"{task.name} changes a PTE of table {table.number} without its lock"
        yield Broken(9, what, text)
    trail = ghost.trails.get(task.name)
    if trail is not None and is_in_flight(step.new):
        folio = ghost.kernel.mem.head.raw[pte_pfn(step.new)]
        if not trail.flags.get(folio, 0) & PG_LOCKED:
            text = f"{task.name} puts folio {folio} in flight and has not locked it"
            yield Broken(9, Thing(Kind.FOLIO, folio), text)


# PMDs


def law_13_pmds(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """A collapser walks no mm whose page tables are gone."""
    if step.task.name not in ghost.collapsers:
        return
    for mm in ghost.observations.gone:
        if any(step.word.owner is page for page in mm.pmd_pages.values()):
            text = f"{step.task.name} walks an mm that has ended"
            yield Broken(13, Thing(Kind.MM, mm.number), text)


def law_6_links(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """Only a table that is live is linked."""
    if not pmd_is_table(step.new):
        return
    number = pmd_pgtable(step.new)
    table = ghost.kernel.tables.get(number)
    if table is None or table.state is not TableState.LIVE:
        text = f"{step.task.name} links table {number}, which is no table any more"
        yield Broken(6, Thing(Kind.TABLE, number), text)


def law_7_pmds(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """A PMD that is not none is not overwritten."""
    name, old = step.task.name, step.old
    what = Thing(Kind.PMD, f"{step.word.name}[{step.at}]")
    if pmd_is_table(old):
        if not (pmd_none(step.new) or _is_spent(ghost, step.task, pmd_pgtable(old))):
            text = f"{name} overwrites a PMD that points to table {pmd_pgtable(old)}"
            yield Broken(7, what, text)
    elif pmd_trans_huge(old) and step.access is Access.RMW and name in ghost.collapsers:
        text = f"{name} clears a huge PMD (folio {pte_pfn(old)}) as if it were a table"
        yield Broken(7, what, text)
    elif not (pmd_none(old) or pmd_none(step.new) or _may_replace(ghost, step)):
        yield Broken(7, what, f"{name} overwrites a PMD that maps folio {pte_pfn(old)}")


def _is_spent(ghost: Ghost, task: Task, number: int) -> bool:
    """Whether nothing but pages that the task has in flight stands in a table that it has locked."""
    trail, table = ghost.trails.get(task.name), ghost.kernel.tables[number]
    if trail is None or not any(hold.lock is table.ptl for hold in task.held):
        return False
    return all(
        pte_none_or_zero(pte) or trail.in_flight.get((number, i)) == pte
        for i, pte in enumerate(table.ptes.raw)
    )


def _may_replace(ghost: Ghost, step: Step) -> bool:
    """A change of rights, a split, or the end of a migration; none of them a collapser's."""
    old, new = step.old, step.new
    if pte_pfn(old) == pte_pfn(new) and not pmd_is_table(new):
        return True
    split = pmd_is_table(new) and ghost.links(pmd_pgtable(new)) <= 1
    is_collapser = step.task.name in ghost.collapsers
    return not is_collapser and (split or pmd_is_migration_entry(old))


def law_8_pmds(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """A collapser's huge PMD has the marks of the entries of the table it replaces."""
    trail = ghost.trails.get(step.task.name)
    if trail is None or not pmd_trans_huge(step.new):
        return
    replaced = pmd_pgtable(step.old) if pmd_is_table(step.old) else trail.detached
    marks = 0
    for (table, _), bits in trail.marks.items():
        marks |= bits if table == replaced else 0
    yield from _lost_marks(trail.name, marks & ~step.new, f"table {replaced}")


# Pages


def law_1_contents(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """No task reads or writes a page that was freed, nor one that never was part of a folio."""
    if _was_freed(ghost, step) or (step.at and not ghost.kernel.mem.head.raw[step.at]):
        text = f"{step.task.name} uses page {step.at}, which was freed"
        yield Broken(1, Thing(Kind.PAGE, step.at), text)


def law_2_copies(ghost: Ghost, page: int, task: str) -> Iterator[Broken]:
    """No task writes a source page after it was copied."""
    if not ghost.observations.pinned[page, task]:
        text = f"{task} can still write page {page} after it was copied"
        yield Broken(2, Thing(Kind.PAGE, page), text)


def law_3_copies(ghost: Ghost, page: int, task: str) -> Iterator[Broken]:
    """No pinned page is copied: a device may write to it at any time."""
    if ghost.observations.pinned[page, task]:
        text = f"{task} writes pinned page {page} after it was copied"
        yield Broken(3, Thing(Kind.PAGE, page), text)


def law_1_flags(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """No task looks at the flags of a folio that was freed, other than to wait for its lock."""
    if step.access is not Access.WAIT and _was_freed(ghost, step):
        text = f"{step.task.name} looks at folio {step.at}, which was freed"
        yield Broken(1, Thing(Kind.FOLIO, step.at), text)


# Mappings and locks


def law_10_vmas(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """A collapser uses no VMA that it looked up before mmap_lock was let go."""
    vma = step.word.owner
    if step.task.name in ghost.collapsers and isinstance(vma, Vma) and vma.detached:
        text = f"{step.task.name} goes on with {vma}, looked up before mmap_lock was let go"
        yield Broken(10, Thing(Kind.VMA, str(vma)), text)


def law_10_ranges(ghost: Ghost, report: object) -> Iterator[Broken]:
    """A collapser looks at no range by a VMA that does not hold it, or not any more."""
    if not isinstance(report, Scanning):
        return
    vma, start, end = report.vma, report.start, report.end
    if vma.detached or not vma.vm_start <= start < end <= vma.vm_end:
        text = f"{report.by} looks at {start:#x}-{end:#x} as a part of {vma}"
        yield Broken(10, Thing(Kind.VMA, str(vma)), text)


def law_13_vmas(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """A collapser leaves exec's temporary stack alone."""
    vma = step.word.owner
    if step.task.name not in ghost.collapsers or not isinstance(vma, Vma):
        return
    if not vma.freed and vma.vm_flags & VM_STACK_INCOMPLETE:
        text = f"{step.task.name} collapses exec's temporary stack"
        yield Broken(13, Thing(Kind.VMA, str(vma)), text)


def law_1_anon_vmas(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """A collapser locks no anon_vma that has lost its last VMA."""
    if step.access is not Access.ACQUIRE or step.task.name not in ghost.collapsers:
        return
    family = [each for each in ghost.kernel.anon_vmas if each.rwsem is step.word]
    if family and not any(each.vmas for each in family):
        number = family[0].number
        text = f"{step.task.name} locks anon_vma {number}, which has no VMA left"
        yield Broken(1, Thing(Kind.ANON_VMA, number), text)


def law_13_mms(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """A collapser takes no mmap_lock of an mm that is half built."""
    if step.access is Access.RELEASE or step.task.name not in ghost.collapsers:
        return
    for mm in ghost.observations.halfway:
        has_failed = step.access is Access.TRY and step.word.word.value
        if mm.mmap_lock is step.word and not has_failed:
            text = f"{step.task.name} walks mm {mm.number}, which is half built"
            yield Broken(13, Thing(Kind.MM, mm.number), text)


# What is reported


def law_2_tlbs(ghost: Ghost, report: object) -> Iterator[Broken]:
    """No TLB holds a small and a huge entry of one address."""
    if not isinstance(report, InstructionEnds):
        return
    entries = ghost.kernel.cpus[report.cpu].tlb.value
    for huge in entries:
        for small in entries:
            inside = huge.vpn <= small.vpn < huge.vpn + (1 << huge.order)
            if huge.mm == small.mm and small.order < huge.order and inside:
                text = f"CPU {report.cpu} holds a small and a huge entry of page {small.vpn:#x}"
                yield Broken(2, Thing(Kind.CPU, report.cpu), text)


def law_3_loads(ghost: Ghost, report: object) -> Iterator[Broken]:
    """A load sees what stood there in the beginning, or what was stored since."""
    if not isinstance(report, LoadedFrom):
        return
    where = report.mm.number, report.address
    seen, value = ghost.observations, report.value
    if value != seen.initial.get(where, 0) and value not in seen.stored(where):
        text = f"{report.by} reads {value} at {report.address:#x}, which was never stored there"
        yield Broken(3, Thing(Kind.ADDRESS, hex(report.address)), text)


def law_9_hooks(ghost: Ghost, report: object) -> Iterator[Broken]:
    """The architecture's hook finds the table whose PTEs were set."""
    if isinstance(report, WalkedNothing):
        text = f"{report.by}: update_mmu_cache_range() walks a PMD that points to no table"
        yield Broken(9, Thing(Kind.PMD, hex(report.address)), text)
