# SPDX-License-Identifier: GPL-2.0-or-later
"""Walks through madvise() and process_madvise(): is the advice legal, and what does it do."""

from __future__ import annotations

from collections.abc import Callable

from mthp.image.scenario_values import Advice
from mthp.lab.program.processes import OUT_OF_REACH, Subjects, refuse, refuse_pinned
from mthp.lab.program.program import Madv, Operation, ProgramError, Verb
from mthp.lab.program.space import PageMark


def advise(world: Subjects, each: Operation) -> None:
    """Walk through one madvise(). ProgramError: it is not legal here."""
    advice = Madv(each.numbers[2])
    _ADVICES[advice](world, each, advice)


def advise_other(world: Subjects, each: Operation) -> None:
    """Walk through one process_madvise(), on another process."""
    world.process(each.who)
    if each.subject == each.who:
        raise ProgramError("that is the process itself")
    numbers = each.numbers
    advise(world, Operation(Verb.ADVISE, numbers, each.subject))


def _advise_thp(world: Subjects, each: Operation, advice: Madv) -> None:
    process, space = world.process(each.who), world.space(each.who)
    wanted = Advice.HUGEPAGE if advice is Madv.HUGEPAGE else Advice.NOHUGEPAGE
    before = {(vma.start, vma.end) for vma in space.vmas if vma.traits.advice is wanted}
    changed, merged = space.change(each.start, each.end, advice=wanted)
    if not changed:
        return
    for vma in space.over(each.start, each.end):
        new = (vma.start, vma.end) not in before
        if merged or (new and advice is Madv.HUGEPAGE):
            world.enter(process, vma)


def _advise_ksm(world: Subjects, each: Operation, advice: Madv) -> None:
    refuse(world.space(each.who), each, lambda vma: vma.traits.droppable, "droppable")
    world.change(each, ksm=True)


def _advise_pages(world: Subjects, each: Operation, advice: Madv) -> None:
    """Walk through advice that takes pages away, or makes them old."""
    space = world.space(each.who)
    refuse(space, each, lambda vma: vma.traits.mlocked, "mlocked")
    refuse_pinned(space, each)
    if advice is Madv.GUARD_INSTALL:
        space.prepare_anon(each.start, each.end)
        space.forget(each.start, each.end)
        space.mark(each.start, each.end, PageMark.GUARD)
        return
    for page in range(each.start, each.end):
        if advice is Madv.DONTNEED and space.page(page) is not PageMark.GUARD:
            space.forget(page, page + 1)
        elif advice is Madv.FREE and space.page(page) is not PageMark.ABSENT:
            if space.page(page) not in (*OUT_OF_REACH, PageMark.ZERO):
                space.pages[page] = PageMark.LAZYFREE
        elif advice is Madv.PAGEOUT and space.page(page) in (PageMark.WRITTEN, PageMark.SAME):
            space.pages[page] = PageMark.OUT


def _advise_unguard(world: Subjects, each: Operation, advice: Madv) -> None:
    space = world.space(each.who)
    for page in range(each.start, each.end):
        if space.over(page, page + 1) and space.page(page) is PageMark.GUARD:
            space.mark(page, page + 1, PageMark.ABSENT)


def _advise_poison(world: Subjects, each: Operation, advice: Madv) -> None:
    space = world.space(each.who)
    space.over(each.start, each.end)
    pages = range(each.start, each.end)
    if len(pages) > MOST_POISONED:
        raise ProgramError(f"more than {MOST_POISONED} pages are lost to the guest")
    if not all(space.page(page) is PageMark.WRITTEN for page in pages):
        raise ProgramError("pages of it are not there, or not the process's own")
    refuse_pinned(space, each)
    refuse(space, each, lambda vma: vma.traits.mlocked, "mlocked")
    if len(world.processes) > 1:
        raise ProgramError("another subject may map the page, and its touch would kill it")
    space.mark(each.start, each.end, PageMark.POISON)


MOST_POISONED = 4
"""How many pages one operation may poison: the guest never gets them back."""


def _advise_collapse(world: Subjects, each: Operation, advice: Madv) -> None:
    space = world.space(each.who)
    space.over(each.start, each.end)
    refuse_pinned(space, each)
    if not space.wp.isdisjoint(range(each.start, each.end)):
        raise ProgramError("pages of it are protected by userfaultfd")


_ADVICES: dict[Madv, Callable[[Subjects, Operation, Madv], None]] = {
    Madv.DONTNEED: _advise_pages,
    Madv.FREE: _advise_pages,
    Madv.COLD: _advise_pages,
    Madv.PAGEOUT: _advise_pages,
    Madv.GUARD_INSTALL: _advise_pages,
    Madv.GUARD_REMOVE: _advise_unguard,
    Madv.MERGEABLE: _advise_ksm,
    Madv.HUGEPAGE: _advise_thp,
    Madv.NOHUGEPAGE: _advise_thp,
    Madv.COLLAPSE: _advise_collapse,
    Madv.HWPOISON: _advise_poison,
}
