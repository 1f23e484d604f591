# SPDX-License-Identifier: GPL-2.0-or-later
"""Read a recording that image/record/ wrote, checked, as numpy arrays and frozen values.

The format is docs/recording-format.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag, StrEnum
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mthp.image.fields import Fields, short
from mthp.image.members import Members
from mthp.image.record import decode
from mthp.image.record.columns import ARGS, COLUMNS, LOOKS, SCHEMA, START
from mthp.image.record.looks import VERSION
from mthp.image.recording_checks import (
    check_calls,
    check_events,
    check_looks,
    check_samples,
    check_start,
    check_tasks,
)
from mthp.image.snapshot_checks import MOST_PID, address_limit
from mthp.words.files import FileError
from mthp.words.reading import check_memory, open_regular, parse_object
from mthp.words.units import Geometry, human_bytes

META_BYTES = 128 << 20
"""Of the document: several hundred thousand processes."""
BYTES_OF_AN_EVENT = 64
"""What an event takes while it is checked, about."""
MACHINE = "x86_64"
"""Where a fault's flags are what FaultFlag says."""


class RecordingError(FileError):
    """A file that is no recording, or one that contradicts itself; one line says where."""


class EventKind(IntEnum):
    """What a row tells of. PROGRAM: a task has an address space of its own, for another program."""

    FAULT = decode.FAULT
    CALL = decode.CALL
    RETURN = decode.RETURN
    TASK = decode.TASK
    PROGRAM = decode.PROGRAM
    END = decode.END
    IDLE = decode.IDLE


class FaultFlag(IntFlag):
    """Bits of Recording.flags of a fault. Kernel: arch/x86/include/asm/trap_pf.h."""

    PRESENT = 1
    WRITE = 2
    USER = 4
    RESERVED = 8
    INSTRUCTION = 16


class HowBegun(StrEnum):
    """How an address space began. UNSEEN: it was there, and nobody saw it begin."""

    EXEC = "exec"
    FORK = "fork"
    THERE = "there"
    UNSEEN = "unseen"


class RecordedVma(NamedTuple):
    """A mapping as /proc/PID/maps has it; bytes. flags: VmFlags of smaps, where that was read."""

    start: int
    end: int
    perms: str
    offset: int
    inode: int
    path: str
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RecordedProcess:
    """An address space, from its exec or fork on. parent: the one that it came of, by its index. began: the
    row of its first event. program: the file that it runs, if that was seen. vmas: those that it began
    with, where they were read; arguments: where on the stack exec put what it was given."""

    pid: int
    how: HowBegun
    parent: int | None
    began: int
    program: str | None
    vmas: tuple[RecordedVma, ...] | None
    arguments: int | None = None


@dataclass(frozen=True, eq=False)
class Recording:
    """A whole file. time: of each event, in nanoseconds from the beginning. value: of a fault its page,
    of a call and its return the call's row, of a new task the task, of a program the process, of idle time
    its nanoseconds. site: of a fault the row of sites, which are instructions' addresses.

    calls: the names of the system calls, in the order of their numbers; call_kind, call_args (n, 6),
    call_result. task_pid, task_process (where the task begins), task_flags (of clone). sample_process,
    sample_anon, sample_swap: what /proc said, in pages, between sample_time and sample_until. start_page,
    start_order (128: the zero page), start_folio: what the first process had, where it was there already.

    look_time, look_until, look_process, look_runs: looks at which pages are zero, each with so many of the
    runs of pages run_page, run_pages, run_zero: all of a run were zero, or none.
    """

    meta: Mapping[str, Any]
    kernel: str
    geometry: Geometry
    command: tuple[str, ...]
    processes: tuple[RecordedProcess, ...]
    calls: tuple[str, ...]
    time: NDArray[np.int64]
    task: NDArray[np.uint32]
    kind: NDArray[np.uint8]
    flags: NDArray[np.uint8]
    value: NDArray[np.uint64]
    site: NDArray[np.uint32]
    sites: NDArray[np.uint64]
    call_kind: NDArray[np.uint8]
    call_args: NDArray[np.uint64]
    call_result: NDArray[np.uint64]
    task_pid: NDArray[np.uint32]
    task_process: NDArray[np.uint32]
    task_flags: NDArray[np.uint64]
    sample_time: NDArray[np.uint64]
    sample_until: NDArray[np.uint64]
    sample_process: NDArray[np.uint32]
    sample_anon: NDArray[np.uint64]
    sample_swap: NDArray[np.uint64]
    start_page: NDArray[np.uint64]
    start_order: NDArray[np.uint8]
    start_folio: NDArray[np.uint64]
    look_time: NDArray[np.uint64]
    look_until: NDArray[np.uint64]
    look_process: NDArray[np.uint32]
    look_runs: NDArray[np.uint32]
    run_page: NDArray[np.uint64]
    run_pages: NDArray[np.uint32]
    run_zero: NDArray[np.uint8]

    @property
    def was_there(self) -> bool:
        """Whether the first process was there already."""
        return self.processes[0].how is HowBegun.THERE

    @property
    def huge_pages_off(self) -> bool:
        """Whether huge pages were off for it while it was recorded."""
        return bool(self.meta.get("huge_pages_off"))

    @property
    def seconds(self) -> float:
        """From the first event to the last."""
        return float(self.time[-1]) / 1e9 if len(self.time) else 0.0

    @property
    def looks(self) -> bool:
        """Whether it was looked, while it was recorded, which pages are zero."""
        return self.meta.get("looks") is not None


def load_recording(path: str | os.PathLike[str]) -> Recording:
    """The recording in a file; RecordingError with one line where it is not one."""
    where = os.fspath(path)
    try:
        with open_regular(path) as file:
            return read_recording(file, where)
    except OSError as error:
        raise RecordingError(f"{where}: {error.strerror or error}") from None


def read_recording(file: IO[bytes], where: str) -> Recording:
    """The recording in an open file, called `where` in what a RecordingError says."""
    try:
        members = Members(file, ("meta", *COLUMNS, *START, *LOOKS), "recording")
        lengths = _lengths(members)
        fields = Fields(_read_meta(members))
        geometry, limit = _host(fields)
        calls = _names_of_calls(fields)
        processes = _processes(fields, lengths["event"], geometry, limit)
        arrays = {name: members.array(name) for name in COLUMNS}
        time = check_events(arrays, lengths, geometry, limit, len(processes))
        check_tasks(arrays, [process.how for process in processes])
        check_calls(arrays, len(calls))
        check_samples(arrays, len(processes))
        there = any(name in members.found for name in START)
        for name, width in START.items():
            arrays[name] = members.array(name) if there else np.zeros(0, f"u{width}")
        was_there = there and processes[0].how is HowBegun.THERE
        spans = [(vma.start, vma.end) for vma in processes[0].vmas or ()] if was_there else []
        check_start(arrays, geometry, np.array(spans, np.uint64).reshape(-1, 2))
        looked = _has_looks(fields, members)
        for name, width in LOOKS.items():
            arrays[name] = members.array(name) if looked else np.zeros(0, f"u{width}")
        rows = np.minimum([process.began for process in processes], len(time) - 1)
        check_looks(arrays, geometry, limit, time[rows] if len(time) else np.zeros(len(rows), int))
    except FileError as error:
        raise RecordingError(f"{where}: {error}") from None
    columns = {
        name.removeprefix("event_"): column
        for name, column in arrays.items()
        if name not in ("event_later", "site_ip")
    }
    meta = MappingProxyType(dict(fields.document))
    return Recording(
        meta, meta["kernel"], geometry, tuple(meta["command"]), processes, calls, time=time,
        sites=arrays["site_ip"], **columns,
    )  # fmt: skip


def _lengths(members: Members) -> dict[str, int]:
    """How many rows the members of each kind have. FileError: one is missing, or of another length."""
    if "meta" not in members.found:
        raise FileError("not a recording (no member meta)")
    lengths: dict[str, int] = {}
    there = {
        name: width
        for some in (START, LOOKS)
        if any(name in members.found for name in some)
        for name, width in some.items()
    }
    for name, width in {**COLUMNS, **there}.items():
        if name not in members.found:
            raise FileError(f"not a recording (no member {name})")
        member = members.found[name]
        if member.dtype.itemsize != width:
            raise FileError(f"member {name} is {member.dtype}, not u{width}")
        rows = member.shape[0] if member.shape else 0
        wanted = (rows, ARGS) if name == "call_args" else (rows,)
        if member.shape != wanted or lengths.setdefault(name.partition("_")[0], rows) != rows:
            raise FileError(f"member {name} has shape {member.shape}, unlike what belongs to it")
    check_memory(
        sum(member.size for member in members.found.values()) + lengths["event"] * BYTES_OF_AN_EVENT
    )
    return lengths


def _has_looks(fields: Fields, members: Members) -> bool:
    """Whether it was looked which pages are zero. FileError: the document and the members do not agree, or
    they are of another version."""
    there = any(name in members.found for name in LOOKS)
    if fields.is_null("looks"):
        if there:
            raise FileError("looks: missing, and there are members of such")
        return False
    if not there:
        raise FileError("not a recording (no member look_time)")
    looks = Fields(fields.take("looks", dict), "looks.")
    version = looks.number("version", 1, 2**31)
    if version != VERSION:
        raise FileError(f"looks.version: {version} is not {VERSION}")
    return True


def _read_meta(members: Members) -> dict[str, Any]:
    member = members.found["meta"]
    if member.size > META_BYTES:
        raise FileError(f"member meta: more than {human_bytes(META_BYTES)}")
    if member.dtype.itemsize != 1:
        raise FileError(f"member meta is {member.dtype}, not u1")
    meta = parse_object(members.array("meta").tobytes())
    if meta.get("schema") != SCHEMA:
        raise FileError(f"schema {short(meta.get('schema'))} is not {SCHEMA!r}")
    return meta


def _host(fields: Fields) -> tuple[Geometry, int]:
    """The host's geometry, and the first address that no process of it has."""
    lost = fields.number("lost", 0, 2**63 - 1)
    if lost:
        raise FileError(f"{lost} events were lost while it was recorded: record it again")
    machine = fields.take("machine", str)
    if machine != MACHINE:
        raise FileError(f"recorded on {short(machine)}; those of {MACHINE} are understood")
    fields.take("kernel", str)
    page_size, pmd_size = (fields.number(name, 1, 2**40) for name in ("page_size", "pmd_size"))
    shift = page_size.bit_length() - 1
    try:
        geometry = Geometry(shift, pmd_size.bit_length() - 1 - shift)
    except ValueError as error:
        raise FileError(str(error)) from None
    if (geometry.page_size, geometry.pmd_size) != (page_size, pmd_size):
        raise FileError(f"page_size {page_size} and pmd_size {pmd_size} are not powers of two")
    fields.take("la57", bool)
    fields.table("sysfs", str)
    _texts(fields, "command")
    return geometry, address_limit(fields.document)


def _names_of_calls(fields: Fields) -> tuple[str, ...]:
    names = _texts(fields, "calls")
    if len(set(names)) != len(names) or len(names) > 255:
        raise FileError("calls: one is there twice, or they are too many")
    return names


def _texts(fields: Fields, key: str) -> tuple[str, ...]:
    values = fields.take(key, list)
    if not all(isinstance(each, str) for each in values):
        raise FileError(f"{key}: not a list of texts")
    return tuple(values)


def _processes(
    fields: Fields, events: int, geometry: Geometry, limit: int
) -> tuple[RecordedProcess, ...]:
    found: list[RecordedProcess] = []
    for each in fields.objects("processes", "a list of processes"):
        how = each.choice("how", HowBegun)
        parent = None if each.is_null("parent") else each.number("parent", 0, len(found) - 1)
        if how is HowBegun.FORK and parent is None:
            raise FileError(f"{each.where}parent: missing of what was forked")
        began = each.number("began", found[-1].began if found else 0, events)
        program = None if each.is_null("program") else each.take("program", str)
        vmas = None if each.is_null("vmas") else _vmas(each, geometry, limit)
        pid = each.number("pid", 1, MOST_PID)
        arguments = None
        if not each.is_null("arguments"):
            arguments = each.number("arguments", 0, limit - 1)
        found.append(RecordedProcess(pid, how, parent, began, program, vmas, arguments))
    if not found:
        raise FileError("processes: empty")
    return tuple(found)


def _vmas(process: Fields, geometry: Geometry, limit: int) -> tuple[RecordedVma, ...]:
    """The mappings that a process began with: in a row, where a process has addresses."""
    found: list[RecordedVma] = []
    before = 0
    for each in process.objects("vmas", "a list of mappings"):
        start, end, offset, inode = (
            each.number(name, 0, 2**64 - 1) for name in ("start", "end", "offset", "inode")
        )
        perms, path = each.take("perms", str), each.take("path", str)
        flags = frozenset(each.take("flags", str, "").split())
        if path == "[vsyscall]":
            continue
        if not before <= start < end <= limit or (start | end) & (geometry.page_size - 1):
            raise FileError(
                f"{each.where}start: {start:#x}-{end:#x} is no mapping, or not in order"
            )
        if len(perms) != 4 or len(path) > 4096:
            raise FileError(f"{each.where}perms: {short(perms)} is not as in /proc/PID/maps")
        found.append(RecordedVma(start, end, perms, offset, inode, path, flags))
        before = end
    return tuple(found)
