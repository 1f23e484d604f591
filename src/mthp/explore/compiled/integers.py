# SPDX-License-Identifier: GPL-2.0-or-later
"""The search of explore.py on nothing but integers: the same choices, the same races, in its order.

Every function of the search is plain code over indexable columns: it runs as it is on lists and,
compiled by Numba, on arrays. A set of tasks is a mask. search() says why it comes back: when it lacks
something that is not in the columns, and goes on from there when it is called again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mthp.explore.compiled.automaton import CHANGE, HOLE, READ, STEP, WRITE, YES

# The columns, and the names of single numbers


# Why search() came back. MISSED: a transition that no execution has made. FOUND: a verdict that is new,
# or an execution that was cut off. FULL: the journal is, or what is noted. BORDER: what is next may be
# searched elsewhere. LOST: the part that was to be gone on with leads to no such place.
DONE, MISSED, STUCK, FOUND, ENOUGH, ASK, FULL, BORDER, LOST = range(9)

# What comes next
CHOOSE, TAKE, ACT, JUDGE, ENDED, BACK, AGAIN = range(7)

# How an execution ended
F_FINISHED, F_STUCK, F_GIVEN_UP, F_TOO_LONG = range(4)

# Where things stand in SearchState.at
(PHASE, DEPTH, EXECUTIONS, PRUNED, STEPS, TOO_LONG, JOURNAL, CURRENT, FATE, MOST, FIRST, ASKED, JUDGE_AT,
 BROKEN, EMPTY, TASKS, QUANTUM, MOST_STEPS, ROOM, LACKS, LACKING, CAP, REACHED, OWN, LEAD, NOTED,
 RESULTS, GOES_ON, WAITING, SIZE) = range(30)  # fmt: skip


class Code(NamedTuple):
    """The automata and the ops; see automaton.Program. background: of a task."""

    kind: Any
    arg: Any
    val: Any
    nxt: Any
    bval: Any
    bnode: Any
    bnext: Any
    place: Any
    way: Any
    waits: Any
    release: Any
    holds: Any
    dependent: Any
    background: Any


class SearchState(NamedTuple):
    """Where the search stands.

    at: single numbers. cell: what is in each. node: where each task stands; nodes: the same before each
    step. jcell, jold: what was overwritten; mark: how much of that before each step. enabled, sleep,
    todo: of each place; border: whether to come back there, since another process may search what is
    next. task, op, number, before, clock: of each event; before: the one before it at
    its word. mine, count: the events of a task. last: the last event at a word. seen: verdicts that
    were reported. tally: how often executions came to results. rest: by who ran last, where the verdict
    at rest begins. noted: races with steps above the part, each a depth and a mask. found, kept, flags,
    other: scratch.
    """

    at: Any
    cell: Any
    node: Any
    nodes: Any
    jcell: Any
    jold: Any
    mark: Any
    enabled: Any
    sleep: Any
    todo: Any
    border: Any
    task: Any
    op: Any
    number: Any
    before: Any
    clock: Any
    mine: Any
    count: Any
    last: Any
    seen: Any
    tally: Any
    rest: Any
    noted: Any
    found: Any
    kept: Any
    flags: Any
    other: Any


def columns(tasks: int, most_steps: int) -> SearchState:
    """Room for a search, of executions that long, and for steps that never came."""
    cap = most_steps + 2
    one = ["at", "cell", "node", "jcell", "jold", "count", "last", "seen", "tally", "rest", "noted"]
    wide = {"nodes", "clock", "mine", "other"}
    made: dict[str, list[int]] = {
        name: [0] * (0 if name in one else cap * tasks if name in wide else cap)
        for name in SearchState._fields
    }
    made["at"] = [0] * SIZE
    made["at"][TASKS], made["at"][MOST_STEPS], made["at"][CAP] = tasks, most_steps, cap
    made["node"] = [0] * tasks
    made["count"] = [0] * tasks
    made["rest"] = [0] * tasks
    made["jcell"], made["jold"] = [0] * 4096, [0] * 4096
    return SearchState(**made)


# The search


def go(code: Code, s: SearchState, node: int) -> int:
    """Go along an automaton from `node` to where it stops. -1, and nothing done, where that is new."""
    at, cell = s.at, s.cell
    began = at[JOURNAL]
    while True:
        kind = code.kind[node]
        if kind == READ:
            value = cell[code.arg[node]]
            branch = code.nxt[node]
            while branch >= 0 and code.bval[branch] != value:
                branch = code.bnext[branch]
            if branch < 0:
                at[LACKS], at[LACKING] = node, value
                undo(s, began)
                return -1
            node = code.bnode[branch]
        elif kind in (WRITE, CHANGE):
            where = code.arg[node]
            value = code.val[node]
            if kind == CHANGE:
                branch = code.nxt[value]
                while branch >= 0 and code.bval[branch] != cell[where]:
                    branch = code.bnext[branch]
                if branch < 0:
                    at[LACKS], at[LACKING] = node, cell[where]
                    undo(s, began)
                    return -1
                value = code.bnode[branch]
            journal = at[JOURNAL]
            if journal >= at[ROOM]:
                undo(s, began)
                return -2
            s.jcell[journal] = where
            s.jold[journal] = cell[where]
            at[JOURNAL] = journal + 1
            cell[where] = value
            node = code.nxt[node]
        elif kind == HOLE:
            at[LACKS] = -1
            undo(s, began)
            return -1
        else:
            return node


def undo(s: SearchState, to: int) -> None:
    """Take back what was written since the journal was that long."""
    at = s.at
    journal = at[JOURNAL]
    while journal > to:
        journal -= 1
        s.cell[s.jcell[journal]] = s.jold[journal]
    at[JOURNAL] = to


def may_go(code: Code, s: SearchState, node: int) -> int:
    """Whether a task that stands here could go: 1 or 0; -1 where that is not known yet."""
    guard = code.val[node]
    if guard < 0:
        return 1
    end = go(code, s, code.nxt[guard])
    return -1 if end < 0 else (1 if end == YES else 0)


def take(code: Code, s: SearchState, task: int) -> None:
    """Take a step whose event is made. See Explorer._take()."""
    depth = s.at[DEPTH]
    s.mine[task * s.at[CAP] + s.count[task]] = depth
    s.count[task] += 1
    place = code.place[s.op[depth]]
    s.before[depth] = s.last[place]
    s.last[place] = depth
    s.mark[depth] = s.at[JOURNAL]
    s.at[PHASE] = ACT


def choose(code: Code, s: SearchState) -> int:
    """At a new place: choose the next task, or how the execution ends. Why search() comes back, or -1."""
    at = s.at
    depth, tasks = at[DEPTH], at[TASKS]
    leads = depth < at[LEAD]
    alive = enabled = others = 0
    for task in range(tasks):
        if code.kind[s.node[task]] == STEP:
            alive |= 1 << task
            others += not code.background[task]
    at[PHASE] = JUDGE
    at[FATE] = F_FINISHED
    at[WAITING] = 0
    at[JUDGE_AT] = s.rest[at[CURRENT]]
    if not alive and not leads:
        return -1
    if depth >= at[MOST_STEPS]:
        at[FATE] = F_TOO_LONG
        at[PHASE] = ENDED
        return -1
    for task in range(tasks):
        if alive >> task & 1:
            free = may_go(code, s, s.node[task])
            if free < 0:
                at[PHASE] = CHOOSE
                return MISSED
            enabled |= free << task
    s.enabled[depth] = enabled
    if leads:
        return follow(s, depth)
    at[WAITING] = alive & ~enabled
    if not enabled:
        if not others:
            at[WAITING] = 0
            return -1
        at[FATE] = F_STUCK
        return STUCK
    at[PHASE] = ENDED
    at[FATE] = F_GIVEN_UP
    if at[FIRST] and s.cell[at[BROKEN]] != at[EMPTY]:
        return -1
    sleep = 0
    if depth:
        for task in range(tasks):
            if s.sleep[depth - 1] >> task & 1:
                node = s.nodes[(depth - 1) * tasks + task]
                if not dependent(code, code.arg[node], s.op[depth - 1]):
                    sleep |= 1 << task
    awake = enabled & ~sleep
    if not awake:
        return -1
    current = at[CURRENT]
    if depth == 0 or not awake >> current & 1:
        current = lowest(awake)
    s.sleep[depth] = sleep
    s.todo[depth] = 1 << current
    stand(s, depth)
    at[CURRENT] = current
    at[PHASE] = TAKE
    return -1


def stand(s: SearchState, depth: int) -> None:
    """Keep where the tasks stand before a step."""
    tasks = s.at[TASKS]
    for task in range(tasks):
        s.nodes[depth * tasks + task] = s.node[task]


def follow(s: SearchState, depth: int) -> int:
    """At a place of the part that is gone on with: do what was done there. Why search() comes back, or -1."""
    at = s.at
    enabled = s.enabled[depth]
    stand(s, depth)
    task = s.task[depth]
    if task < 0:
        at[LEAD] = 0
        left = s.todo[depth] & ~s.sleep[depth]
        at[PHASE] = AGAIN if left else BACK
        return LOST if left & ~enabled else BORDER
    if not enabled >> task & 1:
        return LOST
    if depth + 1 == at[LEAD]:
        at[LEAD] = 0
    at[CURRENT] = task
    at[PHASE] = TAKE
    return -1


def lowest(mask: int) -> int:
    """The first task in a mask."""
    task = 0
    while not mask >> task & 1:
        task += 1
    return task


def act(code: Code, s: SearchState) -> int:
    """The chosen task's segment, or the verdict in the end. Why search() comes back, or -1."""
    at = s.at
    task, judges = at[CURRENT], at[PHASE] == JUDGE
    node = go(code, s, code.nxt[at[JUDGE_AT] if judges else s.node[task]])
    if node < 0:
        return MISSED if node == -1 else FULL
    if judges:
        at[PHASE] = ENDED
        return -1
    s.node[task] = node
    at[DEPTH] += 1
    at[PHASE] = CHOOSE
    return -1


def ended(s: SearchState) -> int:
    """An execution is over: count it. Why search() comes back, or -1."""
    at = s.at
    depth, fate = at[DEPTH], at[FATE]
    verdict = s.cell[at[BROKEN]]
    at[STEPS] += depth
    at[QUANTUM] -= depth
    at[PHASE] = BACK
    if fate == F_GIVEN_UP and verdict == at[EMPTY]:
        at[PRUNED] += 1
        return -1
    at[EXECUTIONS] += 1
    s.tally[s.cell[at[RESULTS]]] += 1
    at[TOO_LONG] += fate == F_TOO_LONG
    is_new = verdict != at[EMPTY] and not s.seen[verdict]
    if is_new:
        s.seen[verdict] = 1
    return FOUND if is_new or (fate == F_TOO_LONG and at[GOES_ON]) else -1


def back(code: Code, s: SearchState) -> int:
    """Go back to the deepest place with something left to try. Why search() comes back, or -1."""
    at = s.at
    tasks = at[TASKS]
    depth = at[DEPTH]
    while True:
        if depth == at[OWN]:
            at[DEPTH] = depth
            return DONE
        depth -= 1
        task = s.task[depth]
        s.count[task] -= 1
        s.last[code.place[s.op[depth]]] = s.before[depth]
        s.sleep[depth] |= 1 << task
        if s.todo[depth] & ~s.sleep[depth]:
            break
    undo(s, s.mark[depth])
    for task in range(tasks):
        s.node[task] = s.nodes[depth * tasks + task]
    at[DEPTH] = depth
    at[PHASE] = AGAIN
    if s.border[depth]:
        return BORDER
    if at[MOST] >= 0 and at[EXECUTIONS] >= at[MOST]:
        return ENOUGH
    if at[ASKED] or at[QUANTUM] <= 0:
        return ASK
    return -1


def search(code: Code, s: SearchState) -> int:
    """Go on until something is needed; what it is."""
    at = s.at
    while True:
        phase = at[PHASE]
        if at[OWN] and at[NOTED] + at[CAP] * at[TASKS] > len(s.noted) // 2:
            return FULL
        status = -1
        if phase == TAKE:
            task = at[CURRENT]
            make_event(code, s, task)
            take(code, s, task)
        elif phase == ENDED and at[WAITING]:  # steps that never came could have been first
            make_event(code, s, lowest(at[WAITING]))
            at[WAITING] &= at[WAITING] - 1
        elif phase == CHOOSE:
            status = choose(code, s)
        elif phase in (ACT, JUDGE):
            status = act(code, s)
        elif phase == ENDED:
            status = ended(s)
        elif phase == BACK:
            status = back(code, s)
        else:
            at[CURRENT] = lowest(s.todo[at[DEPTH]] & ~s.sleep[at[DEPTH]])
            at[PHASE] = TAKE
        if status >= 0:
            return status


def rewind(s: SearchState) -> None:
    """Back to where no task has begun, and nothing is found."""
    at = s.at
    undo(s, 0)
    for place in range(len(s.last)):
        s.last[place] = -1
    for verdict in range(len(s.seen)):
        s.seen[verdict] = 0
    for task in range(at[TASKS]):
        s.count[task] = 0
    for depth in range(at[CAP]):
        s.border[depth] = 0
    at[DEPTH] = at[NOTED] = 0
    at[PHASE] = CHOOSE
    at[CURRENT] = at[TASKS] - 1


def resume(code: Code, s: SearchState) -> int:
    """The automata have other nodes now: go where the events lead from the roots in s.node; -1 or -2 if
    something is missing, and called again it goes on. With PHASE ACT, the last event's segment is still
    to come.
    """
    at = s.at
    tasks = at[TASKS]
    while at[REACHED] < tasks:
        task = at[REACHED]
        node = go(code, s, code.nxt[s.node[task]])
        if node < 0:
            return node
        s.node[task] = node
        at[REACHED] += 1
    while True:
        depth = at[REACHED] - tasks
        if depth < at[DEPTH] or at[PHASE] == ACT:
            for task in range(tasks):
                s.nodes[depth * tasks + task] = s.node[task]
            s.mark[depth] = at[JOURNAL]
        if depth == at[DEPTH]:
            return 0
        task = s.task[depth]
        node = go(code, s, code.nxt[s.node[task]])
        if node < 0:
            return node
        s.node[task] = node
        at[REACHED] += 1


# Clocks and races: what explore.py does where it takes a step


def dependent(code: Code, a: int, b: int) -> bool:
    """Whether the order of two steps may matter. See dependence.dependent()."""
    if code.place[a] != code.place[b]:
        return False
    way, other = code.way[a], code.way[b]
    if way < other:
        way, other = other, way
    return bool(code.dependent[way * (way + 1) // 2 + other])


def happened(s: SearchState, event: int, clock: int) -> bool:
    """Whether an event is before what has the clock that begins at `clock` in s.clock."""
    return bool(s.clock[clock + s.task[event]] >= s.number[event])


def join(a: Any, at: int, b: Any, other: int, tasks: int) -> None:
    """The later of two clocks, in the first one's place."""
    for task in range(tasks):
        if a[at + task] < b[other + task]:
            a[at + task] = b[other + task]


def make_event(code: Code, s: SearchState, task: int) -> None:
    """The clock of a step, and its races. See Explorer._event()."""
    tasks, depth, op = s.at[TASKS], s.at[DEPTH], code.arg[s.node[task]]
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
        first = s.found[i]
        if s.enabled[first] & ~s.todo[first]:  # or it would change nothing
            reverse(s, first, find_initials(code, s, first, depth))


def find_races(code: Code, s: SearchState, task: int, op: int, depth: int) -> int:
    """How many races a step has; s.found has them. See explore._races()."""
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


def reverse(s: SearchState, depth: int, initials: int) -> None:
    """One of a mask of tasks is to be tried at a depth, here or above. See Explorer._reverse()."""
    if s.todo[depth] & initials:
        return
    if depth >= s.at[OWN]:
        usable = s.enabled[depth] & initials
        s.todo[depth] |= (usable & -usable) if usable else s.enabled[depth]
        return
    noted = s.at[NOTED]
    for i in range(noted):
        if s.noted[2 * i] == depth and s.noted[2 * i + 1] == initials:
            return
    s.noted[2 * noted] = depth
    s.noted[2 * noted + 1] = initials
    s.at[NOTED] = noted + 1


def find_initials(code: Code, s: SearchState, first: int, second: int) -> int:
    """A mask of as many initials as decide what reverse() does. See Explorer._initials()."""
    tasks = s.at[TASKS]
    later = keep_others(s, first, second)
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


def keep_others(s: SearchState, first: int, second: int) -> int:
    """How many events between two do not come after the first; s.kept has them."""
    kept = 0
    for event in range(first + 1, second):
        if not happened(s, first, event * s.at[TASKS]):
            s.kept[kept] = event
            kept += 1
    return kept


def after_begun(s: SearchState, clock: Any, at: int, tasks: int) -> bool:
    """Whether something comes after the first event of a task that has begun (s.other)."""
    for t in range(tasks):
        number = s.other[tasks + t]
        if number and clock[at + t] >= number:
            return True
    return False


def without_holders(code: Code, s: SearchState, first: int, second: int, later: int) -> int:
    """How many of s.kept are left; the clock is in s.other. See Explorer._without_holders()."""
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
