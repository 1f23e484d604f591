# SPDX-License-Identifier: GPL-2.0-or-later
"""The columns of numbers that the search on integers runs on, and the names of single numbers."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple


class Status(IntEnum):
    """Why search() came back."""

    DONE = 0
    MISSED = 1  # a transition that nobody has seen
    STUCK = 2
    FOUND = 3  # a verdict that nobody has seen
    ENOUGH = 4
    ASK = 5
    FULL = 6  # the journal is


class Phase(IntEnum):
    """What comes next."""

    CHOOSE = 0
    ACT = 1
    JUDGE = 2
    ENDED = 3
    BACK = 4
    AGAIN = 5


class Fate(IntEnum):
    """How an execution ended."""

    FINISHED = 0
    STUCK = 1
    GIVEN_UP = 2
    TOO_LONG = 3


CHOOSE, ACT, JUDGE, ENDED, BACK, AGAIN = range(6)
DONE, MISSED, STUCK, FOUND, ENOUGH, ASK, FULL = range(7)
F_FINISHED, F_STUCK, F_GIVEN_UP, F_TOO_LONG = range(4)

# Where things stand in State.at
(PHASE, DEPTH, EXECUTIONS, PRUNED, STEPS, TOO_LONG, JOURNAL, CURRENT, FATE, MOST, FIRST, ASKED, JUDGE_AT,
 BROKEN, EMPTY, TASKS, QUANTUM, MOST_STEPS, ROOM, LACKS, LACKING, CAP, REACHED,
 SIZE) = range(24)  # fmt: skip


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
    todo: of each place. task, op, number, before, clock: of each event; before: the one before it at
    its word. mine, count: the events of a task. last: the last event at a word. seen: verdicts that
    were reported. rest: by who ran last, where the verdict at rest begins. found, kept, flags, other:
    scratch.
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
    task: Any
    op: Any
    number: Any
    before: Any
    clock: Any
    mine: Any
    count: Any
    last: Any
    seen: Any
    rest: Any
    found: Any
    kept: Any
    flags: Any
    other: Any


def columns(tasks: int, most_steps: int) -> SearchState:
    """Room for a search, of executions that long, and for steps that never came."""
    cap = most_steps + 2
    one = ["at", "cell", "node", "jcell", "jold", "count", "last", "seen", "rest"]
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
