# SPDX-License-Identifier: GPL-2.0-or-later
"""Walks through a program without running it: is each operation legal, and what does it declare?

An operation is refused (ProgramError) where the kernel would refuse it, where it would hang or kill
the process, and where its outcome is not known here and a record would then say something wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from mthp.image.scenario_values import Advice
from mthp.lab.geometry import GEOMETRY
from mthp.lab.program.processes import (
    OUT_OF_REACH,
    SubjectProcess,
    Subjects,
    refuse,
    refuse_pinned,
)
from mthp.lab.program.program import PRCTL_FLAGS, SYSFS, Madv, Operation, ProgramError, Verb
from mthp.lab.program.space import DeclaredMapping, PageMark, Traits, Uffd
from mthp.words.settings_text import GLOBAL_MODES, SIZE_MODES, parse_anon_size, parse_mode

# --- operations of the host's side ----------------------------------------------------------


def _write_file(world: Subjects, each: Operation) -> None:
    path, value = map(str, each.args)
    if path == f"{SYSFS}/enabled":
        world.everywhere = parse_mode(path, value, GLOBAL_MODES)
        return
    match = re.fullmatch(re.escape(SYSFS) + r"/hugepages-([0-9]+kB)/enabled", path)
    if match:
        order = parse_anon_size(path, match[1], GEOMETRY)
        world.sizes[order] = parse_mode(path, value, SIZE_MODES)


def _new(world: Subjects, each: Operation) -> None:
    name = str(each.args[0]) if each.args else "s"
    world.processes.pop(name, None)
    if name in world.scan_order:
        world.scan_order.remove(name)
    world.processes[name] = SubjectProcess(name)


def _end(world: Subjects, each: Operation) -> None:
    process = world.process(str(each.args[0]))
    if process.children:
        raise ProgramError("its children end with it, but a moment later")
    del world.processes[process.name]
    if process.registered:
        world.scan_order.remove(process.name)
        world.ended += 1


def _memcg(world: Subjects, each: Operation) -> None:
    if each.args[0] not in world.groups:
        raise ProgramError(f"no process is in the cgroup {each.args[0]}")


def _nothing(world: Subjects, each: Operation) -> None:
    """Change nothing: the operation is legal anywhere."""


# --- operations of a process ----------------------------------------------------------------


def _base(world: Subjects, each: Operation) -> None:
    process = world.process(each.who)
    if process.base is not None:
        raise ProgramError("the base address is set already")
    process.base = each.numbers[0]


def _mmap(world: Subjects, each: Operation) -> None:
    process, space = world.process(each.who), world.space(each.who)
    merged = space.map(each.start, each.end, Traits(droppable=each.verb is Verb.MMAP_DROPPABLE))
    if merged:
        world.enter_over(process, each.start, each.end)


def _munmap(world: Subjects, each: Operation) -> None:
    space = world.space(each.who)
    space.over(each.start, each.end)
    refuse_pinned(space, each)
    space.unmap(each.start, each.end)


def _mprotect(world: Subjects, each: Operation) -> None:
    prot = each.numbers[2]
    world.change(each, writable=prot == 3, readable=prot != 0)


def _mremap(world: Subjects, each: Operation) -> None:
    space, to = world.space(each.who), each.numbers[2]
    if len(space.over(each.start, each.end)) != 1:
        raise ProgramError("it is more than one VMA")
    refuse(space, each, lambda vma: vma.traits.droppable, "droppable")
    refuse(space, each, lambda vma: vma.traits.mlocked, "mlocked")
    refuse(space, each, lambda vma: bool(vma.traits.uffd), "registered with userfaultfd")
    refuse_pinned(space, each)
    if not space.is_free(to, to + each.pages):
        raise ProgramError(f"something is mapped at page {to}")
    space.move(each.start, each.end, to)


def _touch(world: Subjects, each: Operation) -> None:
    process, space = world.process(each.who), world.space(each.who)
    pages = range(each.start, each.end)
    writes = each.verb is not Verb.READ
    for vma in space.over(each.start, each.end):
        if not (vma.traits.writable if writes else vma.traits.readable):
            raise ProgramError("a VMA of it does not allow that access")
        if vma.traits.uffd & Uffd.MISSING and any(
            space.page(page) is PageMark.ABSENT for page in vma_pages(vma, each)
        ):
            raise ProgramError("a missing page waits for userfaultfd for ever")
        if vma.traits.uffd & Uffd.RWP and not space.wp.isdisjoint(vma_pages(vma, each)):
            raise ProgramError("an access to a page protected by userfaultfd hangs")
    if any(space.page(page) in OUT_OF_REACH for page in pages):
        raise ProgramError("a guard or a poisoned page kills the process")
    if writes and not space.wp.isdisjoint(pages):
        raise ProgramError("a write to a page protected by userfaultfd hangs")
    if writes:
        refuse_pinned(space, each)
    for vma in space.over(each.start, each.end):
        world.huge_fault(process, vma, each.start, each.end)
    if writes:
        space.prepare_anon(each.start, each.end)
        space.mark(
            each.start, each.end, PageMark.SAME if each.verb is Verb.SAME else PageMark.WRITTEN
        )
        return
    for page in pages:
        if space.page(page) is PageMark.ABSENT:
            space.pages[page] = PageMark.ZERO
        elif space.page(page) is PageMark.OUT:
            space.pages[page] = PageMark.WRITTEN


def vma_pages(vma: DeclaredMapping, each: Operation) -> range:
    """The pages of the operation that lie in the VMA."""
    return range(max(vma.start, each.start), min(vma.end, each.end))


def _mlock2(world: Subjects, each: Operation) -> None:
    space = world.space(each.who)
    refuse(space, each, lambda vma: vma.traits.droppable, "droppable, which is never locked")
    world.change(each, mlocked=True)


def _uffd(world: Subjects, each: Operation) -> None:
    space = world.space(each.who)
    refuse(space, each, lambda vma: vma.traits.droppable, "droppable")
    refuse(space, each, lambda vma: not vma.traits.writable, "read-only")
    refuse(space, each, lambda vma: bool(vma.traits.uffd), "registered already")
    world.change(each, uffd=Uffd(each.numbers[2]))


def _uffd_wp(world: Subjects, each: Operation) -> None:
    space = world.space(each.who)
    modes = Uffd.WP | Uffd.RWP
    refuse(space, each, lambda vma: not vma.traits.uffd & modes, "not registered for that")
    refuse_pinned(space, each)
    pages = range(each.start, each.end)
    if each.numbers[2]:
        space.wp.update(pages)
    else:
        space.wp.difference_update(pages)


def _pin(world: Subjects, each: Operation) -> None:
    space = world.space(each.who)
    pages = range(each.start, each.end)
    refuse(space, each, lambda vma: not vma.traits.writable, "read-only")
    if not all(space.page(page) in (PageMark.WRITTEN, PageMark.SAME) for page in pages):
        raise ProgramError("pages of it are not there to be pinned")
    if not space.wp.isdisjoint(pages):
        raise ProgramError("a pin of a page protected by userfaultfd hangs")
    refuse_pinned(space, each)
    space.pinned.update(pages)


def _fork(world: Subjects, each: Operation) -> None:
    process, space = world.process(each.who), world.space(each.who)
    if space.pinned:
        raise ProgramError("pages are pinned: fork copies them, or a later write does")
    if process.registered:
        raise ProgramError("the children would be registered with khugepaged too, and scanned")
    process.children += each.numbers[0]


def _end_fork(world: Subjects, each: Operation) -> None:
    world.process(each.who).children = 0


def _fork_to(world: Subjects, each: Operation) -> None:
    process, space = world.process(each.who), world.space(each.who)
    name = str(each.args[0])
    if name in world.processes:
        raise ProgramError(f"there is a process {name} already")
    if space.pinned:
        raise ProgramError("pages are pinned: fork copies them, or a later write does")
    child = SubjectProcess(name, process.base, space.child(), process.prctl, process.cgroup)
    world.processes[name] = child
    if process.registered:
        child.registered = True
        world.scan_order.append(name)


def _prctl(world: Subjects, each: Operation) -> None:
    modes = {flags: mode for mode, flags in PRCTL_FLAGS.items()}
    if each.numbers not in modes:
        raise ProgramError("flags go with disabling alone")
    world.process(each.who).prctl = modes[each.numbers]


def _clear_refs(world: Subjects, each: Operation) -> None:
    world.process(each.who)


def _cgroup(world: Subjects, each: Operation) -> None:
    process = world.process(each.who)
    if process.space.pages:
        raise ProgramError("it has pages that were charged elsewhere")
    process.cgroup = str(each.args[0])
    world.groups.add(process.cgroup)


# --- madvise() and process_madvise() --------------------------------------------------------


def _advise(world: Subjects, each: Operation) -> None:
    advice = Madv(each.numbers[2])
    _ADVICES[advice](world, each, advice)


def _advise_other(world: Subjects, each: Operation) -> None:
    world.process(each.who)
    if each.subject == each.who:
        raise ProgramError("that is the process itself")
    _advise(world, Operation(Verb.ADVISE, each.numbers, each.subject))


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


_ACTS: dict[Verb, Callable[[Subjects, Operation], None]] = {
    Verb.WRITE_FILE: _write_file,
    Verb.NEW: _new,
    Verb.END: _end,
    Verb.MEMCG: _memcg,
    Verb.KSM: _nothing,
    Verb.TAKE_BLOCKS: _nothing,
    Verb.LEAVE_BLOCKS: _nothing,
    Verb.BASE: _base,
    Verb.MMAP: _mmap,
    Verb.MMAP_DROPPABLE: _mmap,
    Verb.MUNMAP: _munmap,
    Verb.MPROTECT: _mprotect,
    Verb.MREMAP: _mremap,
    Verb.WRITE: _touch,
    Verb.READ: _touch,
    Verb.SAME: _touch,
    Verb.ADVISE: _advise,
    Verb.MLOCK2: _mlock2,
    Verb.UFFD: _uffd,
    Verb.UFFD_WP: _uffd_wp,
    Verb.PIN_URING: _pin,
    Verb.PIN_VMSPLICE: _pin,
    Verb.FORK: _fork,
    Verb.END_FORK: _end_fork,
    Verb.FORK_TO: _fork_to,
    Verb.PRCTL_THP: _prctl,
    Verb.CLEAR_REFS: _clear_refs,
    Verb.ADVISE_OTHER: _advise_other,
    Verb.CGROUP: _cgroup,
    Verb.NODE: _nothing,
}


def do(world: Subjects, each: Operation) -> None:
    """Walk through one operation. ProgramError: it is not legal here; the text begins with it."""
    try:
        _ACTS[each.verb](world, each)
    except ProgramError as error:
        raise ProgramError(f"{each}: {error}") from None


def walk(ops: Iterable[Operation]) -> Subjects:
    """The processes after a program. ProgramError: for the first operation that is not legal."""
    world = Subjects()
    for each in ops:
        do(world, each)
    return world
