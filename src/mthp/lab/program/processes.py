# SPDX-License-Identifier: GPL-2.0-or-later
"""The processes of a program, the switches as they stand, and which process registers when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mthp.image.scenario_values import Advice, Prctl
from mthp.lab.geometry import GEOMETRY, PAGE_SIZE, PMD_PAGES
from mthp.lab.program.program import Operation, ProgramError
from mthp.lab.program.space import DeclaredMapping, PageMark, Space
from mthp.words.settings import Enabled

OUT_OF_REACH = frozenset({PageMark.GUARD, PageMark.POISON})
"""Touching these kills the process."""


@dataclass
class SubjectProcess:
    """One process: its address space and what was set for it as a whole."""

    name: str
    base: int | None = None
    space: Space = field(default_factory=Space)
    prctl: Prctl | None = None
    cgroup: str = ""
    children: int = 0
    registered: bool = False

    @property
    def skew(self) -> int:
        """How far the base address lies above address 0, in pages: page + skew is a page number."""
        return (self.base or 0) // PAGE_SIZE


@dataclass
class Subjects:
    """The processes, and the switches as they stand.

    scan_order: the names of the registered processes, in the order of khugepaged's scan. everywhere:
    the global switch. sizes: order -> its switch. groups: memory cgroups with a process in them. ended:
    how many registered processes have ended.
    """

    processes: dict[str, SubjectProcess] = field(default_factory=dict)
    scan_order: list[str] = field(default_factory=list)
    everywhere: Enabled = Enabled.MADVISE
    sizes: dict[int, Enabled] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)
    ended: int = 0

    def process(self, name: str) -> SubjectProcess:
        """The process of that name. ProgramError: there is none."""
        if name not in self.processes:
            raise ProgramError(f"there is no process {name}")
        return self.processes[name]

    def space(self, name: str) -> Space:
        """The address space of a process. ProgramError: there is none, or it has no base address yet."""
        process = self.process(name)
        if process.base is None:
            raise ProgramError(f"process {name} has no base address yet")
        return process.space

    def enter(self, process: SubjectProcess, vma: DeclaredMapping) -> None:
        """Register the process if the VMA can be collapsed. Kernel: khugepaged_enter_vma()."""
        if not process.registered and self.eligible_orders(process, vma):
            process.registered = True
            self.scan_order.append(process.name)

    def eligible_orders(self, process: SubjectProcess, vma: DeclaredMapping) -> list[int]:
        """The orders khugepaged may collapse the VMA to under the switches as they stand."""
        if vma.anon is None:
            return []
        return [each for each in self._enabled(process, vma) if _fits(process, vma, each)]

    def _enabled(self, process: SubjectProcess, vma: DeclaredMapping) -> list[int]:
        advised = vma.traits.advice is Advice.HUGEPAGE
        if vma.traits.advice is Advice.NOHUGEPAGE or process.prctl is Prctl.DISABLE:
            return []
        if process.prctl is Prctl.EXCEPT_ADVISED and not advised:
            return []
        wanted = {Enabled.ALWAYS, Enabled.MADVISE} if advised else {Enabled.ALWAYS}
        modes = {
            order: self.everywhere if mode is Enabled.INHERIT else mode
            for order, mode in self.sizes.items()
        }
        return [order for order, mode in modes.items() if mode in wanted]

    def enter_over(self, process: SubjectProcess, start: int, end: int) -> None:
        """Call enter() for each VMA of a range."""
        for vma in process.space.over(start, end):
            self.enter(process, vma)

    def change(self, each: Operation, **traits: object) -> None:
        """Give the range of an operation other traits. A VMA that merges may register the process."""
        process, space = self.process(each.who), self.space(each.who)
        _, merged = space.change(each.start, each.end, **traits)
        if merged:
            self.enter_over(process, each.start, each.end)

    def huge_fault(
        self, process: SubjectProcess, vma: DeclaredMapping, start: int, end: int
    ) -> None:
        """A first touch within an empty table may register the process, and gives the VMA an anon_vma.

        Kernel: mm/huge_memory.c, do_huge_pmd_anonymous_page().
        """
        if GEOMETRY.pmd_order not in self._enabled(process, vma):
            return
        skew = process.skew % PMD_PAGES
        low = (max(start, vma.start) + skew) // PMD_PAGES * PMD_PAGES - skew
        for table in range(low, min(end, vma.end), PMD_PAGES):
            inside = vma.start <= table and table + PMD_PAGES <= vma.end
            known = any(page in process.space.pages for page in range(table, table + PMD_PAGES))
            if inside and not known:
                process.space.prepare_anon(vma.start, vma.end)
                (now,) = process.space.over(table, table + PMD_PAGES)
                self.enter(process, now)


def _fits(process: SubjectProcess, vma: DeclaredMapping, order: int) -> bool:
    """Whether the VMA holds an aligned range of the order."""
    size = 1 << order
    last = (vma.end + process.skew) // size * size
    return last - size >= vma.start + process.skew


def refuse_pinned(space: Space, each: Operation) -> None:
    """Raise ProgramError if a reference holds pages of the range: they must stay where they are."""
    if not space.pinned.isdisjoint(range(each.start, each.end)):
        raise ProgramError("pages of it are pinned")


def refuse(
    space: Space, each: Operation, unwanted: Callable[[DeclaredMapping], bool], what: str
) -> None:
    """Raise ProgramError if the range is not mapped, or if a VMA of it is of that kind."""
    if any(map(unwanted, space.over(each.start, each.end))):
        raise ProgramError(f"a VMA of it is {what}")
