# SPDX-License-Identifier: GPL-2.0-or-later
"""The operations on mappings: map them with space for whole folios, and later set their attributes.

The attributes come in this order, since each forbids those before it: guard markers, KSM, userfaultfd,
pins, locks, protection, advice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mthp.image.runs import PageKind, PteState
from mthp.image.scenario_values import Advice
from mthp.lab.compile.wanted import CannotBuild, WantedPage, WantedProcess, WantedVma, cannot
from mthp.lab.geometry import PMD_PAGES, round_up_to_table
from mthp.lab.program.program import PRCTL_FLAGS, Madv, Operation, Verb, spans
from mthp.lab.program.space import Uffd

_MOST_IN_PIPE = 256
"""Pages that one pipe takes."""


def _runs(who: str, verb: Verb, pages: Iterable[int], *more: int) -> list[Operation]:
    return [Operation(verb, (start, count, *more), who) for start, count in spans(pages)]


def _over(who: str, verb: Verb, vma: WantedVma, *more: int) -> Operation:
    return Operation(verb, (vma.start, vma.pages, *more), who)


# --- before ---------------------------------------------------------------------------------


Extent = tuple[int, int, bool]
"""A range that is mapped at first: start, end, and whether it is droppable."""


def extents_of(wants: Sequence[WantedProcess]) -> list[Extent]:
    """The ranges to map: the mappings of the processes, and windows of folios that reach beyond them."""
    found: list[Extent] = []
    for want in wants:
        for vma in want.vmas:
            found = _join(found, (vma.start, vma.end, vma.declared.droppable))
    for want in wants:
        for folio in want.folios:
            start, end = folio.start, folio.start + folio.size
            if not any(low <= start and end <= high for low, high, _ in found):
                droppable = want.vma_of(folio.pages[0]).declared.droppable
                found = _join(found, (start, end, droppable))
    return sorted(found)


def map_extents(want: WantedProcess, extents: Sequence[Extent]) -> list[Operation]:
    """Map the ranges."""
    return [
        Operation(Verb.MMAP_DROPPABLE if droppable else Verb.MMAP, (start, end - start), want.name)
        for start, end, droppable in extents
    ]


def trim(want: WantedProcess, extents: Sequence[Extent]) -> list[Operation]:
    """Unmap the parts of the ranges that are not mappings of the process."""
    pages = {page for start, end, _ in extents for page in range(start, end)}
    for vma in want.vmas:
        pages.difference_update(range(vma.start, vma.end))
    return _runs(want.name, Verb.MUNMAP, pages)


def _join(found: list[Extent], new: Extent) -> list[Extent]:
    start, end, droppable = new
    touched = [extents for extents in found if extents[0] < end and start < extents[1]]
    if any(extents[2] != droppable for extents in touched):
        raise CannotBuild("a folio lies across a droppable mapping and another")
    low = min([start, *(extents[0] for extents in touched)])
    high = max([end, *(extents[1] for extents in touched)])
    return [extents for extents in found if extents not in touched] + [(low, high, droppable)]


# --- anon_vmas and page tables --------------------------------------------------------------


def anon_vmas(want: WantedProcess) -> list[Operation]:
    """Make page tables that are to be empty, and anon_vmas of mappings without pages.

    A page is written, or only read, and dropped again; its table stays.
    """
    ops: list[Operation] = []
    tables = {page.at // PMD_PAGES for page in want.pages.values() if _has_content(page)}
    for vma in want.vmas:
        anon = any(_is_anon(want.pages[at]) for at in range(vma.start, vma.end))
        if anon and not vma.declared.anon_vma:
            raise CannotBuild(f"vmas[{vma.index}]: pages without an anon_vma")
        for at in _empty_tables(want, vma):
            if at // PMD_PAGES not in tables:
                verb = Verb.WRITE if vma.declared.anon_vma else Verb.READ
                ops += _touch_and_drop(want, at, verb)
                tables.add(at // PMD_PAGES)
                anon = anon or vma.declared.anon_vma
        if vma.declared.anon_vma and not anon:
            ops += _only_anon_vma(want, vma, tables)
    return ops


def _has_content(page: WantedPage) -> bool:
    return page.entry.state not in (PteState.NONE, PteState.NO_TABLE)


def _is_anon(page: WantedPage) -> bool:
    return page.token.kind not in (PageKind.NONE, PageKind.ZERO, PageKind.HUGE_ZERO)


def _empty_tables(want: WantedProcess, vma: WantedVma) -> Iterator[int]:
    """The first page of the mapping in each table that is wanted."""
    if vma.declared.initial.ptes is None:
        return
    for at in range(vma.start, vma.end):
        first = at == vma.start or at % PMD_PAGES == 0
        if first and want.pages[at].entry.state is not PteState.NO_TABLE:
            yield at


def _touch_and_drop(want: WantedProcess, at: int, verb: Verb, pages: int = 1) -> list[Operation]:
    return [
        Operation(verb, (at, 1), want.name),
        Operation(Verb.ADVISE, (at, pages, int(Madv.DONTNEED)), want.name),
    ]


def _only_anon_vma(want: WantedProcess, vma: WantedVma, tables: set[int]) -> list[Operation]:
    """Make an anon_vma without leaving a page, in a table that is wanted or that is freed again.

    Dropping a whole table's range frees the table. Kernel: mm/pt_reclaim.c, try_to_free_pte().
    """
    for at in range(vma.start, vma.end):
        nothing = not _has_content(want.pages[at])
        if nothing and at // PMD_PAGES in tables:
            return _touch_and_drop(want, at, Verb.WRITE)
    for at in range(round_up_to_table(vma.start), vma.end - PMD_PAGES + 1, PMD_PAGES):
        whole = range(at, at + PMD_PAGES)
        if not any(_has_content(want.pages[page]) for page in whole):
            return _touch_and_drop(want, at, Verb.WRITE, PMD_PAGES)
    if vma.declared.initial.ptes is None:
        return _touch_and_drop(want, vma.start, Verb.WRITE)
    return _anon_vma_by_extension(want, vma)


def _anon_vma_by_extension(want: WantedProcess, vma: WantedVma) -> list[Operation]:
    """Extend the mapping into the next table, write a page there, and unmap the extension again."""
    next_table = round_up_to_table(vma.end)
    if any(vma.end <= other.start <= next_table for other in want.vmas) or vma.declared.droppable:
        raise CannotBuild(
            f"vmas[{vma.index}]: an anon_vma, and no page table that a page could be in"
        )
    more = (vma.end, next_table + 1 - vma.end)
    return [
        Operation(Verb.MMAP, more, want.name),
        Operation(Verb.WRITE, (next_table, 1), want.name),
        Operation(Verb.MUNMAP, more, want.name),
    ]


# --- after ----------------------------------------------------------------------------------


def merge(wants: list[WantedProcess]) -> list[Operation]:
    """Make mappings mergeable, and run KSM where pages are to be merged."""
    ops: list[Operation] = []
    for want in wants:
        ops += _runs(want.name, Verb.SAME, [page.at for page in want.merged])
    for want in wants:
        ops += [
            _over(want.name, Verb.ADVISE, vma, int(Madv.MERGEABLE))
            for vma in want.vmas
            if vma.declared.ksm
        ]
    if any(want.merged for want in wants):
        ops.append(Operation(Verb.KSM, (3,)))
    return ops


def vma_attributes(want: WantedProcess) -> list[Operation]:
    """Set the attributes of the process's mappings, and hold their pages."""
    who = want.name
    ops = _runs(
        who, Verb.ADVISE, [page.at for page in want.of(PageKind.GUARD)], int(Madv.GUARD_INSTALL)
    )
    ops += [_over(who, Verb.UFFD, vma, Uffd.WP.value) for vma in want.vmas if vma.declared.uffd_wp]
    ops += _runs(who, Verb.UFFD_WP, [p.at for p in want.pages.values() if _protected(p)], 1)
    ops += _pins(want)
    ops += [_over(who, Verb.MLOCK2, vma) for vma in want.vmas if vma.declared.mlocked]
    ops += [_over(who, Verb.MPROTECT, vma, 1) for vma in want.vmas if vma.declared.read_only]
    return ops + _advise(want)


def _protected(page: WantedPage) -> bool:
    return page.entry.uffd_wp or "w" in page.token.swap_letters or "w" in page.token.pagemap


def _advise(want: WantedProcess) -> list[Operation]:
    advices = {Advice.HUGEPAGE: Madv.HUGEPAGE, Advice.NOHUGEPAGE: Madv.NOHUGEPAGE}
    return [
        _over(want.name, Verb.ADVISE, vma, int(advices[vma.declared.advice]))
        for vma in want.vmas
        if vma.declared.advice is not None
    ]


def _pins(want: WantedProcess) -> list[Operation]:
    """Hold pages: exclusive ones by a long-term pin, others by a plain reference, since a pin would
    copy them."""
    ops: list[Operation] = []
    for vma in want.vmas:
        declared = vma.declared
        if any(count != 1 for _, _, count in declared.extra_refs):
            raise CannotBuild(f"vmas[{vma.index}]: more than one reference on a page (extra_refs)")
        held = [*declared.pins, *((start, pages) for start, pages, _ in declared.extra_refs)]
        for start, pages in held:
            ops += _pin(want, vma, start, pages, long=(start, pages) in declared.pins)
    old = [page for page in want.pages.values() if page.pinned and _referenced_only(page)]
    return _drained(want, old) + ops if ops and old else ops


def _pin(
    want: WantedProcess, vma: WantedVma, start: int, pages: int, *, long: bool
) -> list[Operation]:
    places = [want.pages[vma.start + start + i] for i in range(pages)]
    if none := [page for page in places if page.token.kind is not PageKind.FOLIO]:
        raise cannot(none, "nothing there that could be held by a reference")
    if long and all(page.entry.writable for page in places):
        return [Operation(Verb.PIN_URING, (vma.start + start, pages), want.name)]
    return [
        Operation(
            Verb.PIN_VMSPLICE, (vma.start + at, min(_MOST_IN_PIPE, start + pages - at)), want.name
        )
        for at in range(start, start + pages, _MOST_IN_PIPE)
    ]


def _referenced_only(page: WantedPage) -> bool:
    return "R" in page.token.flags and not page.entry.young and "B" in page.token.flags


def _drained(want: WantedProcess, old: list[WantedPage]) -> list[Operation]:
    """Empty the LRU batches, so that what a pin marks referenced stays so.

    Kernel: mm/folio.c, lru_deactivate() clears it when the batch of MADV_COLD is drained.
    """
    for page in want.pages.values():
        if page.token.kind in (PageKind.NONE, PageKind.ZERO, PageKind.GUARD):
            return [Operation(Verb.ADVISE, (page.at, 1, int(Madv.COLD)), want.name)]
    raise cannot(old, "referenced by its pin alone, and no page left to drain the LRU with")


def prctl(want: WantedProcess) -> list[Operation]:
    """Disable THP for the process, if that is wanted."""
    if want.prctl is None:
        return []
    return [Operation(Verb.PRCTL_THP, PRCTL_FLAGS[want.prctl], want.name)]
