# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program declares of its state: what cannot be read back from the guest, and whether it is legal."""

from __future__ import annotations

from dataclasses import dataclass

from mthp.image.scenario_values import Action, Prctl
from mthp.lab.geometry import GEOMETRY
from mthp.lab.program.processes import SubjectProcess, Subjects
from mthp.lab.program.program import Draft, ProgramError, spans
from mthp.lab.program.space import DeclaredMapping, Traits
from mthp.lab.program.walk import walk
from mthp.words.settings import Enabled


@dataclass(frozen=True)
class DeclaredVma:
    """One mapping as the operations left it.

    process: its name. mm: its place in the order of the scan, from 0. page: where it starts, in
    pages from the process's base address; start: the address. pins: (first page, pages) from its
    start.
    """

    process: str
    mm: int
    page: int
    start: int
    pages: int
    traits: Traits
    anon_vma: bool
    pins: tuple[tuple[int, int], ...]

    def holds(self, page: int) -> bool:
        return self.page <= page < self.page + self.pages


@dataclass(frozen=True)
class Declared:
    """All that a draft declares.

    vmas: by process in scan order, then by address. processes: the names of those that have a VMA, in
    scan order; prctl and cgroups: one for each. sleepers: children that no operation names.
    ended: how many registered processes have ended. target: the index of the VMA that MADV_COLLAPSE
    covers, None for khugepaged.
    """

    vmas: tuple[DeclaredVma, ...]
    processes: tuple[str, ...]
    prctl: tuple[Prctl | None, ...]
    cgroups: tuple[str, ...]
    target: int | None
    sleepers: int = 0
    ended: int = 0


def declare(draft: Draft) -> Declared:
    """What a legal draft declares; ProgramError for the first operation that is not legal."""
    world = walk(draft.program())
    _check_alive(draft)
    order = [name for name in scan_order(world) if world.processes[name].space.vmas]
    vmas = tuple(
        _declared(world.processes[name], mm, vma)
        for mm, name in enumerate(order)
        for vma in world.processes[name].space.vmas
    )
    if not vmas:
        raise ProgramError("the program leaves nothing mapped")
    return Declared(
        vmas=vmas,
        processes=tuple(order),
        prctl=tuple(world.processes[name].prctl for name in order),
        cgroups=tuple(world.processes[name].cgroup for name in order),
        target=_target(draft, world, vmas),
        sleepers=sum(process.children for process in world.processes.values()),
        ended=world.ended,
    )


def problem(draft: Draft) -> str:
    """Why a draft is not legal, as one line; empty if it is legal."""
    try:
        declare(draft)
    except ProgramError as error:
        return str(error)
    return ""


def scan_order(world: Subjects) -> list[str]:
    """The processes in the order of khugepaged's scan; those that are not registered come last."""
    return [*world.scan_order, *(name for name in world.processes if name not in world.scan_order)]


def _declared(process: SubjectProcess, mm: int, vma: DeclaredMapping) -> DeclaredVma:
    base = process.base or 0
    held = (page - vma.start for page in process.space.pinned if vma.start <= page < vma.end)
    return DeclaredVma(
        process=process.name,
        mm=mm,
        page=vma.start,
        start=base + vma.start * GEOMETRY.page_size,
        pages=vma.pages,
        traits=vma.traits,
        anon_vma=vma.anon is not None,
        pins=spans(held),
    )


def _check_alive(draft: Draft) -> None:
    """ProgramError if nothing is enabled: khugepaged's thread ends, and no scan is ever finished."""
    settings = draft.settings
    own = {mode for mode in settings.sizes.values() if mode is not Enabled.INHERIT}
    if settings.enabled is Enabled.NEVER and own <= {Enabled.NEVER}:
        raise ProgramError("the settings stop khugepaged: no size and no global switch is on")


def _target(draft: Draft, world: Subjects, vmas: tuple[DeclaredVma, ...]) -> int | None:
    target = draft.target
    if draft.action is Action.KHUGEPAGED:
        if target is not None:
            raise ProgramError("khugepaged has no target")
        return None
    if target is None:
        raise ProgramError("MADV_COLLAPSE without a target")
    world.process(target.by)
    for index, vma in enumerate(vmas):
        if vma.process == target.who and vma.holds(target.page):
            return index
    raise ProgramError(f"the target, page {target.page} of {target.who}, is not mapped")
