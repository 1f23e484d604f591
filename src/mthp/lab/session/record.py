# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a program in the guest and write down what there was before, what happened, what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mthp.image.runs import PagesState
from mthp.image.scenario import SCHEMA
from mthp.image.scenario_values import Action
from mthp.lab.program.declared import Declared, DeclaredVma, declare
from mthp.lab.program.program import PROCESSES, Draft, Operation, Verb
from mthp.lab.session.observe import ObservedVma, VmFlag
from mthp.lab.session.session import GuestSession
from mthp.lab.vm.channel import CommandFailed

__all__ = ["NotBuilt", "record"]

_UFFD = VmFlag.UFFD_MISSING | VmFlag.UFFD_WP | VmFlag.UFFD_MINOR
_KNOBS = ("max_ptes_none", "max_ptes_swap", "max_ptes_shared", "defrag")


class NotBuilt(Exception):
    """The guest's kernel did not do, or not as declared, what the program says: which part."""


@dataclass(frozen=True)
class _Placed:
    """One mapping of the record: what was declared of it and what the kernel has."""

    said: DeclaredVma
    seen: ObservedVma


def record(session: GuestSession, draft: Draft, kernel: str) -> dict[str, Any]:
    """The scenario document of a draft, with every pass as this guest's kernel ran it.

    kernel: its release. NotBuilt where a system call fails or the mappings are not those declared.
    """
    declared = declare(draft)
    session.reset(PROCESSES)
    try:
        built = session.perform(draft.program())
    except CommandFailed as error:
        raise NotBuilt(str(error)) from None
    session.drain()
    placed = _place(session, declared, built.registered)
    document = _head(draft, declared, kernel)
    document["vmas"] = []
    for where, state in zip(placed, _states(session, declared, placed), strict=True):
        document["vmas"].append(_vma(where, state))
    group = next((name for name in declared.cgroups if name), "")
    if group:
        document["memcg"] = session.memcg_pages(group)
    starved = _starved(draft)
    if starved is not None:
        _starve(session, starved)
        document["free_blocks"] = {str(starved - 1): ENOUGH_PAGES >> (starved - 1)}
        document["largest_block"] = starved - 1
    document["built_by"] = [str(op) for op in draft.program()]
    try:
        document["passes"] = [_pass(session, draft, declared, placed) for _ in range(draft.passes)]
    except CommandFailed as error:
        killed = session.oom_kills(group) if group else 0
        why = f"the OOM killer took a process of its cgroup (oom_kill {killed}); " if killed else ""
        raise NotBuilt(f"in a pass: {why}{error}") from None
    return document


def _starved(draft: Draft) -> int | None:
    """The order of which `eat` leaves no free block, if the program eats."""
    orders = [op.numbers[0] for op in draft.program() if op.verb is Verb.EAT]
    return min(orders, default=None)


def _starve(session: GuestSession, starved: int) -> None:
    try:
        session.eater.starve(starved)
    except CommandFailed as error:
        raise NotBuilt(f"memory ran out: {error}") from None
    _check_blocks(session, starved, "before")


ENOUGH_PAGES = 4096
"""More than a drawn state can use. The record says so many, in blocks of the largest order that can
arise: which frames are free is the guest's history, and decides nothing."""


def _check_blocks(session: GuestSession, starved: int, when: str) -> None:
    """NotBuilt unless what is free decides every allocation, without a look at single frames: no
    block of the order, and every smaller one can be had, by splitting if need be."""
    free = {int(order): count for order, count in session.eater.free_blocks().items()}
    too_large = {order: count for order, count in free.items() if count and order >= starved}
    if too_large:
        raise NotBuilt(f"free blocks {when} a pass that should be eaten: {too_large}")
    if not free.get(starved - 1):
        raise NotBuilt(f"no free block of order {starved - 1} is left {when} a pass")
    if sum(count << order for order, count in free.items()) < ENOUGH_PAGES:
        raise NotBuilt(f"fewer than {ENOUGH_PAGES} pages are free {when} a pass")


def _head(draft: Draft, declared: Declared, kernel: str) -> dict[str, Any]:
    settings = draft.settings.to_json()
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "id": draft.id,
        "family": draft.family,
        "kernel": kernel,
        "settings": {
            "enabled": settings["enabled"],
            **{name: int(settings[name]) for name in _KNOBS},
        },
        "action": draft.action.value,
    }
    if declared.target is not None:
        document["target"] = declared.target
    if any(declared.prctl):
        document["prctl"] = list(declared.prctl)
    return document


def _place(session: GuestSession, declared: Declared, registered: Sequence[int]) -> list[_Placed]:
    """Each declared mapping with the kernel's; NotBuilt for the first that is not as declared."""
    placed: list[_Placed] = []
    tables: list[int] = []
    for name in declared.processes:
        said = [vma for vma in declared.vmas if vma.process == name]
        seen = session.vmas(name)
        want = [(vma.start, vma.pages, vma.anon_vma) for vma in said]
        have = [(vma.start, vma.pages, bool(vma.anon_vma)) for vma in seen]
        if want != have:
            raise NotBuilt(f"process {name}: its mappings are {have}, declared {want}")
        placed += map(_Placed, said, seen)
        tables += [vma.pgd for vma in seen[:1]]
    order = [pgd for pgd in registered if pgd in tables]
    if len(order) != len(registered):
        raise NotBuilt("a process that is not in the record is registered with khugepaged")
    if order != tables[: len(order)]:
        raise NotBuilt(f"khugepaged's list is {order}, declared {tables}")
    return placed


def _by_process(placed: Sequence[_Placed]) -> dict[str, list[ObservedVma]]:
    processes: dict[str, list[ObservedVma]] = {}
    for where in placed:
        processes.setdefault(where.said.process, []).append(where.seen)
    return processes


def _states(
    session: GuestSession, declared: Declared, placed: Sequence[_Placed]
) -> list[PagesState]:
    return session.states(_by_process(placed), declared.sleepers)


def _vma(where: _Placed, state: PagesState) -> dict[str, Any]:
    said, seen = where.said, where.seen
    advice = (
        "hugepage"
        if seen.has(VmFlag.HUGEPAGE)
        else "nohugepage"
        if seen.has(VmFlag.NOHUGEPAGE)
        else None
    )
    document: dict[str, Any] = {
        "start": seen.start,
        "pages": seen.pages,
        "advice": advice,
        "mlocked": seen.has(VmFlag.LOCKED),
        "uffd_wp": seen.has(_UFFD),
        "anon_vma": bool(seen.anon_vma),
        "pins": [list(span) for span in said.pins],
        "initial": _state(state),
    }
    if said.mm:
        document["mm"] = said.mm
    for name, on in (
        ("droppable", seen.has(VmFlag.DROPPABLE)),
        ("ksm", seen.has(VmFlag.MERGEABLE)),
        ("read_only", not seen.has(VmFlag.WRITE)),
    ):
        if on:
            document[name] = True
    if not seen.has(VmFlag.SOFTDIRTY):
        document["softdirty"] = False
    return document


def _state(state: PagesState) -> dict[str, Any]:
    return {"folios": state.folios_text(), "ptes": state.ptes_text()}


def _pass(
    session: GuestSession, draft: Draft, declared: Declared, placed: Sequence[_Placed]
) -> dict[str, Any]:
    starved = _starved(draft)
    if starved is not None:
        _starve(session, starved)
    before = session.counters()
    document: dict[str, Any] = {}
    if draft.action is Action.MADVISE_COLLAPSE:
        events, document["errno"] = session.collapse(_collapse_op(draft, declared))
    else:
        events = session.full_scan()
    if starved is not None:
        _check_blocks(session, starved, "after")
    session.drain()
    final = _states(session, declared, placed)
    document["events"] = events
    document["counters"] = session.counters().since(before)
    document["final"] = [_state(state) for state in final]
    return document


def _collapse_op(draft: Draft, declared: Declared) -> Operation:
    assert draft.target is not None and declared.target is not None
    vma, by = declared.vmas[declared.target], draft.target.by
    if by == vma.process:
        return Operation(Verb.ADVISE, (vma.page, vma.pages, 25), by)
    return Operation(Verb.ADVISE_OTHER, (vma.process, vma.page, vma.pages, 25), by)
