# SPDX-License-Identifier: GPL-2.0-or-later
"""Clocks and races on integers: what explore.py does where it records a step. See integers.py."""

from __future__ import annotations

from typing import Any

from mthp.explore.compiled.automaton import WAYS
from mthp.explore.compiled.columns import CAP, TASKS, Code, SearchState


def dependent(code: Code, a: int, b: int) -> bool:
    """As dependence.dependent()."""
    if code.place[a] != code.place[b]:
        return False
    return bool(code.dependent[code.way[a] * WAYS + code.way[b]])


def happened(s: SearchState, event: int, clock: int) -> bool:
    """Whether an event is before what has the clock that begins at `clock` in s.clock."""
    return bool(s.clock[clock + s.task[event]] >= s.number[event])


def join(a: Any, at: int, b: Any, other: int, tasks: int) -> None:
    """The later of two clocks, in the first one's place."""
    for task in range(tasks):
        if a[at + task] < b[other + task]:
            a[at + task] = b[other + task]


def make_event(code: Code, s: SearchState, task: int, op: int, depth: int) -> None:
    """As Explorer._event(): the clock of a step, and its races."""
    tasks = s.at[TASKS]
    count = s.count[task]
    s.task[depth] = task
    s.op[depth] = op
    s.number[depth] = count + 1
    clock = depth * tasks
    if count:
        own = s.mine[task * s.at[CAP] + count - 1] * tasks
        for t in range(tasks):
            s.clock[clock + t] = s.clock[own + t]
    else:
        for t in range(tasks):
            s.clock[clock + t] = 0
    racing = find_races(code, s, task, op, depth)
    other = s.last[code.place[op]]
    while other >= 0:
        if s.task[other] != task and dependent(code, s.op[other], op):
            join(s.clock, clock, s.clock, other * tasks, tasks)
        other = s.before[other]
    s.clock[clock + task] = count + 1
    for i in range(racing):
        note_race(code, s, s.found[i], depth)


def find_races(code: Code, s: SearchState, task: int, op: int, depth: int) -> int:
    """As explore._races(): how many there are, their numbers in s.found."""
    tasks = s.at[TASKS]
    for t in range(tasks):
        s.other[t] = s.clock[depth * tasks + t]
    found = 0
    other = s.last[code.place[op]]
    while other >= 0:
        if s.task[other] != task and dependent(code, s.op[other], op):
            before = s.other[s.task[other]] >= s.number[other]
            if code.waits[op]:
                if not code.release[s.op[other]]:
                    if not before:
                        s.found[found] = other
                        found += 1
                else:
                    for i in range(found):
                        if happened(s, other, s.found[i] * tasks):
                            join(s.other, 0, s.clock, other * tasks, tasks)
                            break
            else:
                if not before:
                    s.found[found] = other
                    found += 1
                join(s.other, 0, s.clock, other * tasks, tasks)
        other = s.before[other]
    return found


def note_race(code: Code, s: SearchState, first: int, second: int) -> None:
    """As Explorer._note_race(), but for what would change nothing."""
    if not s.enabled[first] & ~s.todo[first]:
        return
    initials = find_initials(code, s, first, second)
    if s.todo[first] & initials:
        return
    usable = s.enabled[first] & initials
    s.todo[first] |= (usable & -usable) if usable else s.enabled[first]


def find_initials(code: Code, s: SearchState, first: int, second: int) -> int:
    """As Explorer._initials(); a mask, of as many as decide what note_race() does."""
    tasks = s.at[TASKS]
    later = 0
    for event in range(first + 1, second):
        if not happened(s, first, event * tasks):
            s.kept[later] = event
            later += 1
    for t in range(tasks):
        s.other[t] = s.clock[second * tasks + t]
        s.other[tasks + t] = 0
    if code.waits[s.op[second]]:
        later = without_holders(code, s, first, second, later)
    initials = begun = 0
    for i in range(later):
        event = s.kept[i]
        task = s.task[event]
        if not s.other[tasks + task]:
            if not after_begun(s, s.clock, event * tasks, tasks):
                initials |= 1 << task
            s.other[tasks + task] = s.number[event]
            begun += 1
            if begun == tasks or initials & s.todo[first]:
                return initials
    task = s.task[second]
    if not s.other[tasks + task] and not after_begun(s, s.other, 0, tasks):
        initials |= 1 << task
    return initials


def after_begun(s: SearchState, clock: Any, at: int, tasks: int) -> bool:
    """Whether something comes after the first event of a task that has begun (s.other)."""
    for t in range(tasks):
        number = s.other[tasks + t]
        if number and clock[at + t] >= number:
            return True
    return False


def without_holders(code: Code, s: SearchState, first: int, second: int, later: int) -> int:
    """As Explorer._without_holders(): how many of s.kept are left; the clock in s.other."""
    tasks = s.at[TASKS]
    op = s.op[second]
    place = code.place[op]
    for t in range(tasks):
        s.other[2 * tasks + t] = -1
    for i in range(later):
        event = s.kept[i]
        if code.place[s.op[event]] == place and code.release[s.op[event]]:
            s.other[2 * tasks + s.task[event]] = event
    kept = dropped = 0
    for i in range(later):
        event = s.kept[i]
        holds = code.place[s.op[event]] == place and code.holds[s.op[event]]
        for_ever = holds and s.other[2 * tasks + s.task[event]] < event
        gone = for_ever and dependent(code, s.op[event], op)
        for j in range(dropped):
            if happened(s, s.flags[j], event * tasks):
                gone = True
                break
        if gone:
            s.flags[dropped] = event
            dropped += 1
        else:
            s.kept[kept] = event
            kept += 1
    task = s.task[second]
    count = s.number[second] - 1
    for t in range(tasks):
        s.other[t] = s.clock[s.mine[task * s.at[CAP] + count - 1] * tasks + t] if count else 0
    event = s.last[place]
    while event >= 0:
        if event < first and s.task[event] != task and dependent(code, s.op[event], op):
            join(s.other, 0, s.clock, event * tasks, tasks)
        event = s.before[event]
    for i in range(kept):
        event = s.kept[i]
        if s.task[event] != task and dependent(code, s.op[event], op):
            join(s.other, 0, s.clock, event * tasks, tasks)
    return kept
