# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings that no kernel can have given: what a file is refused for.

Each check raises FileError with the place in the file and one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mthp.image.record.attached import ZERO_PAGE
from mthp.image.record.decode import (
    CALL,
    CLONE_VM,
    END,
    FAULT,
    IDLE,
    PAGE_FLAGS,
    PROGRAM,
    RETURN,
    TASK,
)
from mthp.image.record.looks import MOST_RUNS
from mthp.image.snapshot_checks import MOST_PID
from mthp.words.files import FileError
from mthp.words.units import Geometry

Arrays = Mapping[str, NDArray[Any]]
LONGEST = 2**62
"""Nanoseconds, of a recording."""


def check_events(
    arrays: Arrays, lengths: Mapping[str, int], geometry: Geometry, limit: int, processes: int
) -> NDArray[np.int64]:
    """Check the events, each for itself; returns their times, in nanoseconds from the beginning."""
    kind, value = arrays["event_kind"], arrays["event_value"]
    _within("event_kind", kind, FAULT, IDLE)
    _within("event_flags", arrays["event_flags"], 0, PAGE_FLAGS)
    _within("event_task", arrays["event_task"], 0, lengths["task"] - 1)
    most = {
        FAULT: (limit >> geometry.page_shift, "an address that no process has"),
        CALL: (lengths["call"], "no system call of the file"),
        RETURN: (lengths["call"], "no system call of the file"),
        TASK: (lengths["task"], "no task of the file"),
        PROGRAM: (processes, "no process of the file"),
        END: (1, "nothing that an end has"),
        IDLE: (LONGEST, "a time without end"),
    }
    for each, (limit_of, what) in most.items():
        wrong = np.flatnonzero((kind == each) & (value >= np.uint64(limit_of)))
        if len(wrong):
            raise FileError(f"event {wrong[0]}: {value[wrong[0]]:#x} is {what}")
    faults = kind == FAULT
    if np.any(faults & (arrays["event_site"] >= lengths["site"])):
        raise FileError("member event_site: a fault at no call site of the file")
    if np.any(~faults & ((arrays["event_flags"] != 0) | (arrays["event_site"] != 0))):
        raise FileError("member event_flags: flags, or a site, of what is no fault")
    later = np.where(kind == IDLE, value, arrays["event_later"].astype(np.uint64))
    if float(later.astype(np.float64).sum()) >= LONGEST:
        raise FileError("member event_later: times that run back, or without end")
    return np.cumsum(later.astype(np.int64))


def check_tasks(arrays: Arrays, how: Sequence[str]) -> None:
    """Check that each task begins once, in a process that is there, and does nothing after its end; and that
    each process begins once."""
    kind, task, value = arrays["event_kind"], arrays["event_task"], arrays["event_value"]
    tasks = len(arrays["task_pid"])
    _within("task_pid", arrays["task_pid"], 1, MOST_PID)
    _within("task_process", arrays["task_process"], 0, len(how) - 1)
    rows = np.arange(len(kind))
    began = np.zeros(tasks, np.int64)
    children = value[kind == TASK].astype(np.int64)
    _once("event_value", children, "a task that begins twice")
    began[children] = rows[kind == TASK]
    ended = np.full(tasks, len(kind))
    ends = task[kind == END]
    _once("event_task", ends, "a task that ends twice")
    ended[ends] = rows[kind == END]
    others = kind != END
    if np.any(rows < began[task]) or np.any(rows[others] > ended[task[others]]):
        raise FileError(
            "member event_task: a task does something before its begin or after its end"
        )
    programs = value[kind == PROGRAM].astype(np.int64)
    _once("event_value", programs, "a process that begins twice")
    begun = {*programs.tolist(), *arrays["task_process"].tolist()}
    for index, each in enumerate(how):
        if index not in begun:
            raise FileError(f"processes[{index}]: {each}, and no task is ever in it")
    flags = arrays["task_flags"][children]
    forked = np.array([each == "fork" for each in how])
    if np.any(~forked[arrays["task_process"][children]] & (flags & np.uint64(CLONE_VM) == 0)):
        raise FileError(
            "member task_process: a task with memory of its own is in no forked process"
        )


def check_calls(arrays: Arrays, names: int) -> None:
    """Check that each call begins once, in order, and returns at most once, later, to the task that it
    is of."""
    _within("call_kind", arrays["call_kind"], 0, names - 1)
    kind, task, value = arrays["event_kind"], arrays["event_task"], arrays["event_value"]
    begun = value[kind == CALL].astype(np.int64)
    count = len(arrays["call_kind"])
    if len(begun) != count or np.any(begun != np.arange(count)):
        raise FileError("member call_kind: calls that do not begin, or not in this order")
    returned = value[kind == RETURN].astype(np.int64)
    _once("event_value", returned, "a call that returns twice")
    rows = np.flatnonzero(kind == CALL)[returned]
    if np.any(rows > np.flatnonzero(kind == RETURN)) or np.any(task[rows] != task[kind == RETURN]):
        raise FileError("member event_value: a call returns before it begins, or to another task")


def check_samples(arrays: Arrays, processes: int) -> None:
    """Check that samples are of processes, in the order of time."""
    _within("sample_process", arrays["sample_process"], 0, processes - 1)
    time = arrays["sample_time"]
    if np.any(time[1:] < time[:-1]) or np.any(time >= LONGEST):
        raise FileError("member sample_time: times that run back, or without end")
    if np.any(arrays["sample_until"] < time) or np.any(arrays["sample_until"] >= LONGEST):
        raise FileError("member sample_until: before the sample began, or without end")
    for name in ("sample_anon", "sample_swap"):
        _within(name, arrays[name], 0, 2**52)


def check_looks(arrays: Arrays, geometry: Geometry, limit: int, began: NDArray[np.int64]) -> None:
    """Check that looks are of processes that had begun, one after the other, and that each has its runs of
    pages, ascending. began: when each process did."""
    time, until, process = (arrays[f"look_{name}"] for name in ("time", "until", "process"))
    _within("look_process", process, 0, len(began) - 1)
    if np.any(time >= LONGEST) or np.any(time.astype(np.int64) < began[process.astype(np.int64)]):
        raise FileError("member look_time: before the process began, or without end")
    if np.any(until < time) or np.any(until >= LONGEST) or np.any(time[1:] < until[:-1]):
        raise FileError("member look_until: before the look began, or after the next one did")
    page, pages, runs = arrays["run_page"], arrays["run_pages"], arrays["look_runs"]
    _within("look_runs", runs, 1, MOST_RUNS)
    if int(runs.sum(dtype=np.uint64)) != len(page):
        raise FileError("member look_runs: other runs of pages than there are")
    _within("run_pages", pages, 1, 2**32 - 1)
    _within("run_zero", arrays["run_zero"], 0, 1)
    top = np.uint64(limit >> geometry.page_shift)
    if np.any(page >= top) or np.any(page + pages.astype(np.uint64) > top):
        raise FileError("member run_page: an address that no process has")
    of = np.repeat(np.arange(len(runs)), runs.astype(np.int64))
    ends = page[:-1] + pages[:-1].astype(np.uint64)
    if np.any((of[1:] == of[:-1]) & (page[1:] < ends)):
        raise FileError("member run_page: not ascending runs of a look")


def check_start(arrays: Arrays, geometry: Geometry, spans: NDArray[np.uint64]) -> None:
    """Check the pages that a process had: ascending, each in one of its mappings, and those of a large folio
    no more than it has. spans: starts and ends of the mappings, in bytes."""
    page, order, folio = (arrays[name] for name in ("start_page", "start_order", "start_folio"))
    if len(page) and not len(spans):
        raise FileError("member start_page: the first process was not there already")
    if np.any(page[1:] <= page[:-1]):
        raise FileError("member start_page: not ascending pages of a process")
    if len(page):
        start, end = (spans >> np.uint64(geometry.page_shift)).T
        index = np.searchsorted(start, page, side="right").astype(np.int64) - 1
        if np.any(index < 0) or np.any(page >= end[index]):
            raise FileError("member start_page: a page in none of the process's mappings")
    if np.any((order > geometry.pmd_order) & (order != ZERO_PAGE)):
        raise FileError(f"member start_order: no order up to {geometry.pmd_order}")
    large = (order > 0) & (order != ZERO_PAGE)
    folios, which, counts = np.unique(folio[large], return_inverse=True, return_counts=True)
    orders = np.zeros(len(folios), np.uint8)
    orders[which] = order[large]
    if np.any(orders[which] != order[large]) or np.any(counts > 1 << orders.astype(np.int64)):
        raise FileError("member start_folio: a folio of two orders, or of more pages than it has")


def _within(name: str, values: NDArray[Any], low: int, high: int) -> None:
    wrong = np.flatnonzero((values < low) | (values > max(high, 0))) if high >= 0 else values[:1]
    if len(wrong):
        raise FileError(f"member {name}: a value outside {low}..{high}, in row {wrong[0]}")


def _once(name: str, values: NDArray[Any], what: str) -> None:
    if len(np.unique(values)) != len(values):
        raise FileError(f"member {name}: {what}")
