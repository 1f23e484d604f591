# SPDX-License-Identifier: GPL-2.0-or-later
"""From the records of all CPUs, in the order of time, to the rows of the file.

Kernel: kernel/fork.c, copy_process(); fs/exec.c, begin_new_exec(); kernel/exit.c, do_exit().
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_right
from operator import itemgetter
from typing import Any, Callable, Iterable, Iterator

from mthp.image.record.formats import (
    CALLS,
    EXEC,
    EXIT,
    KERNEL_FAULT,
    NEW_TASK,
    PREPARE_EXEC,
    USER_FAULT,
    Event,
)
from mthp.image.record.ring import Record

FAULT, CALL, RETURN, TASK, PROGRAM, END, IDLE = range(1, 8)
"""The kinds of rows: a fault, a system call that begins, and one that returns, a new task, a task that
runs another program, one that ends, and a time in which nothing was."""
MOST_LATER = 0xFFFFFFFF
PAGE_FLAGS = 0x1F
"""Of a fault's error code: present, write, user, reserved, instruction. Kernel: x86's trap_pf.h."""
CLONE_VM, CLONE_THREAD = 0x100, 0x10000
_KERNEL_ADDRESS = 1 << 63

Handler = Callable[[int, int, bytes, int, int], None]


class EventRows:
    """The columns of the events, and what they lead to: tasks, processes, system calls, call sites."""

    def __init__(self) -> None:
        self.later = array("I")
        self.task = array("I")
        self.kind = bytearray()
        self.flags = bytearray()
        self.value = array("Q")
        self.site = array("I")
        self.sites: dict[int, int] = {}
        self.call_kind = bytearray()
        self.call_args = array("Q")
        self.call_result = array("Q")
        self.task_pid = array("I")
        self.task_process = array("I")
        self.task_flags = array("Q")
        self.processes: list[dict[str, Any]] = []

    def process(self, pid: int, how: str, parent: int | None) -> int:
        """Note a process, which is an address space of its own; its index."""
        began = len(self.kind)
        self.processes.append(
            {
                "pid": pid,
                "how": how,
                "parent": parent,
                "began": began,
                "program": None,
                "vmas": None,
                "arguments": None,
            }
        )
        return len(self.processes) - 1

    def new_task(self, pid: int, process: int, flags: int) -> int:
        """Note a task, in the process that it begins in; its index."""
        self.task_pid.append(pid)
        self.task_process.append(process)
        self.task_flags.append(flags)
        return len(self.task_pid) - 1


class Decoder:
    """Turns records into rows. page_shift: of an address. command: the process that the recording begins
    with, at its first program; None where it begins with tasks that are there already.

    unseen: tasks that did something before they were seen to begin.
    """

    def __init__(self, events: dict[str, Event], page_shift: int, command: int | None) -> None:
        self.rows = EventRows()
        self.began = 0
        self.ended = 0
        self.unseen = 0
        self.spans: dict[int, list[tuple[int, int]]] = {}
        """Of each pid: since when it has had which process."""
        self._shift = page_shift
        self._command = command
        self._now = 0
        self._tasks: dict[int, int] = {}
        self._process: dict[int, int] = {}
        self._calls: dict[tuple[int, int], int] = {}
        self._handlers: dict[int, Handler] = {}
        self._pid = next(iter(events.values())).unpacker("common_type", "common_pid")
        for event in events.values():
            handler = self._handler(event, PREPARE_EXEC in events)
            if handler is not None:
                self._handlers[event.number] = handler

    def begin(self, now: int) -> None:
        """Have the recording begin at this time, where it does not with a program."""
        self.began = self._now = now

    def start_task(self, pid: int, process: int) -> None:
        """Note a task that is there when the recording begins."""
        self._join(pid, self.rows.new_task(pid, process, 0), process)

    def index_at(self, pid: int, time: int) -> int | None:
        """The index of the process that had this number at a time, in nanoseconds; None: no recorded one
        had."""
        spans = self.spans.get(pid, [])
        at = bisect_right(spans, (time, 1 << 62)) - 1
        return spans[at][1] if at >= 0 and self.began <= time else None

    def decode(self, cpus: Iterable[Iterator[Record]]) -> None:
        """Take the records of all CPUs."""
        handlers, unpack = self._handlers, self._pid.unpack_from
        for now, page, at, _ in heapq.merge(*cpus, key=itemgetter(0)):
            number, pid = unpack(page, at)
            handler = handlers.get(number)
            if handler is not None:
                handler(now, pid, page, at, number)

    def _handler(self, event: Event, prepared: bool) -> Handler | None:
        """What takes a record of this event."""
        if event.name in (USER_FAULT, KERNEL_FAULT):
            return self._fault(event)
        if event.name == NEW_TASK:
            return self._new_task(event)
        if event.name == PREPARE_EXEC:
            return lambda now, pid, page, at, number: self._program(now, pid)
        if event.name == EXEC:
            return self._named(event, prepared)
        if event.name == EXIT:
            return lambda now, pid, page, at, number: self._end(now, pid)
        way, _, call = event.name.partition("/sys_")[2].partition("_")
        number = CALLS.index(call)
        return self._enter(event, number) if way == "enter" else self._exit(event, number)

    def _row(self, now: int, pid: int, kind: int, flags: int, value: int, site: int = 0) -> None:
        task = self._tasks.get(pid)
        if task is None:
            if not self.began:
                return
            task = self._unknown(now, pid)
        rows = self.rows
        later = now - self._now
        if later > MOST_LATER:
            rows.later.append(0)
            rows.task.append(task)
            rows.kind.append(IDLE)
            rows.flags.append(0)
            rows.value.append(later)
            rows.site.append(0)
            later = 0
        self._now = now
        rows.later.append(later)
        rows.task.append(task)
        rows.kind.append(kind)
        rows.flags.append(flags)
        rows.value.append(value)
        rows.site.append(site)

    def _unknown(self, now: int, pid: int) -> int:
        self.unseen += 1
        process = self.rows.process(pid, "unseen", None)
        task = self.rows.new_task(pid, process, 0)
        self._join(pid, task, process, now)
        return task

    def _join(self, pid: int, task: int, process: int, now: int = 0) -> None:
        self._tasks[pid] = task
        self._process[pid] = process
        self.spans.setdefault(pid, []).append((now, process))

    def _fault(self, event: Event) -> Handler:
        unpack = event.unpacker("address", "ip", "error_code").unpack_from
        sites, shift = self.rows.sites, self._shift

        def fault(now: int, pid: int, page: bytes, at: int, number: int) -> None:
            address, ip, code = unpack(page, at)
            if address < _KERNEL_ADDRESS and self.began:
                site = sites.setdefault(ip, len(sites))
                self._row(now, pid, FAULT, code & PAGE_FLAGS, address >> shift, site)

        return fault

    def _new_task(self, event: Event) -> Handler:
        unpack = event.unpacker("pid", "clone_flags").unpack_from

        def new_task(now: int, pid: int, page: bytes, at: int, number: int) -> None:
            if pid not in self._tasks:
                return
            child, flags = unpack(page, at)
            process = parent = self._process[pid]
            if not flags & CLONE_VM:
                process = self.rows.process(child, "fork", parent)
            task = self.rows.new_task(child, process, flags)
            self._join(child, task, process, now)
            self._row(now, pid, TASK, 0, task)

        return new_task

    def _program(self, now: int, pid: int) -> None:
        """A task begins with a new address space."""
        if not self.began:
            if pid != self._command:
                return
            self.began = self._now = now
            process = self.rows.process(pid, "exec", None)
            self._join(pid, self.rows.new_task(pid, process, 0), process, now)
        else:
            if pid not in self._tasks:
                self._unknown(now, pid)
            process = self.rows.process(pid, "exec", self._process[pid])
        self._row(now, pid, PROGRAM, 0, process)
        self._process[pid] = process
        self.spans[pid].append((now, process))

    def _named(self, event: Event, prepared: bool) -> Handler:
        unpack = event.unpacker("filename", "pid", "old_pid").unpack_from

        def named(now: int, pid: int, page: bytes, at: int, number: int) -> None:
            where, new, old = unpack(page, at)
            if (
                old != new and old in self._tasks
            ):  # another thread than the first: it takes its number
                self._tasks[new], self._process[new] = self._tasks[old], self._process[old]
                self.spans.setdefault(new, []).append((now, self._process[new]))
            if not prepared:
                self._program(now, pid)
            if pid in self._process:
                name = page[at + (where & 0xFFFF) :][: (where >> 16)]
                text = name.partition(b"\0")[0].decode(errors="replace")
                self.rows.processes[self._process[pid]]["program"] = text

        return named

    def _end(self, now: int, pid: int) -> None:
        if pid in self._tasks:
            self._row(now, pid, END, 0, 0)
            self.ended = now
            del self._tasks[pid], self._process[pid]

    def _enter(self, event: Event, call: int) -> Handler:
        unpack, args = event.args_unpacker().unpack_from, len(event.args)
        spare = (0,) * (6 - args)

        def enter(now: int, pid: int, page: bytes, at: int, number: int) -> None:
            if pid in self._tasks:
                rows = self.rows
                row = len(rows.call_kind)
                self._calls[pid, call] = row
                rows.call_kind.append(call)
                rows.call_args.extend(unpack(page, at) + spare)
                rows.call_result.append(0)
                self._row(now, pid, CALL, 0, row)

        return enter

    def _exit(self, event: Event, call: int) -> Handler:
        unpack = event.args_unpacker().unpack_from

        def leave(now: int, pid: int, page: bytes, at: int, number: int) -> None:
            row = self._calls.pop((pid, call), None)
            if row is not None and pid in self._tasks:
                (self.rows.call_result[row],) = unpack(page, at)
                self._row(now, pid, RETURN, 0, row)

        return leave
