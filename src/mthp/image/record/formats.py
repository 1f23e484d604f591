# SPDX-License-Identifier: GPL-2.0-or-later
"""The events that are recorded, and where their fields lie, as this kernel's own format files say.

Kernel: kernel/trace/trace_events.c, f_show(); kernel/trace/trace_syscalls.c.
"""

from __future__ import annotations

import os
import re
import struct
import sys
from typing import NamedTuple

from mthp.image.capture.proc import FAILED, LACKING, CaptureError, text

USER_FAULT, KERNEL_FAULT = "exceptions/page_fault_user", "exceptions/page_fault_kernel"
NEW_TASK, EXIT = "task/task_newtask", "sched/sched_process_exit"
EXEC, PREPARE_EXEC = "sched/sched_process_exec", "sched/sched_prepare_exec"

CALLS = (
    "mmap", "munmap", "mremap", "madvise", "mprotect", "brk", "pkey_mprotect", "process_madvise",
    "mlock", "mlock2", "mlockall", "munlock", "munlockall", "remap_file_pages", "shmat", "shmdt",
    "prctl", "map_shadow_stack", "userfaultfd", "execve", "execveat", "io_uring_setup",
)  # fmt: skip
"""The system calls that are recorded. Their numbers in a file are their places here."""
NEEDED_CALLS = CALLS[:6]
NEEDED = (USER_FAULT, KERNEL_FAULT, NEW_TASK, EXIT, EXEC)


class Field(NamedTuple):
    """Where a field lies in an event's record: bytes from its start, and how many."""

    offset: int
    size: int


class Event(NamedTuple):
    """One event of this kernel. number: as its records bear it. args: of a system call, in order."""

    name: str
    number: int
    fields: dict[str, Field]
    args: tuple[Field, ...]

    def unpacker(self, *names: str) -> struct.Struct:
        """What takes these fields, in ascending order, out of a record."""
        return _unpacker([self.fields[name] for name in names])

    def args_unpacker(self) -> struct.Struct:
        """What takes the arguments, or the result, of a system call out of a record."""
        return _unpacker(list(self.args))


_LETTER = {1: "B", 2: "H", 4: "I", 8: "Q"}


def _unpacker(fields: list[Field]) -> struct.Struct:
    parts, at = ["<"], 0
    for field in fields:
        parts.append(f"{field.offset - at}x{_LETTER[field.size]}")
        at = field.offset + field.size
    return struct.Struct("".join(parts))


_FIELD = re.compile(r"^\tfield:([^;]*?)(\w+)(?:\[\w*\])?;\toffset:(\d+);\tsize:(\d+);", re.M)


def parse_event(name: str, format_text: str) -> Event:
    """Read an event's format file. CaptureError: it is none."""
    number = re.search(r"^ID: (\d+)$", format_text, re.M)
    found = _FIELD.findall(format_text)
    if number is None or not found:
        raise CaptureError(f"events/{name}/format says nothing that is understood")
    fields = {each: Field(int(offset), int(size)) for _, each, offset, size in found}
    own = [(each, field) for each, field in fields.items() if not each.startswith("common_")]
    args = tuple(field for each, field in own if each not in ("__syscall_nr", "nr"))
    return Event(name, int(number[1]), fields, args)


def events_of(root: str) -> dict[str, Event]:
    """The events to record, of those that this kernel has. CaptureError (5): it lacks a needed one."""
    calls = [f"syscalls/sys_{way}_{call}" for call in CALLS for way in ("enter", "exit")]
    found = {}
    for name in (*NEEDED, PREPARE_EXEC, *calls):
        if os.path.isdir(f"{root}/events/{name}"):
            found[name] = parse_event(name, text(f"{root}/events/{name}/format") or "")
    needed = [f"syscalls/sys_{way}_{call}" for call in NEEDED_CALLS for way in ("enter", "exit")]
    for name in (*NEEDED, *needed):
        if name not in found:
            raise CaptureError(f"this kernel has no trace event {name.replace('/', ':')}", LACKING)
    return found


class PageLayout(NamedTuple):
    """How a page of the ring buffer is laid out: where its commit word and its data lie, and its size."""

    commit: Field
    data: int
    size: int


def page_layout(root: str) -> PageLayout:
    """Read events/header_page. CaptureError: this kernel's buffers are not understood."""
    if sys.byteorder != "little":
        raise CaptureError("big-endian machines are not recorded on", LACKING)
    return layout_of(text(f"{root}/events/header_page") or "")


def layout_of(header: str) -> PageLayout:
    """What the text of events/header_page says. CaptureError: it is not understood."""
    fields = {
        name: Field(int(offset), int(size)) for _, name, offset, size in _FIELD.findall(header)
    }
    try:
        data = fields["data"]
        return PageLayout(fields["commit"], data.offset, data.offset + data.size)
    except KeyError:
        raise CaptureError("events/header_page is not understood", FAILED) from None
