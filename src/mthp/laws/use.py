# SPDX-License-Identifier: GPL-2.0-or-later
"""The laws of what a task itself did before: what it holds, has given up, or took away.

All of it follows from the task's own steps, so that a verdict is the same wherever others' steps stand.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import or_

from mthp.laws.broken import Broken, Kind, Thing
from mthp.laws.ghost import Ghost, Step
from mthp.machine.hold import Mode
from mthp.machine.step import Access
from mthp.mm.mm_types import Mm, PmdPage
from mthp.mm.page_flags import PG_DIRTY
from mthp.mm.pgtable_types import (
    DIRTY,
    HUGE,
    PRESENT,
    PTE_FLAGS_MASK,
    SOFT_DIRTY,
    UFFD_WP,
    WRITE,
    YOUNG,
    pmd_is_table,
    pmd_none,
    pmd_pgtable,
    pmd_trans_huge,
    pte_pfn,
    pte_present,
)


def law_10_tables(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """A task uses a table only while it has the table mapped, or has it to itself; who has taken it out of
    its PMD may free it.
    """
    table = step.word.owner
    if table.number in step.task.maps or ghost.is_instruction(step.task):
        return
    if step.access is Access.FREE and ghost.detached.get(table.number) == step.task.name:
        return
    if not ghost.is_private(step.task, table):
        text = f"{step.task.name} uses table {table.number} and has not mapped it, or no longer"
        yield Broken(10, Thing(Kind.TABLE, table.number), text)


def law_9_pmds(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """A PMD is filled under its lock alone, and with a table only once others see what its PTEs are, but
    for what they see who take the table's own lock.
    """
    task, ptl, name = step.task, step.word.owner.ptl, f"{step.word.name}[{step.at}]"
    if not pmd_none(step.new) and not any(hold.lock is ptl for hold in task.held):
        yield Broken(9, Thing(Kind.PMD, name), f"{task.name} fills {name} without its lock")
    if not pmd_is_table(step.new) or task.buffer is None:
        return
    table = ghost.kernel.tables[pmd_pgtable(step.new)]
    late = [slot for slot in task.buffer.waiting if slot.row is table.ptes]
    if any(table.ptl not in [hold.lock for hold in slot.held] for slot in late):
        text = f"{task.name} links table {table.number}, and what it stored there may be seen later"
        yield Broken(9, Thing(Kind.PMD, name), text)


def law_13_spans(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """A collapser that holds mmap_lock for writing takes away a table only where it has locked every
    VMA that the table maps: faults under another's lock would find none.
    """
    if step.task.name not in ghost.collapsers or not pmd_is_table(step.old):
        return
    found = _place(ghost, step.word.owner, step.at)
    if found is None or not pmd_none(step.new):
        return
    mm, start = found
    if not any(h.lock is mm.mmap_lock and h.mode is Mode.WRITE for h in step.task.held):
        return
    for vma in mm.vmas:
        inside = vma.vm_start < start + mm.geometry.pmd_size and start < vma.vm_end
        if inside and vma not in mm.write_locked_vmas:
            text = f"{step.task.name} takes the table at {start:#x}, and has not locked {vma}"
            yield Broken(13, Thing(Kind.VMA, str(vma)), text)


def _place(ghost: Ghost, owner: PmdPage, slot: int) -> tuple[Mm, int] | None:
    """The mm and the address of a PMD slot."""
    for mm in ghost.kernel.mms:
        for index, page in mm.pmd_pages.items():
            if page is owner:
                return mm, (index * mm.geometry.ptrs_per_pte + slot) << mm.geometry.pmd_shift
    return None


def law_17_contents(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """A collapser reads no page whose memory had failed before it began."""
    is_read = step.access is Access.READ and step.task.name in ghost.collapsers
    if is_read and step.at in ghost.failed:
        text = f"{step.task.name} reads page {step.at}, whose memory failed"
        yield Broken(17, Thing(Kind.PAGE, step.at), text)


# What a collapser maps


def law_4_ptes(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """A collapser maps no page that rmap does not count yet."""
    page = pte_pfn(step.new) if pte_present(step.new) else 0
    if page and page != pte_pfn(step.old) and not ghost.kernel.mem.mapcount.raw[page]:
        yield from _uncounted(ghost, step, page)


def law_4_pmds(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """A collapser maps no huge page that rmap does not count yet."""
    page = pte_pfn(step.new)
    if pmd_trans_huge(step.new) and not ghost.kernel.mem.entire_mapcount.raw[page]:
        yield from _uncounted(ghost, step, page)


def _uncounted(ghost: Ghost, step: Step, page: int) -> Iterator[Broken]:
    if step.task.name in ghost.collapsers:
        text = f"{step.task.name} maps page {page} before rmap counts the mapping"
        yield Broken(4, Thing(Kind.PAGE, page), text)


# Bits of entries

_OF_MAPPINGS = PRESENT | WRITE | YOUNG | DIRTY | SOFT_DIRTY | UFFD_WP


def law_16_ptes(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """What a collapser maps in the place of an entry is as young and dirty as that was, and has no bit
    but those of a mapping that it did not find there.
    """
    if step.task.name in ghost.taken and pte_present(step.new) and not pte_present(step.old):
        table = step.word.owner.number
        bits = ghost.taken[step.task.name].get((table, step.at), 0)
        yield from _changed(ghost, step, bits, f"PTE {step.at} of table {table}")


def law_16_pmds(ghost: Ghost, step: Step) -> Iterator[Broken]:
    """A huge PMD of a collapser's is as young and dirty as all the entries it has taken away."""
    if step.task.name in ghost.taken and pmd_trans_huge(step.new) and pmd_none(step.old):
        bits = reduce(or_, ghost.taken[step.task.name].values(), HUGE)
        yield from _changed(ghost, step, bits, f"the PMD {step.word.name}[{step.at}]")


def _changed(ghost: Ghost, step: Step, bits: int, name: str) -> Iterator[Broken]:
    """bits: what it took away. A folio that is dirty itself makes up for entries that are not."""
    lost, mem = bits & ~step.new, ghost.kernel.mem
    if added := step.new & PTE_FLAGS_MASK & ~(_OF_MAPPINGS | bits):
        text = f"{step.task.name} gives {name} bits {added:#x}, which no mapping has"
        yield Broken(16, Thing(Kind.PTE, name), text)
    if lost & YOUNG:
        text = f"{step.task.name} loses the young bit of {name}"
        yield Broken(16, Thing(Kind.YOUNG_BIT, name), text)
    if lost & DIRTY and not mem.flags.raw[mem.head.raw[pte_pfn(step.new)]] & PG_DIRTY:
        text = f"{step.task.name} loses the dirty bit of {name}"
        yield Broken(16, Thing(Kind.DIRTY_BIT, name), text)
