# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs programs in a guest, one operation after the other, and records what the kernel shows after each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from mthp.image.runs import PagesState
from mthp.lab.geometry import GEOMETRY, ORDERS
from mthp.lab.program.program import BASE, HEAP, PROCESSES, SYSFS
from mthp.lab.session.memory_pressure import switch_file
from mthp.lab.session.observe import ObservedVma, VmFlag
from mthp.lab.session.session import KHUGEPAGED, CountedNames, Counters, GuestSession
from mthp.lab.vm.channel import CommandFailed
from mthp.words.settings import Enabled

COUNTED: Final = CountedNames(
    (
        "anon_fault_alloc", "anon_fault_fallback", "anon_fault_fallback_charge", "swpin",
        "swpin_fallback", "swpin_fallback_charge", "swpout", "swpout_fallback", "split",
        "split_failed", "split_deferred", "nr_anon", "nr_anon_partially_mapped", "collapse_alloc",
        "collapse_alloc_failed", "collapse_exceed_none_pte", "collapse_exceed_swap_pte",
        "collapse_exceed_shared_pte",
    ),
    (
        "thp_fault_alloc", "thp_fault_fallback", "thp_fault_fallback_charge", "thp_collapse_alloc",
        "thp_collapse_alloc_failed", "thp_scan_exceed_none_pte", "thp_scan_exceed_swap_pte",
        "thp_scan_exceed_share_pte", "thp_split_page", "thp_split_page_failed",
        "thp_deferred_split_page", "thp_underused_split_page", "thp_split_pmd",
    ),
)  # fmt: skip
"""The counters that a program's steps record."""
SUBJECT: Final = "s"
USUAL: Final = {
    f"{SYSFS}/enabled": "madvise",
    f"{SYSFS}/defrag": "madvise",
    f"{SYSFS}/shrink_underused": "1",
    f"{SYSFS}/use_zero_page": "1",
    f"{KHUGEPAGED}/max_ptes_swap": str(GEOMETRY.ptrs_per_pte // 8),
    f"{KHUGEPAGED}/max_ptes_shared": str(GEOMETRY.ptrs_per_pte // 2),
    f"{KHUGEPAGED}/defrag": "1",
}
"""What a program finds in files that it has not written."""
WRITES: Final = {"/proc/sys/vm/drop_caches": 8}
"""How often a file is written. One write tries to split a folio again, or does not, by how much other caches
gave; so many leave nothing to try."""
_PROCESSES: Final = ("fork", "forkto", "forkkill", "exit")
"""Operations that begin or end a process."""
_DIED: Final = 3
"""The errno with which the agent says that a process has ended: ESRCH."""


class NotRun(Exception):
    """A program that could not be run to its end. The text says why."""


def run_program(session: GuestSession, program: Mapping[str, Any], kernel: str) -> dict[str, Any]:
    """The record of a program: its document, with what this guest's kernel showed after each step.

    kernel: its release. NotRun: a process ended that was to go on.
    """
    session.reset(PROCESSES)
    session.renew_swap()
    for path, value in USUAL.items():
        session.write(path, value)
    _set_sizes(session, sum(1 << order for order in program["orders"]), program["max_ptes_none"])
    for line in program["pre"]:
        session.ask(line)
    session.ask(f"new {SUBJECT}")
    session.ask(f"{SUBJECT} base {BASE}")
    session.ask(f"{SUBJECT} heap {HEAP}")
    processes, sleepers = {SUBJECT: session.pid(SUBJECT)}, dict[str, tuple[str, int]]()
    steps = []
    before, (own,) = session.settled(processes.values())
    for each in program["steps"]:
        answer = _perform(session, each["op"], processes, sleepers)
        now, memory = session.settled(processes.values())
        shown = {
            "delta": _named(now, before),
            "memory": dict(zip(processes, (_beyond(own, has) for has in memory), strict=True)),
            "frames": None if _begins_or_ends(each["op"]) else now.frames - before.frames,
            "processes": _seen(session, processes),
        }
        steps.append({"op": each["op"], **answer, **shown})
        before = now
    stats = {name for of in before.stats.values() for name in of}
    counted = [*sorted(stats), *COUNTED.vmstat]
    return {**program, "kernel": kernel, "counted": counted, "steps": steps}


def _begins_or_ends(op: Any) -> bool:
    """Whether a process begins or ends by an operation, with what the agent has in it."""
    return isinstance(op, str) and any(word in _PROCESSES for word in op.split()[1:2])


def _set_sizes(session: GuestSession, orders: int, max_ptes_none: int) -> None:
    """Switch the sizes of a bitmap to madvise, all others to never."""
    for order in ORDERS:
        mode = Enabled.MADVISE if orders >> order & 1 else Enabled.NEVER
        session.write(switch_file(order), mode)
    session.write(f"{KHUGEPAGED}/max_ptes_none", str(max_ptes_none))


def _perform(
    session: GuestSession, op: Any, processes: dict[str, int], sleepers: dict[str, tuple[str, int]]
) -> dict[str, Any]:
    """Do one operation: how it was answered. processes: name -> pid. sleepers: child -> its parent, and its
    number there."""
    try:
        if isinstance(op, list):
            _set_sizes(session, *op[1:])
            return {"ok": True, "msg": ""}
        match op.split():
            case ["scan"]:
                session.full_scan()
            case ["w", path, value]:
                for _ in range(WRITES.get(path, 1)):
                    session.write(path, value)
            case [name, "limited", page, room]:
                session.store_limited(name, int(page), int(room))
            case [name, "fork", child]:
                session.ask(f"{name} fork 1")
                number = sum(parent == name for parent, _ in sleepers.values())
                sleepers[child] = name, number
            case [name, "forkkill", child]:
                session.ask(f"{name} forkkill {sleepers[child][1]}")
            case [name, "forkto", child]:
                session.ask(f"{name} forkto {child}")
                processes[child] = session.pid(child)
            case [name, "exit"]:
                session.ask(f"end {name}")
                del processes[name]
            case _:
                session.ask(op)
    except CommandFailed as error:
        if error.errno == _DIED:
            raise NotRun(str(error)) from None
        return {"ok": False, "msg": f"errno {error.errno} ({os.strerror(error.errno)})"}
    return {"ok": True, "msg": ""}


def _named(now: Counters, before: Counters) -> dict[str, int]:
    """The counters that moved, under the names of programs' records."""
    moved = now.since(before)
    stats = {f"{order}.{name}": n for order, of in moved["stats"].items() for name, n in of.items()}
    return stats | {f"v.{name}": n for name, n in moved["vmstat"].items()}


def _beyond(own: Mapping[str, int], has: Mapping[str, int]) -> dict[str, int]:
    """What a process has of the program's. own: what the agent's part of every process has."""
    return {name: pages - own[name] for name, pages in has.items()}


def _seen(session: GuestSession, processes: Mapping[str, int]) -> dict[str, list[dict[str, Any]]]:
    """The mappings of every process with their pages."""
    observed = {name: session.vmas(name, pid) for name, pid in processes.items()}
    states = iter(session.states(observed))
    return {name: [_mapping(vma, next(states)) for vma in vmas] for name, vmas in observed.items()}


def _mapping(vma: ObservedVma, state: PagesState) -> dict[str, Any]:
    advice = ""
    if vma.has(VmFlag.HUGEPAGE | VmFlag.NOHUGEPAGE):
        advice = "hugepage" if vma.has(VmFlag.HUGEPAGE) else "nohugepage"
    return {
        "start": (vma.start - BASE) >> GEOMETRY.page_shift,
        "pages": vma.pages,
        "advice": advice,
        "writable": vma.has(VmFlag.WRITE),
        "anon_vma": bool(vma.anon_vma),
        "folios": state.folios_text(),
        "ptes": state.ptes_text(),
    }
