# SPDX-License-Identifier: GPL-2.0-or-later
"""Ring buffers that no kernel filled, and a small recording that was never made: all of it lawful."""

from __future__ import annotations

import copy
import io
import json
import struct
import zipfile
from functools import cache

import numpy as np

from mthp.image.record.columns import Sample, write_recording
from mthp.image.record.decode import Decoder
from mthp.image.record.formats import (
    CALLS,
    EXEC,
    EXIT,
    KERNEL_FAULT,
    NEW_TASK,
    PREPARE_EXEC,
    USER_FAULT,
    Event,
    Field,
    PageLayout,
    parse_event,
)
from mthp.image.record.looks import VERSION, Looks
from mthp.image.record.ring import PADDING, TIME_EXTEND, TIME_STAMP, RingPages
from tests.image.made import Made

LAYOUT = PageLayout(Field(8, 8), 16, 4096)
HEAP = 0x5555_5555_0000
PID, CHILD = 100, 101
_COMMON = """\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;
"""
_FIELDS = {
    **dict.fromkeys(
        (USER_FAULT, KERNEL_FAULT),
        (("address", 8, 8), ("ip", 16, 8), ("error_code", 24, 8)),
    ),
    NEW_TASK: (("pid", 8, 4), ("comm[16]", 12, 16), ("clone_flags", 32, 8)),
    PREPARE_EXEC: (("interp", 8, 4), ("pid", 16, 4)),
    EXEC: (("filename", 8, 4), ("pid", 12, 4), ("old_pid", 16, 4)),
    EXIT: (("comm[16]", 8, 16), ("pid", 24, 4)),
}


_ARGS = {"mmap": 6, "munmap": 2, "madvise": 3, "brk": 1, "mprotect": 3, "mremap": 5, "mlock": 2}


def events() -> dict[str, Event]:
    """The events of a kernel, with their numbers in this order from 1 up."""
    fields = dict(_FIELDS)
    for call, args in _ARGS.items():
        enter = tuple((f"arg{i}", 16 + 8 * i, 8) for i in range(args))
        fields[f"syscalls/sys_enter_{call}"] = (("__syscall_nr", 8, 4), *enter)
        fields[f"syscalls/sys_exit_{call}"] = (("__syscall_nr", 8, 4), ("ret", 16, 8))
    found = {}
    for number, (name, own) in enumerate(fields.items(), 1):
        lines = "".join(
            f"\tfield:int {each};\toffset:{at};\tsize:{size};\tsigned:0;\n"
            for each, at, size in own
        )
        found[name] = parse_event(
            name, f"name: x\nID: {number}\nformat:\n{_COMMON}\n{lines}\nprint fmt: x"
        )
    return found


class Ring:
    """Writes records as the kernel lays them into a page; at each time from 1,000 up."""

    def __init__(self) -> None:
        self.events = events()
        self.now = 1_000
        self.pages: list[bytes] = []
        self._data = b""
        self._start = self._last = self.now

    def record(self, name: str, pid: int, *values: int, later: int = 10, text: bytes = b"") -> None:
        """Write a record of an event, its fields in order, and a text behind it."""
        event = self.events[name]
        own = [field for each, field in event.fields.items() if not each.startswith("common_")]
        body = bytearray(max(field.offset + field.size for field in own))
        struct.pack_into("<HBBi", body, 0, event.number, 0, 0, pid)
        for field, value in zip(own, values, strict=False):
            body[field.offset : field.offset + field.size] = value.to_bytes(field.size, "little")
        body += text
        body += bytes(-len(body) % 4)
        self.now += later
        if len(self._data) + len(body) + 16 > LAYOUT.size - LAYOUT.data - 8:
            self.page()
            self._last = self._start
        self._later(self.now - self._last)
        self._last = self.now
        if len(body) > 112:
            self._data += struct.pack("<II", self._delta, len(body) + 4) + body
        else:
            self._data += struct.pack("<I", self._delta | len(body) >> 2) + body

    def _later(self, later: int) -> None:
        self._delta = 0
        if later >> 27:
            self._data += struct.pack(
                "<II", (later & (1 << 27) - 1) << 5 | TIME_EXTEND, later >> 27
            )
        else:
            self._delta = later << 5

    def discarded(self) -> None:
        """Write what the kernel makes of a record that it takes back."""
        self._data += struct.pack("<II", 1 << 5 | PADDING, 12) + bytes(8)

    def stamped(self) -> None:
        """Write the whole time."""
        low, high = self.now & (1 << 27) - 1, self.now >> 27
        self._data += struct.pack("<II", low << 5 | TIME_STAMP, high)

    def page(self, missed: int = 0) -> None:
        """End a page. missed: events that the kernel says were lost before it."""
        commit = len(self._data) | (0xC000_0000 if missed else 0)
        data = self._data + (struct.pack("<Q", missed) if missed else b"")
        self.pages.append(
            (struct.pack("<QQ", self._start, commit) + data).ljust(LAYOUT.size, b"\0")
        )
        self._data, self._start = b"", self.now

    def read(self) -> RingPages:
        """The pages as the recorder reads them."""
        return RingPages(io.BytesIO(b"".join(self.pages)), LAYOUT)

    def call(self, call: str, pid: int, *args: int, result: int = 0) -> None:
        """Write a system call and its return."""
        assert call in CALLS
        self.record(f"syscalls/sys_enter_{call}", pid, 0, *args)
        self.record(f"syscalls/sys_exit_{call}", pid, 0, result)


def lived() -> Decoder:
    """A program that maps, touches, forks, unmaps and ends."""
    ring = Ring()
    ring.record(USER_FAULT, PID, HEAP, 1, 6)  # before its program: not of the recording
    ring.record(PREPARE_EXEC, PID, 0, PID)
    ring.record(KERNEL_FAULT, PID, HEAP, 0x10, 2)
    ring.record(EXEC, PID, 20 | 6 << 16, PID, PID, text=b"/made\0")
    ring.call("mmap", PID, 0, 1 << 16, 3, 0x22, 2**64 - 1, 0, result=HEAP + (1 << 20))
    for page in range(4):
        ring.record(USER_FAULT, PID, HEAP + (1 << 20) + page * 4096, 0x20, 6)
    ring.record(NEW_TASK, PID, CHILD, 0, 0)
    ring.page()
    ring.record(USER_FAULT, CHILD, HEAP + (1 << 20), 0x30, 7)
    ring.record(EXIT, CHILD, 0, CHILD)
    ring.record(NEW_TASK, PID, CHILD + 1, 0, 0x10F00)
    ring.call("madvise", CHILD + 1, HEAP + (1 << 20), 8192, 4)
    ring.record(EXIT, CHILD + 1, 0, CHILD + 1)
    ring.call("munmap", PID, HEAP + (1 << 20), 1 << 16)
    ring.record(EXIT, PID, 0, PID, later=5 << 32)
    ring.page()
    decoder = Decoder(ring.events, 12, PID)
    decoder.decode([ring.read().records()])
    decoder.rows.processes[0]["vmas"] = [
        {
            "start": HEAP,
            "end": HEAP + 8192,
            "perms": "rw-p",
            "offset": 0,
            "inode": 0,
            "path": "[heap]",
        }
    ]
    return decoder


META = {
    "kernel": "7.3.4", "machine": "x86_64", "la57": False, "sysfs": {"enabled": "[never]"},
    "page_size": 4096, "pmd_size": 2 << 20, "command": ["/made"], "lost": 0,
}  # fmt: skip


def packed(decoder: Decoder, samples: list[Sample], looks: Looks | None = None) -> bytes:
    """The file of what was decoded."""
    file = io.BytesIO()
    write_recording(file, META, decoder, samples, looks=looks)
    return file.getvalue()


@cache
def _packed() -> bytes:
    decoder = lived()
    samples = [
        Sample(decoder.began + 100, decoder.began + 105, PID, 2, 0),
        Sample(decoder.ended, decoder.ended + 3, PID, 0, 0),
    ]
    return packed(decoder, samples)


def made_there() -> Made:
    """The same of a process that was there already, with a large folio, small pages and the zero page."""
    made = made_recording()
    made.meta["processes"][0].update(how="there", program="/made")
    made.meta["processes"][0]["vmas"][0]["end"] = HEAP + 6 * 4096
    first = HEAP >> 12
    made.arrays["start_page"] = np.array([*range(first, first + 6)], np.uint64)
    made.arrays["start_order"] = np.array([2, 2, 2, 0, 0, 128], np.uint8)
    made.arrays["start_folio"] = np.array([77, 77, 77, 0, 0, 0], np.uint64)
    return made


def made_looked() -> Made:
    """The same of a program at which it was looked twice which pages are zero."""
    made = made_recording()
    made.meta["looks"] = {"version": VERSION, "seconds": 1.0}
    first = HEAP >> 12
    for name, (width, values) in {
        "look_time": ("u8", [100, 200]),
        "look_until": ("u8", [150, 220]),
        "look_process": ("u4", [0, 1]),
        "look_runs": ("u4", [2, 1]),
        "run_page": ("u8", [first, first + 256, first + 256]),
        "run_pages": ("u4", [1, 4, 2]),
        "run_zero": ("u1", [0, 1, 1]),
    }.items():
        made.arrays[name] = np.array(values, width)
    return made


def made_recording() -> Made:
    """Its document and arrays, to be changed and packed."""
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(_packed())) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                arrays[name.removesuffix(".npy")] = np.lib.format.read_array(member)
    meta = json.loads(arrays.pop("meta").tobytes())
    return copy.deepcopy(Made(meta, arrays))
