# SPDX-License-Identifier: GPL-2.0-or-later
"""Records a draft in the guest: the state it makes, and each pass with events, counters and final state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from mthp.image.page_types import MOVABLE
from mthp.image.runs import PagesState
from mthp.image.scenario import SCHEMA
from mthp.image.scenario_values import Action
from mthp.lab.program.declared import Declared, DeclaredVma, declare
from mthp.lab.program.program import KNOBS, PROCESSES, Draft, Madv, Operation, Verb
from mthp.lab.session.observe import ObservedVma, VmFlag
from mthp.lab.session.session import GuestSession
from mthp.lab.vm.channel import CommandFailed

_UFFD = VmFlag.UFFD_MISSING | VmFlag.UFFD_WP | VmFlag.UFFD_MINOR | VmFlag.UFFD_RWP


class NotBuilt(Exception):
    """The guest's kernel did not build the declared state, or not to the end. The text names the part."""


Observed = dict[str, list[ObservedVma]]
"""The mappings as the guest's kernel has them, by process in the order of khugepaged's scan."""


def record(
    session: GuestSession,
    draft: Draft,
    kernel: str,
    before_passes: Callable[[Sequence[str]], None] | None = None,
) -> dict[str, Any]:
    """The scenario document of a draft, with every pass as this guest's kernel ran it.

    kernel: its release. before_passes: called with the processes' names once the state is made.
    NotBuilt where a system call fails or the mappings are not those declared.
    """
    declared = declare(draft)
    session.reset(PROCESSES)
    try:
        registered = session.perform(draft.program())
    except CommandFailed as error:
        raise NotBuilt(str(error)) from None
    session.drain()
    observed = _observe(session, declared)
    on_list = _registered(observed, declared, registered)
    states, names = session.named_states(observed, declared.sleepers)
    document = _head(session, draft, declared, kernel)
    if not all(on_list):
        document["registered"] = on_list
    document["vmas"] = list(map(_vma, declared.vmas, chain(*observed.values()), states))
    known = session.known_mms(observed, names)
    if known:
        document["mm_ids"] = {str(name): list(map(list, of)) for name, of in known.items()}
    cached = session.swap_cache(states, names)
    if cached:
        document["swap_cache"] = cached
    group = _group(declared)
    if group:
        document["memcg"] = session.memcg_pages(group)
    lacking = _order_without_blocks(draft)
    if lacking is not None and not _leaves_blocks(draft):
        _take_blocks(session, lacking)
        document["free_blocks"] = {str(lacking - 1): ENOUGH_PAGES >> (lacking - 1)}
        document["largest_block"] = lacking - 1
    document["built_by"] = [str(op) for op in draft.program()]
    if before_passes is not None:
        before_passes(declared.processes)
        session.drain()
    if lacking is not None and _leaves_blocks(draft):
        document |= _counted_blocks(session, lacking)
    try:
        passes: list[dict[str, Any]] = []
        document["passes"] = passes
        while len(passes) < draft.passes and not (passes and passes[-1].get("killed")):
            passes.append(_pass(session, draft, declared, observed))
    except CommandFailed as error:
        raise NotBuilt(f"in a pass: {error}") from None
    return document


def _group(declared: Declared) -> str:
    """The memory cgroup of the processes, empty if there is none."""
    return next((name for name in declared.cgroups if name), "")


def _order_without_blocks(draft: Draft) -> int | None:
    """The lowest order of which the program leaves no free block; None if it takes none."""
    orders = [op.numbers[0] for op in draft.program() if op.verb is Verb.TAKE_BLOCKS]
    return min(orders, default=None)


def _leaves_blocks(draft: Draft) -> bool:
    """Whether the program leaves some blocks of those orders again."""
    return any(op.verb is Verb.LEAVE_BLOCKS for op in draft.program())


def _counted_blocks(session: GuestSession, lacking: int) -> dict[str, Any]:
    """What is said of free memory: the blocks of order `lacking` and above, one by one, and all else in
    blocks of the largest order that can arise. NotBuilt where a part of it is where it cannot be counted."""
    pressure = session.memory_pressure
    blocks, movable = pressure.free_blocks(), pressure.free_blocks(MOVABLE)
    large = {order: count for order, count in blocks.items() if count and order >= lacking}
    if any(movable.get(order) != count for order, count in large.items()):
        raise NotBuilt(f"of the free blocks {large} some are not movable")
    for kinds in (MOVABLE, UNMOVABLE):
        free = pressure.free_blocks(kinds)
        if sum(n << order for order, n in free.items() if order < lacking) < LEAST_OF_A_KIND:
            raise NotBuilt(f"too few small blocks are free of the kind {kinds[0]}")
    small = sum(count << order for order, count in blocks.items() if order < lacking)
    if not blocks.get(lacking - 1) or small < ENOUGH_PAGES:
        raise NotBuilt(f"too little memory is free: {blocks}")
    zones = pressure.zones()
    if len(zones) > 1:
        raise NotBuilt("free memory lies in several zones")
    return {
        "free_blocks": {
            str(lacking - 1): small >> (lacking - 1),
            **{str(k): n for k, n in large.items()},
        },
        "largest_block": lacking - 1,
        "reserve": zones[0]["min"] + zones[0]["kept"],
        "pcp_high": zones[0]["pcp_high"],
    }


UNMOVABLE = ("Unmovable",)
LEAST_OF_A_KIND = 32
"""Free pages of a migratetype with which the kernel does not take blocks of another in a pass."""


def _take_blocks(session: GuestSession, lacking: int) -> None:
    try:
        session.memory_pressure.renew(lacking)
    except CommandFailed as error:
        raise NotBuilt(f"memory ran out: {error}") from None
    _check_blocks(session, lacking, "before")


ENOUGH_PAGES = 4096
"""More free pages than a drawn state can use. A record has so many, in blocks of the largest order that
can arise: which frames are free depends on the guest's history, and decides nothing."""


def _check_blocks(session: GuestSession, lacking: int, when: str) -> None:
    """NotBuilt unless the free blocks decide every allocation, without a look at single frames: there
    is no block of order `lacking` or above, and every smaller one can be had, by splitting if need
    be."""
    free = session.memory_pressure.free_blocks()
    too_large = {order: count for order, count in free.items() if count and order >= lacking}
    if too_large:
        raise NotBuilt(f"free blocks {when} a pass that should be taken: {too_large}")
    if not free.get(lacking - 1):
        raise NotBuilt(f"no free block of order {lacking - 1} is left {when} a pass")
    if sum(count << order for order, count in free.items()) < ENOUGH_PAGES:
        raise NotBuilt(f"fewer than {ENOUGH_PAGES} pages are free {when} a pass")


def _head(session: GuestSession, draft: Draft, declared: Declared, kernel: str) -> dict[str, Any]:
    settings = draft.settings.to_json()
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "id": draft.id,
        "family": draft.family,
        "kernel": kernel,
        "settings": {
            "enabled": settings["enabled"],
            **{name: int(settings[name]) for name in KNOBS},
        },
        "action": draft.action.value,
    }
    if declared.target is not None:
        document["target"] = declared.target
    if not session.swap.synchronous:
        document["synchronous"] = False
    nodes = session.nodes()
    if nodes is not None:
        document["nodes"] = nodes
    if any(declared.prctl):
        document["prctl"] = list(declared.prctl)
    return document


def _observe(session: GuestSession, declared: Declared) -> Observed:
    """The mappings, each as it was declared; NotBuilt for the first that is not."""
    observed: Observed = {}
    for name in declared.processes:
        wanted = [vma for vma in declared.vmas if vma.process == name]
        observed[name] = session.vmas(name)
        want = [(vma.start, vma.pages, vma.anon_vma) for vma in wanted]
        have = [(vma.start, vma.pages, bool(vma.anon_vma)) for vma in observed[name]]
        if want != have:
            raise NotBuilt(f"process {name}: its mappings are {have}, declared {want}")
    return observed


def _registered(observed: Observed, declared: Declared, registered: Sequence[int]) -> list[bool]:
    """Whether khugepaged has each process: before Linux 7.2 it takes none for a size below a PMD's.

    registered: the page tables of those that came to its list, in that order.
    """
    tables = [vmas[0].pgd for vmas in observed.values()]
    # The last time: a process that has ended leaves its page table to another.
    order = list(dict.fromkeys(pgd for pgd in reversed(registered) if pgd in tables))[::-1]
    if len(order) + declared.ended != len(registered):
        raise NotBuilt("a process that is not in the record is registered with khugepaged")
    if order != tables[: len(order)]:
        raise NotBuilt(f"khugepaged's list is {order}, declared {tables}")
    return [pgd in order for pgd in tables]


def _vma(declared: DeclaredVma, observed: ObservedVma, state: PagesState) -> dict[str, Any]:
    advice = None
    if observed.has(VmFlag.HUGEPAGE | VmFlag.NOHUGEPAGE):
        advice = "hugepage" if observed.has(VmFlag.HUGEPAGE) else "nohugepage"
    document: dict[str, Any] = {
        "start": observed.start,
        "pages": observed.pages,
        "advice": advice,
        "mlocked": observed.has(VmFlag.LOCKED),
        "uffd_wp": observed.has(_UFFD),
        "anon_vma": bool(observed.anon_vma),
        "pins": [list(span) for span in declared.pins],
        "initial": _state(state),
    }
    if declared.mm:
        document["mm"] = declared.mm
    for name, on in (
        ("droppable", observed.has(VmFlag.DROPPABLE)),
        ("ksm", observed.has(VmFlag.MERGEABLE)),
        ("read_only", not observed.has(VmFlag.WRITE)),
    ):
        if on:
            document[name] = True
    if not observed.has(VmFlag.SOFTDIRTY):
        document["softdirty"] = False
    return document


def _state(state: PagesState) -> dict[str, Any]:
    document = {"folios": state.folios_text(), "ptes": state.ptes_text()}
    return document | ({"nodes": state.nodes_text()} if state.nodes else {})


def _pass(
    session: GuestSession, draft: Draft, declared: Declared, observed: Observed
) -> dict[str, Any]:
    lacking = _order_without_blocks(draft)
    leaves = _leaves_blocks(draft)
    if lacking is not None and not leaves:
        _take_blocks(session, lacking)
    before = session.counters()
    document: dict[str, Any] = {}
    if draft.action is Action.MADVISE_COLLAPSE:
        events, document["errno"] = session.collapse(_collapse_op(draft, declared))
    else:
        events = session.full_scan()
    if lacking is not None and not leaves:
        _check_blocks(session, lacking, "after")
    session.drain()
    document["events"] = events
    document["counters"] = session.counters().since(before)
    group = _group(declared)
    if group and session.oom_kills(group):
        return {**document, "final": [], "killed": True}
    final = session.states(observed, declared.sleepers)
    document["final"] = [_state(state) for state in final]
    return document


def _collapse_op(draft: Draft, declared: Declared) -> Operation:
    assert draft.target is not None and declared.target is not None
    vma, by = declared.vmas[declared.target], draft.target.by
    run = (vma.page, vma.pages, int(Madv.COLLAPSE))
    if by == vma.process:
        return Operation(Verb.ADVISE, run, by)
    return Operation(Verb.ADVISE_OTHER, (vma.process, *run), by)
