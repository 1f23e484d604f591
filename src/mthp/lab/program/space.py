# SPDX-License-Identifier: GPL-2.0-or-later
"""The address space of one subject process as its operations declare it: VMAs, and page marks.

A record names every VMA, so splitting and merging follow the kernel. The pages of a record are read
back from the guest; here they are tracked only as far as legality needs it.
Offsets are base pages from the process's base address.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, Flag, auto
from itertools import count

from mthp.image.scenario_values import Advice
from mthp.lab.program.program import ProgramError


class Uffd(Flag):
    """How a VMA is registered with userfaultfd. RWP: Linux 7.3 and later.

    Kernel: include/uapi/linux/userfaultfd.h, UFFDIO_REGISTER_MODE_*.
    """

    NONE = 0
    MISSING = 1
    WP = 2
    RWP = 8


class PageMark(Enum):
    """What the operations left on a page. ABSENT: nothing is known to be there."""

    ABSENT = auto()
    ZERO = auto()
    WRITTEN = auto()
    SAME = auto()
    OUT = auto()
    LAZYFREE = auto()
    GUARD = auto()
    POISON = auto()


@dataclass(frozen=True)
class Traits:
    """The properties of a VMA that decide whether it merges with its neighbour.

    shift: how far it was moved by mremap, in pages (its vm_pgoff stays behind).
    """

    writable: bool = True
    readable: bool = True
    advice: Advice | None = None
    mlocked: bool = False
    uffd: Uffd = Uffd.NONE
    droppable: bool = False
    ksm: bool = False
    shift: int = 0

    def but_for_access(self) -> Traits:
        """The same traits, with the access rights that mprotect() can change left out."""
        return replace(self, writable=True, readable=True)


@dataclass(frozen=True)
class DeclaredMapping:
    """A declared mapping. anon: the identity of its anon_vma, None if it never had an anonymous
    page.

    forked: it was copied by fork, so that its anon_vma hangs on more than one chain.
    """

    start: int
    end: int
    traits: Traits = field(default_factory=Traits)
    anon: int | None = None
    forked: bool = False

    @property
    def pages(self) -> int:
        return self.end - self.start

    def cut(self, start: int, end: int) -> DeclaredMapping:
        """The part of it within [start, end)."""
        return replace(self, start=max(self.start, start), end=min(self.end, end))


@dataclass
class Space:
    """The mappings and marked pages of one process.

    pages holds no ABSENT; wp: write-protected by userfaultfd; pinned: held by a reference.
    """

    vmas: list[DeclaredMapping] = field(default_factory=list)
    pages: dict[int, PageMark] = field(default_factory=dict)
    wp: set[int] = field(default_factory=set)
    pinned: set[int] = field(default_factory=set)
    anon_ids: Iterator[int] = field(default_factory=count)

    # --- queries ----------------------------------------------------------------------------

    def over(self, start: int, end: int) -> list[DeclaredMapping]:
        """The VMAs that hold [start, end); ProgramError where a page of it is not mapped."""
        found = [vma for vma in self.vmas if vma.start < end and start < vma.end]
        at = start
        for vma in found:
            if vma.start > at:
                break
            at = vma.end
        if at < end:
            raise ProgramError(f"page {at} is not mapped")
        return found

    def page(self, page: int) -> PageMark:
        """The mark of one page."""
        return self.pages.get(page, PageMark.ABSENT)

    def is_free(self, start: int, end: int) -> bool:
        """Whether nothing is mapped in [start, end)."""
        return all(vma.end <= start or end <= vma.start for vma in self.vmas)

    # --- changing mappings ------------------------------------------------------------------

    def map(self, start: int, end: int, traits: Traits) -> bool:
        """Add a mapping; returns whether it merged. Kernel: mm/vma.c, vma_merge_new_range()."""
        if not self.is_free(start, end):
            raise ProgramError(f"something is mapped in {start}..{end} already")
        new = DeclaredMapping(start, end, traits)
        self._insert(new)
        return self._merge_around(start, end)

    def unmap(self, start: int, end: int) -> None:
        """Remove a range from its VMAs, with everything on its pages."""
        self.over(start, end)
        self.split(start, end)
        self.vmas = [vma for vma in self.vmas if vma.end <= start or end <= vma.start]
        self.forget(start, end)

    def split(self, start: int, end: int) -> None:
        """Cut the VMAs at start and at end."""
        for at in (start, end):
            for i, vma in enumerate(self.vmas):
                if vma.start < at < vma.end:
                    self.vmas[i : i + 1] = [vma.cut(vma.start, at), vma.cut(at, vma.end)]
                    break

    def change(self, start: int, end: int, **traits: object) -> tuple[bool, bool]:
        """Give a range other traits; returns whether any VMA changed, and whether any merged.

        VMA by VMA, as Kernel: mm/vma.c, vma_modify() does for madvise, mprotect, mlock,
        userfaultfd.
        """
        changed = merged = False
        for vma in self.over(start, end):
            part = vma.cut(start, end)
            wanted = replace(vma.traits, **traits)  # type: ignore[arg-type]
            if wanted == vma.traits:
                continue
            changed = True
            self.split(part.start, part.end)
            at = next(i for i, each in enumerate(self.vmas) if each.start == part.start)
            self.vmas[at] = replace(self.vmas[at], traits=wanted)
            merged |= self._merge_around(part.start, part.end)
        return changed, merged

    def move(self, start: int, end: int, to: int) -> None:
        """Move a range within one VMA to a free place by mremap, with everything on its pages."""
        (vma,) = self.over(start, end)
        distance = to - start
        shift = vma.traits.shift + distance if vma.anon is not None else 0
        moved = replace(
            vma.cut(start, end),
            start=to,
            end=end + distance,
            traits=replace(vma.traits, shift=shift),
        )
        pages = {page: self.pages[page] for page in range(start, end) if page in self.pages}
        self.unmap(start, end)
        self._insert(moved)
        self._merge_around(moved.start, moved.end)
        self.pages.update((page + distance, what) for page, what in pages.items())

    def _insert(self, vma: DeclaredMapping) -> None:
        self.vmas.append(vma)
        self.vmas.sort(key=lambda each: each.start)

    def _merge_around(self, start: int, end: int) -> bool:
        """Merge the VMA [start, end) with its neighbours where the kernel would."""
        merged = False
        at = next(i for i, vma in enumerate(self.vmas) if vma.start == start and vma.end == end)
        for left in (at, at - 1):
            if 0 <= left < len(self.vmas) - 1:
                first, second = self.vmas[left], self.vmas[left + 1]
                if mergeable(first, second):
                    anon = first.anon if first.anon is not None else second.anon
                    self.vmas[left : left + 2] = [replace(first, end=second.end, anon=anon)]
                    merged = True
        return merged

    # --- changing pages ---------------------------------------------------------------------

    def mark(self, start: int, end: int, what: PageMark) -> None:
        """Mark every page of [start, end)."""
        if what is PageMark.ABSENT:
            for page in range(start, end):
                self.pages.pop(page, None)
        else:
            self.pages.update(dict.fromkeys(range(start, end), what))

    def forget(self, start: int, end: int) -> None:
        """Remove everything from these pages, and every hold on them."""
        self.mark(start, end, PageMark.ABSENT)
        gone = range(start, end)
        self.wp.difference_update(gone)
        self.pinned.difference_update(gone)

    def prepare_anon(self, start: int, end: int) -> None:
        """Give the VMAs of a range an anon_vma, a neighbour's where it may be shared.

        Kernel: mm/vma.c, find_mergeable_anon_vma(): the next VMA is asked first.
        """
        for i, vma in enumerate(self.vmas):
            if vma.anon is None and vma.start < end and start < vma.end:
                after = self.vmas[i + 1 : i + 2]
                before = self.vmas[i - 1 : i] if i else []
                near = [each.anon for each in (*after, *before) if shares_anon(vma, each)]
                anon = near[0] if near else next(self.anon_ids)
                self.vmas[i] = replace(vma, anon=anon, forked=False)

    def child(self) -> Space:
        """The address space of a forked child: its own anon_vmas, no locks, no userfaultfd, no pins.

        Kernel: mm/mmap.c, dup_mmap(). A droppable VMA is copied without its pages.
        """
        copy = Space(pages=dict(self.pages), anon_ids=self.anon_ids)
        for vma in self.vmas:
            traits = replace(vma.traits, mlocked=False, uffd=Uffd.NONE)
            kept = vma.anon is not None and not traits.droppable
            anon = next(self.anon_ids) if kept else None
            copy.vmas.append(replace(vma, traits=traits, anon=anon, forked=kept))
            if traits.droppable:
                copy.mark(vma.start, vma.end, PageMark.ABSENT)
        return copy


def mergeable(first: DeclaredMapping, second: DeclaredMapping) -> bool:
    """Whether the kernel makes one VMA of two that touch. Kernel: mm/vma.c, is_mergeable_vma()."""
    if first.end != second.start or first.traits != second.traits:
        return False
    if first.anon is None and second.anon is None:
        return True
    if first.anon is None or second.anon is None:
        return not (first.forked or second.forked)
    return first.anon == second.anon


def shares_anon(vma: DeclaredMapping, near: DeclaredMapping) -> bool:
    """Whether a VMA takes over its neighbour's anon_vma. Kernel: mm/vma.c, reusable_anon_vma()."""
    touching = vma.end == near.start or near.end == vma.start
    alike = vma.traits.but_for_access() == near.traits.but_for_access()
    return touching and alike and near.anon is not None and not near.forked
