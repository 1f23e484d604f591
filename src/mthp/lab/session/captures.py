# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures the processes of a program in the guest as users do, by `mthp snap`, beside the lab's own reading.

One Python process stays in the guest for it, since starting one for each capture is slow there.
"""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from mthp.image.capture.columns import DEEP_WIDTH, NEVER, npy_header
from mthp.image.capture.run import HIDDEN, LOCKS, NO_MM_IDS
from mthp.lab.vm.channel import Channel, CommandFailed
from mthp.lab.vm.files import GuestFiles
from mthp.lab.vm.interpreter import CAPTURES, add_interpreter
from mthp.words.files import scratch

START_SECONDS = 300.0
"""For Python to start and compile the capture in a guest on a busy host."""
_SERVER = "captures"
_OUTPUT = "/tmp/captured.npz"
_COMMAND = "mthp.image.capture.command --quiet"


class CapturePath(StrEnum):
    """How users capture: `mthp snap`, or `mthp snap --deep`."""

    SNAP = "snap"
    DEEP = "deep"

    @property
    def options(self) -> str:
        """What it adds to the command."""
        return " --deep" if self is CapturePath.DEEP else ""


@dataclass(frozen=True)
class CaptureTools:
    """What a guest needs to capture. archive: files for its root; python: a path in it; paths: the
    captures to make of each state."""

    paths: tuple[CapturePath, ...]
    archive: Path
    python: str


@dataclass(frozen=True)
class Captured:
    """The captures of one state. pids: of its processes, in the order of the record. files: .npz by
    path; failed: why there is none, by path."""

    pids: tuple[int, ...]
    files: Mapping[CapturePath, bytes] = field(default_factory=dict)
    failed: Mapping[CapturePath, str] = field(default_factory=dict)


@contextlib.contextmanager
def capture_tools(paths: Sequence[CapturePath]) -> Iterator[CaptureTools | None]:
    """Pack Python and the capture for guests; the archive is removed when the block is left.

    None where no path is asked for. LabError (5): this Python cannot be copied.
    """
    if not paths:
        yield None
        return
    files = GuestFiles()
    python = add_interpreter(files)
    with scratch() as folder:
        yield CaptureTools(tuple(paths), files.pack(folder / "python.cpio"), python)


class Capturer:
    """The Python process of one guest."""

    def __init__(self, channel: Channel, tools: CaptureTools) -> None:
        """Start it. GuestGone: the guest ended."""
        self._channel = channel
        self._paths = tools.paths
        channel.ask(f"serve {_SERVER} {tools.python} -S {CAPTURES}")
        with channel.patient(START_SECONDS), contextlib.suppress(CommandFailed):
            channel.ask(
                f"{_SERVER} {_COMMAND} --pid {channel.ask('pid parked').decode()} -o /dev/null"
            )

    def __call__(self, processes: Sequence[str]) -> Captured:
        """Capture these processes together along every path.

        A deep capture has in it what a plain one reads, which is not read again then.
        """
        pids = tuple(int(self._channel.ask(f"pid {name}")) for name in processes)
        files: dict[CapturePath, bytes] = {}
        failed: dict[CapturePath, str] = {}
        for path in sorted(self._paths, key=lambda path: path is CapturePath.SNAP):
            try:
                deep = files.get(CapturePath.DEEP)
                files[path] = self._capture(path, pids) if deep is None else without_deep(deep)
            except CommandFailed as error:
                failed[path] = error.what
        return Captured(pids, files, failed)

    def _capture(self, path: CapturePath, pids: Sequence[int]) -> bytes:
        named = " ".join(f"--pid {pid}" for pid in pids)
        self._channel.ask(f"{_SERVER} {_COMMAND}{path.options} {named} -o {_OUTPUT}")
        return self._channel.ask(f"r {_OUTPUT}")


def without_deep(data: bytes) -> bytes:
    """The plain capture (.npz) that is in a deep one: as `mthp snap` without --deep would have made it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as deep, zipfile.ZipFile(out, "w") as plain:
        for entry in deep.infolist():
            name, array = entry.filename.removesuffix(".npy"), deep.read(entry)
            if name == "meta":
                document = json.dumps(_plain_meta(json.loads(array[len(_head(array)) :]))).encode()
                array = npy_header("|u1", (len(document),)) + document
            if name not in DEEP_WIDTH:
                plain.writestr(entry.filename, array, zipfile.ZIP_DEFLATED, 1)
    return out.getvalue()


def _head(array: bytes) -> bytes:
    """The header of a .npy."""
    return array[: 10 + int.from_bytes(array[8:10], "little")]


def _plain_meta(meta: dict[str, Any]) -> dict[str, Any]:
    del meta["deep"]
    meta["privilege"]["deep"] = False
    last = NEVER + LOCKS
    seen = [each for each in meta["unseen"] if each not in (NO_MM_IDS, last)]
    meta["unseen"] = [*seen, *(NEVER + each for each in HIDDEN), last]
    for process in meta["processes"]:
        del process["deep"]
        for vma in process["vmas"]:
            del vma["anon_vma"]
    return meta
